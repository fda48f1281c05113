"""The store: merges, errors, runs, tags, and what a killed writer leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.expression import QueryError
from curation.revisions import revision_of
from curation.schema import KEYS, TABLES
from curation.step import Lineage
from curation.store import MissingStoreError, Store, StoreError

HASH_OF_A_2 = "e5a9d5b0300e0f50d372e5a9ddfa24208aac9a940ce9a36f247387221ae205fe"
ID_BEFORE_REVISIONS = "5b0bb8185d7f6667"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def clips(**columns: list[object]) -> pa.Table:
    schema = pa.schema([TABLES["clips"].field(name) for name in columns])
    return pa.table({name: pa.array(values, schema.field(name).type) for name, values in columns.items()}, schema=schema)


def rows(store: Store, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in store.read("clips", columns).to_pylist()]


def test_open_makes_every_table_and_lancedb_opens_them(store: Store) -> None:
    import lancedb

    store.upsert("clips", clips(clip_id=["a"], motion_proxy=[1.5]))
    database = lancedb.connect(store.path)
    assert set(database.list_tables().tables) == set(TABLES)
    assert database.open_table("clips").count_rows("motion_proxy >= 1.5") == 1
    assert store.dataset("clips").has_stable_row_ids


def test_schema_keeps_units_and_nulls(store: Store) -> None:
    field = store.dataset("clips").schema.field("motion_proxy")
    assert field.metadata[b"unit"] == b"px at 360 px short side per 1/8 s"
    store.upsert("clips", clips(clip_id=["a"], motion_proxy=[0.0]))
    assert rows(store, "motion_proxy", "motion_raft") == [(0.0, None)]


def test_opening_again_changes_nothing(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a"]))
    version = store.version("clips")
    again = Store.open(store.path)
    assert again.version("clips") == version
    assert again.count("clips") == 1


def test_reading_where_there_is_no_store_says_so_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingStoreError, match="there is no store at"):
        Store.open(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()


def test_upsert_is_idempotent_and_one_commit(store: Store) -> None:
    before = store.version("clips")
    for _ in range(2):
        store.upsert("clips", clips(clip_id=["b", "a"], uri=["/b", "/a"]))
    assert rows(store, "clip_id", "uri") == [("a", "/a"), ("b", "/b")]
    assert store.version("clips") == before + 2


def test_upsert_keeps_absent_columns_of_old_rows_and_leaves_them_null_in_new_ones(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a"], uri=["/a"], motion_proxy=[1.5]))
    store.upsert("clips", clips(clip_id=["a", "b"], uri=["/moved", "/b"]))
    assert rows(store, "clip_id", "uri", "motion_proxy") == [("a", "/moved", 1.5), ("b", "/b", None)]


def test_upsert_can_replace_a_sources_older_clips_in_the_same_commit(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a", "b", "c"], source_id=["s", "s", "t"]))
    before = store.version("clips")
    store.upsert("clips", clips(clip_id=["b", "d"], source_id=["s", "s"]), replace_within="source_id")
    assert rows(store, "clip_id", "source_id") == [("b", "s"), ("c", "t"), ("d", "s")]
    assert store.version("clips") == before + 1


def test_merge_columns_touches_existing_rows_and_given_columns_only(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a", "b"], uri=["/a", "/b"], state=["new", "new"]))
    changed = store.merge_columns("clips", clips(clip_id=["b", "unknown"], state=["kept", "kept"]))
    assert changed == 1
    assert rows(store, "clip_id", "uri", "state") == [("a", "/a", "new"), ("b", "/b", "kept")]


def test_merge_columns_sets_nulls_and_lists(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a"], motion_proxy=[1.5], subsets=[["old"]]))
    store.merge_columns("clips", clips(clip_id=["a"], motion_proxy=[None], subsets=[["preference", "x"]]))
    assert rows(store, "motion_proxy", "subsets") == [(None, ["preference", "x"])]


def test_most_rows_at_once_are_written_as_the_join_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled keys, one that the table lacks, rows that are not given, a list and a vector, several fragments, indexes; and again."""
    stores = Store.open(tmp_path / "joined"), Store.open(tmp_path / "aligned")
    found = []
    for store, share in zip(stores, (2.0, 0.5), strict=True):
        monkeypatch.setattr("curation.column_files.LEAST_SHARE", share)
        for ids in (["a", "b"], ["c"], ["d", "e", "f"]):
            store.upsert("clips", clips(clip_id=ids, state=["new"] * len(ids), caption=["x"] * len(ids)))
        store.build_indexes()
        version = store.version("clips")
        given = {"clip_id": ["f", "b", "z", "a", "d"], "motion_proxy": [1.0, None, 9.0, 2.0, 3.0], "state": ["kept"] * 5}
        lists = {"subsets": [["p"], [], ["p"], None, ["p", "q"]], "embedding": [[float(i)] * 768 for i in range(5)]}
        assert store.merge_columns("clips", clips(**given, **lists)) == 4
        assert store.merge_columns("clips", clips(clip_id=["a", "b", "c", "d"], motion_proxy=[4.0, 5.0, 6.0, None])) == 4
        assert store.version("clips") == version + 2
        rows = store.read("clips", ["clip_id", "state", "caption", "motion_proxy", "subsets", "embedding"]).to_pylist()
        found.append((rows, store.count("clips", "state = 'kept'"), store.count("clips", "motion_proxy >= 3")))
        store.dataset("clips").validate()
    files = [[len(fragment.data_files()) for fragment in store.dataset("clips").get_fragments()] for store in stores]
    assert files[1] == [3, 3, 3]  # the rows as they came, the columns once, motion again
    assert found[0] == found[1]
    assert found[1][1:] == (4, 3)


