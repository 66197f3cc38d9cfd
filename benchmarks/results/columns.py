"""The columns of results.csv: the one place that says what a number means.

Tables, plots and docs/columns.md take names, directions, units and meanings from here.
"""

from typing import Any, NamedTuple


class Column(NamedTuple):
    """One column; `better` is -1 for lower, +1 for higher, 0 for neither."""

    name: str
    better: int
    unit: str
    meaning: str


COLUMNS = [
    Column("run_id", 0, "", "names a measurement: a hash of everything that determines it"),
    Column("status", 0, "", "ok, diverged or failed"),
    Column("family", 0, "", "kind of model: unet, dit or ar"),
    Column(
        "model",
        0,
        "",
        "file of conf/model; of a model trained elsewhere, the last part of its path",
    ),
    Column("size", 0, "", "how wide and deep the network is: xs, xs16, s, b, l or xl"),
    Column("params_m", 0, "M", "trainable parameters of the generator"),
    Column(
        "seed",
        0,
        "",
        "training seed: of the initial weights, the order of images and the noise",
    ),
    Column("data", 0, "", "data set: a preset's name, or the image folder's"),
    Column("num_classes", 0, "", "how many classes the data has"),
    Column("image_size", 0, "px", "side of the square images"),
    Column("autoencoder", 0, "", "autoencoder that all models share"),
    Column("codebook", 0, "", "whose codebook, and its entries; models of tokens only"),
    Column("latent_shape", 0, "", "of one image's latents: channels x height x width"),
    Column("objective", 0, "", "what the network is trained to predict"),
    Column("train_images", 0, "", "images trained with, repeats included"),
    Column(
        "train_flops",
        0,
        "FLOP",
        "spent on training: images x (3 x forward FLOPs, and passes without gradient)",
    ),
    Column("train_fraction", 0, "", "fraction of the training budget behind these weights"),
    Column("train_seconds", -1, "s", "wall time of the training loop"),
    Column("train_images_per_second", 1, "images/s", "training throughput, of all processes"),
    Column("train_processes", 0, "", "processes that trained it; a mean, if their number changed"),
    Column(
        "train_images_per_second_each", 1, "images/s", "training throughput of one of the processes"
    ),
    Column(
        "train_others_cpu",
        -1,
        "",
        "share of the CPU cores' time that other programs took while it trained",
    ),
    Column(
        "train_utilisation",
        1,
        "",
        "training FLOP/s over those of the fastest matrix product, bf16 or fp32, of the same run",
    ),
    Column(
        "settings",
        0,
        "",
        "of sampling: configured, or tuned, which is chosen on samples that are not reported",
    ),
    Column(
        "sampler",
        0,
        "",
        "how latents are sampled, and every option of it that is not the usual one",
    ),
    Column(
        "steps",
        0,
        "",
        "how often a sample is refined or tokens are added; what a step is depends on the model",
    ),
    Column("nfe", -1, "", "network evaluations per image; guidance doubles them"),
    Column("guidance", 0, "", "classifier-free guidance scale; 1 is none"),
    Column("num_samples", 0, "", "samples scored (N)"),
    Column("reference_images", 0, "", "held-out real images that samples are compared with (M)"),
    Column("features", 0, "", "feature extractor behind fd"),
    Column(
        "fd_generator",
        -1,
        "",
        "Fréchet distance to the reference images passed through the same autoencoder: what the "
        "generator alone loses",
    ),
    Column(
        "fd_generator_std",
        0,
        "",
        "bootstrap standard deviation of fd_generator over images; training is not repeated",
    ),
    Column(
        "fd_generator_full",
        -1,
        "",
        "fd_generator over all dimensions of a network whose Fréchet distance is taken over fewer; "
        "where N and M are 5,000 or more",
    ),
    Column(
        "fd_generator_floor_real",
        0,
        "",
        "fd_generator of N unseen real images through the autoencoder: the floor of latents",
    ),
    Column(
        "fd_generator_floor_codebook",
        0,
        "",
        "fd_generator of N unseen real images through the codebook: the floor of tokens",
    ),
    Column(
        "kid_generator",
        -1,
        "",
        "kernel distance to the reference images through the autoencoder; around 0, also below, "
        "where nothing is wrong",
    ),
    Column("kid_generator_stderr", 0, "", "jackknife standard error of kid_generator"),
    Column(
        "kid_generator_floor_real",
        0,
        "",
        "kid_generator of N unseen real images through the autoencoder",
    ),
    Column(
        "kid_generator_floor_codebook",
        0,
        "",
        "kid_generator of N unseen real images through the codebook",
    ),
    Column(
        "fd",
        -1,
        "",
        "Fréchet distance to the reference images as they are: the system, decoder included",
    ),
    Column(
        "fd_std",
        0,
        "",
        "bootstrap standard deviation of fd over images; training is not repeated",
    ),
    Column(
        "fd_floor_analytic",
        0,
        "",
        "fd that finite N and M alone give to samples as good as real images",
    ),
    Column("fd_floor_real", 0, "", "fd of N real images that nothing has seen"),
    Column(
        "fd_floor_autoencoder",
        0,
        "",
        "fd of N unseen real images through the autoencoder; sharper samples may go below it",
    ),
    Column(
        "fd_floor_codebook",
        0,
        "",
        "fd of N unseen real images through the codebook; sharper samples may go below it",
    ),
    Column(
        "kid",
        -1,
        "",
        "kernel distance to the reference images as they are: the system, decoder included",
    ),
    Column("kid_stderr", 0, "", "jackknife standard error of kid"),
    Column(
        "precision",
        1,
        "",
        "fraction of samples in a neighbourhood of reference images through the autoencoder",
    ),
    Column(
        "recall",
        1,
        "",
        "fraction of reference images through the autoencoder in a neighbourhood of samples",
    ),
    Column(
        "density",
        1,
        "",
        "in how many of these real neighbourhoods a sample lies, against a real image; 1 is as "
        "many",
    ),
    Column(
        "coverage",
        1,
        "",
        "fraction of reference images through the autoencoder with a sample in their neighbourhood",
    ),
    Column(
        "recall_autoencoder",
        0,
        "",
        "recall of unseen real images through the autoencoder against images as they are; below "
        "0.7 the decoder hides too much for a verdict",
    ),
    Column(
        "label_accuracy",
        1,
        "",
        "fraction of samples that a classifier on the features assigns to the class asked for",
    ),
    Column(
        "label_accuracy_ceiling",
        0,
        "",
        "label_accuracy of real images through the autoencoder: what a perfect generator has",
    ),
    Column("label_accuracy_real", 0, "", "label_accuracy of real images as they are"),
    Column(
        "memorised_fraction",
        -1,
        "",
        "fraction of samples closer to training images than 99% of real images; 0.01 is none",
    ),
    Column("gmacs_generator", -1, "GMAC/image", "all network evaluations of one image"),
    Column("gmacs_decoder", 0, "GMAC/image", "decoding one image's latents"),
    Column("gmacs_per_image", -1, "GMAC/image", "gmacs_generator + gmacs_decoder"),
    Column("gflops_per_image", -1, "GFLOP/image", "2 x gmacs_per_image"),
    Column("seconds_per_image", -1, "s/image", "wall time at sample_batch, decoder included"),
    Column("images_per_second", 1, "images/s", "1 / seconds_per_image"),
    Column("sample_batch", 0, "", "images sampled at once; on a CPU 128 unless set"),
    Column("sample_dtype", 0, "", "precision of sampling; empty in older results"),
    Column("latency_seconds", -1, "s", "wall time of one image sampled alone"),
    Column(
        "peak_memory_mb",
        -1,
        "MiB",
        "peak while sampling, of the GPU; on a CPU of the whole process, which compares nothing",
    ),
    Column("sample_processes", 0, "", "processes that sampled together"),
    Column(
        "batch_seconds_spread",
        -1,
        "",
        "by how much the median batch took longer than the fastest, as a fraction of it; empty "
        "where fewer than four full batches were timed",
    ),
    Column(
        "others_cpu",
        -1,
        "",
        "share of the CPU cores' time that other programs took while it was timed",
    ),
    Column(
        "others_gpu",
        -1,
        "",
        "share of the GPU's memory that other programs held while it was timed; empty on a CPU",
    ),
    Column(
        "device",
        0,
        "",
        "GPU, or CPU with its threads; and the processes, where several sampled; in a report of "
        "several folders in brackets the versions, where they differ",
    ),
    Column("dtype", 0, "", "precision of training"),
    Column("torch", 0, "", "version of the library"),
    Column("git_sha", 0, "", "commit of the code"),
    Column("git_dirty", 0, "", "whether the code had uncommitted changes"),
    Column("code_digest", 0, "", "digest of the code with its changes; empty in older results"),
    Column("started_at", 0, "", "when sampling began, UTC"),
]
NAMES = [column.name for column in COLUMNS]


