"""Settings of the models, objectives, training, sampling and evaluation.

Imports pydantic only, so that recipes load in a light process. Every default is the paper's
(arXiv 2502.05179), with the section beside it; "code" marks what only the released inference code
says. Presets that differ (debug, single_gpu) live in `pipelines/recipes/`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every settings object: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def _rises(bounds: tuple[float, float]) -> tuple[float, float]:
    if not -math.inf < bounds[0] <= bounds[1] < math.inf:
        raise ValueError(f"[{bounds[0]:g}, {bounds[1]:g}] must be a low and a high end; use [{bounds[1]:g}, {bounds[0]:g}]")
    return bounds


def _is_odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError(f"{size} px must be odd, so that the kernel has a middle; use {size + 1}")
    return size


def _are_shares(shares: dict[str, float]) -> dict[str, float]:
    if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise ValueError(f"{shares} must be shares of 0 or more, not all 0")
    return shares


Decay = Annotated[float, Field(ge=0, lt=1)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_rises), Field(description="inclusive low and high, above 0")]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_rises), Field(description="inclusive low and high")]
JpegQuality = Annotated[float, Field(ge=1, le=100)]
NoiseStep = Annotated[int, Field(ge=0, le=999)]
NoiseSteps = Annotated[tuple[NoiseStep, NoiseStep], AfterValidator(_rises), Field(description="inclusive, indices of the alpha table")]
OddSize = Annotated[int, Field(ge=3), AfterValidator(_is_odd)]
ResizeModes = tuple[Share, Share, Share]
BlurKernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"]
Shares = Annotated[dict[str, float], AfterValidator(_are_shares)]


class FrameShape(Settings):
    """Pixels of one training or generation sample, (frames, height, width)."""

    frames: int = 49
    """8k+1, so that the VAE's first frame stands alone and latents are odd in number; 49 = 6 s at 8 fps (4.2). Or 5: the
    two latents of the paper's 1080p ablation, whose first frame the VAE's chunks split off by themselves."""
    height: int = 1072
    """Pixels, a multiple of 16 (8x VAE, 2x patch). "1080p" is 1072 (code: floor to 16)."""
    width: int = 1920
    """Pixels, a multiple of 16."""

    @model_validator(mode="after")
    def _divides(self) -> FrameShape:
        if self.frames != 5 and (self.frames < 1 or (self.frames - 1) % 8 != 0):
            low = max(1, (self.frames - 1) // 8 * 8 + 1)
            raise ValueError(
                f"frames = {self.frames} is neither 8k+1 nor 5 (the VAE keeps the first frame alone and packs the others by 4, "
                f"in pairs); use {low} or {low + 8}"
            )
        for side in ("height", "width"):
            value = getattr(self, side)
            if value < 16 or value % 16 != 0:
                raise ValueError(
                    f"{side} = {value} px does not divide by 16 (8x VAE times 2x patch); "
                    f"use {max(16, value // 16 * 16)} or {max(16, value // 16 * 16) + 16}"
                )
        return self

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(latent frames, height, width) after the 4x8x8 VAE."""
        return (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8

    @property
    def num_tokens(self) -> int:
        """Video tokens in the transformer after the 2x2 spatial patch."""
        t, h, w = self.latent_shape
        return t * (h // 2) * (w // 2)


class TransformerConfig(Settings):
    """One CogVideoX diffusion transformer. Defaults: CogVideoX-5B, that is Stage I (4.2; code stage1.yaml)."""

    flavour: Literal["debug", "2b", "5b"] = "5b"
    """Named size, for reports; the numbers below decide."""
    num_layers: Count = 42
    num_attention_heads: Count = 48
    attention_head_dim: Count = 64
    in_channels: Count = 16
    patch_size: Count = 2
    """Spatial patch; the temporal patch is 1."""
    text_embed_dim: Count = 4096
    """Width of the text encoder (T5 v1.1-XXL)."""
    time_embed_dim: Count = 512
    positions: Literal["rope", "sincos"] = Field(default="rope", exclude_if=lambda value: value == "rope")
    """rope: rotary. sincos: CogVideoX-2B's sinusoids added to the patches, Figure 8's ablation. Left out of files where it is
    rope, so that what was made before there was a choice keeps its name."""
    rope_theta: Positive = 10_000.0
    rope_axes: tuple[int, int, int] = (16, 24, 24)
    """Head dimensions given to time, height and width (code)."""
    noise_strength_embedding: bool = False
    """Stage II: embed the latent-degradation noise step (3.3; code ref_step_time_embedding)."""
    num_frames_embedding: bool = False
    """Stage II: embed the number of latent frames (code time_size_embedding)."""
    seed: int = 0
    """Seed of the random initialisation, used when there are no weights."""

    @model_validator(mode="after")
    def _divides(self) -> TransformerConfig:
        if sum(self.rope_axes) != self.attention_head_dim:
            raise ValueError(
                f"rope_axes {self.rope_axes} sum to {sum(self.rope_axes)}, but attention_head_dim is "
                f"{self.attention_head_dim}; the three must sum to it"
            )
        if any(axis % 2 for axis in self.rope_axes):
            raise ValueError(f"rope_axes {self.rope_axes}: each must be even (rotary pairs)")
        return self

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


STAGE2_TRANSFORMER = TransformerConfig(
    flavour="2b",
    num_layers=30,
    num_attention_heads=30,
    noise_strength_embedding=True,
    num_frames_embedding=True,
)
"""Stage II: CogVideoX-2B's block design, RoPE instead of sincos, two extra embeddings (3.3, 4.2; code stage2.yaml)."""


class LoraConfig(Settings):
    """Low-rank adapters of Stage I (3.2, 4.2)."""

    rank: Count = 128
    """4.2."""
    alpha: Positive = 1.0
    """code: SAT's LoraMixin default, so the scale is alpha / rank = 1/128, not 1."""
    targets: Literal["paper", "official"] = "paper"
    """paper: attention, FFN and adaLN (3.2); official: the released code's set, without FFN."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class VaeTilingConfig(Settings):
    """Spatial tiles of the cogvideox autoencoder. Its GroupNorm spans a tile, so the layout is a part of the result and
    follows from the shape alone, never from the memory that happens to be free."""

    decode_pass_latents: Count = 55_296
    """Largest temporal chunk (3 latent frames) x height x width in latents that is decoded in one piece. At 134x240
    this gives the released two slices in width; 528x960 stays whole (code)."""
    encode_pass_latents: Count = 161_280
    """As above for encoding (5 latent frames a chunk): 1072x1920 stays whole, as released; 1440x2560 is cut in two."""
    overlap: Natural = 16
    """Latents that a tile sees beyond its own part, at each inner side (code)."""
    blend: Natural = 0
    """Latents over which two neighbours are cross-faded; 0 is the released hard crop. At most 2 x overlap."""

    @model_validator(mode="after")
    def _fits(self) -> VaeTilingConfig:
        if self.overlap < 0 or not 0 <= self.blend <= 2 * self.overlap:
            raise ValueError(f"blend = {self.blend} must lie in 0..{2 * self.overlap}, twice overlap = {self.overlap}")
        return self


class VaeConfig(Settings):
    """The video autoencoder: 4x in time, 8x8 in space, 16 channels."""

    kind: Literal["cogvideox", "patch_pca"] = "cogvideox"
    """cogvideox: diffusers' AutoencoderKLCogVideoX. patch_pca: the debug stand-in, fitted on the run's own clips."""
    weights: str | None = None
    """Folder (diffusers layout) that holds config.json and diffusion_pytorch_model.safetensors."""
    chunk_mode: Literal["inference", "training", "unsplit"] = "inference"
    """Temporal chunking, part of the latent's definition: 17+16+16, 13+12+12+12, or one chunk (code)."""
    tiling: VaeTilingConfig = VaeTilingConfig()
    """Spatial slices and tiles of large videos."""
    scale_stage1: Positive | None = 0.7
    """Model input = latent x scale (code). None: 1/std of the run's latents, one global factor."""
    scale_stage2: Positive | None = 1.15258426
    """As above, for Stage II (code)."""


class TextEncoderConfig(Settings):
    """Prompt -> embeddings."""

    kind: Literal["t5", "debug_t5"] = "t5"
    """t5: transformers' T5EncoderModel with its tokenizer. debug_t5: the same class, tiny, seeded, byte tokens."""
    weights: str | None = None
    """Folder that holds text_encoder/ and tokenizer/ (diffusers layout)."""
    max_length: Count = 226
    """Tokens; shorter prompts are padded, without a mask (code)."""
    embed_dim: Count = 4096
    seed: int = 0


class OptimizerConfig(Settings):
    """AdamW (4.2)."""

    learning_rate: Positive = 4e-5
    """Constant, no scheduler (4.2; authors' thread #18)."""
    warmup_steps: Natural = 0
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: down to a tenth at the last iteration (of each phase, in Stage II)."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: NotNegative = 1e-4
    clip_grad_norm: NotNegative = 0.1
    """4.2."""
    ema_decay: Share | None = None
    """Also keep an average of the trained weights, decay at most this (it warms up as (1 + n) / (10 + n)); saved beside
    the weights as stage1_ema, stage2_ema. None: no average; the paper names none."""


class SpikeConfig(Settings):
    """What is done about a train_step whose loss or gradient is not finite, or whose loss is far above its like."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """stop: all ranks stop and name the samples. skip: the train_step changes nothing. rewind: back to the newest
    checkpoint, then past the train_steps from there to the fault."""
    loss_factor: Positive | None = None
    """A loss of more than so many times the median of `window` train_steps of its kind is a fault; None: only what is
    not finite."""
    window: int = Field(default=50, ge=1)
    at_most: Natural = 10
    """Faults of a phase that are skipped or rewound; one more stops the run."""


class WandbConfig(Settings):
    """Scalars at Weights & Biases. The key comes from its own places (WANDB_API_KEY, netrc), never from a recipe."""

    mode: Literal["off", "online", "offline"] = "off"
    """offline: kept beside losses.jsonl for `wandb sync`; online goes on so where the server cannot be reached."""
    project: str = "flashvideo"
    entity: str | None = None
    """User or team; None: the key's own."""
    timeout_s: float = Field(default=60, gt=0)
    """Longest wait for the server, before the first train_step of a phase and after the last."""


class WatchConfig(Settings):
    """What is looked at while a model trains, beside the losses."""

    tensorboard: bool = False
    """Also write TensorBoard scalars beside losses.jsonl (needs the tensorboard package)."""
    wandb: WandbConfig = WandbConfig()
    """Also send the same scalars to Weights & Biases (needs the wandb package, the extra `wandb`)."""
    validate_every: Count | None = None
    """train_steps between validations within a phase (validations.jsonl); None: before and after only."""
    sample_every: int | None = Field(default=None, ge=1)
    """train_steps (in Stage II of a phase) between sheets of held-out samples; one more at the end. None: none. Stage I samples
    their captions, Stage II enhances them in four steps; each time with the same noise."""
    samples: int = Field(default=2, ge=1)
    """Of a sheet."""
    sample_steps: int = Field(default=20, ge=1, le=1000)
    """Stage I: steps of a sheet's sampling; fewer than the 51 of a real sample, since the sheet only shows a trend."""
    sample_guidance: float = 8.0
    """Stage I: guidance scale of a sheet's sampling, as generate.stage1.guidance_scale; 0: none, half the time."""
    noise_step_bins: bool = False
    """Stage II: also validate at both ends of the noise range (half way on the path; not in the mean)."""
    peak_teraflops: Positive | None = None
    """Of one rank's device, for the share of it that is used (mfu). H200, bf16, dense: 989."""
    collapse_below: float = 0.3
    """Warn where the clean estimates of the middle bin have less than this share of truth's spread or sharpness."""


class EngineConfig(Settings):
    """How a model is trained on the hardware: DeepSpeed ZeRO."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """code: ZeRO-2 for both stages."""
    precision: Literal["bf16", "fp32"] = "bf16"
    cpu_offload: bool = False
    activation_checkpointing: bool = True
    keep_attention: bool = False
    """With activation_checkpointing: keep what attention gave, recompute the rest of a block."""
    compile_blocks: bool = False
    """torch.compile, block by block."""
    memory_check: bool = False
    """Before the first train_step, a full micro-batch of every shape of every phase goes forward and backward."""
    loader_workers: int = Field(default=0, ge=0)
    """Threads of a rank that read batches ahead; 0: read when the trainer asks."""
    num_ranks: Count = 8
    """Processes over the whole cluster, one per GPU (or per CPU core in debug)."""
    gpus_per_rank: NotNegative = 1
    cpus_per_rank: Positive = 4
    torch_threads: Count | None = None
    """Threads per rank; None leaves torch's default. Spinning threads on shared cores are ten times slower."""
    micro_batch_size: Count = 1
    """Samples per rank and forward; the global batch / (ranks x micro batch) is the accumulation."""
    checkpoint_every: Count = 500
    """train_steps between checkpoints."""
    keep_checkpoints: Count = 2
    async_checkpoints: bool = False
    """Write them while training goes on, from a copy in memory (12 bytes a trained weight that the rank holds)."""
    max_restarts: Natural = 3
    """Times that Ray Train restarts the group from the last checkpoint before it gives up."""
    log_every: Count = 10
    spikes: SpikeConfig = SpikeConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _works(self) -> EngineConfig:
        if self.keep_attention and self.zero_stage == 3:
            raise ValueError(
                "keep_attention = true does not work with zero_stage = 3 (DeepSpeed gathers weights inside the recomputation); "
                "use zero_stage 2, or keep_attention = false"
            )
        return self


class DiffusionConfig(Settings):
    """Stage I's objective: v-prediction on a zero-SNR schedule (code: VideoDiffusionLoss)."""

    num_timesteps: Count = 1000
    beta_start: Positive = 0.00085
    beta_end: Positive = 0.012
    snr_shift_scale: Positive = 1.0
    """code: 1.0 (CogVideoX-2B uses 3.0)."""
    timestep_sampling: Literal["stratified", "uniform"] = "stratified"
    """stratified over the global batch (code: uniform_sampling)."""


class Stage1Config(Settings):
    """Stage I: CogVideoX-5B + LoRA at 270p (3.2, 4.2)."""

    transformer: TransformerConfig = TransformerConfig()
    base_weights: str | None = None
    """Folder of the base model in diffusers layout (CogVideoX-5B/transformer). None: seeded random, only in debug."""
    lora: LoraConfig = LoraConfig()
    full_finetune: bool = False
    """Table 4's ablation: train every weight instead of adapters."""
    shape: FrameShape = FrameShape(frames=49, height=256, width=480)
    """"270p" (4.2; code)."""
    objective: DiffusionConfig = DiffusionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    iterations: Count = 50_000
    """4.2; videos only."""
    batch_size: Count = 32
    """Global (4.2)."""
    text_dropout: Share = 0.1
    """Share of samples with the all-zero embedding (4.2)."""
    validation_samples: Natural = 16
    """Held-out samples of the fixed-noise validation loss."""
    seed: int = 1


class LatentDegradationConfig(Settings):
    """DEG_latent: z -> alpha z + sqrt(1-alpha^2) n at a drawn noise step (3.3)."""

    noise_steps: NoiseSteps = (600, 900)
    """Inclusive range (4.2: 600-900, later 650-750)."""


class DegradationWalkConfig(Settings):
    """How far a drawn value may move from one frame to the next (mmagic, realbasicvsr_wogan)."""

    blur_sigma: float = 0.02
    blur_angle: float = 0.314
    generalized_beta: float = 0.05
    plateau_beta: float = 0.1
    sinc_omega: float = 0.0628
    noise_sigma: float = 0.1
    poisson_scale: float = 0.005
    jpeg_quality: float = 3.0


class PixelDegradationConfig(Settings):
    """DEG_pixel, recipe `deg_pixel_v1` (3.3: "blur and resize operations with randomized strengths").

    The exact ranges are not published; these are Real-ESRGAN's / RealBasicVSR's (mmagic), as the authors point to.
    Names that end in _1 and _2 are the strong branch's two orders.
    """

    strong_probability: Share = 0.5
    """Share of the samples that training reads (code: aug_prob)."""
    downscale: PositiveRange = (4.0, 8.0)
    """code: scale_range 4 ~ 8; of the weak branch, and of the strong one's last resize."""
    blur_kernels: Annotated[dict[BlurKernel, float], AfterValidator(_are_shares)] = {
        "iso": 0.405,
        "aniso": 0.225,
        "generalized_iso": 0.108,
        "generalized_aniso": 0.027,
        "plateau_iso": 0.108,
        "plateau_aniso": 0.027,
        "sinc": 0.1,
    }
    """Kind of kernel -> its share."""
    blur_sizes: Annotated[tuple[OddSize, ...], Field(min_length=1)] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Pixels, odd."""
    blur_sigma_1: PositiveRange = (0.2, 3.0)
    blur_sigma_2: PositiveRange = (0.2, 1.5)
    second_blur_probability: Share = 0.8
    generalized_beta: PositiveRange = (0.5, 4.0)
    plateau_beta: PositiveRange = (1.0, 2.0)
    sinc_omega_small: PositiveRange = (math.pi / 3, math.pi)
    """rad/px, kernels below 13 px."""
    sinc_omega_large: PositiveRange = (math.pi / 5, math.pi)
    final_sinc_omega: PositiveRange = (math.pi / 3, math.pi)
    final_sinc_probability: Share = 0.8
    resize_modes_1: ResizeModes = (0.2, 0.7, 0.1)
    """Shares of up, down, keep."""
    resize_modes_2: ResizeModes = (0.3, 0.4, 0.3)
    resize_up_1: PositiveRange = (1.0, 1.5)
    resize_down_1: PositiveRange = (0.15, 1.0)
    resize_up_2: PositiveRange = (1.0, 1.2)
    resize_down_2: PositiveRange = (0.3, 1.0)
    gaussian_noise_probability: Share = 0.5
    """Otherwise Poisson."""
    gray_noise_probability: Share = 0.4
    noise_sigma_1: NotNegativeRange = (1.0, 30.0)
    """Of 255."""
    noise_sigma_2: NotNegativeRange = (1.0, 25.0)
    poisson_scale_1: NotNegativeRange = (0.05, 3.0)
    poisson_scale_2: NotNegativeRange = (0.05, 2.5)
    jpeg_probability: Share = 0.5
    """Of clips; an image always passes through JPEG."""
    jpeg_quality: Annotated[tuple[JpegQuality, JpegQuality], AfterValidator(_rises)] = (30.0, 95.0)
    video_compression_probability: Share = 0.5
    video_codecs: Shares = {"libx264": 0.67, "mpeg4": 0.33}
    """FFmpeg encoder -> its share. Not libx265: the one inside PyAV 18.1 corrupts the heap on small pictures."""
    bits_per_pixel: PositiveRange = (0.05, 0.5)
    """Of the video encoders, at the size that they see; drawn log-uniformly."""
    walk: DegradationWalkConfig = DegradationWalkConfig()
    strength: NotNegative = 1.0
    """Multiplies (max - min) of the blur, noise and JPEG ranges."""
    copies: Literal["cached", "on_the_fly"] = "cached"
    """cached: `cached_variants` degraded latents of a clip are kept beside the clean ones. on_the_fly: the clean ones alone are, and a
    training rank decodes, degrades (a new draw each time) and encodes the clip whenever it reads it (engine.loader_workers ahead)."""
    cached_variants: Count = 4
    """Degraded latents kept per clip: the first is weak, the others are strong; which is read is drawn by `strong_probability`."""
    enabled: bool = True


class PhaseConfig(Settings):
    """One entry of Stage II's curriculum (4.2)."""

    name: str
    iterations: Count
    shape: FrameShape
    """Of the videos; images are one frame of the same height and width."""
    images: Natural = 0
    """Part of images in the images:videos ratio; the modality is drawn per global train_step."""
    videos: Natural = 1
    batch_size: Count = 64
    """Global, for videos (4.2)."""
    image_batch_size: Count | None = None
    """Global, for images; None: as batch_size."""
    noise_steps: NoiseSteps = (600, 900)
    """Inclusive range of DEG_latent (4.2)."""
    noise_steps_after: tuple[Natural, NoiseSteps] | None = None
    """(iteration, range): from that iteration of this phase on, the range is the second one (4.2)."""
    subset: str | None = None
    """Named subset of the clips, e.g. "preference"; None: everything kept."""
    degradation_strength: NotNegative = 1.0
    """Multiplies `pixel_degradation.strength`."""
    learning_rate: Positive | None = None
    """None: the stage's (4.2: one rate for all phases)."""

    @model_validator(mode="after")
    def _ratio(self) -> PhaseConfig:
        if self.images < 0 or self.videos < 0 or self.images + self.videos == 0:
            raise ValueError(f"phase {self.name}: images:videos = {self.images}:{self.videos} selects nothing")
        return self


PAPER_PHASES = (
    PhaseConfig(name="image_patches", iterations=25_000, shape=FrameShape(frames=1, height=528, width=960), images=1, videos=0),
    PhaseConfig(name="mixed_patches", iterations=30_000, shape=FrameShape(frames=49, height=528, width=960), images=1, videos=2),
    PhaseConfig(
        name="full_resolution",
        iterations=5_000,
        shape=FrameShape(frames=49, height=1072, width=1920),
        noise_steps_after=(1_000, (650, 750)),
    ),
    PhaseConfig(
        name="preference",
        iterations=700,
        shape=FrameShape(frames=49, height=1072, width=1920),
        noise_steps=(650, 750),
        subset="preference",
    ),
)
"""4.2: 540x960 patches of 2048x2048 images; patches and videos 1:2; full 1080p; the human-preference subset."""


class Stage2Config(Settings):
    """Stage II: flow matching from degraded latents to 1080p (3.3, 4.2)."""

    transformer: TransformerConfig = STAGE2_TRANSFORMER
    init_weights: str | None = None
    """Folder in diffusers layout to start from (e.g. CogVideoX-2B); None: seeded random."""
    pixel_degradation: PixelDegradationConfig = PixelDegradationConfig()
    latent_degradation: bool = True
    """False: Table 6's ablation, pixel degradation only."""
    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)] = PAPER_PHASES
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    text_dropout: Share = 0.1
    time_shift: Positive | None = None
    """Warp of the drawn t as in sampling; the released draft leaves it open. None: plain U(0,1)."""
    validation_samples: Natural = 16
    """Held-out samples of the fixed-noise validation loss."""
    seed: int = 2


