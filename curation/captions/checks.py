"""What is wrong with a caption, as flags. Nothing is dropped here: the flags are stored beside the text."""

from __future__ import annotations

import re
from collections import Counter

from curation.config import CaptionConfig

CHECKS_VERSION = "1"
NGRAM_WORDS = 4
NGRAM_REPEATS = 3
"""A caption that says the same 4 words 3 times loops; good captions of 100 words repeat at most a short phrase twice."""
REFUSALS = (
    r"\bI(?:'m| am) (?:sorry|unable)\b",
    r"\bI (?:can(?:'t|not)|could not|couldn't|won't) (?:\w+ ){0,2}"
    r"(?:help|assist|describe|provide|identify|comply|view|see|process|analy[sz]e)",
    r"\bas an AI\b",
    r"\bagainst my (?:guidelines|policy|programming)\b",
)
BOILERPLATE = (
    r"^(?:sure|certainly|of course|absolutely|okay|here(?:'s| is| are))\b",
    r"^(?:caption|description|answer|assistant)\s*:",
    r"\b(?:let me know if|feel free to|hope this helps|would you like me to)\b",
    r"\bthe (?:provided|given|supplied) (?:images?|frames?|video|pictures?)\b",
)
URL = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:com|org|net)\b", re.IGNORECASE)
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
_BOILERPLATE = re.compile("|".join(BOILERPLATE), re.IGNORECASE)


def count_words(text: str) -> int:
    """Pieces between white space."""
    return len(text.split())


def flags_of(text: str, config: CaptionConfig) -> list[str]:
    """The checks that the text fails, in the order of the schema: too_short, too_long, repeated, refusal, boilerplate, url."""
    words, plain = count_words(text), text.replace("\u2019", "'").strip()
    failed = {
        "too_short": words < config.min_words,
        "too_long": words > config.max_words,
        "repeated": _loops(plain),
        "refusal": _REFUSAL.search(plain) is not None,
        "boilerplate": _BOILERPLATE.search(plain) is not None,
        "url": URL.search(plain) is not None,
    }
    return [flag for flag, found in failed.items() if found]


def _loops(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    grams = Counter(tuple(words[start : start + NGRAM_WORDS]) for start in range(len(words) - NGRAM_WORDS + 1))
    return any(number >= NGRAM_REPEATS for number in grams.values())
