"""Sweep tables: the paper's rows beside ours, dashes for what is missing, markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from flashvideo.evaluation.results import QualityRow
from flashvideo.evaluation.sweeps import (
    LAYOUTS,
    MISSING,
    SWEEP_NAMES,
    CellTime,
    SweepName,
    SweepResults,
    SweepRow,
    comma_separated,
    markdown,
    published_beside,
    table_of,
)

PAPER_TABLES = Path(__file__).resolve().parents[3] / "shared" / "paper" / "tables.json"


def results(name: SweepName, *rows: SweepRow) -> SweepResults:
    layout = LAYOUTS[name]
    return SweepResults(
        name=name,
        title=layout.title,
        table=layout.table,
        setting=layout.setting,
        inputs="two clips",
        items=("a", "b"),
        rows=rows,
        published={group: dict(table) for group, table in layout.published.items()},
    )


def row(name: SweepName, label: str, reference: bool = False, **metrics: float) -> SweepRow:
    quality = QualityRow(name=label, clips=2, metrics=metrics, gradient=0.1, gradient_ratio=0.5, psnr_db=30.25)
    time = None if reference else CellTime(encode_s=1, sample_s=2, decode_s=3, measure_s=100)
    beside = published_beside(LAYOUTS[name], label)
    return SweepRow(label=label, reference=reference, quality=quality, time=time, protocol={}, protocol_digest="", published=beside)


def cells(found: SweepResults) -> list[dict[str, str]]:
    table = table_of(found)
    return [dict(zip(table.columns, line, strict=True)) for line in table.rows]


def test_the_papers_row_stands_below_ours_and_the_others_at_the_end() -> None:
    lines = cells(results("nfe", row("nfe", "truth", reference=True, musiq=70.0), row("nfe", "3", musiq=50.0, piqe=40.0)))
    assert [(line["NFE"], line["whose"]) for line in lines][:3] == [("truth", "reference"), ("3", "ours"), ("3", "paper")]
    assert [line["NFE"] for line in lines[3:]] == ["1", "2", "4", "5", "6", "7", "8"]
    ours, paper = lines[1], lines[2]
    assert ours["MUSIQ"] == "50" and ours["MANIQA"] == MISSING and ours["DOVER technical"] == MISSING
    assert ours["PSNR, dB"] == "30.25" and ours["sharpness"] == "0.50" and ours["s/video"] == "6.00"  # without the measuring
    assert paper["MUSIQ"] == "57.59" and paper["DOVER aesthetic"] == "98.62" and paper["PSNR, dB"] == MISSING
    assert lines[0]["s/video"] == MISSING


def test_a_value_of_both_groups_of_table_10_gets_both() -> None:
    lines = cells(results("noise", row("noise", "700"), row("noise", "675")))
    assert [(line["noise step"], line["whose"]) for line in lines][:5] == [
        ("700", "ours"),
        ("700", "paper, trained 600-900"),
        ("700", "paper, trained 650-750"),
        ("675", "ours"),
        ("675", "paper, trained 650-750"),
    ]
    assert len(lines) == 2 + 6 + 5


@pytest.mark.parametrize(
    ("name", "label", "niqe"),
    [
        ("stages", "Stage II", 5.38),
        ("enhancers", "ours", 4.501),
        ("resolution", "1440x2560", 4.463),
        ("preference", "before", 4.667),
        ("nfe", "1", 5.148),
        ("guidance", "22", 3.982),
    ],
)
def test_ours_stands_beside_the_right_row(name: SweepName, label: str, niqe: float) -> None:
    assert published_beside(LAYOUTS[name], label)[""]["NIQE"] == niqe


def test_markdown_and_csv_hold_the_same_cells() -> None:
    table = table_of(results("preference", row("preference", "before", niqe=6.0), row("preference", "after", niqe=5.0)))
    read = list(csv.reader(io.StringIO(comma_separated(table))))
    lines = markdown(table).splitlines()
    assert read[0] == list(table.columns) and len(read) == len(lines) - 1 == 5
    for text, line in zip(read[1:], lines[2:], strict=True):
        assert [cell.strip().replace(MISSING, "") for cell in line.split("|")[1:-1]] == text


@pytest.mark.skipif(not PAPER_TABLES.is_file(), reason="the paper's tables are not beside this checkout")
def test_published_rows_are_those_of_the_papers_tables() -> None:
    printed = json.loads(PAPER_TABLES.read_text())
    assert {LAYOUTS[name].table for name in SWEEP_NAMES} == {2, 3, 5, 6, 7, 8, 9, 10}
    for name in SWEEP_NAMES:
        layout = LAYOUTS[name]
        (rows,) = [value for key, value in printed.items() if key.startswith(f"table{layout.table}_")]
        assert (dict(layout.published) if "" not in layout.published else layout.published[""]) == rows
