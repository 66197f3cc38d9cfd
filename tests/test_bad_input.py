"""What a user may get wrong: one line says what it was, and nothing is computed."""

import re

import pytest
from benches import run
from conftest import composed

from benchmarks.core.errors import BadInput
from benchmarks.run import refuse_unused
from benchmarks.stages.prepare import prepare, refuse_unfit

BAD = [
    (["data=imagefolder", "data.path=/nowhere/at/all"], "data.path=/nowhere/at/all"),
    (["data=imagefolder"], "data.path"),
    (["data.image_size=30"], "data.image_size=30"),
    (["data.image_size=48"], "data.image_size=48"),
    (["model=masked", "steps=[300]"], "steps=300"),
    (["model=dit", "steps=[0]"], "steps=0"),
    (["num_samples=1"], "num_samples=1"),
    (["device=quantum"], "device=quantum"),
    (["train.unit=parsecs"], "train.unit=parsecs"),
    (["data=tiny_imagenet"], "data.path=zh-plus/tiny-imagenet"),
    (["autoencoder.weights=/nowhere.safetensors"], "autoencoder.weights"),
    (["features.weights=/nowhere.safetensors"], "features.weights"),
    (["train.precision=fp8"], "train.precision=fp8"),
    (["train.budget=lots"], "train.budget=lots"),
    (["steps=[2.5]"], "steps=[2.5]"),
    (["guidance=[x]"], "guidance=['x']"),
    (["seed=x"], "seed=x"),
    (["sample_batch=0"], "sample_batch=0"),
    (["features=inception"], "features=inception"),
    (["name=.."], "name=.."),
    (["train.ema_decay=2"], "train.ema_decay=2"),
    (["train.unit=minutes", "train.budget=7.4e12"], "train.unit=minutes"),
    (["cache_dir=/dev/null/x"], "/dev/null"),
    (["model=null"], "configuration: "),
    (["train={a: 1}"], "train"),
    (["model=ar_scale,ar_continuous", "autoencoder.codebook_size=64"], "autoencoder.codebook_size"),
    (["model=masked_continuous", "size.codebook_size=64"], "size.codebook_size=64"),
    (
        ["model=ar_continuous", "model.head=codebook"],
        "model.head=codebook: one of gmm, flow; for tokens of a codebook give model=ar",
    ),
    (["model=masked_continuous", "model.head=width"], "model.head=width: one of gmm, flow"),
]
# names that no file of conf/ has: the message is Hydra's own, on one line
UNKNOWN = ["model=nonsense", "size=xxl", "experiment=nonsense"]


@pytest.fixture
def offline(monkeypatch) -> None:
    """Nothing can be downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_codebook_is_refused_only_where_nobody_uses_it():
    asked = "autoencoder.codebook_size=64"
    for model in ("ar_block", "dit_flowmap", "unet,ar_continuous"):
        refuse_unused([f"model={model}", asked])
    refuse_unused(["model=ar_continuous", "autoencoder.codebook_size=null"])
    with pytest.raises(BadInput, match="ar_scale would make no use of it"):
        refuse_unused(["model=ar_scale", asked])


def test_a_guide_of_earlier_weights_is_refused_only_where_no_model_takes_it():
    asked = "sampler.guide=snapshot:0.25"
    for words in (["model=dit,ar_any"], ["model=masked"], ["experiment=guides"]):
        refuse_unused([*words, asked])
    refuse_unused(["model=dit_flowmap", "sampler.guide=unconditional"])
    with pytest.raises(BadInput, match="unet_flowmap, ar_any cannot be guided by earlier weights"):
        refuse_unused(["model=unet_flowmap,ar_any", asked])


@pytest.mark.parametrize("overrides, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path, overrides, message, offline):
    model = [] if any(one.startswith("model=") for one in overrides) else ["model=dit"]
    ended = run(tmp_path, "experiment=smoke", *model, *overrides)
    assert ended.code != 0 and message in ended.err
    assert "Traceback" not in ended.err + ended.out
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("latentbench: "), ended.err
    assert not list(tmp_path.glob("results/*/records/*.json"))


def test_what_all_cells_of_a_sweep_trip_over_is_printed_once(tmp_path):
    ended = run(tmp_path, "experiment=smoke", "data.image_size=30")
    (line,) = (line for line in ended.err.splitlines() if line.strip())
    assert ended.code != 0 and line.startswith("latentbench: ") and "data.image_size=30" in line


# refused by the model's class, and not by the schema
UNFIT = [
    (["model=dit_flowmap", "model.most_guidance=2", "guidance=[4]"], "guidance=4"),
    (["model=dit", "model.denoiser.patch=3"], "model.denoiser.patch=3"),
    (["model=ar_scale", "model.sides=[1,3,8]"], "sides"),
    (["model=dit", "sampler.guide=snapshot:0.5"], "sampler.guide=snapshot:0.5"),
]


@pytest.mark.parametrize("overrides, message", UNFIT, ids=[message for _, message in UNFIT])
def test_what_a_model_refuses_is_refused_before_there_are_images_or_latents(
    tmp_path, overrides, message
):
    cfg = composed(*overrides, f"cache_dir={tmp_path}", "features=local", "device=cpu")
    with pytest.raises(BadInput, match=re.escape(message)):
        prepare(cfg)
    assert not list(tmp_path.iterdir())


def test_a_line_about_a_model_is_printed_once_though_it_is_asked_twice(capsys):
    """First without data, then as it is trained."""
    cfg = composed("model=masked", "sampler=heun", "steps=[1,99]")
    for _ in range(2):
        refuse_unfit(cfg, (4, 4, 4))
    printed = capsys.readouterr().out
    assert printed.count("sampler=heun is not one of its own") == 1
    assert printed.count("measured at [1] steps") == 1


def test_a_class_of_one_s_own_is_not_built_without_data():
    """It may not be made for that; what it refuses it refuses later."""
    for own in (["model=ar", "model._target_=mine.Own"], ["model.denoiser._target_=mine.Net"]):
        refuse_unfit(composed(*own), (4, 4, 4))


@pytest.mark.parametrize("override", UNKNOWN)
def test_an_unknown_name_is_named_and_a_non_zero_exit(tmp_path, override, capfd):
    preset = [] if override.startswith("experiment=") else ["experiment=smoke"]
    ended = run(tmp_path, *preset, override)
    printed = ended.out + ended.err + "".join(capfd.readouterr())
    assert ended.code != 0 and override.split("=")[1] in printed
    assert "Traceback" not in printed and len(ended.err.splitlines()) == 1
    assert not list(tmp_path.glob("results/*/records/*.json"))
