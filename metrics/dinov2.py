"""DINOv2 features for FD[dinov2] (arXiv 2306.04675): the class token of a vision transformer at 224
px.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # DINOv2's own normalisation


class Dinov2Features(nn.Module):
    """uint8 (B, 3, H, W) of any size -> float32 (B, d), d the transformer's width.

    Resized bicubic and antialiased.
    """

    resize = f"bicubic-antialias-{SIDE}"

    def __init__(self, folder: str | Path):
        """From a folder with config.json and model.safetensors.

        Raises ValueError where they are not a whole Dinov2.
        """
        super().__init__()
        # Here, because importing transformers' models takes seconds.
        from transformers import Dinov2Model
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.net, info = Dinov2Model.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:  # transformers raises many kinds for a damaged folder
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{folder} is not a whole Dinov2 ({reason})") from None
        absent = [*info["missing_keys"], *info["mismatched_keys"]]
        if absent:  # transformers would go on with random weights
            raise ValueError(
                f"{folder} holds another network's weights "
                f"({len(absent)} are missing, e.g. {absent[0]})"
            )
        self.net.eval().requires_grad_(False)
        self.dim = self.net.config.hidden_size
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(
            images.float() / 255,
            size=(SIDE, SIDE),
            mode="bicubic",
            antialias=True,
            align_corners=False,
        )
        x = (x.clamp(0, 1) - self.mean) / self.std  # bicubic filters overshoot
        return self.net(x).last_hidden_state[:, 0].float()  # the class token is first
