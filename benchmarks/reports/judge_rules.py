"""What the studies of judges showed: whether missing content costs more than a slight blur.

A judge that fails this sees texture before content, so that a verdict by it needs saying so.
"""

from typing import NamedTuple

from benchmarks.analysis.panel import Panel
from benchmarks.results.tables import show

PROCEDURAL, PHOTOGRAPHS = "procedural images", "photographs"


class Study(NamedTuple):
    """The distances of generator-only FD and KID: half of the classes missing, and a blur of 0.75
    pixels of a 64 px image, half as many of 32 px. The rule is that the former costs more.
    """

    judge: str
    images: str
    size: int  # px
    fd: tuple[float, float]
    kid: tuple[float, float]

    @property
    def broken_by(self) -> list[str]:
        """The distances by which the rule is broken."""
        named = {"FD": self.fd, "KID": self.kid}
        return [name for name, (missing, blur) in named.items() if missing <= blur]


# of results/reference/judge/*/study.md, which tests/test_judge_rules.py holds them to
STUDIES = [
    Study("local", PROCEDURAL, 32, (8.86, 0.118), (0.0704, -0.000466)),
    Study("local", PHOTOGRAPHS, 32, (1, 0.531), (0.00913, 0.00199)),
    Study("local", PHOTOGRAPHS, 64, (2.05, 5.69), (0.0133, 0.0835)),
    Study("efficientnet_lite0", PROCEDURAL, 32, (20.7, 1.96), (0.0346, 1.39e-05)),
    Study("efficientnet_lite0", PHOTOGRAPHS, 32, (12.5, 7.69), (0.00509, 7.89e-05)),
    Study("efficientnet_lite0", PHOTOGRAPHS, 64, (23.6, 20.3), (0.0101, 0.0235)),
]


def study_of(judge: str, data: str, size: float) -> Study | None:
    """The study of a judge on such images, or one at fewer pixels in which it failed: larger images
    have more texture. None where there is none, as of images that are not ImageNet's.
    """
    images = PHOTOGRAPHS if "imagenet" in data else None
    if data == "procedural":
        images = PROCEDURAL
    of_judge = [one for one in STUDIES if (one.judge, one.images) == (judge, images)]
    fitting = [one for one in of_judge if one.size == size or (one.broken_by and one.size < size)]
    return max(fitting, key=lambda one: one.size, default=None)


def _study(panel: Panel) -> Study | None:
    row = panel.first
    return study_of(panel.features, str(row["data"]), row["image_size"])


def qualified(panel: Panel) -> str:
    """What a heading over verdicts on a panel adds; empty where its judge keeps the rule."""
    study = _study(panel)
    if study is None:
        return " (no study of this judge on such images)"
    if not study.broken_by:
        return ""
    only = "" if "FD" in study.broken_by else " by KID"
    return f" (by a judge that fails the content rule{only})"


def rule_notes(panel: Panel) -> list[str]:
    """What the study of judges found out about this one, where it breaks the rule; or that there
    is none.
    """
    study = _study(panel)
    if study is None:
        return [
            "No study of this judge on such images: whether it weighs content above a slight blur "
            "is not known."
        ]
    if not study.broken_by:
        return []
    values = {"FD": study.fd, "KID": study.kid}
    outcomes = "; ".join(
        f"{name} {show(missing)} against {show(blur)}, {'fails' if missing <= blur else 'holds'}"
        for name, (missing, blur) in values.items()
    )
    return [
        f"This judge fails the content rule by {' and '.join(study.broken_by)}: half of the "
        "classes missing must cost more than a blur of 0.75 pixels. In its study, of "
        f"{study.images} at {study.size} px: {outcomes}. Where it fails it does not see well "
        "whether a model leaves classes out; label accuracy does."
    ]
