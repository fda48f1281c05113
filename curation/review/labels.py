"""What people said of clips, on its way into table `labels`: a write-ahead file, then batched commits.

A label is on disk before the page is answered, so `kill -9` loses none; the table gets one commit for many labels.

    ROOT/review/<annotator>.lock           held while that annotator's page runs
    ROOT/review/<annotator>.<n>.jsonl      labels that the table may lack; removed once they are committed

Kinds: `keep` (1 keep, 0 drop, null: looked at and skipped) and `preference:<other clip_id>` (1: this clip is the better one,
0: the other, 0.5: a tie, null: skipped), where clip_id is the smaller of the two ids, so that a pair has one row an annotator.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pyarrow as pa

from curation.expression import any_of, quote_text
from curation.schema import LABELS
from curation.store import MissingStoreError, Store

KEEP = "keep"
PAIR = "preference:"
LONGEST_NAME = 64
Key = tuple[str, str, str]
"""clip_id, annotator, kind."""


class ReviewError(ValueError):
    """A user's mistake; the message is one clear line."""


@dataclass(frozen=True)
class Label:
    """One judgement."""

    clip_id: str
    annotator: str
    kind: str
    value: float | None
    time: datetime

    @property
    def key(self) -> Key:
        return (self.clip_id, self.annotator, self.kind)


@dataclass
class _Segment:
    """A write-ahead file and what it holds; None in place of a label: taken back."""

    path: Path
    file: IO[bytes] | None
    entries: list[tuple[Key, Label | None]] = field(default_factory=list)


class LabelBook:
    """Every label of a root, and the one annotator who may add to them here. For use by several threads."""

    def __init__(self, store: Store, folder: Path, annotator: str) -> None:
        """Commits what killed sessions left behind. Raises ReviewError where the annotator is reviewing in another process."""
        check_name(annotator)
        self.annotator = annotator
        self._store, self._folder = store, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(folder / f"{_file_stem(annotator)}.lock")
        if self._lock is None:
            raise ReviewError(f"{annotator} is reviewing in {folder.parent} already; end that one, or give another --annotator")
        self._mutex, self._committing = threading.Lock(), threading.Lock()
        self.recovered = recover(store, folder, own=annotator)
        self._number = 0
        self._segments = [self._new_segment()]
        self._labels: dict[Key, Label] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the table again (others write too); what is not committed yet lies over it."""
        with self._committing:
            stored = {label.key: label for label in read_labels(self._store)}
            with self._mutex:
                for segment in self._segments:
                    _lay_over(stored, segment.entries)
                self._labels = stored

    def labels(self) -> list[Label]:
        """Every label by everybody."""
        with self._mutex:
            return list(self._labels.values())

    def get(self, clip_id: str, kind: str = KEEP) -> Label | None:
        """This annotator's label."""
        with self._mutex:
            return self._labels.get((clip_id, self.annotator, kind))

    def set(self, clip_id: str, kind: str, value: float | None) -> Label:
        """Writes a label; on disk when this returns."""
        label = Label(clip_id, self.annotator, kind, value, datetime.now(UTC))
        self._write(label.key, label)
        return label

    def remove(self, clip_id: str, kind: str) -> None:
        """Takes a label back; on disk when this returns."""
        self._write((clip_id, self.annotator, kind), None)

    @property
    def waiting(self) -> int:
        """Entries that are in the write-ahead files only."""
        with self._mutex:
            return sum(len(segment.entries) for segment in self._segments)

    def commit(self) -> int:
        """Brings what waits into the table, in one version of it (two where labels were taken back); returns rows."""
        with self._committing:
            with self._mutex:
                ready = [segment for segment in self._segments if segment.entries]
                if not ready:
                    return 0
                if self._segments[-1].entries:
                    self._segments.append(self._new_segment())
            rows = _write_entries(self._store, [entry for segment in ready for entry in segment.entries])
            with self._mutex:
                self._segments = [segment for segment in self._segments if segment not in ready]
            for segment in ready:
                _discard(segment)
            return rows

    def close(self) -> None:
        """Commits, and lets another process have the annotator's name."""
        self.commit()
        with self._mutex:
            for segment in self._segments:
                _discard(segment)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _write(self, key: Key, label: Label | None) -> None:
        line = json.dumps([*key, label is None, label and label.value, (label.time if label else datetime.now(UTC)).isoformat()])
        with self._mutex:
            segment = self._segments[-1]
            assert segment.file is not None
            segment.file.write(line.encode() + b"\n")
            segment.file.flush()
            os.fsync(segment.file.fileno())
            segment.entries.append((key, label))
            _lay_over(self._labels, [(key, label)])

    def _new_segment(self) -> _Segment:
        self._number += 1
        path = self._folder / f"{_file_stem(self.annotator)}.{self._number:06d}.jsonl"
        return _Segment(path, open(path, "xb"))


