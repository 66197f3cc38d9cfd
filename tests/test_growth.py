"""How cost grows: the fitted exponents on made-up points, what a forward pass keeps, and a small
run of the real thing.
"""

import pandas as pd
import pytest
import torch

from benchmarks.core.settings import compose
from benchmarks.frozen.autoencoder import SHIPPED_FOLDER, load_codebook
from benchmarks.perf import growth
from benchmarks.stages.model import build_model, forward_macs, on_meta

CPU = torch.device("cpu")


def test_exponents_are_local_slopes_and_say_from_where_time_follows_the_flops():
    rows = [["dit", "batch", n, max(1.0, n / 4), 10 + n, 2.0 * n] for n in (1, 2, 4, 8, 16)]
    rows += [["ar", "tokens", n, 1.0, n**2, n] for n in (64, 256, 1024)]
    table = growth.exponents(pd.DataFrame(rows, columns=growth.COLUMNS)).set_index("model")
    dit, ar = table.loc["dit"], table.loc["ar"]
    assert dit["local: time"] == "0.00 to 1.00" and dit["time follows the FLOPs from"] == 4
    assert dit["local: FLOPs"] == "1.00 to 1.00"
    assert ar["local: memory"] == "2.00 to 2.00"
    assert ar["time follows the FLOPs from"] == "nowhere here"


@pytest.mark.parametrize("name", growth.MODELS)
def test_twice_the_width_is_nearly_four_times_the_work(name):
    macs, book = [], load_codebook(SHIPPED_FOLDER / "codebook.safetensors")
    for times in (1, 2):
        cfg = compose(f"model={name}", "size=xs")
        growth.widened(cfg, times)
        macs.append(forward_macs(on_meta(build_model(cfg.model, (4, 8, 8), 10, book))))
    assert 2.8 < macs[1] / macs[0] < 4.2


def test_what_a_forward_pass_keeps_is_counted_once():
    x = torch.randn(2**18, requires_grad=True)  # 1 MiB
    # exp keeps its result, which is not x; x, kept twice, is one storage
    assert growth.saved_mb(lambda: (x.exp() * 2).sum()) == pytest.approx(1.0)
    assert growth.saved_mb(lambda: (x * x).sum()) == pytest.approx(1.0)


def test_points_of_a_small_run_and_their_plot(tmp_path, monkeypatch):
    axes = {"tokens": ((16, 64), "training"), "samples": ((1, 2), "sampling")}
    monkeypatch.setattr(growth, "AXES", axes)
    exponents = growth.write(growth.points(CPU, 1, ["dit", "ar"]), tmp_path)
    table = pd.read_csv(tmp_path / "growth.csv")
    assert len(exponents) == 4 and (tmp_path / "growth.png").stat().st_size > 10_000
    assert list(table.columns) == growth.COLUMNS and len(table) == 8
    assert (table[growth.MEASURED] > 0).all(axis=None)
