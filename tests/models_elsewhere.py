"""Small models as others bring them: a pipeline of diffusers, and a class of one's own."""

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from torch import nn

from benchmarks.images.procedural import generate
from models.image_model import ImageModel


class Greys(ImageModel):
    """A model of one's own: every class is one grey."""

    def __init__(self, image_size, classes, imagenet_labels, *, brightest):
        super().__init__(image_size, len(classes))
        self.levels = nn.Parameter(torch.linspace(0, brightest, len(classes)))

    def fingerprint(self):
        return f"greys {self.levels[-1].item()}"

    def supported_steps(self, requested):
        return [steps for steps in requested if steps == 1]

    def nfe(self, steps, guidance):
        if steps != 1 or guidance != 1:
            raise ValueError("this model takes one step, without guidance")
        return 1

    def evaluation(self, labels):
        return self.levels[labels]

    def sample(self, labels, *, steps, guidance, rng):
        greys = self.levels[labels].to(torch.uint8)[:, None, None, None]
        return greys.expand(-1, 3, self.image_size, self.image_size)


class Shapes(Greys):
    """It knows what procedural classes look like, and counts them from `first` on."""

    def __init__(self, image_size, classes, imagenet_labels, *, first):
        super().__init__(image_size, classes, imagenet_labels, brightest=first + 1)
        self.first = first

    def sample(self, labels, *, steps, guidance, rng):
        images, _ = generate(400, self.image_size, seed=9)
        places = torch.arange(len(labels)) % 40 * 10 + (labels.cpu() + self.first) % 10
        return torch.from_numpy(images)[places]


def dit_pipeline(scheduler) -> DiTPipeline:
    """Random weights, images of 16 px, a thousand classes: the pipeline's null label is 1000."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    )
    for weight in network.parameters():  # zero-initialised layers would ignore the label
        if weight.abs().max() == 0:
            nn.init.normal_(weight, std=0.3)
    levels = dict(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2
    )
    decoder = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **levels)
    return DiTPipeline(network, decoder, scheduler)
