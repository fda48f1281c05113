"""Pictures of held-out samples while Stage II trains: the first frame degraded, enhanced by the model as it is, and true.

The loss does not show what a model makes of its input. The first latent frame stands alone in the autoencoder, so one
frame is decoded, whatever the clip's length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from flashvideo.config import Stage2SamplingConfig
from flashvideo.objectives.batch import Batch
from flashvideo.sampling.stage2 import enhance_latents
from flashvideo.training.engine import Engine
from flashvideo.whole_files import writing

FirstFrame = Callable[[Tensor], np.ndarray]
"""Model input (1, 1, C, H, W) of a clip's first latent frame -> its picture, uint8 H W 3."""

JPEG_QUALITY = 92


@dataclass(frozen=True)
class Sheets:
    """One picture a row: degraded, enhanced, true; `<folder>/step-00000040.jpg`."""

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
            self._save(rows, train_step)

    def _save(self, rows: list[list[np.ndarray]], train_step: int) -> None:
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{train_step:08d}.jpg"
        sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
        with writing(path) as beside:
            Image.fromarray(sheet).save(beside, format="JPEG", quality=JPEG_QUALITY)
