"""Stage II: the curriculum of phases, flow matching from degraded to clean latents (3.3, 4.2).

Weights and optimizer state go from phase to phase. Every phase has a folder of its own, so a finished phase is used
again as long as nothing that it depends on changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashvideo.config import PhaseConfig, Stage2Config, Stage2SamplingConfig
from flashvideo.models.transformer import CogVideoXTransformer, build_transformer, save_transformer
from flashvideo.objectives.batch import Batch
from flashvideo.objectives.flow_matching import FlowMatchingObjective
from flashvideo.training.batches import BatchOrder, BatchReader, Modality, SampleSource, fixed_batches
from flashvideo.training.engine import Engine, Ranks
from flashvideo.training.loop import Loop, Progress
from flashvideo.training.metrics import Bin, Validation, validate, write_lines
from flashvideo.training.sheets import SHEETS, FirstFrame, Sheets
from flashvideo.training.stage1 import seed_of, validated_once, write_validation

T_BINS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Places on the path, 0 the degraded end."""
FINISHED = "phase.json"
"""A phase folder with this file is finished: its newest checkpoint is its result."""


@dataclass(frozen=True)
class Phase:
    """One phase to train: its settings, its samples, its folder."""

    config: PhaseConfig
    folder: Path
    source: SampleSource

    @property
    def finished(self) -> bool:
        return (self.folder / FINISHED).is_file()


