"""`make weights` on a handful of images: every file with its card, its scores, and a hash that is
checked.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.commands import train_frozen
from benchmarks.core.store import load_weights
from benchmarks.frozen.autoencoder import load_codebook
from benchmarks.images import procedural
from metrics.features import LocalFeatures
from models.autoencoder import Autoencoder


def image_folder(path: Path, classes: list[str], seed: int) -> Path:
    """An image folder of 64 px procedural images under made-up class names."""
    for split, stream, count in (("train", "train", 60), ("val", "reference", 20)):
        images, _ = procedural.generate(count, 64, seed=seed, stream=stream)
        for i, image in enumerate(images):
            folder = path / split / classes[i % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images of two seen and two unseen classes, and in `out` what was trained."""
    root = tmp_path_factory.mktemp("weights")
    seen = image_folder(root / "seen", ["n01", "n02"], 1)
    unseen = image_folder(root / "unseen", ["n03", "n04"], 2)
    arguments = [seen, "--unseen", unseen, "--scale", 0.001, "--held-out", 20]
    arguments += ["--out", root / "out", "--cache", root / "cache"]
    train_frozen.main([str(argument) for argument in arguments])
    return root


def card_of(made: Path, stage: str) -> dict:
    return json.loads((made / "out" / f"{stage}.json").read_text())


def test_every_stage_writes_a_file_and_a_card_that_fit(made):
    out = made / "out"
    # refuses a file whose sha256 is not its card's
    load_weights(Autoencoder(), out / "autoencoder.safetensors", "autoencoder")
    load_weights(LocalFeatures(12), out / "judge.safetensors", "judge")
    assert load_codebook(out / "codebook.safetensors").size == train_frozen.CODEBOOK_SIZE
    for stage in train_frozen.STAGES:
        card = card_of(made, stage)
        assert card["seconds"] >= 0
        assert card["data"].startswith("63 training") and "2 classes (listed" in card["data"]
        assert str(made) not in json.dumps(card), "a machine's folders stay its own"
    classes = json.loads((out / "data.json").read_text())["classes"]
    assert classes == ["n01", "n02", *procedural.CLASS_NAMES]


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("kind", ["training classes", "unseen classes", "procedural"])
def test_latents_are_scored_on_seen_unseen_and_procedural_images(made, kind, size):
    def score(stage: str) -> dict:
        scores = card_of(made, stage)["scores"]
        (name,) = (name for name in scores if kind in name and f"{size} px" in name)
        return scores[name]

    kernel = {"kid_efficientnet_lite0"} if kind == "unseen classes" else set()
    assert set(score("autoencoder")) == {"psnr"} | kernel
    assert {"psnr", "psnr_codebook", "usage", "perplexity"} < set(score("codebook"))


def test_the_classifier_is_scored_by_a_probe_on_unseen_classes(made):
    scores = card_of(made, "judge")["scores"]
    (accuracy,) = (value for name, value in scores.items() if "linear probe of 2" in name)
    assert 0 <= accuracy <= 1 and scores["images_per_second"] > 0


def test_classes_that_are_trained_on_are_not_unseen(made):
    arguments = [made / "seen", "--unseen", made / "seen", "--held-out", 20]
    arguments += ["--cache", made / "cache"]
    with pytest.raises(SystemExit, match=r"^latentbench: .*are trained on, e.g. n01"):
        train_frozen.main([str(argument) for argument in arguments])
