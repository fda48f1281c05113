"""Enhancing a user's videos: windows, files, resuming, mistakes. Real models at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_root import FULL, finish_training, make_root, moving_texture, small_recipe

from flashvideo.video_files import read_video, write_video
from pipelines.artifacts import Workspace
from pipelines.enhance import Window, enhance, output_names, windows
from pipelines.job import UserError
from pipelines.recipe import Recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe]:
    folder = tmp_path_factory.mktemp("enhance")
    workspace = make_root(folder, splits=("train",))
    recipe = small_recipe(folder / "sources")
    finish_training(workspace, recipe)
    return workspace, recipe


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (1, 9, [Window(0, 1, 1)]),
        (8, 9, [Window(0, 9, 8)]),
        (3, 5, [Window(0, 5, 3)]),
        (2, 17, [Window(0, 9, 2)]),
        (16, 17, [Window(0, 17, 16)]),
        (9, 9, [Window(0, 9, 9)]),
        (18, 9, [Window(0, 9, 9), Window(9, 9, 9)]),
        (20, 9, [Window(0, 9, 9), Window(9, 9, 9), Window(11, 9, 2)]),
    ],
)
def test_windows_cover_every_frame_once(count: int, size: int, expected: list[Window]) -> None:
    assert windows(count, size) == expected


def test_a_video_is_enhanced_whole_and_only_once(trained: tuple[Workspace, Recipe], tmp_path: Path) -> None:
    workspace, recipe = trained
    video = tmp_path / "mine.mp4"
    write_video(video, moving_texture(7, frames=36), 24, 4)  # 1.5 s: 12 frames at 8 Hz, two windows
    assert enhance(recipe, workspace, [video], "blocks", tmp_path / "out") == []
    frames, rate = read_video(tmp_path / "out" / "mine.enhanced.mp4")
    assert frames.shape == (12, FULL.height, FULL.width, 3) and rate == 8
    assert read_video(tmp_path / "out" / "mine.beside.mp4")[0].shape == (12, FULL.height, 2 * FULL.width + 4, 3)
    manifest = json.loads((tmp_path / "out" / "enhance.json").read_text())
    assert len(set(manifest["videos"]["mine"]["seeds"])) == 2  # one a window, recorded
    assert manifest["videos"]["mine"]["frames"] == 12 and "stand-in" in manifest["models"]["vae"]
    assert not list((tmp_path / "out").glob(".*"))  # no parts left
    before = (tmp_path / "out" / "mine.enhanced.mp4").stat().st_mtime_ns
    assert enhance(recipe, workspace, [video], "blocks", tmp_path / "out") == []
    assert (tmp_path / "out" / "mine.enhanced.mp4").stat().st_mtime_ns == before
    assert enhance(recipe, workspace, [video], "other words", tmp_path / "out") == []
    assert (tmp_path / "out" / "mine.enhanced.mp4").stat().st_mtime_ns > before


def test_a_finished_window_is_not_enhanced_again(
    trained: tuple[Workspace, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.enhance as module

    workspace, recipe = trained
    video = tmp_path / "mine.mp4"
    write_video(video, moving_texture(7, frames=36), 24, 4)
    enhance_window, calls = module._enhance_window, []

    def dies_at_the_second(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return enhance_window(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_enhance_window", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        enhance(recipe, workspace, [video], "blocks", tmp_path / "out")
    assert enhance(recipe, workspace, [video], "blocks", tmp_path / "out") == []
    assert len(calls) == 3  # first window; second, killed; second
    frames, _ = read_video(tmp_path / "out" / "mine.enhanced.mp4")
    assert len(frames) == 12


def test_an_unreadable_video_is_named_and_the_others_are_done(trained: tuple[Workspace, Recipe], tmp_path: Path) -> None:
    workspace, recipe = trained
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    write_video(good, moving_texture(8), 24, 4)
    bad.write_bytes(b"nothing")
    failed = enhance(recipe, workspace, [bad, tmp_path / "absent.mp4", good], "blocks", tmp_path / "out")
    assert len(failed) == 2 and "bad.mp4" in failed[0] and "absent.mp4" in failed[1]
    assert (tmp_path / "out" / "good.enhanced.mp4").is_file()


def test_an_untrained_root_is_a_mistake(trained: tuple[Workspace, Recipe], tmp_path: Path) -> None:
    _, recipe = trained
    with pytest.raises(UserError, match="there is no Stage II; run: flashvideo train stage2"):
        enhance(recipe, Workspace(tmp_path / "empty"), [tmp_path / "a.mp4"], "blocks", tmp_path / "out")


def test_a_finished_stage2_of_a_moved_root_goes_by_its_fingerprint(trained: tuple[Workspace, Recipe], tmp_path: Path) -> None:
    """With a shorter video than a window: nothing of it is left out."""
    workspace, recipe = trained
    other = recipe.model_copy(update={"seed": recipe.seed + 1})
    video = tmp_path / "mine.mp4"
    write_video(video, moving_texture(8, frames=8), 8, 4)
    (name,) = [path.parent.name for path in (workspace.root / "artifacts" / "train_stage2").glob("*/report.json")]
    with pytest.raises(UserError, match=f"there is no Stage II.*--stage2 {name}"):
        enhance(other, workspace, [video], "blocks", tmp_path / "out")
    assert enhance(other, workspace, [video], "blocks", tmp_path / "out", name) == []
    assert len(read_video(tmp_path / "out" / "mine.enhanced.mp4")[0]) == 8
    with pytest.raises(UserError, match="train_stage2 is not finished"):
        enhance(other, workspace, [video], "blocks", tmp_path / "out", "0123456789abcdef")


def test_equal_stems_get_different_names() -> None:
    names = output_names([Path("/a/x.mp4"), Path("/b/x.mp4"), Path("/b/y.mp4")])
    assert names[2] == "y" and len(set(names)) == 3 and names[0].startswith("x-")


def test_a_file_that_cannot_be_written_ends_the_command_and_blames_no_video(trained: tuple[Workspace, Recipe], tmp_path: Path) -> None:
    workspace, recipe = trained
    video = tmp_path / "mine.mp4"
    write_video(video, moving_texture(7, frames=9), 8, 4)
    (tmp_path / "out" / "mine.enhanced.mp4").mkdir(parents=True)  # a file cannot be renamed over a folder
    with pytest.raises(IsADirectoryError):
        enhance(recipe, workspace, [video], "blocks", tmp_path / "out")
