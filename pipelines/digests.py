"""A job's digest: a hash of the content that it made, the same for equal content whatever the history."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa


def digest_of(rows: pa.Table, columns: Sequence[str]) -> str:
    """First 16 hex of the sha256 of the rows' values in these columns; the order of the rows does not matter."""
    lines = sorted(json.dumps(row, sort_keys=True, default=str) for row in rows.select(list(columns)).to_pylist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def folder_digest(folder: Path) -> str:
    """First 16 hex of the sha256 of a folder's files, names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
