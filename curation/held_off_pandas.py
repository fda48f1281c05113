"""Keeps pandas out of a process that uses pyarrow alone: its import takes 55 MB and 0.3 s of CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def hold_off_pandas() -> None:
    """pyarrow imports pandas for the first list that becomes an array, to know pandas' own things when it sees them.

    Its Python part and its C++ part ask once each: here, where the answer is no. `to_pandas()` asks again and gets it. For
    processes of our own only: pyarrow will not know `pandas.NaT` in a list. Does nothing where pyarrow is not loaded, or pandas is.
    """
    if "pyarrow" not in sys.modules or "pandas" in sys.modules:
        return
    import pyarrow as pa

    with no_pandas():
        pa.array([None])


@contextmanager
def no_pandas() -> Iterator[None]:
    """`import pandas` raises ImportError meanwhile."""
    blocker = _NoPandas()
    sys.meta_path.insert(0, blocker)
    try:
        yield
    finally:
        sys.meta_path.remove(blocker)


class _NoPandas:
    """A finder that answers `import pandas` with ImportError."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ImportError("pandas is held off while pyarrow asks for it")
