"""The released checkpoints' names <-> diffusers' layout, strictly and bit for bit.

stage1.pt and stage2.pt hold {"module": {...}} with SwissArmyTransformer (SAT) names, 3d-vae.pt {"state_dict": {...}}.
Every key is in a table here or on a drop list; any other is an error that names it. Tensors stay memory mapped and are
written one at a time, so a conversion needs little memory beside the largest tensor.
Source: the released code's module names and CogVideo's tools/convert_weight_sat2hf.py.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvideo.config import LoraConfig, TransformerConfig
from flashvideo.models.lora import ADAPTER_FILE, PEFT_PREFIX, add_lora, lora_state, peft_config, read_adapter_config
from flashvideo.models.transformer import (
    DROPPED_KEYS,
    EXTRA_EMBEDDINGS,
    WEIGHTS_FILE,
    CogVideoXTransformer,
    config_from_diffusers,
    diffusers_config,
    to_diffusers,
)
from flashvideo.models.weight_files import WeightsError, read_config, read_tensors, weight_paths, write_config
from flashvideo.whole_files import writing

log = logging.getLogger("flashvideo")

SAT_PREFIX = "model.diffusion_model."

DROPPED = (
    re.compile(r"transformer\.position_embeddings\.weight"),
    re.compile(r"mixins\.pos_embed\.freqs_(sin|cos)"),
)
"""Transformer keys without a use: SAT's 64-entry table that no forward reads, and cached rotary tables."""

VAE_DROPPED = (re.compile(r"loss\..*"),)
"""3d-vae.pt also carries the discriminator and LPIPS of its training."""


@dataclass(frozen=True)
class Rename:
    """One released tensor, cut along its first axis into `chunks` equal parts, and where the parts go.

    `targets`: diffusers' name -> the parts that make it, in order. A part may go to several targets (`shared`: all of
    them get the whole tensor, and must still be equal on the way back).
    """

    released: str
    targets: tuple[tuple[str, tuple[int, ...]], ...]
    chunks: int = 1
    shared: bool = False

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """The targets' tensors."""
        if len(tensor) % self.chunks:
            raise WeightsError(f"{self.released} has {len(tensor)} rows, which do not divide by {self.chunks}")
        parts = tensor.chunk(self.chunks) if self.chunks > 1 else (tensor,)
        return {name: parts[places[0]] if len(places) == 1 else torch.cat([parts[p] for p in places]) for name, places in self.targets}

    def join(self, state: Mapping[str, Tensor]) -> Tensor:
        """The released tensor of the targets' tensors; inverse of `split`."""
        if self.shared:
            first, *others = (state[name] for name, _ in self.targets)
            if any(not torch.equal(first, other) for other in others):
                names = " and ".join(name for name, _ in self.targets)
                raise WeightsError(f"{names} differ, but the released layout has one {self.released}; merge the adapter before exporting")
            return first
        if self.chunks == 1:
            return state[self.targets[0][0]]
        parts: dict[int, Tensor] = {}
        for name, places in self.targets:
            parts.update(zip(places, state[name].chunk(len(places)), strict=True))
        return torch.cat([parts[place] for place in range(self.chunks)])


def _plain(released: str, ours: str, leaves: Iterable[str] = ("weight", "bias")) -> Iterator[Rename]:
    for leaf in leaves:
        yield Rename(f"{released}.{leaf}", ((f"{ours}.{leaf}", (0,)),))


QKV = (("attn1.to_q", (0,)), ("attn1.to_k", (1,)), ("attn1.to_v", (2,)))
ADALN = (("norm1.linear", (0, 1, 2, 6, 7, 8)), ("norm2.linear", (3, 4, 5, 9, 10, 11)))
"""Twelve chunks: shift, scale, gate of attention and FFN for video, then for text."""


