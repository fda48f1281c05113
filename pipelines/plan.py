"""The table of jobs: what each needs, which part of the recipe it depends on, what it asks for and makes.

Light: orchestration reads it for order, dry runs and skipping; the job modules themselves go by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curation import versions
from flashvideo.config import Stage1Config, Stage2Config
from pipelines.latent_plan import latent_settings
from pipelines.recipe import Recipe


@dataclass(frozen=True)
class Demand:
    """What a job asks of the cluster."""

    cpus: float = 1
    gpus: float = 0
    note: str = ""

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"] + ([f"{self.gpus:g} GPU"] if self.gpus else []) + ([self.note] if self.note else [])
        return ", ".join(parts)


@dataclass(frozen=True)
class JobSpec:
    """One job of the story. `settings` picks the part of the recipe that names its output."""

    name: str
    summary: str
    needs: tuple[str, ...]
    version: int
    """Bumped when the job's code changes what it makes from equal settings."""
    settings: Callable[[Recipe], Any]
    demand: Callable[[Recipe], Demand]
    inputs: str
    outputs: str
    in_store: bool
    """True: the result is in the store's tables, so only the newest fingerprint counts as done."""


def _workers(recipe: Recipe) -> Demand:
    return Demand(cpus=recipe.runtime.workers, note=f"{recipe.runtime.workers} workers")


def _scorers(recipe: Recipe) -> Demand:
    gpu = recipe.curation.motion.raft or recipe.curation.aesthetic.laion
    return Demand(cpus=recipe.runtime.workers, gpus=1 if gpu else 0)


def _stage1_ranks(recipe: Recipe) -> Demand:
    engine = recipe.stage1.engine
    return Demand(engine.num_ranks * engine.cpus_per_rank, engine.num_ranks * engine.gpus_per_rank, f"{engine.num_ranks} ranks")


def _stage2_ranks(recipe: Recipe) -> Demand:
    engine = recipe.stage2.engine
    return Demand(engine.num_ranks * engine.cpus_per_rank, engine.num_ranks * engine.gpus_per_rank, f"{engine.num_ranks} ranks")


def _device(recipe: Recipe) -> Demand:
    return Demand(cpus=1, gpus=recipe.runtime.gpus_per_model_worker)


LOGISTICS = (
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoints",
    "max_restarts",
    "log_every",
    "num_ranks",
    "cpus_per_rank",
    "gpus_per_rank",
    "torch_threads",
    "zero_stage",
    "cpu_offload",
    "activation_checkpointing",
    "keep_attention",
    "compile_blocks",
    "memory_check",
    "loader_workers",
    "watch",
    "micro_batch_size",
)
"""Engine settings that do not change what is trained, but for rounding: a run goes on where they change."""


def trained_settings(stage: Stage1Config | Stage2Config) -> dict[str, Any]:
    """What decides a stage's weights: all settings but the engine's logistics."""
    return stage.model_dump(mode="json", exclude={"engine": set(LOGISTICS)})


JOBS: tuple[JobSpec, ...] = (
    JobSpec(
        name="ingest",
        summary="list, hash and probe the sources",
        needs=(),
        version=1,
        settings=lambda r: {
            "sources": r.sources,
            "decode": r.curation.decode,
            "max_failed_share": r.curation.max_failed_share,
            "probe": versions.PROBE_VERSION,
        },
        demand=_workers,
        inputs="files",
        outputs="table sources",
        in_store=True,
    ),
    JobSpec(
        name="detect_shots",
        summary="decode each source once, find cuts, cut clips",
        needs=("ingest",),
        version=1,
        settings=lambda r: {"decode": r.curation.decode, "shots": r.curation.shots, "pass": versions.PASS_VERSION},
        demand=_workers,
        inputs="table sources",
        outputs="table clips, tracks/",
        in_store=True,
    ),
    JobSpec(
        name="score",
        summary="motion, aesthetic, quality, health, duplicates",
        needs=("detect_shots",),
        version=1,
        settings=lambda r: {
            "motion": r.curation.motion,
            "aesthetic": r.curation.aesthetic,
            "quality": r.curation.quality,
            "text_overlay": r.curation.text_overlay,
            "dedup": r.curation.dedup,
            "decode": r.curation.decode,
            "versions": versions.SCORE_VERSIONS,
        },
        demand=_scorers,
        inputs="table clips, tracks/",
        outputs="score columns of clips",
        in_store=True,
    ),
    JobSpec(
        name="caption",
        summary="describe every clip",
        needs=("score",),
        version=1,
        settings=lambda r: {"caption": r.curation.caption},
        demand=_workers,
        inputs="table clips, key frames",
        outputs="table captions, clips.caption",
        in_store=True,
    ),
    JobSpec(
        name="select",
        summary="apply the policy, name subsets, tag the dataset",
        needs=("caption",),
        version=1,
        settings=lambda r: {"policy": r.curation.policy},
        demand=lambda r: Demand(),
        inputs="table clips",
        outputs="clips.state, tag",
        in_store=True,
    ),
    JobSpec(
        name="precompute_latents",
        summary="encode clips and captions once for training",
        needs=("select",),
        version=2,
        settings=latent_settings,
        demand=_device,
        inputs="tagged clips, source pixels",
        outputs="safetensors shards, tables latents and text_embeddings",
        in_store=False,
    ),
    JobSpec(
        name="train_stage1",
        summary="Stage I: LoRA on the base model at low resolution",
        needs=("precompute_latents",),
        version=1,
        settings=lambda r: {"stage1": trained_settings(r.stage1), "seed": r.seed},
        demand=_stage1_ranks,
        inputs="latents, text embeddings",
        outputs="stage1/ (peft adapter), losses",
        in_store=False,
    ),
    JobSpec(
        name="train_stage2",
        summary="Stage II: flow matching, four-phase curriculum",
        needs=("precompute_latents",),
        version=1,
        settings=lambda r: {"stage2": trained_settings(r.stage2), "seed": r.seed},
        demand=_stage2_ranks,
        inputs="clean and degraded latents, text embeddings",
        outputs="phase checkpoints, stage2/ (diffusers layout), losses",
        in_store=False,
    ),
    JobSpec(
        name="generate",
        summary="prompts to Stage I previews to Stage II videos",
        needs=("train_stage1", "train_stage2"),
        version=2,
        settings=lambda r: {"generate": r.generate, "seed": r.seed},
        demand=_device,
        inputs="stage1/, stage2/, prompts",
        outputs="mp4 files",
        in_store=False,
    ),
    JobSpec(
        name="evaluate",
        summary="frame quality, temporal flickering, totals, held-out enhancement",
        needs=("generate",),
        version=1,
        settings=lambda r: {"evaluation": r.evaluation, "sampling": r.generate.stage2, "seed": r.seed},
        demand=_device,
        inputs="mp4 files, held-out clips",
        outputs="results.json, pictures",
        in_store=False,
    ),
)

JOB_NAMES = tuple(job.name for job in JOBS)
CURATION_JOBS = JOB_NAMES[:5]


def job_spec(name: str) -> JobSpec:
    """The job of that name. Raises KeyError for an unknown one."""
    for job in JOBS:
        if job.name == name:
            return job
    raise KeyError(name)


def jobs_for(*targets: str) -> tuple[JobSpec, ...]:
    """The targets and all that they need, in running order."""
    wanted: set[str] = set()
    stack = list(targets)
    while stack:
        name = stack.pop()
        if name not in wanted:
            wanted.add(name)
            stack += job_spec(name).needs
    return tuple(job for job in JOBS if job.name in wanted)