@pytest.mark.parametrize("between", ["nothing", "another writer", "a deleted row"])
@pytest.mark.parametrize("changed", ["", "ab", "abcdef", "def", "a"])
def test_columns_set_by_place_are_those_set_by_key(store: Store, changed: str, between: str) -> None:
    """Two fragments; also where the table moved on since it was read, and where a deletion leaves a gap in the files."""
    for ids in ("abc", "def"):
        store.upsert("clips", clips(clip_id=list(ids), state=["new"] * 3, caption=["x"] * 3))
    if between == "a deleted row":
        store.delete("clips", "clip_id = 'b'")
    here = store.dataset("clips").to_table(columns=["clip_id"])["clip_id"].to_pylist()
    version, places = store.version("clips"), [clip in changed for clip in here]
    if between == "another writer":
        store.upsert("clips", clips(clip_id=["a", "g"], caption=["y", "y"]))
    asked: list[tuple[int, int]] = []

    def values(start: int, stop: int) -> pa.Table:
        asked.append((start, stop))
        return clips(state=[f"kept {clip}" if clip in changed else "new" for clip in here[start:stop]])

    assert store.set_columns("clips", version, np.array(places), ["state"], values) == sum(places)
    wanted = [(clip, f"kept {clip}" if clip in changed else "new") for clip in sorted(here)]
    assert rows(store, "clip_id", "state")[: len(wanted)] == wanted
    assert store.read("clips", ["caption"], "clip_id = 'a'")["caption"].to_pylist() == ["y" if between == "another writer" else "x"]
    if between == "nothing":  # files are written of the fragments with a change, unless the join writes less
        assert asked == {"": [], "ab": [(0, 3)], "abcdef": [(0, 3), (3, 6)], "def": [(3, 6)], "a": [(0, 3), (3, 6)]}[changed]
    store.dataset("clips").validate()


