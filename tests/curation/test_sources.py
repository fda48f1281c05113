"""What sources expand to: folders, patterns, lists, and files behind s3:// and http:// addresses; copies; mistakes in one line."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from generated_films import moving, write_film
from object_server import Bucket, http_server, s3_server
from pyarrow import parquet

from curation import remote
from curation.config import DecodeConfig
from curation.ingest import Ingester
from curation.remote import RemoteError, fetch
from curation.sources import SourceError, SourceFile, dataset_of, list_sources
from curation.video import MediaError, probe

SECRET = "never-shown-secret"
JANUARY, FEBRUARY = 1_767_225_600.0, 1_769_904_000.0
"""1 January and 1 February 2026."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.mp4, deep/b.MOV, deep/c.jpg, notes.txt, .hidden/d.mp4; each as long as its name."""
    place = tmp_path / "films"
    for name in ("a.mp4", "deep/b.MOV", "deep/c.jpg", "notes.md", ".hidden/d.mp4"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode())
    return place


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """s3://films on a local server, the client's credentials from the environment, an empty cache."""
    monkeypatch.setenv("FLASHVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    with s3_server() as (endpoint, buckets):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        buckets["films"] = Bucket({name: (name.encode(), JANUARY) for name in ("a.mp4", "deep/b.MOV", "deep/c.jpg", "n.txt", ".x/d.mp4")})
        yield buckets["films"]


def names(*sources: object) -> list[str]:
    """The listed files, from the folder `films` on; those of a bucket whole."""
    listing = list_sources(tuple(map(str, sources)))
    return [file.uri if file.uri.startswith("s3://") else file.uri.rsplit("/films/", 1)[-1] for file in listing.files]


# on this machine


def test_folders_patterns_and_files_together_name_each_file_once(folder: Path) -> None:
    assert names(folder) == ["a.mp4", "deep/b.MOV", "deep/c.jpg"]
    assert names(folder / "**" / "*.jpg") == ["deep/c.jpg"]
    assert names(folder, folder / "a.mp4", folder / "*.mp4", folder / "notes.md") == ["a.mp4", "deep/b.MOV", "deep/c.jpg", "notes.md"]
    listing = list_sources((str(folder),))
    assert listing.files[0].bytes == len("a.mp4")
    assert [Path(uri).name for uri in listing.ignored] == ["notes.md"]


def test_lists_of_three_kinds(folder: Path) -> None:
    (folder / "list.txt").write_text("# two\na.mp4\n\n  deep/b.MOV\n")
    (folder / "list.csv").write_text('path,words\na.mp4,"one, two"\ndeep/c.jpg,x\n')
    (folder / "named.csv").write_text("id,video\n1,deep/b.MOV\n")
    parquet.write_table(pa.table({"url": [str(folder / "a.mp4")], "rank": [1]}), folder / "list.parquet")
    assert names(folder / "list.txt") == ["a.mp4", "deep/b.MOV"]
    assert names(folder / "list.csv") == ["a.mp4", "deep/c.jpg"]
    assert names(f"{folder}/named.csv#video") == ["deep/b.MOV"]
    assert names(folder / "list.parquet") == ["a.mp4"]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("id,video\n1,a.mp4\n", "", r"none of the columns uri, url, path, file; say which .*list.csv#NAME \(columns: id, video\)"),
        ("id,video\n1,a.mp4\n", "#vide", r"has no column 'vide'; columns: id, video"),
        ("path,url\na.mp4,b\n", "", "columns url and path; say which"),
        ('path\na.mp4\n""\n', "", "row 2 has no path"),
        ("path\nzz.mp4\n", "", "row 1: zz.mp4 does not exist"),
        ("", "", r"columns: \(none\)"),
    ],
)
def test_mistakes_in_lists_are_one_line(folder: Path, content: str, column: str, message: str) -> None:
    (folder / "list.csv").write_text(content)
    with pytest.raises(SourceError, match=message) as caught:
        list_sources((f"{folder}/list.csv{column}",))
    assert "\n" not in str(caught.value)


