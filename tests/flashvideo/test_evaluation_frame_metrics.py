"""pyiqa's metrics from random weights by path, without a network; DOVER by a command and by its stand-in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from flashvideo.config import EvaluationConfig
from flashvideo.evaluation.dover import dover_metrics, dover_scores
from flashvideo.evaluation.frame_quality import FrameMetrics
from flashvideo.evaluation.networks.frame_metrics import FILES, build_metric, missing_files
from flashvideo.evaluation.video_metrics import VideoMetrics
from flashvideo.video_files import read_video
from orchestration.doctor import FRAME_WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a test asked for the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def noise(frames: int = 4, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def picture(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def test_musiq_takes_its_weights_by_path(tmp_path: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(0)
    net = MUSIQ(pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / FILES["musiq"].name)
    metrics = FrameMetrics(("musiq",), CPU, tmp_path)
    frames = noise(3)
    with torch.no_grad():
        expected = [float(net(picture(frame))) for frame in frames]
    assert metrics(frames)["musiq"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert metrics(frames, stride=2)["musiq"] == pytest.approx((expected[0] + expected[2]) / 2, rel=1e-5)
    assert metrics.versions["musiq"].startswith("pyiqa 0.1.16 musiq, weights ")
    (tmp_path / FILES["musiq"].name).write_bytes(b"no weights")
    with pytest.raises(ValueError, match="musiq cannot be built"):
        FrameMetrics(("musiq",), CPU, tmp_path)


def test_niqe_takes_its_statistics_by_path(tmp_path: Path) -> None:
    draws = np.random.default_rng(0).normal(size=(200, 36))
    scipy.io.savemat(tmp_path / FILES["niqe"].name, {"mu_prisparam": draws.mean(0)[None], "cov_prisparam": np.cov(draws.T)})
    metric = FrameMetrics(("niqe",), CPU, tmp_path)
    rough, smooth = noise(1, 192, 192), np.full((1, 192, 192, 3), 90, np.uint8) + noise(1, 192, 192) // 32
    assert metric(rough)["niqe"] > 0 and metric(rough) != metric(smooth)


def test_clipiqa_encodes_its_texts_once_and_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiqa.archs.clip_model import CLIP

    torch.manual_seed(0)
    clip = CLIP(16, 64, (1, 1, 1, 1), 4, None, 77, 49408, 64, 1, 1).eval()
    tokens = torch.zeros(1, 77, dtype=torch.long)
    with torch.no_grad():
        torch.jit.trace(clip, (torch.rand(1, 3, 64, 64), tokens), check_trace=False).save(str(tmp_path / FILES["clipiqa"].name))
    metric = build_metric("clipiqa", CPU, tmp_path)
    frames = noise(2, 64, 64)
    with torch.no_grad():
        plain = [float(metric.net.net(picture(frame))) for frame in frames]
        calls = []
        original = metric.net.net.clip_model[0].encode_text
        monkeypatch.setattr(metric.net.net.clip_model[0], "encode_text", lambda texts: calls.append(1) or original(texts))
        ours = [float(metric(picture(frame))) for frame in frames]
    assert ours == pytest.approx(plain, rel=1e-6) and plain[0] != plain[1]
    assert len(calls) == 1


def test_a_missing_file_is_named_and_nothing_is_fetched(tmp_path: Path) -> None:
    for name in ("musiq", "maniqa", "clipiqa", "niqe"):
        with pytest.raises(ValueError, match=f"{name}: .*{FILES[name].name} is missing"):
            FrameMetrics((name,), CPU, tmp_path)
    assert len(missing_files(("musiq", "piqe", "niqe"), None)) == 2
    with pytest.raises(ValueError, match="pyiqa has no metric pique"):
        FrameMetrics(("pique",), CPU)
    assert {name: one.name for name, one in FILES.items()} == FRAME_WEIGHTS


# ---- DOVER


def test_the_stand_in_is_named_and_both_conventions_stand_beside_the_raw_scores() -> None:
    metrics = VideoMetrics(EvaluationConfig(frame_metrics=(), dover="stand_in"), 8, CPU)
    found = metrics(noise())
    raw = found["dover raw aesthetic"], found["dover raw technical"]
    for convention in ("dover_fixed", "dover_master"):
        assert found[f"{convention} technical"] == 100 * dover_scores(*raw, convention).technical
    assert found["dover_fixed overall"] != found["dover_master overall"]
    assert set(metrics.versions) == set(found) and set(metrics.versions.values()) == {"StandInDover, closed form 1"}


def test_a_command_is_given_the_frames_and_gives_raw_scores(tmp_path: Path) -> None:
    program = tmp_path / "dover.py"
    program.write_text(
        "import sys, shutil\nshutil.copy(sys.argv[1], sys.argv[0] + '.mp4')\nprint('loading ...')\nprint('[0.125, -0.0625]')\n"
    )
    config = EvaluationConfig(frame_metrics=(), dover="command", dover_command=(sys.executable, str(program)))
    grey = np.full((4, 32, 48, 3), 128, np.uint8)
    assert VideoMetrics(config, 8, CPU)(grey) == dover_metrics(0.125, -0.0625)
    frames, rate = read_video(Path(f"{program}.mp4"))
    assert rate == 8 and frames.shape == grey.shape and abs(frames.astype(int) - 128).max() <= 1
    program.write_text("raise SystemExit('no weights')")
    with pytest.raises(ValueError, match=r"evaluation.dover_command failed \(no weights; exit code 1\)"):
        VideoMetrics(config, 8, CPU)(grey)
    program.write_text("print('a score')")
    with pytest.raises(ValueError, match="must print"):
        VideoMetrics(config, 8, CPU)(grey)
    with pytest.raises(ValueError, match="dover_command is empty"):
        VideoMetrics(EvaluationConfig(frame_metrics=(), dover="command"), 8, CPU)
