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
    SweepConfig,
    TextEncoderConfig,
    TransformerConfig,
    VaeConfig,
    WatchConfig,
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
    checkpoint_every=40,
    log_every=2,
)

STAGE1_WATCH = WatchConfig(sample_every=40, samples=2, sample_steps=10, sample_guidance=2.0)
"""Half way and at the end, sampled as generate does."""

PATCH_IMAGE = FrameShape(frames=1, height=64, width=112)
PATCH = FrameShape(frames=9, height=64, width=112)
FULL = FrameShape(frames=9, height=256, width=448)
"""Four times Stage I's side, as 1080p is to 270p. At this size the patch codec keeps 0.94 of the samples' gradient energy."""
NOISE, LATER_NOISE = (2, 10), (2, 6)
"""Steps of DEG_latent. The paper's 600-900 suit 23,000 tokens and more; at 84 to 1,344 tokens and 300 train_steps what a higher step
adds is not taken out again: at 8-24 the enhanced clips read 1.2-1.6 of truth's gradient, at 2-10 0.8-1.2 (docs/log.md)."""


def _curation() -> CurationConfig:
    """Every job of curation, with the scores that need no weights."""
    return CurationConfig(
        decode=DecodeConfig(deadline_s=60, memory_bytes=2_000_000_000, key_frame_short_side_px=540),
        shots=ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25),
        motion=MotionConfig(raft=False),
        aesthetic=AestheticConfig(laion=False),
        quality=QualityConfig(metrics=("piqe",), max_frames=1),
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
    )


def _stage1() -> Stage1Config:
    """LoRA on a seeded random base."""
    return Stage1Config(
        transformer=TINY,
        lora=LoraConfig(rank=64, alpha=64),
        shape=PATCH,
        objective=DiffusionConfig(),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, schedule="cosine", clip_grad_norm=1.0),
        engine=CPU_ENGINE.model_copy(update={"watch": STAGE1_WATCH}),
        iterations=80,
        batch_size=16,
        validation_samples=12,
    )


def _stage2() -> Stage2Config:
    """The four phases, tiny."""
    return Stage2Config(
        transformer=TINY.model_copy(update={"noise_strength_embedding": True, "num_frames_embedding": True}),
        pixel_degradation=PixelDegradationConfig(strong_probability=0.15, cached_variants=2),
        phases=(
            PhaseConfig(name="image_patches", iterations=60, shape=PATCH_IMAGE, images=1, videos=0, batch_size=12, noise_steps=NOISE),
            PhaseConfig(name="mixed_patches", iterations=160, shape=PATCH, images=1, videos=2, batch_size=12, noise_steps=NOISE),
            PhaseConfig(
                name="full_resolution",
                iterations=20,
                shape=FULL,
                batch_size=2,
                noise_steps=NOISE,
                noise_steps_after=(10, LATER_NOISE),
                learning_rate=2e-3,
            ),
            PhaseConfig(
                name="preference",
                iterations=8,
                shape=FULL,
                batch_size=2,
                noise_steps=LATER_NOISE,
                subset="preference",
                learning_rate=3e-4,
            ),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, schedule="cosine", clip_grad_norm=1.0),
        engine=CPU_ENGINE.model_copy(update={"watch": WatchConfig(sample_every=1_000, samples=1)}),  # a sheet at the end of each phase
        time_shift=2.5,  # as in sampling: the four Euler steps all start at t <= 0.55
        validation_samples=4,
    )


def debug() -> Recipe:
    """Tiny models, the same flow."""
    return Recipe(
        name="debug",
        curation=_curation(),
        vae=VaeConfig(kind="patch_pca", chunk_mode="unsplit", scale_stage1=None, scale_stage2=None),
        text_encoder=TextEncoderConfig(kind="debug_t5", max_length=96, embed_dim=TEXT_WIDTH),
        latents=LatentsConfig(
            patches_per_clip=2,
            video_frames_as_images=True,
            shard_bytes=8_000_000,
        ),
        stage1=_stage1(),
        stage2=_stage2(),
        generate=GenerateConfig(
            num_prompts=2,
            stage1=Stage1SamplingConfig(num_steps=10, guidance_scale=2.0),
            stage2=Stage2SamplingConfig(num_steps=4, guidance_scale=1.0, noise_step=3),
        ),
        evaluation=EvaluationConfig(held_out_clips=6, downscale=8.0),
        sweep=SweepConfig(noise=(2, 3, 4, 5, 6, 8, 10), resolution=((256, 448), (336, 592))),
        runtime=RuntimeConfig(workers=2, worker_memory_bytes=1_500_000_000),
    )
