"""Which clip comes next: the pool that a question names, and its orders.

Clips that nobody has judged come first; every OVERLAP_EVERY-th is one that another annotator has judged, so that their
agreement can be measured. What is at the front stays there while the order behind it changes, so that it can be
fetched ahead.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.expression import QueryError, compile_filter
from curation.query import Query
from curation.review.head import EMBEDDED_SHARE, SCORE_COLUMNS, Features, features_of

UNCERTAIN, DIVERSE = "uncertain", "diverse"
MOST_CLIPS = 50_000
"""A pool without --limit: the paper's number, 150 MB of embeddings at work."""
FRONT = 4
"""Clips at the front whose order is settled."""
OVERLAP_EVERY = 10
CLASSES = 4
"""Parts of equal size that motion and looks are cut into for the diverse order."""
PARTNERS = 200
"""Clips that are looked at for the second place of a pair."""
POOL_COLUMNS = ("clip_id", "source_id", "duplicate_cluster", "media_type", *SCORE_COLUMNS)


@dataclass(frozen=True)
class Pool:
    """The clips to choose from, in the order that needs no label."""

    clips: pa.Table
    matching: int
    """Clips that the question names; the pool holds at most its limit."""
    features: Features

    @cached_property
    def ids(self) -> list[str]:
        ids: list[str] = self.clips["clip_id"].to_pylist()
        return ids

    @cached_property
    def place(self) -> dict[str, int]:
        return {clip_id: index for index, clip_id in enumerate(self.ids)}

    @cached_property
    def sources(self) -> list[str]:
        return [source or "" for source in self.clips["source_id"].to_pylist()]


def read_pool(question: Query, order: str, limit: int | None) -> Pool:
    """The pool of a question. Raises QueryError for an unknown column, a wrong limit, or when no clip matches."""
    if limit is not None and limit < 1:
        raise QueryError(f"--limit is {limit}; give 1 or more")
    most = limit or MOST_CLIPS
    by_column = order not in (UNCERTAIN, DIVERSE)
    if by_column:
        question = question.order_by(order)
    matching = question.count()
    if matching == 0:
        raise QueryError(f"no clip to review: none of {question.store.count('clips')} has {' and '.join(question.filters) or 'a row'}")
    facts = (question.limit(most) if by_column else question).columns(*POOL_COLUMNS).to_arrow()
    if not by_column:
        facts = facts.take(pa.array(diverse(facts)[:most]))
    return Pool(facts, matching, features_of(_with_embeddings(question, facts)))


def _with_embeddings(question: Query, facts: pa.Table) -> pa.Table:
    """The clips with their embeddings where nearly all have one; those of other clips are never in memory together."""
    known = question.where("embedding is not null")
    if known.count() < EMBEDDED_SHARE * question.count():
        return facts
    where = compile_filter(" and ".join(f"({text})" for text in known.filters), known.schema)
    scan = question.store.dataset("clips", question.at_tag).scanner(columns=["clip_id", "embedding"], filter=where)
    wanted = facts["clip_id"].combine_chunks()
    parts = [batch.filter(pc.is_in(batch["clip_id"], wanted)) for batch in scan.to_reader()]
    found = pa.Table.from_batches(parts).combine_chunks()
    return facts.append_column(
        "embedding", found["embedding"].combine_chunks().take(pc.index_in(wanted, found["clip_id"].combine_chunks()))
    )


def diverse(clips: pa.Table) -> np.ndarray:
    """Places of the clips, spread: in turn one of each class of motion x looks, in a class one of each source before a
    second, members of a duplicate cluster but its first at the very end. Equal clips make an equal order."""
    ids = clips["clip_id"].to_pylist()
    random = [hashlib.sha256(clip_id.encode()).digest() for clip_id in ids]
    cells = list(zip(_classes(clips, "motion_raft", "motion_proxy"), _classes(clips, "aesthetic", "aesthetic_proxy"), strict=True))
    sources, clusters = clips["source_id"].to_pylist(), clips["duplicate_cluster"].to_pylist()
    seen_clusters: set[str] = set()
    in_cell: Counter[Any] = Counter()
    of_source: Counter[Any] = Counter()
    keys: list[Any] = [None] * len(ids)
    by_chance = sorted(range(len(ids)), key=lambda index: random[index])
    for index in by_chance:
        cluster, cell = clusters[index], cells[index]
        repeated = cluster is not None and cluster in seen_clusters
        seen_clusters |= {cluster} if cluster is not None else set()
        of_source[cell, sources[index]] += 1
        keys[index] = (repeated, of_source[cell, sources[index]], random[index])
    turns = [0] * len(ids)
    for index in sorted(by_chance, key=lambda index: keys[index]):
        turns[index] = in_cell[cells[index], keys[index][0]]
        in_cell[cells[index], keys[index][0]] += 1
    shuffled = {cell: hashlib.sha256(repr(cell).encode()).digest() for cell in set(cells)}
    order = sorted(range(len(ids)), key=lambda index: (keys[index][0], turns[index], shuffled[cells[index]]))
    return np.array(order, int)