def transformer_table(config: TransformerConfig, lora: bool) -> list[Rename]:
    """Every released key of a transformer. With `lora`, the wrapped linears keep their weights under `.original`."""
    table = [
        *_plain("mixins.patch_embed.proj", "patch_embed.proj"),
        *_plain("mixins.patch_embed.text_proj", "patch_embed.text_proj"),
        *_plain("transformer.final_layernorm", "norm_final"),
        *_plain("mixins.final_layer.norm_final", "norm_out.norm"),
        *_plain("mixins.final_layer.adaLN_modulation.1", "norm_out.linear"),
        *_plain("mixins.final_layer.linear", "proj_out"),
    ]
    scalars = [("time_embed", "time_embedding")]
    scalars += [("ref_step_time_embedding", "noise_strength_embedding")] if config.noise_strength_embedding else []
    scalars += [("time_size_embedding", "num_frames_embedding")] if config.num_frames_embedding else []
    for released, ours in scalars:
        table += [*_plain(f"{released}.0", f"{ours}.linear_1"), *_plain(f"{released}.2", f"{ours}.linear_2")]
    for layer in range(config.num_layers):
        table += _block_table(layer, ".original" if lora else "")
    return table


def _block_table(layer: int, wrapped: str) -> list[Rename]:
    released, ours = f"transformer.layers.{layer}", f"transformer_blocks.{layer}"
    adaln = f"mixins.adaln_layer.adaLN_modulations.{layer}.1{wrapped}"
    table = [
        *_plain(f"{released}.input_layernorm", f"{ours}.norm1.norm"),
        *_plain(f"{released}.post_attention_layernorm", f"{ours}.norm2.norm"),
        *_plain(f"{released}.attention.dense{wrapped}", f"{ours}.attn1.to_out.0"),
        *_plain(f"{released}.mlp.dense_h_to_4h", f"{ours}.ff.net.0.proj"),
        *_plain(f"{released}.mlp.dense_4h_to_h", f"{ours}.ff.net.2"),
        *_plain(f"mixins.adaln_layer.query_layernorm_list.{layer}", f"{ours}.attn1.norm_q"),
        *_plain(f"mixins.adaln_layer.key_layernorm_list.{layer}", f"{ours}.attn1.norm_k"),
    ]
    for leaf in ("weight", "bias"):
        qkv = tuple((f"{ours}.{name}.{leaf}", places) for name, places in QKV)
        table.append(Rename(f"{released}.attention.query_key_value{wrapped}.{leaf}", qkv, chunks=3))
        table.append(Rename(f"{adaln}.{leaf}", tuple((f"{ours}.{name}.{leaf}", places) for name, places in ADALN), chunks=12))
    return table


def adapter_table(num_layers: int) -> list[Rename]:
    """Every released LoRA key -> peft's. One A serves both halves of the adaptive norm; B splits like the weight."""
    table: list[Rename] = []
    for layer in range(num_layers):
        attention, ours = f"transformer.layers.{layer}.attention", f"{PEFT_PREFIX}transformer_blocks.{layer}"
        adaln = f"mixins.adaln_layer.adaLN_modulations.{layer}.1"
        for letter, released in (("A", "matrix_A"), ("B", "matrix_B")):
            for part, (name, _) in enumerate(QKV):
                table.append(Rename(f"{attention}.query_key_value.{released}.{part}", ((f"{ours}.{name}.lora_{letter}.weight", (0,)),)))
            table.append(Rename(f"{attention}.dense.{released}.0", ((f"{ours}.attn1.to_out.0.lora_{letter}.weight", (0,)),)))
        both = tuple((f"{ours}.{name}.lora_A.weight", (0,)) for name, _ in ADALN)
        table.append(Rename(f"{adaln}.matrix_A.0", both, shared=True))
        table.append(Rename(f"{adaln}.matrix_B.0", tuple((f"{ours}.{name}.lora_B.weight", places) for name, places in ADALN), chunks=12))
    return table


# ---- the autoencoder: plain renames --------------------------------------------------------------------------------

