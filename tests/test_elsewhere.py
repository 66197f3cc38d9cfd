"""Models that were trained elsewhere: pipelines of diffusers in the hub's format, and one's own."""

import copy
import functools
import json
import shutil

import pandas as pd
import pytest
import torch
from benches import TINY, run
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from models_elsewhere import Greys, dit_pipeline
from safetensors.torch import load_file, save_file

from benchmarks.analysis.panel import panels
from benchmarks.reports import summary
from benchmarks.reports.beside import alone, together
from benchmarks.results import records
from benchmarks.stages.model import image_cost, on_meta
from benchmarks.stages.sample import SamplingConfig, image_sampler
from metrics import flops
from models.label_pipeline import LabelPipeline
from models.randomness import spawn

CPU = torch.device("cpu")
LABELS = "model.labels=[0,1,2,3,4,5,6,7,8,9]"
GREYS = ["model._target_=models_elsewhere.Greys", "model.name=greys", "+model.brightest=200"]
NAMES = [f"class {i}, of a thousand" for i in range(1000)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with pipelines as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("hub")
    for name, scheduler in (("dit", DDIMScheduler), ("noisy", DDPMScheduler)):
        dit_pipeline(scheduler(clip_sample=False)).save_pretrained(folder / name)
        # `save_pretrained` leaves it out, the published folders have it
        in_index(id2label=dict(enumerate(NAMES)))(folder / name)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        num_class_embeds=10,
    )
    scheduler = CMStochasticIterativeScheduler()
    ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder / "consistency")
    return folder


def loaded(folder, classes=10, **settings) -> LabelPipeline:
    """The pipeline for classes that are called as its own first ones."""
    return LabelPipeline(16, NAMES[:classes], None, path=str(folder), **settings)


def sampled(model, labels, seed=7, **settings):
    settings = {"steps": 4, "guidance": 1.0} | settings
    rng = torch.Generator().manual_seed(seed)
    return model.sample(torch.tensor(labels), rng=rng, **settings)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_its_images_are_those_that_the_pipeline_itself_gives(hub, guidance):
    images = sampled(loaded(hub / "dit"), [3, 5], guidance=guidance)
    pipeline = DiTPipeline.from_pretrained(hub / "dit")
    pipeline.set_progress_bar_config(disable=True)
    generators = spawn(torch.Generator().manual_seed(7), 2)
    settings = {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "np"}
    pixels = pipeline([3, 5], generator=generators, **settings).images
    expected = torch.from_numpy((pixels * 255).round()).permute(0, 3, 1, 2).to(torch.uint8)
    assert images.dtype == torch.uint8 and torch.equal(images, expected)


def test_images_come_as_numpy_too_from_a_diffusers_that_knows_nothing_else(hub, monkeypatch):
    """`DiTPipeline` of 0.35 to 0.37, at least, takes no notice of "pt"."""
    expected, own = sampled(loaded(hub / "dit"), [3, 5]), DiTPipeline.__call__

    @functools.wraps(own)
    def of_before(self, *args, **call):
        return own(self, *args, **(call | {"output_type": "np"}))

    monkeypatch.setattr(DiTPipeline, "__call__", of_before)
    assert torch.equal(sampled(loaded(hub / "dit"), [3, 5]), expected)


def test_a_size_that_is_no_number_is_refused(hub, tmp_path):
    """A U-Net may have it for each side, but the pipelines of diffusers cannot use that."""
    shutil.copytree(hub / "consistency", tmp_path / "sides")
    config = tmp_path / "sides/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": [16, 16]}))
    with pytest.raises(ValueError, match=r"sample_size is \[16, 16\], where .* takes one number"):
        loaded(tmp_path / "sides")


def test_an_image_does_not_depend_on_its_batch_nor_on_what_ran_before(hub):
    model = loaded(hub / "dit")
    together = sampled(model, [1, 2, 3])
    rng, torch_state = torch.Generator().manual_seed(7), torch.random.get_rng_state()
    apart = [model.sample(torch.tensor([n]), steps=4, guidance=1.0, rng=rng) for n in (1, 2, 3)]
    assert (together.int() - torch.cat(apart).int()).abs().max() <= 1
    assert torch.equal(torch_state, torch.random.get_rng_state())
    noisy = loaded(hub / "noisy")  # its scheduler draws from torch's global generator
    assert torch.equal(sampled(noisy, [1, 2]), sampled(noisy, [1, 2]))


def test_evaluations_and_flops_are_counted_on_the_meta_device(hub):
    model = loaded(hub / "dit")
    meta = on_meta(model)
    assert (model.nfe(4, 1.0), model.nfe(4, 2.0)) == (4, 8)
    one, guided = image_cost(meta, None, 4, 1.0), image_cost(meta, None, 4, 2.0)
    assert guided["gmacs_generator"] == pytest.approx(2 * one["gmacs_generator"])
    # by hand: two blocks of width 16 over 16 tokens, as DESIGN's formula for DiT
    tokens, width, depth = 16, 16, 2
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2)
    assert one["gmacs_generator"] * 1e9 / 4 == pytest.approx(blocks, rel=0.35)
    assert one["gmacs_generator"] * 1e9 / 4 >= blocks
    decoded = flops.count_macs(lambda: meta.decoder.decode(torch.empty(1, 4, 8, 8, device="meta")))
    assert one["gmacs_decoder"] * 1e9 == decoded > 0
    assert flops.params(model) == sum(p.numel() for p in model.denoiser.parameters())


