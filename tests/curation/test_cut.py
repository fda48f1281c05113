"""Clips as files: the frames that a cut shows are the source's, at their times, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from generated_films import CORPUS, moving, texture, write_film

from curation.cut import CutTask, cut_clip
from curation.video import MediaError, decode, picture_of, probe

RATE = 24


def shown(path: Path, start_us: int = 0, end_us: int = 1 << 60) -> tuple[list[int], list[np.ndarray]]:
    """(times in us from start_us, pictures) of the frames in a span."""
    events = [event for event in decode(str(path)) if event.frame is not None and start_us <= event.time_us < end_us]
    pictures = [picture_of(event.frame).to_rgb(event.frame.width, event.frame.height) for event in events if event.frame is not None]
    return [event.time_us - start_us for event in events], pictures


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, a key frame every 24 (ultrafast: no B-frames)."""
    return write_film(tmp_path_factory.mktemp("cut") / "pan.mp4", moving(64, 96, 60, (1, 0), seed=1), RATE)


@pytest.mark.parametrize("first", [0, 24, 30])
def test_a_copy_shows_the_sources_own_frames(film: Path, tmp_path: Path, first: int) -> None:
    start, end = round(first * 1e6 / RATE), round((first + 20) * 1e6 / RATE)
    cut = cut_clip(CutTask(str(film), "video", start, end, tmp_path / "clip.mp4", "copy"))
    wanted_times, wanted = shown(film, start, end)
    times, pictures = shown(tmp_path / "clip.mp4")
    assert len(pictures) == len(wanted) == 20
    assert all((a == b).all() for a, b in zip(pictures, wanted, strict=True)), "bit for bit"
    assert np.abs(np.array(times) - wanted_times).max() <= 1
    assert (cut.method, cut.encoder, cut.why_encoded) == ("copied", "h264", None)
    assert cut.lead_in_us == {0: 0, 24: 0, 30: 250_000}[first]
    assert cut.bytes == (tmp_path / "clip.mp4").stat().st_size
    assert probe(str(tmp_path / "clip.mp4")).media_type == "video"


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason="no corpus beside the repository")
@pytest.mark.parametrize(
    ("name", "start_us", "end_us", "frames"),
    [
        ("reel_1080p24.mp4", 4_166_667, 4_583_333, 10),  # B-frames: the packets end after the clip
        ("hostile/vfr_360p.mp4", 1_000_000, 3_000_000, None),
        ("hostile/h265_10bit.mp4", 500_000, 800_000, 9),
        ("hostile/rotation_90.mov", 0, 100_000, 3),
    ],
)
def test_copies_of_real_films_end_where_the_clip_ends(tmp_path: Path, name: str, start_us: int, end_us: int, frames: int | None) -> None:
    cut = cut_clip(CutTask(str(CORPUS / name), "video", start_us, end_us, tmp_path / "clip.mp4", "copy"))
    assert cut.method == "copied"
    wanted_times, wanted = shown(CORPUS / name, start_us, end_us)
    times, pictures = shown(tmp_path / "clip.mp4")
    assert len(pictures) == len(wanted) == (frames or len(wanted)) and len(wanted) > 2
    assert all((a == b).all() for a, b in zip(pictures, wanted, strict=True))
    assert np.abs(np.array(times) - wanted_times).max() <= 1
    assert probe(str(tmp_path / "clip.mp4")).rotation_deg == probe(str(CORPUS / name)).rotation_deg


def test_an_encoded_clip_says_so_and_looks_the_same(film: Path, tmp_path: Path) -> None:
    start, end = round(30e6 / RATE), round(40e6 / RATE)
    cut = cut_clip(CutTask(str(film), "video", start, end, tmp_path / "clip.mp4", "encode"))
    assert (cut.method, cut.encoder, cut.why_encoded) == ("encoded", "libx264 crf 12 medium, yuv420p 8 bit, BT.709", None)
    wanted_times, wanted = shown(film, start, end)
    times, pictures = shown(tmp_path / "clip.mp4")
    assert cut.frames == len(pictures) == 10
    assert np.abs(np.array(times) - wanted_times).max() <= 12  # one tick of 1/90000 s
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, wanted, strict=True)) < 2.5


def test_a_rotated_film_is_encoded_upright(tmp_path: Path) -> None:
    source = write_film(tmp_path / "turned.mp4", moving(64, 96, 12, seed=2), RATE, rotation_deg=90)
    cut_clip(CutTask(str(source), "video", 0, 500_000, tmp_path / "clip.mp4", "encode"))
    made = probe(str(tmp_path / "clip.mp4"))
    assert (made.width, made.height, made.rotation_deg) == (64, 96, 0)
    upright = cv2.rotate(shown(source)[1][0], cv2.ROTATE_90_CLOCKWISE)
    assert np.abs(shown(tmp_path / "clip.mp4")[1][0].astype(int) - upright).mean() < 2.5


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason="no corpus beside the repository")
def test_what_cannot_be_copied_is_encoded_with_the_reason(tmp_path: Path) -> None:
    cut = cut_clip(CutTask(str(CORPUS / "hostile/av1.mkv"), "video", 0, 200_000, tmp_path / "clip.mp4", "copy"))
    assert (cut.method, cut.frames) == ("encoded", 5)
    assert cut.why_encoded == "libdav1d is not copied into MP4 (h264, hevc, mpeg4, vp9 are)"


def test_images_stay_as_they_are_and_failures_leave_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), texture(40, 60, 1))
    (tmp_path / "out").mkdir()
    cut = cut_clip(CutTask(str(tmp_path / "still.png"), "image", 0, 0, tmp_path / "out" / "still.png", "copy"))
    assert cut.method == "file"
    assert (tmp_path / "out" / "still.png").read_bytes() == (tmp_path / "still.png").read_bytes()
    film = write_film(tmp_path / "pan.mp4", moving(64, 96, 12, seed=1), RATE)
    with pytest.raises(MediaError, match="no picture between 9000000 and 9500000 us"):
        cut_clip(CutTask(str(film), "video", 9_000_000, 9_500_000, tmp_path / "out" / "none.mp4", "copy"))
    with pytest.raises(MediaError, match="does not exist"):
        cut_clip(CutTask(str(tmp_path / "gone.png"), "image", 0, 0, tmp_path / "out" / "none.png", "copy"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["still.png"]


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason="no corpus beside the repository")
@pytest.mark.parametrize("mode", ["copy", "encode"])
def test_a_key_frame_that_is_none_makes_no_green_pictures(tmp_path: Path, mode: str) -> None:
    """The frame at 7.25 s of this film is marked as key and refers to others: read from there, all of its end is green."""
    source = CORPUS / "real" / "cockatoo_720p.mp4"
    cut = cut_clip(CutTask(str(source), "video", 12_500_000, 12_700_000, tmp_path / "clip.mp4", mode, 180))
    wanted = [picture.mean(axis=(0, 1)) for picture in shown(source, 12_500_000, 12_700_000)[1]]
    found = [picture.mean(axis=(0, 1)) for picture in shown(tmp_path / "clip.mp4")[1]]
    assert cut.method == "encoded" and len(found) == len(wanted) == 4
    assert np.abs(np.array(found) - wanted).max() < 3
    assert cut.why_encoded == (None if mode == "encode" else "the key frame before it does not decode by itself")