def _classes(clips: pa.Table, *columns: str) -> list[int]:
    """Class 0 to CLASSES - 1 by the first of the columns that a clip has; -1: unknown."""
    values = np.full(clips.num_rows, np.nan)
    for name in reversed(columns):
        column = clips[name].combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)
        values = np.where(np.isfinite(column), column, values)
    known = values[np.isfinite(values)]
    if not len(known):
        return [-1] * len(values)
    edges = np.quantile(known, np.arange(1, CLASSES) / CLASSES)
    return [int(place) if np.isfinite(value) else -1 for value, place in zip(values, np.searchsorted(edges, values, "right"), strict=True)]


def by_uncertainty(chance: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """Places of the clips, those with a chance of a keep nearest to one half first; ties by id."""
    return np.array(sorted(range(len(ids)), key=lambda place: (abs(chance[place] - 0.5), ids[place])), int)


class Queue:
    """The clips still to judge, one after the other. Not for use by two threads at once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: Sequence[str] = pool.ids
        self._front: deque[str] = deque()
        self._given = 0

    def reorder(self, order: np.ndarray) -> None:
        """Takes another order for what is behind the front."""
        self._waiting = [self._pool.ids[place] for place in order.tolist()]

    def ahead(self, mine: set[str], others: set[str]) -> list[str]:
        """Up to FRONT clips that are not in `mine`; of those, clips in `others` (judged by other people) come last or as overlap."""
        self._front = deque(clip_id for clip_id in self._front if clip_id not in mine)
        while len(self._front) < FRONT:
            self._given += 1
            overlap = self._given % OVERLAP_EVERY == 0
            found = self._first(mine, others, overlap) or self._first(mine, others, not overlap)
            if found is None:
                break
            self._front.append(found)
        return list(self._front)

    def _first(self, mine: set[str], others: set[str], judged: bool) -> str | None:
        open_ = (clip_id for clip_id in self._waiting if clip_id not in mine and (clip_id in others) == judged)
        return next((clip_id for clip_id in open_ if clip_id not in self._front), None)

    def put_back(self, clip_id: str) -> None:
        """The clip comes next."""
        self._front = deque([clip_id, *(other for other in self._front if other != clip_id)])


def next_pairs(
    pool: Pool, order: np.ndarray, chance: np.ndarray | None, compared: Counter[str], done: set[frozenset[str]], count: int
) -> list[tuple[str, str]]:
    """Up to `count` pairs of clips that were not compared yet; those with the fewest comparisons first.

    With a head the partner is the clip with the nearest chance of a keep (the comparison that tells most), else the next in
    the order. Which is on the left follows from a hash.
    """
    ids = pool.ids
    ranked = sorted(order.tolist(), key=lambda place: compared[ids[place]])
    used: set[int] = set()
    pairs: list[tuple[str, str]] = []
    for first in ranked:
        if len(pairs) == count:
            break
        if first in used:
            continue
        second = _partner(first, ranked, used, chance, compared, done, ids)
        if second is not None:
            used |= {first, second}
            pair = (ids[first], ids[second])
            flipped = hashlib.sha256("".join(sorted(pair)).encode()).digest()[0] % 2 == 1
            pairs.append(tuple(sorted(pair, reverse=flipped)))
    return pairs


def _partner(
    first: int,
    ranked: Sequence[int],
    used: set[int],
    chance: np.ndarray | None,
    compared: Counter[str],
    done: set[frozenset[str]],
    ids: Sequence[str],
) -> int | None:
    free = (place for place in ranked if place != first and place not in used and frozenset((ids[first], ids[place])) not in done)
    open_ = list(islice(free, PARTNERS))
    if not open_:
        return None
    if chance is None:
        return open_[0]
    fewest = compared[ids[open_[0]]]
    equals = [place for place in open_ if compared[ids[place]] == fewest]
    return min(equals, key=lambda place: (abs(chance[place] - chance[first]), ids[place]))
