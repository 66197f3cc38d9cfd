"""Image folders as people have them: what is listed is what a person would list, and what was left
out is said.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from benchmarks.core.errors import BadInput
from benchmarks.images import import_export
from benchmarks.images.decode import Unreadable, decode
from benchmarks.images.folder import list_folder, split_of


def write_image(path: Path, seed: int = 0, **options) -> Path:
    """A random image of 16 px; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=options.pop("format", None), **options)
    return path


def make(root: Path, *names: str) -> Path:
    """A folder with an image of each name."""
    for seed, name in enumerate(names):
        write_image(root / name, seed)
    return root


def listed(root: Path) -> dict[str, list[str]]:
    """The names of the images by split."""
    _, entries, _ = list_folder(root)
    splits: dict[str, list[str]] = {"train": [], "held out": []}
    for entry in entries:
        splits["held out" if entry.held_out else "train"].append(entry.name)
    return splits


# --- splits


@pytest.mark.parametrize(
    "train, val",
    [
        ("train", "val"),
        ("Train", "Val"),
        ("TRAINING", "valid"),
        ("training_set", "Validation"),
        ("training", "testing"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
    ],
)
def test_splits_in_any_spelling_are_splits(tmp_path, train, val):
    root = make(tmp_path, f"{train}/ant/a.png", f"{train}/bee/b.png", f"{val}/ant/c.png")
    classes, _, _ = list_folder(root)
    assert classes == ["ant", "bee"]
    assert listed(root) == {
        "train": [f"{train}/ant/a.png", f"{train}/bee/b.png"],
        "held out": [f"{val}/ant/c.png"],
    }


def test_names_of_classes_are_no_splits():
    assert [split_of(name) for name in ("bullet_train", "test tube", "n01443537", "images")] == [
        None
    ] * 4


REFUSED = {
    "no train": (["val/ant/a.png", "test/ant/b.png"], "has test, val, but no train"),
    "two of one": (["train/ant/a.png", "Training/ant/b.png"], "both stand for train"),
    "one level up": (["set/train/ant/a.png", "set/val/ant/b.png"], "set holds train"),
    "splits in classes": (["ant/train/a.png", "ant/test/b.png"], "ant holds test"),
    "splits in train": (["train/train/ant/a.png", "train/val/ant/b.png"], "train holds train"),
    "flat held-out": (["train/ant/a.png", "val/b.png", "val/c.png"], "the 2 images in val lie in"),
    "flat train": (["train/a.png", "val/b.png"], "train has no class folders"),
}


@pytest.mark.parametrize("names, message", REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, names, message):
    with pytest.raises(BadInput) as error:
        list_folder(make(tmp_path, *names))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_lies_beside_the_splits_is_said(tmp_path):
    root = make(tmp_path, "train/ant/a.png", "val/ant/b.png", "test/c.png", "more/d.png")
    write_image(root / "train" / "loose.png")
    write_image(root / "val" / "cow" / "e.png")
    left_out = list_folder(root)[2]
    assert "2 folder beside train (more)" in left_out
    assert "1 image outside class folders (loose.png)" in left_out
    assert "1 held-out folder of no training class (cow)" in left_out


# --- held-out images with annotations


@pytest.mark.parametrize(
    "file, line",
    [
        ("val_annotations.txt", "{name}.JPEG\t{label}\t0\t32\t44\t62\n"),
        ("LOC_val_solution.csv", "{name},{label} 85 1 499 272\n"),
        ("labels.txt", "{name}.JPEG {label}\n"),
    ],
)
def test_tiny_imagenet_as_published_has_its_held_out_images(tmp_path, file, line):
    root = make(tmp_path, "train/n01/images/a.JPEG", "train/n02/images/b.JPEG")
    make(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "val/images/val_2.JPEG")
    labels = {"val_0": "n02", "val_1": "n01", "val_2": "n09"}
    text = "".join(line.format(name=name, label=label) for name, label in labels.items())
    (root / "val" / file).write_text("ImageId,PredictionString\n" + text)
    (root / "val" / ".old.txt").write_text("val_0 n01\nval_1 n02\n")
    classes, entries, left_out = list_folder(root)
    held_out = {entry.name: classes[entry.label] for entry in entries if entry.held_out}
    assert held_out == {"val/images/val_0.JPEG": "n02", "val/images/val_1.JPEG": "n01"}
    assert "1 held-out image of no training class (val_2.JPEG)" in left_out
    assert file not in left_out, "it was used"


# --- files


def test_hidden_files_and_other_files_are_counted_by_both_listers(tmp_path, capsys):
    root = make(tmp_path, "ant/a.png", "ant/b.JPEG", "ant/.ipynb_checkpoints/a.png", "ant/._a.png")
    (root / "ant" / "boxes.txt").write_text("none")
    (root / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "ant" / "itself").symlink_to(root / "ant" / "itself")
    os.mkfifo(root / "ant" / "pipe.png")
    _, entries, left_out = list_folder(root)
    assert [entry.name for entry in entries] == ["ant/a.png", "ant/b.JPEG"]
    for words in ("2 hidden", "1 .txt (boxes.txt)", "2 broken link (gone.png)", "1 no regular"):
        assert words in left_out
    images, _ = import_export.read(root, "IMAGES")
    assert len(images) == 2 and f"IMAGES={root}: left out 2 hidden" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "tga", "tiff", "webp", ""])
