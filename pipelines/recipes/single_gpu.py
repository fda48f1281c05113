"""One 80 GB GPU: the paper's models and numbers, fewer iterations, smaller batches by accumulation."""

from __future__ import annotations

from flashvideo.config import PAPER_PHASES, EngineConfig
from pipelines.recipe import Recipe, RuntimeConfig
from pipelines.recipes.paper import paper


def single_gpu() -> Recipe:
    """The paper's recipe scaled to one GPU: a tenth of the iterations, an eighth of the batch, 540x960 to the end."""
    recipe = paper()
    engine = EngineConfig(
        num_ranks=1, micro_batch_size=1, cpus_per_rank=8, checkpoint_every=100, memory_check=True, loader_workers=2, async_checkpoints=True
    )
    patch = PAPER_PHASES[1].shape
    phases = tuple(
        phase.model_copy(
            update={
                "iterations": max(100, phase.iterations // 10),
                "batch_size": 8,
                "image_batch_size": 32,
                "shape": phase.shape if phase.shape.num_tokens < patch.num_tokens else patch,
                "noise_steps_after": (100, phase.noise_steps_after[1]) if phase.noise_steps_after else None,
            }
        )
        for phase in PAPER_PHASES
    )
    return recipe.model_copy(
        update={
            "name": "single_gpu",
            "stage1": recipe.stage1.model_copy(update={"iterations": 5_000, "batch_size": 8, "engine": engine}),
            "stage2": recipe.stage2.model_copy(update={"phases": phases, "engine": engine}),
            "runtime": RuntimeConfig(workers=4, gpus_per_model_worker=1, worker_memory_bytes=8_000_000_000),
        }
    )
