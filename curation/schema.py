"""Every table and column of the store: type, unit, range and meaning, declared once.

A score's neighbour `<score>_run` is the lineage id of what made it (`runs.run_id`). Null means
unknown; 0 is a value; -1 does not exist.
"""

from __future__ import annotations

import pyarrow as pa

EMBEDDING_WIDTH = 768
"""CLIP ViT-L/14 image embedding, L2-normalised."""


def _f(name: str, type_: pa.DataType, about: str, unit: str = "", nullable: bool = True) -> pa.Field:
    metadata = {"about": about}
    if unit:
        metadata["unit"] = unit
    return pa.field(name, type_, nullable=nullable, metadata=metadata)


def _score(name: str, type_: pa.DataType, about: str, unit: str) -> list[pa.Field]:
    return [_f(name, type_, about, unit), _f(f"{name}_run", pa.string(), f"lineage of {name} (runs.run_id)")]


SOURCES = pa.schema(
    [
        _f("uri", pa.string(), "absolute path or URL; the key of the row", nullable=False),
        _f("source_id", pa.string(), "sha256 of the file's bytes, first 32 hex; equal for byte duplicates"),
        _f("dataset", pa.string(), "name of the folder or list that it was listed by"),
        _f("present", pa.bool_(), "listed at the last ingest"),
        _f("status", pa.string(), "new | probed | split | failed | duplicate"),
        _f("duplicate_of", pa.string(), "uri of the first file with the same bytes"),
        _f("media_type", pa.string(), "video | image"),
        _f("bytes", pa.int64(), "file size", "byte"),
        _f("modified_ns", pa.int64(), "modification time", "ns"),
        _f("container", pa.string(), "format name"),
        _f("codec", pa.string(), "codec name"),
        _f("pixel_format", pa.string(), "pixel format name"),
        _f("width", pa.int32(), "display width after rotation and sample aspect ratio", "px"),
        _f("height", pa.int32(), "display height after rotation and sample aspect ratio", "px"),
        _f("rotation_deg", pa.int32(), "clockwise rotation to display", "degree"),
        _f("sample_aspect_ratio", pa.float32(), "pixel width / height"),
        _f("frame_rate_hz", pa.float64(), "average frame rate", "Hz"),
        _f("variable_frame_rate", pa.bool_(), "frame times are not evenly spaced"),
        _f("declared_frames", pa.int64(), "frames that the container declares"),
        _f("decoded_frames", pa.int64(), "frames that were decoded"),
        _f("corrupt_frames", pa.int64(), "frames flagged or missing through damage"),
        _f("duration_s", pa.float64(), "length", "s"),
        _f("bit_depth", pa.int32(), "bits per component", "bit"),
        _f("hdr", pa.bool_(), "transfer is PQ or HLG"),
        _f("full_range", pa.bool_(), "luma uses 0-255"),
        _f("key_frame_interval_s", pa.float32(), "mean spacing of key frames", "s"),
        _f("cuts_us", pa.list_(pa.int64()), "times of the first frame after each cut", "us"),
        _f("ingest_run", pa.string(), "lineage of the probe"),
        _f("shots_run", pa.string(), "lineage of the decode pass and the shots"),
    ]
)

