"""Settings: what each may be, and that whatever else is typed gets one line before anything is
loaded.
"""

from functools import cache

import pytest
import torch
from benches import run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks import run as run_module
from benchmarks.core import cli
from benchmarks.core.environment import pick_device
from benchmarks.core.errors import BadInput
from benchmarks.core.settings import check, compose, config_names

# --- right and wrong values

HUGE = str(2**70)
# by key; `ar.` before a key stands for model=ar, and so on
RIGHT = {
    "name": ["$a_b$", "'a b'", "2024", "x" * 100],
    "seed": ["0", str(2**64 - 1)],
    "steps": ["4", "[1,300]"],
    "guidance": ["1", "[0,1,2.5]"],
    "sampling_seeds": ["7", "[0,1]"],
    "num_samples": ["2"],
    "sample_batch": ["auto", "1"],
    "sample_precision": ["auto", "bf16", "fp32"],
    "stop_at": ["null", "1.8e9"],
    "export": ["png", "[png,npz]"],
    "device": ["auto", "cuda", "cuda:3"],
    "data.seed": [str(2**60 - 1)],
    "train.unit": ["flops"],
    "train.compile": ["true", "auto"],
    "train.betas": ["[0,0.5]"],
    "train.snapshots": ["[0.125,0.5]"],
    "train.label_dropout": ["0", "0.5"],
    "tune.guidance": ["1", "[1,2]"],
    "tune.steps": ["4", "[4,16]"],
    "sampler.guidance_interval": ["[0,1]"],
    "sampler.top_p": ["1", "0.5"],
    "sampler.guide": ["unconditional", "snapshot:0.25"],
    "sampler.temperature": ["0.5", "2"],
    "model.tune": ["[]", "[{sampler: heun}]"],
    "masked.model.mask_schedule": ["arccos"],
    "ar.model.block": ["16"],
    "autoencoder.codebook_size": ["2", "65536"],
}
WRONG = {
    "name": [
        "..",
        ".",
        "/abs",
        "a/b",
        "'a\\\\b'",
        ".hidden",
        "''",
        "' '",
        "x" * 101,
        "'a\nb'",
        "'a\u202eb'",
        "1.5",
    ],
    "model.name": ["../..", "a/b"],
    "data.name": ["a/b"],
    "seed": [str(2**64), "1.0", "'1'", "false"],
    "steps": ["[4,true]", "[4,0]", "[2.5]", "[]", "many", "10001"],
    "guidance": ["[true]", "[2,-1]", "[x]", "1e9"],
    "sampling_seeds": ["[]", "[0,-1]"],
    "num_samples": ["1", "2.0"],
    "sample_batch": ["many", "0", "2000000"],
    "sample_precision": ["fp8", "null"],
    "stop_at": ["soon", "-1"],
    "export": ["gif", "[png,gif]"],
    "device": ["cuda:x", "gpu", "cuda:"],
    "match": ["steps"],
    "data.image_size": ["7", "5000", "32.5"],
    "data.seed": [str(2**60)],
    "train.budget": ["lots", "0", "1e27"],
    "train.unit": ["parsecs", "images"],  # the budget of 7.4e12 was FLOPs
    "train.batch": ["0", "1.5", "2000000"],
    "train.precision": ["fp8"],
    "train.compile": ["maybe", "1"],
    "train.betas": ["[0.9]", "[0.9,1]", "[0.9,x]", "0.9"],
    "train.warmup": ["1", "-1"],
    "train.ema_decay": ["2", "1"],
    "train.label_dropout": ["1", "-0.1"],
    "train.accumulate": ["0", "3"],  # the batch is 32
    "train.snapshots": ["0.5", "[1.0]", "[0.0]", "[0.5,0.5000001]"],
    "train.weight_decay": ["-0.1", "1e6"],
    "tune.guidance": ["2", "[1,4,2]", "[1,x]", "0"],
    "tune.recall": ["1.5"],
    "model.lr": ["0", "-1", "inf"],
    "model.objective": ["magic"],
    "model._target_": ["dit", "''"],
    "model.tune": ["[{temperature: inf}]", "[3]", "5", "[{hotness: 2}]"],
    "model.denoiser.width": ["126", "0"],
    "model.denoiser.depth": ["0", "2000"],
    "model.denoiser.heads": ["7"],
    "size.dit.heads": ["7"],
    "unet.model.denoiser.groups": ["5"],
    "unet.model.denoiser.channels": ["[16,24]", "[]", "56"],
    "ar.model.width": ["100"],
    "ar_any.model.depth": ["3"],
    "uvit.model.denoiser.depth": ["1", "4"],
    "sampler.name": ["eular", "1"],
    "sampler.temperature": ["inf", "0", "1e-9"],
    "sampler.guidance_interval": ["[0.9,0.1]", "[0,2]", "[0]"],
    "sampler.top_p": ["0", "1.5"],
    "sampler.schedule": ["linear"],
    "sampler.guide": ["x", "snapshot:1", "0.25"],
    "autoencoder.kind": ["vqgan", "[a]"],
    "autoencoder.weights": ["''", "5"],
    "results_dir": ["5", "''"],
}

