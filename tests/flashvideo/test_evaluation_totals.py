"""VBench's totals: the paper's table, repairs, missing dimensions, files of other shapes, user's mistakes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flashvideo.evaluation.published import TABLE_1
from flashvideo.evaluation.totals import (
    DIMENSIONS,
    NORMALISE,
    QUALITY_DIMENSIONS,
    SEMANTIC_DIMENSIONS,
    WEIGHT,
    TotalsError,
    main,
    normalise,
    read_rows,
    repaired_value,
    report_rows,
    totals,
)

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
TABLES = SHARED / "paper" / "tables.json"
CONSTANTS = SHARED / "vbench" / "vbench_constants.json"


def fractions(model: str) -> dict[str, float]:
    row = next(row for row in TABLE_1 if row.model == model)
    return {name: value / 100 for name, value in row.dimensions.items()}


def test_ten_of_eleven_published_rows_follow_from_their_dimensions() -> None:
    off = []
    for row in TABLE_1:
        scores = totals(fractions(row.model))
        pairs = ((scores.total, row.total), (scores.quality, row.quality), (scores.semantic, row.semantic))
        if any(computed is None or abs(computed - printed) > 0.01 for computed, printed in pairs):
            off.append(row.model)
    assert len(TABLE_1) == 11
    assert off == ["CogVideoX-2B"]


def test_cogvideox_2b_is_repaired_by_motion_smoothness_97_73() -> None:
    scores = fractions("CogVideoX-2B")
    value = repaired_value("motion_smoothness", scores, 82.18)
    assert round(value, 2) == 97.73
    scores["motion_smoothness"] = 0.9773
    repaired = totals(scores)
    assert repaired.quality == pytest.approx(82.1802, abs=5e-5)
    assert repaired.semantic == pytest.approx(75.8330, abs=5e-5)
    assert repaired.total == pytest.approx(80.9108, abs=5e-5)


def test_ends_of_every_range_give_0_and_100() -> None:
    assert totals({name: NORMALISE[name][0] for name in DIMENSIONS}).total == pytest.approx(0)
    assert totals({name: NORMALISE[name][1] for name in DIMENSIONS}).total == pytest.approx(100)
    assert normalise("scene", 1.0) == pytest.approx(1 / 0.8222)  # not clipped


def test_dynamic_degree_weighs_half() -> None:
    base = dict.fromkeys(DIMENSIONS, 0.5)
    moved = base | {"dynamic_degree": 0.6}
    before, after = totals(base), totals(moved)
    assert before.total is not None and after.total is not None
    assert after.total - before.total == pytest.approx(100 * 0.8 * 0.5 * 0.1 / 6.5)


def test_missing_dimensions_are_named_and_the_total_is_absent() -> None:
    scores = totals({"temporal_flickering": 0.98})
    assert scores.total is None and scores.quality is None and scores.semantic is None
    assert len(scores.missing) == 15 and "temporal_flickering" not in scores.missing
    by_hand = 0.8 * 100 * (0.98 - 0.6293) / (1 - 0.6293) / 6.5
    assert scores.reference_total == pytest.approx(by_hand)


def test_one_complete_group_keeps_its_score() -> None:
    scores = totals({name: NORMALISE[name][1] for name in SEMANTIC_DIMENSIONS})
    assert scores.semantic == pytest.approx(100) and scores.quality is None and set(scores.missing) == set(QUALITY_DIMENSIONS)


def test_an_unknown_dimension_is_named() -> None:
    with pytest.raises(TotalsError, match="motion_smothness"):
        totals({"motion_smothness": 0.9})


def test_eval_results_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "mine_eval_results.json"
    path.write_text('{"temporal_flickering": [0.97, [{"video_path": "a.mp4", "video_results": 0.97}]], "scene": [NaN, []]}')
    rows, left_out = read_rows(path)
    assert [row.name for row in rows] == ["mine_eval_results"] and not left_out
    assert rows[0].scores == {"temporal_flickering": 0.97}
    assert "scene" in rows[0].notes[0] and "missing" in rows[0].notes[0]


def test_percent_and_fractions_give_the_same_row(tmp_path: Path) -> None:
    row = TABLE_1[0]
    percent, fraction = tmp_path / "percent.json", tmp_path / "fraction.json"
    percent.write_text(json.dumps(row.dimensions))
    fraction.write_text(json.dumps(fractions(row.model)))
    results = [report_rows(read_rows(path)[0])[0].totals.total for path in (percent, fraction)]
    assert results[0] == pytest.approx(results[1]) and results[0] == pytest.approx(row.total, abs=0.01)


def test_scores_in_0_to_1_may_stand_beside_a_total_in_percent(tmp_path: Path) -> None:
    row = TABLE_1[0]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(fractions(row.model) | {"total": row.total, "semantic": row.semantic}))
    assert report_rows(read_rows(path)[0])[0].consistent


def test_a_leaderboards_zip_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = TABLE_1[0]
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("a/mine_eval_results.json", json.dumps({name: [value, []] for name, value in fractions(row.model).items()}))
    assert main([str(tmp_path / "mine.zip")]) == 0
    assert re.search(r"mine +83\.24 +85\.09 +75\.82", capsys.readouterr().out)
    (tmp_path / "none.zip").write_bytes(b"no zip")
    assert main([str(tmp_path / "none.zip")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not TABLES.is_file(), reason="shared/paper/tables.json is absent")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m flashvideo.evaluation.totals {TABLES} --format json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_an_off_row_without_a_copied_value_is_repaired_by_the_smallest_change(tmp_path: Path) -> None:
    row = TABLE_1[0]
    path = tmp_path / "table.json"
    wrong = row.dimensions | {"motion_smoothness": row.dimensions["motion_smoothness"] - 1}
    path.write_text(json.dumps({"rows": {"mine": wrong | {"total": row.total, "quality": row.quality, "semantic": row.semantic}}}))
    report = report_rows(read_rows(path)[0])[0]
    assert report.consistent is False
    best = report.repairs[0]
    assert best.dimension == "motion_smoothness" and not best.equals_neighbour
    assert best.repaired == pytest.approx(row.dimensions["motion_smoothness"], abs=0.05)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not valid JSON"), ('{"MUSIQ": 3}', "holds no VBench row"), ('{"scene": 50, "MUSIQ": 3}', "MUSIQ")]
)
def test_mistakes_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_missing_file_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing.json")]) == 2
    assert "nothing.json" in capsys.readouterr().err


@pytest.mark.skipif(not TABLES.is_file(), reason="shared/paper/tables.json is absent")
def test_the_command_on_the_papers_tables() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "flashvideo.evaluation.totals", str(TABLES), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert " torch" not in done.stderr  # stays light
    rows = {row["row"]: row for row in json.loads(done.stdout)["rows"]}
    assert len(rows) == 11
    assert [name for name, row in rows.items() if not row["consistent"]] == ["CogVideoX-2B"]
    best = rows["CogVideoX-2B"]["repairs"][0]
    assert best["dimension"] == "motion_smoothness" and round(best["repaired"], 2) == 97.73 and best["equals_neighbour"]


@pytest.mark.skipif(not TABLES.is_file(), reason="shared/paper/tables.json is absent")
def test_published_rows_are_typed_as_printed() -> None:
    printed = json.loads(TABLES.read_text())["table1_vbench_long"]["rows"]
    typed = {
        row.model: {"total": row.total, "quality": row.quality, "semantic": row.semantic}
        | {name.replace("_", " "): value for name, value in row.dimensions.items()}
        for row in TABLE_1
    }
    assert typed == printed


@pytest.mark.skipif(not CONSTANTS.is_file(), reason="shared/vbench/vbench_constants.json is absent")
def test_constants_are_the_references() -> None:
    constants = json.loads(CONSTANTS.read_text())
    assert {name: list(limits) for name, limits in NORMALISE.items()} == constants["normalise"]
    assert constants["weight"] == WEIGHT
    assert set(constants["quality"]) == set(QUALITY_DIMENSIONS) and set(constants["semantic"]) == set(SEMANTIC_DIMENSIONS)
    assert not any(math.isclose(low, high) for low, high in NORMALISE.values())
