"""Folders of weights in diffusers' layout: config.json beside one or several safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvideo.errors import WeightsError as WeightsError
from flashvideo.whole_files import write_text, writing


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a folder."""
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"no file {path}; want a folder of weights ({name} and *.safetensors)")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def weight_paths(folder: Path, name: str) -> list[Path]:
    """The safetensors file `name`, or the shards that `name`.index.json lists."""
    index = folder / f"{name}.index.json"
    if index.is_file():
        paths = [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        paths = [folder / name]
    for path in paths:
        if not path.is_file():
            raise WeightsError(f"no file {path}; want weights in safetensors form")
    return paths


def read_tensors(folder: Path, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors of a folder by key, each cast as it is read, so that memory holds one copy. Raises WeightsError."""
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    for path in weight_paths(folder, name):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    tensor = file.get_tensor(key)
                    state[key] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        except SafetensorError as error:
            raise WeightsError(f"{path} is no whole safetensors file ({error}); copy it again") from None
    return state


def write_folder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, config_name: str = "config.json") -> None:
    """Weights, then config.json, each written beside and renamed: a folder with config.json is complete."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / name) as beside:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, beside, metadata={"format": "pt"})
    write_config(folder, config, config_name)


def write_config(folder: Path, values: Mapping[str, Any], name: str = "config.json") -> None:
    """A JSON file, written beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")


def check_keys(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raises WeightsError that names every missing, unknown and misshapen key (the first five of each)."""
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {tuple(state[key].shape)} (want {tuple(wanted[key].shape)})"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(f"{source} does not fit the model: {'; '.join(problems)}")


def state_identity(*facts: Any, state: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over the facts and every tensor's key, shape and bytes."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def folder_identity(*facts: Any, paths: list[Path]) -> str:
    """First 16 hex digits of a SHA-256 over the facts and, for every file, its name, size, first and last MiB.

    The whole of a 10 GB encoder would take a minute to hash at every start; safetensors files begin with their table of
    tensors, so different weights of one shape differ in the parts that are read unless only their middle differs.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:16]
