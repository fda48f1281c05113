"""The page of a sweep: the table's rows by whose they are, a plot a metric, pictures inlined, nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestration.charts import Curve, Limit, marked
from orchestration.sweep_report import build_sweep_page, charts_of


def row(label: str, value: float | None, psnr: float | None, reference: bool = False) -> dict[str, Any]:
    quality = {"name": label, "clips": 1, "metrics": {"niqe": 5.0}, "gradient": 0.1, "gradient_ratio": 0.5, "psnr_db": psnr}
    time = None if reference else {"encode_s": 1.0, "sample_s": 2.0, "decode_s": 0.5, "measure_s": 9.0}
    return {
        "label": label,
        "value": value,
        "reference": reference,
        "quality": quality,
        "time": time,
        "protocol_digest": label,
        "protocol": {"kind": label},
    }


def results() -> dict[str, Any]:
    return {
        "title": "Function evaluations", "table": 8, "setting": "NFE", "inputs": "1 held-out clip", "models": {"vae": "a stand-in"},
        "notes": ["a <b>note</b>"], "source": "the paper", "published": {"": {"1": {"NIQE": 5.148}, "2": {"NIQE": 4.73}}},
        "rows": [row("input", None, 20.0, reference=True), row("1", 1, 21.0), row("2", 2, 22.0)],
        "metric_names": {"niqe": "NIQE"},
        "strips": [{"item": "a", "about": "a clip", "frame": 4, "tiles": [["input", "../cells/a.png"], ["gone", "../cells/b.png"]]}],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run" / "sweep" / "nfe"
    made.mkdir(parents=True)
    (made.parent / "cells").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(made.parent / "cells" / "a.png")
    (made / "results.json").write_text(json.dumps(results()))
    (made / "table.csv").write_text("NFE,whose,NIQE\ninput,reference,\n1,ours,5\n1,paper,5.148\n")
    return made


def test_the_page_is_whole_and_self_contained(folder: Path) -> None:
    page = build_sweep_page(folder).read_text()
    assert "Function evaluations · run" in page and "Table 8" in page
    assert re.findall(r'<tr class="(\w+)">', page) == ["reference", "ours", "paper"]
    assert page.count("data:image/jpeg;base64,") == 1 and "gone" not in page
    assert "a &lt;b&gt;note" in page and not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<svg") == 4  # NIQE, PSNR, sharpness, seconds


def test_the_papers_curve_stands_in_the_plot_of_its_metric_only() -> None:
    charts = {chart.title: str(chart.svg) for chart in charts_of(results())}
    assert "paper" in charts["NIQE"] and "paper, NFE 2: 4.73" in charts["NIQE"]
    assert not any("paper" in svg for title, svg in charts.items() if title != "NIQE")
    assert "ours, NFE 2: 3.5" in charts["enhancing, s a video"]  # without the measuring
    assert ">input</text>" in charts["PSNR to truth, dB"]


def test_one_value_is_no_plot() -> None:
    assert charts_of(results() | {"rows": results()["rows"][:2]}) == []


def test_marks_lie_where_the_values_are() -> None:
    """Higher values higher up, equal steps equally far, the level between them."""
    svg = marked([Curve("ours", (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))], "NFE", "y", [Limit(20.0, "truth")])
    marks = [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert marks[0][1] > marks[1][1] > marks[2][1]
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.11)
    level = re.search(r'class="limit" x1="\d+" x2="\d+" y1="([\d.]+)"', svg)
    assert level is not None and float(level.group(1)) == pytest.approx(marks[1][1], abs=0.11)
    with pytest.raises(ValueError, match="at least one finite point"):
        marked([Curve("ours", (1.0,), (float("nan"),))], "x", "y")
