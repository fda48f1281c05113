"""Filters, questions, formats, histograms, contact sheets, and a user's mistakes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

import curation
from curation.expression import QueryError, any_of, compile_filter
from curation.query import Dataset, histogram, open_dataset, read, run_query
from curation.schema import CLIPS, TABLES
from curation.sheet import caption_lines, contact_sheet
from curation.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]

ROWS = [
    # clip, motion, looks, state, media, subsets, caption
    ("a", 0.0, 5.5, "rejected", "video", [], "a still wall"),
    ("b", 1.1, 4.0, "kept", "video", ["preference"], "a pan, it's slow"),
    ("c", 2.5, None, "kept", "video", [], None),
    ("d", None, 6.0, "new", "image", None, 'a "quoted" photograph'),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query") / "store"
    store = Store.open(folder)
    names = ["clip_id", "motion_proxy", "aesthetic_proxy", "state", "media_type", "subsets", "caption"]
    columns = {name: pa.array([row[i] for row in ROWS], CLIPS.field(name).type) for i, name in enumerate(names)}
    columns["uri"] = pa.array([f"/films/{row[0]}.mp4" for row in ROWS])
    columns["start_us"] = pa.array([0, 0, 1_250_000, 0])
    columns["end_us"] = pa.array([1_250_000, 1_250_000, 2_500_000, 0])
    columns["black_ratio"] = pa.array([0.05, 0.0, 0.0, 0.0], pa.float32())
    store.upsert("clips", pa.table(columns))
    store.upsert("sources", pa.table({"uri": ["/films/a.mp4"], "present": [True]}))
    store.append_errors([{"job": "score", "step": "motion", "clip_id": "d", "code": "x", "message": "m", "run_id": "r"}])
    store.tag("sel-1", "first")
    store.merge_columns("clips", pa.table({"clip_id": ["a"], "state": ["kept"]}))
    store.merge_columns("clips", pa.table({"clip_id": ["a"], "state": ["rejected"]}))
    return folder


def ids(path: Path, where: str) -> str:
    return "".join(open_dataset(path).clips.where(where).to_arrow()["clip_id"].to_pylist())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("motion_proxy >= 1.1", "bc"),
        ("1.1 <= motion_proxy", "bc"),
        ("motion_proxy >= 1.1 and aesthetic_proxy >= 4", "b"),
        ("motion_proxy > 2 or aesthetic_proxy > 5", "acd"),
        ("state = 'kept' and (motion_proxy > 2 or motion_proxy < 2)", "bc"),
        ("state = 'kept' or state = 'new' and motion_proxy > 0", "bc"),  # and binds tighter than or
        ("not motion_proxy >= 1.1", "a"),  # unknown motion is neither
        ("not (motion_proxy >= 1.1 or state = 'new')", "a"),
        ("motion_proxy is null", "d"),
        ("motion_proxy is not null", "abc"),
        ("motion_proxy = 0", "a"),
        ("motion_proxy != 0", "bc"),
        ("motion_proxy between 1 and 2", "b"),
        ("motion_proxy not between 1 and 2", "ac"),
        ("state in ('kept', 'new')", "bcd"),
        ("state not in ('kept', 'new')", "a"),
        ("caption like '%it''s%'", "b"),
        ('caption like "%it\'s%"', "b"),
        ("caption = 'a \"quoted\" photograph'", "d"),
        ("caption not like 'a pan%'", "ad"),
        ("subsets has 'preference'", "b"),
        ("motion_proxy > -1e-3", "abc"),
        ("black_ratio <= 0.05 and black_ratio > 0", "a"),  # float32 0.05 equals the written 0.05
        ("STATE = 'kept'", None),
        ("state == 'kept' AND motion_proxy <> 2.5", "b"),
        ("motion_proxy < aesthetic_proxy", "ab"),
    ],
)
def test_filters(path: Path, where: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(QueryError, match="unknown column"):
            ids(path, where)
    else:
        assert ids(path, where) == expected


def test_boolean_columns_stand_alone(path: Path) -> None:
    sources = open_dataset(path).sources
    assert sources.where("present").count() == 1
    assert sources.where("not present").count() == 0
    assert sources.where("present = true").count() == 1


def test_times_compare_with_dates(path: Path) -> None:
    errors = open_dataset(path).errors
    assert errors.where("time > '2020-01-01'").count() == 1
    assert errors.where("time < '2020-01-01T00:00:00+02:00'").count() == 0
    with pytest.raises(QueryError, match="time is a time; 'yesterday' is none"):
        errors.where("time > 'yesterday'")


@pytest.mark.parametrize(
    "attempt",
    [
        "state = 'kept'; drop table clips",
        "state = 'kept' -- all",
        "state = 'kept' /* x */",
        "state = '' or 1 = 1",
        "1 = 1",
        "true",
        "true or state = 'kept'",
        "state = 'kept' union select 1",
        "clip_id in (select clip_id from clips)",
        "`state` = 'kept'",
        "__import__('os').system('true')",
        "version()",
        "upper(state) = 'KEPT'",
        "state = $1",
        "state = 'kept\\",
        "motion_proxy >= nan",
        "_rowid >= 0",
        "motion_proxy >= 1.1.1",
        "motion_proxy >= 0x10",
        "state",
        "()",
        "(" * 5000 + "state = 'x'" + ")" * 5000,
        "not " * 5000 + "present",
    ],
)
def test_what_is_no_filter_of_ours_is_refused(path: Path, attempt: str) -> None:
    with pytest.raises(QueryError) as caught:
        open_dataset(path).clips.where(attempt)
    assert "\n" not in str(caught.value)


def test_numbers_of_many_digits_are_read() -> None:
    assert compile_filter("motion_proxy > " + "0" * 5000 + "7", CLIPS) == "(`motion_proxy` > 7.0)"
    assert compile_filter("motion_proxy > " + "9" * 25 + "  ", CLIPS) == "(`motion_proxy` > 1e+25)"


@pytest.mark.parametrize("value", ["x' or '1'='1", "x'; drop", "''", "\\'", "%", "naïve ☃", "`"])
def test_text_values_stay_values(path: Path, value: str) -> None:
    assert compile_filter(any_of("state", [value]), CLIPS) == "(`state` IN ('" + value.replace("'", "''") + "'))"
    assert open_dataset(path).clips.where(any_of("state", [value])).count() == 0
    assert open_dataset(path).clips.where(any_of("state", [value, "kept"])).count() == 2
    assert open_dataset(path).clips.where(any_of("state", [])).count() == 0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("motoin > 1", r'unknown column "motoin"; did you mean motion_proxy \(px at 360 px short side per 1/8 s\)'),
        ("motion > 1", "did you mean motion_proxy .* motion_raft"),
        ("asthetic_proxy > 1", r"did you mean aesthetic_proxy \(1-10\)"),
        ("quux > 1", 'unknown column "quux"; text stands in quotes; [0-9]+ columns: '),
        ("motion_proxy > 'fast'", "motion_proxy is a number .* leave the quotes out"),
        ("state > 3", "state is text; 3 is a number"),
        ("state = null", "write: COLUMN is null"),
        ("state = 'kept", "character 9.*close the quote"),
        ("state = 'kept' motion_proxy > 1", "did not expect 'motion_proxy' at character 16"),
        ("(state = 'kept'", r"expected '\)' at character 16 of the filter, found 'the end'"),
        ("motion_proxy >", "expected a column or a value at character 15"),
        ("", "the filter is empty"),
        ("embedding = 3", "embedding is a vector"),
        ("state = split or state = motion_proxy", r"cannot compare state \(text\) with motion_proxy \(number\)"),
        ("caption like 3", "like compares text"),
        ("motion_proxy has 3", "has looks into list columns"),
        ("state like split", "put text in quotes"),
        ("motion_proxy > " + "9" * 5000, "9… is too large for a number"),
    ],
)
def test_mistakes_get_one_clear_line(where: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        compile_filter(where, CLIPS)
    assert "\n" not in str(caught.value)


# the Python view


def test_questions_are_lazy_values(path: Path) -> None:
    clips = open_dataset(path).clips
    kept = clips.where("state = 'kept'")
    assert clips.count() == 4  # the first question is unchanged
    assert kept.where("motion_proxy > 2").count() == 1
    frame = clips.order_by("-aesthetic_proxy").limit(2).columns("clip_id", "aesthetic_proxy").to_pandas()
    assert list(frame["clip_id"]) == ["d", "a"]
    with pytest.raises(AttributeError, match="no table 'clip'"):
        _ = Dataset(clips.store).clip


def test_a_notebook_shows_the_question_and_its_first_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = curation.open(path)
    assert repr(store).startswith(f"<store {path}: 1 sources, 4 clips, 0 captions, ") and repr(store).endswith("; 1 tags>")
    assert "clips" in dir(store)
    question = store.clips.where("motion_proxy >= 1.1").order_by("-aesthetic_proxy").limit(10)
    page = question.where("caption is not null")._repr_html_()
    assert "(motion_proxy &gt;= 1.1) and (caption is not null)" in page and ": 1 rows" in page and "a pan, it's slow" in page
    assert "embedding" not in page
    assert ": 2 rows" in question.columns("clip_id")._repr_html_()
    monkeypatch.setattr(Store, "dataset", None)  # from here on nothing can be read
    assert repr(question) == f"<clips where motion_proxy >= 1.1 order by -aesthetic_proxy limit 10; {path}>"
    assert repr(store.clips.tag("sel-1").columns("clip_id")) == f"<clips at sel-1 columns clip_id; {path}>"


def test_a_question_is_a_contact_sheet(path: Path, tmp_path: Path) -> None:
    thumbs = path.parent / "tracks" / "thumbs"
    thumbs.mkdir(parents=True)
    Image.new("RGB", (240, 135), (200, 30, 30)).save(thumbs / "c.jpg")
    picture = curation.open(path).clips.order_by("-motion_proxy").limit(2).sheet(tmp_path / "sheet.png")
    assert picture.size == ((240 + 8) * 2 + 8, 135 + 4 * 14 + 8 + 8)
    assert picture.getpixel((100, 60))[0] > 180 and picture.getpixel((348, 100)) == (225, 225, 222)  # c: red; b has none
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.tobytes() == picture.tobytes()
    with pytest.raises(QueryError, match="contact sheets show clips"):
        curation.open(path).errors.sheet()


def test_order_puts_unknown_last_both_ways(path: Path) -> None:
    clips = open_dataset(path).clips.columns("clip_id")
    assert "".join(clips.order_by("motion_proxy").to_arrow()["clip_id"].to_pylist()) == "abcd"
    assert "".join(clips.order_by("-motion_proxy").to_arrow()["clip_id"].to_pylist()) == "cbad"
    assert "".join(clips.order_by("media_type", "-motion_proxy").to_arrow()["clip_id"].to_pylist()) == "dcba"
    with pytest.raises(QueryError, match="cannot order by subsets"):
        clips.order_by("subsets")


def test_the_best_few_are_the_first_of_the_whole_order(tmp_path: Path) -> None:
    """Ties at the limit, unknown values and NaN: as the sorted whole has them."""
    store = Store.open(tmp_path / "ties")
    scores = [1.0, 3.0, 2.0, 2.0, None, 2.0, float("nan"), 3.0]
    columns = {"clip_id": list("hgfedcba"), "motion_proxy": pa.array(scores, pa.float32()), "shot": pa.array([1] * 8, pa.int32())}
    store.upsert("clips", pa.table(columns))
    for order in (("-motion_proxy",), ("motion_proxy",), ("-shot", "motion_proxy"), ("-clip_id",)):
        asked = open_dataset(tmp_path / "ties").clips.where("clip_id != 'b'").order_by(*order).columns("clip_id")
        whole = [row["clip_id"] for row in asked.rows()]
        assert [[row["clip_id"] for row in asked.limit(n).rows()] for n in range(1, 9)] == [whole[:n] for n in range(1, 9)]
    assert whole == list("hgfedca")


def test_a_tag_is_read_as_it_was(path: Path) -> None:
    assert run_query(path, "state = 'rejected'", count=True, tag="sel-1") == "1"
    with pytest.raises(QueryError, match="no tag 'sel-2'; did you mean"):
        run_query(path, tag="sel-2")


def test_columns_newer_than_a_release_are_null_and_no_fault(path: Path) -> None:
    """A release keeps the columns that it was made with; a store that an older version made has no others until it is curated."""
    before = Store.open(path)
    before.dataset("clips").drop_columns(["niqe"])
    rows = open_dataset(path).clips
    ids = rows.columns("clip_id").to_arrow()["clip_id"].to_pylist()
    before.tag("old", "without niqe")
    for asked in (rows, rows.tag("old")):
        assert asked.order_by("-niqe").columns("clip_id", "niqe").limit(3).rows() == [{"clip_id": name, "niqe": None} for name in ids[:3]]
        assert asked.to_arrow().column_names == asked.schema.names
        assert asked.counts("niqe").to_pylist() == [{"niqe": None, "count": len(ids)}]
        with pytest.raises(QueryError, match=r"unknown column .niqe.*an older version made this table of clips"):
            asked.where("niqe > 1").count()
    assert before.count("clips") == len(ids)
    with pytest.raises(QueryError, match="an older version made"):
        before.count("clips", "niqe > 1")
    Store.open(path)
    assert rows.where("niqe is null").count() == len(ids), "curating adds the column; the release stays as it was"
    with pytest.raises(QueryError, match="an older version made"):
        rows.tag("old").where("niqe is null").to_arrow()


def test_read_is_sorted(path: Path) -> None:
    assert read(path, "clips", ["clip_id"], "motion_proxy is not null")["clip_id"].to_pylist() == ["a", "b", "c"]


# the command's answers


def test_count_and_by(path: Path) -> None:
    assert run_query(path, "motion_proxy >= 1.1", count=True) == "2"
    rows = json.loads(run_query(path, by="state,media_type", format="json"))
    assert rows[0] == {"state": "kept", "media_type": "video", "count": 2}
    assert sum(row["count"] for row in rows) == 4


def test_json_is_exact_and_short(path: Path) -> None:
    rows = json.loads(run_query(path, "motion_proxy is not null", order_by="-motion_proxy", limit=2, format="json"))
    assert [row["clip_id"] for row in rows] == ["c", "b"]
    assert rows[1]["motion_proxy"] == 1.1  # not 1.100000023841858
    assert rows[0]["aesthetic_proxy"] is None


def test_csv_reads_back(path: Path) -> None:
    text = run_query(path, columns="clip_id,caption,subsets", format="csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["caption"] for row in rows] == ["a still wall", "a pan, it's slow", "", 'a "quoted" photograph']
    assert rows[1]["subsets"] == '["preference"]'


def test_the_table_is_readable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = run_query(path, order_by="-motion_proxy").splitlines()
    assert lines[0].split() == ["clip_id", "file", "media_type", "span_s", "motion_proxy", "aesthetic_proxy", "state", "caption"]
    assert lines[1].split()[:5] == ["c", "c.mp4", "video", "1.25-2.50", "2.5"]
    assert lines[-1] == "4 rows"
    assert run_query(path, "motion_proxy > 100").splitlines()[-1] == "0 rows"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order_by": "-asthetic_proxy"}, "did you mean aesthetic_proxy"),
        ({"columns": "clip_id,motoin"}, "did you mean motion_proxy"),
        ({"by": "stat"}, "did you mean state"),
        ({"format": "xml"}, "formats: table, json, csv, parquet, lance, clips, webdataset"),
        ({"limit": 0}, "limit is 0"),
        ({"table": "clip"}, "did you mean clips"),
        ({"sheet": "x.png"}, "folder of thumbnails"),
        ({"format": "parquet"}, "parquet goes to a file: add --export clips.parquet"),
        ({"format": "webdataset"}, "webdataset goes to a folder: add --export DIR"),
        ({"export": "/nowhere/at/all.json"}, "cannot write /nowhere/at/all.json"),
        ({"export": "clips"}, "cannot tell the format of clips: end it in .json, .csv, .parquet, .lance, or add --format clips"),
        ({"export": "a.json", "count": True}, "--count and --by print"),
        ({"export": "/proc/a.parquet"}, "cannot write /proc/a.parquet: No such file"),
        ({"count": True, "by": "state"}, "give one of the two"),
        ({"by": "state", "sheet": "x.png", "thumbs_folder": "."}, "--count and --by show no rows"),
        ({"export": "a.json", "format": "table"}, "no format 'table' for files"),
        ({"export": "a", "format": "clips", "table": "errors"}, "format clips cuts clips; the table is errors"),
        ({"export": "a", "format": "clips", "cut": "trim"}, "cut is 'trim'"),
    ],
)
def test_command_mistakes(path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        run_query(path, **arguments)  # type: ignore[arg-type]


def test_a_name_like_none_gets_a_short_list_and_the_way_to_all(path: Path) -> None:
    """errors has 14 columns and no score; of clips' the lineages are counted with their scores."""
    with pytest.raises(QueryError) as few:
        run_query(path, table="errors", columns="nosuch")
    shown = "error_id, source_id, uri, clip_id, job, step, ..."
    assert str(few.value) == f'unknown column "nosuch"; 14 columns ({shown}); all of them: flashvideo query --columns all'
    with pytest.raises(QueryError) as many:
        run_query(path, columns="nosuch")
    text = str(many.value)
    assert text.startswith(f'unknown column "nosuch"; {len(TABLES["clips"].names)} columns: ') and len(text) < 340
    assert (
        "scores (" in text
        and "motion_proxy" not in text.split("others (")[1]
        and text.endswith("; all of them: flashvideo query --columns all")
    )


