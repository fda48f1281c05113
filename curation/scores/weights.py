"""Files of weights that users bring."""

from __future__ import annotations

from pathlib import Path

from curation.step import StepError


def weights_file(given: str | Path | None, setting: str, wants: str, instead: str) -> Path:
    """The file that a setting names. Raises StepError that says what is wanted, what is wrong and what to change."""
    path = None if given is None or not str(given) else Path(given).expanduser()
    if path is not None and path.is_file():
        return path
    where = f"{setting} is not set" if path is None else f"{path} does not exist"
    raise StepError("weights_missing", f"{wants}: {where}; set {setting}, or {instead}")
