"""One sitting of one annotator: the queue, the labels, the head that learns behind their back, and the answers for the page.

Every public method returns JSON-ready values. Clips are named by their id only; what lies where is looked up in the store.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.expression import QueryError, any_of, unit_of
from curation.query import Query, open_dataset
from curation.review import agreement
from curation.review.head import LEAST_LABELS, Check, Head, targets_of, train
from curation.review.labels import KEEP, PAIR, Label, LabelBook, other_of, pair_of
from curation.review.previews import Preview, Previews
from curation.review.queue import UNCERTAIN, Queue, by_uncertainty, next_pairs, read_pool
from curation.schema import CLIPS
from curation.store import Store

log = logging.getLogger(__name__)

KINDS = ("keep", "pair")
COMMIT_LABELS, COMMIT_S = 100, 30.0
"""So many waiting labels, or so many seconds since the first, make a commit; each is a version of the table."""
RETRAIN_LABELS, RETRAIN_SHARE = 8, 0.02
"""New labels after which the head is trained anew: so many, and this share of those it knows."""
MOST_SHEET_CLIPS = 600
MOST_LABELLED = 1_000
"""Labelled clips that a sheet chooses from, the newest."""
RATE_LABELS = 30
"""Labels of this sitting that the rate is measured over."""
SHOWN = (
    ("motion_raft", "motion (RAFT)"),
    ("motion_proxy", "motion (proxy)"),
    ("aesthetic", "aesthetic"),
    ("aesthetic_proxy", "aesthetic (proxy)"),
    ("piqe", "PIQE, lower is better"),
    ("musiq", "MUSIQ"),
    ("blur", "sharpness (Laplacian)"),
    ("luma_mean", "luma"),
    ("black_ratio", "black frames"),
    ("repeated_ratio", "repeated frames"),
)
"""Scores beside a clip: column, words."""
FACTS = (
    "clip_id",
    "uri",
    "media_type",
    "start_us",
    "end_us",
    "duration_s",
    "width",
    "height",
    "frame_rate_hz",
    "camera_move",
    "split",
    "state",
    "reject_reason",
    "subsets",
    "duplicate_cluster",
    "caption",
    *(column for column, _ in SHOWN),
)
REMEMBERED_CLIPS = 2_000


class UnknownClipError(LookupError):
    """No clip has the id."""


@dataclass(frozen=True)
class ReviewSettings:
    """What `flashvideo review` was asked for."""

    root: Path
    annotator: str
    where: str = "state = 'kept'"
    order: str = UNCERTAIN
    kind: str = "keep"
    limit: int | None = None
    motion_edges: tuple[float, ...] = ()
    motion_words: tuple[str, ...] = ()
    subset_size: int = 50_000
    """`preference_size` of the policy."""
    next_command: str = ""
    """What makes the labels take effect."""


class Session:
    """The state behind the page. Its methods may be called from several threads."""

    def __init__(self, settings: ReviewSettings) -> None:
        """Raises QueryError for a wrong question, ReviewError where the annotator's name is in use."""
        self.settings = settings
        question = self._newest_clips().where(settings.where)  # says in one line where there is no store
        self.store = Store.open(settings.root / "store")
        self.pool = read_pool(question, settings.order, settings.limit)
        self.book = LabelBook(self.store, settings.root / "review", settings.annotator)
        self.previews = Previews(settings.root / "review" / "clips")
        self.thumbs = settings.root / "tracks" / "thumbs"
        self._queue = Queue(self.pool)
        self._mutex = threading.RLock()
        self._chance: np.ndarray | None = None
        self._head: Head | None = None
        self._trained_on = 0
        self._undone: list[tuple[str, str, Label | None, tuple[str, ...]]] = []
        self._times: list[float] = []
        self.counts: Counter[str] = Counter()
        self._clips: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._waiting_since: float | None = None
        self._pairs: list[tuple[str, str]] = []
        self._order = np.arange(len(self.pool.ids))
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep_house, name="review", daemon=True)
        self._keeper.start()

    # what the page asks

    def state(self) -> dict[str, Any]:
        """What comes next, how far it is, what the head can do."""
        with self._mutex:
            ahead = self._pairs_ahead() if self.settings.kind == "pair" else [(clip_id,) for clip_id in self._clips_ahead()]
            items = [[self.clip(clip_id) for clip_id in item] for item in ahead]
            for item in items:
                for clip in item:
                    self.previews.fetch_ahead(self._row(clip["clip_id"]))
            return {"items": items, "progress": self.progress(), "head": self._head_facts(), "can_undo": bool(self._undone)}

    def facts(self) -> dict[str, Any]:
        """What does not change while the page is open."""
        columns = [{"name": field.name, "unit": unit_of(field), "about": (field.metadata or {})[b"about"].decode()} for field in CLIPS]
        settings = self.settings
        return {
            "annotator": settings.annotator,
            "kind": settings.kind,
            "order": settings.order,
            "where": settings.where,
            "pool": len(self.pool.ids),
            "matching": self.pool.matching,
            "next_command": settings.next_command,
            "columns": columns,
        }

    def judge(self, clip_id: str, value: float | None) -> None:
        """Keep (1), drop (0) or skip (None)."""
        self._row(clip_id)
        self._label(clip_id, KEEP, value, (clip_id,), {1.0: "kept", 0.0: "dropped", None: "skipped"}[value])

    def compare(self, left: str, right: str, left_is_better: float | None) -> None:
        """1: left, 0: right, 0.5: a tie, None: skip."""
        for clip_id in (left, right):
            self._row(clip_id)
        clip_id, kind, value = pair_of(left, right, left_is_better)
        self._label(clip_id, kind, value, (left, right), "skipped" if value is None else "compared")

    def undo(self) -> list[str]:
        """Takes back the newest judgement of this sitting; its clips come next again. Empty: there is none."""
        with self._mutex:
            if not self._undone:
                return []
            clip_id, kind, before, shown = self._undone.pop()
            if before is None:
                self.book.remove(clip_id, kind)
            else:
                self.book.set(clip_id, kind, before.value)
            self.counts["undone"] += 1
            self._times = self._times[:-1]
            if kind == KEEP:
                self._queue.put_back(clip_id)
            else:
                self._pairs.insert(0, (shown[0], shown[1]))
            return list(shown)

    def browse(self, where: str, order: str, labelled: str, offset: int, limit: int) -> dict[str, Any]:
        """Clips of any question. `labelled`: any, keep, drop, skip (by this annotator), disputed. Raises QueryError."""
        question = self._newest_clips()
        if where.strip():
            question = question.where(where)
        if order.strip():
            question = question.order_by(*[name.strip() for name in order.split(",") if name.strip()])
        if labelled != "any":
            question = question.where(any_of("clip_id", self._labelled(labelled)))
        if not (offset >= 0 and 1 <= limit <= MOST_SHEET_CLIPS):
            raise QueryError(f"a sheet shows 1 to {MOST_SHEET_CLIPS} clips from 0 on; asked for {limit} from {offset} on")
        rows = question.limit(offset + limit).columns(*FACTS).rows()[offset:]
        for row in rows:
            self._remember(row)
        return {"total": question.count(), "offset": offset, "clips": [self._shown(row) for row in rows]}

    def clip(self, clip_id: str) -> dict[str, Any]:
        """What stands beside a clip. Raises UnknownClipError."""
        return self._shown(self._row(clip_id))

    def made(self, clip_id: str) -> Preview | None:
        """The file where it is there; None: it is being cut. Never waits. Raises UnknownClipError, PreviewError."""
        return self.previews.peek(self._row(clip_id))

    def preview(self, clip_id: str) -> Preview:
        """The file that a browser shows. Raises UnknownClipError, PreviewError."""
        return self.previews.get(self._row(clip_id))

    def thumb(self, clip_id: str) -> Path | None:
        """The clip's small picture. Raises UnknownClipError."""
        path = self.thumbs / f"{self._row(clip_id)['clip_id']}.jpg"
        return path if path.parent == self.thumbs and path.is_file() else None

    def summary(self) -> dict[str, Any]:
        """Annotators, agreement, disputes, the subset so far, the head."""
        facts = summary_of(self.book.labels(), self._kept(), self.settings.subset_size)
        for dispute in facts["disputes"]:
            dispute["clip"] = self._shown_or_none(dispute["clip_id"])
        return facts | {"head": self._head_facts(), "next_command": self.settings.next_command, "waiting": self.book.waiting}

    def progress(self) -> dict[str, Any]:
        """Of this annotator over the pool; the rate is of this sitting."""
        with self._mutex:
            mine = self._mine()
            values = [label.value for clip_id, label in mine.items() if clip_id in self.pool.place and label.value is not None]
            done, total = sum(clip_id in self.pool.place for clip_id in mine), len(self.pool.ids)
            if self.settings.kind == "pair":
                compared = self._compared()
                done, left = sum(compared.values()) // 2, -(-sum(not compared[clip_id] for clip_id in self.pool.ids) // 2)
                total = done + left
            share = sum(value > 0.5 for value in values) / len(values) if values and self.settings.kind == "keep" else None
            return {"done": done, "left": total - done, "total": total, "kept_share": share, "per_minute": self._rate()}

    # what goes on behind it

    def retrain(self) -> None:
        """Trains the head on every label so far and puts the queue in its order."""
        labels = self.book.labels()
        told = sum(label.value is not None for label in labels)
        head = train(self.pool.features, targets_of(labels, self.pool.place), self.pool.sources)
        chance = head.probabilities(self.pool.features) if head is not None else None
        order = np.arange(len(self.pool.ids))
        if chance is not None and self.settings.order == UNCERTAIN:
            order = by_uncertainty(chance, self.pool.ids)
        with self._mutex:
            self._head, self._chance, self._trained_on, self._order = head, chance, told, order
            self._queue.reorder(order)

    def close(self) -> None:
        """Commits what waits and ends the child process."""
        self._stop.set()
        self._keeper.join(timeout=5)
        self.book.close()
        self.previews.close()

    def _keep_house(self) -> None:
        while not self._stop.is_set():
            try:
                self._commit_if_due()
                if self._has_to_learn():
                    self.retrain()
                self._stop.wait(0.5)
            except Exception:  # labels stay in the write-ahead file and are tried again
                log.exception("the labels could not be brought into the store yet; they are kept in %s", self.settings.root / "review")
                self._stop.wait(COMMIT_S)

    def _has_to_learn(self) -> bool:
        told = sum(label.value is not None for label in self.book.labels())
        new = max(RETRAIN_LABELS, RETRAIN_SHARE * self._trained_on)
        return told >= max(self._trained_on + new, LEAST_LABELS) or told < self._trained_on

    def _commit_if_due(self) -> None:
        waiting = self.book.waiting
        if not waiting:
            self._waiting_since = None
            return
        self._waiting_since = self._waiting_since or time.monotonic()
        if waiting >= COMMIT_LABELS or time.monotonic() - self._waiting_since >= COMMIT_S:
            self.book.commit()
            self.book.refresh()
            self._waiting_since = None

    def _label(self, clip_id: str, kind: str, value: float | None, shown: Sequence[str], word: str) -> None:
        with self._mutex:
            before = self.book.get(clip_id, kind)
            self.book.set(clip_id, kind, value)
            self._undone.append((clip_id, kind, before, tuple(shown)))
            self._times.append(time.monotonic())
            self.counts[word] += 1

    def _clips_ahead(self) -> list[str]:
        others = {label.clip_id for label in self.book.labels() if label.kind == KEEP and label.annotator != self.settings.annotator}
        return self._queue.ahead(set(self._mine()), others)

    def _pairs_ahead(self) -> list[tuple[str, str]]:
        done = {frozenset((label.clip_id, other or "")) for label in self._my_labels() if (other := other_of(label))}
        self._pairs = [pair for pair in self._pairs if frozenset(pair) not in done]
        if len(self._pairs) < 2:
            settled = done | {frozenset(pair) for pair in self._pairs}
            compared = self._compared() + Counter(clip_id for pair in self._pairs for clip_id in pair)
            self._pairs += next_pairs(self.pool, self._order, self._chance, compared, settled, 2 - len(self._pairs))
        return self._pairs[:2]

    def _my_labels(self) -> list[Label]:
        return [label for label in self.book.labels() if label.annotator == self.settings.annotator]

    def _mine(self) -> dict[str, Label]:
        return {label.clip_id: label for label in self._my_labels() if label.kind == KEEP}

    def _compared(self) -> Counter[str]:
        pairs = [(label.clip_id, other) for label in self._my_labels() if (other := other_of(label)) is not None]
        return Counter(clip_id for pair in pairs for clip_id in pair if all(each in self.pool.place for each in pair))

    def _labelled(self, which: str) -> list[str]:
        if which == "disputed":
            return [dispute.clip_id for dispute in agreement.disputes(self.book.labels())][:MOST_LABELLED]
        values = {"keep": 1.0, "drop": 0.0, "skip": None}
        if which not in values:
            raise QueryError(f"no labels {which!r}; any, {', '.join(values)}, disputed")
        found = [label for label in self._mine().values() if label.value == values[which]]
        return [label.clip_id for label in sorted(found, key=lambda label: label.time)[-MOST_LABELLED:]]

    def _rate(self) -> float | None:
        times = self._times[-RATE_LABELS:]
        return 60 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 2 and times[-1] > times[0] else None

    def _kept(self) -> set[str]:
        return set(self.store.read("clips", ["clip_id"], "state = 'kept'")["clip_id"].to_pylist())

    def _head_facts(self) -> dict[str, Any]:
        head, features = self._head, self.pool.features
        check: Check | None = head.check if head else None
        return {
            "reads": features.names,
            "unknown": features.unknown,
            "labels": head.labels if head else 0,
            "needs": LEAST_LABELS,
            "check": asdict(check) if check else None,
        }

    def _newest_clips(self) -> Query:
        """Of the table as it is now: other processes write to it."""
        clips: Query = open_dataset(self.settings.root / "store").clips
        return clips

    def _row(self, clip_id: str) -> dict[str, Any]:
        with self._mutex:
            if clip_id in self._clips:
                self._clips.move_to_end(clip_id)
                return self._clips[clip_id]
        question = self._newest_clips()
        rows = question.where(any_of("clip_id", [clip_id])).columns(*FACTS).rows()
        if not rows:
            raise UnknownClipError(f"no clip {clip_id[:64]!r}")
        return self._remember(rows[0])

    def _remember(self, row: dict[str, Any]) -> dict[str, Any]:
        with self._mutex:
            self._clips[row["clip_id"]] = row
            while len(self._clips) > REMEMBERED_CLIPS:
                self._clips.popitem(last=False)
        return row

    def _shown_or_none(self, clip_id: str) -> dict[str, Any] | None:
        try:
            return self.clip(clip_id)
        except UnknownClipError:
            return None

    def _shown(self, row: dict[str, Any]) -> dict[str, Any]:
        label = self.book.get(row["clip_id"])
        place = self.pool.place.get(row["clip_id"])
        motion = row["motion_raft"] if row["motion_raft"] is not None else row["motion_proxy"]
        word = None
        if motion is not None and row["media_type"] == "video" and self.settings.motion_words:
            word = self.settings.motion_words[sum(motion >= edge for edge in self.settings.motion_edges)]
        scores = [
            {"name": column, "label": words, "value": row[column], "unit": unit_of(CLIPS.field(column))}
            for column, words in SHOWN
            if row[column] is not None and math.isfinite(row[column])
        ]
        facts = {name: row[name] for name in FACTS if name not in ("uri", *(column for column, _ in SHOWN))}
        return facts | {
            "name": str(row["uri"] or "").rsplit("/", 1)[-1],
            "motion_word": word,
            "scores": scores,
            "chance": float(self._chance[place]) if self._chance is not None and place is not None else None,
            "label": None if label is None else {"value": label.value, "time": label.time.isoformat(timespec="seconds")},
        }


def summary_of(labels: Sequence[Label], kept: set[str], subset_size: int) -> dict[str, Any]:
    """Annotators, agreement, disputes and the subset that the keep and drop labels make, JSON-ready."""
    chosen = agreement.majority(labels)
    return {
        "annotators": [asdict(each) for each in agreement.annotators(labels)],
        "agreements": [asdict(each) for each in agreement.agreements(labels)],
        "disputes": [asdict(each) for each in agreement.disputes(labels)],
        "subset": {"chosen": len(chosen & kept), "not_kept": len(chosen - kept), "size": subset_size},
        "clips": len({label.clip_id for label in labels if not label.kind.startswith(PAIR)}),
    }
