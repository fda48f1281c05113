"""How the cascade fits cards of 24, 48 and 80 GB: what leaves the device when, and the peak memory, calculated.

Nothing is allocated: networks run with their real shapes on the meta device while the bytes of living tensors are
counted (models/vae_tiling.py). Not counted: the CUDA context and cuDNN's workspaces, some 1 to 2 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from flashvideo.config import STAGE2_TRANSFORMER, FrameShape, TransformerConfig, VaeConfig, VaeTilingConfig
from flashvideo.models.transformer import CogVideoXTransformer, count_parameters
from flashvideo.models.vae_tiling import live_bytes
from flashvideo.models.window_attention import AttentionOptions

T5_XXL_PARAMETERS = 4_762_310_656
"""T5 v1.1-XXL's encoder."""


class OffloadMode(NamedTuple):
    """What is on the device when, and how much runs at once. Results are equal but for rounding, except the VAE's dtype."""

    text_encoder_leaves: bool = False
    """The text encoder is on the device only while it encodes."""
    stage_leaves: bool = False
    """So is each stage's transformer, and the autoencoder."""
    sequential_guidance: bool = False
    """The conditional and the unconditional branch run one after the other."""
    head_chunk: int | None = None
    """Attention heads at once; None: as the sampling's settings say."""
    half_autoencoder: bool = False
    """The autoencoder in bf16 (the released code decodes in fp16): other rounding, half its memory."""
    tiling: VaeTilingConfig | None = None
    """Smaller tiles of the autoencoder, which change its result a little (its GroupNorm spans a tile). None: its own."""

    def autoencoder_config(self, config: VaeConfig) -> VaeConfig:
        """The config with this mode's tiles."""
        return config if self.tiling is None else config.model_copy(update={"tiling": self.tiling})


_SMALLER = OffloadMode(text_encoder_leaves=True, stage_leaves=True, sequential_guidance=True, half_autoencoder=True)

OFFLOAD_MODES: dict[str, OffloadMode] = {
    "none": OffloadMode(),
    "80gb": OffloadMode(text_encoder_leaves=True, half_autoencoder=True, tiling=VaeTilingConfig(encode_pass_latents=100_000)),
    "48gb": _SMALLER._replace(tiling=VaeTilingConfig(encode_pass_latents=100_000, decode_pass_latents=36_000)),
    "24gb": _SMALLER._replace(head_chunk=15, tiling=VaeTilingConfig(encode_pass_latents=40_000, decode_pass_latents=17_000)),
}
"""By the card's memory; `plan_memory` says what each needs."""


def offload_mode(name: str) -> OffloadMode:
    """The mode of that name. Raises ValueError that lists them."""
    if name not in OFFLOAD_MODES:
        raise ValueError(f"no offload mode {name!r}; have {', '.join(OFFLOAD_MODES)}")
    return OFFLOAD_MODES[name]


