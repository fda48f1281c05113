"""Files that are there whole or not at all; curation and flashvideo may not import each other, so each has its own."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from curation import whole_files as of_curation
from flashvideo import whole_files as of_flashvideo


def test_the_two_are_one_text() -> None:
    assert inspect.getsource(of_curation) == inspect.getsource(of_flashvideo)


def test_writers_of_one_file_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    texts = [str(number) * 5000 for number in range(8)]
    with of_flashvideo.writing(path) as first, of_flashvideo.writing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            list(pool.map(lambda text: of_flashvideo.write_text(path, text, flushed=False), texts))
            assert path.read_text() in texts
    assert [found.name for found in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "picture.png"
    path.write_text("old")
    with pytest.raises(ValueError, match="half"), of_flashvideo.writing(path, flushed=True, suffix=".png") as part:
        assert part.suffix == ".png" and part.parent == tmp_path and part.name.startswith(".")
        part.mkdir() if folder else part.write_text("new")
        raise ValueError("half")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disks_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device") as raised, of_flashvideo.writing(tmp_path / "note.txt"):
        Path("/dev/full").write_bytes(b"x")
    assert raised.value.filename == str(tmp_path / "note.txt") and not list(tmp_path.iterdir())
