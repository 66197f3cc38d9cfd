"""Multiply-accumulates of every model by hand, to hold counted ones against."""

from functools import cache

from omegaconf import OmegaConf

from benchmarks.core.settings import CONF, compose

K = 2048  # entries of the codebook, where a size has none of its own


@cache
def _composed_once(*overrides: str):
    return compose(*overrides)


def of_size(size: str, *overrides: str):
    """The configuration of a model in a size. Composed once for all sizes, which takes longer."""
    cfg = _composed_once(*overrides).copy()
    cfg.size = OmegaConf.load(CONF / "size" / f"{size}.yaml")
    return cfg


def dit_macs(width: int, depth: int, tokens: int, patch: int, out_channels: int) -> int:
    """DiT by hand; its modulations are made once per image, not per token."""
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2)
    last_modulation, timestep = 2 * width**2, 256 * width + width**2
    patches = (4 + out_channels) * patch**2 * width * tokens  # in and out
    return blocks + last_modulation + timestep + patches


def ar_macs(width: int, depth: int, mlp: int, tokens: int, block: int | None = None) -> int:
    """The raster model by hand: a forward pass; or, with `block`, sampling so many at a time.

    With a cache a block meets only what is there already and itself.
    """
    pairs = tokens**2  # of a query and a key
    if block:
        pairs = sum(block * (start + block) for start in range(0, tokens, block))
    layer = 4 * width**2 * tokens + 2 * pairs * width + 3 * width * mlp * tokens
    return depth * layer + width * K * tokens


def any_order_macs(
    width: int, depth: int, mlp: int, tokens: int, counts: list[int] | None = None
) -> int:
    """The any-order model by hand: a forward pass; or, with `counts` of tokens per step, sampling.

    Half the blocks are self-attention, half cross-attention at one shared set of keys and values.
    With a cache the few tokens of a step meet only what is there already.
    """
    self_pairs = cross_pairs = tokens**2  # of a query and a key
    if counts is not None:
        self_pairs, cross_pairs, cached, fed = 0, 0, 0, 1  # the class token is fed first
        for count in counts:
            cached += fed
            self_pairs += fed * cached
            cross_pairs += count * cached
            fed = count
    mlps = depth * 3 * width * mlp * tokens
    first = depth // 2 * (4 * width**2 * tokens + 2 * self_pairs * width)
    second = depth // 2 * (2 * width**2 * tokens + 2 * cross_pairs * width)
    shared = 2 * width**2 * tokens
    return mlps + first + second + shared + width * K * tokens


def masked_macs(width: int, depth: int, mlp: int, tokens: int) -> int:
    """The masked model by hand."""
    seen = tokens + 1  # and the class
    layer = 4 * width**2 * seen + 2 * seen**2 * width + 3 * width * mlp * seen
    return depth * layer + width * K * tokens


def unet_macs(
    channels: list[int], layers: int, side: int, *, attends: bool = True, latent_channels: int = 4
) -> int:
    """UNet2DModel by hand: convolutions, time projections, attention below the highest level."""
    wide = 4 * channels[0]  # of the time embedding

    def resnet(a: int, b: int, s: int) -> int:
        skip = a * b * s**2 if a != b else 0
        return 9 * a * b * s**2 + 9 * b * b * s**2 + wide * 2 * b + skip

    def attention(c: int, s: int) -> int:
        return attends * (4 * c * c * s**2 + 2 * s**4 * c)

    total = channels[0] * wide + wide * wide + 9 * latent_channels * channels[0] * side**2
    skips, current = [channels[0]], channels[0]
    for level, c in enumerate(channels):
        for _ in range(layers):
            total += resnet(current, c, side) + (attention(c, side) if level else 0)
            current = c
            skips.append(c)
        if level < len(channels) - 1:
            side //= 2
            total += 9 * c * c * side**2
            skips.append(c)
    total += 2 * resnet(current, current, side) + attention(current, side)
    for level, c in reversed(list(enumerate(channels))):
        for _ in range(layers + 1):
            total += resnet(current + skips.pop(), c, side) + (attention(c, side) if level else 0)
            current = c
        if level:
            side *= 2
            total += 9 * c * c * side**2
    return total + 9 * channels[0] * latent_channels * side**2


