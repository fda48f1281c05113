"""A tiny Stage II (or I) run on made-up latents: in this process, or as real ranks that can be killed.

Ranks are forked from a server that has imported torch and DeepSpeed once (multiprocessing's forkserver): a test can
then start a dozen of them in seconds.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
from flashvideo.objectives.batch import Batch
from flashvideo.objectives.diffusion import DiffusionObjective
from flashvideo.objectives.flow_matching import FlowMatchingObjective
from flashvideo.training.batches import LatentSample, Modality, seeded
from flashvideo.training.engine import joined
from flashvideo.training.loop import Progress
from flashvideo.training.metrics import read_losses
from flashvideo.training.sheets import Decode, FirstFrame
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


def engine_config(num_ranks: int, zero_stage: int, precision: str = "fp32", micro_batch_size: int = 2, **settings: Any) -> EngineConfig:
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
            **settings,
        }
    )


def stage1_config(engine: EngineConfig, iterations: int = 10, ema_decay: float | None = None) -> Stage1Config:
    return Stage1Config(
        transformer=TINY,
        lora=LoraConfig(rank=4, alpha=4),
        shape=SHAPE,
        objective=DiffusionConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_grad_norm=1.0, ema_decay=ema_decay),
        engine=engine,
        iterations=iterations,
        batch_size=4,
        validation_samples=3,
    )


def stage2_config(engine: EngineConfig, iterations: int = 6, ema_decay: float | None = None) -> Stage2Config:
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
        optimizer=OptimizerConfig(learning_rate=1e-2, clip_grad_norm=1.0, ema_decay=ema_decay),
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
    ema_decay: float | None = None,
    first_frame: FirstFrame | None = None,
    decode: Decode | None = None,
) -> None:
    """Trains as one rank of the group that meets in a file, a new one each time."""
    with joined(config, rank, config.num_ranks, f"file://{meeting}") as ranks:
        train, held_out = MadeUpLatents(poisoned=poisoned), MadeUpLatents(3)
        if stage == 1:
            train_stage1(stage1_config(config, ema_decay=ema_decay), 0, train, held_out, folder, ranks, progress, decode=decode)
        else:
            settings = stage2_config(config, ema_decay=ema_decay)
            phases = [Phase(entry, folder / entry.name, train) for entry in settings.phases]
            train_stage2(settings, 0, phases, held_out, folder, ranks, progress, first_frame)


# ------------------------------------------------------------------------------------------------- ranks as processes

TESTS, REPOSITORY = Path(__file__).parent, Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Run:
    """A run that is started, perhaps killed, and started again."""

    folder: Path
    stage: int = 2
    num_ranks: int = 2
    zero_stage: int = 2
    precision: str = "fp32"
    kill_at: int | None = None
    """Rank 0 kills itself with signal 9 when so many train_steps are done."""
    bad_gradient: tuple[int, int] | None = None
    """(rank, its call of the loss): from there the gradient comes back as NaN, the loss is as ever."""
    ema_decay: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the engine."""

    def start(self) -> list[BaseProcess]:
        """One process a rank. Each writes <folder>/rank-<n>.txt."""
        start_server()
        self.folder.mkdir(parents=True, exist_ok=True)
        meeting = self.folder / f"meeting-{len(list(self.folder.glob('meeting-*')))}"
        meeting.touch()
        processes = [
            CONTEXT.Process(target=_rank, args=(self, rank, meeting / ".." / f".{meeting.name}")) for rank in range(self.num_ranks)
        ]
        for process in processes:
            process.start()
        return list(processes)

    def finish(self) -> None:
        """Runs to the end; fails with the ranks' output where one does not exit with 0."""
        processes = self.start()
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * self.num_ranks, f"{codes}\n{self.output()}"

    def fail(self) -> list[str]:
        """Runs until every rank has ended with an error; what each wrote."""
        processes = self.start()
        for process in processes:
            process.join(300)
        assert all(process.exitcode == 1 for process in processes), self.output()
        return [self._file(rank).read_text() for rank in range(self.num_ranks)]

    def die(self) -> None:
        """Runs until rank 0 is gone, then kills the others too, as a launcher does."""
        first, *others = self.start()
        first.join(300)
        for process in others:
            process.kill()
            process.join()
        assert first.exitcode == -signal.SIGKILL, self.output()

    def output(self) -> str:
        return "\n".join(self._file(rank).read_text() for rank in range(self.num_ranks))

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.txt"


def start_server() -> None:
    """The process that ranks are forked from; it finds the modules by PYTHONPATH."""
    CONTEXT.set_forkserver_preload(["tiny_training", "torch._dynamo", "deepspeed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(TESTS), *sys.path]))
        patch.setenv("DS_ACCELERATOR", "cpu")
        multiprocessing.forkserver.ensure_running()


def _rank(run: Run, rank: int, meeting: Path) -> None:
    """One rank's process."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with open(run.folder / f"rank-{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if run.bad_gradient is not None and run.bad_gradient[0] == rank:
        spoil_gradients(run.bad_gradient[1])

    def progress(done: int, total: int, unit: str, note: str) -> None:
        print(f"{done}/{total} {unit}: {note}", flush=True)
        if rank == 0 and done == run.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    config = engine_config(run.num_ranks, run.zero_stage, run.precision, **run.settings)
    try:
        run_rank(run.stage, run.folder, config, meeting.resolve(), rank, progress, ema_decay=run.ema_decay)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without waiting for the group that is broken


class _NanGradient(torch.autograd.Function):
    """Identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, float("nan"))


def spoil_gradients(call: int) -> None:
    """In this process, the loss of that call (0: the first) is right and its gradient NaN."""
    calls: list[int] = []
    for objective in (DiffusionObjective, FlowMatchingObjective):
        right = objective.losses

        def losses(self: Any, model: torch.nn.Module, batch: Batch, right: Any = right) -> Tensor:
            calls.append(1)
            value: Tensor = right(self, model, batch)
            return _NanGradient.apply(value) if len(calls) == call + 1 else value

        objective.losses = losses  # type: ignore[method-assign]


def loss_lines(folder: Path, *phases: str) -> list[tuple[Any, ...]]:
    """What must be equal of every line of losses.jsonl; the seconds may differ."""
    keys = ("stage", "phase", "train_step", "loss", "grad_norm", "learning_rate", "modality")
    files = [folder / phase / "losses.jsonl" for phase in phases] or [folder / "losses.jsonl"]
    return [tuple(line[key] for key in keys) for path in files for line in read_losses(path)]


def weight_digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def losses_of(lines: Sequence[tuple[Any, ...]]) -> list[float]:
    return [line[3] for line in lines]
