"""Scalars at Weights & Biases: one run over restarts, no server, no package. The real package; its server is a small stand-in."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

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
def _key_and_no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A key, and an address where nobody listens; a service process of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


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


class StandInServer(BaseHTTPRequestHandler):
    """Answers what wandb-core 0.31 asks of a server for a run of scalars; `history` holds the lines that were sent, in order."""

    history: ClassVar[list[dict[str, float]]] = []
    gone: ClassVar[bool] = False
    """Takes the question and never answers, once the run has begun."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.gone:
            return
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        answer = json.dumps(self.answer(json.loads(body)) if self.path.endswith(("graphql", "file_stream")) else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "query" not in asked:
            lines = asked.get("files", {}).get("wandb-history.jsonl", {"content": []})["content"]
            self.history.extend(map(json.loads, lines))
            return {}
        query, given = asked["query"], asked.get("variables") or {}
        project = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "us"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": "", "config": "{}", "project": project}
        if "RunResumeStatus" in query:
            tail = json.dumps([json.dumps(self.history[-1])]) if self.history else "[]"
            lines = {
                "historyLineCount": len(self.history),
                "logLineCount": 0,
                "eventsLineCount": 0,
                "historyTail": tail,
                "eventsTail": "[]",
            }
            known = bucket | lines | {"summaryMetrics": "{}", "tags": [], "wandbConfig": json.dumps({"t": 1})}
            return {"data": {"model": project | {"bucket": known if self.history else None}}}
        if "UpsertBucket" in query:
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}} if "CreateRunFiles" in query else {}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandInServer]]:
    class Fresh(StandInServer):
        history: ClassVar[list[dict[str, float]]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        yield Fresh
        listening.shutdown()


@with_wandb
def test_a_restart_sends_what_the_server_lacks(server: type[StandInServer], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Killed after 4, gone on from the checkpoint at 2."""
    for train_steps in ((1, 2, 3, 4), (3, 4, 5, 6)):
        scalars = Scalars(tmp_path, watching(mode="online", timeout_s=20), train_steps[0] - 1, ABOUT)
        for train_step in train_steps:
            scalars.add(train_step, "train", {"loss": 1 / train_step})
        scalars.close()
    assert [(line["_step"], line["train/loss"]) for line in server.history] == [(step, pytest.approx(1 / step)) for step in range(1, 7)]
    assert "less than the current step" not in capfd.readouterr().err


@with_wandb
def test_a_server_that_goes_away_delays_the_end_by_the_timeout_only(
    server: type[StandInServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scalars = Scalars(tmp_path, watching(mode="online", timeout_s=3), 0, ABOUT)
    server.gone = True
    scalars.add(1, "train", {"loss": 1.0})
    with caplog.at_level(logging.WARNING, "flashvideo"):
        scalars.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "flashvideo"]
    assert "Timed out" in said and "wandb sync" in said and list(tmp_path.glob("wandb/run-*/run-*.wandb"))


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
