"""Counting multiply-accumulates, by running the real code on the meta device.

`torch.utils.flop_counter` counts 2 FLOPs per multiply-accumulate (MAC) of every matrix product,
convolution and attention; norms, activations and embeddings are not counted, as in the papers,
whose "Gflops" are MACs. On the CPU it would count scaled_dot_product_attention as zero, hence meta.
Causal attention is counted in full.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(call: Callable[[], Any]) -> int:
    """MACs of one call. All its tensors must be on the meta device, where nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2  # a multiply-accumulate is two FLOPs to the counter


def params(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
