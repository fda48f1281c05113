"""Frame quality and temporal flickering on inputs whose answer is worked out by hand; video files there and back."""

from __future__ import annotations

import gc
import hashlib
import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from flashvideo.evaluation.dimensions.temporal_flickering import mean_difference, temporal_flickering, temporal_flickering_of_file
from flashvideo.evaluation.frame_quality import FrameMetrics, mean_gradient_magnitude, psnr_db
from flashvideo.video_files import VideoFileError, beside, frames_digest, grid, read_video, write_video


def flat(value: int, frames: int = 3, height: int = 16, width: int = 32) -> np.ndarray:
    return np.full((frames, height, width, 3), value, np.uint8)


def moving_wave(frames: int = 9, height: int = 64, width: int = 112) -> np.ndarray:
    x, y, t = np.arange(width)[None, None, :], np.arange(height)[None, :, None], np.arange(frames)[:, None, None]
    wave = 128 + 90 * np.sin(x / 9 + y / 13 + t / 3)
    return np.repeat(wave[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("size", "seeds"), [((1, 1), 1), ((7, 5), 1), ((181, 363), 1), ((333, 777), 12)])
def test_the_mean_difference_is_float32s_to_the_last_bit(size: tuple[int, int], seeds: int) -> None:
    """From one block to sums far above 2^24, in both orders of the channels; of 12 large pairs 3 go wrong where a pixel that
    lies across two blocks is not turned."""
    for seed in range(seeds):
        draws = np.random.default_rng(seed)
        before = np.zeros((*size, 3), np.uint8)
        now = draws.integers(0, [256, 256, 40], (*size, 3)).astype(np.uint8)
        assert mean_difference(before, now) == np.mean(now.astype(np.float32))
        assert mean_difference(now, before, channels_turned=True) == np.mean(np.ascontiguousarray(now[..., ::-1]).astype(np.float32))


def test_a_compared_frame_is_gone_at_once() -> None:
    """Without the collector of cycles: 48 frames of 1080p were 300 MB before it came."""
    before, now = flat(3, frames=1, height=256, width=512)[0].copy(), flat(9, frames=1, height=256, width=512)[0].copy()
    seen = weakref.ref(before)
    gc.disable()
    try:
        assert mean_difference(before, now, channels_turned=True) == 6
        del before
        assert seen() is None
    finally:
        gc.enable()


def test_a_flat_clip_has_no_gradient() -> None:
    assert mean_gradient_magnitude(flat(80)) == 0


def test_a_ramp_has_the_gradient_of_its_slope() -> None:
    ramp = flat(0)
    ramp[:] = (4 * np.arange(32, dtype=np.uint8))[None, None, :, None]
    assert mean_gradient_magnitude(ramp) == pytest.approx(4 / 255, rel=1e-5)
    diagonal = flat(0)
    diagonal[:] = (3 * np.arange(32)[None, :] + 4 * np.arange(16)[:, None]).astype(np.uint8)[None, :, :, None]
    assert mean_gradient_magnitude(diagonal) == pytest.approx(5 / 255, rel=1e-5)


def test_blur_lowers_the_gradient() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    blurred = ((sharp.astype(int) + np.roll(sharp, 1, axis=2)) // 2).astype(np.uint8)
    assert mean_gradient_magnitude(blurred) < 0.9 * mean_gradient_magnitude(sharp)


def test_psnr_of_a_known_error() -> None:
    assert psnr_db(flat(100), flat(105)) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr_db(flat(100), flat(100)) == math.inf
    mixed = np.concatenate([flat(100, frames=1), flat(110, frames=1)])
    assert psnr_db(mixed, flat(100, frames=2)) == pytest.approx(10 * math.log10(255**2 / 50))  # one error over all frames


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32), np.zeros((0, 4, 4, 3), np.uint8)])
def test_other_shapes_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 T H W 3"):
        mean_gradient_magnitude(frames)


def test_psnr_refuses_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        psnr_db(flat(1), flat(1, frames=2))


