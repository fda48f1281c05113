"""Networks of the user's own: a Python file with a function for each, named by the field of Networks that it fills.

    def detector(device):            # torch.device
        from mine import Grit        # here, so that looking (--dry-run) loads nothing
        return Grit("grit.pth", device)

What it returns is called as interfaces.py says, and has `name`, `identity` (of the weights: it enters every stored score's
key) and `is_stand_in`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.evaluation.networks.interfaces import Networks

if TYPE_CHECKING:
    import torch

Builder = Callable[["torch.device"], Any]
FIELDS = tuple(item.name for item in fields(Networks) if item.name != "absent")
SAYS_WHO_IT_IS = ("name", "identity", "is_stand_in")


def own_builders(path: Path) -> dict[str, Builder]:
    """The file's functions by field of Networks. Raises ValueError for a file that cannot be run or has none."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise ValueError(f"{path} cannot be run: {_said(error)}") from None
    found = {name: value for name in FIELDS if callable(value := getattr(module, name, None))}
    if not found:
        raise ValueError(f"{path} has no function named as a network: {', '.join(FIELDS)}")
    return found


def build_own(path: Path, device: torch.device, wanted: Collection[str]) -> dict[str, Any]:
    """The file's networks among `wanted`. Raises ValueError where one cannot be built or does not say who it is."""
    built: dict[str, Any] = {}
    for name, build in own_builders(path).items():
        if name not in wanted:
            continue
        try:
            built[name] = build(device)
        except Exception as error:  # whatever the user's file raises
            raise ValueError(f"{path}: {name} cannot be built: {_said(error)}") from None
        lacking = [one for one in SAYS_WHO_IT_IS if not hasattr(built[name], one)]
        if lacking:
            raise ValueError(f"{path}: what {name} returns has no {', '.join(lacking)}; every score is kept under who gave it")
    return built


def _said(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
