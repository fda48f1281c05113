"""Stage I: adapters (or every weight) of the base model, trained with the diffusion objective (3.2, 4.2)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashvideo.config import LoraConfig, OptimizerConfig, Stage1Config
from flashvideo.models.lora import add_lora, save_adapter, save_base
from flashvideo.models.transformer import CogVideoXTransformer, build_transformer, save_transformer
from flashvideo.objectives.batch import Batch
from flashvideo.objectives.diffusion import DiffusionObjective
from flashvideo.training.batches import BatchOrder, BatchReader, SampleSource, fixed_batches
from flashvideo.training.engine import Engine, Ranks
from flashvideo.training.loop import Loop, Progress
from flashvideo.training.metrics import Bin, Validation, validate, write_lines
from flashvideo.training.sheets import SHEETS, Decode, PreviewSheets

log = logging.getLogger("flashvideo")

PHASE = "stage1"
LARGE_UPDATES = 16.0
"""Times the released settings' update from which adapters on a pretrained model are warned of."""
TIMESTEP_BINS = (100, 300, 500, 700, 900)
"""Validation is flat in the mean over all timesteps by nature of the v-MSE; bins show where it falls."""


def train_stage1(
    config: Stage1Config,
    seed: int,
    train: SampleSource,
    held_out: SampleSource,
    folder: Path,
    ranks: Ranks,
    progress: Progress,
    provenance: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
) -> None:
    """Trains, validates before and after, and writes folder/stage1 (adapter and base.json, or the whole model).

    Every rank calls it. Relaunched, it goes on from the newest checkpoint and ends in the same weights. `provenance`: JSON
    values that the checkpoints name. `decode` is for the sheets of engine.watch.sample_every. Raises ValueError where sheets are
    asked for without it.
    """
    show = sheets_of(config, held_out, folder, decode)
    warning = scale_warning(config)
    if warning and ranks.is_first:
        log.warning(warning)
    model = build_transformer(config.transformer, config.base_weights, ranks.device)
    if not config.full_finetune:
        add_lora(model, config.lora, config.seed)
    engine = Engine(model, config.optimizer, config.engine, ranks)
    order = BatchOrder(
        seed=seed_of(seed, config.seed),
        phase=PHASE,
        num_images=0,
        num_videos=len(train.ids("video")),
        batch_size=config.batch_size,
    )
    reader = BatchReader(train, order, config.text_dropout, ranks.rank, ranks.size, config.engine.micro_batch_size)
    objective = DiffusionObjective(config.objective)
    check = partial(
        validate,
        batches=lambda: fixed_batches(held_out, "video", config.seed, config.validation_samples),
        bins=timestep_bins(objective),
    )
    loop = Loop(
        stage=1,
        phase=PHASE,
        iterations=config.iterations,
        folder=folder,
        objective_at=lambda train_step: objective,
        reader=reader,
        optimizer=config.optimizer,
        config=config.engine,
        check=check,
        show=show,
        provenance=provenance or {},
    )
    before = validated_once(folder / "validation_before.json", engine, check)
    if config.engine.memory_check and loop.is_new(ranks):
        loop.check_memory(engine)
    loop.run(engine, progress)
    write_validation(folder / "validation.json", engine, before, check(engine), check)
    save_stage1(engine, config, folder / "stage1")
    if engine.keeps_average:
        with engine.averaged():
            save_stage1(engine, config, folder / "stage1_ema")
    engine.close()


def sheets_of(config: Stage1Config, held_out: SampleSource, folder: Path, decode: Decode | None) -> Callable[[Engine, int], None] | None:
    """What makes the sheets of samples; None: not wanted."""
    if config.engine.watch.sample_every is None:
        return None
    if decode is None:
        raise ValueError("engine.watch.sample_every needs the autoencoder that made the latents; set it to null without one")
    count = config.engine.watch.samples
    return PreviewSheets(folder / SHEETS, lambda: fixed_batches(held_out, "video", config.seed, count), config, decode).write


def scale_warning(config: Stage1Config) -> str | None:
    """What to say of adapters on a pretrained model whose updates are far above the released ones', or None.

    alpha / rank multiplies every update; the released model has 1/128 at 4e-5 (code), other trainers' 1/2 to 1 over-saturate there.
    """
    times = config.lora.scale / LoraConfig().scale * config.optimizer.learning_rate / OptimizerConfig().learning_rate
    if config.full_finetune or config.base_weights is None or times <= LARGE_UPDATES:
        return None
    return (
        f"Stage I's adapters: alpha / rank = {config.lora.alpha:g} / {config.lora.rank} at learning rate "
        f"{config.optimizer.learning_rate:g} moves the model {times:.0f} times as far a train_step as the released settings (1/128 at "
        f"4e-5); over-saturated pictures are known from there. Lower stage1.lora.alpha or stage1.optimizer.learning_rate"
    )


def seed_of(recipe_seed: int, stage_seed: int) -> int:
    """One seed of the recipe's and the stage's."""
    return recipe_seed * 1_000_003 + stage_seed


def timestep_bins(objective: DiffusionObjective) -> list[Bin]:
    """Validation conditions: five timesteps."""

    def at(timestep: int) -> Bin:
        def judge(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
            return objective.judged_at(model, batch, torch.full((len(batch.sample_ids),), timestep))

        return Bin(f"timestep {timestep}", judge)

    return [at(timestep) for timestep in TIMESTEP_BINS]


def validated_once(path: Path, engine: Engine, check: partial[Validation]) -> Validation:
    """The validation before training: computed on untrained weights and kept, since a resumed run has none."""
    ranks = engine.ranks
    known = ranks.gather(path.read_text() if ranks.is_first and path.is_file() else None)[0]
    if known is not None:
        return Validation(**json.loads(known))
    before = check(engine)
    if ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, [json.dumps(asdict(before))])
    return before


def write_validation(path: Path, engine: Engine, before: Validation, after: Validation, check: partial[Validation]) -> None:
    """validation.json: loss, spread and sharpness before and after, and by bin; also the averaged weights', where kept.

    Every rank calls it. Warns of a collapse.
    """
    watch = engine.config.watch
    facts: dict[str, Any] = {
        "before": before.loss,
        "after": after.loss,
        "by_bin": _both(before.by_bin, after.by_bin),
        "samples": after.samples,
        "std_ratio": _both(before.std_ratio, after.std_ratio),
        "sharpness_ratio": _both(before.sharpness_ratio, after.sharpness_ratio),
        "collapsed": after.collapsed(watch.collapse_below),
    }
    if engine.keeps_average:
        with engine.averaged():
            facts["after_ema"] = asdict(check(engine))
    if engine.ranks.is_first:
        if facts["collapsed"]:
            log.warning("%s: %s", path, facts["collapsed"])
        write_lines(path, [json.dumps(facts, indent=1)])


def _both(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {name: {"before": before[name], "after": value} for name, value in after.items()}


def save_stage1(engine: Engine, config: Stage1Config, folder: Path) -> None:
    """The adapter in peft's layout and base.json beside it; or the whole model, where every weight was trained."""
    with engine.whole_model() as model:
        if engine.ranks.is_first:
            assert isinstance(model, CogVideoXTransformer)
            if config.full_finetune:
                save_transformer(model, folder)
            else:
                save_base(folder, config.transformer, config.base_weights)
                save_adapter(model, folder, config.lora)
    engine.ranks.barrier()
