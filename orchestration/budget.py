"""What a recipe's training costs on so many GPUs: hours by phase, memory of a rank by part, bytes on disk. By formula (cost.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flashvideo.config import EngineConfig, FrameShape, LoraConfig, PhaseConfig, TransformerConfig
from orchestration.cost import Memory, Rates, encode_flops, lora_parameters, parameters, rank_memory, step_seconds
from pipelines.latent_plan import Media, latent_profiles, variant_names
from pipelines.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """Samples of one kind in a phase."""

    media: Media
    share: float
    """Of the train_steps."""
    batch: int
    """Global."""
    shape: FrameShape


@dataclass(frozen=True)
class PhaseCost:
    """Of one phase of training."""

    name: str
    iterations: int
    ranks: int
    sample_seconds: dict[Media, float]
    """Forward and backward of one sample on one GPU, by kind."""
    gpu_hours: float
    """Of the transformer."""
    encode_gpu_hours: float
    """What encoding every sample anew would take; with latents kept, a clip is encoded once."""

    @property
    def hours(self) -> float:
        return self.gpu_hours / self.ranks


@dataclass(frozen=True)
class RankMemory:
    """Of one rank on the largest sample of a phase."""

    name: str
    ranks: int
    zero_stage: int
    memory: Memory


@dataclass(frozen=True)
class Storage:
    """Bytes on disk."""

    latents: dict[str, int]
    """By kind of clip, of one clip."""
    checkpoints: dict[str, int]
    """By stage, of one checkpoint."""
    kept: dict[str, int]
    """How many of them lie on the disk, by stage."""


def parts(phase: PhaseConfig) -> Iterator[Part]:
    """Videos, then images."""
    steps = phase.images + phase.videos
    if phase.videos:
        yield Part("video", phase.videos / steps, phase.batch_size, phase.shape)
    if phase.images:
        image = FrameShape(frames=1, height=phase.shape.height, width=phase.shape.width)
        yield Part("image", phase.images / steps, phase.image_batch_size or phase.batch_size, image)


def on_gpus(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe with as many ranks of each stage as divide its global batches, at most `gpus`; the rest of the GPUs stay idle."""
    batches = [part.batch for phase in recipe.stage2.phases for part in parts(phase)]

    def stage(config: EngineConfig, *sizes: int) -> EngineConfig:
        common = math.gcd(*sizes)
        return config.model_copy(update={"num_ranks": max(ranks for ranks in range(1, gpus + 1) if common % ranks == 0)})

    first = recipe.stage1.model_copy(update={"engine": stage(recipe.stage1.engine, recipe.stage1.batch_size)})
    second = recipe.stage2.model_copy(update={"engine": stage(recipe.stage2.engine, *batches)})
    return recipe.model_copy(update={"stage1": first, "stage2": second})


def phase_costs(recipe: Recipe, rates: Rates) -> list[PhaseCost]:
    """Stage I, then the phases of Stage II. Optimizer, communication and waiting are left out."""
    text, first, second = recipe.text_encoder.max_length, recipe.stage1, recipe.stage2
    video = Part("video", 1.0, first.batch_size, first.shape)
    costs = [
        _cost("Stage I", first.iterations, [video], 1, first.transformer, first.engine, not first.full_finetune, text, rates),
    ]
    for phase in second.phases:
        name = f"Stage II {phase.name}"
        costs.append(_cost(name, phase.iterations, list(parts(phase)), 2, second.transformer, second.engine, False, text, rates))
    return costs


def _cost(
    name: str,
    iterations: int,
    of: list[Part],
    encodings: int,
    config: TransformerConfig,
    engine: EngineConfig,
    adapters: bool,
    text: int,
    rates: Rates,
) -> PhaseCost:
    """`encodings`: of a sample; Stage II's has a degraded copy."""
    seconds = {part.media: step_seconds(config, part.shape.num_tokens + text, engine, rates, adapters=adapters) for part in of}
    step = sum(part.share * part.batch * seconds[part.media] for part in of)
    encoded = sum(part.share * part.batch * encode_flops(part.shape) for part in of) * encodings / rates.convolution / 1e12
    return PhaseCost(name, iterations, engine.num_ranks, seconds, step * iterations / 3600, encoded * iterations / 3600)


def memories(recipe: Recipe) -> list[RankMemory]:
    """Stage I, then every phase of Stage II."""
    text, first, second = recipe.text_encoder.max_length, recipe.stage1, recipe.stage2
    lora = None if first.full_finetune else first.lora
    rows = [_memory("Stage I", first.transformer, first.shape.num_tokens + text, first.engine, lora)]
    for phase in second.phases:
        tokens = max(part.shape.num_tokens for part in parts(phase)) + text
        rows.append(_memory(f"Stage II {phase.name}", second.transformer, tokens, second.engine, None))
    return rows


def _memory(name: str, config: TransformerConfig, tokens: int, engine: EngineConfig, lora: LoraConfig | None) -> RankMemory:
    return RankMemory(name, engine.num_ranks, engine.zero_stage, rank_memory(config, tokens, engine, lora))


def storage(recipe: Recipe) -> Storage:
    """Latents of a training clip of each kind (every profile, crop and degraded copy), and checkpoints."""
    profiles = latent_profiles(recipe)
    latents = {
        kind: sum(profile.bytes_per_tensor() * len(variant_names(recipe, profile)) for profile in profiles if profile.media == kind)
        for kind in ("video", "image")
    }
    first, second = recipe.stage1, recipe.stage2
    trained = {
        "Stage I": parameters(first.transformer) if first.full_finetune else lora_parameters(first.transformer, first.lora),
        "Stage II": parameters(second.transformer),
    }
    values = {name: 3 + (stage.optimizer.ema_decay is not None) for name, stage in (("Stage I", first), ("Stage II", second))}
    return Storage(
        latents,
        {name: 4 * values[name] * count for name, count in trained.items()},  # fp32 weights, two moments, and the average
        {"Stage I": first.engine.keep_checkpoints, "Stage II": second.engine.keep_checkpoints * len(second.phases)},
    )