def test_merging_into_an_empty_table_or_nothing_is_no_error(store: Store) -> None:
    assert store.merge_columns("clips", clips(clip_id=["a"], state=["kept"])) == 0
    assert store.upsert("clips", clips(clip_id=[], uri=[])) == 0
    assert store.count("clips") == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"uri": ["/a"]}), "lack the key column clip_id"),
        (pa.table({"clip_id": ["a", "a"]}), "repeat a key.*'a'.*1 rows too many"),
        (pa.table({"clip_id": ["a", None]}), "1 of 2 rows.*no clip_id"),
        (pa.table({"clip_id": ["a"], "motion_proxi": [1.0]}), "did you mean motion_proxy"),
        (pa.table({"clip_id": ["a"], "motion_proxy": ["fast"]}), "motion_proxy is float"),
    ],
)
def test_rows_that_do_not_fit_are_refused(store: Store, table: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.upsert("clips", table)
    assert store.count("clips") == 0


def test_rows_come_back_in_the_order_of_the_key_whatever_the_writes(store: Store) -> None:
    for ids in (["c", "a"], ["b"], ["a"]):
        store.upsert("clips", clips(clip_id=ids))
    assert store.read("clips", ["state", "clip_id"])["clip_id"].to_pylist() == ["a", "b", "c"]
    assert KEYS["clips"] == ("clip_id",)


def test_delete_returns_how_many(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a", "b"], uri=["it's", "b"]))
    assert store.delete("clips", "uri = 'it''s'") == 1
    assert rows(store, "clip_id") == [("b",)]


# errors and runs

ERROR = {"job": "score", "step": "motion", "clip_id": "a", "code": "too_few_frames", "message": "3 frames", "run_id": "r"}


def test_errors_are_idempotent_and_reopen(store: Store) -> None:
    store.append_errors([ERROR])
    first = store.read("errors").to_pylist()
    store.append_errors([ERROR, ERROR])
    assert store.read("errors").to_pylist() == first  # the time of the first stays
    assert store.resolve_errors("score", "motion", clip_ids=["other"]) == 0
    assert store.resolve_errors("score", "motion", clip_ids=["a"]) == 1
    assert store.count("errors", "resolved") == 1
    store.append_errors([ERROR])
    assert store.read("errors", ["resolved", "message"]).to_pylist() == [{"resolved": False, "message": "3 frames"}]


def test_an_error_that_comes_again_with_other_words_has_the_last_ones(store: Store) -> None:
    store.append_errors([ERROR, ERROR | {"clip_id": "b"}])
    store.append_errors([ERROR | {"message": "4 frames", "attempt": 2}])
    found = {row["clip_id"]: (row["message"], row["attempt"]) for row in store.read("errors").to_pylist()}
    assert found == {"a": ("4 frames", 2), "b": ("3 frames", None)}


def test_another_code_or_clip_is_another_error(store: Store) -> None:
    store.append_errors([ERROR, ERROR | {"code": "deadline"}, ERROR | {"clip_id": "b"}])
    assert store.count("errors") == 3
    assert store.resolve_errors("score") == 3


def test_an_error_with_a_misspelt_column_is_refused(store: Store) -> None:
    with pytest.raises(QueryError, match="did you mean message"):
        store.append_errors([ERROR | {"mesage": "x"}])


def test_a_run_is_one_row_per_lineage(store: Store) -> None:
    lineage = Lineage("score", "motion", "1", "opencv-dis", parameters={"b": 1, "a": 2})
    for seconds in (1.0, 2.0):
        assert store.register_run(lineage, "cpu", seconds, 3, 2, 1) == lineage.run_id
    (row,) = store.read("runs", ["run_id", "parameters", "seconds", "rows_failed"]).to_pylist()
    assert row == {"run_id": lineage.run_id, "parameters": '{"a": 2, "b": 1}', "seconds": 2.0, "rows_failed": 1}


def test_a_run_names_parameters_hash_revision_and_version_of_the_table_it_wrote(store: Store) -> None:
    """The hash is `printf '{"a": 2}' | sha256sum`; unknown is null."""
    columns = ["revision", "parameters_hash", "table_version"]
    store.upsert("clips", clips(clip_id=["a"]))
    store.upsert("clips", clips(clip_id=["b"]))
    store.register_run(Lineage("score", "motion", "1", "opencv-dis", parameters={"a": 2}), "cpu", 1.0, 2, 2, 0)
    (row,) = store.read("runs", columns).to_pylist()
    assert row == {"revision": None, "parameters_hash": HASH_OF_A_2, "table_version": store.version("clips")}
    store.register_run(Lineage("caption", "x", "1", "vlm", parameters={"a": 2}, revision="c" * 40), "cpu", 1.0, 2, 2, 0, "captions")
    (row,) = store.read("runs", columns, "job = 'caption'").to_pylist()
    assert row == {"revision": "c" * 40, "parameters_hash": HASH_OF_A_2, "table_version": store.version("captions")}
    assert store.version("captions") != store.version("clips")


def test_a_lineage_keeps_its_id_when_its_revision_is_known() -> None:
    """The id as it was before lineages had a revision: nothing becomes stale by it."""
    lineage = Lineage("score", "motion", "2", "DIS", "ab" * 32, {"pairs": 48, "flow": {"size": 360}})
    assert lineage.run_id == ID_BEFORE_REVISIONS
    assert replace(lineage, revision="c" * 40).run_id == ID_BEFORE_REVISIONS


def test_runs_that_an_older_version_registered_read_null_and_get_the_columns(store: Store) -> None:
    new = ["revision", "parameters_hash", "table_version"]
    lineage = Lineage("score", "motion", "1", "opencv-dis")
    store.register_run(lineage, "cpu", 1.0, 3, 2, 1)
    store.dataset("runs").drop_columns(new)
    assert store.read("runs", ["run_id", *new]).to_pylist() == [{"run_id": lineage.run_id, **dict.fromkeys(new)}]
    again = Store.open(store.path)
    assert again.read("runs", ["rows_ok", *new]).to_pylist() == [{"rows_ok": 2, **dict.fromkeys(new)}]
    again.register_run(lineage, "cpu", 1.0, 3, 2, 1)
    (row,) = again.read("runs", new).to_pylist()
    assert row["table_version"] == again.version("clips") and len(row["parameters_hash"]) == 64


def test_a_downloaded_model_names_its_commit(tmp_path: Path) -> None:
    """The two layouts of the Hugging Face client: its cache, and a folder of one's own (--local-dir)."""
    commit, other = "0123456789" * 4, "abcdef0123" * 4
    snapshot = tmp_path / "models--openai--clip" / "snapshots" / commit
    own = tmp_path / "own"
    told = own / ".cache" / "huggingface" / "download"
    for folder in (snapshot, own / "sub", told / "sub", tmp_path / "plain"):
        folder.mkdir(parents=True)
    for file in (snapshot / "config.json", own / "config.json", own / "sub" / "w.pth", tmp_path / "plain" / "config.json"):
        file.write_text("{}")
    (told / "config.json.metadata").write_text(f"{commit}\netag\n1.0\n")
    (told / "sub" / "w.pth.metadata").write_text(f"{other}\netag\n1.0\n")
    assert [revision_of(path) for path in (snapshot, own, own / "sub" / "w.pth")] == [commit, commit, other]
    assert revision_of(tmp_path / "plain") is None and revision_of(tmp_path / "absent") is None
    (told / "config.json.metadata").write_text("main\n")
    assert revision_of(own) is None


# releases


def test_a_tag_still_reads_the_old_rows_after_updates_deletes_and_compaction(store: Store) -> None:
    from datetime import timedelta

    store.upsert("clips", clips(clip_id=["a", "b"], state=["kept", "new"]))
    store.tag("sel-1", "first", {"kept": 1})
    store.merge_columns("clips", clips(clip_id=["a", "b"], state=["rejected", "kept"]))
    store.delete("clips", "clip_id = 'a'")
    store.upsert("clips", clips(clip_id=["c"], state=["kept"]))
    store.compact(older_than=timedelta(0))
    assert store.read("clips", ["clip_id", "state"], tag="sel-1").to_pylist() == [
        {"clip_id": "a", "state": "kept"},
        {"clip_id": "b", "state": "new"},
    ]
    assert store.count("clips", "state = 'kept'", tag="sel-1") == 1
    assert rows(store, "clip_id", "state") == [("b", "kept"), ("c", "kept")]


def test_a_tag_never_moves(store: Store) -> None:
    store.upsert("clips", clips(clip_id=["a"]))
    first = store.tag("sel-1", "first", {"kept": 1})
    store.upsert("clips", clips(clip_id=["b"]))
    assert store.tag("sel-1", "second", {"kept": 2}) == first
    assert store.tags()["sel-1"].card["kept"] == 1
    card = json.loads((Path(store.path) / "releases" / "sel-1.json").read_text())
    assert card["version"] == first.version


def test_an_unknown_tag_names_the_nearest(store: Store) -> None:
    store.tag("sel-abc1", "x")
    with pytest.raises(StoreError, match=r'no tag .sel-abd1.; did you mean "sel-abc1"'):
        store.read("clips", tag="sel-abd1")
    with pytest.raises(StoreError, match="tags are releases of clips"):
        store.read("sources", tag="sel-abc1")


def test_compaction_joins_fragments_and_keeps_rows(store: Store) -> None:
    for name in "abcd":
        store.upsert("clips", clips(clip_id=[name], motion_proxy=[1.0]))
    assert len(store.dataset("clips").get_fragments()) == 4
    store.compact()
    assert len(store.dataset("clips").get_fragments()) == 1
    assert rows(store, "clip_id") == [("a",), ("b",), ("c",), ("d",)]


def test_indexes_change_no_answer(store: Store) -> None:
    """The same questions before indexes, after them, after writes behind their back, and after they catch up."""
    questions = ["motion_proxy >= 5", "state = 'kept'", "motion_proxy < 5 and state = 'new'", "source_id = 's1'", "clip_id = 'c05'"]

    def answers() -> list[list[str]]:
        return [store.read("clips", ["clip_id"], question)["clip_id"].to_pylist() for question in questions]

    ids = [f"c{i:02}" for i in range(10)]
    motion = [float(i) for i in range(10)]
    columns = {"clip_id": ids, "source_id": [f"s{i // 5}" for i in range(10)], "motion_proxy": motion, "state": ["new"] * 10}
    store.upsert("clips", clips(**columns))
    plain = answers()
    assert store.build_indexes() == [f"clips.{name}" for name in ("clip_id", "source_id", "state", "media_type", "dataset")]
    assert store.build_indexes() == []
    assert answers() == plain
    assert "ScalarIndexQuery" in store.dataset("clips").scanner(filter="clip_id = 'c05'").explain_plan()

    store.merge_columns("clips", clips(clip_id=ids[:5], motion_proxy=[9.0] * 5, state=["kept"] * 5))
    store.upsert("clips", clips(clip_id=["c05", "c99"], motion_proxy=[None, 7.0], state=["kept", "new"]))
    wanted = [["c00", "c01", "c02", "c03", "c04", "c06", "c07", "c08", "c09", "c99"], ids[:6], [], ids[5:], ["c05"]]
    assert answers() == wanted
    store.compact()
    assert answers() == wanted


# crashes and other writers

WRITER = """
import sys
import pyarrow as pa
from curation.store import Store
store = Store.open(sys.argv[1])
name, rounds = sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for turn in range(rounds):
    ids = [f"{name}-{turn}-{i}" for i in range(20)]
    store.upsert("clips", pa.table({"clip_id": [*ids, "shared"], "uri": [name] * 21}))
    store.merge_columns("clips", pa.table({"clip_id": ids, "state": ["kept"] * 20}))
    print(turn, flush=True)
"""


def start_writer(store: Store, name: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, store.path, name, str(rounds)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def finished_turns(process: subprocess.Popen[str]) -> set[int]:
    assert process.stdout is not None
    return {int(line) for line in process.stdout.read().split() if line != "ready"}


def test_a_writer_killed_at_any_moment_loses_and_doubles_nothing(store: Store) -> None:
    """Kills a writer four times, at different moments of its commits, then repeats all that it was to write."""
    committed = 0
    for attempt in range(4):
        process = start_writer(store, "w", 1000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(attempt):  # progress, so that the kills fall on different states of the table
            process.stdout.readline()
        time.sleep(0.008 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        turns = finished_turns(process) | set(range(attempt))
        process.wait()
        committed = max(committed, 20 * len(turns))
        ids = store.read("clips", ["clip_id"], "clip_id != 'shared'")["clip_id"].to_pylist()
        assert len(ids) == len(set(ids))
        assert len(ids) >= committed, "a committed row was lost"
        assert len(ids) % 20 == 0, "half an upsert became visible"
    assert start_writer(store, "w", 12).wait() == 0
    kept = store.read("clips", ["clip_id", "state", "uri"], "clip_id like 'w-1-%'").to_pylist()
    assert kept == [{"clip_id": f"w-1-{i}", "state": "kept", "uri": "w"} for i in sorted(range(20), key=str)]
    assert store.count("clips", "clip_id = 'shared'") == 1


def test_writers_at_the_same_time_lose_and_double_nothing(store: Store) -> None:
    writers = [start_writer(store, name, 5) for name in ("p", "q")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert store.count("clips") == 2 * 5 * 20 + 1
    assert store.count("clips", "state = 'kept'") == 2 * 5 * 20
    ids = store.read("clips", ["clip_id"])["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids)


def test_a_large_merge_fits_though_the_key_is_indexed(store: Store) -> None:
    """Merging through the index fails here: pylance 14.0.2 gives that join 300 MB."""
    count = 200_000
    ids = [f"{i:032x}" for i in range(count)]
    text = ["/a/path/of/some/length/to/a/film/file.mp4"] * count
    columns = {"clip_id": ids, "uri": text, "reject_reason": text, "camera_move": text, "caption": text, "select_run": text}
    store.upsert("clips", clips(**columns))
    store.build_indexes()
    assert store.merge_columns("clips", clips(**columns)) == count
    assert store.count("clips", "caption is not null") == count


def test_a_store_of_an_older_version_gets_the_columns_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without them before, as null; written after."""
    older = pa.schema([field for field in TABLES["clips"] if field.name not in ("text_overlay", "aesthetic_min")])
    with monkeypatch.context() as patch:
        patch.setitem(TABLES, "clips", older)
        Store.open(tmp_path).upsert("clips", pa.table({"clip_id": ["a"], "piqe": pa.array([40.0], pa.float32())}))
    unchanged = Store.open(tmp_path, create=False)
    assert unchanged.read("clips", ["piqe", "text_overlay"]).to_pylist() == [{"piqe": 40.0, "text_overlay": None}]
    store = Store.open(tmp_path)
    store.merge_columns("clips", pa.table({"clip_id": ["a"], "text_overlay": pa.array([0.5], pa.float32())}))
    assert store.read("clips", ["piqe", "text_overlay", "aesthetic_min"]).to_pylist() == [
        {"piqe": 40.0, "text_overlay": 0.5, "aesthetic_min": None}
    ]
