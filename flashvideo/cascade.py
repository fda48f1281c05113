"""Prompt -> 270p preview -> 1080p video: the class that users import.

    cascade = FlashVideoCascade.from_pretrained("pipeline-folder", device="cuda", dtype=torch.bfloat16, offload="48gb")
    preview = cascade.preview("a red fox ...", generators=seeded([0]))
    save_previews("fox.safetensors", preview, ["a red fox ..."], [0])
    video = cascade.enhance(preview, "a red fox ...", generators=seeded([0]), num_steps=4, motion="medium")

A pipeline folder is what `flashvideo convert` writes (flashvideo/convert.py shows its layout).

Source: FlashVideo (arXiv 2502.05179) section 3 and its released inference code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from flashvideo.convert import TRANSFORMER_2
from flashvideo.device_memory import offload_mode, on_device
from flashvideo.models.conversion import ADAPTER, TRANSFORMER
from flashvideo.models.lora import load_adapter, load_stage1, merge_lora
from flashvideo.models.text_encoder import TextEncoder, build_text_encoder
from flashvideo.models.transformer import CogVideoXTransformer, load_transformer
from flashvideo.models.vae import VideoAutoencoder, load_autoencoder, model_input_scale
from flashvideo.models.weight_files import WeightsError, read_config
from flashvideo.models.window_attention import AttentionOptions, choose_window
from flashvideo.motion import clip_motion_px
from flashvideo.sampling.stage1 import Progress, sample_stage1
from flashvideo.sampling.stage2 import enhance_latents
from flashvideo.whole_files import writing


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


Sampling = TypeVar("Sampling", Stage1SamplingConfig, Stage2SamplingConfig)

PREVIEW_SHAPE = FrameShape(frames=49, height=256, width=480)
"""Stage I as released: 6 s at 8 frames a second, "270p"."""


class FlashVideoCascade:
    """Both stages, the autoencoder and the text encoder. Devices and dtypes are those of the parts as given.

    With `offload` and `device`, parts come to the device when they work and leave it afterwards (device_memory.py).
    """

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
        offload: str = "none",
        device: torch.device | str | None = None,
    ) -> None:
        """`stage1` may be None for enhancing only, `stage2` for previews only. `diffusion` is Stage I's schedule.

        `device`: where parts work that `offload` (none, 80gb, 48gb, 24gb) keeps on the CPU; needed with it. Raises ValueError.
        """
        self.mode = offload_mode(offload)
        if offload != "none" and device is None:
            raise ValueError(f"offload = {offload} needs a device to work on, e.g. cuda")
        self.device = torch.device(device if device is not None else "cpu")
        self.progress_bars = False
        """True: one bar a stage on the terminal."""
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

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: str = "none",
        vae: VaeConfig | None = None,
        text_encoder: TextEncoderConfig | None = None,
        **settings: Any,
    ) -> FlashVideoCascade:
        """The cascade of a pipeline folder: the stages that are there, Stage I's adapter merged, strictly loaded.

        `vae` and `text_encoder` default to the folder's own parts with the released settings. `settings` are the
        constructor's: stage1_sampling, stage2_sampling, diffusion, latent_degradation. Raises WeightsError when a part is
        missing or does not fit, ValueError for an unknown `offload`.
        """
        folder, mode = Path(folder), offload_mode(offload)
        index = read_config(folder, "model_index.json")
        if index.get("_class_name") != cls.__name__:
            raise WeightsError(f"{folder} is a folder of {index.get('_class_name')}; want {cls.__name__}: flashvideo convert makes one")
        home = "cpu" if mode.stage_leaves else device
        stage1 = stage2 = None
        if TRANSFORMER in index:
            stage1 = load_transformer(folder / TRANSFORMER, home, dtype)
            if ADAPTER in index:
                load_adapter(stage1, folder / ADAPTER)
                merge_lora(stage1)
            stage1.eval().requires_grad_(False)
        if TRANSFORMER_2 in index:
            stage2 = load_transformer(folder / TRANSFORMER_2, home, dtype).eval().requires_grad_(False)
        vae_config = mode.autoencoder_config(vae or _vae_config(folder))
        return cls(
            stage1,
            stage2,
            load_autoencoder(folder / "vae", vae_config, home, torch.bfloat16 if mode.half_autoencoder else torch.float32),
            build_text_encoder(text_encoder or _text_config(folder), "cpu" if mode.text_encoder_leaves else device),
            vae_config=vae_config,
            offload=offload,
            device=device,
            **settings,
        )

    @torch.no_grad()
    def preview(
        self,
        prompts: str | Sequence[str],
        shape: FrameShape = PREVIEW_SHAPE,
        generators: Sequence[torch.Generator] | None = None,
        progress: Progress | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Stage I: B C T H W in [-1, 1], fp32, not rounded to 8 bits, one video a prompt.

        One CPU generator a prompt; none given: seeds 0, 1, ... `num_steps` and `guidance_scale` stand in for the
        sampling settings' (51, 8). `progress` is called as (steps done, steps in all); what it raises ends the sampling.
        Raises ValueError when the cascade was built without Stage I.
        """
        if self.stage1 is None:
            raise ValueError("this cascade was built without Stage I; give it one to make previews")
        prompts = _listed(prompts)
        generators = generators if generators is not None else seeded(range(len(prompts)))
        config = _changed(self.stage1_sampling, num_steps=num_steps, guidance_scale=guidance_scale)
        text = self._encode_text(prompts)
        with self._bar("Stage I", progress) as report, on_device(self.stage1, self.device, self.mode.stage_leaves):
            sequential = self.mode.sequential_guidance
            latents = sample_stage1(self.stage1, text, shape, config, generators, report, self.diffusion, sequential)
        with on_device(self.vae, self.device, self.mode.stage_leaves):
            return self.vae.decode(latents / self.scales[1]).clamp(-1, 1)

    @torch.no_grad()
    def enhance(
        self,
        video: Tensor,
        prompts: str | Sequence[str],
        shape: FrameShape | None = None,
        generators: Sequence[torch.Generator] | None = None,
        motion: str = "medium",
        progress: Progress | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        noise_step: int | None = None,
    ) -> Tensor:
        """Stage II: any video B C T H W in [-1, 1] -> the same at `shape`'s height and width, in [-1, 1], fp32.

        The video is enlarged, encoded (latents are sampled), degraded in latent space and enhanced. `shape`: 1072x1920 at
        the video's frames by default. One CPU generator a video; none given: seeds 0, 1, ... `num_steps`,
        `guidance_scale`, `noise_step` stand in for the sampling settings' (4, 13, 675). `motion`: very low, low, medium,
        high, very high, the word in front of the prompt. Raises ValueError when the number of frames is not `shape`'s, or
        the cascade has no Stage II.
        """
        if self.stage2 is None:
            raise ValueError("this cascade was built without Stage II; give it one to enhance")
        prompts, shape = _listed(prompts), shape or FrameShape(frames=video.shape[2])
        generators = generators if generators is not None else seeded(range(len(prompts)))
        if video.shape[2] != shape.frames or len(video) != len(prompts):
            raise ValueError(f"video is {tuple(video.shape)} (B C T H W); need {len(prompts)} videos (prompts) of {shape.frames} frames")
        config = _changed(self.stage2_sampling, num_steps=num_steps, guidance_scale=guidance_scale, noise_step=noise_step)
        attention = attention_options(config.attention, video, shape)
        attention = attention if self.mode.head_chunk is None else attention._replace(head_chunk=self.mode.head_chunk)
        enlarged = enlarge(video.float(), shape.height, shape.width)
        with on_device(self.vae, self.device, self.mode.stage_leaves):
            degraded = self.vae.encode(enlarged).sample(tuple(generators)) * self.scales[2]
        text = self._encode_text([stage2_prompt(prompt, motion) for prompt in prompts])
        with self._bar("Stage II", progress) as report, on_device(self.stage2, self.device, self.mode.stage_leaves):
            latents = enhance_latents(
                self.stage2,
                degraded,
                text,
                config,
                generators,
                report,
                self.mode.sequential_guidance,
                latent_degradation=self.latent_degradation,
                attention=attention,
            )
        with on_device(self.vae, self.device, self.mode.stage_leaves):
            return self.vae.decode(latents / self.scales[2]).clamp(-1, 1)

    def __call__(
        self,
        prompts: str | Sequence[str],
        preview_shape: FrameShape = PREVIEW_SHAPE,
        shape: FrameShape | None = None,
        generators: Sequence[torch.Generator] | None = None,
        motion: str = "medium",
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(preview, enhanced), each as the two methods give it; Stage II draws from the generators after Stage I."""
        generators = generators if generators is not None else seeded(range(len(_listed(prompts))))
        preview = self.preview(prompts, preview_shape, generators, progress)
        return preview, self.enhance(preview, prompts, shape, generators, motion, progress)

    def _encode_text(self, texts: Sequence[str]) -> Tensor:
        with on_device(self.text_encoder, self.device, self.mode.text_encoder_leaves):
            return self.text_encoder.encode(texts).embeddings

    @contextmanager
    def _bar(self, stage: str, progress: Progress | None) -> Iterator[Progress | None]:
        """The callback, and in front of it a bar on the terminal where bars are on."""
        if not self.progress_bars:
            yield progress
            return
        from rich.progress import Progress as Bars

        with Bars() as bars:
            task = bars.add_task(stage, total=None)

            def report(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)
                if progress is not None:
                    progress(done, total)

            yield report


def _listed(prompts: str | Sequence[str]) -> list[str]:
    return [prompts] if isinstance(prompts, str) else list(prompts)


def _changed(config: Sampling, **changes: float | int | None) -> Sampling:
    """The settings with those changes that are given."""
    return type(config).model_validate(config.model_dump() | {key: value for key, value in changes.items() if value is not None})


def _vae_config(folder: Path) -> VaeConfig:
    """Released settings; a fitted stand-in codec says itself what it is."""
    if read_config(folder / "vae").get("kind") == "patch_pca":
        return VaeConfig(kind="patch_pca", scale_stage1=None, scale_stage2=None)
    return VaeConfig(weights=str(folder / "vae"))


def _text_config(folder: Path) -> TextEncoderConfig:
    missing = [name for name in ("text_encoder", "tokenizer") if not (folder / name).is_dir()]
    if missing:
        raise WeightsError(
            f"{folder} has no {' and no '.join(missing)} (the released files hold none): link CogVideoX's text_encoder/ and tokenizer/ "
            "into it, or give text_encoder=TextEncoderConfig(weights=...)"
        )
    return TextEncoderConfig(weights=str(folder))


# ---- previews on disk --------------------------------------------------------------------------------------------


class Previews(NamedTuple):
    """Stage I's videos, as enhancing wants them."""

    video: Tensor
    """B C T H W in [-1, 1], fp32: Stage II must see what was sampled, not what an mp4 keeps of it."""
    prompts: list[str]
    seeds: list[int]


def save_previews(path: Path | str, video: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Keeps previews (B C T H W), so that enhancing accepted ones does not sample Stage I again. Written beside, renamed.

    Raises ValueError unless there is one prompt and one seed a video.
    """
    from safetensors.torch import save_file

    if not len(video) == len(prompts) == len(seeds):
        raise ValueError(f"{len(video)} videos, {len(prompts)} prompts, {len(seeds)} seeds; need one of each a video")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"kind": "flashvideo previews", "prompts": json.dumps(list(prompts)), "seeds": json.dumps(list(seeds))}
    with writing(path) as beside:
        save_file({"video": video.float().cpu().contiguous()}, beside, metadata=facts)


def load_previews(path: Path | str) -> Previews:
    """What `save_previews` wrote, bit for bit. Raises WeightsError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("kind") != "flashvideo previews":
                raise WeightsError(f"{path} holds no previews; save_previews writes them")
            return Previews(file.get_tensor("video"), json.loads(facts["prompts"]), json.loads(facts["seeds"]))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as previews: {error}") from None
