"""Reading training samples: latents and texts of the list that the job process wrote (pipelines/sample_lists.py)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from flashvideo.config import PixelDegradationConfig
from flashvideo.objectives.degradation import drawn_copy
from flashvideo.training.batches import LatentSample, Modality

if TYPE_CHECKING:
    from safetensors import safe_open

    from pipelines.degraded_reads import DegradedReads

OPEN_SHARDS = 32


class LatentSamples:
    """Samples of an Arrow file that `sample_lists.write_samples` wrote (flashvideo.training.batches.SampleSource)."""

    def __init__(
        self,
        path: Path,
        root: Path,
        scale: float,
        text_shape: Sequence[int],
        degradation: PixelDegradationConfig | None = None,
        reads: DegradedReads | None = None,
    ) -> None:
        """`scale`: latents to model input. `text_shape`: (L, D) of the all-zero embedding. `degradation`: Stage II's; None: clean
        latents only. `reads`: makes the degraded ends; None: they are copies that were kept."""
        self._root, self._scale, self._text_shape, self._degradation = root, scale, tuple(text_shape), degradation
        self._reads = reads
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._rows: dict[str, pa.Table] = {media: table.filter(pc.equal(table["media"], media)) for media in ("image", "video")}
        self._ids = {media: rows["sample_id"].to_pylist() for media, rows in self._rows.items()}
        self._threads = threading.local()

    def ids(self, modality: Modality) -> Sequence[str]:
        """Sample ids of that kind."""
        return self._ids[modality]

    def read(self, modality: Modality, index: int, generator: torch.Generator) -> LatentSample:
        """Draws the degraded copy, then the noise of the clean latents, then that of the degraded ones."""
        row = self._rows[modality].slice(index, 1).to_pylist()[0]
        kept = self._open(row["clean_shard"]).get_tensor(row["clean_tensor"])
        if self._degradation is None:
            return LatentSample(self._sampled(kept, generator), self._text(row))
        if self._reads is not None:
            worse, record = self._reads.read(row, generator)
            return LatentSample(self._sampled(kept, generator), self._text(row), self._sampled(worse, generator), record)
        copies = list(zip(row["degraded_shards"], row["degraded_tensors"], strict=True))
        if not copies:  # without DEG_pixel the degraded end is the clean latents (DEG_latent alone is left)
            clean = self._sampled(kept, generator)
            return LatentSample(clean, self._text(row), clean)
        shard, tensor = copies[drawn_copy(self._degradation, len(copies), generator)]
        clean = self._sampled(kept, generator)
        return LatentSample(clean, self._text(row), self._sampled(self._open(shard).get_tensor(tensor), generator))

    def _sampled(self, posterior: Tensor, generator: torch.Generator) -> Tensor:
        """Model input: a sample of the posterior (latents are sampled everywhere, never modes), scaled."""
        mean, logvar = posterior.float()
        noise = torch.randn(mean.shape, generator=generator)
        sampled: Tensor = (mean + (0.5 * logvar).exp() * noise) * self._scale
        return sampled

    def _text(self, row: Mapping[str, Any]) -> Tensor:
        if row["text_shard"] is None:
            return torch.zeros(self._text_shape)
        embedding: Tensor = self._open(row["text_shard"]).get_tensor(row["text_tensor"]).float()
        return embedding

    def _open(self, shard: str) -> safe_open:
        """The shard's file, open in this thread (the trainer's, or a loader worker's)."""
        if not hasattr(self._threads, "open"):
            self._threads.open = lru_cache(maxsize=OPEN_SHARDS)(self._open_shard)
        opened: safe_open = self._threads.open(shard)
        return opened

    def _open_shard(self, shard: str) -> safe_open:
        from safetensors import safe_open

        return safe_open(self._root / shard, framework="pt")