def plan_memory(
    mode: str,
    shape: FrameShape,
    preview: FrameShape | None = None,
    stage1: TransformerConfig | None = None,
    stage2: TransformerConfig = STAGE2_TRANSFORMER,
    vae: VaeConfig | None = None,
    text_tokens: int = 226,
    text_encoder_parameters: int = T5_XXL_PARAMETERS,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, int]:
    """Bytes on the device at the worst moment of each part of one video's making, and `peak`, the most of them.

    Keys: text_encoder, stage1, decode_preview, encode, stage2, decode, peak. `preview` and `stage1` default to the
    released ones. The first call imports diffusers (about 10 s) for the autoencoder's shapes. Raises ValueError for an
    unknown mode.
    """
    chosen = offload_mode(mode)
    stage1, preview = stage1 or TransformerConfig(), preview or FrameShape(frames=shape.frames, height=256, width=480)
    tiled = chosen.autoencoder_config(vae or VaeConfig())
    networks = _autoencoder(tiled, torch.bfloat16 if chosen.half_autoencoder else torch.float32)
    weights = {
        "text_encoder": text_encoder_parameters * dtype.itemsize,
        "stage1": _weights(stage1, dtype),
        "stage2": _weights(stage2, dtype),
        "vae": sum(weight.numel() * weight.dtype.itemsize for weight in networks.network.parameters()),
    }
    passes = {
        "text_encoder": 0,  # 226 tokens: next to nothing beside its weights
        "stage1": forward_bytes(stage1, preview, chosen._replace(head_chunk=None), text_tokens, dtype),
        "stage2": forward_bytes(stage2, shape, chosen, text_tokens, dtype),
        "decode_preview": _autoencoder_bytes(networks, "decode", preview),
        "encode": _autoencoder_bytes(networks, "encode", shape),
        "decode": _autoencoder_bytes(networks, "decode", shape),
    }
    plan = {}
    for part in ("text_encoder", "stage1", "decode_preview", "encode", "stage2", "decode"):
        owner = part if part in weights else "vae"
        resident = {owner}
        resident |= set() if chosen.text_encoder_leaves else {"text_encoder"}
        resident |= set() if chosen.stage_leaves else {"stage1", "stage2", "vae"}
        plan[part] = sum(weights[name] for name in resident) + passes[part]
    return plan | {"peak": max(plan.values())}


def forward_bytes(config: TransformerConfig, shape: FrameShape, mode: OffloadMode, text_tokens: int, dtype: torch.dtype) -> int:
    """Most that lives at once while a transformer predicts one video, its weights not counted.

    One block stands for all: each frees what it made. Flash attention: no matrix of scores.
    """
    frames, height, width = shape.latent_shape
    batch = 1 if mode.sequential_guidance else 2
    with torch.device("meta"):
        model = CogVideoXTransformer(config.model_copy(update={"num_layers": 1})).to(dtype)
        noise_step = torch.empty(batch) if config.noise_strength_embedding else None
        timestep, text = torch.empty(batch), torch.empty(batch, text_tokens, config.text_embed_dim, dtype=dtype)
    attention = AttentionOptions(None, mode.head_chunk)
    with torch.inference_mode(), live_bytes() as counter, _FlashAttention():
        latents = torch.empty(batch, frames, config.in_channels, height, width, dtype=dtype, device="meta")
        model(latents, text, timestep, noise_step, attention)
    return counter.peak


class _FlashAttention(TorchFunctionMode):
    """On the meta device torch would write out all scores; the fused kernels keep only the output."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _weights(config: TransformerConfig, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        return count_parameters(CogVideoXTransformer(config)) * dtype.itemsize


def _autoencoder(config: VaeConfig, dtype: torch.dtype) -> Any:
    """The released autoencoder on the meta device, with the config's tiles."""
    from diffusers import AutoencoderKLCogVideoX

    from flashvideo.models.vae import CogVideoXAutoencoder

    with torch.device("meta"):
        network = AutoencoderKLCogVideoX().to(dtype)
    return CogVideoXAutoencoder(network, config.chunk_mode, "plan", None, config.tiling)


def _autoencoder_bytes(autoencoder: Any, what: str, shape: FrameShape) -> int:
    """Activations and the result; the weights are counted by the caller."""
    frames, height, width = shape.latent_shape
    if what == "encode":
        plan = autoencoder.plan_encode((1, 3, shape.frames, shape.height, shape.width))
    else:
        plan = autoencoder.plan_decode((1, frames, 16, height, width))
    return int(plan.pass_bytes + plan.result_bytes)


@contextmanager
def on_device(part: Any, device: torch.device, leaves: bool) -> Iterator[None]:
    """Has the part's network on `device` inside; where it `leaves`, it goes back to the CPU afterwards, errors included."""
    network = part if isinstance(part, torch.nn.Module) else getattr(part, "network", None)
    if network is None or not leaves:  # the fitted stand-in codec is a few kilobytes and stays
        yield
        return
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def table(plan: dict[str, int]) -> str:
    """One line: part and gigabytes."""
    return ", ".join(f"{part} {size / 1e9:.1f} GB" for part, size in plan.items())