GRADED = [column.name for column in COLUMNS if column.better]  # numbers, all of them
BY_NAME = {column.name: column for column in COLUMNS}
# what is timed, with the share of the CPU that other programs took meanwhile
TIMED = {
    "seconds_per_image": "others_cpu",
    "images_per_second": "others_cpu",
    "latency_seconds": "others_cpu",
    "train_seconds": "train_others_cpu",
    "train_images_per_second": "train_others_cpu",
    "train_images_per_second_each": "train_others_cpu",
    "train_utilisation": "train_others_cpu",
}
UNSTEADY = 0.2  # median over fastest batch, less one: above it, seconds are marked
BUSY = 0.1  # of the CPU cores' time, or of the GPU's memory: above it, seconds are marked
# each measure of quality with its error
ERRORS = {
    "fd_generator": "fd_generator_std",
    "kid_generator": "kid_generator_stderr",
    "fd": "fd_std",
    "kid": "kid_stderr",
}


def leading(row: Any) -> str:
    """The distance that leads of a row: `fd_generator`, or `fd` of images that came through no
    autoencoder of ours.
    """
    value = row.get("fd_generator")
    return "fd" if value is None or value != value else "fd_generator"


def is_busy(row: Any, column: str) -> bool:
    """Whether other programs were there while a column of a row was timed."""
    if column not in TIMED:
        return False
    of_gpu = row.get("others_gpu") if TIMED[column] == "others_cpu" else None
    return any((share or 0) > BUSY for share in (row.get(TIMED[column]), of_gpu))


def is_unsteady(row: Any, column: str) -> bool:
    """Whether the repeats that gave a column of a row lay far apart."""
    spread = row.get("batch_seconds_spread") or 0
    return column in ("seconds_per_image", "images_per_second") and spread > UNSTEADY


def as_page() -> str:
    """docs/columns.md."""
    lines = [
        "# Columns of results.csv",
        "",
        "Made from the table in `benchmarks/results/columns.py` by",
        "`.venv/bin/python -m benchmarks.results.columns > docs/columns.md`.",
        "",
        "| column | better | unit | meaning |",
        "| --- | --- | --- | --- |",
    ]
    better = {-1: "lower", 1: "higher", 0: ""}
    for column in COLUMNS:
        cells = (f"`{column.name}`", better[column.better], column.unit, column.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_page(), end="")
