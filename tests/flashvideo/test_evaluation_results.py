"""Rows, gates and the verdict of an evaluation."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from flashvideo.config import EvaluationConfig
from flashvideo.evaluation.results import (
    DimensionScore,
    Gate,
    QualityRow,
    dimension_totals,
    enhancement_gates,
    judge,
    learning_gates,
    mean_row,
    published_rows,
    verdict,
)


def row(name: str, ratio: float | None = None, psnr: float | None = None, gradient: float = 0.02) -> QualityRow:
    return QualityRow(name=name, clips=1, metrics={"piqe": 30.0}, gradient=gradient, gradient_ratio=ratio, psnr_db=psnr)


def gates_for(enhanced: QualityRow, untrained: QualityRow) -> list[Gate]:
    rows = {"input": row("input", 0.66, 27.0), "enhanced": enhanced, "untrained": untrained}
    return enhancement_gates(rows, EvaluationConfig())


def test_a_sharp_and_faithful_model_passes_and_noise_does_not() -> None:
    gates = gates_for(row("enhanced", 1.02, 25.1), row("untrained", 3.4, 14.0))
    assert [(gate.subject, gate.passed, gate.control) for gate in gates] == [
        ("Stage II, trained", True, False),
        ("Stage II, trained", True, False),
        ("Stage II, untrained", False, True),
        ("Stage II, untrained", False, True),
    ]
    assert verdict(tuple(gates)) == "2 of 2 pass; the untrained control fails sharpness over truth's, PSNR to truth"


@pytest.mark.parametrize(
    ("ratio", "passed"), [(0.85, True), (0.849, False), (1.25, True), (1.251, False), (None, False), (math.nan, False)]
)
def test_the_band_is_inclusive_and_unknown_fails(ratio: float | None, passed: bool) -> None:
    assert gates_for(row("enhanced", ratio, 25.0), row("untrained", 3.0, 14.0))[0].passed is passed


@pytest.mark.parametrize(("psnr", "passed"), [(24.0, True), (23.99, False)])
def test_psnr_may_fall_by_the_margin(psnr: float, passed: bool) -> None:
    assert gates_for(row("enhanced", 1.0, psnr), row("untrained", 3.0, 14.0))[1].passed is passed


def test_a_control_that_passes_is_called_out() -> None:
    gates = gates_for(row("enhanced", 0.7, 25.0), row("untrained", 1.0, 25.0))
    text = verdict(tuple(gates))
    assert "1 of 2 pass; FAILED: sharpness over truth's (Stage II, trained)" in text and "CONTROL PASSES" in text


def test_learning_gates_need_a_fall_of_the_stated_share() -> None:
    gates = learning_gates({"before": 1.0, "after": 0.69}, {"before": 2.0, "after": 1.01})
    assert [(gate.subject, gate.passed) for gate in gates] == [("Stage I", True), ("Stage II", False)]
    assert gates[0].value == pytest.approx(0.31) and gates[1].value == pytest.approx(0.495)
    unknown = learning_gates(None, {"before": 2.0, "after": 0.9})
    assert unknown[0].value is None and not unknown[0].passed and unknown[1].passed


def test_limits_in_words() -> None:
    assert judge("a", "b", 1.0, at_least=0.85, at_most=1.25).limits == "0.85 to 1.25"
    assert judge("a", "b", 1.0, at_least=0.5).limits == "at least 0.5"
    assert judge("a", "b", 1.0, at_most=3).limits == "at most 3"


def test_means_over_clips() -> None:
    mean = mean_row("enhanced", [row("enhanced", psnr=20.0, gradient=0.01), row("enhanced", psnr=30.0, gradient=0.03)], truth_gradient=0.04)
    assert mean.clips == 2 and mean.psnr_db == 25 and mean.gradient == pytest.approx(0.02) and mean.gradient_ratio == pytest.approx(0.5)
    assert mean.metrics == {"piqe": 30.0}
    assert mean_row("truth", [row("truth")]).gradient_ratio is None


def test_totals_of_what_ran_name_what_is_missing() -> None:
    scores = dimension_totals((DimensionScore(dimension="temporal_flickering", score=0.97, videos=4),))
    assert scores.total is None and len(scores.missing) == 15


def test_results_are_strict() -> None:
    with pytest.raises(ValidationError, match="extra"):
        QualityRow.model_validate({"name": "a", "clips": 1, "metrics": {}, "gradient": 0.1, "sharpness": 1})


def test_the_papers_rows_travel_with_the_results() -> None:
    rows = published_rows()
    assert len(rows["table_1"]) == 11 and rows["table_2"]["Stage II 1080p (4 NFE, 72.2 s)"]["NIQE"] == 5.38