def test_a_pipeline_that_evaluates_otherwise_than_counted_is_refused(hub):
    model = loaded(hub / "dit")
    model.nfe = lambda steps, guidance: 3
    with pytest.raises(ValueError, match="evaluated 4 times an image, where 3 are counted"):
        sampled(model, [1])


def test_guidance_without_the_null_label_that_diffusers_takes_is_refused(hub, tmp_path):
    """`DiTPipeline` takes label 1000 for none, however many labels the network has."""
    config = json.loads((hub / "dit/transformer/config.json").read_text())
    network = DiTTransformer2DModel.from_config(config | {"num_embeds_ada_norm": 1500})
    shutil.copytree(hub / "dit", tmp_path / "more")
    network.save_pretrained(tmp_path / "more/transformer")
    model = loaded(tmp_path / "more")
    assert model.nfe(4, 1.0) == 4
    with pytest.raises(ValueError, match="takes label 1000 for none, and this network has 1500"):
        model.nfe(4, 2.0)


def test_images_that_are_not_finite_are_no_images(hub):
    model = loaded(hub / "dit")
    with torch.no_grad():
        next(model.denoiser.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        sampled(model, [1])


def test_a_class_of_ones_own_must_give_images():
    model = Greys(8, ["a", "b"], None, brightest=200)
    config = SamplingConfig(1, 1.0, 2, 2, 0, "fp32")
    call = torch.tensor([0, 1]), torch.Generator()
    assert image_sampler(model, config, CPU)(*call).images.shape == (2, 3, 8, 8)
    model.sample = lambda labels, **_: torch.zeros(2, 3, 8, 8)
    with pytest.raises(TypeError, match="where uint8"):
        image_sampler(model, config, CPU)(*call)


def broken(hub, tmp_path, change) -> str:
    """A copy of the pipeline with something changed."""
    folder = tmp_path / "broken"
    shutil.copytree(hub / "dit", folder)
    change(folder)
    return str(folder)


def in_index(**entries):
    def change(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | entries))

    return change


def of_another_architecture(folder):
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"num_layers": 3}))


def pickled(folder):
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "transformer/diffusion_pytorch_model.bin")
    weights.unlink()


def without_a_weight(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path, metadata={"format": "pt"})


