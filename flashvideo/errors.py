"""Mistakes that a command says in one line, where no torch is loaded."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights are missing or do not fit; the message names the file or the keys and says what is wanted."""
