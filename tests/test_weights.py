"""`make weights` on a handful of pictures: every file with its card, its scores, and a hash that is
checked.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.commands import train_frozen
from benchmarks.images import procedural


def folder(path: Path, classes: list[str], seed: int) -> Path:
    """An image folder of 64 px drawings under made-up class names."""
    for split, stream, count in (("train", "train", 60), ("val", "reference", 20)):
        pictures, _ = procedural.generate(count, 64, seed=seed, stream=stream)
        for i, picture in enumerate(pictures):
            place = path / split / classes[i % len(classes)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.transpose(1, 2, 0)).save(place / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    seen, unseen = (
        folder(root / "seen", ["n01", "n02"], 1),
        folder(root / "unseen", ["n03", "n04"], 2),
    )
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "train-frozen",
        seen,
        "--unseen",
        unseen,
        "--scale",
        "0.001",
        "--held-out",
        "20",
    ]
    done = subprocess.run(
        [*command, "--out", root / "out", "--cache", root / "cache"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return root


def test_every_stage_writes_a_file_and_a_card_that_fit(made):
    from benchmarks.core.store import load_weights
    from benchmarks.frozen.autoencoder import load_codebook
    from metrics.features import LocalFeatures
    from models.autoencoder import Autoencoder

    out = made / "out"
    load_weights(Autoencoder(), out / "autoencoder.safetensors", "autoencoder")
    load_weights(LocalFeatures(12), out / "judge.safetensors", "judge")
    assert load_codebook(out / "codebook.safetensors").size == train_frozen.CODEBOOK_SIZE
    for stage in train_frozen.STAGES:
        card = json.loads((out / f"{stage}.json").read_text())
        assert (
            card["seconds"] >= 0
            and "63 training pictures" in card["data"]
            and "2 classes (listed" in card["data"]
        )
        assert str(made) not in json.dumps(card), (
            "a card does not tell where a machine keeps its files"
        )
    assert json.loads((out / "data.json").read_text())["classes"] == [
        "n01",
        "n02",
        *procedural.CLASS_NAMES,
    ]


def test_scores_are_of_seen_unseen_and_procedural_pictures(made):
    scores = {
        stage: json.loads((made / "out" / f"{stage}.json").read_text())["scores"]
        for stage in train_frozen.STAGES
    }
    for kind in (
        "held-out pictures of the training classes",
        "validation pictures of unseen classes",
        "procedural pictures",
    ):
        for size in (64, 32):
            assert set(scores["autoencoder"][f"{kind}, {size} px"]) == {"psnr"}
            assert {"psnr", "psnr_codebook", "usage", "perplexity"} < set(
                scores["codebook"][f"{kind}, {size} px"]
            )
    probe = [value for name, value in scores["judge"].items() if "linear probe of 2" in name]
    assert len(probe) == 1 and 0 <= probe[0] <= 1 and scores["judge"]["images_per_second"] > 0


def test_classes_that_are_trained_on_are_not_unseen(made):
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "train-frozen",
        made / "seen",
        "--unseen",
        made / "seen",
        "--held-out",
        "20",
    ]
    done = subprocess.run(
        [*command, "--cache", made / "cache"], capture_output=True, text=True, timeout=300
    )
    assert (
        done.returncode == 1
        and "are trained on, e.g. n01" in done.stderr
        and "Traceback" not in done.stderr
    )
