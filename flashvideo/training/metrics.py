"""What is watched in training: a line per logged train_step, and the loss on fixed held-out samples with fixed noise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashvideo.objectives.batch import Batch
from flashvideo.training.engine import Engine


@dataclass(frozen=True)
class StepRecord:
    """One line of losses.jsonl."""

    stage: int
    phase: str
    train_step: int
    """train_steps done, this one included."""
    loss: float
    """Mean over the global batch."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    seconds: float
    """Of the whole train_step."""
    wait_seconds: float
    """Of it, spent waiting for the batch."""
    modality: str


class LossLog:
    """losses.jsonl or faults.jsonl of one run of the loop; resuming cuts the lines after the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, train_step: int) -> None:
        """Keeps the lines up to a train_step (0: none). A last line that a kill cut short goes too."""
        kept = [json.dumps(record) for record in read_losses(self.path) if record["train_step"] <= train_step]
        write_lines(self.path, kept)

    def append(self, record: Mapping[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")


def read_losses(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a losses.jsonl; none where it does not exist."""
    if not path.is_file():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """A text file, written beside and renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    beside.write_text("".join(line + "\n" for line in lines))
    os.replace(beside, path)


@dataclass(frozen=True)
class Bin:
    """One fixed condition of the validation loss, e.g. a timestep."""

    name: str
    losses: Callable[[nn.Module, Batch], Tensor]
    """Per-sample loss (B,); the batch's generators only draw the noise."""


@dataclass(frozen=True)
class Validation:
    """Mean loss over fixed held-out samples, with fixed noise."""

    loss: float
    """Mean over the bins."""
    by_bin: Mapping[str, float]
    samples: int


def validate(engine: Engine, batches: Callable[[], Sequence[Batch]], bins: Sequence[Bin]) -> Validation:
    """The validation loss; every rank calls it and gets it. `batches` gives one-sample batches with fresh generators.

    Samples go to the ranks in turn; a rank without one left repeats the last, uncounted, since ZeRO-3 needs every
    rank in every forward.
    """
    ranks = engine.ranks
    rows = []
    count = len(batches())
    if count == 0:
        raise ValueError("validation has no samples")
    with torch.no_grad():
        for entry in bins:
            own = batches()
            for turn in range(-(-count // ranks.size)):
                batch = own[min(turn * ranks.size + ranks.rank, count - 1)]
                rows.append(entry.losses(engine.model, batch.to(ranks.device, engine.dtype)).float().cpu())
    gathered = ranks.gather_equal(torch.cat(rows)).view(ranks.size, len(bins), -1)
    means = gathered.permute(1, 2, 0).flatten(1)[:, :count].mean(1)
    return Validation(means.mean().item(), {entry.name: value.item() for entry, value in zip(bins, means, strict=True)}, count)
