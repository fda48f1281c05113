"""One run at a time in a root: an advisory lock that dies with its process and says who holds it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.job import held_alone


def hold_root(root: Path, what: str) -> AbstractContextManager[None]:
    """Holds the root while the body runs. `what` is told to others, e.g. "flashvideo retrain".

    Raises UserError when the root cannot be written, or is held (the message says by whom and since when).
    """
    return held_alone(
        root / "run.lock",
        root,
        holder=f"{what}, pid {{pid}} on {{host}}, since {{time}}",
        busy=lambda by: f"another run holds {root}: {by or 'it has just begun'}; wait for it or stop it",
    )
