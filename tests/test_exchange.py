"""Pictures from and to other tools, scored from the command line; results folders compared."""

import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.commands import compare, score_images
from benchmarks.core.errors import BadInput
from benchmarks.core.store import ROOT
from benchmarks.images import import_export
from benchmarks.images.procedural import generate
from benchmarks.results import archive, records
from benchmarks.stages.score import balanced_alike

PICTURES, LABELS = generate(48, 32, seed=0, stream="holdout")


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.transpose(1, 2, 0)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", import_export.KINDS)
def test_what_is_written_reads_back_the_same(kind, tmp_path):
    path = import_export.write(PICTURES, LABELS, tmp_path / "set", kind)
    images, labels = import_export.read(path, "IMAGES")
    assert np.array_equal(images, PICTURES)
    assert labels is None if kind == "png" else np.array_equal(labels, LABELS)


def test_an_npz_is_in_adm_s_layout(tmp_path):
    with np.load(
        import_export.write(PICTURES, LABELS, tmp_path / "set", "npz"), allow_pickle=False
    ) as file:
        assert (
            file["arr_0"].shape == (48, 32, 32, 3)
            and file["arr_0"].dtype == np.uint8
            and file["arr_1"].tolist() == LABELS.tolist()
        )


def test_parquet_in_the_hub_s_layout_reads(tmp_path):
    pytest.importorskip("pyarrow")
    cells = [{"bytes": png(p), "path": None} for p in PICTURES]
    pd.DataFrame({"image": cells, "label": LABELS}).to_parquet(tmp_path / "set.parquet")
    images, labels = import_export.read(tmp_path / "set.parquet", "IMAGES")
    assert np.array_equal(images, PICTURES) and np.array_equal(labels, LABELS)


def _folder(path, pictures):
    path.mkdir()
    for i, picture in enumerate(pictures):
        (path / f"{i:03d}.png").write_bytes(picture if isinstance(picture, bytes) else png(picture))
    return path


def _bad(tmp_path, what):
    if what == "empty":
        return _folder(tmp_path / "x", [])
    if what == "one":
        return _folder(tmp_path / "x", PICTURES[:1])
    if what == "few":
        return _folder(tmp_path / "x", PICTURES[:5])
    if what == "sizes":
        return _folder(tmp_path / "x", [*PICTURES[:10], PICTURES[0][:, :16, :16]])
    if what == "corrupt":
        return _folder(tmp_path / "x", [*PICTURES[:10], png(PICTURES[0])[:90]])
    path = tmp_path / "x.npz"
    if what == "cut npz":
        path.write_bytes(
            import_export.write(PICTURES, LABELS, tmp_path / "y", "npz").read_bytes()[:500]
        )
    elif what == "float npz":
        np.savez(path, arr_0=PICTURES.transpose(0, 2, 3, 1).astype(np.float32))
    elif what == "other npz":
        np.savez(path, images=PICTURES)
    elif what == "pickled npz":
        np.savez(path, arr_0=np.array([{"a": 1}], dtype=object))
    elif what == "labels":
        np.savez(path, arr_0=PICTURES.transpose(0, 2, 3, 1), arr_1=LABELS[:3])
    return path


@pytest.mark.parametrize(
    "what, said",
    [
        ("empty", "no pictures"),
        ("one", "1 picture"),
        ("few", "5 picture"),
        ("sizes", "2 sizes"),
        ("corrupt", "1 of 11"),
        ("absent", "no such file"),
        ("cut npz", "not a whole npz"),
        ("float npz", "float32"),
        ("other npz", "no arr_0"),
        ("pickled npz", "not a whole npz"),
        ("labels", "arr_1"),
    ],
)
def test_pictures_that_cannot_be_scored_get_one_line(what, said, tmp_path):
    with pytest.raises(BadInput, match=said) as error:
        score_images.pictures(_bad(tmp_path, what), "IMAGES")
    assert "\n" not in str(error.value) and "IMAGES=" in str(error.value)


def score(*arguments: str, cwd) -> subprocess.CompletedProcess:
    root = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    where = [f"results_dir={cwd}/results", f"cache_dir={cwd}/cache"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "score", *map(str, arguments), *where], **root
    )


