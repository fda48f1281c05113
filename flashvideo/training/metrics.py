"""What is watched in training: a line per logged train_step, and the loss on fixed held-out samples with fixed noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashvideo.objectives.batch import Batch
from flashvideo.training.engine import Engine
from flashvideo.whole_files import write_text


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
    stall_share: float
    """wait_seconds / seconds."""
    tokens_per_s: float
    """Of all ranks, text included."""
    teraflops_per_rank: float
    """Model FLOPs a second, attention counted, recomputation not."""
    mfu: float | None
    """Share of engine.watch.peak_teraflops."""
    peak_memory_gib: float | None
    """Of the first rank's GPU since the run began; None on a CPU."""
    modality: str


class LossLog:
    """losses.jsonl, or another list of train_steps, of one run of the loop; resuming cuts the lines after the checkpoint."""

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
    write_text(path, "".join(line + "\n" for line in lines))


@dataclass(frozen=True)
class Bin:
    """One fixed condition of the validation loss, e.g. a timestep."""

    name: str
    judge: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    """Per-sample loss (B,) and the clean latents that the prediction implies; the batch's generators only draw the noise."""
    extra: bool = False
    """Shown, but not in the mean."""


@dataclass(frozen=True)
class Validation:
    """Mean loss over fixed held-out samples, with fixed noise."""

    loss: float
    """Mean over the bins, without extra ones."""
    by_bin: Mapping[str, float]
    samples: int
    middle: str
    """The bin in which a collapse is looked for."""
    std_ratio: Mapping[str, float]
    """By bin: standard deviation of the implied clean latents over that of the true ones. A collapsed model's falls to 0,
    which the loss does not show."""
    sharpness_ratio: Mapping[str, float]
    """By bin: mean absolute difference between neighbours in height and width, over truth's."""

    def collapsed(self, below: float) -> str | None:
        """What the middle bin says of a collapse, or None."""
        spread, sharpness = self.std_ratio[self.middle], self.sharpness_ratio[self.middle]
        if min(spread, sharpness) >= below:
            return None
        return (
            f"the outputs collapse: at {self.middle} the clean estimates have {spread:.2f} of truth's spread and {sharpness:.2f} of its "
            f"sharpness (engine.watch.collapse_below = {below:g}); a larger batch or pretrained weights help, a lower loss does not show it"
        )


def sharpness(latents: Tensor) -> Tensor:
    """Mean absolute difference between neighbours in height and width, per sample: B T C H W to fp32 (B,)."""
    values = latents.float()
    return values.diff(dim=-1).abs().flatten(1).mean(1) + values.diff(dim=-2).abs().flatten(1).mean(1)


def validate(engine: Engine, batches: Callable[[], Sequence[Batch]], bins: Sequence[Bin]) -> Validation:
    """The validation loss; every rank calls it and gets it. `batches` gives one-sample batches with fresh generators.

    Samples go to the ranks in turn; a rank without one left repeats the last, uncounted, since ZeRO-3 needs every
    rank in every forward.
    """
    ranks = engine.ranks
    rows, outputs = [], []
    count = len(batches())
    if count == 0:
        raise ValueError("validation has no samples")
    with torch.no_grad():
        for entry in bins:
            own = batches()
            for turn in range(-(-count // ranks.size)):
                batch = own[min(turn * ranks.size + ranks.rank, count - 1)].to(ranks.device, engine.dtype)
                losses, implied = entry.judge(engine.model, batch)
                rows.append(losses.float().cpu())
                both = (implied, batch.clean)
                outputs += [sharpness(latents) for latents in both] + [latents.float().flatten(1).std(1) for latents in both]

    def by_bin(own: list[Tensor], values: int) -> Tensor:
        """(bins, values), the mean over the samples of what every rank measured."""
        gathered = ranks.gather_equal(torch.cat([entry.cpu() for entry in own])).view(ranks.size, len(bins), -1, values)
        return gathered.permute(1, 3, 2, 0).flatten(2)[..., :count].mean(2)

    means = by_bin(rows, 1)[:, 0]
    measured = by_bin(outputs, 4)
    names = [entry.name for entry in bins]
    main = [place for place, entry in enumerate(bins) if not entry.extra]
    return Validation(
        means[main].mean().item(),
        dict(zip(names, means.tolist(), strict=True)),
        count,
        names[main[len(main) // 2]],
        std_ratio=dict(zip(names, (measured[:, 2] / measured[:, 3]).tolist(), strict=True)),
        sharpness_ratio=dict(zip(names, (measured[:, 0] / measured[:, 1]).tolist(), strict=True)),
    )
