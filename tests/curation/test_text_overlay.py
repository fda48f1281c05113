"""text_overlay: text that stays in place counts, by a detector that takes white for text; its map's boxes grow as DB's do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from generated_films import moving, write_film

from curation.config import CurationConfig, DecodeConfig, ShotsConfig, TextOverlayConfig
from curation.decode_pass import run_pass
from curation.passes import PassTask
from curation.scores.text_overlay import TextOverlayStep, text_mask, text_overlay_lineage
from curation.step import StepError
from pipelines.recipe import Recipe
from pipelines.score import build_steps, plan_steps

BOX = (slice(270, 300), slice(60, 360))
"""30 x 300 px of white in 352 x 640."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a DB detector's form (a picture in, one map of its size out) whose answer is known: white is text."""
    import torch
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Sigmoid())
    with torch.no_grad():
        net[0].weight.fill_(20.0)
        net[0].bias.fill_(-20.0 * 3 * (245 - 113) / 255)  # 0.5 at luma 245 (the mean is taken off before)
    path = tmp_path_factory.mktemp("detector") / "white.onnx"
    axes = {"x": {2: "height", 3: "width"}, "y": {2: "height", 3: "width"}}
    with pytest.MonkeyPatch.context() as patch:  # the exporter asks for the package onnx to add functions; this network has none
        patch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda model, _: model)
        torch.onnx.export(
            net.eval(), (torch.zeros(1, 3, 32, 32),), str(path), input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False
        )
    return path


def clips_of(folder: Path, films: dict[str, list[np.ndarray]]) -> pa.RecordBatch:
    rows = []
    for name, frames in films.items():
        film = write_film(folder / f"{name}.mp4", frames)
        shots = ShotsConfig(detector="stride", min_duration_s=1.0, clip_duration_s=2.0)
        [clip] = run_pass(PassTask(str(film), name, "video", 24.0, DecodeConfig(), shots, folder)).clips
        rows.append({"clip_id": clip.clip_id, "source_id": name, "start_us": clip.start_us, "end_us": clip.end_us})
    return pa.RecordBatch.from_pylist(rows)


def test_text_that_stays_counts_and_text_that_moves_does_not(detector: Path, tmp_path: Path) -> None:
    dim = [np.clip(frame, 0, 200) for frame in moving(352, 640, 30, (1, 0))]
    burnt, passing = [frame.copy() for frame in dim], [frame.copy() for frame in dim]
    for index, frame in enumerate(burnt):
        frame[BOX] = 255
        passing[index][5 + 10 * index : 35 + 10 * index, 60:360] = 255
    clips = clips_of(tmp_path, {"bare": dim, "burnt": burnt, "passing": passing})
    config = CurationConfig(text_overlay=TextOverlayConfig(detector=str(detector)))
    [step] = build_steps(["text_overlay"], config, tmp_path, "cpu")
    bare, stays, moves = step(clips).column("text_overlay").to_pylist()
    grown = 2 * 30 * 300 / (2 * (30 + 300))  # DB's unclip: area x 2 over the perimeter, on every side
    assert bare == moves == 0
    assert stays == pytest.approx((30 + 2 * grown) * (300 + 2 * grown) / (352 * 640), rel=0.1)


def test_boxes_of_the_map_grow_and_weak_ones_are_left_out() -> None:
    probability = np.zeros((96, 192), np.float32)
    probability[40:50, 40:140] = 0.9
    probability[80:90, 40:140] = 0.4  # text by the pixel, not by the box
    mask = text_mask(probability)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    grown = 2 * 10 * 100 / (2 * 110)
    assert (rows[0], rows[-1]) == pytest.approx((40 - grown, 49 + grown), abs=1)
    assert (columns[0], columns[-1]) == pytest.approx((40 - grown, 139 + grown), abs=1)
    assert not text_mask(np.zeros((32, 32), np.float32)).any()


def test_the_detector_is_named_when_absent_or_no_detector(tmp_path: Path) -> None:
    config = TextOverlayConfig(detector=str(tmp_path / "none.onnx"))
    with pytest.raises(StepError, match=r"text_detection_en_ppocrv3_2023may\.onnx .*none\.onnx does not exist"):
        text_overlay_lineage(config, "run")
    (tmp_path / "none.onnx").write_bytes(b"no network")
    with pytest.raises(StepError, match=r"cannot read .* as a network"):
        TextOverlayStep(config, tmp_path, "run")


def test_it_is_a_step_of_the_job_only_where_a_detector_is_named(detector: Path) -> None:
    recipe = Recipe(name="x").curation.model_copy(update={"motion": CurationConfig().motion.model_copy(update={"raft": False})})
    recipe = recipe.model_copy(update={"aesthetic": recipe.aesthetic.model_copy(update={"laion": False})})
    assert "text_overlay" not in [plan.name for plan in plan_steps(recipe)[0]]
    asked = recipe.model_copy(update={"text_overlay": TextOverlayConfig(detector=str(detector))})
    [plan] = [plan for plan in plan_steps(asked)[0] if plan.name == "text_overlay"]
    assert plan.run_column == "text_overlay_run" and plan.lineage.weights_sha256 is not None


def test_white_is_text_for_the_detector(detector: Path) -> None:
    network = cv2.dnn.readNet(str(detector))
    picture = np.full((64, 96, 3), 200, np.uint8)
    picture[:32] = 255
    network.setInput(cv2.dnn.blobFromImage(picture, 1 / 255, (96, 64), (122.67891434, 116.66876762, 104.00698793), swapRB=True))
    found = network.forward()
    assert found.shape == (1, 1, 64, 96) and found[0, 0, :32].min() > 0.8 and found[0, 0, 32:].max() < 0.1