def test_a_parquet_list_must_hold_text(folder: Path) -> None:
    parquet.write_table(pa.table({"path": [1, 2]}), folder / "list.parquet")
    with pytest.raises(SourceError, match=r"column path of .* is int64; paths are text"):
        names(folder / "list.parquet")
    (folder / "list.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match="is no Parquet file"):
        names(folder / "list.parquet")


def test_a_number_sign_in_a_file_name_is_no_column(folder: Path) -> None:
    (folder / "take #1.mp4").write_bytes(b"x")
    assert names(folder / "take #1.mp4") == ["take #1.mp4"]
    (folder / "odd.csv#1.csv").write_text("path\na.mp4\n")
    assert names(folder / "odd.csv#1.csv") == ["a.mp4"]


# s3


def test_s3_folders_patterns_files_and_lists(bucket: Bucket, folder: Path) -> None:
    assert names("s3://films") == ["s3://films/a.mp4", "s3://films/deep/b.MOV", "s3://films/deep/c.jpg"]
    assert names("s3://films/deep/") == ["s3://films/deep/b.MOV", "s3://films/deep/c.jpg"]
    assert names("s3://films/**/*.jpg") == ["s3://films/deep/c.jpg"]
    (folder / "mixed.txt").write_text("a.mp4\ns3://films/a.mp4\n")
    assert names(folder / "mixed.txt") == ["a.mp4", "s3://films/a.mp4"]
    bucket.objects["list.csv"] = (b"path\ndeep/b.MOV\n", JANUARY)
    assert names("s3://films/list.csv") == ["s3://films/deep/b.MOV"]
    [file] = list_sources(("s3://films/a.mp4",)).files
    assert file == SourceFile("s3://films/a.mp4", 5, int(JANUARY) * 10**9)


def test_a_copy_is_made_once_and_again_when_the_object_changes(bucket: Bucket) -> None:
    first = list_sources(("s3://films/a.mp4",)).files[0]
    copy = fetch(first.uri, (first.bytes, first.modified_ns), verify=True)
    assert copy.path.read_bytes() == b"a.mp4" and copy.path.suffix == ".mp4"
    assert copy.sha256 == hashlib.sha256(b"a.mp4").hexdigest()
    assert fetch(first.uri) == fetch(first.uri, (first.bytes, first.modified_ns)) == copy
    assert bucket.reads == ["a.mp4"]
    bucket.objects["a.mp4"] = (b"other", FEBRUARY)
    second = list_sources(("s3://films/a.mp4",)).files[0]
    assert fetch(first.uri, (second.bytes, second.modified_ns)).path.read_bytes() == b"other"
    assert bucket.reads == ["a.mp4", "a.mp4"]
    bucket.objects["a.mp4"] = (b"longer", FEBRUARY)
    copy.path.unlink()
    with pytest.raises(RemoteError, match=r"has changed since it was listed \(5 bytes then, 6 now\)"):
        fetch(first.uri, (second.bytes, second.modified_ns))


def test_a_rotten_copy_is_noticed(bucket: Bucket) -> None:
    copy = fetch("s3://films/a.mp4")
    copy.path.write_bytes(b"A.mp4")  # the same length
    assert fetch("s3://films/a.mp4", verify=True).path.read_bytes() == b"a.mp4"
    copy.path.write_bytes(b"a.m")
    assert fetch("s3://films/a.mp4").path.read_bytes() == b"a.mp4"
    assert len(bucket.reads) == 3


def test_a_download_that_breaks_off_is_tried_again_and_leaves_nothing_half(bucket: Bucket, tmp_path: Path) -> None:
    bucket.objects["long.mp4"] = (bytes(range(256)) * 400, JANUARY)
    bucket.cut_short = 1
    assert fetch("s3://films/long.mp4").bytes == 102_400
    bucket.cut_short = 1000
    with pytest.raises(RemoteError, match=r"s3://films/a.mp4 cannot be read \(3 attempts\)"):
        fetch("s3://films/a.mp4")
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock") == [".json", ".mp4"]


def test_old_copies_make_room(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fetch("s3://films/a.mp4").path
    new = fetch("s3://films/deep/b.MOV").path
    remote.os.utime(old, (0, 0))
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: remote.shutil._ntuple_diskusage(1000, 945, 55))
    fetch("s3://films/deep/c.jpg")  # 10 bytes, 50 stay free of 55: short of 5
    assert not old.exists() and new.exists()
    with pytest.raises(RemoteError, match="set FLASHVIDEO_CACHE to a folder on a larger disk"):
        fetch("s3://films/.x/d.mp4")  # 8 bytes, and the two copies that are left were opened just now


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://films/zz.mp4", "s3://films/zz.mp4 does not exist"),
        ("s3://nobucket/", "s3://nobucket/ (does not exist|cannot be listed)"),
        ("s3://films/*.avi", "pattern s3://films/.* matches no file"),
        ("s3://films/.x", "known suffixes"),
        ("xyz://films/a.mp4", "xyz:// is no protocol that is known"),
        ("abfs://films/a.mp4", "abfs:// needs a package that is not installed: .*adlfs"),
        ("https://me:pw1234@example.com/a.mp4", "carries a user or password"),
        ("https://example.com/a.mp4?X-Amz-Signature=pw1234", "carries a credential .X-Amz-Signature=…."),
    ],
)
def test_mistakes_in_addresses_are_one_line(bucket: Bucket, source: str, message: str) -> None:
    bucket.objects = {name: entry for name, entry in bucket.objects.items() if not name.startswith(".x")} | {".x/n.md": (b"x", JANUARY)}
    with pytest.raises(SourceError, match=message) as caught:
        list_sources((source,))
    assert "\n" not in str(caught.value) and "pw1234" not in str(caught.value)