def with_code(folder):
    (folder / "evil.py").write_text("raise SystemExit('run')")
    in_index(_class_name=["evil", "Evil"])(folder)


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            in_index(_class_name="Evil"),
            "its _class_name, Evil, is no pipeline of diffusers, and no",
        ),
        (with_code, "is no pipeline of diffusers, and no other code is run"),
        (in_index(_class_name="StableDiffusionPipeline"), "takes no class labels"),
        (in_index(transformer=["evil", "Evil"]), "its transformer is .* no network or scheduler"),
        (in_index(transformer=["transformers", "CLIPTextModel"]), "no network or scheduler"),
        (of_another_architecture, "its transformer has another network's weights"),
        (without_a_weight, "its vae has another network's weights"),
        (pickled, "its transformer has no safetensors; .*safe_serialization=True"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_folder_that_is_no_whole_pipeline_is_refused_in_one_line(hub, tmp_path, change, reason):
    with pytest.raises(ValueError, match=reason):
        loaded(broken(hub, tmp_path, change))


def test_what_a_pipeline_cannot_do_is_refused(hub):
    with pytest.raises(ValueError, match="makes images of 16 px, data"):
        LabelPipeline(32, NAMES[:3], None, path=str(hub / "dit"))
    model = loaded(hub / "consistency")
    with pytest.raises(ValueError, match="ConsistencyModelPipeline has no guidance"):
        model.nfe(2, 2.0)
    with pytest.raises(ValueError, match="scales from 1 up"):
        loaded(hub / "dit").nfe(2, 0.5)
    assert loaded(hub / "dit").supported_steps([0, 1, 4, 1000, 1001]) == [1, 4, 1000]
    assert sampled(model, [1, 2], steps=2).shape == (2, 3, 16, 16)


@pytest.fixture(scope="module")
def beside(hub, tmp_path_factory):
    """One folder of results with a model of ours, two pipelines, and a model of one's own."""
    folder = tmp_path_factory.mktemp("beside")
    settings = [*TINY, "train.budget=2", "tune=none", "guidance=[1]", "name=x", "steps=[1,2]"]
    for model in (
        ["model=dit", "size=xs"],
        ["model=pretrained", f"model.path={hub}/dit", LABELS, "guidance=[1,2]"],
        ["model=pretrained", f"model.path={hub}/consistency"],
        ["model=pretrained", *GREYS],
    ):
        with pytest.MonkeyPatch.context() as patch:
            if GREYS[-1] not in model:  # plots are of the last, which has all
                patch.setattr(summary, "_figures", lambda report, place: [])
            ended = run(folder, *settings, *model)
        assert ended.code == 0, ended.err
    return folder


def test_they_stand_in_one_report_beside_ours(beside):
    rows = pd.read_csv(beside / "results/x/results.csv").set_index("model")
    assert rows.loc["greys", ["steps", "nfe"]].tolist() == [1, 1]
    assert rows.loc["greys", "sample_dtype"] == "fp32", "that of its weights"
    assert len(rows.loc["dit"]) == 2 + 4 and set(rows.loc["consistency", "steps"]) == {1, 2}
    ours = rows["train_flops"].notna()
    assert rows.loc[ours, "fd_generator"].notna().all(), "ours came through our autoencoder"
    assert rows.loc[~ours, "fd_generator"].isna().all() and rows["fd"].notna().all()
    pages = (beside / "results/x/summary.md").read_text()
    title = "## Beside models trained elsewhere: procedural 16 px, N=20, M=20, local"
    section = pages.split(title)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert sum("| here |" in line for line in lines) == 2
    assert sum("| elsewhere: budget unknown |" in line for line in lines) == 4 + 2 + 1
    assert (beside / "results/x/plots/system_vs_gflops.png").exists()
    assert "Are the labels in another order?" in pages, "random weights know no class"


def test_what_it_was_trained_with_is_unknown_in_its_records(beside):
    found = records.read(beside / "results/x")
    theirs = [record for record in found if records.is_elsewhere(record)]
    assert len(theirs) == 7 and not any("train" in record["config"] for record in theirs)
    assert {records.budget(record) for record in theirs} == {""}
    assert {record["row"].get("dtype") for record in theirs} == {None}
    how = {record["row"]["model"]: record["diagnostics"].get("labels_by") for record in theirs}
    unchecked = "in the order of both, which nothing has checked"
    assert how == {"dit": "as given", "consistency": unchecked, "greys": None}


def test_two_checkpoints_of_one_name_and_two_data_sets_are_told_apart(beside):
    found = [one for one in records.read(beside / "results/x") if records.is_elsewhere(one)]
    other = copy.deepcopy(found)
    for record in other:
        record["fingerprints"]["training"] = "f" * 16
    both = records.current([*found, *other])
    assert len(both) == 2 * len(found)
    names = set(records.table(both)["variant"])
    assert len(names) == 4 and any("ffffff" in name for name in names)
    table = records.table(records.read(beside / "results/x"))
    ours = (table["family"] == "dit").to_numpy()
    assert len(together(panels(table))) == 1
    other_images = panels(table.assign(reference=ours.astype(str)))
    assert together(other_images) == [] and alone(other_images) and not alone(panels(table))


def test_images_of_one_data_set_are_not_taken_for_anothers(tmp_path):
    settings = [*TINY, "train.budget=2", "tune=none", "guidance=[1]", "steps=[1]", "name=x"]
    for changes in ([], ["data.image_size=32"]):
        ended = run(tmp_path, *settings, "model=pretrained", *GREYS, *changes)
        assert ended.code == 0, ended.err
    assert pd.read_csv(tmp_path / "results/x/results.csv")["image_size"].tolist() == [16, 32]


def test_what_is_measured_is_not_measured_again(beside, hub):
    settings = [*TINY, "tune=none", "guidance=[1,2]", "name=x", "steps=[1,2]", LABELS]
    ended = run(beside, *settings, "train.budget=2", "model=pretrained", f"model.path={hub}/dit")
    assert "4 of 4 measurements are there" in ended.out, ended.err


@pytest.mark.parametrize(
    "settings, reason",
    [
        (["model.path=/nowhere"], "model.path=/nowhere: no such folder"),
        (["model.path={hub}/dit"], "it has 1000 labels and the data 10 classes"),
        (["model.path={hub}/consistency", "guidance=[2]"], "has no guidance; give guidance=[1]"),
        (["model.path={hub}/consistency", "guidance=[]", "tune=default"], "is not tuned; give"),
        (["model.path={hub}/dit", LABELS, "steps=[2000]"], "supports none of these counts"),
        ([], "model.path=null: a folder, or a name on the hub"),
        (["model.path={hub}/dit", "model.precision=fp8"], "model.precision=fp8: one of fp32, bf16"),
        (["model._target_=torch.nn.Identity"], "no models.image_model.ImageModel"),
        ([*GREYS, "sample_precision=bf16"], "greys is a class of your own with weights in fp32"),
    ],
)
def test_bad_input_ends_with_one_line(hub, tmp_path, settings, reason):
    asked = ["model=pretrained", *(word.replace("{hub}", str(hub)) for word in settings)]
    ended = run(tmp_path, *TINY, "train.budget=2", *asked)
    assert ended.code != 0 and reason in ended.err and len(ended.err.strip().splitlines()) == 1
