"""From the tagged store to lists of training samples: which latents and texts a phase reads.

The job process queries the store once and writes the samples of every phase as an Arrow file beside its outputs
(`write_samples`), which is also the record of what was trained on. The ranks map that file into memory
(`latent_loader.LatentSamples`) and need no store; the job process needs no torch (4 s and 600 MB).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.expression import any_of, quote_text
from curation.store import Store
from flashvideo.whole_files import writing
from pipelines.artifacts import Report
from pipelines.job import UserError
from pipelines.latent_plan import LatentProfile, degrades_while_training, stage1_text, stage2_text, stored_profile, text_hash
from pipelines.recipe import Recipe

SAMPLES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False, metadata={"about": "clip_id, and /crop<i> for a crop"}),
        pa.field("media", pa.string(), nullable=False, metadata={"about": "image | video"}),
        pa.field("clean_shard", pa.string(), nullable=False),
        pa.field("clean_tensor", pa.string(), nullable=False),
        pa.field("degraded_shards", pa.list_(pa.string())),
        pa.field("degraded_tensors", pa.list_(pa.string()), metadata={"about": "one is drawn each time"}),
        pa.field("text_shard", pa.string(), metadata={"about": "null: no caption, the all-zero embedding"}),
        pa.field("text_tensor", pa.string()),
        pa.field("clip", pa.struct([("clip_id", pa.string()), ("uri", pa.string()), ("start_us", pa.int64()), ("end_us", pa.int64()),
                                    ("media_type", pa.string()), ("split", pa.string())]),
                 metadata={"about": "where its pixels are; null where the degraded copies are kept"}),
        pa.field("crop", pa.int32(), metadata={"about": "number of the crop; null: the whole picture"}),
    ]
)  # fmt: skip
CLIP_COLUMNS = ("clip_id", "uri", "start_us", "end_us", "media_type", "split", "subsets", "caption", "motion_raft", "motion_proxy")


@dataclass(frozen=True)
class Release:
    """The dataset release that a training job reads, and the latents made of it."""

    recipe: Recipe
    tag: str
    run_id: str
    """Lineage of the latents."""
    clips: dict[str, dict[str, Any]]
    """Kept clips by id."""
    texts: dict[str, tuple[str, str]]
    """Text hash -> (shard, tensor)."""

    @classmethod
    def read(cls, store: Store, recipe: Recipe, upstream: Mapping[str, Report]) -> Release:
        """The release of the job's upstream reports."""
        tag = upstream["select"].outputs["tag"]
        clips = store.read("clips", CLIP_COLUMNS, "state = 'kept'", tag=tag).to_pylist()
        latents = upstream["precompute_latents"]
        where = f"encoder_run = {quote_text(str(latents.headline['encoder_run']))}"
        texts = store.read("text_embeddings", ("caption_hash", "shard", "tensor"), where).to_pylist()
        return cls(
            recipe,
            tag,
            str(latents.headline["latents_run"]),
            {clip["clip_id"]: clip for clip in clips},
            {row["caption_hash"]: (row["shard"], row["tensor"]) for row in texts},
        )


def samples_of(store: Store, release: Release, profile: LatentProfile, split: str, subset: str | None = None) -> pa.Table:
    """The samples of a profile, by id: one a clip, or one a crop. `subset` keeps the clips of that name only."""
    clips = {
        clip_id: clip
        for clip_id, clip in release.clips.items()
        if clip["split"] == split and (subset is None or subset in (clip["subsets"] or []))
    }
    where = f"{any_of('profile', [stored_profile(release.recipe, profile, release.run_id)])}"
    rows = store.read("latents", ("clip_id", "variant", "shard", "tensor"), where).to_pylist()
    samples: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["clip_id"], row["variant"])):
        if row["clip_id"] not in clips:
            continue
        crop, _, copy = row["variant"].rpartition("/")
        sample_id = f"{row['clip_id']}/{crop}" if crop else row["clip_id"]
        if sample_id not in samples:
            samples[sample_id] = _new_sample(release, profile, sample_id, clips[row["clip_id"]])
            samples[sample_id]["crop"] = int(crop.removeprefix("crop")) if crop else None
        if copy == "clean":
            samples[sample_id] |= {"clean_shard": row["shard"], "clean_tensor": row["tensor"]}
        else:
            samples[sample_id]["degraded_shards"].append(row["shard"])
            samples[sample_id]["degraded_tensors"].append(row["tensor"])
    return pa.Table.from_pylist(list(samples.values()), schema=SAMPLES)


def _new_sample(release: Release, profile: LatentProfile, sample_id: str, clip: Mapping[str, Any]) -> dict[str, Any]:
    text = stage1_text(clip) if profile.stage == 1 else stage2_text(clip, release.recipe.latents, profile.media)
    shard, tensor = (None, None) if text is None else release.texts[text_hash(text)]
    place = {"sample_id": sample_id, "media": profile.media, "text_shard": shard, "text_tensor": tensor}
    pixels = {"clip": clip} if profile.stage == 2 and degrades_while_training(release.recipe) else {}
    return place | {"degraded_shards": [], "degraded_tensors": []} | pixels


def write_samples(path: Path, tables: Iterable[pa.Table]) -> Path:
    """The samples as an Arrow file, written beside and renamed."""
    with writing(path) as beside, pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, SAMPLES) as writer:
        for table in tables:
            writer.write_table(table)
    return path


def held_out_samples(store: Store, release: Release, profile: LatentProfile) -> tuple[pa.Table, str]:
    """The samples to validate on and what they are: held-out ones, or training ones where nothing is held out."""
    held_out = samples_of(store, release, profile, "val")
    if held_out.num_rows:
        return held_out, "held-out clips"
    return samples_of(store, release, profile, "train"), "training clips, since none is held out"


def require(table: pa.Table, what: str, hint: str) -> pa.Table:
    """The table, or UserError where it is empty."""
    if table.num_rows == 0:
        raise UserError(f"{what} has no samples; {hint}")
    return table