def train_stage2(
    config: Stage2Config,
    seed: int,
    phases: Sequence[Phase],
    held_out: SampleSource,
    folder: Path,
    ranks: Ranks,
    progress: Progress,
    first_frame: FirstFrame | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Trains the phases that are not finished, in order, validates, and writes folder/stage2 (diffusers' layout).

    Every rank calls it. Relaunched, it goes on from the newest checkpoint and ends in the same weights. The held-out
    samples have the last phase's shape, and the validation its noise range, whatever phase is validated. `first_frame`
    decodes for the sheets of engine.watch.sample_every. `provenance`: JSON values that the checkpoints name. Raises ValueError
    where sheets are asked for without a decoder.
    """
    model = build_transformer(config.transformer, config.init_weights, ranks.device)
    engine = Engine(model, config.optimizer, config.engine, ranks)
    last = phases[-1].config
    modality = "video" if last.videos else "image"
    check = partial(
        validate,
        batches=lambda: fixed_batches(held_out, modality, config.seed, config.validation_samples),  # type: ignore[arg-type]
        bins=flow_bins(objective_of(config, last)(last.iterations), config.engine.watch.noise_step_bins),
    )
    before = validated_once(folder / "validation_before.json", engine, check)
    done = ranks.gather(max((place for place, phase in enumerate(phases, 1) if phase.finished), default=0))[0]
    if done:
        _load_finished(engine, phases[done - 1], config)
    after = before
    total = sum(phase.config.iterations for phase in phases)
    shows = [sheets_of(config, phase, last, held_out, first_frame) for phase in phases]
    loops = [phase_loop(phase, config, seed, ranks, check, show, provenance) for phase, show in zip(phases, shows, strict=True)]
    if config.engine.memory_check and loops[done:] and loops[done].is_new(ranks):
        for loop in loops[done:]:  # of all phases: the largest shape comes last
            loop.check_memory(engine)
    for number, phase in enumerate(phases[done:], done):
        loop = loops[number]
        earlier = sum(entry.config.iterations for entry in phases[:number])
        loop.run(engine, partial(_from, progress, earlier, total))
        after = check(engine)
        if ranks.is_first:
            facts = {"phase": phase.config.name, "validation": after.loss, "by_bin": dict(after.by_bin), "samples": after.samples}
            write_lines(phase.folder / FINISHED, [json.dumps(facts, indent=1)])
        ranks.barrier()
    if done == len(phases):
        after = check(engine)
    write_validation(folder / "validation.json", engine, before, after, check)
    save_stage2(engine, folder / "stage2")
    if engine.keeps_average:
        with engine.averaged():
            save_stage2(engine, folder / "stage2_ema")
    engine.close()


def _from(progress: Progress, earlier: int, total: int, done: int, _: int, unit: str, note: str) -> None:
    """Progress of one phase as a part of all."""
    progress(earlier + done, total, unit, note)


def _load_finished(engine: Engine, phase: Phase, config: Stage2Config) -> None:
    newest = engine.ranks.gather(phase_checkpoint(phase, config) if engine.ranks.is_first else None)[0]
    if newest is None:
        raise RuntimeError(
            f"phase {phase.config.name} is marked finished, but {phase.folder} holds no whole checkpoint; delete that folder"
        )
    engine.load(newest)


def phase_checkpoint(phase: Phase, config: Stage2Config) -> Path | None:
    """Folder of a phase's newest whole checkpoint."""
    from flashvideo.training.checkpoints import Checkpoints

    newest = Checkpoints(phase.folder / "checkpoints", config.engine.keep_checkpoints).newest()
    return None if newest is None else newest.folder


def sheets_of(
    config: Stage2Config, phase: Phase, last: PhaseConfig, held_out: SampleSource, first_frame: FirstFrame | None
) -> Callable[[Engine, int], None] | None:
    """What makes a phase's sheets of samples, at the middle of the last phase's noise range without guidance; None: not wanted."""
    if config.engine.watch.sample_every is None:
        return None
    if first_frame is None:
        raise ValueError("engine.watch.sample_every needs the autoencoder that made the latents; set it to null without one")
    modality: Modality = "video" if last.videos else "image"
    noise_steps = objective_of(config, last)(last.iterations).noise_steps
    sampling = Stage2SamplingConfig(num_steps=4, guidance_scale=1.0, noise_step=sum(noise_steps) // 2)
    count = config.engine.watch.samples
    return Sheets(
        phase.folder / SHEETS,
        lambda: fixed_batches(held_out, modality, config.seed, count),
        sampling,
        config.latent_degradation,
        first_frame,
    ).write


def phase_loop(
    phase: Phase,
    config: Stage2Config,
    seed: int,
    ranks: Ranks,
    check: Callable[[Engine], Validation],
    show: Callable[[Engine, int], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Loop:
    """The loop of one phase."""
    entry = phase.config
    order = BatchOrder(
        seed=seed_of(seed, config.seed),
        phase=entry.name,
        num_images=len(phase.source.ids("image")) if entry.images else 0,
        num_videos=len(phase.source.ids("video")) if entry.videos else 0,
        images=entry.images,
        videos=entry.videos,
        batch_size=entry.batch_size,
        image_batch_size=entry.image_batch_size,
    )
    reader = BatchReader(phase.source, order, config.text_dropout, ranks.rank, ranks.size, config.engine.micro_batch_size)
    optimizer = config.optimizer
    if entry.learning_rate is not None:
        optimizer = optimizer.model_copy(update={"learning_rate": entry.learning_rate})
    return Loop(
        stage=2,
        phase=entry.name,
        iterations=entry.iterations,
        folder=phase.folder,
        objective_at=objective_of(config, entry),
        reader=reader,
        optimizer=optimizer,
        config=config.engine,
        check=check,
        show=show,
        provenance=provenance or {},
    )


def objective_of(config: Stage2Config, phase: PhaseConfig) -> Callable[[int], FlowMatchingObjective]:
    """The objective at each train_step of a phase: the noise range may change within it (4.2, phase 3)."""
    first = FlowMatchingObjective(phase.noise_steps, config.latent_degradation, config.time_shift)
    if phase.noise_steps_after is None:
        return lambda train_step: first
    start, noise_steps = phase.noise_steps_after
    later = FlowMatchingObjective(noise_steps, config.latent_degradation, config.time_shift)
    return lambda train_step: later if train_step >= start else first


def flow_bins(objective: FlowMatchingObjective, noise_step_bins: bool = False) -> list[Bin]:
    """Validation conditions: five places on the path at the middle of the noise range; both its ends, half way, as extras."""
    low, high = objective.noise_steps

    def at(t: float, noise_step: int, name: str, extra: bool = False) -> Bin:
        def judge(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            count = len(batch.sample_ids)
            return objective.judged_at(model, batch, torch.full((count,), t), torch.full((count,), noise_step))

        return Bin(name, judge, extra)

    bins = [at(t, (low + high) // 2, f"t {t}") for t in T_BINS]
    return bins + [at(0.5, step, f"noise step {step}", extra=True) for step in (low, high) if noise_step_bins]


def save_stage2(engine: Engine, folder: Path) -> None:
    """The whole model in diffusers' layout."""
    with engine.whole_model() as model:
        if engine.ranks.is_first:
            assert isinstance(model, CogVideoXTransformer)
            save_transformer(model, folder)
    engine.ranks.barrier()
