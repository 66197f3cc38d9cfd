"""The columns of results.csv: the one place that says what a number means.

Tables, plots and docs/columns.md take names, directions, units and meanings from here.
"""

from typing import NamedTuple


class Column(NamedTuple):
    """A column: which direction is better (-1 lower, +1 higher, 0 neither), its unit, its meaning."""

    name: str
    better: int
    unit: str
    meaning: str


COLUMNS = [
    Column("run_id", 0, "", "names this measurement: a hash of everything that determines it"),
    Column("status", 0, "", "ok, diverged or failed"),
    Column("family", 0, "", "kind of model: unet, dit or ar"),
    Column("model", 0, "", "file of conf/model"),
    Column("size", 0, "", "how wide and deep the network is: xs, s, b, l or xl"),
    Column("params_m", 0, "M", "trainable parameters"),
    Column("seed", 0, "", "training seed"),
    Column("data", 0, "", "data set: a preset's name, or the image folder's"),
    Column("num_classes", 0, "", "classes of the data that are learned and sampled"),
    Column("image_size", 0, "px", "side of the square images"),
    Column("autoencoder", 0, "", "autoencoder and codebook that all models share"),
    Column("latent_shape", 0, "", "of one image's latents: channels x height x width"),
    Column("objective", 0, "", "what the network is trained to predict"),
    Column("train_images", 0, "", "images trained with, repeats included"),
    Column("train_flops", 0, "FLOP", "spent on training: 3 x forward FLOPs x images"),
    Column("train_fraction", 0, "", "fraction of the training budget behind these weights"),
    Column("train_seconds", -1, "s", "wall time of the training loop"),
    Column("train_images_per_second", 1, "images/s", "training throughput"),
    Column(
        "train_utilisation",
        1,
        "",
        "training FLOP/s over a bf16 matrix product's in the same run",
    ),
    Column(
        "sampler",
        0,
        "",
        "how sampling goes from noise or nothing to latents, and every option that is not the usual one",
    ),
    Column("steps", 0, "", "sampling steps"),
    Column("nfe", -1, "", "network evaluations per image"),
    Column("guidance", 0, "", "classifier-free guidance scale; 1 is none"),
    Column("num_samples", 0, "", "samples scored (N)"),
    Column("reference_images", 0, "", "held-out real images they are compared with (M)"),
    Column("features", 0, "", "feature extractor behind fd"),
    Column("fd", -1, "", "Fréchet distance of the samples to the reference images"),
    Column(
        "fd_std",
        0,
        "",
        "bootstrap standard deviation of fd: images are resampled, training is not repeated",
    ),
    Column(
        "fd_floor_analytic",
        0,
        "",
        "fd that finite N and M alone give to samples from the reference's own distribution",
    ),
    Column("fd_floor_real", 0, "", "fd of N real images that nothing has seen"),
    Column(
        "fd_floor_autoencoder",
        0,
        "",
        "fd of the same images through the autoencoder: the floor of models of latents",
    ),
    Column(
        "fd_floor_codebook",
        0,
        "",
        "fd of the same images through the codebook: the floor of models of tokens",
    ),
    Column(
        "kid",
        -1,
        "",
        "kernel distance of the samples to the reference images; around 0, also below, where nothing is wrong",
    ),
    Column("kid_stderr", 0, "", "jackknife standard error of kid"),
    Column("precision", 1, "", "fraction of samples near real images"),
    Column("recall", 1, "", "fraction of real images near samples"),
    Column(
        "density",
        1,
        "",
        "real neighbourhoods that hold a sample, in multiples of what real images would give; 1 is as dense as they",
    ),
    Column("coverage", 1, "", "fraction of reference images whose neighbourhood holds a sample"),
    Column(
        "label_accuracy",
        1,
        "",
        "fraction of samples that a linear probe assigns to the class asked for",
    ),
    Column("label_accuracy_real", 0, "", "the same of held-out real images"),
    Column(
        "memorised_fraction",
        -1,
        "",
        "fraction of samples closer to training images than 99% of held-out real images are; 0.01 is none",
    ),
    Column("gmacs_generator", -1, "GMAC/image", "all network evaluations of one image"),
    Column("gmacs_decoder", 0, "GMAC/image", "decoding its latents"),
    Column("gmacs_per_image", -1, "GMAC/image", "generator and decoder"),
    Column("gflops_per_image", -1, "GFLOP/image", "2 x gmacs_per_image"),
    Column("seconds_per_image", -1, "s/image", "wall time at the sampling batch, decoder included"),
    Column("images_per_second", 1, "images/s", "1 / seconds_per_image"),
    Column("latency_seconds", -1, "s", "wall time of one image sampled alone"),
    Column(
        "peak_memory_mb",
        -1,
        "MiB",
        "peak memory while sampling: of the device, or of the whole process on a CPU",
    ),
    Column("device", 0, "", "the GPU, or the CPU with its number of threads"),
    Column("dtype", 0, "", "precision of training and sampling"),
    Column("torch", 0, "", "version of torch"),
    Column("git_sha", 0, "", "commit of the code"),
    Column("git_dirty", 0, "", "whether the code had uncommitted changes"),
    Column("started_at", 0, "", "UTC time at which sampling began"),
]
NAMES = [column.name for column in COLUMNS]
BY_NAME = {column.name: column for column in COLUMNS}
