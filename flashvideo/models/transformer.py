"""The CogVideoX diffusion transformer, both stages: joint text and video attention, adaptive LayerNorm, 3D RoPE (or sinusoids).

Equal to diffusers' `CogVideoXTransformer3DModel` (tested), with these differences: queries, keys and values are one
matmul; the rotary table is made once a forward, from the real grid; the last norm has eps 1e-6, as in the released
code (diffusers builds 1e-5); Stage II's two extra embeddings are here. Files on disk are in diffusers' layout.
Source: CogVideoX (arXiv 2408.06072); FlashVideo (arXiv 2502.05179) sections 3.2, 3.3 and its released inference code.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashvideo.config import TransformerConfig
from flashvideo.models.rope import SINCOS_SPATIAL_SCALE, apply_rotary, rotary_table, sincos_table
from flashvideo.models.weight_files import WeightsError, check_keys, read_config, read_tensors, write_folder
from flashvideo.models.window_attention import FULL_ATTENTION, AttentionOptions, WindowPlan, window_plan

log = logging.getLogger("flashvideo")

Rotary = tuple[Tensor, Tensor] | None
"""Cosine and sine, each (L+N, head_dim / 2); None where positions are added to the patches."""
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """[cos, sin] features of `values` (B,), fp32 (B, dim), periods 2 pi to 2 pi x 10,000."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=values.device) / half)
    angles = values.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) scaled and shifted by (B, D) each: one fused multiply-add."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class PatchEmbed(nn.Module):
    """2x2 spatial patches and text embeddings to the hidden width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, patch, patch)
        self.text_proj = nn.Linear(config.text_embed_dim, config.hidden_size)

    def forward(self, latents: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B T C H W, B L D) -> video (B, T*h*w, hidden), text (B, L, hidden)."""
        batch = latents.shape[0]
        patches = self.proj(latents.flatten(0, 1))
        return patches.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3), self.text_proj(text)