def test_every_suffix_that_can_be_decoded_is_an_image(tmp_path, suffix):
    formats = {"jfif": "JPEG", "jpe": "JPEG", "": "PNG"}
    name = f"ant/a.{suffix}" if suffix else "ant/a"
    try:
        path = write_image(tmp_path / name, format=formats.get(suffix))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {suffix}")
    assert listed(tmp_path)["train"] == [name]
    assert decode(path).shape == (3, 16, 16)


def test_files_without_a_suffix_that_are_no_images_are_counted(tmp_path):
    root = make(tmp_path, "ant/a.png")
    (root / "ant" / "README").write_text("no image")
    assert "1 without suffix and no image (README)" in list_folder(root)[2]


@pytest.mark.parametrize("name", [b"a$b^$c", b"a|b", b"a b", b"<i>", b"a\nb", b"\xff\xfe", b"\xc3"])
def test_any_name_that_a_file_system_allows(tmp_path, name):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_image(folder / os.fsdecode(name + b".png"))
    classes, entries, _ = list_folder(tmp_path)
    assert len(classes) == len(entries) == 1
    for text in (classes[0], entries[0].name, entries[0].stamp):
        assert text.isprintable() and text.encode("utf-8")
    assert decode(entries[0].file()).shape == (3, 16, 16)


# --- links


def test_linked_folders_and_files_are_followed(tmp_path):
    elsewhere = make(tmp_path / "elsewhere", "a.png", "deep/b.png")
    root = make(tmp_path / "pics", "bee/c.png")
    (root / "ant").symlink_to(elsewhere)
    (root / "bee" / "d.png").symlink_to(elsewhere / "a.png")
    assert listed(root)["train"] == ["ant/a.png", "ant/deep/b.png", "bee/c.png", "bee/d.png"]


def test_a_folder_with_two_names_is_listed_once_and_said(tmp_path):
    root = make(tmp_path, "ant/images/a.png")
    (root / "ant" / "latest").symlink_to(root / "ant" / "images")
    assert listed(root)["train"] == ["ant/images/a.png"]
    assert "1 folder that another name leads to (latest)" in list_folder(root)[2]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_loop_of_links_is_refused(tmp_path, target):
    root = make(tmp_path, "train/ant/a.png")
    (root / "train" / "ant" / "loop").symlink_to(target)
    with pytest.raises(BadInput, match="is a link to a folder that it lies in"):
        list_folder(root)


def test_one_folder_as_two_classes_or_splits_is_refused(tmp_path):
    root = make(tmp_path, "train/ant/a.png", "train/bee/b.png")
    (root / "val").symlink_to("train")
    with pytest.raises(BadInput, match="val/ant is the same folder as train/ant"):
        list_folder(root)


