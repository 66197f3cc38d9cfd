"""`make weights` on a handful of images: every file with its card, its scores, and a hash that is
checked.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.commands import train_frozen
from benchmarks.core.store import ROOT, load_weights
from benchmarks.frozen.autoencoder import load_codebook
from benchmarks.images import procedural
from metrics.features import LocalFeatures
from models.autoencoder import Autoencoder

SHIPPED = ROOT / "models" / "weights"
LATENTS = ("autoencoder", "codebook")


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


def test_the_shipped_latents_keep_what_was_asked_of_them():
    """On unseen classes at 64 px. The weights before a perceptual loss (ab1a18f^), measured by the
    same function on the same 1,000 images, had a KID of 0.0521; at most half of that was asked for.
    """
    cards = {name: json.loads((SHIPPED / f"{name}.json").read_text()) for name in LATENTS}
    unseen = {
        name: card["scores"]["validation images of unseen classes, 64 px"]
        for name, card in cards.items()
    }
    assert unseen["autoencoder"]["psnr"] >= 24.0
    assert unseen["autoencoder"]["kid_efficientnet_lite0"] <= 0.0521 / 2
    assert unseen["codebook"]["psnr_codebook"] >= 23.0


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
