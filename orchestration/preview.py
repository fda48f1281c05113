"""The dry run and the plan: what would run, with which resources, from what to what, and what is done already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curation.sources import SourceError, list_sources
from flashvideo.config import EngineConfig, FrameShape, LoraConfig, PhaseConfig, TransformerConfig
from orchestration.budget import memories, on_gpus, parts, phase_costs, storage
from orchestration.cost import Rates, forward_flops, lora_parameters, parameters, rank_memory, train_flops
from orchestration.jobs import job_command
from orchestration.runs import TARGETS
from pipelines.artifacts import JobState, Workspace
from pipelines.plan import jobs_for
from pipelines.recipe import Recipe

PAGE_WIDTH = 200
"""Columns where the output is not a terminal."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PAGE_WIDTH, highlight=False)


def print_dry_run(target: str, recipe: Recipe, workspace: Workspace) -> None:
    """One row per job of the target. Needs no sources, no weights, no services."""
    out = console()
    sources, states = _states(target, recipe, workspace)
    out.print(f"{target}: recipe {recipe.name}, root {workspace.root}, runner {_runner(recipe)}", soft_wrap=True)
    out.print(f"sources: {sources}", soft_wrap=True)
    table = Table("job", "state", "resources", "inputs", "outputs", "fingerprint", "log or command", box=None, padding=(0, 2, 0, 0))
    for state in states:
        name = state.spec.name
        log = state.report.log if state.report is not None else f"logs/<run>/{name}.log"
        table.add_row(
            name,
            state.state,
            str(state.spec.demand(recipe)),
            state.spec.inputs,
            state.spec.outputs,
            state.fingerprint or "–",
            log,
        )
    out.print(table)
    example = job_command("python", states[-1].spec.name, workspace.root, Path("RECIPE"), "ID")
    out.print(f"each job is: {' '.join(example)}", soft_wrap=True)
    names = {state.spec.name for state in states}
    if names & {"train_stage1", "train_stage2"}:
        out.print(_phases(recipe, names))
        for line in _models(recipe, names):
            out.print(line, soft_wrap=True)


def print_plan(recipe: Recipe, workspace: Workspace, gpus: int | None = None) -> None:
    """The dry run of the whole story, and per phase what it costs; with ranks for so many GPUs, or the recipe's own."""
    if gpus is not None:
        recipe = on_gpus(recipe, gpus)
    print_dry_run("retrain", recipe, workspace)
    out, rates = console(), Rates()
    out.print()
    out.print(_hours(recipe, rates))
    out.print()
    out.print(_memory(recipe))
    disk = storage(recipe)
    clips = ", ".join(f"{size / 1e6:,.4g} MB a training {kind}" for kind, size in disk.latents.items() if size)
    kept = ", ".join(f"{name} {disk.kept[name]} x {size / 1e9:,.4g} GB" for name, size in disk.checkpoints.items())
    out.print(f"storage: latents {clips}; checkpoints {kept}", soft_wrap=True)
    out.print(
        "Estimates by formula (orchestration/cost.py, budget.py). FLOPs leave out the autoencoder. Hours are an H200's in bf16: matrices "
        f"{rates.matmul:g} TFLOP/s, attention {rates.attention:g} forward and {rates.attention_backward:g} backward, convolutions "
        f"{rates.convolution:g}; communication, the optimizer and waiting are left out.",
        soft_wrap=True,
    )


def _hours(recipe: Recipe, rates: Rates) -> Table:
    """Per phase: seconds of a sample, GPU-hours, hours on its ranks."""
    columns = ("phase", "ranks", "s a sample and GPU", "GPU-hours", "hours", "GPU-hours to encode every sample anew")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    costs = phase_costs(recipe, rates)
    for cost in costs:
        seconds = ", ".join(f"{kind} {value:.3g}" for kind, value in cost.sample_seconds.items())
        table.add_row(cost.name, str(cost.ranks), seconds, f"{cost.gpu_hours:,.3g}", f"{cost.hours:,.3g}", f"{cost.encode_gpu_hours:,.3g}")
    whole = [sum(getattr(cost, name) for cost in costs) for name in ("gpu_hours", "hours", "encode_gpu_hours")]
    table.add_row("all", "", "", *(f"{value:,.4g}" for value in whole))
    return table


def _memory(recipe: Recipe) -> Table:
    """Per phase: GiB of one rank by part."""
    parts = ("frozen", "weights", "gradients", "optimizer", "kept", "peak_block", "total")
    shown = ("frozen weights", "trained weights", "gradients", "optimizer", "activations kept", "a block's peak", "in all")
    table = Table("GiB a rank", "ranks", "ZeRO", *shown, box=None, padding=(0, 2, 0, 0))
    for row in memories(recipe):
        values = (f"{getattr(row.memory, part) / 2**30:,.3g}" for part in parts)
        table.add_row(row.name, str(row.ranks), str(row.zero_stage), *values)
    return table