class ScalarEmbedding(nn.Module):
    """One number a sample (timestep, noise step, frame count) -> the conditioning vector."""

    def __init__(self, hidden_size: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Sinusoidal features (B, hidden) -> (B, time_embed_dim)."""
        output: Tensor = self.linear_2(F.silu(self.linear_1(features)))
        return output


class AdaptiveNorm(nn.Module):
    """LayerNorm of video and text, each with a shift, scale and gate from the conditioning."""

    def __init__(self, hidden_size: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_embed_dim, 6 * hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5)

    def forward(self, video: Tensor, text: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns [text, video] normalised and modulated (B, L+N, D), and the gates of video and text (B, 1, D).

        `condition` is silu(embedding), (B, time_embed_dim).
        """
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(condition).chunk(6, dim=1)
        joint = torch.cat([modulate(self.norm(text), text_shift, text_scale), modulate(self.norm(video), shift, scale)], dim=1)
        return joint, gate[:, None], text_gate[:, None]


class Attention(nn.Module):
    """Attention over [text, video], LayerNorm on queries and keys, rotary positions on video."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim = hidden_size // num_heads
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.norm_q = nn.LayerNorm(head_dim, eps=1e-6)
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size)])

    def forward(self, joint: Tensor, rotary: Rotary, plan: WindowPlan | None = None, head_chunk: int | None = None) -> Tensor:
        """(B, L+N, D) -> the same shape. Not turned without `rotary`, full without a plan, all heads without a chunk."""
        qkv = self.to_qkv(joint).unflatten(-1, (3, self.num_heads, -1))
        chunks = qkv.split(head_chunk or self.num_heads, dim=3)
        attended = [self._attend(chunk, rotary, plan) for chunk in chunks]
        output: Tensor = self.to_out[0]((attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)).flatten(2))
        return output

    def _attend(self, qkv: Tensor, rotary: Rotary, plan: WindowPlan | None) -> Tensor:
        """(B, L+N, 3, heads, head_dim) -> (B, L+N, heads, head_dim)."""
        query, key, value = qkv.unbind(2)
        query, key = self.norm_q(query), self.norm_k(key)
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        attend = F.scaled_dot_product_attention if plan is None else plan.attend
        return attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2)


class GeluProjection(nn.Module):
    """Linear, then GELU (tanh form). A module of its own so that its weight is named `ff.net.0.proj`."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, inner_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """hidden -> 4 hidden -> hidden."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluProjection(hidden_size, 4 * hidden_size), nn.Identity(), nn.Linear(4 * hidden_size, hidden_size)])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net[2](self.net[0](x))
        return output


class Block(nn.Module):
    """Attention, then feed-forward, each behind an adaptive norm and a gate. Text and video stay two streams."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(config.hidden_size, config.time_embed_dim)
        self.attn1 = Attention(config.hidden_size, config.num_attention_heads)
        self.norm2 = AdaptiveNorm(config.hidden_size, config.time_embed_dim)
        self.ff = FeedForward(config.hidden_size)

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        condition: Tensor,
        rotary: Rotary,
        plan: WindowPlan | None = None,
        head_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """video (B, N, D), text (B, L, D), condition (B, time_embed_dim) -> the two streams."""
        num_text = text.shape[1]
        joint, gate, text_gate = self.norm1(video, text, condition)
        joint = self.attn1(joint, rotary, plan, head_chunk)
        video = torch.addcmul(video, gate, joint[:, num_text:])
        text = torch.addcmul(text, text_gate, joint[:, :num_text])
        joint, gate, text_gate = self.norm2(video, text, condition)
        joint = self.ff(joint)
        return torch.addcmul(video, gate, joint[:, num_text:]), torch.addcmul(text, text_gate, joint[:, :num_text])


class OutputNorm(nn.Module):
    """The last LayerNorm, on video tokens only, with a shift and scale from the conditioning."""

    def __init__(self, hidden_size: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_embed_dim, 2 * hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)

    def forward(self, video: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.linear(condition).chunk(2, dim=1)
        return modulate(self.norm(video), shift, scale)


class CogVideoXTransformer(nn.Module):
    """Predicts v (Stage I) or the flow's velocity (Stage II) of video latents.

    Built with random weights drawn from `config.seed` by its own generator (the global one is untouched); under
    `torch.device("meta")` nothing is allocated.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        """Recompute every block in backward instead of keeping its activations."""
        hidden, time_dim = config.hidden_size, config.time_embed_dim
        device = torch.get_default_device()
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(config)
            self.time_embedding = ScalarEmbedding(hidden, time_dim)
            self.noise_strength_embedding = ScalarEmbedding(hidden, time_dim) if config.noise_strength_embedding else None
            self.num_frames_embedding = ScalarEmbedding(hidden, time_dim) if config.num_frames_embedding else None
            self.transformer_blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
            self.norm_final = nn.LayerNorm(hidden, eps=1e-5)
            self.norm_out = OutputNorm(hidden, time_dim)
            self.proj_out = nn.Linear(hidden, config.patch_size**2 * config.in_channels)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, config.seed)

    def forward(
        self,
        latents: Tensor,
        text: Tensor,
        timestep: Tensor,
        noise_step: Tensor | None = None,
        attention: AttentionOptions = FULL_ATTENTION,
    ) -> Tensor:
        """Prediction (B, T, C, H, W) for model input `latents` of that shape, any T, H, W that the patch divides.

        text: (B, L, text_embed_dim), padded, unmasked, all-zero for the unconditional branch. timestep: (B,), 0 to 1000,
        fractions allowed, kept in fp32. noise_step: (B,), the step of the table that DEG_latent used; needed exactly
        when the model has `noise_strength_embedding`. `attention` is for sampling; the models are trained with the
        default. Raises ValueError on shapes that do not fit.
        """
        grid = self._grid(latents, text)
        video, text = self.patch_embed(latents, text)
        condition = F.silu(self._embed_scalars(timestep, noise_step, grid[0], latents.dtype))
        num_text = text.shape[1]
        rotary = None
        if self.config.positions == "rope":
            rotary = rotary_table(grid, self.config.rope_axes, self.config.rope_theta, num_text, latents.device)
        else:
            video = video + sincos_table(grid, self.config.hidden_size, latents.device).to(video.dtype)
        plan = None if attention.window is None else window_plan(grid, num_text, attention.window, latents.device)
        for block in self.transformer_blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                video, text = checkpoint(block, video, text, condition, rotary, plan, attention.head_chunk, use_reentrant=False)
            else:
                video, text = block(video, text, condition, rotary, plan, attention.head_chunk)
        video = self.norm_out(self.norm_final(video), condition)
        return self._unpatchify(self.proj_out(video), grid)

    def _grid(self, latents: Tensor, text: Tensor) -> tuple[int, int, int]:
        _, num_frames, channels, height, width = latents.shape
        patch = self.config.patch_size
        if channels != self.config.in_channels or height % patch or width % patch:
            raise ValueError(
                f"latents are {tuple(latents.shape)} (B T C H W); need {self.config.in_channels} channels and height and width "
                f"that divide by {patch}"
            )
        if text.shape[0] != latents.shape[0] or text.shape[-1] != self.config.text_embed_dim:
            raise ValueError(f"text is {tuple(text.shape)}; need (B = {latents.shape[0]}, L, {self.config.text_embed_dim})")
        return num_frames, height // patch, width // patch

    def _embed_scalars(self, timestep: Tensor, noise_step: Tensor | None, num_frames: int, dtype: torch.dtype) -> Tensor:
        """Sum of the embeddings of timestep, noise step and number of latent frames: (B, time_embed_dim)."""
        if (noise_step is not None) != (self.noise_strength_embedding is not None):
            raise ValueError(
                f"noise_step is {'given' if noise_step is not None else 'missing'}, but the model has "
                f"noise_strength_embedding = {self.config.noise_strength_embedding}"
            )
        hidden = self.config.hidden_size
        embedding: Tensor = self.time_embedding(sinusoid(timestep, hidden).to(dtype))
        if self.noise_strength_embedding is not None and noise_step is not None:
            embedding = embedding + self.noise_strength_embedding(sinusoid(noise_step, hidden).to(dtype))
        if self.num_frames_embedding is not None:
            frames = torch.full_like(timestep, num_frames, dtype=torch.float32)
            embedding = embedding + self.num_frames_embedding(sinusoid(frames, hidden).to(dtype))
        return embedding

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, T*h*w, C*p*p), channels first inside a patch, -> (B, T, C, h*p, w*p)."""
        patch, channels = self.config.patch_size, self.config.in_channels
        return patches.unflatten(1, grid).unflatten(-1, (channels, patch, patch)).permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


@torch.no_grad()
def initialise(model: CogVideoXTransformer, seed: int) -> None:
    """Draws every weight from one generator, in the order of the parameters' names.

    Linear and convolution weights are U(-1, 1) / sqrt(inputs) (torch's default; at the debug width 0.02 normal learned
    more slowly), biases 0, LayerNorms 1 and 0. Nothing is zero but the last layer of Stage II's two extra embeddings
    (which therefore start without effect, and still learn; the released code zeroes every layer of the frame-count one,
    which then learns only a constant). The noise embedding starts as a copy of the time embedding before that.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in sorted(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            draw = torch.empty(module.weight.shape).uniform_(-bound, bound, generator=generator)
            module.weight.copy_(draw)
            assert module.bias is not None, name
            module.bias.zero_()
    initialise_extra_embeddings(model)


@torch.no_grad()
def initialise_extra_embeddings(model: CogVideoXTransformer) -> None:
    """Starts Stage II's noise and frame-count embeddings as copies of the time embedding with a zero last layer."""
    for extra in (model.noise_strength_embedding, model.num_frames_embedding):
        if extra is not None:
            extra.load_state_dict(model.time_embedding.state_dict())
            extra.linear_2.weight.zero_()
            extra.linear_2.bias.zero_()


# ---- files: diffusers' layout ------------------------------------------------------------------------------------


EXTRA_EMBEDDINGS = ("noise_strength_embedding", "num_frames_embedding")
DROPPED_KEYS = ("patch_embed.pos_embedding",)
"""CogVideoX-2B's sincos buffer; RoPE takes its place, or it is computed for the grid at hand."""

_FIXED_SETTINGS: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "ofs_embed_dim": None,
    "patch_bias": True,
    "patch_size_t": None,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
}
"""Settings of diffusers' class that this file builds in. A folder that says otherwise (CogVideoX 1.5, I2V) is refused."""


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under diffusers' names: `to_qkv` becomes `to_q`, `to_k`, `to_v` (views)."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".to_qkv." not in key:
            named[key] = value
            continue
        for letter, part in zip("qkv", value.chunk(3), strict=True):
            named[key.replace(".to_qkv.", f".to_{letter}.")] = part
    return named


