"""UMT ViT-L/16 on Kinetics-400 (human action) as transformers' VideoMAE, from UMT's own checkpoint.

The same network but for names: q and v biases, a fused qkv, epsilons of 1e-6, and the position table, which is the
checkpoint's or UMT's sinusoid for 8 frames stretched to 16.
Source: OpenGVLab/unmasked_teacher, single_modality/models/modeling_finetune.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flashvideo.evaluation.networks.pretrained import Pretrained

FRAMES, PRETRAINED_FRAMES, EPSILON = 16, 8, 1e-6

RENAMED = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "attn.q_bias": "attention.attention.query.bias",
    "attn.v_bias": "attention.attention.value.bias",
}
"""Inside a block: UMT -> VideoMAE."""


class UmtActions(Pretrained):
    """Logits of 400 classes: float B 3 16 224 224 -> B 400."""

    def __init__(self, module: torch.nn.Module, labels: tuple[str, ...], identity: str, device: torch.device | None = None) -> None:
        super().__init__("transformers VideoMAE (UMT ViT-L/16)", module, identity, device)
        self.labels = labels

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.module(pixel_values=clip.transpose(1, 2).to(self.device)).logits
        return logits.float().cpu()


def build_umt(state: dict[str, torch.Tensor] | None = None, **changes: Any) -> torch.nn.Module:
    """VideoMAE with UMT's settings; `changes` shrink it for tests. With UMT's `state`, strictly loaded.

    Raises ValueError for a state that does not fit.
    """
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    settings: dict[str, Any] = {
        "image_size": 224,
        "patch_size": 16,
        "num_frames": FRAMES,
        "tubelet_size": 1,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "num_labels": 400,
        "use_mean_pooling": True,
        "layer_norm_eps": EPSILON,
    }
    model: Any = VideoMAEForVideoClassification(VideoMAEConfig(**settings | changes))
    model.fc_norm.eps = EPSILON
    if state is None:
        return model
    state = dict(state)
    positions = state.pop("pos_embed", None)
    table = model.videomae.embeddings.position_embeddings
    positions = umt_positions(table.shape[1], table.shape[2]) if positions is None else positions
    if positions.shape != table.shape:
        raise ValueError(f"UMT's positions are {tuple(positions.shape)}, the network's {tuple(table.shape)}")
    model.videomae.embeddings.position_embeddings = positions.detach().clone()
    try:
        model.load_state_dict(renamed(state), strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit UMT's VideoMAE: {str(error).splitlines()[-1].strip()}") from None
    return model


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """UMT's state under VideoMAE's names."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if not key.startswith("blocks."):
            name = key.replace("patch_embed.proj", "videomae.embeddings.patch_embeddings.projection").replace("head.", "classifier.")
            found[name] = value
            continue
        _, block, rest = key.split(".", 2)
        place = f"videomae.encoder.layer.{block}"
        if rest == "attn.qkv.weight":
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{place}.attention.attention.{name}.weight"] = part
            continue
        old = next((name for name in RENAMED if rest.startswith(name)), None)
        if old is None:
            raise ValueError(f"{key} is no weight of UMT's ViT")
        found[f"{place}.{rest.replace(old, RENAMED[old], 1)}"] = value
    return found


def umt_positions(tokens: int, width: int, frames: int = FRAMES) -> torch.Tensor:
    """1 `tokens` `width`: the sinusoid table of 8 frames, stretched to `frames` linearly, each patch by itself.

    Raises ValueError where the patches of a frame are no whole number.
    """
    if tokens % frames:
        raise ValueError(f"{tokens} tokens are no whole number of patches in each of {frames} frames")
    patches = tokens // frames
    angles = torch.arange(PRETRAINED_FRAMES * patches, dtype=torch.float64)[:, None]
    angles = angles / 10000 ** (2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    table = torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()
    series = table.reshape(PRETRAINED_FRAMES, patches, width).permute(1, 2, 0)  # patches, width, frames
    return F.interpolate(series, size=frames, mode="linear").permute(2, 0, 1).reshape(1, tokens, width)


def kinetics_labels(path: Path) -> tuple[str, ...]:
    """Class names in lower case, in order, from lines "name TAB number". Raises ValueError for other files."""
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
        numbered = {int(number): name.strip().lower() for name, number in rows}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} must hold a class name, a tab and its number in every line: {error}") from None
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(f"{path}: the classes are not numbered from 0 to {len(numbered) - 1}")
    return tuple(numbered[index] for index in range(len(numbered)))
