"""The contract of a model that was trained elsewhere: it gives images of labels, in a chosen number
of steps, and is neither trained nor given our latents.

What a class of your own writes, for `model=pretrained model._target_=mymodule.MyModel`:

1. `__init__(self, image_size, classes, imagenet_labels, **settings)`: `classes` are the names of
   the data's classes in the order of its labels, `imagenet_labels` their numbers among ImageNet's
   1,000 where all are known, else None. `settings` is what else stands under `model`. A ValueError
   is shown to the user as one line.
2. `supported_steps(requested)`, `nfe(steps, guidance)`, `sample(labels, ...)`: as in
   `models.generator.GenerativeModel`, but that `sample` gives uint8 images.
3. `evaluation(labels)` and `decoding()`: one network evaluation, and the making of one image from
   what was sampled. They are run on the meta device to be counted.
4. `fingerprint()`: names the weights. Results are kept under it.

The smallest there is, which gives every class one grey:

>>> class Greys(ImageModel):
...     def __init__(self, image_size, classes, imagenet_labels=None):
...         super().__init__(image_size, len(classes))
...         self.levels = nn.Parameter(torch.linspace(0, 255, len(classes)))
...
...     def fingerprint(self):
...         return "greys"
...
...     def supported_steps(self, requested):
...         return [steps for steps in requested if steps == 1]
...
...     def nfe(self, steps, guidance):
...         if steps != 1 or guidance != 1:
...             raise ValueError("this model takes one step, without guidance")
...         return 1
...
...     def evaluation(self, labels):
...         return self.levels[labels]
...
...     def sample(self, labels, *, steps, guidance, rng):
...         greys = self.levels[labels].to(torch.uint8)[:, None, None, None]
...         return greys.expand(-1, 3, self.image_size, self.image_size)
>>> Greys(8, ["a", "b"]).sample(torch.tensor([1]), steps=1, guidance=1, rng=None).shape
torch.Size([1, 3, 8, 8])
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import LongTensor, Tensor, nn


class ImageModel(nn.Module):
    """A class-conditional model that was trained elsewhere; see the head of this file.

    `image_size` is the side of its images in pixels, `num_classes` counts the data's classes.
    """

    uses_tokens = False
    objective: str | None = None
    samplers: tuple[str, ...] = ("its own",)
    sampler_defaults: dict[str, Any] = {}

    def __init__(self, image_size: int, num_classes: int):
        super().__init__()
        self.image_size, self.num_classes = image_size, num_classes
        self.sampler, self.sampler_options = self.samplers[0], {}

    def fingerprint(self) -> str:
        """Names the weights and everything else that the images depend on."""
        raise NotImplementedError

    def set_sampler(self, sampler: str | None = None, **options: Any) -> None:
        """There is its own sampler, without options. Raises ValueError for another."""
        if sampler not in (None, *self.samplers) or options:
            raise ValueError("a model trained elsewhere is sampled as it says itself")

    def sampler_label(self) -> str:
        """For people: what it is sampled by."""
        return self.sampler

    def supported_steps(self, requested: Iterable[int]) -> list[int]:
        """Those of the requested step counts that `sample` can honour, in the order given."""
        raise NotImplementedError

    def supports_guidance(self, guidance: float) -> bool:
        """As of `GenerativeModel`."""
        return True

    def nfe(self, steps: int, guidance: float) -> int:
        """Network evaluations per image of `sample`. Raises ValueError for what it cannot do."""
        raise NotImplementedError

    def evaluation(self, labels: LongTensor) -> Tensor:
        """One network evaluation for labels (B,), of any input; it is run to be counted."""
        raise NotImplementedError

    def decoding(self) -> Tensor | None:
        """The decoding of one image, run to be counted; None where nothing is decoded."""
        return None

    def sample(
        self, labels: LongTensor, *, steps: int, guidance: float, rng: torch.Generator
    ) -> Tensor:
        """uint8 images (B, 3, H, W) of labels (B,) in 0..num_classes-1, on the labels' device.

        `guidance` and `rng` are as in `GenerativeModel.sample`.
        """
        raise NotImplementedError
