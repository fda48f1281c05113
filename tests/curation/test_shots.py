"""Cuts found online, flashes and repeats not taken for cuts; shots cut into clips."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from generated_films import moving

from curation.config import ShotsConfig
from curation.shots import ClipCutter, CutDetector, Span, clip_id


def cuts_in(frames: Iterable[np.ndarray], config: ShotsConfig | None = None, rate: float = 24.0) -> list[int]:
    """Indices of frames that begin a shot."""
    detector = CutDetector(config or ShotsConfig(), rate)
    answers: list[bool] = []
    last: np.ndarray | None = None
    for frame in frames:
        answer = detector.push(frame, repeated=last is not None and np.array_equal(frame, last))
        last = frame
        if answer is not None:
            answers.append(answer)
    answers += detector.flush()
    return [index for index, is_cut in enumerate(answers) if is_cut]


def shot(seed: int, num_frames: int = 40, velocity_px: tuple[float, float] = (1.5, 0.5)) -> list[np.ndarray]:
    return list(moving(54, 96, num_frames, velocity_px, seed=seed))


def test_hard_cuts_are_found_at_their_frame() -> None:
    assert cuts_in(shot(1) + shot(2) + shot(3)) == [40, 80]
    assert cuts_in(shot(1) + shot(2), ShotsConfig(detector="content")) == [40]


def test_every_frame_is_answered_once() -> None:
    for length in (1, 5, 11, 40):
        detector = CutDetector(ShotsConfig(), 24.0)
        answers = [detector.push(frame, False) for frame in shot(1, length)]
        assert len([a for a in answers if a is not None]) + len(detector.flush()) == length


def test_a_header_that_lies_about_the_rate_keeps_no_more_frames_waiting() -> None:
    assert CutDetector(ShotsConfig(), 90_000.0).lag == CutDetector(ShotsConfig(), 240.0).lag < 480
    assert CutDetector(ShotsConfig(), 24.0).lag <= 1.8 * 24


def test_a_flash_is_no_cut() -> None:
    frames = shot(1, 80)
    for index in (40, 41):
        frames[index] = np.full_like(frames[index], 255)
    assert cuts_in(frames) == []


def test_repeated_frames_are_no_cuts() -> None:
    """8 fps shown at 24, fast motion: two repeats, then a jump, again and again."""
    frames = [frame for frame in shot(1, 30, (9, 4)) for _ in range(3)]
    assert cuts_in(frames + [frame for frame in shot(2, 30, (9, 4)) for _ in range(3)]) == [90]


def test_a_fade_through_black_is_a_cut_where_the_picture_returns() -> None:
    def faded(frames: list[np.ndarray], levels: np.ndarray) -> list[np.ndarray]:
        return [(frame * level).astype(np.uint8) for frame, level in zip(frames, levels, strict=True)]

    out, back = np.linspace(1, 0, 40), np.linspace(0, 1, 40)
    [cut] = cuts_in(faded(shot(1), out) + faded(shot(2), back))
    assert 40 < cut < 50


def mixed(one: list[np.ndarray], other: list[np.ndarray]) -> list[np.ndarray]:
    """A cross-dissolve from one to the other, the ends left out."""
    shares = np.linspace(0, 1, len(one) + 2)[1:-1]
    return [((1 - share) * a.astype(np.float32) + share * b).astype(np.uint8) for share, a, b in zip(shares, one, other, strict=True)]


@pytest.mark.parametrize("length", [10, 16, 24, 30])
def test_a_dissolve_is_cut_out_at_both_ends(length: int) -> None:
    """Its pictures stand between two cuts, so no clip holds more than the faintest of them."""
    one, other = shot(1, 60 + length, (0.3, 0.1)), shot(2, 60 + length, (-0.2, 0.1))
    first, after = cuts_in(one[:60] + mixed(one[60:], other[:length]) + other[length:])
    assert abs(first - 60) <= 0.3 * length and abs(after - 60 - length) <= 0.3 * length


def test_a_dissolve_is_found_at_every_frame_rate() -> None:
    for rate in (12.5, 24.0, 30.0, 60.0):
        length, whole = round(0.8 * rate), round(3 * rate)
        one, other = shot(3, whole, (3 / rate, 0)), shot(4, whole, (0, 3 / rate))
        found = cuts_in(one[: whole - length] + mixed(one[whole - length :], other[:length]) + other[length:], rate=rate)
        assert len(found) == 2, rate
        assert abs((found[0] + found[1]) / 2 - (whole - length / 2)) <= 0.1 * rate, rate


def test_moves_zooms_and_fades_of_the_light_are_no_dissolves() -> None:
    for velocity in ((0.3, 0), (1, 1), (4, 0), (12, 5)):
        assert cuts_in(shot(5, 90, velocity)) == []
    assert cuts_in(moving(54, 96, 90, zoom=1.02, seed=5)) == []
    for zoom, seed in ((0.985, 3), (0.99, 0), (0.99, 5), (0.9937, 7), (0.9937, 11)):
        assert cuts_in(moving(360, 640, 75, zoom=zoom, seed=seed, slope=0.0), rate=30.0) == [], "it changes as evenly as a mix does"
    darker = np.concatenate([np.linspace(1, 0.3, 30), np.full(30, 0.3), np.linspace(0.3, 1, 30)])
    assert cuts_in((frame * level).astype(np.uint8) for frame, level in zip(shot(5, 90, (0.5, 0)), darker, strict=True)) == []


def test_a_fade_through_white_is_a_cut_where_the_picture_returns_and_a_bright_scene_is_none() -> None:
    def faded(frames: list[np.ndarray], levels: np.ndarray) -> list[np.ndarray]:
        return [(255 - (255 - frame.astype(np.float32)) * level).astype(np.uint8) for frame, level in zip(frames, levels, strict=True)]

    out, back = np.linspace(1, 0, 40), np.linspace(0, 1, 40)
    [cut] = cuts_in(faded(shot(1), out) + faded(shot(2), back))
    assert 40 <= cut < 50
    assert cuts_in(faded(shot(1, 90), 0.12 + 0.05 * np.sin(np.arange(90) / 5))) == [], "about white, but never all white"


def test_stride_looks_for_no_cuts() -> None:
    assert cuts_in(shot(1) + shot(2), ShotsConfig(detector="stride")) == []


def spans_of(times_us: list[int], cuts: set[int], config: ShotsConfig, end_us: int) -> list[Span]:
    cutter = ClipCutter(config)
    spans = [cutter.push(time_us, index in cuts) for index, time_us in enumerate(times_us)]
    return [span for span in [*spans, cutter.finish(end_us)] if span is not None]


def test_shots_are_cut_into_pieces_and_a_short_rest_is_left_out() -> None:
    """24 fps, 120 frames, cut at 84 (3.5 s), pieces of 1.25 s of at least 1.125 s: two and a rest of 1 s; one and 0.25 s."""
    times = [round(k * 1e6 / 24) for k in range(120)]
    spans = spans_of(times, {84}, ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25), 5_000_000)
    assert spans == [Span(0, 1_250_000, 0), Span(1_250_000, 2_500_000, 0), Span(3_500_000, 4_750_000, 1)]


def test_a_rest_that_is_long_enough_is_a_clip() -> None:
    times = [k * 40_000 for k in range(60)]
    spans = spans_of(times, set(), ShotsConfig(min_duration_s=1.1, clip_duration_s=1.25), 2_400_000)
    # The first frame at or after 1.25 s begins the second piece.
    assert spans == [Span(0, 1_280_000, 0), Span(1_280_000, 2_400_000, 0)]


@pytest.mark.parametrize("rate", [8, 12.5, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60])
def test_every_piece_holds_the_frames_that_training_reads(rate: float) -> None:
    """9 frames at 8 Hz need 1 s and the frame after it."""
    times = [round(k * 1e6 / rate) for k in range(int(rate * 10))]
    for span in spans_of(times, {int(rate * 4.3)}, ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25), round(10e6)):
        assert span.end_us - span.start_us > 1_000_000


def test_clip_ids_come_from_content_and_place() -> None:
    assert clip_id("a", 0, 1) == clip_id("a", 0, 1)
    assert len({clip_id("a", 0, 1), clip_id("b", 0, 1), clip_id("a", 1, 1), clip_id("a", 0, 2)}) == 4