def _runner(recipe: Recipe) -> str:
    if recipe.runtime.runner == "ray":
        return f"ray ({recipe.runtime.ray_address or 'a local one, started and stopped with the run'})"
    return recipe.runtime.runner


def _states(target: str, recipe: Recipe, workspace: Workspace) -> tuple[str, list[JobState]]:
    """What the sources name, in words, and the jobs' states; unknown where the sources cannot be listed."""
    try:
        listing = list_sources(workspace.sources(recipe))
        total = sum(file.bytes for file in listing.files)
        return f"{len(listing.files)} files, {total / 1e6:.1f} MB", workspace.states(recipe, TARGETS[target])
    except SourceError as error:
        words = f"missing: {error}" if recipe.sources else f"the default samples, to be rendered into {workspace.samples}"
        return words, [JobState(spec, "unknown", None, None) for spec in jobs_for(*TARGETS[target])]


# ---- training ----------------------------------------------------------------------------------------------------


def _phases(recipe: Recipe, names: set[str]) -> Table:
    """Every phase of training: iterations, batch, shape, tokens, FLOPs, noise steps, memory."""
    columns = ("phase", "iterations", "batch", "images:videos", "frames x height x width", "tokens", "TFLOP a forward")
    table = Table(*columns, "PFLOP a train_step", "EFLOP in all", "noise steps", "GiB a rank", box=None, padding=(0, 2, 0, 0))
    text = recipe.text_encoder.max_length
    if "train_stage1" in names:
        stage = recipe.stage1
        lora = None if stage.full_finetune else stage.lora
        _row(
            table,
            "Stage I",
            stage.iterations,
            [(1.0, stage.batch_size, stage.shape)],
            "0:1",
            "–",
            (stage.transformer, stage.engine, lora, text),
        )
    if "train_stage2" in names:
        for phase in recipe.stage2.phases:
            of = [(part.share, part.batch, part.shape) for part in parts(phase)]
            model = (recipe.stage2.transformer, recipe.stage2.engine, None, text)
            _row(table, f"Stage II {phase.name}", phase.iterations, of, f"{phase.images}:{phase.videos}", _noise(phase), model)
    return table


def _noise(phase: PhaseConfig) -> str:
    words = "{}-{}".format(*phase.noise_steps)
    if phase.noise_steps_after is not None:
        after, steps = phase.noise_steps_after
        words += ", from {} on {}-{}".format(after, *steps)
    return words + (f" ({phase.subset})" if phase.subset else "")


def _row(
    table: Table,
    name: str,
    iterations: int,
    parts: list[tuple[float, int, FrameShape]],
    ratio: str,
    noise: str,
    model: tuple[TransformerConfig, EngineConfig, LoraConfig | None, int],
) -> None:
    config, engine, lora, text = model
    step = sum(
        share * batch * train_flops(config, shape.num_tokens + text, engine, adapters=lora is not None) for share, batch, shape in parts
    )
    largest = max(parts, key=lambda part: part[2].num_tokens)[2]
    tokens = largest.num_tokens + text
    table.add_row(
        name,
        f"{iterations:,}",
        " + ".join(str(batch) for _, batch, _ in parts),
        ratio,
        f"{largest.frames} x {largest.height} x {largest.width}",
        f"{largest.num_tokens:,} + {text}",
        f"{forward_flops(config, tokens) / 1e12:,.4g}",
        f"{step / 1e15:,.4g}",
        f"{step * iterations / 1e18:,.4g}",
        noise,
        f"{rank_memory(config, tokens, engine, lora).total / 2**30:,.3g}",
    )


def _models(recipe: Recipe, names: set[str]) -> Iterator[str]:
    """One line per model: parameters, what is trained, ranks, ZeRO, optimizer."""
    for name, stage in (("Stage I", recipe.stage1), ("Stage II", recipe.stage2)):
        if ("train_stage1" if stage is recipe.stage1 else "train_stage2") not in names:
            continue
        config, engine, optimizer = stage.transformer, stage.engine, stage.optimizer
        trained = ""
        if stage is recipe.stage1 and not recipe.stage1.full_finetune:
            lora = recipe.stage1.lora
            trained = (
                f", LoRA rank {lora.rank} alpha {lora.alpha:g} on the {lora.targets} set: "
                f"{lora_parameters(config, lora) / 1e6:,.4g} M trained"
            )
        yield (
            f"{name}: {config.flavour}, {parameters(config) / 1e6:,.5g} M parameters ({config.num_layers} blocks, width "
            f"{config.hidden_size}, {config.num_attention_heads} heads){trained}; {engine.num_ranks} ranks, ZeRO "
            f"{engine.zero_stage}, {engine.precision}, micro-batch {engine.micro_batch_size}; AdamW lr {optimizer.learning_rate:g} "
            f"betas {optimizer.betas[0]:g}, {optimizer.betas[1]:g}, weight decay {optimizer.weight_decay:g}, "
            f"clip {optimizer.clip_grad_norm:g}, text dropout {stage.text_dropout:g}"
        )
