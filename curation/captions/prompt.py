"""Identity of a prompt. Light."""

from __future__ import annotations

import hashlib

from curation.config import CaptionConfig


def prompt_hash(config: CaptionConfig) -> str | None:
    """First 16 hex of the prompt's sha256; None for backends that take no prompt."""
    return hashlib.sha256(config.prompt.encode()).hexdigest()[:16] if config.backend in ("http", "transformers") else None
