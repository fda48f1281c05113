"""TensorBoard scalars of one run of the loop, on the first rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Scalars:
    """Writes to a folder of event files; does nothing where `folder` is None."""

    def __init__(self, folder: Path | None, train_step: int) -> None:
        """Scalars after `train_step` of an earlier attempt are hidden. Raises RuntimeError without the tensorboard package."""
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RuntimeError("engine.watch.tensorboard needs the package tensorboard; install it or set it to false") from error
        self._writer = SummaryWriter(str(folder), purge_step=train_step + 1)

    def add(self, train_step: int, group: str, values: Mapping[str, float]) -> None:
        """`<group>/<name>` at a train_step (counted from 1, as in losses.jsonl)."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, train_step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
