"""What one run of the loop leaves to look at: losses, faults, validations, scalars, the share of time stalled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flashvideo.config import EngineConfig, WatchConfig
from flashvideo.training.metrics import LossLog, StepRecord, Validation
from flashvideo.training.scalars import Scalars

log = logging.getLogger("flashvideo")

SHOWN = ("loss", "grad_norm", "learning_rate", "seconds", "stall_share", "tokens_per_s", "teraflops_per_rank", "mfu", "peak_memory_gib")
"""Of a StepRecord, as scalars."""


class Watcher:
    """The first rank's files; the other ranks' does nothing."""

    def __init__(self, folder: Path, config: EngineConfig, train_step: int, is_first: bool, about: Mapping[str, Any]) -> None:
        """`train_step`: done; lines after it, of an attempt that was killed, are cut. `about`: for a list of runs."""
        self.config, self._is_first = config, is_first
        names = ("losses", "faults", "validations", "degradations")
        self._losses, self._faults, self._validations, self._degradations = (LossLog(folder / f"{name}.jsonl") for name in names)
        self._seconds = self._waited = 0.0
        if is_first:
            self._faults.resume(train_step)
            self._cut(train_step)
        self._scalars = Scalars(folder, config.watch if is_first else WatchConfig(), train_step, about)

    def step(self, record: StepRecord, last: bool) -> None:
        self._seconds += record.seconds
        self._waited += record.wait_seconds
        if self._is_first and (last or record.train_step % self.config.log_every == 0):
            self._losses.append(asdict(record))
            measured = {name: value for name, value in asdict(record).items() if name in SHOWN and value is not None}
            self._scalars.add(record.train_step, "train", measured)

    def fault(self, train_step: int, fault: str) -> None:
        if self._is_first:
            self._faults.append({"train_step": train_step, "policy": self.config.spikes.policy, "fault": fault})

    def degradations(self, train_step: int, drawn: Sequence[Mapping[str, Any]]) -> None:
        """How the samples of a train_step were degraded, by place, where that was drawn on reading."""
        if self._is_first:
            self._degradations.append({"train_step": train_step, "samples": drawn})

    def rewind(self, train_step: int) -> None:
        """What came after that train_step is done anew or left out."""
        if self._is_first:
            self._cut(train_step)

    def _cut(self, train_step: int) -> None:
        for lines in (self._losses, self._validations, *([self._degradations] if self._degradations.path.is_file() else [])):
            lines.resume(train_step)

    def validation(self, train_step: int, validation: Validation) -> None:
        """Also warns of a collapse."""
        if not self._is_first:
            return
        collapsed = validation.collapsed(self.config.watch.collapse_below)
        if collapsed:
            log.warning("train_step %d: %s", train_step, collapsed)
        self._validations.append({"train_step": train_step, "collapsed": collapsed, **asdict(validation)})
        self._scalars.add(train_step, "validation", {"loss": validation.loss, **validation.by_bin})
        self._scalars.add(train_step, "std_ratio", validation.std_ratio)
        self._scalars.add(train_step, "sharpness_ratio", validation.sharpness_ratio)

    def summary(self) -> str:
        share = self._waited / self._seconds if self._seconds else 0.0
        return f"waited for batches {share:.1%} of {self._seconds:.1f} s in train_steps, {self.config.loader_workers} loader workers"

    def close(self) -> None:
        self._scalars.close()