def test_all_columns_but_vectors_are_shown(path: Path) -> None:
    header = run_query(path, columns="all", format="csv", limit=1).splitlines()[0].split(",")
    assert header == [name for name in TABLES["clips"].names if name != "embedding"]


def test_a_sheet_goes_into_a_folder_that_is_there(path: Path, tmp_path: Path) -> None:
    """The notebook and the command line refuse with the same line, and make no folder."""
    file = tmp_path / "none" / "at" / "all.png"
    said = []
    for write in (curation.open(path).clips.sheet, lambda file: run_query(path, sheet=file, thumbs_folder=tmp_path)):
        with pytest.raises(QueryError, match=r"cannot write .*all\.png: there is no folder .*at$") as refused:
            write(file)
        said.append(str(refused.value))
        with pytest.raises(QueryError, match="it is a folder; name a file in it"):
            write(tmp_path)
    assert said[0] == said[1] and not (tmp_path / "none").exists()


def test_a_limit_beyond_64_bits_is_no_limit(path: Path) -> None:
    assert run_query(path, columns="clip_id", limit=10**20) == run_query(path, columns="clip_id")


def test_no_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="there is no store at"):
        run_query(tmp_path / "store")


def test_every_table_can_be_shown(path: Path) -> None:
    for table in TABLES:
        assert run_query(path, table=table).splitlines()[-1].endswith(("row", "rows"))