CLIPS = pa.schema(
    [
        _f("clip_id", pa.string(), "hash of (source_id, start_us, end_us); the key of the row", nullable=False),
        _f("source_id", pa.string(), "the file's content hash"),
        _f("uri", pa.string(), "where the file was last seen"),
        _f("dataset", pa.string(), "name of the folder or list that the file was listed by"),
        _f("media_type", pa.string(), "video | image"),
        _f("start_us", pa.int64(), "presentation time of the first frame", "us"),
        _f("end_us", pa.int64(), "presentation time where the clip ends (exclusive)", "us"),
        _f("duration_s", pa.float64(), "length", "s"),
        _f("num_frames", pa.int64(), "source frames in the span"),
        _f("frame_rate_hz", pa.float64(), "of the source", "Hz"),
        _f("shot", pa.int32(), "index of the shot within the source"),
        _f("width", pa.int32(), "display width", "px"),
        _f("height", pa.int32(), "display height", "px"),
        _f("short_side_px", pa.int32(), "min(width, height)", "px"),
        _f("split", pa.string(), "train | val, fixed when the source is first selected"),
        # health
        _f("corrupt_frames", pa.int64(), "damaged frames in the span"),
        _f("repeated_ratio", pa.float32(), "share of frames equal to the one before", "0-1"),
        _f("black_ratio", pa.float32(), "share of black frames", "0-1"),
        _f("luma_mean", pa.float32(), "mean luma", "0-255"),
        _f("blur", pa.float32(), "variance of the Laplacian at 360 px short side; low is blurred", "luma^2"),
        _f("letterbox_top_px", pa.int32(), "bar above the picture", "px"),
        _f("letterbox_bottom_px", pa.int32(), "bar below the picture", "px"),
        _f("letterbox_left_px", pa.int32(), "bar left of the picture", "px"),
        _f("letterbox_right_px", pa.int32(), "bar right of the picture", "px"),
        _f("health_run", pa.string(), "lineage of the health columns"),
        # motion
        *_score("motion_proxy", pa.float32(), "mean optical flow (OpenCV DIS), flashvideo-motion/1", "px at 360 px short side per 1/8 s"),
        _f("motion_top5", pa.float32(), "mean of the fastest 5 % of pixels (DIS)", "px at 360 px short side per 1/8 s"),
        _f("motion_camera", pa.float32(), "global affine part (DIS)", "px at 360 px short side per 1/8 s"),
        _f("motion_object", pa.float32(), "residual part (DIS)", "px at 360 px short side per 1/8 s"),
        _f("motion_pairs", pa.int32(), "valid frame pairs"),
        _f("camera_move", pa.string(), "static | pan left | pan right | tilt up | tilt down | zoom in | zoom out"),
        *_score("motion_raft", pa.float32(), "mean optical flow (RAFT large), flashvideo-motion/1", "px at 360 px short side per 1/8 s"),
        # looks
        *_score("aesthetic_proxy", pa.float32(), "colourfulness, sharpness, contrast, exposure; a stand-in for aesthetic", "1-10"),
        *_score("aesthetic", pa.float32(), "LAION sac+logos+ava1 head on CLIP ViT-L/14", "about 1-10"),
        _f("aesthetic_min", pa.float32(), "aesthetic of the key frame that has the lowest", "about 1-10"),
        *_score("piqe", pa.float32(), "pyiqa PIQE, lower is better", "0-100"),
        *_score("musiq", pa.float32(), "pyiqa MUSIQ (KonIQ), higher is better", "about 0-100"),
        *_score("clipiqa", pa.float32(), "pyiqa CLIP-IQA (RN50), higher is better", "0-1"),
        *_score("maniqa", pa.float32(), "pyiqa MANIQA (KonIQ), higher is better", "about 0-1"),
        *_score("niqe", pa.float32(), "pyiqa NIQE, lower is better", "about 2-20"),
        *_score("text_overlay", pa.float32(), "share of the picture under text that stays in place", "0-1"),
        *_score("embedding", pa.list_(pa.float16(), EMBEDDING_WIDTH), "CLIP ViT-L/14 image embedding, unit length", ""),
        # duplicates
        _f("perceptual_hash", pa.string(), "64-bit DCT hashes of the key frames, hex, space between"),
        _f("duplicate_cluster", pa.string(), "clip_id of the cluster's representative; null: alone"),
        _f("is_duplicate", pa.int8(), "1: in a cluster and not its representative"),
        _f("dedup_run", pa.string(), "lineage of the duplicate columns"),
        _f("semantic_cluster", pa.string(), "clip_id of the representative of clips with near embeddings; null: alone"),
        _f("is_semantic_duplicate", pa.int8(), "1: in a semantic cluster and not its representative"),
        _f("semantic_run", pa.string(), "lineage of the semantic columns"),
        # caption in use
        _f("caption", pa.string(), "text in use for training"),
        _f("caption_run", pa.string(), "lineage of caption"),
        # selection
        _f("state", pa.string(), "new | kept | rejected | failed"),
        _f("reject_reason", pa.string(), "names of every failing rule, comma between"),
        _f("reject_mask", pa.int64(), "bit i set: rule i of the policy failed"),
        _f("subsets", pa.list_(pa.string()), "named subsets, e.g. preference"),
        _f("select_run", pa.string(), "lineage of the selection"),
    ]
)

CAPTIONS = pa.schema(
    [
        _f("clip_id", pa.string(), "clip", nullable=False),
        _f("caption_run", pa.string(), "lineage; (clip_id, caption_run) is the key", nullable=False),
        _f("model", pa.string(), "model that wrote it"),
        _f("prompt_hash", pa.string(), "sha256 of the prompt, first 16 hex"),
        _f("start_us", pa.int64(), "window described", "us"),
        _f("end_us", pa.int64(), "window described", "us"),
        _f("text", pa.string(), "the caption"),
        _f("finish", pa.string(), "stop | length"),
        _f("words", pa.int32(), "length in words"),
        _f("flags", pa.list_(pa.string()), "failed checks: too_short, too_long, repeated, refusal, boilerplate, url"),
    ]
)

