"""Cached decoding in static buffers, and as graphs: the same tokens, without a GPU."""

from typing import Any

import pytest
import torch
from conftest import TOKENS, rng, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from models import decoding

CACHED = ("ar", "ar-block4", "any")


def tokens(model, steps: int, guidance: float, seed: int = 5) -> torch.Tensor:
    return model.sample_tokens(torch.arange(5) % 5, steps=steps, guidance=guidance, rng=rng(seed))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", CACHED)
def test_static_buffers_give_the_tokens_of_growing_caches(name, guidance, precision):
    """Static steps, as CUDA captures them, run uncaptured.

    Places are tensors, lengths are rounded, keys are masked, guidance comes from a table.
    """
    model = tiny(name).eval()
    model.set_sampler(guidance_schedule="linear")
    for steps in model.supported_steps([1, 4, 7, 16, TOKENS]):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model.static_decoding = None
            growing = tokens(model, steps, guidance)
            model.static_decoding = True
            assert torch.equal(tokens(model, steps, guidance), growing)


class Recorded(TorchDispatchMode):
    """Keeps every operation with its very arguments, and repeats them: all that a CUDA graph is.

    Recording runs the operations, capturing does not. So the first replay is the recording itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        # by the id of a recorded result: what stands for it in this replay
        replacements: dict[int, Any] = {}
        for func, args, kwargs, recorded in self.calls:
            args, kwargs = tree_map(lambda x: replacements.get(id(x), x), (args, kwargs))
            result = func(*args, **kwargs)
            for old, new in zip(_flat(recorded), _flat(result), strict=True):
                replacements[id(old)] = new


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple | list) else [result]


@pytest.fixture
def recording(monkeypatch) -> list[Recorded]:
    """Steps are recorded and repeated on the CPU as they would be captured and replayed on CUDA."""
    graphs: list[Recorded] = []

    def capture(step, pool):
        with Recorded() as graph:
            step()
        graphs.append(graph)
        return graph

    begin = decoding.Steps.begin

    def captured(self):
        self.captured = self.static
        begin(self)

    monkeypatch.setattr(decoding, "capture", capture)
    monkeypatch.setattr(decoding.Steps, "begin", captured)
    return graphs


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("name", CACHED)
def test_a_replayed_step_gives_the_tokens_of_a_step(name, guidance, recording):
    """Nothing that the host knows may decide what a step does, but for what names its graph.

    Labels, noise and order are read anew.
    """
    model, twin = tiny(name).eval(), tiny(name).eval()
    for either in (model, twin):
        either.set_sampler(guidance_schedule="linear", temperature=0.7)
    model.static_decoding = True  # the twin decodes in growing caches
    with model.fixed_weights():
        for steps in model.supported_steps([1, 7, TOKENS, 16]):
            for seed in (5, 6, 7):
                expected = tokens(twin, steps, guidance, seed)
                assert torch.equal(tokens(model, steps, guidance, seed), expected)
    assert any(graph.replays > 2 for graph in recording), "some steps were replays"


def test_a_raster_model_needs_few_graphs(recording):
    """One a rounded length, and one for the first step, whose inputs are not tokens."""
    model = tiny("ar").eval()
    model.static_decoding = True
    with model.fixed_weights():
        for seed in (1, 2, 3):
            tokens(model, TOKENS, 1.0, seed)
    assert len(recording) == TOKENS // decoding.ROUNDED + 1


def test_what_is_kept_is_kept_for_fixed_weights_only():
    """Other weights, another scale or another temperature must not meet an old graph."""
    model, made = tiny("ar").eval(), []

    def make() -> None:
        made.append(1)

    with model.fixed_weights():
        for guidance in (1.0, 2.0, 1.0):
            tokens(model, TOKENS, guidance)
        assert len(model._kept) == 2
        model.set_sampler(temperature=0.5)
        tokens(model, TOKENS, 1.0)
        assert len(model._kept) == 3
    assert model._kept is None
    model.kept("x", make)
    model.kept("x", make)
    assert len(made) == 2, "outside nothing is kept"


def test_masked_keys_that_were_never_written_weigh_nothing():
    """A cache begins as zeros where a step looks further than it is filled: 0 times NaN is NaN."""
    cache = decoding.Cache(8)
    steps = decoding.Steps(8, torch.device("cpu"), static=True, captured=False)
    new = torch.ones(1, 1, 1, 4)
    keys, values = cache.extend(new, new, steps.window(0, 1))
    assert keys.shape == (1, 1, 8, 4) and keys.isfinite().all()
    assert values[:, :, 1:].abs().max() == 0
    assert steps.window(0, 1).seen.tolist() == [[True] + [False] * 7]


def test_decoding_goes_on_without_graphs_where_one_cannot_be_captured(
    recording, monkeypatch, capsys
):
    def refuse(step, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decoding, "capture", refuse)
    model = tiny("ar").eval()
    expected = tokens(model, TOKENS, 2.5)
    model.static_decoding = True
    with model.fixed_weights():
        assert all(torch.equal(tokens(model, TOKENS, 2.5), expected) for _ in range(3))
    assert "decoding without CUDA graphs: operation not permitted" in capsys.readouterr().out
