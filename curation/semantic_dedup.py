"""Semantic duplicates: clips of different sources whose CLIP embeddings point nearly the same way. Marks, deletes nothing.

All pairs where there are few clips. Of many, as in SemDeDup (Abbas et al. 2023): the embeddings are grouped around centres, each
clip joins its nearest centres, and only clips of one centre are compared, so that the work grows with n sqrt(n).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from curation.dedup import BLOCK, ClipToCompare, clusters_of
from curation.schema import EMBEDDING_WIDTH

ALL_PAIRS_CLIPS = 20_000
"""Up to here every pair is compared (seconds)."""
CENTRE_ROUNDS, CENTRE_SAMPLE = 8, 64
"""Rounds of k-means, and clips per centre that it looks at."""
NEAREST_CENTRES = 2
"""Centres that a clip joins: near clips may stand on both sides of a border."""


def find_semantic_clusters(
    clips: list[ClipToCompare], embeddings: pa.Array, similarity: float, all_pairs_clips: int = ALL_PAIRS_CLIPS
) -> dict[str, str]:
    """clip_id -> clip_id of its cluster's representative, for clips that have a semantic duplicate.

    `embeddings`: a unit vector per clip, null where there is none (such a clip is alone). Images and videos are not compared, nor
    clips of one source.
    """
    known = np.flatnonzero(~np.asarray(embeddings.is_null()))
    vectors = np.asarray(embeddings.drop_null().flatten(), np.float32).reshape(-1, EMBEDDING_WIDTH)
    sources = np.unique([clip.source_id for clip in clips], return_inverse=True)[1]
    pairs: list[tuple[str, str]] = []
    for media_type in ("video", "image"):
        places = np.array([place for place, row in enumerate(known) if clips[row].media_type == media_type], np.int64)
        for group in _groups(vectors, places, all_pairs_clips):
            rows = known[group]
            for one, other in _near(vectors[group], sources[rows], similarity):
                pairs.append((clips[rows[one]].clip_id, clips[rows[other]].clip_id))
    return clusters_of(clips, pairs)


def _groups(vectors: np.ndarray, places: np.ndarray, all_pairs_clips: int) -> Iterator[np.ndarray]:
    """Places to compare with each other; a place may be in several."""
    if len(places) <= all_pairs_clips:
        yield places
        return
    centres = _centres(vectors, places)
    joined = np.empty((len(places), NEAREST_CENTRES), np.int32)
    for start in range(0, len(places), BLOCK):
        block = slice(start, start + BLOCK)
        joined[block] = np.argpartition(-(vectors[places[block]] @ centres.T), NEAREST_CENTRES - 1, axis=1)[:, :NEAREST_CENTRES]
    order = np.argsort(joined.reshape(-1), kind="stable")
    borders = np.searchsorted(joined.reshape(-1)[order], np.arange(len(centres) + 1))
    for first, end in pairwise(borders):
        if end - first > 1:
            yield places[np.sort(order[first:end] // NEAREST_CENTRES)]


def _centres(vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Unit vectors, sqrt(n) of them, by k-means over a seeded sample."""
    random = np.random.default_rng(0)
    number = max(NEAREST_CENTRES, round(len(places) ** 0.5))
    sample = vectors[np.sort(random.permutation(places)[: number * CENTRE_SAMPLE])]
    centres = sample[random.permutation(len(sample))[:number]]
    for _ in range(CENTRE_ROUNDS):
        nearest = np.concatenate([(sample[start : start + BLOCK] @ centres.T).argmax(axis=1) for start in range(0, len(sample), BLOCK)])
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
    return centres


def _near(vectors: np.ndarray, sources: np.ndarray, similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs of places whose cosine is at least that, a block at a time."""
    for start in range(0, len(vectors), BLOCK):
        block = slice(start, start + BLOCK)
        near = (vectors[block] @ vectors[start:].T >= similarity) & (sources[block, None] != sources[None, start:])
        for row, column in np.argwhere(near):
            if column > row:
                yield start + int(row), start + int(column)
