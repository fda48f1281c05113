"""Perceptual duplicates: clips whose key frames hash alike, clustered, with a representative; nothing is deleted.

Byte duplicates never get here: they are one source. Clips of one source are not compared either: neighbours of a
quiet shot look alike because they are one shot. Semantic duplicates: `curation.semantic_dedup`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from curation.config import DedupConfig
from curation.step import Lineage
from curation.versions import SCORE_VERSIONS

DEDUP_COLUMNS = ("duplicate_cluster", "is_duplicate", "dedup_run")
SEMANTIC_COLUMNS = ("semantic_cluster", "is_semantic_duplicate", "semantic_run")
BLOCK = 2048
"""Clips compared with all others at a time, so that memory stays bounded."""


@dataclass(frozen=True)
class ClipToCompare:
    """What deduplication looks at."""

    clip_id: str
    source_id: str
    media_type: str
    start_us: int
    short_side_px: int
    hashes: tuple[int, ...]
    """64-bit DCT hashes of the key frames, in order."""


def dedup_lineage(config: DedupConfig) -> Lineage:
    """What made the duplicate columns."""
    parameters = {"hamming_bits": config.hamming_bits}
    return Lineage("score", "dedup", SCORE_VERSIONS["dedup"], "64-bit DCT hashes of key frames", parameters=parameters)


def semantic_lineage(config: DedupConfig, embedding_run: str) -> Lineage:
    """What made the semantic columns."""
    parameters = {"semantic_similarity": config.semantic_similarity, "embedding": embedding_run}
    return Lineage("score", "semantic", SCORE_VERSIONS["semantic"], "cosine of CLIP embeddings", parameters=parameters)


def parse_hashes(text: str | None) -> tuple[int, ...]:
    """Hashes of the `perceptual_hash` column."""
    return tuple(int(word, 16) for word in (text or "").split())


def find_clusters(clips: list[ClipToCompare], config: DedupConfig) -> dict[str, str]:
    """clip_id -> clip_id of its cluster's representative, for clips that have a duplicate (the representative included).

    Two clips match when they are of one media type, of different sources, hold equally many key frames, and their
    aligned hashes differ by at most `hamming_bits` on average.
    """
    groups: dict[tuple[str, int], list[ClipToCompare]] = {}
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        if any(clip.hashes):  # a picture without structure hashes to 0, whatever it is
            groups.setdefault((clip.media_type, len(clip.hashes)), []).append(clip)
    return clusters_of(clips, (pair for group in groups.values() for pair in _near(group, config.hamming_bits)))


def clusters_of(clips: list[ClipToCompare], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """clip_id -> clip_id of its cluster's representative, for every clip of a pair. Pairs that share a clip are one cluster.

    The representative is the largest picture, then the earliest start, then the lowest clip_id.
    """
    parent = {clip.clip_id: clip.clip_id for clip in clips}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in pairs:
        parent[max(root(one), root(other))] = min(root(one), root(other))
    members: dict[str, list[ClipToCompare]] = {}
    for clip in clips:
        members.setdefault(root(clip.clip_id), []).append(clip)
    clusters: dict[str, str] = {}
    for cluster in members.values():
        if len(cluster) > 1:
            best = min(cluster, key=lambda clip: (-clip.short_side_px, clip.start_us, clip.clip_id))
            clusters |= {clip.clip_id: best.clip_id for clip in cluster}
    return clusters


def _near(group: list[ClipToCompare], bits: int) -> list[tuple[str, str]]:
    hashes = np.array([clip.hashes for clip in group], np.uint64)
    sources = np.unique([clip.source_id for clip in group], return_inverse=True)[1]
    limit = bits * hashes.shape[1]
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(group), BLOCK):
        block = slice(start, start + BLOCK)
        distance = np.zeros((len(hashes[block]), len(group) - start), np.uint16)
        for frame in range(hashes.shape[1]):
            distance += np.bitwise_count(hashes[block, frame, None] ^ hashes[None, start:, frame])
        near = (distance <= limit) & (sources[block, None] != sources[None, start:])
        for row, column in np.argwhere(near):
            if column > row:
                pairs.append((group[start + row].clip_id, group[start + column].clip_id))
    return pairs
