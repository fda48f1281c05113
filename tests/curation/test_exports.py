"""Exports: every format reads back, clips are cut once and go on where they stopped, names stay in their folder."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pytest
from generated_films import moving, texture, write_film
from pyarrow import parquet

import curation
from curation import exports
from curation.expression import QueryError
from curation.query import Query, run_query
from curation.schema import CLIPS
from curation.store import Store, lance
from curation.video import decode

SECOND = 1_000_000
ODD_NAME = '../../..\\a "film"; $(rm) …#1.mp4'
"""A file name that would leave the folder, were it taken as it is (the separators are those of another system)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips: two of one film, an image, and one whose file is gone; the ids of two are no file names."""
    folder = tmp_path_factory.mktemp("exports")
    film = write_film(folder / ODD_NAME.replace("/", ""), moving(64, 96, 72, (1, 0), seed=1))
    cv2.imwrite(str(folder / "still.png"), texture(40, 60, 1))
    rows = [
        ("a1", str(film), "video", 0, SECOND, 2.5, "a pan"),
        ("../b2", str(film), "video", SECOND + SECOND // 2, 3 * SECOND, 1.25, 'it says "no", twice'),
        ("c3", str(folder / "still.png"), "image", 0, 0, None, None),
        ("d4/../x", str(folder / "gone.mp4"), "video", 0, SECOND, 0.0, "lost"),
    ]
    names = ["clip_id", "uri", "media_type", "start_us", "end_us", "motion_proxy", "caption"]
    columns = {name: pa.array([row[i] for row in rows], CLIPS.field(name).type) for i, name in enumerate(names)}
    columns["subsets"] = pa.array([["preference"], [], None, []], CLIPS.field("subsets").type)
    Store.open(folder / "store").upsert("clips", pa.table(columns))
    return folder


@pytest.fixture
def clips(root: Path) -> Query:
    question: Query = curation.open(root / "store").clips
    return question


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["clip_id"] for row in rows]


# rows


def test_rows_read_back_in_their_order_from_every_format(clips: Query, tmp_path: Path) -> None:
    wanted = ["a1", "../b2", "d4/../x", "c3"]  # motion 2.5, 1.25, 0, unknown
    question = clips.order_by("-motion_proxy")
    for name in ("c.json", "c.csv", "c.parquet", "c.lance"):
        assert str(question.export(tmp_path / name)) == f"4 rows: {tmp_path / name}"
    rows = json.loads((tmp_path / "c.json").read_text())
    assert ids(rows) == wanted and rows[1]["caption"] == 'it says "no", twice' and rows[3]["motion_proxy"] is None
    assert "embedding" not in rows[0] and rows[0]["subsets"] == ["preference"]
    with open(tmp_path / "c.csv", newline="") as file:
        assert ids(list(csv.DictReader(file))) == wanted
    table = parquet.read_table(tmp_path / "c.parquet")
    assert table.schema.names == CLIPS.names and table["clip_id"].to_pylist() == wanted
    assert lance().dataset(str(tmp_path / "c.lance")).to_table()["clip_id"].to_pylist() == wanted
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_an_empty_answer_is_an_empty_file(clips: Query, tmp_path: Path) -> None:
    none = clips.where("motion_proxy > 100")
    assert none.export(tmp_path / "c.json").rows == 0
    assert json.loads((tmp_path / "c.json").read_text()) == []
    none.export(tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().startswith("clip_id,")
    none.export(tmp_path / "c.parquet")
    assert parquet.read_table(tmp_path / "c.parquet").num_rows == 0


def test_a_failed_export_leaves_the_older_file(clips: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.json").write_text("before")
    monkeypatch.setattr(exports.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clips.export(tmp_path / "c.json")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("c.json", "before")]


# clips


def test_clips_are_cut_once_and_named_inside_the_folder(root: Path, clips: Query, tmp_path: Path) -> None:
    folder = tmp_path / "outside" / "clips"
    text = run_query(root / "store", export=folder, format="clips")
    first, failed = text.splitlines()
    assert first.startswith("3 of 4 clips (2 copied, 1 file), 0.") and first.endswith(f" MB: {folder}")
    assert failed.startswith("1 failed, first d4/../x: missing: ") and "gone.mp4 does not exist" in failed
    made = sorted(path.name for path in folder.iterdir())
    film = "a_film_rm_1"
    assert len(made) == 3 * 2 + 1 and [path.name for path in folder.parent.iterdir()] == ["clips"]
    assert f"{film}_00000000_a1.mp4" in made and "still_00000000_c3.png" in made and "export.json" in made
    [second] = [folder / name for name in made if name.startswith(f"{film}_00001500_") and name.endswith(".mp4")]
    assert len([event for event in decode(str(second)) if event.frame is not None]) == 36
    facts = json.loads(second.with_suffix(".json").read_text())
    assert facts["clip_id"] == "../b2" and facts["caption"] == 'it says "no", twice' and facts["file"] == second.name
    assert (facts["cut"]["method"], facts["cut"]["lead_in_us"]) == ("copied", 500_000)
    assert json.loads((folder / "export.json").read_text())["finished"] is True
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.mp4")}
    second.unlink()
    second.with_suffix(".json").unlink()
    again = clips.export(folder, "clips")
    assert (again.kept, dict(again.methods)) == (2, {"copied": 2, "file": 1})
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [second]


def test_encoded_clips_say_so(clips: Query, tmp_path: Path) -> None:
    made = clips.where("clip_id = 'a1'").export(tmp_path / "clips", "clips", cut="encode")
    assert dict(made.methods) == {"encoded": 1} and not made.why_encoded
    [facts] = [json.loads(path.read_text()) for path in (tmp_path / "clips").glob("*_a1.json")]
    assert facts["cut"]["encoder"] == "libx264 crf 12 medium, yuv420p 8 bit, BT.709"


def test_a_folder_that_holds_something_else_is_left_alone(clips: Query, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(QueryError, match=r"is not empty and holds no export of ours \(thesis.txt"):
        clips.export(tmp_path / "mine", "clips")
    none = clips.where("motion_proxy > 100")
    none.export(tmp_path / "other", "clips")
    with pytest.raises(QueryError, match=r"holds another export \(question: clips where motion_proxy > 100, now clips\); name an empty"):
        clips.export(tmp_path / "other", "clips")


# webdataset


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}  # type: ignore[union-attr]


def test_shards_hold_clip_facts_and_caption_and_go_on(clips: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "SHARD_CLIPS", 2)
    question, folder = clips.order_by("-motion_proxy"), tmp_path / "shards"
    said: list[tuple[int, int | None]] = []
    made = exports.export(question, folder, "webdataset", say=lambda done, total, _: said.append((done, total)))
    assert str(made).startswith("3 of 4 clips (2 copied, 1 file), in 2 shards, ")
    assert said[-1] == (4, 4) and sorted(said) == said
    assert sorted(path.name for path in folder.iterdir()) == [
        "export.json", "shard-000000.index.json", "shard-000000.tar", "shard-000001.index.json", "shard-000001.tar",
    ]  # fmt: skip
    first = members(folder / "shard-000000.tar")
    key = exports._key("../b2")
    assert list(first) == ["a1.mp4", "a1.json", "a1.txt", f"{key}.mp4", f"{key}.json", f"{key}.txt"]
    assert first["a1.txt"] == b"a pan" and json.loads(first[f"{key}.json"])["clip_id"] == "../b2"
    assert list(members(folder / "shard-000001.tar")) == ["c3.png", "c3.json"]
    assert json.loads((folder / "export.json").read_text())["failed"][0]["clip_id"] == "d4/../x"
    bytes_before = (folder / "shard-000001.tar").read_bytes()
    time_before = (folder / "shard-000000.tar").stat().st_mtime_ns
    (folder / "shard-000001.index.json").unlink()  # as if it had been stopped before the end of the second
    again = exports.export(question, folder, "webdataset")
    assert again.kept == 2
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == time_before
    assert (folder / "shard-000001.tar").read_bytes() == bytes_before, "equal clips make equal bytes"
