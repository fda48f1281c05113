"""Checkpoint folders: written beside and renamed, named by train_step, checked before use, kept by rule.

    <folder>/step-00000025/{the engine's files, checkpoint.json}

checkpoint.json is written last and lists every file with its size and SHA-256. A folder that does not agree with
its list is named in the log and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("flashvideo")

LIST = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    train_step: int
    """train_steps done; the next one has this number."""
    folder: Path
    facts: dict[str, Any]
    """What the loop stored beside the engine's state."""


class CheckpointError(RuntimeError):
    """A checkpoint without which a run cannot end could not be written."""


class Checkpoints:
    """The checkpoints of one run of the loop. Only rank 0 calls `commit`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(1, keep)

    def part(self, train_step: int) -> Path:
        """Where the ranks write before `commit`; what an interrupted attempt left there is overwritten."""
        return self.folder / f".step-{train_step:08d}.part"

    def commit(self, train_step: int, facts: dict[str, Any]) -> Path:
        """Makes the written part a checkpoint and removes the oldest beyond `keep`."""
        part, final = self.part(train_step), self.folder / f"step-{train_step:08d}"
        files = {str(path.relative_to(part)): _file_facts(path) for path in _files(part)}
        (part / LIST).write_text(json.dumps({"train_step": train_step, "facts": facts, "files": files}, indent=1))
        for path in [*_files(part), part]:
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        _flush(self.folder)
        for old in sorted(self._folders())[: -self.keep]:
            shutil.rmtree(self._folders()[old])
        return final

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose files agree with their list; damaged ones are named in the log and passed over."""
        folders = self._folders()
        for train_step in sorted(folders, reverse=True):
            problem = _problem(folders[train_step])
            if problem is None:
                facts = json.loads((folders[train_step] / LIST).read_text())["facts"]
                return Checkpoint(train_step, folders[train_step], facts)
            log.warning("checkpoint %s is damaged (%s); using the one before it", folders[train_step], problem)
        if folders:
            log.warning("there is none before it: no checkpoint in %s is whole", self.folder)
        return None

    def discard(self, train_step: int) -> None:
        """Removes the part of an attempt that failed, so that its space is free again."""
        shutil.rmtree(self.part(train_step), ignore_errors=True)

    def clear_parts(self) -> None:
        """Removes what interrupted attempts left."""
        for path in self.folder.glob(".step-*.part"):
            shutil.rmtree(path)

    def _folders(self) -> dict[int, Path]:
        matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in self.folder.glob("step-*"))
        return {int(match[1]): path for match, path in matches if match}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _file_facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        listed = json.loads((folder / LIST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{LIST}: {error}"
    for name, facts in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {facts['bytes']}"
        if _file_facts(path) != facts:
            return f"{name} has other bytes than were written"
    return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
