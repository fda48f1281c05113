"""Clips that a browser plays, cut on demand and kept: the source's packets where a browser plays them, else a stated re-encode.

    ROOT/review/clips/<clip_id>.<VERSION>.mp4   and .json: how it was made

A decoder may hang or crash, so clips are cut in a supervised child process, one at a time; what a page waits for goes
before what is fetched ahead. The oldest files go when there are more than `CACHE_BYTES` of them. Images are shown from
where they lie, but for formats that browsers do not show.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curation.config import DecodeConfig
from curation.sources import is_remote
from curation.supervised import Failure, SupervisedFunction

VERSION = "p1"
"""Changed when equal clips are made in another way."""
SHORT_SIDE_PX = 720
"""Of a clip that has to be encoded: enough to judge detail on a screen, and quick to make."""
QUALITY = (20, "veryfast")
"""CRF and preset of libx264 for such a clip."""
LONGEST_LEAD_IN_US = 2_000_000
"""A copy starts at the key frame before the clip and hides what comes first; from longer ago it is encoded."""
CACHE_BYTES = 4_000_000_000
SUFFIX = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif"}
STOP, URGENT, AHEAD = 0, 1, 2


@dataclass(frozen=True)
class PreviewTask:
    """A clip to make for a browser."""

    uri: str
    """A path; remote files are fetched before."""
    media_type: str
    start_us: int
    end_us: int
    path: Path


@dataclass(frozen=True)
class Preview:
    """A file that a browser shows."""

    path: Path
    media_type: str
    """MIME type, from the file's first bytes."""
    how: str
    """e.g. `copied (h264)`, `encoded for viewing (libx264 crf 20 veryfast, ..., 720 px)`, `as it is`."""


class PreviewError(Exception):
    """Why a clip cannot be shown; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Previews:
    """The cache and its one cutter. For use by several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        limits = DecodeConfig()
        self._make = SupervisedFunction("curation.review.preview_file:make_preview", limits.deadline_s, limits.memory_bytes)
        self._work: queue.PriorityQueue[tuple[int, int, str, dict[str, Any]]] = queue.PriorityQueue()
        self._waiting: dict[str, Future[Preview]] = {}
        self._mutex = threading.Lock()
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._cut_all, name="previews", daemon=True)
        self._thread.start()

    def get(self, clip: Mapping[str, Any]) -> Preview:
        """The clip's file, cut now where it is not there. Raises PreviewError."""
        return self._ask(clip, URGENT).result()

    def fetch_ahead(self, clip: Mapping[str, Any]) -> None:
        """Has the clip cut when nothing else is waited for."""
        self._ask(clip, AHEAD)

    def close(self) -> None:
        """Ends the cutter; clips that were asked for and not begun raise."""
        self._work.put((STOP, next(self._count), "", {}))
        self._make.close()
        self._thread.join(timeout=5.0)
        with self._mutex:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(PreviewError("closed", "the review has ended"))

    def _ask(self, clip: Mapping[str, Any], urgency: int) -> Future[Preview]:
        clip_id = clip["clip_id"]
        with self._mutex:
            future = self._waiting.get(clip_id)
            if future is None:
                future = self._waiting[clip_id] = Future()
                self._work.put((urgency, next(self._count), clip_id, dict(clip)))
            elif urgency == URGENT and not future.done():
                self._work.put((urgency, next(self._count), clip_id, dict(clip)))  # overtakes its own place further back
        return future

    def _cut_all(self) -> None:
        while True:
            urgency, _, clip_id, clip = self._work.get()
            if urgency == STOP:
                return
            with self._mutex:
                future = self._waiting.get(clip_id)
            if future is None or future.done():
                continue
            try:
                future.set_result(self._preview(clip))
            except PreviewError as error:
                future.set_exception(error)
            except Exception as error:  # whatever it is, the page that waits must hear of it
                future.set_exception(PreviewError("exception", f"{type(error).__name__}: {error}"))
            finally:
                with self._mutex:
                    self._waiting.pop(clip_id, None)

    def _preview(self, clip: dict[str, Any]) -> Preview:
        target = self._folder / f"{_file_stem(clip['clip_id'])}.{VERSION}.mp4"
        facts = target.with_suffix(".json")
        if target.is_file() and facts.is_file():
            os.utime(target)
            return Preview(target, "video/mp4", json.loads(facts.read_text())["how"])
        uri = _local(clip["uri"])
        if clip["media_type"] == "image":
            shown = _shown_as_it_is(uri)
            if shown is not None:
                return Preview(uri, shown, "as it is")
            target = target.with_suffix(".png")
        made = self._made(PreviewTask(str(uri), clip["media_type"], clip["start_us"], clip["end_us"], target.resolve()), target, facts)
        self._make_room()
        return made

    def _made(self, task: PreviewTask, target: Path, facts: Path) -> Preview:
        if target.suffix == ".png" and target.is_file():
            return Preview(target, "image/png", "as PNG, 8 bit")
        how = self._make(task)
        if isinstance(how, Failure):
            raise PreviewError(how.code, how.message)
        if target.suffix == ".png":
            return Preview(target, "image/png", how)
        facts.write_text(json.dumps({"how": how, "task": {**asdict(task), "path": task.path.name}}, default=str))
        return Preview(target, "video/mp4", how)

    def _make_room(self) -> None:
        files = sorted((path for path in self._folder.glob(f"*.{VERSION}.*")), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > CACHE_BYTES:
                path.unlink(missing_ok=True)


def _local(uri: str) -> Path:
    if not is_remote(uri):
        return Path(uri)
    from curation.remote import RemoteError, fetch

    try:
        return fetch(uri).path
    except RemoteError as error:
        raise PreviewError("unreachable", str(error)) from None


def _shown_as_it_is(path: Path) -> str | None:
    """The MIME type of an image that every browser shows, from its first bytes; None: it has to be made into one."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as error:
        raise PreviewError("missing", f"{path}: {error.strerror}; was it moved after ingest?") from None
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in SUFFIX.items() if head.startswith(start)), None)


def _file_stem(clip_id: str) -> str:
    """The clip's id; its hash, should it hold what a file name may not."""
    return clip_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", clip_id) else hashlib.sha256(clip_id.encode()).hexdigest()[:32]
