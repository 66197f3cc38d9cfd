"""A family from its configuration, and what it costs: the same construction, on a real device or on
none.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from benchmarks.core.errors import BadInput
from benchmarks.core.model_schema import DENOISERS, MODELS
from benchmarks.core.session import session
from benchmarks.core.settings import compose
from metrics import flops
from models.codebook import Codebook
from models.generator import Batch, GenerativeModel
from models.image_model import ImageModel
from models.options import GUIDE

# of conf/model/*.yaml; the rest goes to the class it names
NOT_ARGUMENTS = ("name", "family", "lr", "tune")

CHANNELS = {"dit_pixels": 3 * 4**2}  # a patch of 4 x 4 pixels; latents have four


def model_arguments(model_cfg: Any) -> dict[str, Any]:
    """`conf/model/*.yaml`, resolved, without what the harness keeps for itself."""
    resolved = OmegaConf.to_container(model_cfg, resolve=True)
    return {k: v for k, v in resolved.items() if k not in NOT_ARGUMENTS}


def is_ar_without_codebook(name: str) -> bool:
    """Whether conf/model/<name>.yaml is an autoregressive model that makes no use of the codebook
    that the others share.
    """
    model = compose(f"model={name}").model
    return model.family == "ar" and not get_class(model._target_).uses_tokens


def takes_a_guide(name: str) -> bool:
    """Whether the model of conf/model/<name>.yaml can be guided by earlier weights of its own."""
    options = getattr(get_class(compose(f"model={name}").model._target_), "sampler_defaults", {})
    return "guide" in options


def latents_of(name: str, side: int) -> tuple[int, int, int]:
    """The shape of the latents that a model is for."""
    return (CHANNELS.get(name, 4), side, side)


def is_shipped(model_cfg: Any) -> bool:
    """Whether the model and its network are classes of ours, and none of a user's own."""
    denoiser = model_cfg.get("denoiser")
    return model_cfg._target_ in MODELS and (denoiser is None or denoiser._target_ in DENOISERS)


def build_model(
    model_cfg: Any,
    latent_shape: Sequence[int],
    num_classes: int,
    codebook: Codebook,
    *,
    label_dropout: float = 0.1,
) -> GenerativeModel:
    """The family's model, initialised from torch's global seed.

    `latent_shape` is (C, H, W), `codebook` in whitened units. Raises BadInput for a configuration
    its class refuses.
    """
    try:
        return instantiate(
            model_arguments(model_cfg),
            latent_shape=tuple(latent_shape),
            num_classes=num_classes,
            codebook=codebook,
            label_dropout=label_dropout,
        )
    except InstantiationException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise BadInput(f"model={model_cfg.get('name')}: {reason}") from error


def choose_sampler(model: GenerativeModel, cfg: Any) -> None:
    """Set the model to sample as `conf/sampler` says.

    What another family's sampler has and this one's has not is named and left out.

    Raises BadInput for a value out of range.
    """
    settings = OmegaConf.to_container(cfg.sampler, resolve=True)
    name = settings.pop("name")
    if name != "default" and name not in model.samplers:
        own = ", ".join(model.samplers)
        session.print_once(
            f"{cfg.model.name}: sampler={name} is not one of its own ({own}); "
            f"using {model.samplers[0]}"
        )
        name = "default"
    options = {}
    for option, value in settings.items():
        if value is None:  # the model's own default
            continue
        if option in model.sampler_defaults:
            options[option] = value
        else:
            own = ", ".join(model.sampler_defaults)
            line = f"{cfg.model.name}: sampler.{option} is not one of its options ({own}); left out"
            session.print_once(line)
    try:
        model.set_sampler(None if name == "default" else name, **options)
    except (ValueError, TypeError) as error:
        raise BadInput(f"model={cfg.model.name}: {error}") from None


def sampler_settings(model: GenerativeModel | ImageModel) -> dict[str, Any]:
    """The sampler and all its options, as fields of a SamplingConfig.

    Without the usual guide: what was measured before there were others keeps its name.
    """
    options = model.sampler_options.items()
    options = tuple(sorted(one for one in options if one not in GUIDE.items()))
    return {"sampler": model.sampler, "options": options}


