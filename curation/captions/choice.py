"""From a caption config to the captioner that it names, and to the lineage of what that writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from curation.captions import attributes
from curation.captions.attributes import AttributeCaptioner
from curation.captions.captioner import CaptionSetupError, CaptionStep
from curation.captions.checks import CHECKS_VERSION
from curation.config import CaptionConfig
from curation.step import Lineage

FACT_READERS = ("attributes", "sidecar")
"""Backends that only read facts: no model, cheap, and run over every clip each time."""


def caption_lineage(config: CaptionConfig, track_run: str) -> Lineage:
    """What makes the captions. `track_run`: lineage of the decode pass that the key frames come from."""
    checks = {"checks": CHECKS_VERSION, "min_words": config.min_words, "max_words": config.max_words}
    if config.backend == "attributes":
        return Lineage("caption", "caption", attributes.VERSION, attributes.MODEL, parameters={**checks, "track": track_run})
    raise CaptionSetupError(f"curation.caption.backend = {config.backend} is not here yet; use attributes")


def clip_columns(config: CaptionConfig) -> tuple[str, ...]:
    """Columns of `clips` that the captioner reads."""
    return AttributeCaptioner.reads


def prompt_hash(config: CaptionConfig) -> str | None:
    """First 16 hex of the prompt's sha256; None where the captioner takes no prompt."""
    return None if config.backend in FACT_READERS else hashlib.sha256(config.prompt.encode()).hexdigest()[:16]


def build_step(config: CaptionConfig, tracks: Path, lineage: Lineage) -> CaptionStep:
    """The step with its captioner. Called in each worker."""
    return CaptionStep(AttributeCaptioner(tracks), lineage, config)
