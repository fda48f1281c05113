"""Low-rank adapters on the transformer's linears, equal to peft's (tested) and saved in its layout.

Source: FlashVideo 3.2 and 4.2 (rank 128 on attention, FFN and adaptive LayerNorm); its released code adapts attention
and adaptive LayerNorm only, with scale alpha / rank = 1 / 128.
"""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvideo.config import LoraConfig, TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer, build_transformer, load_transformer
from flashvideo.models.weight_files import WeightsError, check_keys, read_config, read_tensors, write_config, write_folder

log = logging.getLogger("flashvideo")

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."

TARGETS: dict[str, tuple[str, ...]] = {
    "paper": ("attn1.to_qkv", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm2.linear"),
    "official": ("attn1.to_qkv", "attn1.to_out.0", "norm1.linear", "norm2.linear"),
}
"""Linears of every block that get an adapter; `to_qkv` counts as three (separate A and B for q, k and v)."""


class LoraLinear(nn.Module):
    """base(x) + scale * B A x, for each of `parts` equal slices of the output.

    lora_A: (parts, rank, inputs), kaiming uniform (a = sqrt 5); lora_B: (parts, outputs / parts, rank), zeros.
    """

    def __init__(self, base: nn.Linear, parts: int, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.parts, self.rank, self.scale = parts, rank, scale
        weight = base.weight
        bound = 1.0 / math.sqrt(base.in_features)  # kaiming uniform with a = sqrt 5
        if weight.is_meta:
            down = torch.empty(parts, rank, base.in_features, device="meta", dtype=weight.dtype)
        else:
            down = torch.empty(parts, rank, base.in_features).uniform_(-bound, bound, generator=generator).to(weight)
        self.lora_A = nn.Parameter(down)
        self.lora_B = nn.Parameter(torch.zeros(parts, base.out_features // parts, rank, device=weight.device, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.lora_A.flatten(0, 1)).unflatten(-1, (self.parts, self.rank))
        if self.parts == 1:
            up = F.linear(down[..., 0, :], self.lora_B[0])
        else:
            up = torch.cat([F.linear(down[..., part, :], self.lora_B[part]) for part in range(self.parts)], dim=-1)
        output: Tensor = torch.add(self.base(x), up, alpha=self.scale)
        return output

    def delta(self) -> Tensor:
        """What merging adds to the base weight, fp32 (outputs, inputs)."""
        return torch.bmm(self.lora_B.float(), self.lora_A.float()).flatten(0, 1) * self.scale


def add_lora(model: CogVideoXTransformer, config: LoraConfig, seed: int = 0) -> CogVideoXTransformer:
    """Wraps the target linears in place, freezes everything else, and returns the model.

    A is drawn from `seed` in the order of the module names. Raises WeightsError when the model has adapters already.
    """
    if lora_layers(model):
        raise WeightsError("the model has LoRA adapters already; merge_lora first")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in target_names(model, config):
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        base = parent.get_submodule(child)
        assert isinstance(base, nn.Linear), name
        parent.register_module(child, LoraLinear(base, 3 if child == "to_qkv" else 1, config.rank, config.scale, generator))
    return model


def target_names(model: CogVideoXTransformer, config: LoraConfig) -> list[str]:
    """Module names of the linears that the config adapts, in order."""
    pattern = re.compile(r"transformer_blocks\.\d+\.(" + "|".join(map(re.escape, TARGETS[config.targets])) + ")")
    return [name for name, _ in model.named_modules() if pattern.fullmatch(name)]


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Adapters by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights under peft's keys, e.g. `base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight`."""
    state = {}
    for name, layer in lora_layers(model).items():
        for part, path in enumerate(_peft_paths(name)):
            state[f"{path}.lora_A.weight"] = layer.lora_A[part]
            state[f"{path}.lora_B.weight"] = layer.lora_B[part]
    return state


def _peft_paths(name: str) -> list[str]:
    if not name.endswith(".to_qkv"):
        return [PEFT_PREFIX + name]
    return [PEFT_PREFIX + name.replace(".to_qkv", f".to_{letter}") for letter in "qkv"]


def save_adapter(model: CogVideoXTransformer, folder: Path | str, config: LoraConfig) -> None:
    """Writes adapter_config.json and adapter_model.safetensors; peft and diffusers load the folder."""
    state = lora_state(model)
    if not state:
        raise WeightsError("the model has no LoRA adapters to save; add_lora first")
    write_folder(Path(folder), peft_config(config), state, ADAPTER_FILE, "adapter_config.json")


def peft_config(config: LoraConfig) -> dict[str, Any]:
    """adapter_config.json: peft's LoraConfig."""
    targets = [name for target in TARGETS[config.targets] for name in _split(target)]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": r"transformer_blocks\.\d+\.(" + "|".join(map(re.escape, targets)) + ")",
    }


def _split(target: str) -> list[str]:
    return [target.replace("to_qkv", f"to_{letter}") for letter in "qkv"] if target.endswith("to_qkv") else [target]


def read_adapter_config(folder: Path | str) -> LoraConfig:
    """Our settings for an adapter folder. Raises WeightsError for kinds of adapter that this file does not compute."""
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise WeightsError(f"no file {path}; want a peft adapter (adapter_config.json and {ADAPTER_FILE})")
    values = json.loads(path.read_text())
    refused = [
        key for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out") if values.get(key)
    ]
    if values.get("peft_type") != "LORA" or values.get("bias", "none") != "none" or refused:
        raise WeightsError(f"{path}: only plain LoRA is supported; found peft_type {values.get('peft_type')}, {', '.join(refused)}")
    targets = values["target_modules"]
    text = targets if isinstance(targets, str) else " ".join(targets)
    return LoraConfig(rank=values["r"], alpha=values["lora_alpha"], targets="paper" if "ff" in text else "official")


def load_adapter(model: CogVideoXTransformer, folder: Path | str) -> LoraConfig:
    """Adds a saved adapter to the model in place, strictly; returns its settings.

    Raises WeightsError that names missing, unknown or misshapen keys.
    """
    config = read_adapter_config(folder)
    state = read_tensors(Path(folder), ADAPTER_FILE)
    add_lora(model, config)
    check_keys(state, lora_state(model), str(folder))
    with torch.no_grad():
        for key, target in lora_state(model).items():
            target.copy_(state[key])
    return config


@torch.no_grad()
def merge_lora(model: CogVideoXTransformer) -> CogVideoXTransformer:
    """Adds every adapter to its base weight in place, removes the adapters, and returns the model."""
    for name, layer in lora_layers(model).items():
        weight = layer.base.weight
        weight.copy_((weight.float() + layer.delta().to(weight.device)).to(weight.dtype))
        parent_name, _, child = name.rpartition(".")
        model.get_submodule(parent_name).register_module(child, layer.base)
    return model


# ---- Stage I on disk: an adapter and the base that it adapts ----------------------------------------------------


def save_base(folder: Path | str, config: TransformerConfig, weights: str | None) -> None:
    """Writes base.json: what the adapter beside it adapts, a folder of weights, or (None) `config.seed`'s random draw."""
    write_config(Path(folder), {"transformer": config.model_dump(mode="json"), "weights": weights}, "base.json")


def load_stage1(folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> CogVideoXTransformer:
    """Stage I ready to sample: base.json's model with the adapter beside it merged; or a fully fine-tuned folder.

    Raises WeightsError when files are missing or do not fit.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        return load_transformer(folder, device, dtype).eval().requires_grad_(False)
    base = read_config(folder, "base.json")
    config = TransformerConfig.model_validate_json(json.dumps(base["transformer"]))
    model = build_transformer(config, base["weights"], device, dtype)
    load_adapter(model, folder)
    return merge_lora(model).eval().requires_grad_(False)