# --- pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_shown_upright_whatever_its_exif_says(tmp_path, format, orientation):
    """Red above left, blue below right: where these stand says how it was turned."""
    pixels = np.full((32, 48, 3), 128, np.uint8)
    pixels[:16, :16], pixels[16:, 32:] = (255, 0, 0), (0, 0, 255)
    upright = Image.fromarray(pixels)
    # as a camera stores it: what the orientation undoes
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "turned"
    stored.save(path, format=format, exif=exif)
    shown = decode(path).astype(int)
    assert shown.shape == (3, 32, 48)
    assert np.abs(shown - pixels.transpose(2, 0, 1)).mean() < 12


def test_damaged_exif_is_ignored(tmp_path):
    path = write_image(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(path).shape == (3, 16, 16)


@pytest.mark.parametrize("mode, reason", [("F", "floating-point"), ("I", "32-bit values")])
def test_values_of_an_unknown_range_are_refused_by_name(tmp_path, mode, reason):
    Image.new(mode, (8, 8), 70000).save(tmp_path / "a.tif")
    with pytest.raises(Unreadable, match=reason):
        decode(tmp_path / "a.tif")


def test_postscript_under_another_name_is_not_decoded(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(Unreadable, match="UnidentifiedImageError"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize(
    "train, val",
    [("train_64x64", "valid_64x64"), ("TrainImages", "ValImages"), ("TrainingData", "holdout")],
)
def test_splits_with_words_that_say_nothing_are_splits(tmp_path, train, val):
    root = make(tmp_path, f"{train}/ant/a.png", f"{val}/ant/c.png")
    assert listed(root) == {"train": [f"{train}/ant/a.png"], "held out": [f"{val}/ant/c.png"]}


@pytest.mark.parametrize("name", ["trainval", "tests", "TestSplitB", "train_jpeg_small"])
def test_what_looks_like_a_split_of_a_strange_name_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match=f"{name} looks like a split|has {name}, but no train"):
        list_folder(make(tmp_path, f"{name}/ant/a.png", f"{name}/bee/b.png"))


def test_a_class_may_be_called_as_it_likes(tmp_path):
    root = make(tmp_path, "valley/a.png", "bullet_train/b.png", "test_tube/c.png")
    assert list_folder(root)[0] == ["bullet_train", "test_tube", "valley"]


def test_annotations_know_classes_of_several_words_and_images_by_their_paths(tmp_path):
    root = make(tmp_path, "train/tiger/a.png", "train/tiger cat/b.png")
    make(root, "val/p/0.png", "val/q/0.png", "val/x.png")
    lines = 'p/0.png,tiger\n"q/0.png","tiger cat"\nx.png,tiger cat 3 4 5\n'
    (root / "val" / "labels.csv").write_text(lines)
    classes, entries, _ = list_folder(root)
    held_out = {entry.name: classes[entry.label] for entry in entries if entry.held_out}
    assert held_out == {
        "val/p/0.png": "tiger",
        "val/q/0.png": "tiger cat",
        "val/x.png": "tiger cat",
    }
    (root / "val" / "labels.csv").write_text("0.png tiger\n")
    with pytest.raises(BadInput, match=r"0\.png is the name of 2 images"):
        list_folder(root)


def test_whatever_is_left_out_anywhere_is_said_once(tmp_path):
    root = make(tmp_path, "train/ant/a.png", "train/bee/b.png", "val/ant/c.png")
    (root / "train" / "cow").symlink_to(root / "gone")
    (root / "val" / "cow").symlink_to(root / "gone")
    for name in ("train/n01440764.tar", "val.zip", ".DS_Store", "train/.hidden"):
        (root / name).write_text("x")
    write_image(root / "loose.png")
    left_out = list_folder(root)[2]
    for words in ("2 broken link (cow)", "1 .tar", "1 .zip", "2 hidden", "1 image outside"):
        assert words in left_out
