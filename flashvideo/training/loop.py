"""The one training loop of both stages: batches -> objective -> backward -> step, checkpointed and resumable.

What differs between stages and phases comes in: the objective at a train_step, the batches, the settings. All that a
train_step draws is derived from its number (training/batches.py), so a checkpoint is weights, optimizer state, that
number and what is known of faults, and a resumed run makes the same losses and weights as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvideo.config import EngineConfig, OptimizerConfig
from flashvideo.objectives.batch import Objective
from flashvideo.training.batches import BatchReader
from flashvideo.training.checkpoints import Checkpoint, CheckpointError, Checkpoints
from flashvideo.training.engine import Engine, Ranks
from flashvideo.training.faults import FaultGuard, TrainingFault
from flashvideo.training.metrics import StepRecord, Validation
from flashvideo.training.prefetch import Prefetcher
from flashvideo.training.saving import Saver
from flashvideo.training.watching import Watcher

log = logging.getLogger("flashvideo")

Progress = Callable[[int, int, str, str], None]
"""(done, total, unit, note)."""


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
    check: Callable[[Engine], Validation]
    """The validation, for engine.watch.validate_every."""
    show: Callable[[Engine, int], None] | None = None
    """Makes pictures after so many train_steps, for engine.watch.sample_every."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that every checkpoint names: the recipe and the dataset's tag."""

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", self.config.keep_checkpoints)

    def newest(self) -> Checkpoint | None:
        """Where this run would go on."""
        return self.checkpoints.newest()

    def run(self, engine: Engine, progress: Progress) -> None:
        """Trains from the newest checkpoint, or from the engine's present state, to the last train_step, and saves it.

        Raises TrainingFault on every rank, as `engine.spikes` says; CheckpointError where the last one cannot be written.
        """
        saver = Saver(self.checkpoints, engine, self._name, self.iterations, self.config.async_checkpoints)
        with saver, Prefetcher(self.reader, self.config.loader_workers, self.iterations) as loader:
            train_step, guard = self._resume(engine, saver)
            watcher = Watcher(self.folder, self.config, train_step, engine.ranks.is_first, self._about(engine))
            while train_step < self.iterations:
                outcome = None if train_step in guard.left_out else self._train_step(engine, train_step, guard, loader, watcher)
                done = train_step + 1
                if isinstance(outcome, TrainingFault):
                    self._say_first(engine, f"train_step {done}, {self.config.spikes.policy}: {outcome}")
                    watcher.fault(done, str(outcome))
                    if self.config.spikes.policy == "rewind":
                        saver.settle()
                        train_step = self._rewind(engine, guard, train_step)
                        watcher.rewind(train_step)
                        continue
                elif outcome is not None:
                    watcher.step(outcome, last=done == self.iterations)
                if engine.ranks.is_first:
                    note = f"loss {outcome.loss:.4f}" if isinstance(outcome, StepRecord) else "left out"
                    progress(done, self.iterations, "train_steps", f"{self.phase}, {note}")
                if self.config.watch.validate_every and done % self.config.watch.validate_every == 0:
                    watcher.validation(done, self.check(engine))
                if self.show is not None and (done % (self.config.watch.sample_every or self.iterations) == 0 or done == self.iterations):
                    self.show(engine, done)
                saver.poll()
                if done % self.config.checkpoint_every == 0 or done == self.iterations:
                    saver.save(done, self._facts(engine, guard))
                train_step = done
        watcher.close()
        self._say_first(engine, watcher.summary())

    def is_new(self, ranks: Ranks) -> bool:
        """Whether there is nothing to go on from; the same on every rank."""
        new: bool = ranks.gather(self.newest() is None if ranks.is_first else None)[0]
        return new

    def check_memory(self, engine: Engine) -> None:
        """A full micro-batch of each kind forward and backward, its gradient thrown away: what does not fit fails now.

        Raises MemoryError that names the batch.
        """
        order = self.reader.order
        kinds = {order.modality(train_step): train_step for train_step in reversed(range(order.images + order.videos))}
        for modality, train_step in sorted(kinds.items()):
            batch = self.reader.micro_batches(train_step)[0].to(engine.ranks.device, engine.dtype)
            said = f"{self._name}: a micro-batch of {len(batch.sample_ids)} {modality}s of {tuple(batch.clean.shape[1:])} latents"
            try:
                loss = self.objective_at(train_step).losses(engine.model, batch)
                engine.backward(loss.mean(), last=True, discard=True)
                engine.step(0.0)
            except torch.OutOfMemoryError as error:
                raise MemoryError(
                    f"{said} does not fit ({error}); lower engine.micro_batch_size, set engine.activation_checkpointing, or raise "
                    "engine.zero_stage"
                ) from error
            if engine.ranks.is_first:
                peak = engine.peak_memory_gib
                log.info("%s fits%s", said, "" if peak is None else f"; at most {peak:.1f} GiB so far")

    def _about(self, engine: Engine) -> dict[str, Any]:
        """What a run is listed with, where its scalars go to others."""
        facts = {"stage": self.stage, "phase": self.phase, "iterations": self.iterations, "num_ranks": engine.ranks.size}
        return facts | {"optimizer": self.optimizer.model_dump(mode="json"), "engine": self.config.model_dump(mode="json")}

    def _facts(self, engine: Engine, guard: FaultGuard) -> dict[str, Any]:
        """What stands in checkpoint.json beside the files. With the train_step, `order` gives every sample, bucket and draw to come."""
        facts = {"stage": self.stage, "phase": self.phase, "num_ranks": engine.ranks.size, "faults": guard.state()}
        return facts | {"order": asdict(self.reader.order), **self.provenance}

    def _resume(self, engine: Engine, saver: Saver) -> tuple[int, FaultGuard]:
        """Loads the newest checkpoint, the same on every rank; returns the train_steps done and what is known of faults."""
        ranks = engine.ranks
        if ranks.is_first:
            self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clear_parts()
        newest = self._load_newest(engine)
        if newest is None:
            self._say_first(engine, "starts")
            guard = FaultGuard(self.config.spikes)
            if self.config.spikes.policy == "rewind":  # a fault before the first checkpoint must find one
                saver.save(0, self._facts(engine, guard))
                saver.settle()
            return 0, guard
        self._say_first(engine, f"goes on after train_step {newest.train_step} of {self.iterations}")
        return newest.train_step, FaultGuard(self.config.spikes, newest.facts["faults"])

    def _load_newest(self, engine: Engine) -> Checkpoint | None:
        """The newest whole checkpoint, loaded; rank 0 chooses."""
        newest: Checkpoint | None = engine.ranks.gather(self.newest() if engine.ranks.is_first else None)[0]
        if newest is not None:
            before, now = newest.facts.get("order"), asdict(self.reader.order)
            if before is not None and before != now:
                changed = ", ".join(f"{name} {before[name]!r} and {now[name]!r}" for name in now if before[name] != now[name])
                raise CheckpointError(f"{newest.folder} was written with another order of samples ({changed}); delete {self.folder}")
            engine.load(newest.folder)
        return newest

    def _rewind(self, engine: Engine, guard: FaultGuard, train_step: int) -> int:
        """Back to the newest checkpoint, from which on everything up to the fault is left out; returns where to go on."""
        newest = self._load_newest(engine)
        if newest is None:
            raise CheckpointError(f"{self._name}: no whole checkpoint in {self.checkpoints.folder} to rewind to")
        guard.rewind(newest.facts["faults"], range(newest.train_step, train_step + 1))
        return newest.train_step

    @property
    def _name(self) -> str:
        return f"Stage {'I' * self.stage}, {self.phase}"

    def _say_first(self, engine: Engine, what: str) -> None:
        if engine.ranks.is_first:
            log.info("%s: %s", self._name, what)

    def _train_step(
        self, engine: Engine, train_step: int, guard: FaultGuard, loader: Prefetcher, watcher: Watcher
    ) -> StepRecord | TrainingFault:
        """One train_step; a fault changes neither weights nor optimizer state. Raises it as the guard says."""
        begin = time.monotonic()
        batches = loader.micro_batches(train_step)
        waited = time.monotonic() - begin
        drawn = [dict(record) for batch in batches for record in batch.degradations]
        if drawn:  # on every rank, or on none
            watcher.degradations(train_step + 1, [record for own in engine.ranks.gather(drawn) for record in own])
        objective, modality = self.objective_at(train_step), self.reader.order.modality(train_step)
        ids = self.reader.sample_ids(train_step)
        where = f"{self._name}, train_step {train_step + 1}"
        per_sample: list[Tensor] = []
        fault = None
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            loss = objective.losses(engine.model, batch.to(engine.ranks.device, engine.dtype))
            per_sample.append(loss.detach().float())
            if last:
                everyone = engine.ranks.gather_equal(torch.cat(per_sample))
                fault = guard.of_losses(everyone, ids, modality)
                if fault is not None:
                    guard.count(fault, where)
            engine.backward(loss.mean() / len(batches), last, discard=fault is not None)
        learning_rate = scheduled_rate(self.optimizer, train_step, self.iterations)
        grad_norm = engine.step(learning_rate)
        if fault is None:
            fault = guard.of_gradient(grad_norm, ids)
            if fault is not None:
                guard.count(fault, where)
        if fault is not None:
            return fault
        mean = everyone.mean().item()
        guard.accept(mean, modality)
        seconds = time.monotonic() - begin
        speed = engine.throughput(batches[0], seconds)
        return StepRecord(
            self.stage,
            self.phase,
            train_step + 1,
            mean,
            grad_norm,
            learning_rate,
            seconds,
            waited,
            waited / seconds,
            speed.tokens_per_s,
            speed.teraflops_per_rank,
            speed.mfu,
            engine.peak_memory_gib,
            modality,
        )


def scheduled_rate(optimizer: OptimizerConfig, train_step: int, iterations: int) -> float:
    """Learning rate of a train_step: linear warm-up, then constant, or down to a tenth along a cosine by the end."""
    if train_step < optimizer.warmup_steps:
        return optimizer.learning_rate * (train_step + 1) / (optimizer.warmup_steps + 1)
    if optimizer.schedule == "constant":
        return optimizer.learning_rate
    share = (train_step - optimizer.warmup_steps) / max(1, iterations - optimizer.warmup_steps)
    return optimizer.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))
