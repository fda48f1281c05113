"""What every page of this package is rendered with: templates of this folder, and how words and numbers are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


def environment() -> Environment:
    """Templates of this folder, escaping what they print; an unknown name is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "breakable": _breakable,
        "bytes": format_bytes,
        "seconds": format_seconds,
        "number": format_number,
        "words": _words,
    }
    return made


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _breakable(name: str) -> Markup:
    """A name that may be broken before its capitals and at its dashes."""
    return Markup(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=-)", "<wbr>", str(escape(name))))


def format_number(value: Any) -> str:
    """A value for a table: numbers short, mappings and lists in words, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{_words(key)} {format_number(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_number(entry) for entry in value)
    return str(value)


def format_seconds(seconds: float) -> str:
    """e.g. 41.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """e.g. 812 MB, 1.52 GB (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
