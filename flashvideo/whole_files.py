"""Files that are there whole or not at all, however many threads, processes and machines write them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path, *, flushed: bool = False, suffix: str = "") -> Iterator[Path]:
    """A name beside `path` that no other writer has; renamed to `path` at the end, removed where the block raises.

    A process id would not do: threads share it, and so do the first processes of two containers on one file system.
    `flushed`: on the disk before it is renamed. `suffix`: for writers that go by it, e.g. ".png". An OSError that names no
    file, as of a full disk, gets this one's name.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part{suffix}")
    try:
        yield part
        if flushed:
            with open(part, "rb") as file:
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(path)
        raise


def write_text(path: Path, text: str, *, flushed: bool = False) -> None:
    """A text file in UTF-8, in a folder that is there."""
    with writing(path, flushed=flushed) as part:
        part.write_text(text, encoding="utf-8")
