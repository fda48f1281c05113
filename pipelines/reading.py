"""What is wrong with the file of one item, told apart from what goes wrong while its results are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UnreadableItem(Exception):
    """An item's own file cannot be read; the message says why. Only that item is left out."""


@contextmanager
def reading() -> Iterator[None]:
    """Around the reading of an item's files. Raises UnreadableItem.

    An OSError outside of it is ours, such as a full disk, and ends the command.
    """
    from curation.video import MediaError
    from flashvideo.video_files import VideoFileError

    try:
        yield
    except (MediaError, VideoFileError, OSError) as error:
        raise UnreadableItem(str(error)) from error
