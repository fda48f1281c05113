"""The rendered samples: known moves really move so, damage is seen by the decoder, an interrupted rendering goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation import samples
from curation.samples import FILMS, NAMES, Film, Shot, camera_move, is_complete, mean_displacement_px, render_one, render_samples
from curation.sources import SourceError

PHOTO = "astronaut.png"


def film(name: str, num_frames: int) -> Film:
    """A film of the set, each shot cut to its first `num_frames`; a zoom keeps its rate."""
    original = next(film for film in FILMS if film.name == name)
    shots = tuple(
        replace(shot, num_frames=num_frames, zoom=shot.zoom ** ((num_frames - 1) / (shot.num_frames - 1))) for shot in original.shots
    )
    return replace(original, shots=shots)


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "FRAME"
        return list(container.decode(video=0))


def luma(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray()[: frame.height]


def test_a_pan_of_whole_pixels_moves_the_picture_by_exactly_that():
    camera = samples._Camera(Shot(PHOTO, (190, 125), 352, pan_px=(5.0, 0), num_frames=3), letterbox_px=0)
    before, after = camera.frame(0)[:1080].astype(int), camera.frame(1)[:1080].astype(int)
    assert np.abs(after[:, :-5] - before[:, 5:]).max() <= 1  # the camera goes right, so the picture goes left


def test_half_pixels_add_up():
    camera = samples._Camera(Shot(PHOTO, (190, 125), 352, pan_px=(2.5, -1.5), num_frames=3), letterbox_px=0)
    before, after = camera.frame(0)[:1080].astype(int), camera.frame(2)[:1080].astype(int)
    assert np.abs(after[3:, :-5] - before[:-3, 5:]).max() <= 1


def test_chroma_moves_with_luma():
    camera = samples._Camera(Shot(PHOTO, (190, 125), 352, pan_px=(4.0, 0), num_frames=3), letterbox_px=0)
    before, after = (camera.frame(index)[1080:].reshape(2, 540, 960).astype(int) for index in (0, 1))
    assert np.abs(after[:, :, :-2] - before[:, :, 2:]).max() <= 1
    assert before.std() > 5  # a photograph in colour


def test_displacement_by_hand():
    still = Shot(PHOTO, (256, 256), 400, num_frames=100)
    assert mean_displacement_px(still, 3, 1080) == 0
    assert mean_displacement_px(replace(still, pan_px=(3.0, 4.0)), 1, 1080) == pytest.approx(5)
    assert mean_displacement_px(replace(still, pan_px=(-3.0, 4.0)), 3, 1080) == pytest.approx(15)
    # a picture that doubles moves each point by its distance from the middle; on a thin line that is a quarter of its length
    assert mean_displacement_px(replace(still, zoom=0.5, num_frames=2), 1, 1) == pytest.approx(1920 / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("pan_px", "zoom", "word"),
    [
        ((0, 0), 1.0, "static"),
        ((2, -1), 1.0, "pan right"),
        ((-2, 1), 1.0, "pan left"),
        ((1, -2), 1.0, "tilt up"),
        ((0, 2), 1.0, "tilt down"),
        ((0, 0), 0.7, "zoom in"),
        ((0, 0), 1.4, "zoom out"),
    ],
)
def test_camera_words(pan_px, zoom, word):
    assert camera_move(Shot(PHOTO, (256, 256), 400, pan_px=pan_px, zoom=zoom)) == word


def test_a_shot_that_leaves_its_photograph_is_named():
    with pytest.raises(ValueError, match=r"astronaut\.png sees x .*512x512"):
        samples._Camera(Shot(PHOTO, (190, 125), 352, pan_px=(50.0, 0)), letterbox_px=0)


@pytest.mark.parametrize("name", ["motorcycle_pan_left.mp4", "coffee_zoom_in.mp4", "helmet_letterbox_pan_left.mp4", "gravel_slow_pan.mp4"])
def test_optical_flow_reads_the_expected_motion(name, tmp_path):
    cut = film(name, 13)
    samples._render_film(cut, tmp_path / name)
    expected = samples._shot_truth(cut.shots[0], cut.letterbox_px)["expected_motion"]
    bar = cut.letterbox_px
    pictures = []
    for frame in decode(tmp_path / name)[::3]:
        active = luma(frame)[bar : 1080 - bar]
        pictures.append(cv2.resize(active, (round(1920 * 360 / active.shape[0]), 360), interpolation=cv2.INTER_AREA))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    measured = np.mean([np.linalg.norm(flow.calc(a, b, None), axis=2).mean() for a, b in pairwise(pictures)])
    assert measured == pytest.approx(expected, rel=0.06)


def test_letterbox_bars_are_black_and_the_picture_is_not(tmp_path):
    path = tmp_path / "bars.mp4"
    samples._render_film(film("helmet_letterbox_pan_left.mp4", 2), path)
    picture = luma(decode(path)[0]).astype(int)
    assert picture[:136].max() <= 20 and picture[-136:].max() <= 20
    assert picture[142:-142].mean() > 50


def test_a_cut_stands_where_the_truth_says(tmp_path):
    path = tmp_path / "cut.mp4"
    samples._render_film(film("brick_camera_cut.mp4", 4), path)
    pictures = [luma(frame).astype(int) for frame in decode(path)]
    changes = [np.abs(b - a).mean() for a, b in pairwise(pictures)]
    assert len(pictures) == 8 and int(np.argmax(changes)) == 3  # between frames 3 and 4


def test_the_decoder_flags_the_damaged_frames_and_gives_the_others(tmp_path):
    path = tmp_path / "damaged.mp4"
    samples._render_film(replace(film("grass_pan_right_damaged.mp4", 20), damage_frames=(5, 11)), path)
    frames = decode(path)
    assert len(frames) == 20
    assert [index for index, frame in enumerate(frames) if frame.is_corrupt] == [5, 11]


def test_equal_bytes_twice(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        samples._render_film(film("ihc_tilt_down.mp4", 6), tmp_path / folder / "film.mp4")
        render_one("chelsea_too_small.jpg", tmp_path / folder)
    for name in ("film.mp4", "chelsea_too_small.jpg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "chelsea_too_small.jpg").stat().st_mtime == samples.FIXED_TIME_S


def test_an_interrupted_rendering_goes_on_and_a_complete_one_is_left_alone(tmp_path):
    """Files that an earlier run renamed into place stay; the missing ones, the duplicate and the truth are made."""
    missing = {"chelsea_too_small.jpg", "coffee_still.jpg", "coffee_zoom_in_copy.mp4"}
    (tmp_path / ".samples-version").write_text(samples.SAMPLES_VERSION)
    for name in set(NAMES) - missing:
        (tmp_path / name).write_text(f"rendered before: {name}")
    assert not is_complete(tmp_path)
    seen: list[tuple[int, int]] = []
    truth_path = render_samples(tmp_path, lambda done, total, name: seen.append((done, total)))
    assert seen[-1] == (len(NAMES), len(NAMES)) and len(seen) == 3
    assert (tmp_path / "ihc_tilt_down.mp4").read_text() == "rendered before: ihc_tilt_down.mp4"
    assert (tmp_path / "coffee_zoom_in_copy.mp4").read_bytes() == (tmp_path / "coffee_zoom_in.mp4").read_bytes()
    assert cv2.imread(str(tmp_path / "coffee_still.jpg")).shape == (1200, 1800, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*NAMES, "truth.json", ".samples-version"])
    times = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert is_complete(tmp_path) and render_samples(tmp_path) == truth_path
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == times
    (tmp_path / "coffee_still.jpg").write_bytes(b"cut short")
    assert not is_complete(tmp_path)


def test_files_of_another_version_go(tmp_path):
    (tmp_path / "coffee_still.jpg").write_text("of samples/0")
    (tmp_path / "own.mp4").write_text("not ours")
    samples._forget_other_version(tmp_path)
    assert not (tmp_path / "coffee_still.jpg").exists() and (tmp_path / "own.mp4").exists()


def test_the_set_holds_what_the_story_needs(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(b"")
    files = samples.truth(tmp_path)["files"]
    assert json.loads(json.dumps(files)) == files
    shots = [(name, shot) for name, facts in files.items() if facts["media"] == "video" for shot in facts["shots"]]
    assert {shot["camera_move"] for _, shot in shots} == {
        "static", "pan left", "pan right", "tilt up", "tilt down", "zoom in", "zoom out",
    }  # fmt: skip
    below = {name for name, shot in shots if shot["expected_motion"] < 1.1}
    assert below == {"coins_static.mp4", "gravel_slow_pan.mp4"}
    assert all(shot["expected_motion"] < 9 for _, shot in shots)
    assert files["brick_camera_cut.mp4"]["cut_frames"] == [60]
    assert files["coffee_zoom_in_copy.mp4"]["duplicate_of"] == "coffee_zoom_in.mp4"
    assert [name for name, facts in files.items() if facts["damaged"]] == ["grass_pan_right_damaged.mp4"]
    small = [name for name, facts in files.items() if min(facts["width"], facts["height"]) < 1080]
    assert small == ["chelsea_too_small.jpg"]


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot write the samples to"):
        render_samples(tmp_path / "file" / "folder")


def test_no_torch(tmp_path):
    """The command line renders samples in its own process, which must stay light."""
    code = (
        "import sys, pathlib; from curation.samples import render_one;"
        "render_one('chelsea_too_small.jpg', pathlib.Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60, env=os.environ
    )
    assert done.stdout.strip() == "False"
