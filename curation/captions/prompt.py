"""Identity of a prompt. Light."""

from __future__ import annotations

import hashlib


def prompt_hash(prompt: str) -> str:
    """First 16 hex of the prompt's sha256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]