# what sets several keys, or others than conf/ has
OWN = ["model=ar", "model._target_=mine.Own", "steps=[1]"]  # a user's own class
RIGHT_TOGETHER = [
    ["data=imagefolder", "data.path=/x", "data.classes=3", "data.images_per_class=5"],
    ["data=imagefolder", "data.path=/x", "data.classes=[cat,7]"],
    ["train.minutes=1", "train.unit=minutes", "train.budget=2"],
    ["train.label_dropout=0", "guidance=[1]"],
    ["tune.guidance=[1,2]", "guidance=[]"],
    ["model=unet", "+model.denoiser.head_dim=16"],
    ["autoencoder=trained", "autoencoder.images=16"],
    ["features=[local,inception,dinov2]"],
    ["+sides=[96,128]"],
    ["model=masked", "sampler=random", "sampler.schedule=arccos"],
    ["model=uvit", "model.denoiser.skips=false", "model.denoiser.depth=4"],
    ["model=dit_pixels", "autoencoder=pixels"],
    ["model=dit", "autoencoder=pixels"],
    ["model=dit", "model.objective=flowmap"],
    ["+size.mine.width=7"],  # for a model of one's own
    [*OWN, "+model.anything={a: [1, two]}", "model.heads=0"],
    [*OWN, "+sampler.mine=3", "sampler.temperature=0"],
    ["model.denoiser._target_=mine.Net", "+model.denoiser.width_of_mine=[1,2]"],
]
WRONG_TOGETHER = [
    (["train.label_dropout=0", "guidance=2"], "guidance=2: guidance needs train.label_dropout"),
    (["train.label_dropout=0", "tune=default"], "tune.guidance="),
    (["guidance=[]"], "nothing is measured"),
    (["+train.warm_up=0.1"], "train.warm_up=0.1: there is no such setting here; there are"),
    (["+foo=1"], "foo=1: there is no such setting here"),
    (["data=imagefolder"], "data.path=null: the folder of the images"),
    (["data=imagefolder", "data.path=/x", "data.classes=0"], "data.classes=0"),
    (["data=imagefolder", "data.path=/x", "data.classes=[]"], "data.classes=[]"),
    (["features=[]"], "features=null"),
    (["model=null"], "Config group override"),
    (["steps=${nowhere}"], "steps: Interpolation key 'nowhere' not found"),
    (["~seed"], "seed is missing: a whole number"),
    (["size.dit=null"], "size.dit"),
    (["model=dit_pixels"], "model=dit_pixels: made for pixels, not for autoencoder=shipped; add "),
    (["model=dit_flowmap", "model.objective=flow"], "model.objective=flow: flowmap, as this model"),
    (["model=unet_flowmap", "model.objective=magic"], "model.objective=magic: flowmap, as this"),
    (["model=dit", "+model.flow_first=0.5"], "model.flow_first=0.5: there is no such setting here"),
    (["sampler=random", "sampler.choice_temperature=2"], "leave out one of the two"),
    ([*OWN, "+model.anything={a: [1, nan]}"], "model.anything.a=nan: no number may be infinite"),
    ([*OWN, "+sampler.mine=inf"], "sampler.mine=inf"),
    ([*OWN, "model.lr=0"], "model.lr=0"),
]
MESSAGES = {
    "seed=-1": "seed=-1: a whole number from 0 to 2^64 - 1",
    "steps=[4,true]": "steps=[4, True]: a list of whole numbers from 1 to 10,000, such as "
    "steps=[4,16,64]",
    "guidance=[2,-1]": "a list of numbers from 0 to 1000, such as guidance=[1,2]; 1 is none; "
    "guidance=-1 is out of range",
    "name=..": "name=..: the name of one folder",
    "train.ema_decay=2": "train.ema_decay=2: a number from 0 up and below 1",
    "train.compile=maybe": "train.compile=maybe: one of true, false, auto",
    "size.dit.heads=7": "size.dit.heads=7: width 128 is not a multiple of heads 7",
    "export=null": "export=null: a list of png, npz, or []",
}


@cache
def base(model: str) -> DictConfig:
    """One configuration, composed once."""
    return compose(f"model={model}")


@cache
def parsed(value: str):
    """A value as Hydra reads it from a command line."""
    return OverridesParser.create().parse_override(f"key={value}").value()


