"""Drawn degradations as a table and a contact sheet: equal seeds, branches, DEG_latent, mistakes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trained_root import FULL, finish_training, make_root, moving_texture, small_recipe

from flashvideo.video_files import write_picture, write_video
from pipelines import degrade
from pipelines.degrade import LatentDegrader, Sample, draw_samples, operation_text, parameter_table, read_middle
from pipelines.job import UserError
from pipelines.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return small_recipe(tmp_path)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", moving_texture(5), 24, 4)
    return tmp_path / "clip.mp4"


def drawn(video: Path, recipe: Recipe, **options: Any) -> list[Sample]:
    settings = {"name": video.name, "count": 3, "seed": 0, "share": None, "latent": None} | options
    return draw_samples(read_middle(video, recipe), recipe=recipe, **settings)


def test_equal_seeds_give_equal_pixels_and_another_seed_others(video: Path, recipe: Recipe) -> None:
    first, again, other = (drawn(video, recipe, seed=seed, share=1.0) for seed in (1, 1, 2))
    assert [sample.record for sample in first] == [sample.record for sample in again]
    assert all(np.array_equal(a.frame, b.frame) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a.frame, b.frame) for a, b in zip(first, other, strict=True))


def test_weak_and_strong_are_what_was_asked_for(video: Path, recipe: Recipe) -> None:
    weak, strong = drawn(video, recipe, share=0.0), drawn(video, recipe, share=1.0)
    assert [sample.record["branch"] for sample in weak + strong] == ["weak"] * 3 + ["strong"] * 3
    assert all(len(sample.lines) == 1 and sample.sharpness < 0.6 for sample in weak)
    assert all(len(sample.lines) >= 4 for sample in strong)
    rows = parameter_table(weak + strong).rows
    assert len(rows) == sum(len(sample.lines) for sample in weak + strong) and rows[0][1] == "weak" and rows[3][1] == "strong"


def test_operations_are_said_in_words() -> None:
    blur = {"operation": "blur", "kind": "plateau_iso", "size": 7, "sigma_x": 1.0, "sigma_y": 1.0, "beta": 1.5, "omega": 0.0}
    assert operation_text(blur) == "blur plateau_iso 7 px sigma 1.00 1.00 beta 1.50"
    assert operation_text(blur | {"kind": "sinc", "omega": 2.0}) == "blur sinc 7 px omega 2.00"
    assert operation_text({"operation": "jpeg", "quality": 54.6}) == "jpeg quality 55"
    assert operation_text({"operation": "noise", "kind": "gaussian", "gray": True, "strength": 3.0}) == "noise gaussian gray sigma 3.00"


def command(video: Path, sheet: Path | None, **options: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {"samples": 4, "seed": 0, "weak": False, "strong": False, "recipe": "debug", "overrides": [], "root": None}
    return argparse.Namespace(video=video, sheet=sheet, **(settings | options))


def test_the_sheet_holds_the_clean_frame_and_every_sample(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five tiles in three columns; the first tile is the clean frame."""
    shape = "stage2.phases.preference.shape={frames: 9, height: 64, width: 96}"
    degrade.show_degradations(command(video, tmp_path / "out.png", weak=True, overrides=[shape]))
    said = capsys.readouterr().out
    assert "0 strong, 4 weak" in said and "9 frames of 64x96 px" in said and said.count("resize 0.") == 4
    with Image.open(tmp_path / "out.png") as sheet:
        pixels = np.asarray(sheet)
    height, width = round(64 * degrade.TILE_PX / 96), degrade.TILE_PX + degrade.GAP_PX
    assert pixels.shape[1] == 3 * width + degrade.GAP_PX and pixels.shape[0] > 2 * height
    top = 2 * degrade.GAP_PX + degrade.LINE_PX
    tiles = [pixels[top : top + height, degrade.GAP_PX + place * width :][:, : degrade.TILE_PX].astype(float) for place in range(3)]
    detail = [np.abs(np.diff(tile, axis=1)).mean() for tile in tiles]
    assert detail[0] > 1.5 * max(detail[1:])


def test_a_root_shows_latent_degradation_through_its_autoencoder(tmp_path: Path) -> None:
    workspace = make_root(tmp_path, splits=("train",))
    recipe = small_recipe(tmp_path / "sources")
    with pytest.raises(UserError, match="holds no autoencoder of this recipe"):
        LatentDegrader(recipe, workspace.root)
    finish_training(workspace, recipe)
    latent = LatentDegrader(recipe, workspace.root)
    (sample,) = drawn(tmp_path / "sources" / "clip0.mp4", recipe, count=1, latent=latent)
    assert sample.latent is not None and sample.latent.shape == (FULL.height, FULL.width, 3)
    assert latent.noise_step == 3 and 0.9 < latent.alpha < 1


def test_an_image_is_one_frame(tmp_path: Path, recipe: Recipe) -> None:
    write_picture(tmp_path / "still.png", moving_texture(1)[0])
    assert read_middle(tmp_path / "still.png", recipe).shape == (1, FULL.height, FULL.width, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "--samples 0: give 1 to 64"),
        ({"weak": True, "strong": True}, "exclude each other"),
        ({"sheet": Path("out.jpg")}, r"ends in \.png"),
        ({"video": Path("/nowhere/a.mp4")}, "no such video: /nowhere/a.mp4"),
    ],
)
def test_mistakes_are_one_line(video: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        degrade.show_degradations(command(**({"video": video, "sheet": None} | options)))


def test_a_file_that_is_no_video_is_named(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.mp4 cannot be read"):
        read_middle(tmp_path / "bad.mp4", recipe)
