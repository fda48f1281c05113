"""Ranks in one process, as processes and under Ray Train, on shards written here; a rank killed under Ray Train needs no hands."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import torch
from latent_root import latent_recipe
from safetensors.torch import save_file

from flashvideo.config import WatchConfig
from flashvideo.training.metrics import read_losses
from orchestration.memory import tree
from pipelines import ranks
from pipelines.job import UserError
from pipelines.ranks import RankRequest, start_ranks
from pipelines.recipe import Recipe, dump
from pipelines.sample_lists import SAMPLES, write_samples
from pipelines.train_stage1 import HELD_OUT_FILE, TRAIN_FILE

CHECKPOINT_EVERY, ITERATIONS = 20, 160
DEADLINE_S = 220.0
"""Half a minute on two idle cores; a test machine may be ten times slower."""


def recipe(num_ranks: int, backend: str) -> Recipe:
    plain = latent_recipe()
    settings = {
        "num_ranks": num_ranks,
        "micro_batch_size": 2,
        "checkpoint_every": CHECKPOINT_EVERY,
        "keep_checkpoints": ITERATIONS,
        "max_restarts": 1,
        "watch": WatchConfig(),  # no sheets: the clips are made up, and no autoencoder made them
    }
    stage1 = plain.stage1.model_copy(update={"engine": plain.stage1.engine.model_copy(update=settings), "iterations": ITERATIONS})
    runtime = plain.runtime.model_copy(update={"backend": backend, "ray_object_store_bytes": 80_000_000})
    return latent_recipe(stage1=stage1, runtime=runtime)


def train(root: Path, name: str, of: Recipe) -> Path:
    """Runs Stage I's ranks over six made-up clips; returns the job's folder."""
    folder = root / name
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {f"clip{index}": torch.randn(2, 3, 16, 4, 6, generator=generator) for index in range(6)}
    save_file(tensors | {"text": torch.randn(16, 64, generator=generator)}, root / "shard.safetensors")
    rows = [
        {"sample_id": clip, "media": "video", "clean_shard": "shard.safetensors", "clean_tensor": clip}
        | {"degraded_shards": [], "degraded_tensors": [], "text_shard": "shard.safetensors", "text_tensor": "text"}
        for clip in tensors
    ]
    for file in (TRAIN_FILE, HELD_OUT_FILE):
        write_samples(folder / file, [pa.Table.from_pylist(rows, schema=SAMPLES)])
    start_ranks(RankRequest("train_stage1", dump(of), str(root), str(folder), None, {"scale": 1.0}), of, of.stage1.engine)
    return folder


def losses(folder: Path) -> list[tuple[float, ...]]:
    return [(line["train_step"], line["loss"], line["grad_norm"]) for line in read_losses(folder / "losses.jsonl")]


def weights(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "stage1").iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks as processes."""
    return train(tmp_path_factory.mktemp("uninterrupted"), "two", recipe(2, "local"))


def test_two_ranks_as_processes_train_what_one_does(uninterrupted: Path, tmp_path: Path) -> None:
    one = train(tmp_path, "one", recipe(1, "local"))
    assert len(losses(one)) == ITERATIONS
    few = slice(0, 20)  # beyond, roundings grow with the weights
    assert [row[1] for row in losses(uninterrupted)[few]] == pytest.approx([row[1] for row in losses(one)[few]], rel=1e-5)


def test_under_torchrun_the_job_says_how_to_start_and_goes_on_when_it_has_trained(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank here, from torchrun's environment; it trains what the two did."""
    wanted = recipe(2, "torchrun")
    with pytest.raises(UserError, match=r"torchrun .* -m pipelines.ranks (\S+request.json); 2 ranks in all"):
        train(tmp_path, "by_hand", wanted)
    request = tmp_path / "by_hand" / "request.json"
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment["MASTER_PORT"] = str(probe.getsockname()[1])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["ranks", str(request)])
    ranks._main()
    few = slice(0, 20)
    assert [row[1] for row in losses(request.parent)[few]] == pytest.approx([row[1] for row in losses(uninterrupted)[few]], rel=1e-5)
    start_ranks(RankRequest(**json.loads(request.read_text())), wanted, wanted.stage1.engine)


class Killer(threading.Thread):
    """Kills the newest rank's process with signal 9 as soon as the first checkpoint is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.first = folder / "checkpoints" / f"step-{CHECKPOINT_EVERY:08d}"
        self.killed: int | None = None
        self.listens_on: set[str] = set()
        """Addresses of Ray's services; the ranks' meeting place is torch's, which listens on all."""
        self.inode = 0
        """Of the checkpoint; one that is written again has another."""

    def run(self) -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end and not self.first.is_dir():
            time.sleep(0.01)
        ranks = [pid for pid in tree(os.getpid()) if "RayTrainWorker" in command(pid)]
        if self.first.is_dir() and ranks:
            self.inode, self.killed = self.first.stat().st_ino, max(ranks)
            os.kill(self.killed, signal.SIGKILL)
            services = [pid for pid in tree(os.getpid()) if pid != os.getpid() and "RayTrainWorker" not in command(pid)]
            self.listens_on = {address for pid in services for address in listening(pid)}


def command(pid: int) -> str:
    """A process's command line; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def listening(pid: int) -> set[str]:
    """Addresses on which a process waits for TCP connections."""
    try:
        return {
            entry.laddr.ip.removeprefix("::ffff:")
            for entry in psutil.Process(pid).net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN
        }
    except psutil.Error:
        return set()


@pytest.mark.story
@pytest.mark.timeout(DEADLINE_S + 20)
def test_a_rank_killed_under_ray_train_is_started_again_and_ends_in_the_same_weights(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    killer = Killer(tmp_path / "killed")
    killer.start()
    folder = train(tmp_path, "killed", recipe(2, "ray"))
    assert killer.killed is not None, "the run ended before its rank was killed"
    assert killer.first.stat().st_ino == killer.inode, "the run started from nothing, not from its checkpoint"
    assert losses(folder) == losses(uninterrupted)
    assert weights(folder) == weights(uninterrupted)
    assert killer.listens_on == {"127.0.0.1"}, "a Ray without a token must not be reached from outside"
