"""embedding: the CLIP ViT-L/14 image embedding of a clip, unit length; aesthetic heads and search read it, no decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.config import AestheticConfig
from curation.ingest import hash_file
from curation.revisions import revision_of
from curation.schema import CLIPS, EMBEDDING_WIDTH
from curation.scores.aesthetic import key_pictures
from curation.scores.frame_embeddings import write_frame_embeddings
from curation.step import Batch, Lineage, Resources, StepError
from curation.tracks import read_clip_track
from curation.versions import SCORE_VERSIONS

CLIP_FOLDER = "openai/clip-vit-large-patch14"
CLIP_FILE = "model.safetensors"
MEMORY_BYTES = 3_000_000_000


class EmbeddingStep:
    """Mean over the key frames of their unit CLIP embeddings, unit length again, float16 x 768. Those of the frames go beside the track."""

    name = "embedding"
    reads: tuple[str, ...] = ("clip_id", "source_id", "start_us", "end_us")
    writes = pa.schema([CLIPS.field("embedding"), CLIPS.field("embedding_run")])

    def __init__(self, config: AestheticConfig, tracks: Path, track_run: str, device: str, network: Any = None) -> None:
        """`network`: (model, image processor) in place of the weights folder's, for tests with random weights."""
        import torch

        self.resources = Resources(cpus=1, gpus=1 if device.startswith("cuda") else 0, memory_bytes=MEMORY_BYTES)
        self._torch, self._device, self._tracks = torch, torch.device(device), tracks
        if network is None:
            self.lineage = embedding_lineage(config, track_run)
            network = _load(clip_weights(config))
        else:
            self.lineage = Lineage("score", self.name, "1", "CLIP ViT-L/14, random weights", parameters={"track": track_run})
        self._model, self._processor = network
        self._model = self._model.eval().to(self._device)

    def __call__(self, batch: Batch) -> Batch:
        vectors = []
        for row in batch.to_pylist():
            frames = self._frames(row)
            write_frame_embeddings(self._tracks, row["clip_id"], frames)
            mean = frames.mean(axis=0)
            vectors.append(mean / np.linalg.norm(mean))
        flat = pa.array(np.concatenate(vectors).astype(np.float16))
        columns = [pa.FixedSizeListArray.from_arrays(flat, EMBEDDING_WIDTH), pa.array([self.lineage.run_id] * len(vectors), pa.string())]
        return pa.RecordBatch.from_arrays(columns, schema=self.writes)

    def _frames(self, row: dict[str, Any]) -> np.ndarray:
        """float32 K 768, a unit vector per key frame."""
        track = read_clip_track(self._tracks, row["source_id"], row["clip_id"], row["start_us"], row["end_us"], read="keys")
        pixels = self._processor(images=key_pictures(track), return_tensors="pt")["pixel_values"].to(self._device)
        with self._torch.inference_mode():
            vectors = self._model(pixel_values=pixels).image_embeds.float()
        answer: np.ndarray = (vectors / vectors.norm(dim=-1, keepdim=True)).cpu().numpy()
        return answer


def clip_weights(config: AestheticConfig) -> Path:
    """The model's folder. Raises StepError that names it and what to change."""
    folder = Path(config.clip_weights) if config.clip_weights else None
    if folder is not None and (folder / "config.json").is_file():
        return folder
    where = f"{folder / 'config.json'} does not exist" if folder else "curation.aesthetic.clip_weights is not set"
    raise StepError(
        "weights_missing",
        f"embedding wants the folder of {CLIP_FOLDER} (config.json, preprocessor_config.json, {CLIP_FILE}): {where}; set "
        "curation.aesthetic.clip_weights, or curation.aesthetic.laion=false to do with aesthetic_proxy",
    )


def embedding_lineage(config: AestheticConfig, track_run: str) -> Lineage:
    """Lineage of embedding with the hash of the model's weights file."""
    folder = clip_weights(config)
    files = [folder / CLIP_FILE, folder / "pytorch_model.bin"]
    weights = next((hash_file(str(path)) for path in files if path.is_file()), None)
    if weights is None:
        raise StepError("weights_missing", f"embedding wants {files[0]}; it is not there")
    return Lineage("score", "embedding", SCORE_VERSIONS["embedding"], CLIP_FOLDER, weights, {"track": track_run}, revision_of(folder))


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True), CLIPImageProcessor.from_pretrained(folder)