def test_credentials_are_never_printed(bucket: Bucket) -> None:
    bucket.forbidden = True
    with pytest.raises(SourceError, match=r"(?i)access.?denied") as caught:
        list_sources(("s3://films",))
    assert SECRET not in str(caught.value)
    assert remote._said(OSError(f"bad key {SECRET}\nmore")) == "bad key ***"


# http


def test_http_folders_files_and_lists(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    with http_server(folder.parent) as url:
        assert names(f"{url}/films/") == ["a.mp4", "deep/b.MOV", "deep/c.jpg"]
        assert names(f"{url}/films/deep/*.jpg") == ["deep/c.jpg"]
        [file] = list_sources((f"{url}/films/a.mp4",)).files
        stat = (folder / "a.mp4").stat()
        assert (file.bytes, file.modified_ns) == (5, int(stat.st_mtime) * 10**9)
        assert fetch(file.uri, (file.bytes, file.modified_ns)).path.read_bytes() == b"a.mp4"
        with pytest.raises(SourceError, match=r"zz.mp4 does not exist"):
            names(f"{url}/films/zz.mp4")
    assert fetch(file.uri).path.read_bytes() == b"a.mp4"  # the copy needs no server
    with pytest.raises(RemoteError, match=r"b.MOV cannot be read"):
        fetch(f"{url}/films/deep/b.MOV")


# the door to pixels


def test_a_film_in_a_bucket_is_probed_and_ingested(bucket: Bucket, tmp_path: Path) -> None:
    film = write_film(tmp_path / "pan.mp4", moving(64, 96, 12, (1, 0), seed=1)).read_bytes()
    bucket.objects["pan.mp4"] = (film, JANUARY)
    assert probe("s3://films/pan.mp4").packets == 12
    with pytest.raises(MediaError, match=r"zz.mp4 cannot be read") as caught:
        probe("s3://films/zz.mp4")
    assert caught.value.code == "unreachable"
    ingester = Ingester(DecodeConfig())
    try:
        good, gone = (ingester(SourceFile(f"s3://films/{name}", len(film), int(JANUARY) * 10**9)) for name in ("pan.mp4", "zz.mp4"))
    finally:
        ingester.close()
    assert good.source_id == hashlib.sha256(film).hexdigest()[:32] and good.probe is not None
    assert gone.failure is not None and gone.failure.code == "unreachable"
    assert bucket.reads.count("pan.mp4") == 1


# what may be overlooked


def test_links_to_folders_are_followed_and_a_folder_is_read_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "far.mp4").write_bytes(b"far")
    (folder / "link").symlink_to(tmp_path / "linked")
    (folder / "deep" / "round").symlink_to(folder)
    found = [Path(file.uri).name for file in list_sources((str(folder),)).files]
    assert sorted(found) == ["a.mp4", "b.MOV", "c.jpg", "far.mp4"]


def test_a_folder_that_may_not_be_read_is_an_error_not_a_hole() -> None:
    """As a user without rights: root reads everything."""
    nobody, me = 65534, os.geteuid()
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies below folders that are root's alone
        Path(place).chmod(0o755)
        Path(place, "a.mp4").write_bytes(b"x")
        Path(place, "locked").mkdir(mode=0)
        try:
            if me == 0:
                os.seteuid(nobody)
            with pytest.raises(SourceError, match=f"source {place}: {place}/locked cannot be read: Permission denied"):
                list_sources((place,))
        finally:
            os.seteuid(me)


def test_every_entry_that_does_not_exist_is_counted_and_the_first_are_named(folder: Path) -> None:
    (folder / "list.txt").write_text("a.mp4\n" + "".join(f"gone{number}.mp4\n" for number in range(9)))
    with pytest.raises(SourceError, match=r"line 2: gone0\.mp4 does not exist \(and 8 more: line 3: gone1\.mp4; .*gone3\.mp4; …\)$"):
        names(folder / "list.txt")


def test_files_are_counted_under_the_folder_or_list_that_named_them(tmp_path: Path) -> None:
    for name in ("cats/a.mp4", "dogs/deep/b.mp4", "c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "chosen.txt").write_text("cats/a.mp4\n")

    def datasets(*sources: str) -> dict[str, str]:
        return {Path(file.uri).name: file.dataset for file in list_sources(tuple(str(tmp_path / source) for source in sources)).files}

    assert datasets("cats", "dogs", "c.mp4") == {"a.mp4": "cats", "b.mp4": "dogs", "c.mp4": tmp_path.name}
    assert datasets("dogs/**/*.mp4") == {"b.mp4": "dogs"}
    assert datasets("cats", "chosen.txt") == {"a.mp4": "chosen"}
    assert [dataset_of(f"s3://films/{name}") for name in ("", "cats/", "cats/a.mp4", "cats/*.mp4", "lists/may.csv#path")] == [
        *("films", "cats", "cats", "cats", "may"),
    ]
