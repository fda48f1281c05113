"""How a command of its own process ends: one line for what is nobody's fault of ours, a traceback for the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flashvideo.models.weight_files import read_tensors
from flashvideo.whole_files import writing
from pipelines.job import UserError, exit_after


def _full_disk(path: Path) -> None:
    with writing(path):
        Path("/dev/full").write_bytes(b"x")


def _mistake(path: Path) -> None:
    raise UserError(f"no such video: {path}")


def _cut_off_weights(path: Path) -> None:
    path.write_bytes(b"\x80" * 64)
    read_tensors(path.parent, path.name)


def _interrupted(path: Path) -> None:
    signal.raise_signal(signal.SIGINT)


def _fault(path: Path) -> None:
    assert path.exists(), "ours"


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (_full_disk, 1, "cannot write {}: No space left on device; the same command goes on from there"),
        (_mistake, 2, "no such video: {}"),
        (_cut_off_weights, 2, "{} is no whole safetensors file (Error while deserializing header: header too large); copy it again"),
        (_interrupted, 130, "stopped; the same command goes on from there"),
        (_fault, 1, None),
    ],
)
def test_what_ends_a_command(
    body: Callable[[Path], None], code: int, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cell.json"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background ignores it
    with pytest.raises(SystemExit) as ended:
        exit_after("flashvideo", lambda: body(path))
    assert ended.value.code == code
    printed = capsys.readouterr().err
    if said is not None:
        assert printed == f"flashvideo: {said.format(path)}\n"
