"""The diff of two releases, on rows whose differences are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import curation
from curation.column_files import unchanged_columns
from curation.expression import QueryError
from curation.releases import diff as store_diff
from curation.schema import CLIPS
from curation.store import Store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips a-f, an hour each. one: a, b, c, d kept, e rejected. two: b rejected, c gone, d changed, e kept, f new and kept."""
    folder = tmp_path_factory.mktemp("releases") / "store"
    store = Store.open(folder)
    names = ["clip_id", "state", "reject_reason", "split", "caption", "subsets"]

    def put(*rows: tuple[object, ...]) -> None:
        columns = {name: pa.array([row[i] for row in rows], CLIPS.field(name).type) for i, name in enumerate(names)}
        facts = {"uri": [f"/films/{row[0]}.mp4" for row in rows], "duration_s": [3600.0] * len(rows)}
        store.upsert("clips", pa.table(columns | {name: pa.array(values) for name, values in facts.items()}))

    put(
        ("a", "kept", None, "train", "same", ["preference"]),
        ("b", "kept", None, "train", "slow", []),
        ("c", "kept", None, "val", None, None),
        ("d", "kept", None, "train", "old words", []),
        ("e", "rejected", "motion", None, None, None),
    )
    store.tag("one", "first")
    put(
        ("b", "rejected", "motion,aesthetic", "train", "slow", []),
        ("d", "kept", None, "val", "new words", ["preference"]),
        ("e", "kept", None, "train", None, None),
        ("f", "kept", None, "train", "new", []),
    )
    store.delete("clips", "clip_id = 'c'")
    store.tag("two", "second")
    return folder


def test_added_removed_and_changed(path: Path) -> None:
    found = curation.open(path).diff("one", "two")
    assert (found.old_clips, found.new_clips, found.old_hours, found.new_hours) == (4, 4, 4.0, 4.0)
    assert [row["clip_id"] for row in found.added] == ["e", "f"]
    assert [(row["clip_id"], row["why"]) for row in found.removed] == [("b", "motion,aesthetic"), ("c", "no such clip any more")]
    assert [(row["clip_id"], row["column"], row["old"], row["new"]) for row in found.changed] == [
        ("d", "split", "train", "val"),
        ("d", "caption", "old words", "new words"),
        ("d", "subsets", [], ["preference"]),
    ]


def test_it_is_symmetrical_and_silent_where_nothing_differs(path: Path) -> None:
    back = curation.open(path).diff("two", "one")
    assert [row["clip_id"] for row in back.added] == ["b", "c"] and [row["clip_id"] for row in back.removed] == ["e", "f"]
    assert [row["why"] for row in back.removed] == ["motion", "no such clip any more"]
    same = curation.open(path).diff("one", "one")
    assert same.added == same.removed == same.changed == []


def test_clips_in_the_same_places_are_compared_as_any_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only columns were written between the tags; a row written in the end moves, and then keys are compared."""
    store = Store.open(tmp_path / "store")
    monkeypatch.setattr("curation.releases.READ_ROWS", 2)

    def put(**columns: list[object]) -> None:
        store.merge_columns("clips", pa.table({name: pa.array(values, CLIPS.field(name).type) for name, values in columns.items()}))

    ids = ["c", "a", "e", "b", "d"]
    store.upsert("clips", pa.table({"clip_id": ids, "uri": [f"/films/{name}.mp4" for name in ids], "duration_s": [3600.0] * 5}))
    put(clip_id=ids, state=["kept", "kept", "kept", "rejected", None], split=["val", "train", "train", None, None], subsets=[[]] * 5)
    store.tag("one", "first")
    reasons = [None, "motion", "looks", None, None]
    put(
        clip_id=ids,
        state=["kept", "rejected", "failed", "kept", "kept"],
        reject_reason=reasons,
        split=["val"] * 5,
        subsets=[["p"], [], [], [], []],
    )
    store.tag("two", "second")
    store.upsert("clips", pa.table({"clip_id": ["c"], "uri": ["/films/c.mp4"]}))
    store.tag("three", "third")
    by_place, by_key = store_diff(store, "one", "two"), store_diff(store, "one", "three")
    assert "clip_id" in unchanged_columns(*(store.dataset("clips", tag) for tag in ("one", "two")))
    assert "clip_id" not in unchanged_columns(*(store.dataset("clips", tag) for tag in ("one", "three")))
    assert (by_place.old_clips, by_place.new_clips, by_place.old_hours, by_place.new_hours) == (3, 3, 3.0, 3.0)
    assert [(row["clip_id"], row["uri"], row["split"]) for row in by_place.added] == [
        ("b", "/films/b.mp4", "val"),
        ("d", "/films/d.mp4", "val"),
    ]
    assert [(row["clip_id"], row["split"], row["why"]) for row in by_place.removed] == [("a", "train", "motion"), ("e", "train", "looks")]
    assert by_place.changed == [{"clip_id": "c", "column": "subsets", "old": [], "new": ["p"]}]
    assert replace(by_key, new="two") == by_place


def test_its_text_and_mistakes(path: Path) -> None:
    lines = str(curation.open(path).diff("one", "two")).splitlines()
    assert lines[0] == "one -> two: 4 -> 4 clips, 4.00 -> 4.00 h"
    assert "removed  2 (motion,aesthetic 1, no such clip any more 1)" in lines
    assert "changed  1 (split 1, caption 1, subsets 1)" in lines and "  d  caption: old words -> new words" in lines
    with pytest.raises(QueryError, match="no tag 'tow'; did you mean \"two\""):
        curation.open(path).diff("one", "tow")


def test_the_command_prints_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from orchestration.cli import diff

    diff("one", "two", format="json", root=path.parent)
    assert [row["clip_id"] for row in json.loads(capsys.readouterr().out)["added"]] == ["e", "f"]


def test_what_no_commit_touched_is_not_compared(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    columns = {"state": ["kept", "kept", "rejected"], "caption": ["x", "y", "z"], "duration_s": [3600.0] * 3, "split": ["train"] * 3}
    store.upsert("clips", pa.table({"clip_id": ["a", "b", "c"], **columns}))
    store.tag("one", "")
    reasons = pa.array([None, "motion", None], pa.string())
    store.merge_columns("clips", pa.table({"clip_id": ["a", "b", "c"], "state": ["kept", "rejected", "kept"], "reject_reason": reasons}))
    store.tag("two", "")
    same = unchanged_columns(store.dataset("clips", "one"), store.dataset("clips", "two"))
    assert set(CLIPS.names) - same == {"state", "reject_reason"}
    found = curation.open(tmp_path / "store").diff("one", "two")
    assert [(row["clip_id"], row["why"]) for row in found.removed] == [("b", "motion")]
    assert ([row["clip_id"] for row in found.added], found.changed) == (["c"], [])
    store.upsert("clips", pa.table({"clip_id": ["a"], "caption": ["other"]}))
    store.tag("three", "")
    assert [row["new"] for row in curation.open(tmp_path / "store").diff("two", "three").changed] == ["other"]
