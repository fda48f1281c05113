"""Stage II's train_step on a GPU: seconds, tokens/s, model TFLOP/s, MFU and memory at the shapes of the paper's phases.

    .venv/bin/python benchmarks/training_gpu.py [--layers 10] [--backend CUDNN_ATTENTION] [--keep-attention] [--runs 3]
    .venv/bin/python benchmarks/training_gpu.py --device cpu --tiny

Everything but the latents is the paper recipe's, on one rank and at batch 1: transformer, flow-matching objective with
its noise range, AdamW with fp32 masters under DeepSpeed, recomputation of blocks. Weights and latents are random (speed
does not depend on them). A train_step is as in the loop: the batch to the device, loss, backward, clipped step. Where
--layers is below the recipe's, the last rows are extrapolated along the line through two measured depths, and say so.
"Limit": seconds that the work takes at 790 TFLOP/s of matmul and 497 forward, 400 backward of attention, blocks
recomputed (Stage II on one H200, every layer). --tiny is the debug recipe, for trying the command: it has no limits.
Prints one line and exits 0 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from printed_table import print_table
from stage2_gpu import BACKENDS, timed_seconds
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashvideo.config import EngineConfig, FrameShape, PhaseConfig
from flashvideo.models.transformer import build_transformer
from flashvideo.objectives.batch import Batch
from flashvideo.training.batches import LatentSample, collate, seeded
from flashvideo.training.engine import Engine, Ranks, joined
from flashvideo.training.stage2 import objective_of
from pipelines.recipe import Recipe, load

LIMIT_SECONDS = {(1, 528, 960): 0.041, (49, 528, 960): 1.95, (49, 1072, 1920): 27.4}
"""(frames, height, width) of the paper's phases: a train_step of one sample with recomputation, one H200."""
NO_BACKEND = ("No viable backend", "No available kernel")
"""What PyTorch says of an attention backend that it cannot use."""
COLUMNS = ("shape", "layers", "tokens", "s a step", "min-max", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "limit s", "of the limit")


@dataclass(frozen=True)
class Measured:
    """Of one shape at one depth."""

    shape: FrameShape
    layers: int
    tokens: int
    seconds: float
    spread: str
    tokens_per_s: float
    teraflops: float
    mfu: float | None
    peak_gib: float | None

    def row(self, all_layers: int, limited: bool) -> tuple[object, ...]:
        """For the table; the limit is of a step through every layer."""
        shape = (self.shape.frames, self.shape.height, self.shape.width)
        limit = LIMIT_SECONDS.get(shape) if limited and self.layers == all_layers else None
        return (
            "x".join(map(str, shape)),
            self.layers,
            self.tokens,
            f"{self.seconds:.3f}",
            self.spread,
            f"{self.tokens_per_s:.0f}",
            f"{self.teraflops:.3g}",
            "-" if self.mfu is None else f"{self.mfu:.1%}",
            "-" if self.peak_gib is None else f"{self.peak_gib:.1f}",
            limit or "-",
            f"{self.seconds / limit:.2f}" if limit else "-",
        )


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The paper's recipe for one rank and one sample; --tiny: the debug recipe's sizes with the paper's engine."""
    paper = load("paper")
    recipe = load("debug") if arguments.tiny else paper
    on_gpu = arguments.device == "cuda"
    watch = paper.stage2.engine.watch
    engine = EngineConfig.model_validate(
        paper.stage2.engine.model_dump()
        | {
            "num_ranks": 1,
            "gpus_per_rank": 1 if on_gpu else 0,
            "torch_threads": None if on_gpu else 1,
            "keep_attention": arguments.keep_attention,
            "watch": watch if on_gpu else watch.model_copy(update={"peak_teraflops": None}),
        }
    )
    return recipe.model_copy(update={"stage2": recipe.stage2.model_copy(update={"engine": engine, "init_weights": None})})


def shapes_of(recipe: Recipe) -> Iterator[PhaseConfig]:
    """The first phase of each shape."""
    seen = set()
    for phase in recipe.stage2.phases:
        if phase.shape not in seen:
            seen.add(phase.shape)
            yield phase


def random_batch(recipe: Recipe, shape: FrameShape, channels: int) -> Batch:
    """One sample of random latents and text."""
    frames, height, width = shape.latent_shape
    text = torch.randn(recipe.text_encoder.max_length, recipe.text_encoder.embed_dim)
    clean, degraded = (torch.randn(frames, channels, height, width) for _ in range(2))
    return collate([LatentSample(clean, text, degraded)], ["random"], [0], 1, (seeded("benchmark"),))


