"""Health, aesthetic proxy, LAION's head, CLIP embedding and pyiqa on tracks of generated films."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from generated_films import moving, texture, write_film

from curation.config import AestheticConfig, DecodeConfig, QualityConfig, ShotsConfig
from curation.decode_pass import run_pass
from curation.passes import PassTask
from curation.schema import EMBEDDING_WIDTH
from curation.scores.aesthetic import AestheticProxyStep, AestheticStep, aesthetic_proxy, colourfulness, head_weights, load_head
from curation.scores.embedding import EmbeddingStep, clip_weights
from curation.scores.frame_embeddings import read_frame_embeddings, write_frame_embeddings
from curation.scores.health import HealthStep
from curation.scores.metric_files import METRIC_FILES
from curation.scores.quality import QualityStep, quality_fields, quality_lineage, spread
from curation.step import StepError

CLIP = ShotsConfig(min_duration_s=1.125, clip_duration_s=1.25)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracks")


@pytest.fixture(scope="module")
def clips(tracks: Path) -> pa.RecordBatch:
    """Two clips: a moving texture with bars of 20 px; three quarters of black, then grey."""
    barred = [cv2.copyMakeBorder(frame, 20, 20, 0, 0, cv2.BORDER_CONSTANT) for frame in moving(180, 320, 30, (2, 0))]
    dark = [np.full((180, 320, 3), 0 if index < 24 else 120, np.uint8) for index in range(32)]
    rows = []
    for name, frames in (("barred", barred), ("dark", dark)):
        film = write_film(tracks / f"{name}.mp4", frames)
        config = ShotsConfig(detector="stride", min_duration_s=1.125, clip_duration_s=2.0)
        found = run_pass(PassTask(str(film), name, "video", 24.0, DecodeConfig(), config, tracks))
        rows += [{"clip_id": c.clip_id, "source_id": name, "start_us": c.start_us, "end_us": c.end_us} for c in found.clips]
    return pa.RecordBatch.from_pylist(rows)


def test_health(clips: pa.RecordBatch, tracks: Path) -> None:
    barred, dark = HealthStep(tracks, "run")(clips).to_pylist()
    assert (barred["letterbox_top_px"], barred["letterbox_bottom_px"]) == (20, 20)
    assert (barred["letterbox_left_px"], barred["letterbox_right_px"]) == (0, 0)
    assert (barred["repeated_ratio"], barred["black_ratio"], barred["corrupt_frames"]) == (0.0, 0.0, 0)
    assert len(barred["perceptual_hash"].split()) == 5
    assert dark["black_ratio"] == pytest.approx(24 / 32)
    assert dark["luma_mean"] == pytest.approx(120 * 8 / 32, abs=2)
    assert dark["repeated_ratio"] == pytest.approx(30 / 31)
    assert dark["blur"] < 1 < barred["blur"]


def test_aesthetic_proxy_prefers_colour_detail_and_light() -> None:
    picture = texture(360, 640, 1)
    grey = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    blurred = cv2.GaussianBlur(picture, (0, 0), 6)
    score = aesthetic_proxy(picture)
    assert score > aesthetic_proxy(grey)
    assert score > aesthetic_proxy(blurred)
    assert score > aesthetic_proxy((picture * 0.2).astype(np.uint8))
    assert aesthetic_proxy(np.zeros((360, 640, 3), np.uint8)) == pytest.approx(1.0)
    assert 1 <= score <= 10


def test_colourfulness_of_grey_is_zero_and_of_pure_colour_by_hand() -> None:
    assert colourfulness(np.full((8, 8, 3), 90, np.uint8)) == 0
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200  # rg = 200, yb = 100, no spread: 0.3 x hypot(200, 100)
    assert colourfulness(red) == pytest.approx(0.3 * np.hypot(200, 100))


def test_aesthetic_proxy_leaves_the_bars_out(clips: pa.RecordBatch, tracks: Path) -> None:
    scores = AestheticProxyStep(tracks, "run")(clips).column("aesthetic_proxy").to_pylist()
    [inside] = moving(180, 320, 1)
    assert scores[0] == pytest.approx(aesthetic_proxy(inside), abs=0.5)
    assert scores[0] > scores[1]


def test_laion_head_is_one_affine_map(tmp_path: Path) -> None:
    """Five linear layers with random weights: the folded map gives what the layers give."""
    import torch

    torch.manual_seed(0)
    sizes = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    layers = {index: torch.nn.Linear(*size) for index, size in zip((0, 2, 4, 6, 7), sizes, strict=True)}
    state = {f"layers.{i}.{name}": value for i, layer in layers.items() for name, value in layer.state_dict().items()}
    path = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(state, path)
    vectors = torch.nn.functional.normalize(torch.randn(3, EMBEDDING_WIDTH), dim=-1).half()
    expected = vectors.float()
    for layer in layers.values():
        expected = layer(expected)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().reshape(-1)), EMBEDDING_WIDTH)
    batch = pa.RecordBatch.from_arrays([pa.array(["a", "b", "c"]), column], names=["clip_id", "embedding"])
    step = AestheticStep(AestheticConfig(laion=True, head_weights=str(path)), tmp_path, "embedding-run")
    write_frame_embeddings(tmp_path, "b", vectors.numpy())  # b's key frames: all three
    found = step(batch)
    assert np.allclose(found.column("aesthetic").to_numpy(), expected.detach().numpy()[:, 0], atol=1e-4)
    assert found.column("aesthetic_min").to_pylist() == [None, pytest.approx(float(expected.detach().min()), abs=1e-4), None]
    torch.save({"layers.0.weight": torch.zeros(4, 4), "layers.0.bias": torch.zeros(4)}, path)
    with pytest.raises(StepError, match="768 -> 1"):
        load_head(path)


def test_embedding_with_a_random_network_of_the_true_form(clips: pa.RecordBatch, tracks: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=56,
                              projection_dim=EMBEDDING_WIDTH)  # fmt: skip
    network = CLIPVisionModelWithProjection(config), CLIPImageProcessor()
    output = EmbeddingStep(AestheticConfig(laion=True), tracks, "run", "cpu", network=network)(clips)
    vectors = np.asarray(output.column("embedding").flatten(), np.float32).reshape(2, EMBEDDING_WIDTH)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    frames = read_frame_embeddings(tracks, clips.column("clip_id")[0].as_py())
    assert frames is not None and np.allclose(np.linalg.norm(frames, axis=1), 1, atol=2e-3)
    assert np.allclose(frames.mean(axis=0) / np.linalg.norm(frames.mean(axis=0)), vectors[0], atol=2e-3)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="clip-vit-large-patch14"):
        clip_weights(AestheticConfig(laion=True, clip_weights=str(tmp_path)))
    with pytest.raises(StepError, match=r"sac\+logos\+ava1-l14-linearMSE\.pth"):
        head_weights(AestheticConfig(laion=True))


def test_piqe_tells_a_damaged_picture_from_a_good_one(tmp_path: Path) -> None:
    """Lower is better: heavy JPEG blocks score worse than the same film without them."""
    good = list(moving(192, 320, 30, (1, 0)))
    bad = [cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 6])[1], cv2.IMREAD_COLOR) for frame in good]
    rows = []
    for name, frames in (("good", good), ("bad", bad)):
        film = write_film(tmp_path / f"{name}.mp4", frames)
        [clip] = run_pass(PassTask(str(film), name, "video", 24.0, DecodeConfig(), CLIP, tmp_path)).clips
        rows.append({"clip_id": clip.clip_id, "source_id": name, "start_us": clip.start_us, "end_us": clip.end_us})
    step = QualityStep("piqe", QualityConfig(max_frames=1), tmp_path, "run", "cpu")
    good_score, bad_score = step(pa.RecordBatch.from_pylist(rows)).column("piqe").to_pylist()
    assert good_score < bad_score - 5


def test_an_unknown_metric_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no column 'brisque'"):
        QualityStep("brisque", QualityConfig(), tmp_path, "run", "cpu")


def test_frames_are_spread_evenly() -> None:
    pictures = [np.full(1, index) for index in range(5)]
    assert [int(p[0]) for p in spread(pictures, 1)] == [2]
    assert [int(p[0]) for p in spread(pictures, 2)] == [1, 3]
    assert [int(p[0]) for p in spread(pictures, 9)] == [0, 1, 2, 3, 4]


def test_musiq_by_path_scores_a_clip_and_is_recorded_with_its_hash(clips: pa.RecordBatch, tracks: Path, tmp_path: Path) -> None:
    """The true network with random weights, through the job's own way of making the step; another file is another lineage."""
    import torch
    from pyiqa.archs.musiq_arch import MUSIQ

    from curation.config import CurationConfig
    from pipelines.score import build_steps

    config = CurationConfig(quality=QualityConfig(metrics=("musiq",), max_frames=1, weights=str(tmp_path)))
    with pytest.raises(StepError, match=r"musiq_koniq_ckpt-e95806b9\.pth, which does not exist"):
        quality_lineage("musiq", config.quality, "run")
    torch.manual_seed(0)
    torch.save(MUSIQ(pretrained=False).state_dict(), tmp_path / METRIC_FILES["musiq"])
    [step] = build_steps(["musiq"], config, tracks, "cpu")
    assert all(np.isfinite(step(clips.slice(0, 1)).column("musiq").to_numpy()))
    assert step.lineage.weights_sha256 is not None
    (tmp_path / METRIC_FILES["musiq"]).write_bytes(b"other")
    assert quality_lineage("musiq", config.quality, "run").run_id != step.lineage.run_id


def test_every_metric_of_the_paper_has_a_column_and_its_file_a_name() -> None:
    from flashvideo.evaluation.networks.frame_metrics import FILES

    assert all(quality_fields(metric).names == [metric, f"{metric}_run"] for metric in ("piqe", "musiq", "clipiqa", "maniqa", "niqe"))
    assert {name: weights.name for name, weights in FILES.items()} == METRIC_FILES
