"""The one training loop of both stages: batches -> objective -> backward -> step, checkpointed and resumable.

What differs between stages and phases comes in: the objective at a train_step, the batches, the settings. All that a
train_step draws is derived from its number (training/batches.py), so a checkpoint is weights, optimizer state and
that number, and a resumed run makes the same losses and weights as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashvideo.config import EngineConfig, OptimizerConfig
from flashvideo.objectives.batch import Objective
from flashvideo.training.batches import BatchReader
from flashvideo.training.checkpoints import Checkpoint, Checkpoints
from flashvideo.training.engine import Engine
from flashvideo.training.metrics import LossLog, StepRecord

log = logging.getLogger("flashvideo")

Progress = Callable[[int, int, str, str], None]
"""(done, total, unit, note)."""


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the message names the samples."""


@dataclass(frozen=True)
class Loop:
    """One run of the loop: Stage I, or one phase of Stage II."""

    stage: int
    phase: str
    iterations: int
    folder: Path
    """Holds checkpoints/ and losses.jsonl."""
    objective_at: Callable[[int], Objective]
    """The objective of a train_step; Stage II's noise range changes within a phase."""
    reader: BatchReader
    optimizer: OptimizerConfig
    config: EngineConfig

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", self.config.keep_checkpoints)

    def newest(self) -> Checkpoint | None:
        """Where this run would go on."""
        return self.checkpoints.newest()

    def run(self, engine: Engine, progress: Progress) -> None:
        """Trains from the newest checkpoint, or from the engine's present state, to the last train_step, and saves it.

        Raises NonFiniteLossError on every rank.
        """
        ranks = engine.ranks
        first = self._resume(engine)
        losses = LossLog(self.folder / "losses.jsonl")
        if ranks.is_first:
            losses.resume(first)
        for train_step in range(first, self.iterations):
            record = self._train_step(engine, train_step)
            done = train_step + 1
            if ranks.is_first:
                if done % self.config.log_every == 0 or done == self.iterations:
                    losses.append(record)
                progress(done, self.iterations, "train_steps", f"{self.phase}, loss {record.loss:.4f}")
            if done % self.config.checkpoint_every == 0 or done == self.iterations:
                self._save(engine, done)

    def _resume(self, engine: Engine) -> int:
        """Loads the newest checkpoint, the same on every rank; returns the train_steps done."""
        ranks = engine.ranks
        newest = None
        if ranks.is_first:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clear_parts()
            newest = self.newest()
        newest = ranks.gather(newest)[0]
        if newest is None:
            if ranks.is_first:
                self._say("starts")
            return 0
        engine.load(newest.folder)
        if ranks.is_first:
            self._say(f"goes on after train_step {newest.train_step} of {self.iterations}")
        train_step: int = newest.train_step
        return train_step

    def _say(self, what: str) -> None:
        log.info("Stage %s, %s: %s", "I" * self.stage, self.phase, what)

    def _save(self, engine: Engine, done: int) -> None:
        checkpoints = self.checkpoints
        engine.save(checkpoints.part(done))
        if engine.ranks.is_first:
            checkpoints.commit(done, {"stage": self.stage, "phase": self.phase, "num_ranks": engine.ranks.size})
        engine.ranks.barrier()

    def _train_step(self, engine: Engine, train_step: int) -> StepRecord:
        begin = time.monotonic()
        batches = self.reader.micro_batches(train_step)
        waited = time.monotonic() - begin
        objective = self.objective_at(train_step)
        per_sample: list[Tensor] = []
        for number, batch in enumerate(batches):
            loss = objective.losses(engine.model, batch.to(engine.ranks.device, engine.dtype))
            per_sample.append(loss.detach().float())
            engine.backward(loss.mean() / len(batches), last=number == len(batches) - 1)
        everyone = engine.ranks.gather_equal(torch.cat(per_sample))
        self._check_finite(everyone, train_step)
        learning_rate = scheduled_rate(self.optimizer, train_step, self.iterations)
        grad_norm = engine.step(learning_rate)
        return StepRecord(
            self.stage,
            self.phase,
            train_step + 1,
            everyone.mean().item(),
            grad_norm,
            learning_rate,
            time.monotonic() - begin,
            waited,
            self.reader.order.modality(train_step),
        )

    def _check_finite(self, losses: Tensor, train_step: int) -> None:
        """`losses`: per sample, by place in the global batch, all ranks'."""
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        if bad:
            ids = self.reader.sample_ids(train_step)
            named = ", ".join(f"{ids[place]} ({losses[place].item()})" for place in bad[:8])
            raise NonFiniteLossError(
                f"Stage {'I' * self.stage}, {self.phase}, train_step {train_step + 1}: {len(bad)} of {len(ids)} losses are not finite: "
                f"{named}. Look at these samples, or lower optimizer.learning_rate"
            )


def scheduled_rate(optimizer: OptimizerConfig, train_step: int, iterations: int) -> float:
    """Learning rate of a train_step: linear warm-up, then constant, or down to a tenth along a cosine by the end."""
    if train_step < optimizer.warmup_steps:
        return optimizer.learning_rate * (train_step + 1) / (optimizer.warmup_steps + 1)
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    share = (train_step - optimizer.warmup_steps) / max(1, iterations - optimizer.warmup_steps)
    return optimizer.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
