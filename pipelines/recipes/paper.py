"""The paper's recipe (arXiv 2502.05179): the defaults of every settings class are its numbers.

What has no number in the paper is marked so beside the field. Written out here are the choices that only a
cluster run needs: ranks, micro-batches, weights' folders.
"""

from __future__ import annotations

from flashvideo.config import EngineConfig, Stage1Config, Stage2Config, TextEncoderConfig, VaeConfig, WatchConfig
from pipelines.recipe import Recipe, RuntimeConfig

ENGINE = EngineConfig(
    micro_batch_size=1,
    memory_check=True,  # the largest batch comes after 55,000 iterations
    loader_workers=2,
    async_checkpoints=True,
    watch=WatchConfig(tensorboard=True, validate_every=1_000, sample_every=1_000, noise_step_bins=True, peak_teraflops=989),  # H200, bf16
)
"""How a run of days is watched and kept going; none of it changes a sample or a draw."""


def paper() -> Recipe:
    """Sections 4.1-4.2 on 64 GPUs; Stage I 50,000 iterations, Stage II 25,000 + 30,000 + 5,000 + 700."""
    return Recipe(
        name="paper",
        sources=("/data/raw",),
        vae=VaeConfig(weights="weights/cogvideox-5b/vae"),
        text_encoder=TextEncoderConfig(weights="weights/cogvideox-5b"),
        stage1=Stage1Config(
            base_weights="weights/cogvideox-5b/transformer",
            engine=ENGINE.model_copy(update={"num_ranks": 32}),  # batch 32 (4.2), one sample a GPU
        ),
        stage2=Stage2Config(
            init_weights="weights/cogvideox-2b/transformer",
            engine=ENGINE.model_copy(update={"num_ranks": 64}),  # batch 64 (4.2), one sample a GPU
        ),
        runtime=RuntimeConfig(workers=64, gpus_per_model_worker=1, worker_memory_bytes=16_000_000_000),
    )