LATENTS = pa.schema(
    [
        _f("clip_id", pa.string(), "clip", nullable=False),
        _f("profile", pa.string(), "e.g. patch_pca/stage2/9x64x112/8fps; with clip_id and variant the key", nullable=False),
        _f("variant", pa.string(), "clean | crop<i>/clean | crop<i>/degraded<k>", nullable=False),
        _f("shard", pa.string(), "safetensors file, relative to the run root"),
        _f("tensor", pa.string(), "name in the shard; float mean and logvar stacked: 2 T C H W"),
        _f("shape", pa.list_(pa.int32()), "T C H W of mean"),
        _f("dtype", pa.string(), "of the stored tensor"),
        _f("frame_times_us", pa.list_(pa.int64()), "source times of the frames", "us"),
        _f("crop_px", pa.list_(pa.int32()), "x, y, width, height in the source's display picture", "px"),
        _f("degradation", pa.string(), "JSON of the drawn parameters; null: clean"),
        _f("sha256", pa.string(), "of the tensor's bytes"),
        _f("latents_run", pa.string(), "lineage: autoencoder, chunk mode, weights"),
    ]
)

TEXT_EMBEDDINGS = pa.schema(
    [
        _f("caption_hash", pa.string(), "sha256 of the text, first 32 hex", nullable=False),
        _f("encoder_run", pa.string(), "lineage of the encoder; with caption_hash the key", nullable=False),
        _f("shard", pa.string(), "safetensors file, relative to the run root"),
        _f("tensor", pa.string(), "name in the shard; L D"),
        _f("tokens", pa.int32(), "tokens before padding"),
        _f("truncated", pa.bool_(), "text was longer than the encoder's limit"),
    ]
)

LABELS = pa.schema(
    [
        _f("clip_id", pa.string(), "clip", nullable=False),
        _f("annotator", pa.string(), "who", nullable=False),
        _f("kind", pa.string(), "keep | preference", nullable=False),
        _f("value", pa.float32(), "1 keep, 0 drop; or the preference"),
        _f("time", pa.timestamp("us", tz="UTC"), "when"),
    ]
)

ERRORS = pa.schema(
    [
        _f("error_id", pa.string(), "hash of (job, step, item, code, run_id); the key", nullable=False),
        _f("source_id", pa.string(), "the file's content hash, where known"),
        _f("uri", pa.string(), "the file"),
        _f("clip_id", pa.string(), "clip, where there is one"),
        _f("job", pa.string(), "job"),
        _f("step", pa.string(), "step"),
        _f("code", pa.string(), "stable code, e.g. no_video_stream, truncated, deadline"),
        _f("message", pa.string(), "what happened, the number and its limit, what to change"),
        _f("attempt", pa.int32(), "attempts made"),
        _f("node", pa.string(), "machine"),
        _f("seconds", pa.float64(), "time spent", "s"),
        _f("run_id", pa.string(), "lineage of the step"),
        _f("resolved", pa.bool_(), "a later attempt succeeded"),
        _f("time", pa.timestamp("us", tz="UTC"), "when"),
    ]
)

RUNS = pa.schema(
    [
        _f("run_id", pa.string(), "lineage id (curation.step.Lineage.run_id)", nullable=False),
        _f("job", pa.string(), "job"),
        _f("step", pa.string(), "step"),
        _f("version", pa.string(), "code version of the step"),
        _f("model", pa.string(), "model or algorithm; a stand-in says so"),
        _f("revision", pa.string(), "commit of the model's repository, where its download recorded one"),
        _f("weights_sha256", pa.string(), "of the weights file"),
        _f("parameters", pa.string(), "JSON"),
        _f("parameters_hash", pa.string(), "sha256 of parameters, hex"),
        _f("device", pa.string(), "cpu | cuda:..."),
        _f("seconds", pa.float64(), "of the last execution", "s"),
        _f("rows_in", pa.int64(), "of the last execution"),
        _f("rows_ok", pa.int64(), "of the last execution"),
        _f("rows_failed", pa.int64(), "of the last execution"),
        _f("table_version", pa.int64(), "of the table that the job writes (sources, clips, captions or latents), after the last execution"),
        _f("time", pa.timestamp("us", tz="UTC"), "end of the last execution"),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "sources": SOURCES,
    "clips": CLIPS,
    "captions": CAPTIONS,
    "latents": LATENTS,
    "text_embeddings": TEXT_EMBEDDINGS,
    "labels": LABELS,
    "errors": ERRORS,
    "runs": RUNS,
}

KEYS: dict[str, tuple[str, ...]] = {
    "sources": ("uri",),
    "clips": ("clip_id",),
    "captions": ("clip_id", "caption_run"),
    "latents": ("clip_id", "profile", "variant"),
    "text_embeddings": ("caption_hash", "encoder_run"),
    "labels": ("clip_id", "annotator", "kind"),
    "errors": ("error_id",),
    "runs": ("run_id",),
}
"""Columns that name a row; `Store.upsert` merges on them."""