def check_name(annotator: str) -> None:
    """Raises ReviewError for a name that is empty, too long or not printable."""
    if not annotator.strip() or len(annotator) > LONGEST_NAME or not annotator.isprintable():
        raise ReviewError(f"--annotator {annotator[:LONGEST_NAME]!r}: a name of 1 to {LONGEST_NAME} printable characters")


def pair_of(left: str, right: str, left_is_better: float | None) -> tuple[str, str, float | None]:
    """(clip_id, kind, value) of a comparison; the smaller id is the row's clip."""
    if left < right:
        return left, PAIR + right, left_is_better
    return right, PAIR + left, None if left_is_better is None else 1.0 - left_is_better


def other_of(label: Label) -> str | None:
    """The clip that a comparison's clip was compared with; None: the label is no comparison."""
    return label.kind.removeprefix(PAIR) if label.kind.startswith(PAIR) else None


def read_labels(store: Store) -> Iterator[Label]:
    """Every row of table `labels`."""
    for row in store.read("labels").to_pylist():
        yield Label(row["clip_id"], row["annotator"], row["kind"], row["value"], row["time"])


def labels_digest(store_path: Path | str) -> str | None:
    """16 hex over the keep and drop labels in the store, what `curation.policy.preferred` reads; None: there are none."""
    try:
        rows = Store.open(store_path, create=False).read("labels", ["clip_id", "annotator", "value"], "kind = 'keep' and value is not null")
    except MissingStoreError:
        return None
    return hashlib.sha256(json.dumps(rows.to_pydict()).encode()).hexdigest()[:16] if rows.num_rows else None


def recover(store: Store, folder: Path, own: str | None = None) -> int:
    """Commits the write-ahead files whose writers are gone (`own`: held by the caller); returns the entries found."""
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        stems.setdefault(path.name.split(".")[0], []).append(path)
    found = 0
    for stem, paths in stems.items():
        with _held(folder / f"{stem}.lock", own is not None and stem == _file_stem(own)) as free:
            if not free:
                continue
            entries = [entry for path in paths for entry in _read_entries(path)]
            _write_entries(store, entries)
            for path in paths:
                path.unlink(missing_ok=True)
            found += len(entries)
    return found


def _read_entries(path: Path) -> Iterator[tuple[Key, Label | None]]:
    """The file's whole lines. A last line without its end was never answered for: its writer died within the write."""
    *lines, _ = path.read_bytes().split(b"\n")
    for line in lines:
        clip_id, annotator, kind, taken_back, value, time = json.loads(line)
        key = (clip_id, annotator, kind)
        yield key, None if taken_back else Label(*key, value, datetime.fromisoformat(time))


def _lay_over(labels: dict[Key, Label], entries: Iterable[tuple[Key, Label | None]]) -> None:
    for key, label in entries:
        if label is None:
            labels.pop(key, None)
        else:
            labels[key] = label


def _write_entries(store: Store, entries: list[tuple[Key, Label | None]]) -> int:
    newest = dict(entries)
    kept = [vars(label) for label in newest.values() if label is not None]
    if kept:
        store.upsert("labels", pa.Table.from_pylist(kept, schema=LABELS))
    gone: dict[tuple[str, str], list[str]] = {}
    for (clip_id, annotator, kind), label in newest.items():
        if label is None:
            gone.setdefault((annotator, kind), []).append(clip_id)
    for (annotator, kind), clip_ids in gone.items():
        where = f"annotator = {quote_text(annotator)} and kind = {quote_text(kind)} and {any_of('clip_id', clip_ids)}"
        if store.count("labels", where):
            store.delete("labels", where)
    return len(newest)


def _discard(segment: _Segment) -> None:
    if segment.file is not None:
        segment.file.close()
    segment.path.unlink(missing_ok=True)


def _file_stem(annotator: str) -> str:
    """A file name for the annotator: what is legible of the name, and a hash that tells equal-looking ones apart."""
    legible = re.sub(r"[^A-Za-z0-9_-]+", "_", annotator)[:24]
    return f"{legible}-{hashlib.sha256(annotator.encode()).hexdigest()[:8]}"


def _take_lock(path: Path) -> IO[bytes] | None:
    """The open, locked file; the lock dies with its process. None: another process has it."""
    file = open(path, "ab")  # noqa: SIM115 (its being open is the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _held(path: Path, already: bool) -> Iterator[bool]:
    """True inside where the lock is ours."""
    if already:
        yield True
        return
    lock = _take_lock(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()
