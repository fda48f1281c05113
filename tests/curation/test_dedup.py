"""Perceptual clusters: who matches whom, and who represents."""

from __future__ import annotations

from curation.config import DedupConfig
from curation.dedup import HashedClip, find_clusters, parse_hashes

CONFIG = DedupConfig(hamming_bits=6)


def clip(
    name: str, *hashes: int, source: str | None = None, start_us: int = 0, short_side_px: int = 1080, media: str = "video"
) -> HashedClip:
    return HashedClip(name, source or f"source of {name}", media, start_us, short_side_px, hashes)


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
