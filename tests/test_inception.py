"""FID's Inception-v3: its features are the published ones, only it is called FID, and the others
are measured where it is not to be had.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import composed

from benchmarks.analysis.curves import distance_name
from benchmarks.core.errors import BadInput
from benchmarks.core.session import session
from benchmarks.frozen.extractors import FeatureExtractor, load_extractors
from metrics import inception

# `make setup` puts torch-fidelity there, out of torchmetrics' sight
TEST_ONLY = Path(sys.prefix) / "test-only"


def load(*overrides: str) -> list[FeatureExtractor]:
    return load_extractors(composed(*overrides).features)


@pytest.mark.skipif(
    not (TEST_ONLY / "torch_fidelity").is_dir(),
    reason="`make setup` puts torch-fidelity into .venv/test-only",
)
def test_inception_features_are_torch_fidelity_s(tmp_path):
    """Of random weights in the exact state-dict layout, which must not be called FID."""
    here = Path(__file__).parent
    program = [sys.executable, here / "inception_wiring.py", here.parent, TEST_ONLY, tmp_path]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "same features" in done.stdout, done.stderr


def test_only_the_published_inception_is_called_fid():
    assert distance_name("inception") == "FID"
    others = ("local", "dinov2", "inception-12345678")
    assert [distance_name(name) for name in others] == [f"FD[{name}]" for name in others]
    assert inception.PUBLISHED in inception.URL


def test_without_inception_the_others_are_still_measured(monkeypatch, capsys):
    def missing():
        raise ImportError("no torch-fidelity")

    monkeypatch.setattr(inception, "extractor_class", missing)
    for _ in range(2):
        assert [extractor.name for extractor in load("features=[local,inception]")] == ["local"]
    assert capsys.readouterr().out.count("no torch-fidelity") == 1, "one line, once"
    with pytest.raises(BadInput, match="no torch-fidelity"):
        load("features=inception")


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("invalid hash value")])
def test_weights_that_cannot_be_fetched_say_what_to_download(monkeypatch, tmp_path, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(inception, "extractor_class", lambda: None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    what = r"download https://.*6726825d\.pth .*features\.inception\.weights"
    with pytest.raises(BadInput, match=what):
        load("features=inception")
    assert "inception" in session.unreachable, "other cells of a sweep do not try again"
