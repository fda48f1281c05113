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
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
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
SHOWN_IMAGES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif"}
FAILED_S = 30.0
"""A clip that could not be cut is tried again after this long."""
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
        self._failed: dict[str, tuple[float, PreviewError | None]] = {}
        self._mutex = threading.Lock()
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._cut_all, name="previews", daemon=True)
        self._thread.start()

    def get(self, clip: Mapping[str, Any]) -> Preview:
        """The clip's file, cut now where it is not there. Raises PreviewError."""
        return self._ask(clip, URGENT).result()

    def peek(self, clip: Mapping[str, Any]) -> Preview | None:
        """The clip's file where it is there; else None, and it is cut next. Raises PreviewError where that failed just now."""
        made = self._cached(clip)
        if made is not None:
            return made
        failure = self._failure(clip)
        if failure is not None:
            raise failure
        self._ask(clip, URGENT)
        return None

    def fetch_ahead(self, clip: Mapping[str, Any]) -> None:
        """Has the clip cut when nothing else is waited for."""
        if self._failure(clip) is None:
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

    def _failure(self, clip: Mapping[str, Any]) -> PreviewError | None:
        """Why the clip could not be cut just now."""
        with self._mutex:
            when, failure = self._failed.get(clip["clip_id"], (0.0, None))
        return failure if failure is not None and time.monotonic() - when < FAILED_S else None

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
                made = self._cached(clip) or self._made(clip)
            except Exception as error:  # whatever it is, the page that waits must hear of it
                failure = error if isinstance(error, PreviewError) else PreviewError("exception", f"{type(error).__name__}: {error}")
                with self._mutex:
                    self._waiting.pop(clip_id, None)
                    self._failed[clip_id] = (time.monotonic(), failure)
                future.set_exception(failure)
            else:
                with self._mutex:
                    self._waiting.pop(clip_id, None)
                    self._failed.pop(clip_id, None)
                future.set_result(made)

    def _cached(self, clip: Mapping[str, Any]) -> Preview | None:
        """The file where there is nothing to make."""
        target = self._target(clip)
        facts = target.with_suffix(".json")
        if target.is_file() and facts.is_file():
            os.utime(target)
            kind = "video/mp4" if target.suffix == ".mp4" else "image/png"
            return Preview(target, kind, json.loads(facts.read_text())["how"])
        if clip["media_type"] == "image" and not is_remote(clip["uri"]):
            return _as_it_is(Path(clip["uri"]))
        return None

    def _target(self, clip: Mapping[str, Any]) -> Path:
        suffix = "png" if clip["media_type"] == "image" else "mp4"
        return self._folder / f"{_file_stem(clip['clip_id'])}.{VERSION}.{suffix}"

    def _made(self, clip: Mapping[str, Any]) -> Preview:
        uri, target = _local(clip["uri"]), self._target(clip)
        if clip["media_type"] == "image" and (shown := _as_it_is(uri)) is not None:
            return shown
        how = self._make(PreviewTask(str(uri), clip["media_type"], clip["start_us"], clip["end_us"], target.resolve()))
        if isinstance(how, Failure):
            raise PreviewError(how.code, how.message)
        target.with_suffix(".json").write_text(json.dumps({"how": how}))
        self._make_room()
        made = self._cached(clip)
        assert made is not None
        return made

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


def _as_it_is(path: Path) -> Preview | None:
    """An image that every browser shows, told from its first bytes; None: it has to be made into one."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as error:
        raise PreviewError("missing", f"{path}: {error.strerror}; was it moved after ingest?") from None
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return Preview(path, "image/webp", "as it is")
    kind = next((kind for start, kind in SHOWN_IMAGES.items() if head.startswith(start)), None)
    return Preview(path, kind, "as it is") if kind is not None else None


def _file_stem(clip_id: str) -> str:
    """The clip's id; its hash, should it hold what a file name may not."""
    return clip_id if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", clip_id) else hashlib.sha256(clip_id.encode()).hexdigest()[:32]
