import logging
from pathlib import Path

import pytest

from flashvideo.training.checkpoints import Checkpoints


def written(checkpoints: Checkpoints, train_step: int) -> Path:
    part = checkpoints.part(train_step)
    part.mkdir(parents=True)
    (part / "weights.pt").write_bytes(bytes([train_step]) * 100)
    return checkpoints.commit(train_step, {"phase": "one"})


def test_the_newest_whole_checkpoint_is_found_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for train_step in (5, 10, 15):
        written(checkpoints, train_step)
    newest = checkpoints.newest()
    assert newest is not None and newest.train_step == 15 and newest.facts == {"phase": "one"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize("damage", ["bytes", "size", "missing", "list"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    written(checkpoints, 5)
    weights = written(checkpoints, 10) / "weights.pt"
    if damage == "bytes":
        weights.write_bytes(bytes([11]) * 100)
    elif damage == "size":
        weights.write_bytes(bytes([10]) * 99)
    elif damage == "missing":
        weights.unlink()
    else:
        (weights.parent / "checkpoint.json").write_text('{"train_step": 10, "fi')
    with caplog.at_level(logging.WARNING):
        newest = checkpoints.newest()
    assert newest is not None and newest.train_step == 5
    assert "step-00000010 is damaged" in caplog.text and "none before it" not in caplog.text


def test_where_no_checkpoint_is_whole_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (written(checkpoints, 5) / "weights.pt").unlink()
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest() is None
    assert f"there is none before it: no checkpoint in {tmp_path} is whole" in caplog.text


def test_a_part_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.part(5).mkdir(parents=True)
    (checkpoints.part(5) / "weights.pt").write_bytes(b"half")
    assert checkpoints.newest() is None
    checkpoints.clear_parts()
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_was_committed_before_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    written(checkpoints, 5)
    written(checkpoints, 5)
    newest = checkpoints.newest()
    assert newest is not None and newest.train_step == 5
