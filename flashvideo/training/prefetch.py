"""Batches read ahead of the trainer by threads, in the trainer's order.

Reading is copying out of memory maps and drawing noise, both outside the interpreter's lock, so threads do. A sample's
draws come from its own generator, so who reads it, and when, changes nothing.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from flashvideo.objectives.batch import Batch
from flashvideo.training.batches import BatchReader


class Prefetcher:
    """One rank's micro-batches, with up to `workers` train_steps read ahead; 0: read when asked for."""

    def __init__(self, reader: BatchReader, workers: int, end: int) -> None:
        """`end`: no train_step from this one on is read."""
        self.reader, self.workers, self.end = reader, workers, end
        self._pool = ThreadPoolExecutor(workers, "loader") if workers else None
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def micro_batches(self, train_step: int) -> list[Batch]:
        """As BatchReader's; after a jump, what was read for other train_steps is dropped. Raises what reading raised."""
        if self._pool is None:
            return self.reader.micro_batches(train_step)
        wanted = range(train_step, min(self.end, train_step + self.workers + 1))
        for other in [step for step in self._ahead if step not in wanted]:
            self._ahead.pop(other).cancel()
        for step in wanted:
            if step not in self._ahead:
                self._ahead[step] = self._pool.submit(self.reader.micro_batches, step)
        return self._ahead.pop(train_step).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