def from_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `to_diffusers`. The state dict is emptied on the way, so that memory holds one copy."""
    ours: dict[str, Tensor] = {}
    for key in list(state):
        if ".to_k." in key or ".to_v." in key:
            continue
        if ".to_q." in key:
            names = [key.replace(".to_q.", f".to_{letter}.") for letter in "qkv"]
            ours[key.replace(".to_q.", ".to_qkv.")] = torch.cat([state.pop(name) for name in names])
        else:
            ours[key] = state.pop(key)
    return ours


def diffusers_config(config: TransformerConfig) -> dict[str, Any]:
    """config.json for diffusers' CogVideoXTransformer3DModel; `_flashvideo` keeps the whole of ours (diffusers skips it)."""
    return {
        "_class_name": "CogVideoXTransformer3DModel",
        "_flashvideo": config.model_dump(mode="json"),
        **_FIXED_SETTINGS,
        "attention_head_dim": config.attention_head_dim,
        "in_channels": config.in_channels,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "out_channels": config.in_channels,
        "patch_size": config.patch_size,
        "text_embed_dim": config.text_embed_dim,
        "time_embed_dim": config.time_embed_dim,
        "use_rotary_positional_embeddings": config.positions == "rope",
    }


def config_from_diffusers(values: dict[str, Any], source: str) -> TransformerConfig:
    """Our settings for a config.json. Raises WeightsError when the file describes a network that this is not."""
    if "_flashvideo" in values:
        return TransformerConfig.model_validate_json(json.dumps(values["_flashvideo"]))
    if values.get("_class_name") != "CogVideoXTransformer3DModel":
        raise WeightsError(f"{source} is of class {values.get('_class_name')!r}; need CogVideoXTransformer3DModel")
    different = [f"{key} = {values[key]!r} (need {want!r})" for key, want in _FIXED_SETTINGS.items() if values.get(key, want) != want]
    if different:
        raise WeightsError(f"{source} is another network than this one: {', '.join(different)}")
    head_dim = values.get("attention_head_dim", 64)
    sincos = not values.get("use_rotary_positional_embeddings", False)
    if sincos and values.get("spatial_interpolation_scale", SINCOS_SPATIAL_SCALE) != SINCOS_SPATIAL_SCALE:
        raise WeightsError(
            f"{source} scales its positions by {values['spatial_interpolation_scale']}; this network has {SINCOS_SPATIAL_SCALE}"
        )
    return TransformerConfig(
        flavour="5b" if values.get("num_layers", 30) == 42 else "2b",
        num_layers=values.get("num_layers", 30),
        num_attention_heads=values.get("num_attention_heads", 30),
        attention_head_dim=head_dim,
        in_channels=values.get("in_channels", 16),
        patch_size=values.get("patch_size", 2),
        text_embed_dim=values.get("text_embed_dim", 4096),
        time_embed_dim=values.get("time_embed_dim", 512),
        positions="sincos" if sincos else "rope",
        rope_axes=(head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3),
    )


