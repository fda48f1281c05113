"""One worker: what `build` makes, in a thread of this process or in a Ray actor.

Imports nothing heavy: an actor that only keeps a child process at work stays small.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from curation.held_off_pandas import hold_off_pandas

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerBuildError(RuntimeError):
    """A worker could not be made, so no item can be done; the message is the constructor's."""


def built(build: Callable[[], Callable[[Item], Result]]) -> Callable[[Item], Result]:
    """What `build` makes. Raises WorkerBuildError."""
    try:
        function = build()
    except Exception as error:
        raise WorkerBuildError(f"{type(error).__name__}: {error}") from error
    limit_threads()
    return function


def limit_threads() -> None:
    """One thread per worker in the libraries that are loaded: workers are the parallelism, spinning threads cost tenfold."""
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(1)


def close(function: Any) -> None:
    """Lets it close what it holds, where it can be closed."""
    closing = getattr(function, "close", None)
    if closing is not None:
        closing()


class RayWorker:
    """What a Ray actor holds."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]]) -> None:
        self._function: Any = None
        self._error: str | None = None
        hold_off_pandas()
        try:
            self._function = built(build)
        except WorkerBuildError as error:
            self._error = str(error)  # an exception here would reach the driver as a dead actor, without its reason

    def ready(self) -> str | None:
        """None, or why there is no worker."""
        return self._error

    def run(self, item: Any) -> Any:
        """The item's result."""
        return self._function(item)

    def close(self) -> None:
        """Closes what the worker holds."""
        close(self._function)