def measured(engine: Engine, recipe: Recipe, phase: PhaseConfig, layers: int, runs: int) -> Measured:
    """Median of train_steps at a phase's shape. Raises torch.OutOfMemoryError."""
    stage2, device = recipe.stage2, engine.ranks.device
    batch = random_batch(recipe, phase.shape, stage2.transformer.in_channels)
    objective = objective_of(stage2, phase)(0)

    def train_step() -> None:
        loss = objective.losses(engine.model, batch.to(device, engine.dtype))
        engine.ranks.gather_equal(loss)
        engine.backward(loss.mean(), last=True)
        engine.step(stage2.optimizer.learning_rate)

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed_seconds(train_step, runs)
    median = statistics.median(seconds)
    speed = engine.throughput(batch, median)
    tokens, spread = round(speed.tokens_per_s * median), f"{min(seconds):.3f}-{max(seconds):.3f}"
    return Measured(
        phase.shape, layers, tokens, median, spread, speed.tokens_per_s, speed.teraflops_per_rank, speed.mfu, engine.peak_memory_gib
    )


def measure_depth(recipe: Recipe, layers: int, runs: int, ranks: Ranks) -> Iterator[Measured]:
    """Every shape that fits, with so many layers."""
    stage2 = recipe.stage2
    model = build_transformer(stage2.transformer.model_copy(update={"num_layers": layers}), None, ranks.device)
    engine = Engine(model, stage2.optimizer, stage2.engine, ranks)
    for phase in shapes_of(recipe):
        try:
            yield measured(engine, recipe, phase, layers, runs)
        except torch.OutOfMemoryError as error:
            print(f"{phase.shape}, {layers} layers: does not fit ({str(error).splitlines()[0]})", flush=True)
        except RuntimeError as error:
            if not any(words in str(error) for words in NO_BACKEND):
                raise
            print(f"{phase.shape}, {layers} layers: the attention backend is not available here", flush=True)
    engine.close()
    del model, engine
    gc.collect()  # DeepSpeed leaves cycles; the next depth needs the memory


def extrapolated(less: Measured, more: Measured, layers: int, device_peak: float | None) -> Measured:
    """On the line through two depths; FLOPs are proportional to the layers."""

    def line(low: float, high: float) -> float:
        return high + (high - low) * (layers - more.layers) / (more.layers - less.layers)

    seconds = line(less.seconds, more.seconds)
    teraflops = more.teraflops * more.seconds * layers / more.layers / seconds
    memory = None if less.peak_gib is None or more.peak_gib is None else line(less.peak_gib, more.peak_gib)
    mfu = teraflops / device_peak if device_peak else None
    return Measured(more.shape, layers, more.tokens, seconds, "extrapolated", more.tokens / seconds, teraflops, mfu, memory)


def rows_of(recipe: Recipe, layers: int, runs: int, ranks: Ranks) -> list[Measured]:
    """Measured at so many layers; where that is not all of them, also at half as many, then extrapolated."""
    total = recipe.stage2.transformer.num_layers
    more = list(measure_depth(recipe, layers, runs, ranks))
    if layers == total:
        return more
    less = {row.shape: row for row in measure_depth(recipe, layers // 2, runs, ranks)}
    peak = recipe.stage2.engine.watch.peak_teraflops
    whole = [extrapolated(less[row.shape], row, total, peak) for row in more if row.shape in less]
    return [*less.values(), *more, *whole]


def describe(recipe: Recipe, arguments: argparse.Namespace, ranks: Ranks) -> str:
    engine, transformer = recipe.stage2.engine, recipe.stage2.transformer
    kept = "attention kept, the rest of a block recomputed" if engine.keep_attention else "blocks recomputed"
    peak = engine.watch.peak_teraflops
    name = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU, one thread"
    return (
        f"{name}, torch {torch.__version__}: {transformer.flavour}, width {transformer.hidden_size}, {transformer.num_layers} layers; "
        f"batch 1, ZeRO-{engine.zero_stage}, {engine.precision} with fp32 AdamW, {kept}; "
        f"attention {arguments.backend or 'as PyTorch chooses'}; "
        + (f"MFU of {peak:g} TFLOP/s; " if peak else "")
        + f"medians of {arguments.runs} after a warm-up"
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=None, help="of the transformer, 2 or more; default: all (30)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--backend", choices=[backend.name for backend in BACKENDS], default=None, help="of attention; default: PyTorch's choice"
    )
    parser.add_argument("--keep-attention", action="store_true", help="recompute a block but for its attention")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the debug recipe's sizes")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device")
        return 0
    recipe = recipe_of(arguments)
    total = recipe.stage2.transformer.num_layers
    layers = total if arguments.layers is None else arguments.layers
    if not (2 <= layers <= total and arguments.runs >= 1):
        parser.error(f"--layers must lie in 2..{total} and --runs be 1 or more; got {layers} and {arguments.runs}")
    backend = sdpa_kernel(SDPBackend.__members__[arguments.backend]) if arguments.backend else nullcontext()
    with (
        tempfile.TemporaryDirectory() as folder,
        joined(recipe.stage2.engine, 0, 1, f"file://{Path(folder) / 'meeting'}") as ranks,
        backend,
    ):
        print(describe(recipe, arguments, ranks), flush=True)
        rows = rows_of(recipe, layers, arguments.runs, ranks)
    print_table([COLUMNS, *(row.row(total, limited=not arguments.tiny) for row in rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