class LatentsConfig(Settings):
    """What precompute_latents keeps for training."""

    frame_rate_hz: Positive = 8.0
    """4.1: the model sees 8 frames a second."""
    patches_per_clip: Count = 4
    """Fixed random crops kept per clip for the patch phases."""
    video_frames_as_images: bool = False
    """Also take the middle frame of every video clip as an image: for sources with few images (debug). 4.1: images only."""
    motion_edges: tuple[float, float, float, float] = (2.0, 4.0, 8.0, 16.0)
    """Scores (px at 360 px short side per 1/8 s) between very low, low, medium, high and very high motion, the words in
    front of Stage II's captions. The words are the code's, the edges are not published; these are ours."""
    shard_bytes: Count = 1_000_000_000
    """Size of a safetensors shard at which the next one starts."""


class Stage1SamplingConfig(Settings):
    """Text -> 270p: SDE-DPM++(2M) with dynamic guidance (code: VPSDEDPMPP2MSampler)."""

    num_steps: Count = 51
    """code (paper: 50)."""
    guidance_scale: float = 8.0
    """g(t) = 1 + scale * (1 - cos(pi ((S-t)/S)^exponent)) / 2."""
    guidance_exponent: float = 5.0


class AttentionConfig(Settings):
    """How Stage II attends while it samples: full, or inside 3D windows where the clip moves little (6.1)."""

    kind: Literal["full", "window"] = "full"
    """window: outputs differ from the released model's; it was trained with full attention."""
    window: tuple[int, int, int] = (7, 11, 11)
    """Tokens in (time, height, width), odd (6.1). Widened for clips that move, see `choose_window`."""
    tile: tuple[int, int, int] = (2, 8, 8)
    """Tokens of a block in (time, height, width). On a GPU their product must be 128; (2, 8, 8) computes least at 1080p."""
    exact: bool = False
    """True: each token sees exactly its window; False: all of every tile that the window reaches. Equal in blocks."""
    full_above_motion_px: float = 8.0
    """Clips that move more (px at 360 px short side per 1/8 s, 95th percentile) get full attention. Ours; 6.1 says only
    that windows break at large motion."""
    head_chunk: Count | None = None
    """Heads attended at once; None: all. Less memory, the same result."""

    @model_validator(mode="after")
    def _extents(self) -> AttentionConfig:
        if any(size < 1 or size % 2 == 0 for size in self.window) or any(extent < 1 for extent in self.tile):
            raise ValueError(f"window {self.window} needs odd extents and tile {self.tile} positive ones")
        if self.head_chunk is not None and self.head_chunk < 1:
            raise ValueError(f"head_chunk = {self.head_chunk} must be 1 or more, or None")
        return self