def test_the_command_scores_a_folder_against_an_npz_and_a_data_config(tmp_path):
    images = import_export.write(PICTURES, LABELS, tmp_path / "set", "npz")
    folder = _folder(tmp_path / "pngs", generate(48, 32, seed=3, stream="holdout")[0])
    done = score(folder, images, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert (
        set(line) >= {"fd", "fd_std", "kid", "kid_stderr", "precision", "fd_floor_analytic"}
        and line["num_samples"] == 48
    )
    assert "mostly bias" in done.stdout.splitlines()[0], "the warning stands in the table"
    small = ["data.train_images=200", "data.reference_images=60", "data.image_size=32"]
    done = score(images, "procedural", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["label_accuracy"] > 0.5 and line["fd"] == pytest.approx(line["fd_floor_real"]), (
        "they are its floor split"
    )
    assert (
        line["train_pictures"] == 200
        and line["memorised_fraction"] <= 0.05
        and "kid_per_class" not in line
    )
    assert "loors are of" not in done.stdout
    done = score(folder, "procedural", *small, "num_samples=20", cwd=tmp_path)
    assert (
        done.returncode == 0 and "Floors are of 20 real pictures, the scores of 48" in done.stdout
    ), done.stderr
    assert "class-balanced pictures, which these are not known to be" in done.stdout, (
        "a flat folder has no labels"
    )
    assert json.loads(done.stdout.splitlines()[-1])["num_samples"] == 48


@pytest.mark.parametrize(
    "reference, said",
    [
        ("no/such/thing", "neither a file"),
        ("imagenette", "data.image_size"),
        ("wide.npz", "resize one"),
    ],
)
def test_a_reference_that_does_not_fit_gets_one_line(reference, said, tmp_path):
    images = import_export.write(PICTURES, LABELS, tmp_path / "set", "npz")
    import_export.write(
        np.zeros((9, 3, 64, 32), np.uint8), np.zeros(9, int), tmp_path / "wide", "npz"
    )
    done = score(
        images, tmp_path / reference if reference == "wide.npz" else reference, cwd=tmp_path
    )
    assert (
        done.returncode != 0 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr


def _record(folder, fd, budget=None, train=None, draw=0, dim=None, **row):
    known = {
        "status": "ok",
        "model": "dit",
        "size": "xs",
        "seed": 0,
        "steps": 8,
        "guidance": 1.0,
        "sampler": "euler",
        "features": "local",
    }
    row = (
        known
        | {
            "run_id": f"r{row.get('steps', 8)}",
            "fd": fd,
            "fd_std": 0.1,
            "gflops_per_image": 2.0,
            "seconds_per_image": 0.1,
        }
        | row
    )
    config = {"train": (train or {}) | ({"budget": budget, "unit": "flops"} if budget else {})}
    prints = {
        "data": "d",
        "features": "f",
        "features_dim": dim,
        "training": f"{row['model']}{row['seed']}",
    }
    records.write(folder, row, fingerprints=prints, sampling_seed=draw, config=config)


def compared(capsys, monkeypatch, *args) -> tuple[list[str], dict]:
    """The lines that `compare` prints before its last, and that one as JSON."""
    compare.main([str(arg) for arg in args])
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def test_compare_matches_rows_and_gives_verdicts(tmp_path, monkeypatch, capsys):
    for folder, distances in (
        ("a", {1: 9.0, 2: 5.0, 4: 4.0, 8: 3.0}),
        ("b", {1: 8.0, 2: 5.2, 4: 5.0, 16: 2.0}),
    ):
        for steps, fd in distances.items():
            _record(tmp_path / folder, fd, steps=steps)
    _, said = compared(capsys, monkeypatch, tmp_path / "a", tmp_path / "b")
    none = {"inconclusive": 0, "unknown": 0, "not_comparable": 0}
    assert said == {
        "matched": 3,
        "rows": 3,
        "ties": 1,
        "better": 1,
        "worse": 1,
        **none,
        "only_a": 1,
        "only_b": 1,
    }
    with pytest.raises(SystemExit, match="no records there"):
        compared(capsys, monkeypatch, tmp_path / "a", tmp_path / "c")


def test_compare_takes_two_settings_of_one_model(tmp_path, monkeypatch, capsys):
    """Guidance 1 against 4 at each step count: what is named need not be equal, everything else
    must.
    """
    for steps in (2, 8):
        for guidance, fd in ((1.0, 9.0), (2.0, 8.0), (4.0, 6.0 if steps == 8 else 12.0)):
            _record(tmp_path, fd, steps=steps, guidance=guidance, run_id=f"{steps}-{guidance}")
    lines, said = compared(
        capsys, monkeypatch, tmp_path, "--where-a", "guidance=1", "--where-b", "guidance=4"
    )
    assert (said["matched"], said["better"], said["worse"], said["only_a"], said["only_b"]) == (
        2,
        1,
        1,
        0,
        0,
    )
    assert "2 steps, guidance 1, euler; B: 2 steps, guidance 4, euler" in lines[2]
    assert not any("trained apart" in line for line in lines), "both are of one network"


def test_compare_takes_two_models_whose_samplers_have_other_names(tmp_path, monkeypatch, capsys):
    _record(tmp_path, 9.0, run_id="a", model="ar", sampler="raster", objective="next-token")
    _record(
        tmp_path, 5.0, run_id="b", model="ar_any", sampler="random-order", objective="any-order"
    )
    lines, said = compared(
        capsys, monkeypatch, tmp_path, "--where-a", "model=ar", "--where-b", "model=ar_any"
    )
    assert (said["matched"], said["better"]) == (1, 1) and "trained apart" in lines[-1]


@pytest.mark.parametrize(
    "given, said",
    [
        (("--where-a", "guidance=1", "--where-b", "steps=8"), 'say which, as in WHERE_A="steps='),
        (("--where-a", "guidnace=1"), "no column or setting guidnace"),
        (("--where-a", "guidance"), "give column=value"),
        (("--where-a", "euler guidance=1"), "give column=value"),
        (("--where-a", "guidance="), "give column=value"),
        (("--where-a", "guidance=1 guidance=4"), "gives guidance twice"),
        (("--where-b", "guidance=7"), "no records there with guidance=7"),
    ],
)
def test_compare_says_what_a_filter_lacks(given, said, tmp_path, monkeypatch, capsys):
    for steps in (2, 8):
        for guidance in (1.0, 4.0):
            _record(tmp_path, 9.0, steps=steps, guidance=guidance, run_id=f"{steps}-{guidance}")
    with pytest.raises(SystemExit, match=said):
        compared(capsys, monkeypatch, tmp_path, *given)


def test_compare_pools_the_seeds_both_sides_have(tmp_path, monkeypatch, capsys):
    """0.5 apart in every seed, though the seeds differ by more: worse. Learning rates are not
    pooled with each other.
    """
    for seed, base in enumerate((5.0, 6.0, 7.0)):
        for drawing in (0, 1):
            for side, fd in (("a", base), ("b", base + 0.5)):
                _record(
                    tmp_path / side,
                    fd + 0.01 * drawing * seed,
                    seed=seed,
                    draw=drawing,
                    run_id=f"{side}{seed}{drawing}",
                )
    lines, said = compared(capsys, monkeypatch, tmp_path / "a", tmp_path / "b")
    assert (said["matched"], said["rows"], said["worse"]) == (6, 1, 1)
    assert "dit xs, 3 seeds" in lines[2] and "SE over 3 training seeds" in lines[2]
    for side in ("c", "d"):
        for rate in (1e-3, 2e-3):
            for seed in (0, 1):
                _record(
                    tmp_path / side,
                    5.0 + seed,
                    seed=seed,
                    train={"lr": rate},
                    run_id=f"{side}{seed}{rate}",
                )
    assert compared(capsys, monkeypatch, tmp_path / "c", tmp_path / "d")[1]["rows"] == 2


def test_compare_takes_settings_that_are_no_columns(tmp_path, monkeypatch, capsys):
    """Two learning rates of one model, from the records' configuration; each row says what tells it
    apart.
    """
    for rate, fd in ((1e-3, 9.0), (2e-3, 5.0)):
        for share in (0.5, 1.0):
            _record(tmp_path, fd, train={"lr": rate}, run_id=f"{rate}{share}", train_fraction=share)
    lines, said = compared(
        capsys, monkeypatch, tmp_path, "--where-a", "train.lr=1e-3", "--where-b", "train.lr=2e-3"
    )
    assert (said["matched"], said["rows"], said["better"]) == (2, 2, 2)
    assert sum("at 0.5 of the training" in line for line in lines) == 1
    for side in ("c", "d"):
        for rate in (1e-3, 2e-3):
            _record(tmp_path / side, 5.0, train={"lr": rate}, run_id=f"{rate}")
    lines, said = compared(capsys, monkeypatch, tmp_path / "c", tmp_path / "d")
    assert said["rows"] == 2 and "lr 0.001" in lines[2] and "lr 0.002" in lines[3]


def test_what_both_filters_say_alike_is_no_choice(tmp_path, monkeypatch, capsys):
    """model=dit on both sides: samplers are matched with their own, not called ambiguous."""
    for sampler in ("euler", "heun"):
        for guidance in (1.0, 4.0):
            _record(
                tmp_path,
                9.0 - guidance,
                guidance=guidance,
                sampler=sampler,
                run_id=f"{sampler}{guidance}",
            )
    given = ("--where-a", "model=dit guidance=1", "--where-b", "model=dit guidance=4")
    assert compared(capsys, monkeypatch, tmp_path, *given)[1]["better"] == 2


def test_pooled_seeds_that_scatter_are_inconclusive_and_unmeasured_accuracies_empty(
    tmp_path, monkeypatch, capsys
):
    """Differences -2, 0.1, 2.2 about 5: a mean of 0.1, but errors that would hide a tenth of the
    distance.
    """
    for seed, apart in enumerate((-2.0, 0.1, 2.2)):
        accuracies = {} if seed == 1 else {"label_accuracy": 0.5}
        _record(
            tmp_path / "a", 5.0, seed=seed, run_id=f"a{seed}", **accuracies | {"num_samples": 100}
        )
        _record(
            tmp_path / "b",
            5.0 + apart,
            seed=seed,
            run_id=f"b{seed}",
            **accuracies | {"num_samples": 100},
        )
    lines, said = compared(capsys, monkeypatch, tmp_path / "a", tmp_path / "b")
    assert (said["rows"], said["inconclusive"]) == (1, 1)
    assert lines[2].split("|")[9].strip() == "", "one seed's accuracy is not the three's"


def test_a_value_may_hold_spaces():
    assert compare._wanted(" guidance=1  sampler=random-order, schedule cosine steps=8 ") == {
        "guidance": "1",
        "sampler": "random-order, schedule cosine",
        "steps": "8",
    }


@pytest.mark.parametrize("samples, warned", [(100, True), (300, False)])
def test_compare_warns_of_too_few_pictures(samples, warned, tmp_path, monkeypatch, capsys):
    for side in ("a", "b"):
        _record(tmp_path / side, 5.0, dim=128, num_samples=samples, reference_images=400)
    lines, _ = compared(capsys, monkeypatch, tmp_path / "a", tmp_path / "b")
    assert any("N or M < 2d" in line for line in lines) == warned


def test_a_folder_kept_without_its_records_is_read_from_results_json(tmp_path):
    _record(tmp_path / "a", 9.0)
    _record(tmp_path / "a", 8.0, steps=4)
    found = records.read(tmp_path / "a")
    archive.write(tmp_path / "kept" / "results.json", found)
    assert (
        records.read(tmp_path / "kept") == found
        and len(found) == 2
        and records.read(tmp_path / "nothing") == []
    )


def test_budgets_are_matched_with_their_own(tmp_path):
    """Twice the budget beside the once: neither is dropped; where each side has one, another budget
    is what is compared.
    """
    for folder in ("a", "b"):
        for budget in (3e13, 6e13):
            _record(tmp_path / folder, 9.0, budget=budget, run_id=f"r{budget}")
    both = compare.matched(*(records.read(tmp_path / folder) for folder in ("a", "b")))
    assert (
        len(both[0]) == 2
        and both[1:] == (0, 0)
        and all(records.budget(x) == records.budget(y) for x, y in both[0])
    )
    _record(tmp_path / "c", 9.0, budget=1e13)
    _record(tmp_path / "d", 9.0, budget=2e13)
    assert len(compare.matched(*(records.read(tmp_path / folder) for folder in ("c", "d")))[0]) == 1


def test_only_sets_of_equal_shares_of_every_class_count_as_balanced():
    even, other, skew = (
        torch.arange(52) % 5,
        torch.arange(100) % 5,
        torch.zeros(52, dtype=torch.long),
    )
    assert balanced_alike(even, other) and not balanced_alike(skew, other)
    assert not balanced_alike(None, other) and not balanced_alike(even, None)
