"""DOVER's two conventions: natural videos, the paper's columns, there and back."""

from __future__ import annotations

import math

import pytest

from flashvideo.evaluation.dover import AESTHETIC_SHARE, TECHNICAL_SHARE, dover_raw, dover_scores
from flashvideo.evaluation.published import TABLE_3


def test_the_mean_of_a_branch_is_one_half():
    assert dover_scores(0.1107, -0.08285, "dover_fixed") == (0.5, 0.5, 0.5)
    one_deviation = dover_scores(0.1107 + 0.07355, -0.08285, "dover_fixed")
    assert one_deviation.aesthetic == pytest.approx(1 / (1 + math.exp(-1)))
    assert one_deviation.overall == pytest.approx(1 / (1 + math.exp(-AESTHETIC_SHARE)))
    assert pytest.approx(1) == AESTHETIC_SHARE + TECHNICAL_SHARE


def test_natural_videos_read_as_the_paper_does_in_the_masters_convention():
    natural = dover_scores(0.1105, -0.0827, "dover_master")
    assert natural.technical == pytest.approx(0.067, abs=0.001)
    assert natural.aesthetic == pytest.approx(0.994, abs=0.001)


@pytest.mark.parametrize(
    ("row", "technical", "aesthetic"), [("FlashVideo (4 NFE, 72.2 s)", 77, 42), ("RealBasicVSR (1 NFE, 71.5 s)", 73, 50)]
)
def test_the_papers_columns_in_the_fixed_convention(row, technical, aesthetic):
    printed = TABLE_3[row]
    raw = dover_raw(printed["DOVER technical"] / 100, printed["DOVER aesthetic"] / 100, "dover_master")
    fixed = dover_scores(*raw, "dover_fixed")
    assert (round(100 * fixed.technical), round(100 * fixed.aesthetic)) == (technical, aesthetic)


@pytest.mark.parametrize("convention", ["dover_fixed", "dover_master"])
def test_there_and_back(convention):
    scores = dover_scores(0.2, -0.05, convention)
    assert dover_raw(scores.technical, scores.aesthetic, convention) == pytest.approx((0.2, -0.05))


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="both must be finite"):
        dover_scores(math.nan, 0, "dover_fixed")
    with pytest.raises(ValueError, match="divide percent by 100"):
        dover_raw(11.86, 98.92, "dover_master")