_VAE_RULES = (
    (re.compile(r"^(encoder|decoder)\.mid\.block_([12])\."), lambda m: f"{m[1]}.mid_block.resnets.{int(m[2]) - 1}."),
    (re.compile(r"^encoder\.down\.(\d)\.block\.(\d)\."), lambda m: f"encoder.down_blocks.{m[1]}.resnets.{m[2]}."),
    (re.compile(r"^encoder\.down\.(\d)\.downsample\."), lambda m: f"encoder.down_blocks.{m[1]}.downsamplers.0."),
    (re.compile(r"^decoder\.up\.(\d)\.block\.(\d)\."), lambda m: f"decoder.up_blocks.{3 - int(m[1])}.resnets.{m[2]}."),
    (re.compile(r"^decoder\.up\.(\d)\.upsample\."), lambda m: f"decoder.up_blocks.{3 - int(m[1])}.upsamplers.0."),
    (re.compile(r"\.nin_shortcut\."), lambda m: ".conv_shortcut."),
)
_VAE_RULES_BACK = (
    (re.compile(r"^(encoder|decoder)\.mid_block\.resnets\.([01])\."), lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}."),
    (re.compile(r"^encoder\.down_blocks\.(\d)\.resnets\.(\d)\."), lambda m: f"encoder.down.{m[1]}.block.{m[2]}."),
    (re.compile(r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\."), lambda m: f"encoder.down.{m[1]}.downsample."),
    (re.compile(r"^decoder\.up_blocks\.(\d)\.resnets\.(\d)\."), lambda m: f"decoder.up.{3 - int(m[1])}.block.{m[2]}."),
    (re.compile(r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\."), lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),
    (re.compile(r"\.conv_shortcut\."), lambda m: ".nin_shortcut."),
)


def vae_name(released: str) -> str:
    """diffusers' name of a key of 3d-vae.pt."""
    for pattern, replacement in _VAE_RULES:
        released = pattern.sub(replacement, released)
    return released


def released_vae_name(name: str) -> str:
    """Inverse of `vae_name`."""
    for pattern, replacement in _VAE_RULES_BACK:
        name = pattern.sub(replacement, name)
    return name


def vae_table(names: Iterable[str]) -> list[Rename]:
    """The released keys of an autoencoder whose diffusers keys are `names`."""
    return [Rename(released_vae_name(name), ((name, (0,)),)) for name in names]


# ---- applying a table ----------------------------------------------------------------------------------------------


def rename_all(state: Mapping[str, Tensor], table: Iterable[Rename], source: str) -> Iterator[tuple[str, Tensor]]:
    """(diffusers' name, tensor) of every table entry, in the table's order.

    `state` must hold exactly the table's keys (drop lists are applied before). Raises WeightsError that names missing
    and unknown keys before anything is yielded.
    """
    entries = list(table)
    _check_names(set(state), {entry.released for entry in entries}, source)
    for entry in entries:
        yield from entry.split(state[entry.released]).items()


def restore_all(state: Mapping[str, Tensor], table: Iterable[Rename], source: str) -> Iterator[tuple[str, Tensor]]:
    """Inverse of `rename_all`: (released name, tensor)."""
    entries = list(table)
    _check_names(set(state), {name for entry in entries for name, _ in entry.targets}, source)
    for entry in entries:
        yield entry.released, entry.join(state)


def _check_names(have: set[str], want: set[str], source: str) -> None:
    problems = []
    for what, names in (("missing", sorted(want - have)), ("unknown", sorted(have - want))):
        if names:
            problems.append(f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    if problems:
        raise WeightsError(f"{source} is not a checkpoint of the expected kind: {'; '.join(problems)}")


def without_dropped(state: Mapping[str, Tensor], dropped: Iterable[re.Pattern[str]]) -> dict[str, Tensor]:
    """The state without keys on a drop list."""
    patterns = list(dropped)
    return {key: value for key, value in state.items() if not any(pattern.fullmatch(key) for pattern in patterns)}


# ---- files ---------------------------------------------------------------------------------------------------------


def load_released(path: Path) -> dict[str, Any]:
    """The content of a .pt file, tensors memory mapped. Raises WeightsError when it is no such file."""
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not a checkpoint of torch.save with tensors only: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; want a dictionary with module or state_dict")
    return content


def read_released(path: Path, entry: str, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a released .pt file, memory mapped, without their common prefix.

    Raises WeightsError when the file, its entry or the prefix of some keys is not there.
    """
    content = load_released(path)
    if entry not in content:
        raise WeightsError(f"{path} has no entry {entry!r}; it has {', '.join(map(str, content))}")
    state: dict[str, Tensor] = content[entry]
    strangers = [key for key in state if not key.startswith(prefix)]
    if strangers:
        raise WeightsError(f"{path}: {len(strangers)} keys do not begin with {prefix!r}: {', '.join(strangers[:5])}")
    return {key[len(prefix) :]: value for key, value in state.items()}


_SAFETENSORS_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def write_safetensors(path: Path, tensors: Iterator[tuple[str, Tensor]], plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    """A safetensors file written tensor by tensor, beside and renamed. `plan`: dtype and shape of every name.

    safetensors' own writer wants every tensor in memory at once. Raises WeightsError when a tensor is not as planned.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in plan.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as beside, open(beside, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + offset)
        written = set()
        for name, tensor in tensors:
            if plan.get(name) != (tensor.dtype, tuple(tensor.shape)):
                raise WeightsError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, but {plan.get(name)} was planned")
            file.seek(start + header[name]["data_offsets"][0])
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            written.add(name)
        if len(written) != len(plan):
            raise WeightsError(f"{path}: {', '.join(sorted(set(plan) - written)[:5])} were planned but not made")


def _planned(state: Mapping[str, Tensor], table: Iterable[Rename]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of what a table makes of a state, without reading the tensors."""
    plan = {}
    for entry in table:
        tensor = state[entry.released]
        for name, places in entry.targets:
            rows = len(tensor) if entry.chunks == 1 else len(tensor) // entry.chunks * len(places)
            plan[name] = (tensor.dtype, (rows, *tensor.shape[1:]))
    return plan


def _write_renamed(path: Path, state: Mapping[str, Tensor], table: list[Rename], source: str) -> None:
    renamed = rename_all(state, table, source)
    first = next(renamed)  # runs the check of the names
    plan = _planned(state, table)

    def every() -> Iterator[tuple[str, Tensor]]:
        yield first
        yield from renamed

    write_safetensors(path, every(), plan)


def transformer_config_of(state: Mapping[str, Tensor], lora: bool, source: str) -> TransformerConfig:
    """Sizes read off a released transformer's tensors (prefix and dropped keys removed). Head dimension is 64.

    A size that several tensors state is the one that most of them do, so that a misshapen tensor is found out, not
    believed. Raises WeightsError when no tensor states it.
    """
    layers = {match[1] for key in state if (match := re.match(r"transformer\.layers\.(\d+)\.", key))}
    norms = [key for key in state if re.fullmatch(r"transformer\.(layers\.\d+\.\w+|final)_?layernorm\.(weight|bias)", key)]
    hidden = _size(state, norms, 0, "transformer.final_layernorm.weight", source)
    times = [f"time_embed.{place}.{leaf}" for place in (0, 2) for leaf in ("weight", "bias")]
    patch_key, text_key = "mixins.patch_embed.proj.weight", "mixins.patch_embed.text_proj.weight"
    return TransformerConfig(
        flavour="5b" if lora or len(layers) == 42 else "2b",
        num_layers=len(layers),
        num_attention_heads=hidden // 64,
        in_channels=_size(state, [patch_key], 1, patch_key, source),
        patch_size=_size(state, [patch_key], 2, patch_key, source),
        text_embed_dim=_size(state, [text_key], 1, text_key, source),
        time_embed_dim=_size(state, times, 0, times[0], source),
        noise_strength_embedding=any(key.startswith("ref_step_time_embedding.") for key in state),
        num_frames_embedding=any(key.startswith("time_size_embedding.") for key in state),
    )


def _size(state: Mapping[str, Tensor], keys: Iterable[str], axis: int, wanted: str, source: str) -> int:
    """The length along `axis` that most of the tensors have. Raises WeightsError that names `wanted` when there is none."""
    sizes = Counter(state[key].shape[axis] for key in keys if key in state and state[key].ndim > axis)
    if not sizes:
        raise WeightsError(f"{source} is not a checkpoint of the expected kind: 1 missing: {wanted}")
    return sizes.most_common(1)[0][0]


TRANSFORMER = "transformer"
ADAPTER = "adapter"


def import_transformer(source: Path, folder: Path, part: str = TRANSFORMER) -> TransformerConfig:
    """stage1.pt or stage2.pt -> folder/<part>/ and, where the file has LoRA, folder/adapter/ (peft, alpha 1).

    Everything is checked before anything is written. Raises WeightsError that names missing, unknown and misshapen keys.
    """
    state = without_dropped(read_released(source, "module", SAT_PREFIX), DROPPED)
    adapters = {key: value for key, value in state.items() if _ADAPTER_KEY.search(key)}
    base = {key: value for key, value in state.items() if key not in adapters}
    config = transformer_config_of(base, bool(adapters), str(source))
    table = transformer_table(config, bool(adapters))
    _check_shapes(base, table, _wanted(config), str(source))
    rank = 0
    if adapters:
        _check_names(set(adapters), {entry.released for entry in adapter_table(config.num_layers)}, str(source))
        rank = _size(adapters, [key for key in adapters if ".matrix_A." in key], 0, "matrix_A", str(source))
        _check_shapes(adapters, adapter_table(config.num_layers), _wanted_adapter(config, rank), str(source))
    _write_renamed(folder / part / WEIGHTS_FILE, base, table, str(source))
    if adapters:
        _write_renamed(folder / ADAPTER / ADAPTER_FILE, adapters, adapter_table(config.num_layers), str(source))
        lora = LoraConfig(rank=rank, alpha=1.0, targets="official")
        write_config(folder / ADAPTER, peft_config(lora), "adapter_config.json")
    write_config(folder / part, diffusers_config(config))
    return config


_ADAPTER_KEY = re.compile(r"\.matrix_[AB]\.")


def _wanted(config: TransformerConfig) -> dict[str, torch.Size]:
    """diffusers' name -> shape of the network that the config describes."""
    with torch.device("meta"):
        return {name: value.shape for name, value in to_diffusers(CogVideoXTransformer(config).state_dict()).items()}


def _wanted_adapter(config: TransformerConfig, rank: int) -> dict[str, torch.Size]:
    """peft's name -> shape of the network's adapters."""
    with torch.device("meta"):
        model = add_lora(CogVideoXTransformer(config), LoraConfig(rank=rank, alpha=1.0, targets="official"))
    return {name: value.shape for name, value in lora_state(model).items()}


def _check_shapes(state: Mapping[str, Tensor], table: Iterable[Rename], wanted: Mapping[str, torch.Size], source: str) -> None:
    """Names first, then shapes, against what the targets must be."""
    entries = list(table)
    _check_names(set(state), {entry.released for entry in entries}, source)
    wrong = []
    for entry in entries:
        shapes = [wanted[name] for name, _ in entry.targets]
        want = (shapes[0][0] if entry.shared else sum(shape[0] for shape in shapes), *shapes[0][1:])
        if tuple(state[entry.released].shape) != want:
            wrong.append(f"{entry.released} {tuple(state[entry.released].shape)} (want {want})")
    if wrong:
        raise WeightsError(f"{source}: {len(wrong)} misshapen: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}")


def export_transformer(folder: Path, target: Path, part: str = TRANSFORMER) -> None:
    """Inverse of `import_transformer`: folder/<part>/ (and, for Stage I, folder/adapter/) -> a .pt with the released names.

    Raises WeightsError for an adapter that the released layout cannot hold (FFN, or untied adaptive norms): merge it first.
    """
    config = config_from_diffusers(read_config(folder / part), str(folder / part))
    if config.positions != "rope":
        raise WeightsError(f"{folder / part} has {config.positions} positions; the released code reads this layout with RoPE")
    lora = part == TRANSFORMER and (folder / ADAPTER).is_dir()
    state = read_tensors(folder / part, WEIGHTS_FILE)
    table = transformer_table(config, lora)
    if lora:
        if read_adapter_config(folder / ADAPTER).targets != "official":
            raise WeightsError(f"{folder / 'adapter'} adapts the FFN, which the released layout cannot hold; merge it before exporting")
        state.update(read_tensors(folder / ADAPTER, ADAPTER_FILE))
        table += adapter_table(config.num_layers)
    _export(state, table, str(folder), target, "module", SAT_PREFIX)


def import_vae(source: Path, folder: Path) -> None:
    """3d-vae.pt -> folder/vae/ with the released sizes. Imports diffusers for the list of keys."""
    from diffusers import AutoencoderKLCogVideoX

    state = without_dropped(read_released(source, "state_dict"), VAE_DROPPED)
    config = vae_config_of(state, str(source))
    with torch.device("meta"):
        wanted = AutoencoderKLCogVideoX(**config).state_dict()
    table = vae_table(wanted)
    _check_shapes(state, table, {name: value.shape for name, value in wanted.items()}, str(source))
    _write_renamed(folder / "vae" / WEIGHTS_FILE, state, table, str(source))
    write_config(folder / "vae", {"_class_name": "AutoencoderKLCogVideoX", **config})


def vae_config_of(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The sizes of diffusers' class, read off a released autoencoder's tensors (the size that most tensors state).

    Raises WeightsError when no tensor states one.
    """
    widths = []
    for level in range(4):
        keys = [key for key in state if re.fullmatch(rf"encoder\.down\.{level}\.block\.\d\.conv[12]\.conv\.(weight|bias)", key)]
        widths.append(_size(state, keys, 0, f"encoder.down.{level}.block.0.conv1.conv.weight", source))
    blocks = {match[1] for key in state if (match := re.match(r"encoder\.down\.\d\.block\.(\d)\.", key))}
    conditions = [key for key in state if re.fullmatch(r"decoder\.mid\.block_\d\.norm\d\.conv_[yb]\.conv\.weight", key)]
    latent = _size(state, conditions, 1, "decoder.mid.block_1.norm1.conv_y.conv.weight", source)
    groups = 32 if min(widths) >= 32 else min(widths)
    return {"block_out_channels": widths, "layers_per_block": len(blocks), "latent_channels": latent, "norm_num_groups": groups}


def import_cogvideox(source: Path, folder: Path, part: str) -> TransformerConfig:
    """A transformer folder of CogVideoX (diffusers' layout, sharded or not) -> folder/<part>/ as a starting point.

    5B (rotary) is Stage I's base, tensor for tensor. 2B becomes Stage II: its sincos buffer is dropped (RoPE takes its
    place), and the noise-strength and frame-count embeddings, which it lacks, start as copies of the time embedding with
    a zero last layer; both are logged. One tensor is in memory at a time. Raises WeightsError that names the keys.
    """
    from safetensors import safe_open

    values = read_config(source)
    config = config_from_diffusers(values, str(source))
    if config.positions == "sincos":
        config = config.model_copy(
            update={"flavour": "2b", "positions": "rope", "noise_strength_embedding": True, "num_frames_embedding": True}
        )
    files = [safe_open(path, framework="pt") for path in weight_paths(source, WEIGHTS_FILE)]
    where = {key: file for file in files for key in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
    for key in DROPPED_KEYS:
        if where.pop(key, None) is not None:
            log.info("%s: %s dropped, RoPE takes its place", source, key)
    wanted = _wanted(config)
    fresh = [key for key in wanted if key.startswith(EXTRA_EMBEDDINGS) and key not in where]
    if fresh:
        log.info("%s has no %s: initialised without effect", source, " and ".join(EXTRA_EMBEDDINGS))
    _check_names(set(where), set(wanted) - set(fresh), str(source))

    def tensor_of(key: str) -> Tensor:
        if key not in fresh:
            return where[key].get_tensor(key)
        template = "time_embedding." + key.split(".", 1)[1]
        copied: Tensor = where[template].get_tensor(template)
        return torch.zeros_like(copied) if ".linear_2." in key else copied

    plan, wrong = {}, []
    for key, shape in wanted.items():
        tensor = tensor_of(key)
        plan[key] = (tensor.dtype, tuple(shape))
        if tensor.shape != shape:
            wrong.append(f"{key} {tuple(tensor.shape)} (want {tuple(shape)})")
    if wrong:
        raise WeightsError(f"{source}: {len(wrong)} misshapen: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}")
    write_safetensors(folder / part / WEIGHTS_FILE, ((key, tensor_of(key)) for key in wanted), plan)
    write_config(folder / part, diffusers_config(config))
    return config


def export_vae(folder: Path, target: Path) -> None:
    """Inverse of `import_vae` (without the dropped loss)."""
    state = read_tensors(folder / "vae", WEIGHTS_FILE)
    _export(state, vae_table(state), str(folder / "vae"), target, "state_dict", "")


def _export(state: dict[str, Tensor], table: list[Rename], source: str, target: Path, entry: str, prefix: str) -> None:
    """Joins tensors one at a time into a safetensors file beside the target, then saves that, memory mapped, as .pt."""
    _check_names(set(state), {name for rename in table for name, _ in rename.targets}, source)
    plan = {}
    for rename in table:
        shapes = [state[name].shape for name, _ in rename.targets]
        rows = shapes[0][0] if rename.shared else sum(shape[0] for shape in shapes)
        plan[rename.released] = (state[rename.targets[0][0]].dtype, (rows, *shapes[0][1:]))
    joined = target.with_name(f".{target.name}.{os.getpid()}.joined.part")
    try:
        write_safetensors(joined, restore_all(state, table, source), plan)
        state.clear()
        released = {prefix + key: value for key, value in read_tensors(joined.parent, joined.name).items()}
        with writing(target) as beside:
            torch.save({entry: released}, beside)
    finally:
        joined.unlink(missing_ok=True)
