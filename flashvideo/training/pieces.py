"""Trained weights and their optimizer state on disk, in a form that knows nothing of ranks or ZeRO stages.

Every rank writes the pieces that it holds, each a run of one flattened parameter: key `<kind>:<parameter>:<start>`.
A rank that loads asks for the runs that it holds now, wherever they lie; so a checkpoint of N ranks is continued by
any number, at any ZeRO stage, bit for bit. (DeepSpeed's own files are bound to both; its universal form needs a
conversion that writes one folder a parameter.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

PATTERN = "state-*.safetensors"


class PieceError(RuntimeError):
    """The pieces of a checkpoint do not make up the weights that are asked for."""


@dataclass(frozen=True)
class Piece:
    """A run of one trained parameter that this rank holds."""

    name: str
    """Of the parameter."""
    start: int
    """First element, of the flattened parameter."""
    tensors: Mapping[str, Tensor]
    """Kind (weight, exp_avg, exp_avg_sq, ema) -> 1-D fp32 view, all of one length."""

    def copied(self) -> Piece:
        """As it is now, in this machine's memory."""
        copies = {kind: torch.empty_like(tensor, device="cpu").copy_(tensor.detach()) for kind, tensor in self.tensors.items()}
        return Piece(self.name, self.start, copies)


def write_pieces(folder: Path, rank: int, pieces: Iterable[Piece], updates: int) -> None:
    """This rank's file; `updates`: AdamW steps done. Raises OSError where the disk does not take it.

    A safetensors file, written tensor by tensor: the library's writer holds all of it in memory beside the tensors, and
    names no operating system's error.
    """
    tensors = {f"{kind}:{piece.name}:{piece.start}": tensor.detach() for piece in pieces for kind, tensor in piece.tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"updates": str(updates)}}
    end = 0
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.ndim == 1, key
        begin, end = end, end + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"state-{rank:05d}.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.cpu().contiguous().numpy().data)


class PieceFolder:
    """The pieces of a folder, whoever wrote them."""

    def __init__(self, folder: Path) -> None:
        """Raises PieceError where there are none, or where files of different moments lie together."""
        self.folder = folder
        self._runs: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        """(kind, parameter) -> first element, the one after the last, the open file, the key in it."""
        updates = set()
        for path in sorted(folder.glob(PATTERN)):
            file = safe_open(path, framework="pt")
            updates.add(int(file.metadata()["updates"]))
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, name, start = key.split(":")
                length = file.get_slice(key).get_shape()[0]
                self._runs.setdefault((kind, name), []).append((int(start), int(start) + length, file, key))
        if len(updates) != 1:
            raise PieceError(f"checkpoint {folder}: the files {PATTERN} are of {len(updates)} moments {sorted(updates)}; need 1")
        self.updates = updates.pop()
        """AdamW steps done."""

    def names(self, kind: str) -> set[str]:
        """Parameters of which there are pieces of that kind."""
        return {name for entry, name in self._runs if entry == kind}

    def fill(self, piece: Piece) -> None:
        """Copies the piece's run of every kind into its tensors. Raises PieceError where a part of it is missing."""
        for kind, target in piece.tensors.items():
            end, filled = piece.start + target.numel(), 0
            for first, last, file, key in self._runs.get((kind, piece.name), []):
                low, high = max(first, piece.start), min(last, end)
                if low < high:
                    part = file.get_slice(key)[low - first : high - first]
                    target.data[low - piece.start : high - piece.start].copy_(part)
                    filled += high - low
            if filled != target.numel():
                raise PieceError(
                    f"checkpoint {self.folder} holds {filled} of {target.numel()} numbers of {kind} of {piece.name} from {piece.start} on; "
                    "it was written by another model or with other settings"
                )
