"""What a training may spend, made concrete for one model."""

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.core.errors import BadInput
from benchmarks.stages.checkpoint import Progress

UNITS = ("flops", "images", "steps", "minutes")


@dataclass(frozen=True)
class Budget:
    """A budget for one model. `steps` is None for a budget in minutes, `seconds` for any other."""

    batch: int
    steps: int | None
    seconds: float | None
    forward_flops: float  # of one image
    # the passes without gradient of an objective that needs them, and after which fraction
    extra_passes: float
    extra_after: float

    @property
    def flops_per_image(self) -> float:
        """The mean over the training: 3 x forward, the usual account of forward + backward (Kaplan
        et al. 2020, arXiv 2001.08361), and the further passes.
        """
        return (3 + self.extra_passes) * self.forward_flops

    def done(self, progress: Progress) -> float:
        """The fraction that is spent, 0 to 1."""
        if self.steps is not None:
            return progress.step / self.steps
        return progress.seconds / self.seconds

    def spent(self, progress: Progress) -> dict[str, float]:
        """Images trained with, FLOPs and seconds so far."""
        images, done = progress.step * self.batch, self.done(progress)
        passes = 3.0
        if self.extra_passes and done > self.extra_after:
            passes += self.extra_passes * (1 - self.extra_after / done) / (1 - self.extra_after)
        flops = images * passes * self.forward_flops
        return {"images": images, "flops": flops, "seconds": progress.seconds}


def make_budget(
    cfg: Any, forward_macs: int, extra_passes: float = 0.0, extra_after: float = 0.0
) -> Budget:
    """`train.budget` in `train.unit` as steps of `train.batch` images.

    `forward_macs` are of the loss of one image, without the `extra_passes` that have no gradient.
    Raises BadInput for what makes no step.
    """
    budget, batch = float(cfg.budget), int(cfg.batch)
    if cfg.unit not in UNITS:
        raise BadInput(f"train.unit={cfg.unit}: one of {', '.join(UNITS)}")
    if batch < 1 or not 0 < budget < math.inf:
        raise BadInput(f"train.budget={cfg.budget}, train.batch={cfg.batch}: both must be positive")
    if cfg.compile not in (True, False, "auto"):
        raise BadInput(f"train.compile={cfg.compile}: one of true, false, auto")
    costs = (2 * forward_macs, extra_passes, extra_after)
    if cfg.unit == "minutes":
        if cfg.compile is True:
            raise BadInput(
                "train.compile=true with a budget in minutes: compiling would eat of it; "
                "give train.unit=flops, images or steps"
            )
        return Budget(batch, None, 60 * budget, *costs)
    images = {
        "flops": budget / Budget(batch, None, None, *costs).flops_per_image,
        "images": budget,
        "steps": budget * batch,
    }[cfg.unit]
    return Budget(batch, max(1, round(images / batch)), None, *costs)
