"""One rank of a tiny Stage II (or I) run on made-up latents; run as a script by the training tests, and imported by them.

python tiny_training.py FOLDER --ranks N --rank R --zero Z [--stage 1|2] [--precision fp32]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flashvideo.config import (
    DiffusionConfig,
    EngineConfig,
    FrameShape,
    LoraConfig,
    OptimizerConfig,
    PhaseConfig,
    Stage1Config,
    Stage2Config,
    TransformerConfig,
)
from flashvideo.training.batches import LatentSample, Modality, seeded
from flashvideo.training.engine import joined
from flashvideo.training.loop import Progress
from flashvideo.training.stage1 import train_stage1
from flashvideo.training.stage2 import Phase, train_stage2

TINY = TransformerConfig(
    flavour="debug", num_layers=2, num_attention_heads=1, attention_head_dim=16, text_embed_dim=8, time_embed_dim=16, rope_axes=(4, 6, 6)
)
SHAPE = FrameShape(frames=9, height=32, width=48)


class MadeUpLatents:
    """Smooth random latents, the degraded copy at half strength; sample 3 holds a NaN where asked for."""

    def __init__(self, count: int = 6, poisoned: bool = False) -> None:
        self.count, self.poisoned = count, poisoned

    def ids(self, modality: Modality) -> list[str]:
        return [f"{modality}-{index}" for index in range(self.count)]

    def read(self, modality: Modality, index: int, generator: torch.Generator) -> LatentSample:
        fixed = seeded("made up", modality, index)
        clean = torch.randn(3 if modality == "video" else 1, 16, 4, 6, generator=fixed)
        text = torch.randn(4, 8, generator=fixed)
        if self.poisoned and index == 3:
            clean[0, 0, 0, 0] = float("nan")
        noise = torch.randn(clean.shape, generator=generator)
        return LatentSample(clean + 1e-3 * noise, text, 0.5 * clean)


def engine_config(num_ranks: int, zero_stage: int, precision: str = "fp32", micro_batch_size: int = 2) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "zero_stage": zero_stage,
            "precision": precision,
            "activation_checkpointing": False,
            "num_ranks": num_ranks,
            "gpus_per_rank": 0,
            "cpus_per_rank": 1,
            "torch_threads": 1,
            "micro_batch_size": micro_batch_size,
            "checkpoint_every": 4,
            "log_every": 1,
        }
    )


def stage1_config(engine: EngineConfig, iterations: int = 10) -> Stage1Config:
    return Stage1Config(
        transformer=TINY,
        lora=LoraConfig(rank=4, alpha=4),
        shape=SHAPE,
        objective=DiffusionConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_grad_norm=1.0),
        engine=engine,
        iterations=iterations,
        batch_size=4,
        validation_samples=3,
    )


def stage2_config(engine: EngineConfig, iterations: int = 6) -> Stage2Config:
    image = FrameShape(frames=1, height=32, width=48)
    phases = (
        PhaseConfig(name="images", iterations=iterations, shape=image, images=1, videos=0, batch_size=4, noise_steps=(50, 200)),
        PhaseConfig(
            name="mixed", iterations=iterations, shape=SHAPE, images=1, videos=2, batch_size=4, image_batch_size=8, noise_steps=(50, 200)
        ),
    )
    return Stage2Config(
        transformer=TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True}),
        phases=phases,
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_grad_norm=1.0),
        engine=engine,
        validation_samples=3,
    )


def run_rank(
    stage: int,
    folder: Path,
    config: EngineConfig,
    meeting: Path,
    rank: int = 0,
    progress: Progress = lambda *state: None,
    poisoned: bool = False,
) -> None:
    """Trains as one rank of the group that meets in a file, a new one each time."""
    with joined(config, rank, config.num_ranks, f"file://{meeting}") as ranks:
        train, held_out = MadeUpLatents(poisoned=poisoned), MadeUpLatents(3)
        if stage == 1:
            train_stage1(stage1_config(config), 0, train, held_out, folder, ranks, progress)
        else:
            settings = stage2_config(config)
            phases = [Phase(entry, folder / entry.name, train) for entry in settings.phases]
            train_stage2(settings, 0, phases, held_out, folder, ranks, progress)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("meeting", type=Path)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--zero", type=int, default=2)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--poisoned", action="store_true")
    arguments = parser.parse_args()
    config = engine_config(arguments.ranks, arguments.zero, arguments.precision)
    run_rank(arguments.stage, arguments.folder, config, arguments.meeting, arguments.rank, say, arguments.poisoned)


def say(done: int, total: int, unit: str, note: str) -> None:
    print(f"{done}/{total} {unit}: {note}", flush=True)


if __name__ == "__main__":
    main()
