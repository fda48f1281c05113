"""Frame interpolation: a pan of known speed, what is covered and uncovered, still frames, counts; RIFE's network by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from flashvideo.models.weight_files import WeightsError
from flashvideo.sampling.interpolation import (
    FlowInterpolator,
    RifeInterpolator,
    RifeNetwork,
    build_interpolator,
    interpolate,
    load_rife,
    warp,
)

cv2.setNumThreads(1)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise, uint8 H W C, with structure of 8, 24 and 72 px, as pictures have it of every size."""
    draws = np.random.default_rng(seed)
    octaves = []
    for size in (8, 24, 72):
        coarse = draws.integers(0, 256, (height // size + 3, width // size + 3, 3)).astype(np.float32)
        octaves.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return np.mean(octaves, axis=0).clip(0, 255).astype(np.uint8)


def psnr(ours: np.ndarray, truth: np.ndarray) -> float:
    error = np.mean((ours.astype(np.float64) - truth) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.mark.parametrize("speed", [6, 18])
def test_a_pan_is_found_at_the_moment(speed: int) -> None:
    """The camera moves `speed` px a frame: at 1/3 and 2/3 the truth is known exactly. Blending shows two pictures."""
    field = texture(160, 320)
    at = lambda px: field[:, px : px + 256]  # noqa: E731
    third, two_thirds = FlowInterpolator().between(at(0), at(speed), [1 / 3, 2 / 3])
    for made, part in ((third, 1), (two_thirds, 2)):
        truth = at(part * speed // 3)
        blend = np.rint(at(0) * (1 - part / 3) + at(speed) * (part / 3))
        inner = np.s_[8:-8, 24:-24]  # what both frames show
        ours, mean = psnr(made[inner], truth[inner]), psnr(blend[inner], truth[inner])
        print(f"pan of {speed} px at {part}/3: flow {ours:.1f} dB, blending {mean:.1f} dB")
        assert ours > 38 and ours > mean + 15
        assert psnr(made, truth) > 26  # with the borders that one frame alone shows


def test_what_is_covered_comes_from_the_frame_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares move 12 px right over still grounds: of what they leave and cover, one frame shows nothing.

    Mean over six scenes, at the middle: against plain blending, and against both warped frames in equal parts.
    """
    rows = []
    for seed in range(0, 12, 2):
        ground, square = texture(128, 192, seed), 255 - texture(48, 48, seed + 1)
        scenes = {left: ground.copy() for left in (60, 66, 72)}
        for left, picture in scenes.items():
            picture[40:88, left : left + 48] = square
        [ours] = FlowInterpolator().between(scenes[60], scenes[72], [0.5])
        with monkeypatch.context() as patch:
            patch.setattr(FlowInterpolator, "MISMATCH_LEVELS", 1e9)
            [equal] = FlowInterpolator().between(scenes[60], scenes[72], [0.5])
        blend = np.rint((scenes[60].astype(float) + scenes[72]) / 2)
        around = np.s_[36:92, 50:130]
        rows.append([psnr(picture[around], scenes[66][around]) for picture in (ours, equal, blend)])
    made, equal_parts, blended = np.mean(rows, axis=0)
    print(f"moving squares: {made:.1f} dB, warped in equal parts {equal_parts:.1f} dB, blending {blended:.1f} dB")
    assert made > equal_parts + 0.3 and made > blended + 6


def test_a_still_scene_stays_as_it_is() -> None:
    frames = np.stack([texture(32, 48)] * 3)
    made = interpolate(frames, FlowInterpolator())
    assert made.shape == (7, 32, 48, 3) and all(np.array_equal(frame, frames[0]) for frame in made)


def test_49_frames_make_145_and_the_given_ones_are_kept() -> None:
    field = texture(16, 80)
    frames = np.stack([field[:, shift // 2 : shift // 2 + 32] for shift in range(49)])
    made = interpolate(frames, FlowInterpolator(), 3)
    assert made.shape == (145, 16, 32, 3) and np.array_equal(made[::3], frames)
    assert np.array_equal(made, interpolate(frames, FlowInterpolator(), 3))
    assert np.array_equal(interpolate(frames, FlowInterpolator(), 1), frames)


def test_a_cut_or_noise_makes_pictures_without_gaps() -> None:
    """No match anywhere: still a picture between the two, every pixel of it."""
    draws = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3), dtype=np.uint8)
    for made in FlowInterpolator().between(draws[0], draws[1], [0.25, 0.75]):
        assert made.shape == (40, 56, 3) and 90 < made.mean() < 165


def test_large_pictures_are_matched_small_and_rendered_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowInterpolator, "FLOW_SHORT_SIDE_PX", 80)
    field = texture(160, 320)
    [made] = FlowInterpolator().between(field[:, :256], field[:, 12:268], [0.5])
    assert psnr(made[8:-8, 24:-24], field[8:-8, 30:238]) > 30


@pytest.mark.parametrize(
    ("frames", "factor", "message"),
    [(np.zeros((2, 32, 32, 3), np.float32), 3, "float32"), (np.zeros((2, 32, 32, 3), np.uint8), 0, "factor = 0")],
)
def test_other_input_is_refused(frames: np.ndarray, factor: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate(frames, FlowInterpolator(), factor)


# ---- RIFE --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> RifeNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RifeNetwork().eval()


def test_rife_has_the_published_size() -> None:
    """Hand count per level: inputs*w/2*9 + w/2 + (w/2)*w*9 + w, eight of (w*w*9 + 2w), w*24*16 + 24."""
    total = 0
    for level, width in enumerate((192, 128, 96, 64)):
        inputs = 7 if level == 0 else 12
        total += inputs * (width // 2) * 9 + width // 2 + (width // 2) * width * 9 + width
        total += 8 * (width * width * 9 + 2 * width) + width * 24 * 16 + 24
    with torch.device("meta"):
        state = RifeNetwork().state_dict()
    assert sum(value.numel() for value in state.values()) == total
    assert {"block0.conv0.0.0.weight", "block3.convblock.7.beta", "block1.convblock.0.conv.bias", "block2.lastconv.0.weight"} <= set(state)


def test_rife_random_weights_give_equal_pictures_of_the_given_size(network: RifeNetwork) -> None:
    rife = RifeInterpolator(network, "random")
    first, second = texture(40, 72), texture(40, 72, 1)
    made = rife.between(first, second, [1 / 3, 2 / 3])
    again = rife.between(first, second, [1 / 3, 2 / 3])
    assert [picture.shape for picture in made] == [(40, 72, 3)] * 2 and all(map(np.array_equal, made, again))
    assert not np.array_equal(made[0], made[1])
    assert interpolate(np.stack([first, second, first]), rife, 3).shape == (7, 40, 72, 3)


def test_rife_by_hand() -> None:
    """Last layers that say (0, 0, 0, 0, mask) everywhere: the mean of the frames at mask 0, the first at a large mask."""
    network = RifeNetwork().eval()
    with torch.no_grad():
        for level in range(4):
            network.get_submodule(f"block{level}.lastconv.0").weight.zero_()
            network.get_submodule(f"block{level}.lastconv.0").bias.zero_()
    first, second = np.full((32, 32, 3), 40, np.uint8), np.full((32, 32, 3), 200, np.uint8)
    rife = RifeInterpolator(network, "by hand")
    assert (rife.between(first, second, [0.5])[0] == 120).all()
    with torch.no_grad():
        network.get_submodule("block3.lastconv.0").bias[16:20] = 30.0  # pixel shuffle: channel 4 is 16..19
    assert (rife.between(first, second, [0.5])[0] == 40).all()


def test_rife_flow_is_in_pixels_of_the_full_size() -> None:
    """The level at 1/8 says one of its pixels to the right: 8 px of the picture."""
    network = RifeNetwork().eval()
    with torch.no_grad():
        for level in range(4):
            network.get_submodule(f"block{level}.lastconv.0").weight.zero_()
            network.get_submodule(f"block{level}.lastconv.0").bias.zero_()
        network.get_submodule("block0.lastconv.0").bias[0:4] = 1.0  # x of the flow to the first frame
        network.get_submodule("block3.lastconv.0").bias[16:20] = 30.0  # only the first frame
    picture = texture(64, 96)
    made = RifeInterpolator(network, "by hand").between(picture, picture, [0.5])[0]
    assert np.abs(made[:, :88].astype(int) - picture[:, 8:]).max() <= 1


def test_warping_by_whole_pixels_shifts() -> None:
    picture = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 2.0, -1.0
    moved = warp(picture, flow)
    torch.testing.assert_close(moved[..., 1:, :5], picture[..., :-1, 2:])
    torch.testing.assert_close(moved[..., 0, :5], picture[..., 0, 2:])  # the border repeated


def test_released_keys_load_with_their_prefix_and_training_parts(network: RifeNetwork, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    state["module.block_tea.conv0.0.0.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "flownet.pkl")
    loaded = load_rife(tmp_path / "flownet.pkl").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())
    made = build_interpolator("rife", str(tmp_path / "flownet.pkl"))
    assert made is not None and made.name == "RIFE 4.6 (flownet.pkl)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing: block2\.lastconv\.0\.bias$"),
        ("unknown", r"1 unknown: encode\.cnn0\.weight$"),
        ("misshapen", r"1 misshapen: block2\.lastconv\.0\.bias \(20,\) \(want \(24,\)\)$"),
        ("text", "is not a file of tensors"),
        ("absent", "no file"),
    ],
)
def test_other_weights_are_refused_with_their_key(change: str, message: str, network: RifeNetwork, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    path = tmp_path / "flownet.pkl"
    if change == "missing":
        del state["block2.lastconv.0.bias"]
    elif change == "unknown":
        state["encode.cnn0.weight"] = torch.zeros(1)
    elif change == "misshapen":
        state["block2.lastconv.0.bias"] = torch.zeros(20)
    if change == "text":
        path.write_text("no weights")
    elif change != "absent":
        torch.save(state, path)
    with pytest.raises(WeightsError, match=message):
        load_rife(path)


def test_the_setting_names_the_method() -> None:
    assert build_interpolator("none") is None
    dis = build_interpolator("dis")
    assert dis is not None and "DIS" in dis.name
    with pytest.raises(WeightsError, match="interpolation_weights is not set"):
        build_interpolator("rife")
