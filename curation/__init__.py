"""Raw video to table. In a notebook: `store = curation.open("root/store")`, then `store.clips.where("motion_proxy >= 1.1")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from curation.query import Dataset


def open(path: Path | str) -> Dataset:
    """The store at a path, for reading (`curation.query.Dataset`). Raises QueryError when there is none."""
    from curation.query import open_dataset

    return open_dataset(path)
