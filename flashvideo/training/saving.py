"""Writes the checkpoints of a run of the loop, at once or while training goes on.

In the background: every rank copies its pieces to memory, a thread writes them, and when all ranks' threads are done (asked
after every train_step while one is under way) the first rank makes the part a checkpoint. Killed before that, the run goes on
from the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self

from flashvideo.training.checkpoints import CheckpointError, Checkpoints
from flashvideo.training.engine import Engine

log = logging.getLogger("flashvideo")


class Pending(NamedTuple):
    """A checkpoint under way."""

    train_step: int
    facts: dict[str, Any]
    writing: Future[str | None]
    """The operating system's error, or None."""


class Saver:
    """Every rank has one and calls the same methods in the same order."""

    def __init__(self, checkpoints: Checkpoints, engine: Engine, name: str, iterations: int, in_background: bool) -> None:
        """`name`: of the run, for messages. `iterations`: the checkpoint of the last one must succeed."""
        self.checkpoints, self.engine, self.name, self.iterations = checkpoints, engine, name, iterations
        self.in_background = in_background
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Pending | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()

    def save(self, train_step: int, facts: dict[str, Any]) -> None:
        """A checkpoint of the present state, after the one before is done. Raises CheckpointError where the last one fails."""
        self.settle()
        write = self.engine.writer(self.checkpoints.part(train_step), copied=self.in_background)
        self._pending = Pending(train_step, facts, self._pool.submit(_os_error, write))
        if not self.in_background or train_step == self.iterations:
            self.settle()

    def poll(self) -> None:
        """Between train_steps: finishes what every rank has written."""
        if self._pending is not None and all(self.engine.ranks.gather(self._pending.writing.done())):
            self.settle()

    def settle(self) -> None:
        """Waits for the checkpoint under way. One that the disk does not take is left out, the one before it stays."""
        pending, ranks = self._pending, self.engine.ranks
        if pending is None:
            return
        self._pending = None
        problems = [problem for problem in ranks.gather(pending.writing.result()) if problem]
        if not problems and ranks.is_first:
            problems = [_os_error(lambda: self.checkpoints.commit(pending.train_step, pending.facts))]
        problem = ranks.gather(problems[0] if problems else None)[0]
        if problem is not None:
            self._tell(pending.train_step, problem)

    def _tell(self, train_step: int, problem: str) -> None:
        checkpoints, is_first = self.checkpoints, self.engine.ranks.is_first
        if is_first:
            checkpoints.discard(train_step)
        said = f"{self.name}: the checkpoint of train_step {train_step} could not be written to {checkpoints.folder} ({problem})"
        if train_step == self.iterations:
            raise CheckpointError(f"{said}; free space there and relaunch: the run goes on from the one before it")
        if is_first:
            kept = checkpoints.newest()
            stays = "there is none before it" if kept is None else f"that of train_step {kept.train_step} is kept"
            log.warning("%s; %s, training goes on; free space there", said, stays)


def _os_error(act: Callable[[], object]) -> str | None:
    """The operating system's error of doing that, as text, or None."""
    try:
        act()
    except OSError as error:
        return str(error)
    return None
