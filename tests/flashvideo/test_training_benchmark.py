"""The train_step benchmark's command at tiny sizes on the CPU: the same code that times the paper's shapes on a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from flashvideo.config import FrameShape

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("training_gpu")


def test_every_shape_is_trained_at_two_depths_and_extrapolated(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cpu", "--tiny", "--layers", "2", "--runs", "1", "--backend", "FLASH_ATTENTION"]) == 0
    about, header, *rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert "ZeRO-2, bf16 with fp32 AdamW, blocks recomputed; attention FLASH_ATTENTION" in about
    assert header.split()[:3] == ["shape", "layers", "tokens"]
    cells = [row.split() for row in rows]
    shapes, tokens = ["1x64x112", "9x64x112", "9x256x448"], ["124", "180", "1440"]  # 28, 84, 1344, each with 96 of text
    assert [(row[0], row[1], row[2]) for row in cells] == [
        (shape, layers, count) for layers in "124" for shape, count in zip(shapes, tokens, strict=True)
    ]
    assert [row[4] == "extrapolated" for row in cells] == [False] * 6 + [True] * 3
    assert all(float(row[3]) > 0 and float(row[6]) > 0 for row in cells[:6])


def test_whole_depth_lies_on_the_line_through_two(benchmark: ModuleType) -> None:
    """3 s and 10 GiB at 5 layers, 5 s and 14 GiB at 10: 13 s and 30 GiB at 30, where a layer costs 10 TFLOP."""

    def at(layers: int, seconds: float, gib: float) -> object:
        return benchmark.Measured(
            FrameShape(frames=1, height=528, width=960), layers, 2206, seconds, "", 0.0, 10 * layers / seconds, None, gib
        )

    whole = benchmark.extrapolated(at(5, 3.0, 10.0), at(10, 5.0, 14.0), 30, 100.0)
    assert (whole.layers, whole.seconds, whole.peak_gib, whole.spread) == (30, pytest.approx(13), pytest.approx(30), "extrapolated")
    assert whole.teraflops == pytest.approx(300 / 13) and whole.mfu == pytest.approx(3 / 13)
    assert whole.row(30, limited=True)[-2:] == (0.041, f"{13 / 0.041:.2f}")


def test_a_backend_that_is_absent_is_said_a_shape(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--device", "cpu", "--tiny", "--backend", "EFFICIENT_ATTENTION"]) == 0
    assert capsys.readouterr().out.count("4 layers: the attention backend is not available here") == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_one_line_without_a_gpu(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main([]) == 0
    assert capsys.readouterr().out == "no CUDA device\n"


def test_a_depth_outside_the_model_is_one_line(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--device", "cpu", "--tiny", "--layers", "9"])
    assert stopped.value.code == 2 and "--layers must lie in 2..4" in capsys.readouterr().err