def test_piqe_of_pyiqa_rises_with_noise() -> None:
    photo = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB"))
    clean = np.stack([photo[:128, 100:324], photo[100:228, 100:324]])
    noise = np.random.default_rng(0).normal(0, 40, clean.shape)
    noisy = (clean + noise).clip(0, 255).astype(np.uint8)
    metrics = FrameMetrics(("piqe",), torch.device("cpu"))
    assert metrics(clean)["piqe"] + 5 < metrics(noisy)["piqe"]
    assert metrics(clean, stride=2) == metrics(clean[:1])
    assert metrics.versions["piqe"].startswith("pyiqa ")
    with pytest.raises(ValueError, match="no metric pique"):
        FrameMetrics(("pique",), torch.device("cpu"))


def test_no_metric_asked_for_means_none_computed() -> None:
    assert FrameMetrics((), torch.device("cpu"))(flat(3)) == {}


def test_flickering_of_still_and_stepping_clips() -> None:
    assert temporal_flickering(flat(90)) == 1
    stepping = np.concatenate([flat(value, frames=1) for value in (0, 51, 51)])
    assert temporal_flickering(stepping) == pytest.approx(1 - (51 + 0) / 2 / 255)
    alternating = np.concatenate([flat(value, frames=1) for value in (0, 255, 0)])
    assert temporal_flickering(alternating) == 0


def test_flickering_needs_two_equal_frames() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        temporal_flickering(flat(1, frames=1))
    with pytest.raises(ValueError, match="frame 1"):
        temporal_flickering([flat(1)[0], flat(1, height=8)[0]])


def test_flickering_of_a_file_is_that_of_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "wave.mp4"
    write_video(path, moving_wave(), 8, 12)
    frames, _ = read_video(path)
    assert temporal_flickering_of_file(path) == temporal_flickering(frames[..., ::-1])
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        temporal_flickering_of_file(broken)


def test_a_video_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "wave.mp4"
    write_video(path, moving_wave(), 8, 8)
    frames, frame_rate_hz = read_video(path)
    assert frames.shape == (9, 64, 112, 3) and frame_rate_hz == 8
    assert psnr_db(frames, moving_wave()) > 40
    assert [entry.name for entry in path.parent.iterdir()] == ["wave.mp4"]  # nothing half-written beside it


def test_colours_come_back(tmp_path: Path) -> None:
    for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200)):
        frames = np.tile(np.array(colour, np.uint8), (3, 32, 32, 1))
        write_video(tmp_path / "colour.mp4", frames, 8, 4)
        back, _ = read_video(tmp_path / "colour.mp4")
        assert np.abs(back.astype(int) - frames).max() <= 3


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving_wave(), 8, 12)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_video_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "odd.mp4", np.zeros((1, 15, 16, 3), np.uint8), 8, 12)
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(VideoFileError, match=r"text\.mp4"):
        read_video(tmp_path / "text.mp4")


def test_clips_stand_beside_each_other() -> None:
    row = beside([flat(10), flat(20)], gap_px=4)
    assert row.shape == (3, 16, 68, 3)
    assert (row[0, 0, :32, 0] == 10).all() and (row[0, 0, 32:36, 0] == 255).all() and (row[0, 0, 36:, 0] == 20).all()
    with pytest.raises(ValueError, match="one shape"):
        beside([flat(1), flat(1, width=16)])


def test_a_grid_has_rows_and_columns() -> None:
    pictures = [[flat(10)[0], flat(20)[0]], [flat(30)[0], flat(40)[0]]]
    sheet = grid(pictures, gap_px=4)
    assert sheet.shape == (36, 68, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((0, 0), (0, 67), (35, 0), (35, 67), (17, 0))] == [10, 20, 30, 40, 255]


def test_digest_knows_shape_and_pixels() -> None:
    assert frames_digest(flat(1)) == frames_digest(flat(1))
    assert len({frames_digest(flat(1)), frames_digest(flat(2)), frames_digest(flat(1, height=32, width=16))}) == 3
