"""The whole story on two CPU cores in minutes: the paper recipe's jobs and classes at tiny sizes.

Stand-ins, each a named class recorded in what it makes: PatchPcaAutoencoder for the VAE, DebugT5Encoder for
T5-XXL, DIS flow and the aesthetic proxy for RAFT and LAION, attribute sentences for a captioner, a random
seeded base model for CogVideoX-5B, the top of the aesthetic proxy for the human-preference subset.
"""

from __future__ import annotations

from curation.config import (
    AestheticConfig,
    CaptionConfig,
    CurationConfig,
    DecodeConfig,
    MotionConfig,
    PolicyConfig,
    QualityConfig,
    Rule,
    ShotsConfig,
)
from flashvideo.config import (
    DiffusionConfig,
    EngineConfig,
    EvaluationConfig,
    FrameShape,
    GenerateConfig,
    LatentsConfig,
    LoraConfig,
    OptimizerConfig,
    PhaseConfig,
    PixelDegradationConfig,
    Stage1Config,
    Stage1SamplingConfig,
    Stage2Config,
    Stage2SamplingConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
)
from pipelines.recipe import Recipe, RuntimeConfig

TEXT_WIDTH = 64

TINY = TransformerConfig(flavour="debug", num_layers=4, num_attention_heads=2, text_embed_dim=TEXT_WIDTH, time_embed_dim=128)

CPU_ENGINE = EngineConfig(
    zero_stage=2,
    precision="fp32",
    activation_checkpointing=False,
    num_ranks=2,
    gpus_per_rank=0,
    cpus_per_rank=1,
    torch_threads=1,
    micro_batch_size=8,
    checkpoint_every=25,
)

PATCH_IMAGE = FrameShape(frames=1, height=64, width=112)
PATCH = FrameShape(frames=9, height=64, width=112)
FULL = FrameShape(frames=9, height=128, width=224)


def debug() -> Recipe:
    """Tiny models, the same flow."""
    return Recipe(
        name="debug",
        curation=CurationConfig(
            decode=DecodeConfig(deadline_s=60, memory_bytes=2_000_000_000),
            shots=ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25),
            motion=MotionConfig(raft=False),
            aesthetic=AestheticConfig(laion=False),
            quality=QualityConfig(metrics=("piqe",)),
            caption=CaptionConfig(backend="attributes"),
            policy=PolicyConfig(
                rules=(
                    Rule(name="resolution", column="short_side_px", at_least=1080, media="video"),
                    Rule(name="image_size", column="short_side_px", at_least=1080, media="image"),
                    Rule(name="motion", column="motion_proxy", at_least=1.1, media="video"),
                    Rule(name="aesthetic", column="aesthetic_proxy", at_least=3.0),
                    Rule(name="damage", column="corrupt_frames", at_most=0),
                    Rule(name="black", column="black_ratio", at_most=0.05),
                    Rule(name="repeats", column="repeated_ratio", at_most=0.7, media="video"),
                    Rule(name="duplicate", column="is_duplicate", at_most=0),
                ),
                held_out_share=0.2,
                preference_subset="top_aesthetic",
                preference_size=12,
            ),
        ),
        vae=VaeConfig(kind="patch_pca", chunk_mode="unsplit", scale_stage1=None, scale_stage2=None),
        text_encoder=TextEncoderConfig(kind="debug_t5", max_length=32, embed_dim=TEXT_WIDTH),
        latents=LatentsConfig(patches_per_clip=4, shard_bytes=64_000_000),
        stage1=Stage1Config(
            transformer=TINY,
            lora=LoraConfig(rank=64, alpha=64),
            shape=PATCH,
            objective=DiffusionConfig(),
            optimizer=OptimizerConfig(learning_rate=2e-3, clip_grad_norm=1.0),
            engine=CPU_ENGINE,
            iterations=150,
            batch_size=16,
        ),
        stage2=Stage2Config(
            transformer=TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True}),
            pixel_degradation=PixelDegradationConfig(cached_variants=4),
            phases=(
                PhaseConfig(
                    name="image_patches", iterations=120, shape=PATCH_IMAGE, images=1, videos=0, batch_size=16, noise_steps=(50, 200)
                ),
                PhaseConfig(name="mixed_patches", iterations=200, shape=PATCH, images=1, videos=2, batch_size=16, noise_steps=(50, 200)),
                PhaseConfig(
                    name="full_resolution",
                    iterations=40,
                    shape=FULL,
                    batch_size=4,
                    noise_steps=(50, 200),
                    noise_steps_after=(20, (90, 130)),
                ),
                PhaseConfig(name="preference", iterations=10, shape=FULL, batch_size=4, noise_steps=(90, 130), subset="preference"),
            ),
            optimizer=OptimizerConfig(learning_rate=2e-3, clip_grad_norm=1.0),
            engine=CPU_ENGINE,
        ),
        generate=GenerateConfig(
            num_prompts=4,
            stage1=Stage1SamplingConfig(num_steps=20, guidance_scale=2.0),
            stage2=Stage2SamplingConfig(num_steps=4, guidance_scale=1.0, noise_step=110),
        ),
        evaluation=EvaluationConfig(held_out_clips=8, downscale=8.0),
        runtime=RuntimeConfig(workers=2, worker_memory_bytes=1_500_000_000),
    )
