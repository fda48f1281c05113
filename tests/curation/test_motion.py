"""Motion by definition flashvideo-motion/1: films of known speed, still films, damage, repeats, the real reel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from generated_films import CORPUS, moving, write_film

from curation.config import DecodeConfig, MotionConfig, ShotsConfig
from curation.decode_pass import run_pass
from curation.passes import PassTask
from curation.scores.motion import DisFlow, Motion, Pair, measure_motion, raft_weights, valid_pairs
from curation.step import StepError
from curation.tracks import FRAMES, ClipTrack, TrackFacts, read_clip_track

LONG = ShotsConfig(min_duration_s=1.0, clip_duration_s=60.0)


def tracks_of(film: Path, folder: Path, frame_rate_hz: float = 24, shots: ShotsConfig = LONG) -> list[ClipTrack]:
    task = PassTask(str(film), film.stem, "video", frame_rate_hz, DecodeConfig(), shots, folder)
    return [read_clip_track(folder, film.stem, clip.clip_id, clip.start_us, clip.end_us) for clip in run_pass(task).clips]


def motion_of(frames: Iterable[np.ndarray], tmp_path: Path, frame_rate_hz: int = 24) -> Motion:
    [track] = tracks_of(write_film(tmp_path / "film.mp4", frames, frame_rate_hz), tmp_path / "tracks", frame_rate_hz)
    return measure_motion(track, DisFlow(), max_pairs=48)


@pytest.mark.parametrize(
    ("height", "rate", "px_per_frame"),
    [(360, 24, 0.1667), (360, 24, 0.5), (360, 24, 2.0), (540, 30, 1.0), (540, 30, 6.0), (270, 25, 1.5), (360, 24, 13.0)],
)
def test_a_pan_reads_its_speed(tmp_path: Path, height: int, rate: int, px_per_frame: float) -> None:
    """px per frame x frames per 1/8 s x (360 / height)."""
    expected = px_per_frame * rate / 8 * 360 / height
    motion = motion_of(moving(height, height * 16 // 9 // 2 * 2, rate + 4, (px_per_frame, 0)), tmp_path, rate)
    assert motion.mean == pytest.approx(expected, rel=0.05)
    assert motion.camera == pytest.approx(expected, rel=0.06)
    assert motion.residual < 0.15 * expected + 0.05
    assert motion.camera_move == "pan right"


@pytest.mark.parametrize(("velocity", "word"), [((-2, 0), "pan left"), ((0, 2), "tilt down"), ((0, -2), "tilt up")])
def test_camera_moves_have_their_word(tmp_path: Path, velocity: tuple[float, float], word: str) -> None:
    assert motion_of(moving(180, 320, 28, velocity), tmp_path).camera_move == word


@pytest.mark.parametrize(("zoom", "word"), [(1.01, "zoom in"), (0.99, "zoom out")])
def test_a_zoom_reads_its_mean_displacement(tmp_path: Path, zoom: float, word: str) -> None:
    """Three frames enlarge by zoom^3 about the centre: a point at distance r moves by r x |zoom^3 - 1|."""
    motion = motion_of(moving(360, 640, 28, zoom=zoom), tmp_path)
    y, x = np.mgrid[0:360, 0:640]
    distance = np.hypot(x + 0.5 - 320, y + 0.5 - 180).mean()
    assert motion.mean == pytest.approx(distance * abs(zoom**3 - 1), rel=0.05)
    assert motion.camera_move == word


def test_a_still_film_reads_nothing(tmp_path: Path) -> None:
    motion = motion_of(moving(180, 320, 30), tmp_path)
    assert motion.mean < 0.05
    assert motion.camera_move == "static"


def test_a_still_film_with_noise_stays_under_the_threshold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    [flat] = moving(180, 320, 1)
    flat = np.where(np.arange(320)[None, :, None] < 160, flat, np.uint8(128))  # half of it a bare wall
    noisy = [np.clip(flat + random.normal(0, 3, flat.shape), 0, 255).astype(np.uint8) for _ in range(30)]
    assert motion_of(noisy, tmp_path).mean < 0.3


def test_repeats_do_not_change_the_score(tmp_path: Path) -> None:
    """6 fps shown at 24: some samples 1/8 s apart show the same frame. The speed in time is the same."""
    shown = [frame for frame in moving(180, 320, 9, (4, 0)) for _ in range(4)]
    expected = 4 * 6 / 8 * 2
    assert motion_of(shown, tmp_path).mean == pytest.approx(expected, rel=0.05)


def facts_only(times: list[int], corrupt: set[int] = frozenset(), repeat: set[int] = frozenset()) -> ClipTrack:  # type: ignore[assignment]
    """A track whose every frame is a sample 1/8 s apart."""
    rows = [
        {
            "time_us": time,
            "corrupt": index in corrupt,
            "refused": False,
            "cut": False,
            "repeat": index in repeat,
            "change": 1.0,
            "luma": 100.0,
            "black_share": 0.0,
            "blur": 1.0,
            "picture": b"",
        }
        for index, time in enumerate(times)
    ]
    facts = TrackFacts("s", 64, 36, 640, 360, False, 0.2, 0.07, 125_000)
    return ClipTrack(facts, pa.Table.from_pylist(rows, schema=FRAMES), ())


def test_pairs_avoid_damage_and_wait_over_repeats() -> None:
    times = [index * 125_000 for index in range(8)]
    assert valid_pairs(facts_only(times[:4]), 48) == [Pair(0, 1, 1.0), Pair(1, 2, 1.0), Pair(2, 3, 1.0)]
    assert valid_pairs(facts_only(times[:6], corrupt={2}), 48) == [Pair(0, 1, 1.0), Pair(3, 4, 1.0), Pair(4, 5, 1.0)]
    assert valid_pairs(facts_only(times[:5], repeat={1, 2}), 48) == [Pair(0, 3, 3.0), Pair(3, 4, 1.0)]
    assert valid_pairs(facts_only(times[:4], repeat={2, 3}), 48) == [Pair(0, 1, 1.0), Pair(1, 3, 2.0)]


def test_long_clips_give_three_runs() -> None:
    pairs = valid_pairs(facts_only([index * 125_000 for index in range(101)]), 12)
    assert [pair.first for pair in pairs] == [0, 1, 2, 3, 48, 49, 50, 51, 96, 97, 98, 99]


def test_a_clip_without_pairs_is_an_error() -> None:
    with pytest.raises(StepError) as caught:
        measure_motion(facts_only([0, 125_000], corrupt={1}), DisFlow(), 48)
    assert caught.value.code == "too_few_frames"


class _Constant:
    """A flow of (3, 4) px everywhere, on colour."""

    wants_color = True

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        assert first.shape[2] == 3
        return np.full((*first.shape[:2], 2), (3, 4), np.float32)


def test_the_mean_is_of_magnitudes_over_time(tmp_path: Path) -> None:
    """A constant flow of (3, 4) per pair of 1/8 s is 5."""
    [track] = tracks_of(write_film(tmp_path / "film.mp4", moving(96, 128, 28, (1, 0))), tmp_path / "tracks")
    motion = measure_motion(track, _Constant(), max_pairs=3)
    assert (motion.mean, motion.top5, motion.pairs) == (pytest.approx(5), pytest.approx(5), 3)
    assert motion.camera == pytest.approx(5, rel=1e-4)
    assert motion.residual < 1e-3


def test_missing_raft_weights_are_named() -> None:
    with pytest.raises(StepError, match=r"raft_large_C_T_SKHT_V2-ff5fadd5\.pth") as caught:
        raft_weights(MotionConfig(raft=True, raft_weights="/nowhere/raft.pth"))
    assert caught.value.code == "weights_missing"


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
def test_the_reel(tmp_path: Path) -> None:
    """The static bottles stay far under the threshold of 1.1, every other shot is above it."""
    clips = tracks_of(CORPUS / "reel_1080p24.mp4", tmp_path / "tracks", shots=ShotsConfig())
    motions = [measure_motion(track, DisFlow(), max_pairs=9) for track in clips]
    cockatoo, bunny, bottles, kitten, car, sintel = (motion.mean for motion in motions)
    assert bottles < 0.4
    assert motions[2].camera_move == "static"
    assert min(cockatoo, bunny, kitten, car, sintel) > 1.1