def line_about(model: str, settings: dict[str, str]) -> str | None:
    """The line that refuses settings as they are typed; None where they pass. It must be one."""
    cfg = base(model).copy()
    try:
        for key, value in settings.items():
            OmegaConf.update(cfg, key, parsed(value))
        check(cfg)
    except OmegaConfBaseException as error:  # of what no key of that type can hold
        return str(error).splitlines()[0]
    except BadInput as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


def with_models(table: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    """The model, the key and the value of each entry of a table."""
    entries = []
    for key, values in table.items():
        first, _, rest = key.partition(".")
        named = first in config_names("model")
        entries += [(first, rest, v) if named else ("dit", key, v) for v in values]
    return entries


@pytest.mark.parametrize("model, key, value", with_models(RIGHT))
def test_a_right_value_passes(model, key, value):
    assert line_about(model, {key: value}) is None


@pytest.mark.parametrize("model, key, value", with_models(WRONG))
def test_a_wrong_value_is_named_in_one_line(model, key, value):
    line = line_about(model, {key: value})
    assert line and line.startswith(key.rsplit(".", 1)[0] if "." in key else f"{key}=")


@pytest.mark.parametrize("overrides", RIGHT_TOGETHER, ids=" ".join)
def test_settings_that_go_together_pass(overrides):
    check(compose(*overrides))


@pytest.mark.parametrize("overrides, message", WRONG_TOGETHER)
def test_settings_that_do_not_go_together_get_one_line(overrides, message):
    with pytest.raises((BadInput, HydraException)) as error:
        check(compose(*overrides))
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("typed, line", MESSAGES.items())
def test_a_line_says_the_key_the_value_and_what_it_must_be(typed, line):
    key, value = typed.split("=", 1)
    assert line in line_about("dit", {key: value})


# --- paths and devices


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    places = {
        "results_dir": "'~/r'",
        "cache_dir": "'~'",
        "data.path": "'~/i'",
        "autoencoder.weights": "'~/a'",
        "autoencoder.codebook": "'~/c'",
        "features.weights": "'~/f'",
    }
    cfg = compose("data=imagefolder", *(f"{key}={value}" for key, value in places.items()))
    check(cfg)
    for key, value in places.items():
        assert OmegaConf.select(cfg, key) == value.strip("'").replace("~", "/home/me")
    assert cfg.features.local.weights == "/home/me/f"
    with pytest.raises(BadInput, match="cache_dir=~of-nobody/x: nobody of that name"):
        check(compose("cache_dir='~of-nobody/x'"))


def test_a_tilde_needs_no_quotes_and_leaves_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cli.quoted_path("data.path=~/a b") == "data.path='~/a b'"
    for word in ("seed=1", "-m", "cache_dir=/a/b", "data.path=/a,/b", "features.weights=null"):
        assert cli.quoted_path(word) == word
    overrides = ["model=dit", "results_dir=~/r", "cache_dir=~/c", "device=quantum"]
    assert run(tmp_path, "experiment=smoke", *overrides).code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "name", ["é", "写真", "a$b", "a (1)", "it's", 'a"b', "a=b#c&d;e!f<g{", "a[0]"]
)
def test_a_path_may_have_any_name_that_a_file_system_allows(name):
    path = f"/data/{name}/pics"
    cfg = compose("data=imagefolder", cli.quoted_path(f"data.path={path}"))
    assert cfg.data.path == path


@pytest.mark.parametrize("wanted, card", [("cuda:0", 0), ("cuda:1", 1), ("cuda", None)])
def test_a_card_is_the_one_of_its_number(wanted, card, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert pick_device(wanted) == torch.device("cuda")
    assert chosen == ([] if card is None else [card])
    with pytest.raises(BadInput, match="device=cuda:2: this machine has 2"):
        pick_device("cuda:2")


def test_a_results_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(run_module, "prepare", lambda cfg: pytest.fail("it was loaded"))
    (tmp_path / "results").write_text("a file is in the way")
    for mode in ("RUN", "MULTIRUN"):
        ended = run(tmp_path, "experiment=smoke", "model=dit", f"hydra.mode={mode}")
        assert ended.code == 1 and ended.err.count("\n") == 1
        assert (
            ended.err.startswith("latentbench: results_dir: ") and "cannot be written" in ended.err
        )


# --- sweeps


def test_each_cell_of_a_sweep_has_a_line_of_its_own_once(tmp_path):
    ended = run(tmp_path, "experiment=smoke", "model=dit,ar", "seed=-1,x", "train.betas=[0.9]")
    assert ended.code == 1
    assert ended.err.splitlines() == [
        "latentbench: seed=-1: a whole number from 0 to 2^64 - 1",
        "latentbench: seed=x: a whole number from 0 to 2^64 - 1",
    ]
    ended = run(tmp_path, "experiment=smoke", "model=dit,ar", "seed=0,1", "train.betas=[0.9]")
    assert ended.err.count("train.betas=[0.9]: two numbers") == ended.err.count("\n") == 1
