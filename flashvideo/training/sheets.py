"""Pictures of held-out samples while a stage trains, made by the model as it is.

The loss does not show what a model makes of its input. Stage I samples the captions: first, middle and last frame of a clip.
Stage II enhances the degraded clip; the first latent frame stands alone in the autoencoder, so one frame is decoded there,
whatever the clip's length. Seeds and settings stay the same, so the sheets of a run differ by the weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from flashvideo.config import Stage1Config, Stage1SamplingConfig, Stage2SamplingConfig
from flashvideo.objectives.batch import Batch
from flashvideo.sampling.stage1 import sample_stage1
from flashvideo.sampling.stage2 import enhance_latents
from flashvideo.training.engine import Engine
from flashvideo.whole_files import write_text, writing

Decode = Callable[[Tensor], np.ndarray]
"""Model input (1, T, C, H, W) of a clip -> its pictures, uint8 T H W 3."""

FirstFrame = Callable[[Tensor], np.ndarray]
"""Model input (1, 1, C, H, W) of a clip's first latent frame -> its picture, uint8 H W 3."""

SHEETS = "samples"
"""Folder of the sheets, beside the losses."""
SETTINGS = "sampling.json"
"""In that folder, Stage I: how its sheets are sampled, and of which samples."""
JPEG_QUALITY = 92


@dataclass(frozen=True)
class PreviewSheets:
    """Stage I: one clip a row: first, middle and last frame sampled from its caption, then the true ones; `<folder>/step-00000040.jpg`."""

    folder: Path
    batches: Callable[[], Sequence[Batch]]
    """One-sample batches with fresh generators: the same draws each time."""
    config: Stage1Config
    decode: Decode
    """Called on the first rank only."""

    @property
    def sampling(self) -> Stage1SamplingConfig:
        watch = self.config.engine.watch
        return Stage1SamplingConfig(num_steps=watch.sample_steps, guidance_scale=watch.sample_guidance)

    def write(self, engine: Engine, train_step: int) -> None:
        """Every rank calls it, since ZeRO-3 needs all of them in a forward."""
        rows: list[list[np.ndarray]] = []
        sample_ids: list[str] = []
        for batch in self.batches():
            sampled = sample_stage1(
                engine.model,  # type: ignore[arg-type]
                batch.text,
                self.config.shape,
                self.sampling,
                batch.generators,
                diffusion=self.config.objective,
                sequential_guidance=True,
                in_channels=self.config.transformer.in_channels,
            )
            if engine.ranks.is_first:
                clips = [self.decode(latents.to(sampled)) for latents in (sampled, batch.clean)]
                rows.append([clip[place] for clip in clips for place in (0, len(clip) // 2, len(clip) - 1)])
                sample_ids += batch.sample_ids
        if rows:
            save_sheet(self.folder, rows, train_step)
            write_text(self.folder / SETTINGS, json.dumps(self.sampling.model_dump() | {"sample_ids": sample_ids}, indent=1))


@dataclass(frozen=True)
class Sheets:
    """Stage II: one picture a row: degraded, enhanced, true; `<folder>/step-00000040.jpg`."""

    folder: Path
    batches: Callable[[], Sequence[Batch]]
    """One-sample batches with fresh generators: the same draws each time."""
    sampling: Stage2SamplingConfig
    latent_degradation: bool
    first_frame: FirstFrame
    """Called on the first rank only."""

    def write(self, engine: Engine, train_step: int) -> None:
        """Every rank calls it, since ZeRO-3 needs all of them in a forward."""
        rows = []
        for batch in self.batches():
            moved = batch.to(engine.ranks.device, engine.dtype)
            assert moved.degraded is not None
            enhanced = enhance_latents(
                engine.model,  # type: ignore[arg-type]
                moved.degraded,
                moved.text,
                self.sampling,
                batch.generators,
                latent_degradation=self.latent_degradation,
            )
            if engine.ranks.is_first:
                rows.append([self.first_frame(latents[:, :1].float()) for latents in (moved.degraded, enhanced, moved.clean)])
        if rows:
            save_sheet(self.folder, rows, train_step)


def save_sheet(folder: Path, rows: Sequence[Sequence[np.ndarray]], train_step: int) -> None:
    """Rows of pictures of one size, as <folder>/step-<train_step>.jpg."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{train_step:08d}.jpg"
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    with writing(path) as beside:
        Image.fromarray(sheet).save(beside, format="JPEG", quality=JPEG_QUALITY)
