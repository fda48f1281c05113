"""Perceptual and semantic clusters: who matches whom, and who represents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from curation.config import DedupConfig
from curation.dedup import ClipToCompare, dedup_lineage, find_clusters, parse_hashes, semantic_lineage
from curation.schema import EMBEDDING_WIDTH
from curation.semantic_dedup import find_semantic_clusters

CONFIG = DedupConfig(hamming_bits=6)


def clip(
    name: str, *hashes: int, source: str | None = None, start_us: int = 0, short_side_px: int = 1080, media: str = "video"
) -> ClipToCompare:
    return ClipToCompare(name, source or f"source of {name}", media, start_us, short_side_px, hashes)


def test_near_hashes_are_clustered_and_the_largest_represents() -> None:
    clusters = find_clusters([clip("a", 1, 0, short_side_px=720), clip("b", 0b111111, 0b111111), clip("c", 2**64 - 1, 2**63)], CONFIG)
    assert clusters == {"a": "b", "b": "b"}


def test_the_limit_is_on_the_average_over_aligned_frames() -> None:
    """12 bits in one of two frames are 6 on average; 13 are too many."""
    assert find_clusters([clip("a", 1, 0), clip("b", 2**13 - 1, 0)], CONFIG) == {"a": "a", "b": "a"}
    assert find_clusters([clip("a", 1, 0), clip("b", 2**14 - 1, 0)], CONFIG) == {}
    assert find_clusters([clip("a", 0, 2**40 - 1), clip("b", 2**40 - 1, 0)], CONFIG) == {}, "order counts"


def test_clusters_are_transitive() -> None:
    clusters = find_clusters([clip("c", 2**12 - 1), clip("a", 1), clip("b", 2**6 - 1)], CONFIG)
    assert set(clusters.values()) == {"a"}


def test_pieces_of_one_source_images_and_videos_and_clips_without_hashes_are_not_compared() -> None:
    assert find_clusters([clip("a", 5, source="s"), clip("b", 5, source="s", start_us=5)], CONFIG) == {}
    assert find_clusters([clip("a", 5), clip("b", 5, media="image")], CONFIG) == {}
    assert find_clusters([clip("a"), clip("b")], CONFIG) == {}
    assert find_clusters([clip("a", 0, 0), clip("b", 0, 0)], CONFIG) == {}, "two bare pictures are not known to be one"


def test_ties_go_to_the_earliest_start_then_the_lowest_id() -> None:
    assert find_clusters([clip("b", 5, start_us=9), clip("a", 5, start_us=10)], CONFIG)["a"] == "b"
    assert find_clusters([clip("b", 5), clip("a", 5)], CONFIG)["b"] == "a"


def test_hashes_are_read_from_their_column() -> None:
    assert parse_hashes("00000000000000ff ffffffffffffffff") == (255, 2**64 - 1)
    assert parse_hashes("") == parse_hashes(None) == ()


def unit(*values: float) -> np.ndarray:
    vector = np.zeros(EMBEDDING_WIDTH)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def embeddings_of(*vectors: np.ndarray | None) -> pa.Array:
    rows = [None if vector is None else vector.astype(np.float16) for vector in vectors]
    return pa.array(rows, pa.list_(pa.float16(), EMBEDDING_WIDTH))


def test_near_embeddings_of_other_sources_and_the_same_kind_are_clustered() -> None:
    clips = [clip("a"), clip("b", short_side_px=2160), clip("c"), clip("d", media="image"), clip("e", source="source of a"), clip("f")]
    near = unit(1, 0.1)
    found = find_semantic_clusters(clips, embeddings_of(unit(1), near, unit(0, 1), near, near, None), 0.95)
    assert found == {"a": "b", "b": "b", "e": "b"}, "e is of a's source, and near b"
    assert find_semantic_clusters(clips, embeddings_of(unit(1), near, unit(0, 1), near, near, None), 0.999) == {"b": "b", "e": "b"}


def test_grouped_clips_find_the_pairs_that_all_pairs_find() -> None:
    """1,200 clips, each third a near copy of the one before; the grouping must not lose one in a hundred."""
    random = np.random.default_rng(3)
    vectors: list[np.ndarray] = []
    for index in range(1200):
        copy = index % 3 == 2
        vector = (
            vectors[-1] + 0.1 * random.normal(size=EMBEDDING_WIDTH) / EMBEDDING_WIDTH**0.5 if copy else random.normal(size=EMBEDDING_WIDTH)
        )
        vectors.append(vector / np.linalg.norm(vector))
    clips = [clip(f"{index:04}") for index in range(1200)]
    whole = find_semantic_clusters(clips, embeddings_of(*vectors), 0.95)
    grouped = find_semantic_clusters(clips, embeddings_of(*vectors), 0.95, all_pairs_clips=100)
    assert len(whole) == 800
    assert len(set(whole.items()) & set(grouped.items())) >= 0.99 * len(whole)


def test_the_limits_are_lineages_of_their_own() -> None:
    assert (
        semantic_lineage(DedupConfig(semantic_similarity=0.95), "e").run_id
        != semantic_lineage(DedupConfig(semantic_similarity=0.9), "e").run_id
    )
    assert dedup_lineage(DedupConfig(semantic_similarity=0.95)) == dedup_lineage(DedupConfig()), "hashes do not depend on it"
