"""The policy on a table small enough to judge by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from curation.config import PAPER_RULES, PolicyConfig, Rule
from curation.expression import QueryError
from curation.policy import assign_split, check_rules, condition_of, funnel, judge, preferred
from curation.schema import CLIPS, LABELS

RULES = (
    Rule(name="resolution", column="short_side_px", at_least=1080, media="video"),
    Rule(name="motion", column="motion_proxy", at_least=1.1, at_most=20, media="video"),
    Rule(name="black", column="black_ratio", at_most=0.05, unknown="keep"),
    Rule(name="move", column="camera_move", one_of=("static", "pan left"), media="video"),
)

#        id   media    px    motion  black  move        caption  -> state, reasons, mask
TABLE = [
    ("a", "video", 1080, 1.1, 0.05, "static", "x", "kept", None, 0),  # on every bound
    ("b", "video", 1079, 1.0, 0.06, "zoom in", "x", "rejected", "resolution,motion,black,move", 0b1111),
    ("c", "video", 1080, 0.0, 0.0, "static", "x", "rejected", "motion", 0b0010),  # 0 is a value
    ("d", "video", 1080, 20.1, 0.0, "static", "x", "rejected", "motion", 0b0010),
    ("e", "video", 1080, None, 0.0, "static", "x", "rejected", "motion:unknown", 0b0010),
    ("f", "video", None, None, 0.0, "static", "x", "rejected", "resolution:unknown,motion:unknown", 0b0011),
    ("g", "video", 1080, 2.0, None, "static", "x", "kept", None, 0),  # black keeps the unknown
    ("h", "image", 10, None, 0.0, None, "x", "kept", None, 0),  # the rules for videos are not judged
    ("i", "image", 10, None, 0.5, None, "x", "rejected", "black", 0b0100),
    ("j", "video", 1080, 2.0, 0.0, "static", None, "rejected", "caption:unknown", 0),
    ("k", "video", 1080, float("nan"), 0.0, "static", "x", "rejected", "motion:unknown", 0b0010),
]


def table(rows: list[tuple[Any, ...]] = TABLE) -> pa.Table:
    names = ["clip_id", "media_type", "short_side_px", "motion_proxy", "black_ratio", "camera_move", "caption"]
    return pa.table({name: pa.array([row[i] for row in rows], CLIPS.field(name).type) for i, name in enumerate(names)})


def verdicts(judged: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in judged.to_pylist()]


def test_every_verdict_of_the_hand_made_table() -> None:
    assert verdicts(judge(table(), RULES).table()) == [row[7:] for row in TABLE]


def test_an_open_error_makes_the_unknown_failed_and_leaves_the_known_alone() -> None:
    states = dict(
        zip(
            (row[0] for row in TABLE),
            judge(table(), RULES, open_errors={"a", "b", "e", "g", "j"}).table()["state"].to_pylist(),
            strict=True,
        )
    )
    assert {name: states[name] for name in "abcefgj"} == {
        "a": "kept",  # an error in something that no rule needs
        "b": "rejected",
        "c": "rejected",
        "e": "failed",
        "f": "rejected",
        "g": "kept",
        "j": "failed",  # its caption could not be made
    }


def test_absent_and_failed_sources_keep_clips_out() -> None:
    unusable = pa.array(["absent", "source:failed"] + [None] * (len(TABLE) - 2), pa.string())
    judged = verdicts(judge(table(), RULES, unusable=unusable).table())
    assert judged[0] == ("rejected", "absent", 0)
    assert judged[1] == ("failed", "resolution,motion,black,move,source:failed", 0b1111)
    assert judged[6] == ("kept", None, 0)


def test_no_rules_and_no_rows() -> None:
    assert set(judge(table(), ()).table()["state"].to_pylist()) == {"kept", "rejected"}  # j has no caption
    assert judge(table().slice(0, 0), RULES).table().num_rows == 0
    assert funnel(table().slice(0, 0), RULES)[0].left == 0


def test_funnel_alone_and_in_order() -> None:
    rows = {row.rule: row for row in funnel(table(), RULES)}
    #                judged  alone  unknown  first  left
    assert _numbers(rows["resolution"]) == (9, 2, 1, 2, 9)  # b, f
    assert _numbers(rows["motion"]) == (9, 6, 3, 4, 5)  # b c d e f k; b and f are gone already
    assert _numbers(rows["black"]) == (11, 2, 1, 1, 4)  # b, i
    assert _numbers(rows["move"]) == (9, 1, 0, 0, 4)  # b
    assert rows["motion"].condition == "motion_proxy >= 1.1 and motion_proxy <= 20"
    assert rows["motion"].unit == "px at 360 px short side per 1/8 s"


def _numbers(row: Any) -> tuple[int, ...]:
    return row.judged, row.rejected_alone, row.unknown, row.rejected_first, row.left


def test_a_changed_threshold_changes_what_it_should() -> None:
    rules = [rule.model_copy(update={"at_least": 1.3}) if rule.name == "motion" else rule for rule in RULES]
    before, after = judge(table(), RULES).table()["state"].to_pylist(), judge(table(), rules).table()["state"].to_pylist()
    assert [row[0] for row, b, a in zip(TABLE, before, after, strict=True) if b != a] == ["a"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(name="m", column="motoin", at_least=1)], "did you mean motion_proxy"),
        ([Rule(name="m", column="state", at_least=1)], "at_least and at_most need a number, state is text"),
        ([Rule(name="m", column="width", one_of=("1",))], "one_of needs a text column, width is number"),
        ([Rule(name="m", column="width", at_least=1)] * 2, "more than one rule named m"),
        ([Rule(name="a,b", column="width", at_least=1)], "no comma or colon"),
        ([Rule(name=f"m{i}", column="width", at_least=1) for i in range(63)], "63 rules; at most 62"),
    ],
)
def test_mistaken_rules(rules: list[Rule], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_rules(rules)


def test_the_papers_rules_are_good() -> None:
    check_rules(PAPER_RULES)
    assert [condition_of(rule) for rule in PAPER_RULES if rule.name == "motion"] == ["motion_raft >= 1.1"]


# preference


def kept_clips(rows: list[tuple[Any, ...]]) -> pa.Table:
    names = ["clip_id", "media_type", "split", "aesthetic", "aesthetic_proxy"]
    return pa.table({name: pa.array([row[i] for row in rows], CLIPS.field(name).type) for i, name in enumerate(names)})


def test_top_aesthetic_takes_train_videos_by_the_real_score_where_there_is_one() -> None:
    rows = [
        ("a", "video", "train", None, 9.0),
        ("b", "video", "train", None, 8.0),
        ("c", "video", "val", None, 9.9),
        ("d", "image", "train", None, 9.9),
        ("e", "video", "train", None, 8.0),
    ]
    config = PolicyConfig(preference_subset="top_aesthetic", preference_size=2)
    no_labels = LABELS.empty_table()
    assert preferred(kept_clips(rows), no_labels, config) == {"a", "b"}  # ties by clip_id
    rows[4] = ("e", "video", "train", 5.0, 8.0)
    assert preferred(kept_clips(rows), no_labels, config) == {"e"}  # aesthetic wins; the others have none


def test_preference_by_labels_is_the_majority_of_people() -> None:
    votes = [("a", "p", 1), ("a", "q", 1), ("b", "p", 1), ("b", "q", 0), ("c", "p", 1), ("c", "q", 1), ("c", "r", 0), ("gone", "p", 1)]
    labels = pa.table(
        {
            "clip_id": [clip for clip, _, _ in votes] + ["b"],
            "annotator": [who for _, who, _ in votes] + ["p"],
            "kind": ["keep"] * len(votes) + ["preference"],
            "value": pa.array([value for _, _, value in votes] + [1], pa.float32()),
        }
    )
    kept = kept_clips([(name, "video", "train", None, None) for name in "abc"])
    assert preferred(kept, labels, PolicyConfig()) == {"a", "c"}
    assert preferred(kept, labels, PolicyConfig(preference_size=1)) == {"a"}


# split


def sources(*rows: tuple[str, str, str | None, str | None], media: str = "video") -> pa.Table:
    """(source, state, split, cluster) a clip."""
    return pa.table(
        {
            "clip_id": [f"{row[0]}-{i}" for i, row in enumerate(rows)],
            "source_id": [row[0] for row in rows],
            "media_type": [media] * len(rows),
            "state": [row[1] for row in rows],
            "split": pa.array([row[2] for row in rows], pa.string()),
            "duplicate_cluster": pa.array([row[3] for row in rows], pa.string()),
        }
    )


def kept_sources(count: int) -> list[tuple[str, str, str | None, str | None]]:
    return [(f"s{i:02}", "kept", None, None) for i in range(count)]


@pytest.mark.parametrize(
    ("count", "share", "least", "val"), [(20, 0.2, 1, 4), (20, 0.0, 1, 1), (20, 0.05, 3, 3), (2, 0.2, 1, 1), (1, 0.5, 1, 0), (3, 1.0, 1, 2)]
)
def test_share_of_sources_held_out(count: int, share: float, least: int, val: int) -> None:
    split = assign_split(sources(*kept_sources(count)), PolicyConfig(held_out_share=share, min_held_out_sources=least)).of_source
    assert len(split) == count
    assert list(split.values()).count("val") == val


def test_split_does_not_depend_on_the_order_of_rows_nor_on_clips_that_are_not_kept() -> None:
    rows = [*kept_sources(12), ("s99", "rejected", None, None)]
    config = PolicyConfig(held_out_share=0.25)
    forward, backward = assign_split(sources(*rows), config).of_source, assign_split(sources(*rows[::-1]), config).of_source
    assert forward == backward
    assert "s99" not in forward  # no kept clip: not selected yet


def test_split_is_sticky_when_sources_are_added() -> None:
    config = PolicyConfig(held_out_share=0.25)
    first = assign_split(sources(*kept_sources(8)), config).of_source
    grown = [(name, "kept", first.get(name), None) for name, _, _, _ in kept_sources(16)]
    second = assign_split(sources(*grown), config).of_source
    assert {name: second[name] for name in first} == first
    assert list(second.values()).count("val") == 4
    # a source that is rejected now and kept again later has not changed sides
    dropped = [(name, "rejected", first[name], None) for name in first]
    assert assign_split(sources(*dropped), config).of_source == first


def test_duplicates_stand_on_one_side() -> None:
    config = PolicyConfig(held_out_share=0.5)
    rows = [(f"s{i}", "kept", None, f"cluster{i // 2}") for i in range(12)]
    split = assign_split(sources(*rows), config).of_source
    assert all(split[f"s{2 * i}"] == split[f"s{2 * i + 1}"] for i in range(6))
    assert list(split.values()).count("val") == 6
    # a new copy joins the side of the old one, though nobody else is held out
    rows = [("old", "kept", "val", "k"), ("new", "kept", None, "k"), ("third", "kept", None, None)]
    assert assign_split(sources(*rows), config).of_source == {"old": "val", "new": "val", "third": "train"}


def test_a_group_larger_than_the_share_trains_where_a_smaller_one_is_there() -> None:
    config = PolicyConfig(held_out_share=0.2)
    rows = [(f"s{i}", "kept", None, "reel" if i < 6 else None) for i in range(10)]  # a reel and the five films that it shows
    split = assign_split(sources(*rows), config).of_source
    assert [split[f"s{i}"] for i in range(6)] == ["train"] * 6
    assert list(split.values()).count("val") == 2
    # where every group is too large, one of the smallest is held out
    rows = [(f"s{i}", "kept", None, f"reel{i // 5}") for i in range(10)]
    assert list(assign_split(sources(*rows), config).of_source.values()).count("val") == 5


def test_duplicates_fixed_on_both_sides_are_counted() -> None:
    rows: list[tuple[str, str, str | None, str | None]] = [("p", "kept", "val", "k"), ("q", "kept", "train", "k"), ("r", "kept", None, "k")]
    split = assign_split(sources(*rows), PolicyConfig())
    assert split.mixed_groups == 1
    assert split.of_source == {"p": "val", "q": "train", "r": "train"}


def test_images_do_not_use_up_the_held_out_videos() -> None:
    images = sources(*[(f"i{n}", "kept", None, None) for n in range(10)], media="image")
    videos = sources(("v1", "kept", None, None), ("v2", "kept", None, None))
    split = assign_split(pa.concat_tables([images, videos]), PolicyConfig(held_out_share=0.1)).of_source
    assert sorted([split["v1"], split["v2"]]) == ["train", "val"]
    assert [split[f"i{n}"] for n in range(10)].count("val") == 1
    alone = assign_split(images, PolicyConfig(held_out_share=0.0)).of_source
    assert list(alone.values()).count("val") == 1