def place_on(model: GenerativeModel, device: torch.device) -> GenerativeModel:
    """The model on `device`; on CUDA with the convolutions of classes that ask for it in
    channels-last, as cuDNN wants them.
    """
    model.to(device)
    for module in model.modules():
        if device.type == "cuda" and getattr(type(module), "channels_last", False):
            module.to(memory_format=torch.channels_last)
    return model


def on_meta(model: GenerativeModel) -> GenerativeModel:
    """A copy without data, whose calls cost nothing and are counted."""
    meta = copy.deepcopy(model).to("meta").eval()
    meta.counted_macs = {}  # see `sampling_macs`
    if isinstance(meta, GenerativeModel):
        meta.guide_with(meta)  # of the same shape, whichever it is
    return meta


def forward_macs(meta: GenerativeModel) -> int:
    """MACs of the loss of one image, a single forward pass, head included."""
    channels, height, width = meta.latent_shape
    batch = Batch(
        torch.empty(1, channels, height, width, device="meta"),
        torch.zeros(1, height * width, dtype=torch.long, device="meta"),
        torch.zeros(1, dtype=torch.long, device="meta"),
    )
    return flops.count_macs(lambda: meta(batch, rng=torch.Generator()))


def sampling_macs(meta: GenerativeModel | ImageModel, steps: int, guidance: float) -> int:
    """MACs of sampling one image's latents: every network evaluation of a whole `sample` call.

    Where all of them cost the same, one is counted, and multiplied. Elsewhere the call itself is,
    once for each kind of guidance: counting 256 cached steps takes seconds.
    """
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    per_evaluation = flops.count_macs(lambda: meta.evaluation(labels))
    if per_evaluation:
        return per_evaluation * meta.nfe(steps, guidance)
    if isinstance(meta, ImageModel):  # nothing in it multiplies
        return 0
    inner = meta.sampler_options[meta.inner_steps] if meta.inner_steps else 1
    if inner > 2:
        one, two = (_with_inner_steps(meta, count, steps, guidance) for count in (1, 2))
        return one + (inner - 1) * (two - one)
    counted = getattr(meta, "counted_macs", {})
    key = (steps, guidance == 1, *map(str, meta.sampling_key()))
    if key not in counted:
        counted[key] = flops.count_macs(
            lambda: meta.sample(labels, steps=steps, guidance=guidance, rng=torch.Generator())
        )
    return counted[key]


def _with_inner_steps(meta: GenerativeModel, count: int, steps: int, guidance: float) -> int:
    """`sampling_macs` with so many inner evaluations."""
    sampler, options = meta.sampler, meta.sampler_options
    meta.set_sampler(sampler, **options | {meta.inner_steps: count})
    try:
        return sampling_macs(meta, steps, guidance)
    finally:
        meta.set_sampler(sampler, **options)


def image_cost(
    meta: GenerativeModel | ImageModel,
    autoencoder: torch.nn.Module | None,
    steps: int,
    guidance: float,
) -> dict[str, float]:
    """The columns of what one image costs, counted: GMACs and, twice as many, GFLOPs.

    A model that was trained elsewhere decodes its images itself, without our autoencoder.
    """
    generator = sampling_macs(meta, steps, guidance) / 1e9
    if isinstance(meta, ImageModel):
        decoder = flops.count_macs(meta.decoding) / 1e9
    else:
        decoder = decoder_macs(autoencoder, meta.latent_shape) / 1e9
    whole = generator + decoder
    return {
        "gmacs_generator": generator,
        "gmacs_decoder": decoder,
        "gmacs_per_image": whole,
        "gflops_per_image": 2 * whole,
    }


def decoder_macs(autoencoder: torch.nn.Module, latent_shape: Sequence[int]) -> int:
    """MACs of decoding one image's latents."""
    meta = copy.deepcopy(autoencoder).to("meta")
    return flops.count_macs(lambda: meta.decode(torch.empty(1, *latent_shape, device="meta")))


def encoder_macs(autoencoder: torch.nn.Module, image_size: int) -> int:
    """MACs of encoding one image."""
    meta = copy.deepcopy(autoencoder).to("meta")
    image = torch.empty(1, 3, image_size, image_size, dtype=torch.uint8, device="meta")
    return flops.count_macs(lambda: meta.encode(image))
