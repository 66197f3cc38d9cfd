"""Autoguidance: a network guided by another that is told the label, too."""

import benches
import pytest
import torch
from conftest import TOKENS, composed, rng, steps_of, tiny

from benchmarks.core.errors import BadInput
from benchmarks.core.settings import check
from benchmarks.results import records
from benchmarks.stages.guide import refuse_missing_snapshot
from benchmarks.stages.model import sampler_settings
from models.options import snapshot_of
from models.randomness import spawn
from models.tokens import inverse_cdf

pytestmark = pytest.mark.usefixtures("no_figures")

LABELS = torch.tensor([0, 3, 1])
GUIDED = ("unet", "dit", "dit-flow_x0", "unet-heun", "ar", "ar-block4", "masked", "scale")


def weaker(name: str):
    """A network of the same shape and other weights."""
    model = tiny(name).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
    return model


def sampled(model, guidance: float, guide: str = "snapshot:0.25") -> torch.Tensor:
    model.set_sampler(model.sampler, guide=guide)
    return model.sample(LABELS, steps=steps_of(model), guidance=guidance, rng=rng(3))


@pytest.mark.parametrize("name", GUIDED)
def test_a_network_that_guides_itself_changes_nothing_and_another_does(name):
    """u + w (c - u) of u = c."""
    model = tiny(name).eval()
    plain = sampled(model, 1.0)
    model.guide_with(model)
    torch.testing.assert_close(sampled(model, 3.0), plain, rtol=1e-3, atol=1e-3)
    model.guide_with(weaker(name))
    assert not torch.allclose(sampled(model, 3.0), plain, atol=1e-2)
    assert torch.equal(sampled(model, 1.0), plain), "without guidance no other is asked"
    assert not torch.allclose(sampled(model, 3.0, "unconditional"), plain, atol=1e-2)


def test_a_prediction_is_led_away_from_that_of_the_guide():
    model, guide, x = tiny("dit").eval(), weaker("dit"), torch.randn(3, 4, 8, 8)
    model.guide_with(guide)
    model.set_sampler(guide="snapshot:0.5")
    with torch.no_grad():
        own, other = (net.denoiser(x, torch.full((3,), 300.0), LABELS) for net in (model, guide))
        predicted = model._predict(x, 300.0, LABELS, 2.5)
    torch.testing.assert_close(predicted, other + 2.5 * (own - other))


def test_cached_tokens_are_those_of_both_networks_logits():
    model, guide = tiny("ar").eval(), weaker("ar")
    model.guide_with(guide)
    model.set_sampler(guide="snapshot:0.5")
    ids = model.sample_tokens(LABELS, steps=TOKENS, guidance=2.5, rng=rng(2))
    with torch.no_grad():
        own, other = (net.logits(ids, LABELS) for net in (model, guide))
    uniform = torch.stack([torch.rand(TOKENS, generator=each) for each in spawn(rng(2), 3)])
    logits = other + 2.5 * (own - other)
    expected = [inverse_cdf(logits[:, n], uniform[:, n]) for n in range(TOKENS)]
    assert torch.equal(ids, torch.stack(expected, dim=1))


def test_the_guide_is_no_part_of_the_weights_and_costs_an_evaluation():
    model = tiny("dit")
    names, cost = set(model.state_dict()), model.nfe(8, 3.0)
    model.guide_with(weaker("dit"))
    model.set_sampler(guide="snapshot:0.5")
    assert set(model.state_dict()) == names and model.nfe(8, 3.0) == cost == 16


def test_a_guide_that_was_not_given_is_no_guidance_in_silence():
    with pytest.raises(RuntimeError, match="guide_with"):
        sampled(tiny("dit").eval(), 2.0)


@pytest.mark.parametrize(
    "guide", ["snapshot:1", "snapshot:0", "snapshot:x", "snapshot", "0.25", ""]
)
def test_what_is_no_guide_is_refused_by_name(guide):
    with pytest.raises(ValueError, match=r"sampler\.guide=.*snapshot:0\.25"):
        tiny("dit").set_sampler(guide=guide)
    assert snapshot_of({"guide": "snapshot:0.25"}) == 0.25
    assert snapshot_of({"guide": "unconditional"}) is None and snapshot_of({}) is None


@pytest.mark.parametrize("name", ["any", "dit-flowmap", "raster-gmm"])
def test_families_without_autoguidance_say_so(name):
    with pytest.raises(ValueError, match=r"sampler\.guide: this model has"):
        tiny(name).set_sampler(guide="snapshot:0.25")


def test_weights_that_no_training_keeps_cannot_guide():
    cfg = composed("train.snapshots=[0.5]")
    refuse_missing_snapshot({"guide": "snapshot:0.5"}, cfg)
    with pytest.raises(BadInput, match=r"add train\.snapshots=\[0\.25\]"):
        refuse_missing_snapshot({"guide": "snapshot:0.25"}, cfg)


def test_a_bench_guided_by_kept_weights_names_them_and_one_without_them_is_refused(tmp_path):
    shared = ["model=dit", "steps=[2]", "guidance=[1,3]", "train.budget=8", "tune=none"]
    shared += benches.TINY
    guided = [*shared, "sampler.guide=snapshot:0.5", "train.snapshots=[0.5]", "name=guided"]
    assert benches.run(tmp_path, *guided).code == 0
    rows = [record["row"] for record in records.read(tmp_path / "results" / "guided")]
    by = {(row["guidance"], row["train_fraction"]): row for row in rows}
    labels = {(row["guidance"], row["sampler"]) for row in rows}
    assert labels == {(1.0, "euler"), (3.0, "euler, guide snapshot:0.5")}, "at 1 nobody guides"
    assert by[3.0, 1.0]["nfe"] == 4 and by[1.0, 1.0]["nfe"] == 2
    assert by[3.0, 1.0]["gmacs_generator"] == 2 * by[1.0, 1.0]["gmacs_generator"]
    refused = benches.run(tmp_path, *shared, "sampler.guide=snapshot:0.5", "name=refused")
    assert refused.code != 0 and "add train.snapshots=[0.5]" in refused.err


def test_settings_are_chosen_for_each_guide_by_itself(tmp_path):
    """Neither choice takes the place of the other in one folder of results."""
    shared = ["model=dit", "steps=[2]", "guidance=[]", "train.budget=8", "train.snapshots=[0.5]"]
    shared += ["tune=default", "tune.guidance=[1,2]", "tune.num_samples=20", *benches.TINY]
    for guide in ("unconditional", "snapshot:0.5"):
        done = benches.run(tmp_path, *shared, f"sampler.guide={guide}", "name=both")
        assert done.code == 0, done.err
    rows = [record["row"] for record in records.read(tmp_path / "results" / "both")]
    chosen = [row["sampler"] for row in rows if row["settings"] == records.TUNED]
    assert sorted("snapshot:0.5" in label for label in chosen) == [False, True], chosen
    summary = (tmp_path / "results" / "both" / "summary.md").read_text()
    assert "| dit, tuned |" in summary and "| dit, tuned, guide snapshot:0.5 |" in summary


def test_the_search_does_not_choose_who_guides():
    cfg = composed("model.tune=[{guide:'snapshot:0.5'}]", "train.snapshots=[0.5]")
    with pytest.raises(BadInput, match=r"guide.*set sampler\.guide"):
        check(cfg)


def test_the_usual_guide_leaves_names_of_measurements_as_they_were():
    model = tiny("dit")
    assert "guide" not in dict(sampler_settings(model)["options"])
    model.set_sampler(guide="snapshot:0.5")
    assert dict(sampler_settings(model)["options"])["guide"] == "snapshot:0.5"
