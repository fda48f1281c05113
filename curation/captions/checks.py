"""Checks of a caption's text; a failed check is a flag on the row, never a lost row."""

from __future__ import annotations

import re
from collections import Counter

from curation.captions.caption import Caption

CHECKS_VERSION = "1"
NGRAM = 4
MAX_REPEATS = 3
"""A run of four words that comes this often is a model caught in a loop."""

_URL = re.compile(r"https?://|www\.\w|\b\w+\.(?:com|org|net|io)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i can(?:no|')t (?:help|assist|describe|see|view)|i am unable|i'?m unable|as an ai\b|"
    r"as a language model|cannot fulfil)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^(?:sure[,!.]|certainly[,!.]|of course[,!.]|here(?:'s| is) (?:a|the|your)|(?:the|this) (?:image|video|clip) "
    r"(?:shows|depicts|features|captures|displays)|caption:|description:)|\b(?:let me know|hope this helps)\b",
    re.IGNORECASE,
)


def check_caption(caption: Caption, min_words: int, max_words: int) -> list[str]:
    """Names of the failed checks: too_short, too_long, repeated, refusal, boilerplate, url. (Cut off: the column `finish`.)"""
    text = caption.text.replace("\u2019", "'").strip()
    words = count_words(caption.text)
    found = {
        "too_short": words < min_words,
        "too_long": words > max_words,
        "repeated": _loops(text),
        "refusal": is_refusal(caption),
        "boilerplate": bool(_BOILERPLATE.search(text)),
        "url": bool(_URL.search(text)),
    }
    return [name for name, failed in found.items() if failed]


def is_refusal(caption: Caption) -> bool:
    """Whether the model declined to describe."""
    return caption.refused or bool(_REFUSAL.search(caption.text.replace("\u2019", "'")))


def count_words(text: str) -> int:
    """Words separated by white space."""
    return len(text.split())


def _loops(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    runs = Counter(tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))
    return bool(runs) and max(runs.values()) >= MAX_REPEATS
