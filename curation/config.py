"""Settings of curation: sources, decoding, shots, scores, captions, policy. Imports pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator


class Settings(BaseModel):
    """Base of every settings object: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DecodeConfig(Settings):
    """The one decode pass over a source."""

    deadline_s: float = 600.0
    """Wall seconds that a source may take before its child process is killed."""
    memory_bytes: int = 4_000_000_000
    """Address space that the child may add."""
    attempts: int = 2
    """A source that kills its child this often is quarantined (status failed)."""
    threads: PositiveInt = 2
    """Of each decoder. 1 costs about a tenth less CPU in all: right where there are as many workers as cores. 2 ends a single long film
    sooner. Sound files give the same bytes; of a file that is cut short, 1 shows a few frames more."""
    sample_rate_hz: float = 8.0
    """Frames kept for scores: by time, 1/8 s apart (what the model sees)."""
    motion_short_side_px: int = 360
    """Definition flashvideo-motion/1."""
    key_frame_short_side_px: int = 720
    """Key frames kept for aesthetics, quality and captions, JPEG."""
    key_frame_positions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Places in a clip, as shares of its length."""


class ShotsConfig(Settings):
    """Cuts, and clips cut from shots."""

    detector: Literal["adaptive", "content", "stride"] = "adaptive"
    """PySceneDetect's detectors, fed from our decode pass; stride: no cuts, fixed pieces."""
    threshold: float | None = None
    """The detector's own default where None."""
    min_duration_s: float = 2.0
    clip_duration_s: float = 6.125
    """49 frames at 8 fps (4.1, 4.2)."""


class MotionConfig(Settings):
    """Motion scores, definition flashvideo-motion/1: px at 360 px short side per 1/8 s."""

    max_pairs: int = 48
    """Longer clips: 3 runs of a third each."""
    raft: bool = False
    """Also compute motion_raft (torchvision raft_large, C_T_SKHT_V2)."""
    raft_weights: str | None = None
    """Path of raft_large_C_T_SKHT_V2-ff5fadd5.pth."""


class AestheticConfig(Settings):
    """Aesthetic scores, about 1-10."""

    laion: bool = False
    """Also compute aesthetic (LAION sac+logos+ava1 head on CLIP ViT-L/14)."""
    clip_weights: str | None = None
    """Folder of openai/clip-vit-large-patch14 (transformers layout)."""
    head_weights: str | None = None
    """Path of sac+logos+ava1-l14-linearMSE.pth."""


class QualityConfig(Settings):
    """pyiqa metrics on the key frames (pyiqa is PolyForm Noncommercial)."""

    metrics: tuple[str, ...] = ("piqe",)
    """piqe, musiq, clipiqa, maniqa, niqe: a column each."""
    max_frames: int = 5
    """Key frames judged per clip, evenly chosen from those kept; piqe costs about 0.1 CPU-s a frame."""
    weights: str | None = None
    """Folder of the metrics' files (curation/scores/metric_files.py); None: pyiqa downloads what it lacks."""


class TextOverlayConfig(Settings):
    """Share of the picture under burnt-in text."""

    detector: str | None = None
    """Path of a DB text detector as ONNX, e.g. text_detection_en_ppocrv3_2023may.onnx of OpenCV's model zoo. None: not computed."""
    max_frames: int = 5
    """Key frames looked at per clip."""


class CaptionConfig(Settings):
    """How clips are described."""

    backend: Literal["attributes", "sidecar", "http", "transformers"] = "attributes"
    """attributes: an honest sentence from measured facts (embedded default). http: any OpenAI-compatible server."""
    model: str | None = None
    """Name at the server, or folder of a local vision-language model."""
    table: str | None = None
    """sidecar: a .parquet, .csv or .jsonl of captions, in place of files beside the sources (curation/captions/sidecar.py)."""
    base_url: str | None = None
    """http: e.g. http://127.0.0.1:8000/v1. The key comes from FLASHVIDEO_CAPTION_API_KEY only."""
    prompt: str = (
        "Describe this video in one paragraph of about 100 words: subjects, their actions, setting, light, style and "
        "camera movement. Do not speculate about what is not visible."
    )
    max_in_flight: int = 8
    timeout_s: float = 120.0
    attempts: int = 5
    min_words: int = 5
    max_words: int = 180


class Rule(Settings):
    """One admission rule: a clip is kept where `column` lies within [at_least, at_most]; equal to one of `one_of`."""

    name: str
    column: str
    """A column of the clips table."""
    at_least: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] | None = None
    media: Literal["video", "image", "any"] = "any"
    """The rule is judged for this kind of clip only."""
    unknown: Literal["reject", "keep"] = "reject"
    """What a null means for this rule."""

    @model_validator(mode="after")
    def _bounded(self) -> Rule:
        if self.at_least is None and self.at_most is None and self.one_of is None:
            raise ValueError(f"rule {self.name} has no bound: give at_least, at_most or one_of")
        return self


PAPER_RULES = (
    Rule(name="resolution", column="short_side_px", at_least=1080, media="video"),
    Rule(name="image_size", column="short_side_px", at_least=2048, media="image"),
    Rule(name="motion", column="motion_raft", at_least=1.1, media="video"),
    Rule(name="aesthetic", column="aesthetic", at_least=4.5),
    Rule(name="damage", column="corrupt_frames", at_most=0),
    Rule(name="black", column="black_ratio", at_most=0.05),
    Rule(name="repeats", column="repeated_ratio", at_most=0.5, media="video"),
    Rule(name="duplicate", column="is_duplicate", at_most=0),
)
"""4.1: 1080p videos, 2048x2048 images, average optical flow >= 1.1 (RAFT), aesthetic score. The paper prints no
aesthetic threshold (4.5 is ours), and the health rules are ours."""


class PolicyConfig(Settings):
    """Ordered rules that turn scores into state and reject reasons; plus named subsets."""

    rules: tuple[Rule, ...] = PAPER_RULES
    held_out_share: float = 0.05
    """Share of sources whose clips are kept for validation (split = val)."""
    min_held_out_sources: int = 1
    preference_subset: Literal["labels", "top_aesthetic"] = "labels"
    """labels: clips that people marked keep (4.1: 50,000). top_aesthetic: a stand-in, recorded in the subset's run."""
    preference_size: int = 50_000


class DedupConfig(Settings):
    """Perceptual duplicates (64-bit DCT hash per key frame) and semantic ones (embedding)."""

    hamming_bits: int = 6
    """At most this many differing bits, on average over aligned key frames, make two clips duplicates."""
    semantic_similarity: float | None = None
    """Also cluster clips whose CLIP embeddings have at least this cosine, e.g. 0.95 (needs aesthetic.laion). None: not computed."""


class CurationConfig(Settings):
    """Everything between raw files and a tagged dataset."""

    decode: DecodeConfig = DecodeConfig()
    shots: ShotsConfig = ShotsConfig()
    motion: MotionConfig = MotionConfig(raft=True)
    aesthetic: AestheticConfig = AestheticConfig(laion=True)
    quality: QualityConfig = QualityConfig()
    text_overlay: TextOverlayConfig = TextOverlayConfig()
    caption: CaptionConfig = CaptionConfig()
    dedup: DedupConfig = DedupConfig()
    policy: PolicyConfig = PolicyConfig()
    max_failed_share: float = 0.5
    """A job fails when more than this share of its rows end in an error."""
