"""Scalars at Weights & Biases: one run over restarts, no server, no package. The real package, offline."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashvideo.config import WatchConfig
from flashvideo.training.scalars import RUN_FILE, Scalars
from orchestration.doctor import examine
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.ranks import RankRequest, start_ranks
from pipelines.recipe import Recipe, load

INSTALLED = find_spec("wandb") is not None
with_wandb = pytest.mark.skipif(not INSTALLED, reason="the optional package wandb is not installed (extra `wandb` of pyproject.toml)")
without_wandb = pytest.mark.skipif(INSTALLED, reason="wandb is installed here")
ABOUT = {"stage": 2, "phase": "mixed", "iterations": 6, "engine": {"num_ranks": 1}}
KEY = "5ecre7" + 34 * "0"


@pytest.fixture(autouse=True)
def _key_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and an address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def watching(**settings: Any) -> WatchConfig:
    return WatchConfig.model_validate({"wandb": {"project": "tests", **settings}})


def kept(folder: Path) -> list[tuple[str, dict[int, dict[str, float]]]]:
    """Of every attempt under a folder, in order: the run's id and train_step -> scalars."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a process: its service has written everything
    attempts = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name):
        steps: dict[int, dict[str, float]] = {}
        run = ""
        for payload in entries(path.read_bytes()):
            record = Record.FromString(payload)
            run = record.run.run_id or run
            if record.HasField("history"):
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                steps[values["_step"]] = {name: value for name, value in values.items() if not name.startswith("_")}
        attempts.append((run, steps))
    return attempts


def entries(data: bytes) -> Iterator[bytes]:
    """Payloads of a LevelDB log with a header of 7 bytes: blocks of 32 KiB, each chunk (crc 4, length 2, kind 1)."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@with_wandb
def test_a_restart_goes_on_in_the_same_run_and_no_file_holds_the_key(tmp_path: Path) -> None:
    config = watching(mode="offline", entity="us")
    scalars = Scalars(tmp_path, config, 0, ABOUT)
    for train_step in (1, 2):
        scalars.add(train_step, "train", {"loss": 1 / train_step, "grad_norm": 0.5})
    scalars.add(2, "validation", {"loss": 3.0})
    scalars.close()
    scalars = Scalars(tmp_path, config, 2, ABOUT)
    scalars.add(3, "train", {"loss": 0.25})
    scalars.close()
    first, second = kept(tmp_path)
    run = json.loads((tmp_path / RUN_FILE).read_text())["id"]
    assert first[0] == second[0] == run and run.startswith(f"{tmp_path.name}-")
    assert first[1] == {
        1: {"train/loss": 1.0, "train/grad_norm": 0.5},
        2: {"train/loss": 0.5, "train/grad_norm": 0.5, "validation/loss": 3},
    }
    assert second[1] == {3: {"train/loss": 0.25}}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4 and not [path for path in files if KEY.encode() in path.read_bytes()]


@with_wandb
def test_without_a_server_it_is_said_once_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flashvideo"):
        scalars = Scalars(tmp_path, watching(mode="online", timeout_s=1), 0, ABOUT)
        scalars.add(1, "train", {"loss": 1.0})
        scalars.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "flashvideo"]
    assert "connection refused" in said and "training goes on" in said and "wandb sync" in said and KEY not in said
    assert [steps for _, steps in kept(tmp_path)] == [{1: {"train/loss": 1.0}}]


@with_wandb
def test_a_dead_service_is_said_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scalars = Scalars(tmp_path, watching(mode="offline"), 0, ABOUT)
    services = [child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name()]
    for service in services:
        os.kill(service.pid, signal.SIGKILL)
    psutil.wait_procs(services, timeout=10)
    with caplog.at_level(logging.WARNING, "flashvideo"):
        for train_step in (1, 2, 3):
            scalars.add(train_step, "train", {"loss": 1.0})
        scalars.close()
    said = [record.getMessage() for record in caplog.records if record.name == "flashvideo"]
    assert services and len(said) == 1 and "training goes on" in said[0]
    scalars = Scalars(tmp_path, watching(mode="offline"), 3, ABOUT)  # the next phase
    scalars.add(4, "train", {"loss": 1.0})
    scalars.close()
    assert kept(tmp_path)[-1][1] == {4: {"train/loss": 1.0}}


def recipe_with_wandb(tmp_path: Path) -> Recipe:
    (tmp_path / "sources").mkdir()
    return load("debug", ("stage1.engine.watch.wandb.mode=online",), sources=(str(tmp_path / "sources"),))


@without_wandb
def test_an_absent_package_is_said_before_any_rank_starts(tmp_path: Path) -> None:
    recipe = recipe_with_wandb(tmp_path)
    request = RankRequest("train_stage1", recipe.model_dump_json(), str(tmp_path), str(tmp_path / "job"), None, {})
    with pytest.raises(
        UserError, match=r"^train_stage1: engine\.watch\.wandb\.mode needs the package wandb.*not installed.*set it to off$"
    ):
        start_ranks(request, recipe, recipe.stage1.engine)
    with pytest.raises(RuntimeError, match="needs the package wandb"):  # under torchrun, in the ranks' own environment
        Scalars(tmp_path, recipe.stage1.engine.watch, 0, ABOUT)
    (found,) = [finding for finding in examine(recipe, Workspace(tmp_path / "root")) if finding.what == "wandb"]
    assert found.state == "missing" and "stage1.engine.watch.wandb asks for it" in found.found


@with_wandb
def test_the_doctor_knows_the_package_and_whether_there_is_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, workspace = recipe_with_wandb(tmp_path), Workspace(tmp_path / "root")

    def found() -> dict[str, str]:
        return {finding.what: finding.state for finding in examine(recipe, workspace) if finding.what.startswith("wandb")}

    assert found() == {"wandb": "ok"}
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert found() == {"wandb": "ok", "wandb's key": "note"}
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    assert found() == {"wandb": "ok"}


def test_nothing_is_asked_of_it_by_default(tmp_path: Path) -> None:
    Scalars(tmp_path, WatchConfig(), 0, ABOUT).add(1, "train", {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert not [finding for finding in examine(load("debug"), Workspace(tmp_path / "root")) if "wandb" in finding.what]
