"""One run at a time in a root: an advisory lock that dies with its process and says who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipelines.job import UserError


@contextmanager
def hold_root(root: Path, what: str) -> Iterator[None]:
    """Holds the root while the body runs. `what` is told to others, e.g. "flashvideo retrain".

    Raises UserError when the root cannot be written, or is held (the message says by whom and since when).
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / "run.lock", "a+")  # noqa: SIM115 (closed below, where the lock ends)
    except OSError as error:
        raise UserError(f"cannot write under {root}: {error.strerror}; choose another --root") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"another run holds {root}: {file.read().strip() or 'it has just begun'}; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"{what}, pid {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC).isoformat(timespec='seconds')}")
        file.flush()
        yield
