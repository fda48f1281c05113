"""The one decode pass: what it leaves in the track is what the film shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from generated_films import CORPUS, moving, texture, write_film

from curation.config import DecodeConfig, ShotsConfig
from curation.decode_pass import find_bars, perceptual_hash, run_pass
from curation.passes import PassResult, PassTask
from curation.supervised import Failure, SupervisedFunction
from curation.tracks import ClipTrack, read_clip_track, thumbnail_path, track_exists
from curation.video import Geometry, MediaError, Picture, probe

CORPUS_ONLY = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
SHORT = ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25)


def task_for(film: Path, tracks: Path, shots: ShotsConfig = SHORT) -> PassTask:
    found = probe(str(film))
    return PassTask(str(film), film.stem, found.media_type, found.frame_rate_hz or 25.0, DecodeConfig(), shots, tracks)


def passed(film: Path, tracks: Path, shots: ShotsConfig = SHORT) -> tuple[PassResult, list[ClipTrack]]:
    task = task_for(film, tracks, shots)
    result = run_pass(task)
    clips = [read_clip_track(tracks, task.source_id, clip.clip_id, clip.start_us, clip.end_us) for clip in result.clips]
    return result, clips


def test_a_film_of_two_shots(tmp_path: Path) -> None:
    frames = [*moving(180, 320, 48, (2, 0), seed=1), *moving(180, 320, 48, (0, 2), seed=2)]
    result, clips = passed(write_film(tmp_path / "two.mp4", frames), tmp_path / "tracks")
    assert (result.decoded_frames, result.corrupt_frames, result.cuts_us) == (96, 0, [2_000_000])
    assert [(clip.start_us, clip.end_us, clip.shot, clip.num_frames) for clip in result.clips] == [
        (0, 1_250_000, 0, 30),
        (2_000_000, 3_250_000, 1, 30),
    ]
    for found, track in zip(result.clips, clips, strict=True):
        assert track.frames.num_rows == 30
        assert (np.diff(track.samples["time_us"].to_numpy()) == 125_000).all()
        assert track.picture(0).luma.shape == (360, 640)
        assert [key.time_us - found.start_us for key in track.keys] == [125_000, 375_000, 625_000, 875_000, 1_125_000]
        assert thumbnail_path(tmp_path / "tracks", found.clip_id).is_file()
    assert not clips[0].frames["repeat"].to_numpy(zero_copy_only=False).any()


def test_sampled_pictures_are_the_frames(tmp_path: Path) -> None:
    """A film at 360 px: the sample 1/8 s on is frame 3, colours included."""
    frames = list(moving(360, 640, 31, (3, 1), seed=3))
    _, [clip] = passed(write_film(tmp_path / "a.mp4", frames), tmp_path / "tracks")
    shown = clip.picture(1).to_rgb(640, 360).astype(int)
    error = np.abs(shown - frames[3].astype(int)).mean()
    assert error < 4, "H.264 at high quality with half-size chroma"
    assert error < np.abs(shown - frames[4].astype(int)).mean() / 2
    assert np.abs(clip.keys[2].rgb()[::, ::].astype(int) - frames[15].astype(int)).mean() < 5


def test_repeats_are_marked(tmp_path: Path) -> None:
    frames = [frame for frame in moving(180, 320, 12, (3, 0)) for _ in range(3)]
    _, [clip] = passed(write_film(tmp_path / "a.mp4", frames), tmp_path / "tracks")
    repeats = clip.decoded["repeat"].to_numpy(zero_copy_only=False)
    assert repeats.tolist() == [index % 3 != 0 for index in range(30)]


def test_bars_are_found_to_the_pixel(tmp_path: Path) -> None:
    frames = [cv2.copyMakeBorder(frame, 24, 30, 16, 10, cv2.BORDER_CONSTANT) for frame in moving(180, 320, 31, (2, 0))]
    _, [clip] = passed(write_film(tmp_path / "a.mp4", frames), tmp_path / "tracks")
    assert clip.bars_px is not None
    assert np.abs(np.array(clip.bars_px) - [24, 30, 16, 10]).max() <= 1


def test_bars_turn_with_the_picture() -> None:
    """Bar above the stored picture: shown at the right after a quarter turn clockwise."""
    luma = np.full((40, 60), 150, np.uint8)
    luma[:8] = 16
    neutral = (np.full((1, 1), 128, np.uint8), np.full((1, 1), 128, np.uint8))
    picture = Picture(luma, neutral, False, (0.2126, 0.0722))
    assert find_bars(picture, Geometry(0, 1.0), 60, 40) == (8, 0, 0, 0)
    assert find_bars(picture, Geometry(90, 1.0), 40, 60) == (0, 0, 0, 8)
    assert find_bars(picture, Geometry(180, 1.0), 60, 40) == (0, 8, 0, 0)
    assert find_bars(picture, Geometry(270, 1.0), 40, 60) == (0, 0, 8, 0)
    black = Picture(np.full((40, 60), 16, np.uint8), neutral, False, (0.2126, 0.0722))
    assert find_bars(black, Geometry(0, 1.0), 60, 40) is None


def test_hashes_of_alike_pictures_are_near_and_of_others_far() -> None:
    one, other = texture(360, 640, 1), texture(360, 640, 2)
    smaller = cv2.resize(one, (320, 180), interpolation=cv2.INTER_AREA)
    worse = cv2.imdecode(cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
    assert (perceptual_hash(one) ^ perceptual_hash(worse)).bit_count() <= 4
    assert (perceptual_hash(one) ^ perceptual_hash(other)).bit_count() >= 16


def test_an_image_is_one_clip(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "still.png"), texture(200, 300, 1))
    result, [clip] = passed(tmp_path / "still.png", tmp_path / "tracks")
    assert [(c.start_us, c.end_us, c.num_frames) for c in result.clips] == [(0, 0, 1)]
    assert (len(clip.keys), clip.frames.num_rows) == (1, 1)


def test_a_film_that_is_too_short_gives_no_clip(tmp_path: Path) -> None:
    result, clips = passed(write_film(tmp_path / "a.mp4", moving(96, 128, 12)), tmp_path / "tracks")
    assert (result.decoded_frames, clips) == (12, [])


def test_damage_is_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    """Zeros over the middle of the data: packets are refused or flagged there, and only there."""
    film = write_film(tmp_path / "a.mp4", moving(180, 320, 96, (2, 1)))
    data = bytearray(film.read_bytes())
    middle = len(data) * 2 // 5
    data[middle : middle + 6000] = b"\xa5" * 6000
    film.write_bytes(bytes(data))
    result, clips = passed(film, tmp_path / "tracks")
    assert result.corrupt_frames > 0
    assert result.decoded_frames > 60
    damaged = [int(clip.frames["corrupt"].to_numpy(zero_copy_only=False).sum()) for clip in clips]
    assert damaged[0] == 0
    assert sum(damaged) > 0


def test_a_killed_pass_leaves_no_track(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving(720, 1280, 60, (2, 1)))
    supervised = SupervisedFunction("curation.decode_pass:run_pass", deadline_s=0.05, memory_bytes=2_000_000_000)
    outcome = supervised(task_for(film, tmp_path / "tracks"))
    supervised.close()
    assert isinstance(outcome, Failure)
    assert outcome.code == "deadline"
    assert not track_exists(tmp_path / "tracks", "a")


@pytest.mark.parametrize("memory_bytes", [4_000_000, 20_000_000, 26_000_000, 30_000_000])
def test_a_memory_cap_is_an_outcome_and_not_damage(tmp_path: Path, memory_bytes: int) -> None:
    """FFmpeg starts no thread at 4 MB, calls pictures without memory invalid at 20 and 26 MB, zstd fails at 30 MB."""
    film = write_film(tmp_path / "a.mp4", moving(720, 1280, 30, (2, 1)))
    supervised = SupervisedFunction("curation.decode_pass:run_pass", deadline_s=60, memory_bytes=memory_bytes)
    outcome = supervised(task_for(film, tmp_path / "tracks"))
    supervised.close()
    assert isinstance(outcome, Failure)
    assert outcome.code in ("out_of_memory", "crashed")


def test_a_finished_pass_that_was_not_committed_is_not_made_again(tmp_path: Path) -> None:
    """The bytes are gone after the first pass: what comes without an error was read; other settings must decode."""
    film = write_film(tmp_path / "a.mp4", moving(96, 128, 40, (2, 1)))
    task = task_for(film, tmp_path / "tracks")
    result = run_pass(task)
    assert len(result.clips) == 1
    film.write_bytes(b"")
    assert run_pass(task) == result
    with pytest.raises(MediaError, match="0 bytes"):
        run_pass(replace(task, shots=ShotsConfig(min_duration_s=1.0, clip_duration_s=1.25)))
    (tmp_path / "tracks" / "a.arrow").unlink()
    with pytest.raises(MediaError, match="0 bytes"):
        run_pass(task)


def test_equal_passes_write_equal_tracks(tmp_path: Path) -> None:
    film = write_film(tmp_path / "a.mp4", moving(180, 320, 40, (2, 1)))
    for name in ("one", "two"):
        run_pass(task_for(film, tmp_path / name))
    for file in ("a.arrow", "a.keys.arrow"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.corpus
@CORPUS_ONLY
def test_the_reel(tmp_path: Path) -> None:
    """All five cuts to the frame and no other; repeats of the 8 fps shot; the bars of the last shot.

    reel_truth.json says bars of 132 px. Those are the ones that the reel's maker added; the film inside has its own
    (Sintel is 2.35:1), so the picture really begins at line 230: lines 132-229 are black (luma 16-20) as well.
    """
    result, clips = passed(CORPUS / "reel_1080p24.mp4", tmp_path / "tracks", ShotsConfig())
    assert [round(cut / 1e6 * 24) for cut in result.cuts_us] == [120, 264, 360, 504, 600]
    assert (result.decoded_frames, result.corrupt_frames) == (696, 0)
    assert [clip.start_us for clip in result.clips] == [0, 5_000_000, 11_000_000, 15_000_000, 21_000_000, 25_000_000]
    ratios = [float(clip.decoded["repeat"].to_numpy(zero_copy_only=False).mean()) for clip in clips]
    assert ratios[3] == pytest.approx(2 / 3, abs=0.02), "8 fps shown at 24"
    assert ratios[4] == pytest.approx(1 - 12.5 / 24, abs=0.05), "12.5 fps shown at 24"
    assert ratios[0] == pytest.approx(1 / 6, abs=0.02), "20 fps shown at 24"
    assert ratios[1] == 0
    assert clips[5].bars_px is not None
    assert np.abs(np.array(clips[5].bars_px) - [230, 230, 0, 0]).max() <= 2
    assert all(clip.bars_px == (0, 0, 0, 0) for clip in clips[:5])


@pytest.mark.corpus
@CORPUS_ONLY
def test_hostile_films_end_as_counts_or_named_errors(tmp_path: Path) -> None:
    def outcome(name: str) -> tuple[int, int, int] | str:
        try:
            result, clips = passed(CORPUS / "hostile" / name, tmp_path / "tracks")
        except MediaError as error:
            return error.code
        return result.decoded_frames, result.corrupt_frames, len(clips)

    assert outcome("damaged_middle_1080p.mp4") == (97, 2, 3)
    assert outcome("corrupted_packets.mp4") == (49, 2, 3)
    assert outcome("truncated_faststart.mp4") == (57, 1, 2)  # 30 frames, and the 27 left are 1.125 s: just enough
    assert outcome("all_black_1080p.mp4") == (72, 0, 2)
    assert outcome("h265_10bit.mp4") == (30, 0, 0)
    assert outcome("alpha_vp9.webm") == (150, 0, 4)
    assert outcome("no_duration.webm") == (74, 0, 4)
    assert outcome("-one-pixel-.mp4") == (5, 0, 2)
    assert outcome("unordered_pts.mov") == (4, 0, 0)
    assert outcome("encrypted_init_only.mp4") == "encrypted"