class Stage2SamplingConfig(Settings):
    """270p -> 1080p: Euler on the flow (3.3; code flow_video.py)."""

    num_steps: Count = 4
    """Paper; the released default is 5."""
    guidance_scale: float = 13.0
    noise_step: int = 675
    shift: Positive = 2.5
    compat: Literal["fp32", "official-bf16"] = "fp32"
    """official-bf16 reproduces the released rounding of time and noise step."""
    attention: AttentionConfig = AttentionConfig()


class PromptRewriteConfig(Settings):
    """Short prompts -> long ones, by a language model behind OpenAI's chat protocol (both stages saw long captions only)."""

    base_url: str
    """Of the server, up to and with /v1."""
    model: str
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; None: the server wants none. A key never stands in a recipe."""
    long_enough_words: int = 60
    """Prompts of so many words stay as they are."""
    max_tokens: Count = 300
    seed: int = 0
    timeout_s: float = 60.0


class GenerateConfig(Settings):
    """The generate job: prompts -> Stage I previews -> Stage II videos."""

    prompts: tuple[str, ...] = ()
    """Empty: the captions of the held-out clips."""
    num_prompts: Count = 4
    """At most this many are generated."""
    motion: Literal["very low", "low", "medium", "high", "very high"] = "medium"
    """Motion word in front of Stage II's prompt (code)."""
    stage1: Stage1SamplingConfig = Stage1SamplingConfig()
    stage2: Stage2SamplingConfig = Stage2SamplingConfig()
    video_quality_crf: int = 12
    """x264 constant rate factor of the written mp4 files."""
    interpolation: Literal["none", "dis", "rife"] = "none"
    """More frames between Stage II's: dis (optical flow, no weights) or rife (RIFE 4.6). An extra file; the others stay."""
    interpolation_factor: int = Field(default=3, ge=2)
    """3: 8 -> 24 frames a second."""
    interpolation_weights: str | None = None
    """RIFE 4.6's flownet.pkl."""
    rewriting: PromptRewriteConfig | None = None
    """None: prompts are taken as they are."""
    seed: int = 3


