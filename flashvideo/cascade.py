"""Prompt -> 270p preview -> 1080p video: the class that users import.

    cascade = FlashVideoCascade.from_folders(stage1=..., stage2=..., vae=..., text_encoder=...)
    preview = cascade.preview(["a red fox ..."], FrameShape(height=256, width=480), seeded([0]))
    video = cascade.enhance(preview, ["a red fox ..."], FrameShape(), seeded([0]))

Source: FlashVideo (arXiv 2502.05179) section 3 and its released inference code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo.config import (
    AttentionConfig,
    DiffusionConfig,
    FrameShape,
    Stage1SamplingConfig,
    Stage2SamplingConfig,
    TextEncoderConfig,
    VaeConfig,
)
from flashvideo.models.lora import load_stage1
from flashvideo.models.text_encoder import TextEncoder, build_text_encoder
from flashvideo.models.transformer import CogVideoXTransformer, load_transformer
from flashvideo.models.vae import VideoAutoencoder, load_autoencoder, model_input_scale
from flashvideo.models.window_attention import AttentionOptions, choose_window
from flashvideo.motion import clip_motion_px
from flashvideo.sampling.stage1 import Progress, sample_stage1
from flashvideo.sampling.stage2 import enhance_latents


def seeded(seeds: Sequence[int]) -> tuple[torch.Generator, ...]:
    """One CPU generator a seed."""
    return tuple(torch.Generator().manual_seed(seed) for seed in seeds)


def enlarge(video: Tensor, height: int, width: int) -> Tensor:
    """B C T H W resized to height x width, bilinear with antialiasing, as between the released stages."""
    frames = video.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return frames.unflatten(0, (video.shape[0], -1)).transpose(1, 2)


def stage2_prompt(prompt: str, motion: str) -> str:
    """The prompt as Stage II was trained: "medium motion," in front (code). Stage I takes the prompt as it is."""
    return f"{motion} motion,{prompt}"


def attention_options(config: AttentionConfig, video: Tensor, shape: FrameShape) -> AttentionOptions:
    """How Stage II attends to these videos (B C T H W in [-1, 1]) at that output shape.

    One window for the batch: that of the clip that moves most (`clip_motion_px` at 8 frames a second, measured only
    when the config asks for windows).
    """
    if config.kind == "full":
        return AttentionOptions(None, config.head_chunk)
    motion_px = max(clip_motion_px(clip) for clip in video)
    frames, height, width = shape.latent_shape
    return AttentionOptions(choose_window(motion_px, (frames, height // 2, width // 2), config), config.head_chunk)


class FlashVideoCascade:
    """Both stages, the autoencoder and the text encoder. Devices and dtypes are those of the parts as given."""

    def __init__(
        self,
        stage1: CogVideoXTransformer | None,
        stage2: CogVideoXTransformer | None,
        vae: VideoAutoencoder,
        text_encoder: TextEncoder,
        *,
        vae_config: VaeConfig,
        stage1_sampling: Stage1SamplingConfig | None = None,
        stage2_sampling: Stage2SamplingConfig | None = None,
        diffusion: DiffusionConfig | None = None,
        latent_degradation: bool = True,
    ) -> None:
        """`stage1` may be None for enhancing only, `stage2` for previews only. `diffusion` is Stage I's schedule."""
        self.stage1, self.stage2, self.vae, self.text_encoder = stage1, stage2, vae, text_encoder
        self.stage1_sampling = stage1_sampling or Stage1SamplingConfig()
        self.stage2_sampling = stage2_sampling or Stage2SamplingConfig()
        self.diffusion = diffusion or DiffusionConfig()
        self.latent_degradation = latent_degradation
        self.scales = {stage: model_input_scale(vae_config, vae, stage) for stage in (1, 2)}

    @classmethod
    def from_folders(
        cls,
        stage1: Path | str | None,
        stage2: Path | str | None,
        vae: Path | str,
        vae_config: VaeConfig,
        text_encoder: TextEncoderConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        stage1_sampling: Stage1SamplingConfig | None = None,
        stage2_sampling: Stage2SamplingConfig | None = None,
        diffusion: DiffusionConfig | None = None,
        latent_degradation: bool = True,
    ) -> FlashVideoCascade:
        """Loads every part strictly. `stage1`: an adapter with base.json beside it, or a whole transformer.

        `dtype` is the transformers'; the autoencoder stays fp32. Raises WeightsError when files are missing or do not fit.
        """
        return cls(
            None if stage1 is None else load_stage1(stage1, device, dtype),
            None if stage2 is None else load_transformer(stage2, device, dtype).eval().requires_grad_(False),
            load_autoencoder(vae, vae_config, device),
            build_text_encoder(text_encoder, device),
            vae_config=vae_config,
            stage1_sampling=stage1_sampling,
            stage2_sampling=stage2_sampling,
            diffusion=diffusion,
            latent_degradation=latent_degradation,
        )

    @torch.no_grad()
    def preview(
        self, prompts: Sequence[str], shape: FrameShape, generators: Sequence[torch.Generator], progress: Progress | None = None
    ) -> Tensor:
        """Stage I: B C T H W in [-1, 1], fp32, not rounded to 8 bits, one video a prompt.

        One CPU generator a prompt. Raises ValueError when the cascade was built without Stage I.
        """
        if self.stage1 is None:
            raise ValueError("this cascade was built without Stage I; give it one to make previews")
        text = self.text_encoder.encode(prompts).embeddings
        latents = sample_stage1(self.stage1, text, shape, self.stage1_sampling, generators, progress, self.diffusion)
        return self.vae.decode(latents / self.scales[1]).clamp(-1, 1)

    @torch.no_grad()
    def enhance(
        self,
        video: Tensor,
        prompts: Sequence[str],
        shape: FrameShape,
        generators: Sequence[torch.Generator],
        motion: str = "medium",
        progress: Progress | None = None,
    ) -> Tensor:
        """Stage II: any video B C T H W in [-1, 1] -> the same at `shape`'s height and width, in [-1, 1], fp32.

        The video is enlarged, encoded (latents are sampled), degraded in latent space and enhanced. One CPU generator a
        video. Raises ValueError when the number of frames is not `shape`'s, or the cascade has no Stage II.
        """
        if self.stage2 is None:
            raise ValueError("this cascade was built without Stage II; give it one to enhance")
        if video.shape[2] != shape.frames or len(video) != len(prompts):
            raise ValueError(f"video is {tuple(video.shape)} (B C T H W); need {len(prompts)} videos (prompts) of {shape.frames} frames")
        enlarged = enlarge(video.float(), shape.height, shape.width)
        degraded = self.vae.encode(enlarged).sample(tuple(generators)) * self.scales[2]
        text = self.text_encoder.encode([stage2_prompt(prompt, motion) for prompt in prompts]).embeddings
        latents = enhance_latents(
            self.stage2,
            degraded,
            text,
            self.stage2_sampling,
            generators,
            progress,
            latent_degradation=self.latent_degradation,
            attention=attention_options(self.stage2_sampling.attention, video, shape),
        )
        return self.vae.decode(latents / self.scales[2]).clamp(-1, 1)

    def __call__(
        self,
        prompts: Sequence[str],
        preview_shape: FrameShape,
        shape: FrameShape,
        generators: Sequence[torch.Generator],
        motion: str = "medium",
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(preview, enhanced), each as the two methods give it; Stage II draws from the generators after Stage I."""
        preview = self.preview(prompts, preview_shape, generators, progress)
        return preview, self.enhance(preview, prompts, shape, generators, motion, progress)