def dit_pixels_macs(width: int, depth: int, tokens: int, bottleneck: int) -> int:
    """DiT of patches of 48 pixel values, which enter through a bottleneck."""
    ends = 48 * bottleneck + bottleneck * width + 48 * width
    return dit_macs(width, depth, tokens, 1, 4) + (ends - 2 * 4 * width) * tokens


def scale_macs(width: int, depth: int, mlp: int, entries: int, side: int) -> int:
    """The transformer over scales by hand: as many tokens as all of them have, which are looked up
    while training.
    """
    tokens = sum(4**n for n in range(side.bit_length()))
    layer = (4 * width**2 + 2 * tokens * width + 3 * width * mlp) * tokens
    return depth * layer + (4 * width + entries * width + entries * 4) * tokens


def uvit_macs(width: int, depth: int, mlp: int, side: int, *, skips: bool = True) -> int:
    """U-ViT by hand: time and label are tokens, too; half of the blocks join a skip."""
    tokens, patches = side**2 + 2, side**2
    block = 4 * width**2 * tokens + 2 * tokens**2 * width + 2 * width * mlp * tokens
    joined = skips * (depth // 2 * 2 * width**2 * tokens)
    timestep, ends = 256 * width + width**2, 2 * 4 * width * patches
    return depth * block + joined + timestep + ends + 9 * 4 * 4 * patches


def hand_count(cfg, side: int) -> int:
    """MACs of a forward pass of a configuration's model, by hand."""
    name = cfg.model.name.removesuffix("_flowmap")
    own = {"ar_block": "ar", "dit_pixels": "dit"}.get(name, name)
    tokens, size = side**2, cfg.size[own]
    if name != cfg.model.name:  # span and guidance are embedded as the time is
        plain = of_size(cfg.size.name, f"model={name}")
        wide = size.width if name == "dit" else 4 * size.channels[0]
        return hand_count(plain, side) + 2 * (256 * wide + wide**2)
    if name in ("unet", "unet_conv"):
        return unet_macs(list(size.channels), size.layers, side, attends=name == "unet")
    if name == "dit":
        return dit_macs(size.width, size.depth, tokens, 1, 4)
    if name == "dit_pixels":
        return dit_pixels_macs(size.width, size.depth, tokens, 32)
    if name == "ar_scale":
        return scale_macs(size.width, size.depth, size.mlp, size.entries, side)
    if name == "uvit":
        return uvit_macs(size.width, size.depth, size.mlp, side, skips=cfg.model.denoiser.skips)
    count = {"ar_any": any_order_macs, "masked": masked_macs}.get(name, ar_macs)
    fewer = K - cfg.size.get("codebook_size", K)  # entries that the head has less
    return count(size.width, size.depth, size.mlp, tokens) - size.width * fewer * tokens


def continuous_macs(cfg, tokens: int) -> int:
    """The transformers that predict latent vectors by hand, with their heads."""
    size, head = cfg.size.ar_continuous, cfg.model.head
    w, h, mlp = size.width, size.head_width, size[head]
    there = tokens + (cfg.model.name == "masked_continuous")  # the class is a token of its own
    layer = 4 * w**2 * there + 2 * there**2 * w + 3 * w * mlp * there
    # raster: the last token enters nothing
    entering = 4 * w * (tokens - (cfg.model.name == "ar_continuous"))
    heads = {
        "gmm": w * 16 * (1 + 2 * 4) * tokens,
        # of two noises each: a time, blocks of two layers and three modulations, the way in and out
        "flow": 2 * tokens * (h * h + h * h + 3 * (2 + 3) * h * h + 2 * h * h + 2 * 4 * h)
        + tokens * w * h,
    }
    return size.depth * layer + entering + heads[head]