class EvaluationConfig(Settings):
    """The evaluate job."""

    vbench_data: str | None = None
    """Folder with VBench's data files (VBench_full_info.json, ...); None: the parts that need them are left out, and the report says so."""
    held_out_clips: Count = 8
    """Held-out clips that are degraded, enhanced and compared with truth."""
    downscale: Positive = 8.0
    """Degradation of the held-out clips: antialiased bilinear down by this factor and up again."""
    frame_metrics: tuple[str, ...] = ("piqe",)
    """pyiqa metric names; the paper's are musiq, maniqa, clipiqa and niqe."""
    frame_weights: str | None = None
    """Folder of the metrics' files (flashvideo/evaluation/networks/frame_metrics.py); None: pyiqa downloads what it lacks."""
    frame_stride: int = Field(default=1, ge=1)
    """Every n-th frame enters the frame metrics; recorded with the numbers."""
    dover: Literal["none", "stand_in", "command"] = "none"
    """Who gives DOVER's raw scores: nobody, a closed form that means nothing, or `dover_command`."""
    dover_command: tuple[str, ...] = ()
    """Program and arguments; with a video's path behind them it prints [raw aesthetic, raw technical]."""
    sharpness_band: tuple[float, float] = (0.85, 1.25)
    """Gate of the debug run: mean gradient magnitude of the enhanced clips over truth's."""
    psnr_margin_db: float = 3.0
    """Gate of the debug run: PSNR may fall below the input's by at most this."""
    seed: int = 4


class SweepConfig(Settings):
    """What `flashvideo sweep` goes through: one setting of Stage II's sampling at a time. Part of no job's fingerprint."""

    nfe: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Euler steps (Table 8)."""
    guidance: tuple[Annotated[float, Field(ge=0)], ...] = (1, 4, 7, 10, 13, 16, 19, 22)
    """Guidance scales (Table 9)."""
    noise: tuple[Annotated[int, Field(ge=0, le=999)], ...] = (600, 650, 675, 700, 725, 750, 800, 850)
    """Steps of DEG_latent: both groups of Table 10."""
    resolution: tuple[tuple[int, int], ...] = ((1072, 1920), (1440, 2560))
    """Height and width of the enhanced videos (Table 5: 1080p and 2K)."""
    inputs: Literal["held_out", "prompts"] = "held_out"
    """held_out: clips with truth, degraded as in evaluation. prompts: Stage I's videos of the generate job (the paper's way)."""
    items: int | None = Field(default=None, ge=1)
    """At most so many clips or prompts; None: evaluation.held_out_clips, or every prompt."""
    strict: bool = False
    """Exit code 1 where a row is over fewer items than were asked for; the table, which says so, is written all the same."""