def test_the_query_process_stays_light(path: Path) -> None:
    program = (
        "import sys; from curation.query import run_query; "
        f"print(run_query({str(path)!r}, 'motion_proxy >= 1.1', order_by='-aesthetic_proxy', limit=1)); "
        "print(sorted({'torch', 'pandas', 'lancedb', 'cv2', 'av', 'PIL'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
    assert "b.mp4" in answer.stdout


# histograms and sheets


def test_histogram_counts_by_hand(path: Path) -> None:
    store = Store.open(path)
    answer = histogram(store, "motion_proxy", bins=5)  # 0.0, 1.1, 2.5 over [0, 2.5] in steps of 0.5
    assert answer.edges == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert answer.counts == [1, 0, 1, 0, 1]
    assert (answer.unknown, answer.unit) == (1, "px at 360 px short side per 1/8 s")
    assert histogram(store, "motion_raft").counts == []
    constant = histogram(store, "end_us", bins=2, where="media_type = 'image'")
    assert (constant.edges, constant.counts) == ([0.0, 1.0, 2.0], [1, 0])
    with pytest.raises(QueryError, match="a histogram needs a number"):
        histogram(store, "state")


def test_contact_sheet_shows_pictures_and_says_what_is_missing(path: Path, tmp_path: Path) -> None:
    thumbs = tmp_path / "thumbs"
    thumbs.mkdir()
    Image.new("RGB", (320, 180), (200, 30, 30)).save(thumbs / "b.jpg")
    Image.new("RGB", (90, 180), (30, 200, 30)).save(thumbs / "c.jpg")  # portrait keeps its shape
    file = tmp_path / "sheet.png"
    text = run_query(path, order_by="motion_proxy", sheet=file, thumbs_folder=thumbs)
    assert text.splitlines()[-1] == f"contact sheet: {file} (2 pictures)"
    with Image.open(file) as sheet:
        pixels = sheet.convert("RGB")
        width = (240 + 8) * 4 + 8
        assert pixels.size == (width, 135 + 4 * 14 + 8 + 8)
        assert pixels.getpixel((8 + 248 + 120, 8 + 67))[0] > 180  # b, second: red
        assert pixels.getpixel((8 + 496 + 120, 8 + 67))[1] > 180  # c, third: green in the middle
        assert pixels.getpixel((8 + 496 + 20, 8 + 67)) == (225, 225, 222)  # and box beside it
        assert pixels.getpixel((8 + 200, 8 + 100)) == (225, 225, 222)  # a has no thumbnail


def test_sheet_captions_and_empty_sheet(tmp_path: Path) -> None:
    row = {"clip_id": "a", "uri": "/x/y.mp4", "start_us": 0, "end_us": 1_250_000, "motion_proxy": 1.234, "state": "rejected"}
    assert caption_lines(row | {"reject_reason": "motion"}) == ["y.mp4  0.0-1.2 s", "motion 1.23", "rejected motion", ""]
    assert contact_sheet([], tmp_path, tmp_path / "none.png") == 0
    assert (tmp_path / "none.png").is_file()