def save_transformer(model: CogVideoXTransformer, folder: Path | str) -> None:
    """Writes config.json and diffusion_pytorch_model.safetensors; diffusers' class loads Stage I's folder.

    Each file is written beside and renamed, the weights first. Raises WeightsError for a model with unmerged LoRA.
    """
    state = model.state_dict()
    lora = [key for key in state if ".lora_" in key]
    if lora:
        raise WeightsError(f"the model holds unmerged LoRA weights ({lora[0]}, ...); save_adapter saves those, merge_lora merges them")
    write_folder(Path(folder), diffusers_config(model.config), to_diffusers(state), WEIGHTS_FILE)


def load_transformer(folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CogVideoXTransformer:
    """The transformer of a folder in diffusers' layout, strictly: every key must be there and nothing else.

    Raises WeightsError that names the missing, unknown or misshapen keys.
    """
    config = config_from_diffusers(read_config(Path(folder)), str(folder))
    return build_transformer(config, folder, device, dtype, fresh_embeddings=False)


def build_transformer(
    config: TransformerConfig,
    weights: Path | str | None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    fresh_embeddings: bool = True,
) -> CogVideoXTransformer:
    """A transformer to start training from: `weights` (folder in diffusers' layout), or seeded random without it.

    With `fresh_embeddings`, Stage II's two extra embeddings may be absent from the folder (CogVideoX-2B); they are then
    initialised, and the log says so. Raises WeightsError when config and weights do not fit.
    """
    if weights is None:
        return CogVideoXTransformer(config).to(device, dtype)
    with torch.device("meta"):
        model = CogVideoXTransformer(config)
    state = read_tensors(Path(weights), WEIGHTS_FILE, device, dtype)
    for key in DROPPED_KEYS:
        if state.pop(key, None) is not None:
            log.info("%s: %s dropped, %s", weights, key, "RoPE takes its place" if config.positions == "rope" else "made for each grid")
    wanted = to_diffusers(model.state_dict())
    absent = [key for key in wanted if key not in state and key.startswith(EXTRA_EMBEDDINGS)] if fresh_embeddings else []
    for key in absent:
        state[key] = torch.empty(wanted[key].shape, device=device, dtype=dtype)
    check_keys(state, wanted, str(weights))
    model.load_state_dict(from_diffusers(state), strict=True, assign=True)
    if absent:
        if len(absent) != sum(key.startswith(EXTRA_EMBEDDINGS) for key in wanted):
            raise WeightsError(f"{weights} holds only a part of the extra embeddings; missing: {', '.join(absent)}")
        initialise_extra_embeddings(model)
        log.info("%s has no %s: initialised without effect", weights, " and ".join(EXTRA_EMBEDDINGS))
    return model.requires_grad_(True)


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of weights."""
    parameters: Iterator[nn.Parameter] = model.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)
