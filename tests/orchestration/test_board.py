"""The progress lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.board import Board, Line, clock


def test_a_line_tells_done_rate_and_time_left(tmp_path: Path):
    file = tmp_path / "score.progress.json"
    facts = {"job": "score", "done": 30, "total": 120, "unit": "clips", "rate": 3.0, "left_s": 30.0, "note": "motion"}
    file.write_text(json.dumps(facts))
    line = Line("score", "running", file)
    line.look()
    assert line.work() == "30/120 clips, 3.0/s, 0:30 left, motion"
    file.write_text(json.dumps({**facts, "rate": 0.25}))
    line.look()
    assert "4.0 s each" in line.work()


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]):
    board = Board(["ingest", "score"], "curate")
    board.open()
    board.end("ingest", "was done")
    board.begin("score")
    board.end("score", "failed")
    board.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ingest: was done"
    assert lines[1] == "score: started"
    assert lines[2].startswith("score: failed")


def test_the_clock():
    assert [clock(seconds) for seconds in (0.4, 61, 3599.6, 7384)] == ["0:00", "1:01", "1:00:00", "2:03:04"]
