"""Starts the ranks of a training job, through Ray Train, as plain processes, or under torchrun; all run the same function.

Ray Train restarts the group from the last checkpoint when a rank dies, `engine.max_restarts` times; so does the
local launcher, and torchrun with --max-restarts. The function finds its own checkpoint, so a restart is a relaunch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flashvideo.config import EngineConfig
from flashvideo.training.scalars import missing_package
from pipelines.artifacts import write_atomically
from pipelines.job import UserError, log
from pipelines.local_ray import bound_to_this_machine
from pipelines.recipe import Recipe

POLL_S = 0.2
STOP_GRACE_S = 10.0


@dataclass(frozen=True)
class RankRequest:
    """What every rank is given; plain values, so that it travels as JSON or pickled."""

    job: str
    """train_stage1 | train_stage2."""
    recipe: str
    """JSON."""
    root: str
    folder: str
    """The job's folder."""
    progress: str | None
    """Progress file that rank 0 writes."""
    settings: dict[str, Any]
    """What the job found out before starting: scales, sample files, phase folders, the dataset's tag."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What every checkpoint says of itself."""
        return {"recipe": json.loads(self.recipe), "tag": self.settings.get("tag")}


class RankFailure(RuntimeError):
    """The ranks died or failed more often than engine.max_restarts allows."""


def start_ranks(request: RankRequest, recipe: Recipe, engine: EngineConfig) -> None:
    """Runs all ranks to their end. Raises RankFailure; UserError where a package that the recipe asks for is not installed."""
    missing = missing_package(engine.watch)
    if missing is not None:
        raise UserError(f"{request.job}: {missing}")
    if recipe.runtime.backend == "ray":
        _through_ray(request, recipe, engine)
    elif recipe.runtime.backend == "torchrun":
        _by_torchrun(request, engine)
    else:
        _as_processes(request, engine)


def run_rank(request: RankRequest, rank: int = 0, num_ranks: int = 1, rendezvous: str | None = None) -> None:
    """The function of every rank: joins the group and trains. `rendezvous` None: torchrun's environment says where."""
    import importlib

    from flashvideo.training.engine import joined

    recipe = Recipe.model_validate_json(request.recipe)
    job = importlib.import_module(f"pipelines.{request.job}")
    engine: EngineConfig = job.engine_of(recipe)
    with joined(engine, rank, num_ranks, rendezvous) as ranks:
        job.train(request, recipe, ranks, _progress_of(request, ranks.is_first))


def _progress_of(request: RankRequest, is_first: bool) -> Callable[[int, int, str, str], None]:
    from pipelines.job import Progress

    if not is_first:
        return lambda done, total, unit, note: None
    return Progress(Path(request.progress) if request.progress else None, request.job).update


# -------------------------------------------------------------------------------------------------- Ray Train


def _through_ray(request: RankRequest, recipe: Recipe, engine: EngineConfig) -> None:
    """Ray Train on the cluster of RAY_ADDRESS, or on a Ray started for this job.

    Its plain trainer, not TorchTrainer: that one imports torch in this process and in the controller too (3 s and
    300 MB each), for a process group that the ranks can make themselves.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    own = not ray.is_initialized()
    if own:
        _start_ray(recipe, engine)
    try:
        trainer = DataParallelTrainer(
            _ray_rank,
            train_loop_config=asdict(request),
            scaling_config=ScalingConfig(
                num_workers=engine.num_ranks,
                use_gpu=engine.gpus_per_rank > 0,
                resources_per_worker={"CPU": engine.cpus_per_rank} | ({"GPU": engine.gpus_per_rank} if engine.gpus_per_rank > 0 else {}),
            ),
            run_config=RunConfig(
                name="ray_train", storage_path=request.folder, failure_config=FailureConfig(max_failures=engine.max_restarts)
            ),
        )
        trainer.fit()
    except TrainingFailedError as error:
        raise RankFailure(f"{request.job}: {_root_cause(error)}") from error
    finally:
        if own:
            ray.shutdown()


RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}
"""Lean: the controller looks at its workers twice a second and keeps no statistics. Set only where the environment (the
cluster's, with its own authentication) says nothing; a Ray that is started here listens on loopback."""


def _start_ray(recipe: Recipe, engine: EngineConfig) -> None:
    """Connects to RAY_ADDRESS, or starts a Ray of just the size that the ranks need."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.WARNING)
        return
    with bound_to_this_machine(), _own_address():
        _start_own_ray(recipe, engine)


def _start_own_ray(recipe: Recipe, engine: EngineConfig) -> None:
    import ray

    ray.init(
        address="local",
        num_cpus=max(1, round(engine.num_ranks * engine.cpus_per_rank)) + 1,  # one for the controller
        object_store_memory=recipe.runtime.ray_object_store_bytes,
        include_dashboard=True,  # Ray Train's cleaner asks it twice a second, and complains each time where there is none
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
    )


@contextmanager
def _own_address() -> Iterator[None]:
    """Tells the processes of a Ray that starts here which Ray is theirs: Ray Train's cleaner looks for any, and stops at a second one."""
    import ray

    address = _free_address(ray.util.get_node_ip_address()).removeprefix("tcp://")
    wanted = {"RAY_ADDRESS": address, "RAY_GCS_SERVER_PORT": address.rpartition(":")[2]}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ray_rank(config: dict[str, Any]) -> None:
    """One rank inside a Ray Train worker; rank 0 names the address at which all meet."""
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    context = get_context()
    rank = context.get_world_rank()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    address = broadcast_from_rank_zero(_free_address(ray.util.get_node_ip_address()) if rank == 0 else None)
    run_rank(RankRequest(**config), rank, context.get_world_size(), address)


def _free_address(host: str) -> str:
    """tcp://host:port with a port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"tcp://{host}:{probe.getsockname()[1]}"


def _root_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


# -------------------------------------------------------------------------------------------------- plain processes


def _as_processes(request: RankRequest, engine: EngineConfig) -> None:
    """One process a rank on this machine; a single rank runs in this process."""
    if engine.num_ranks == 1:
        with tempfile.TemporaryDirectory() as meeting:
            run_rank(request, 0, 1, f"file://{meeting}/rendezvous")
        return
    for attempt in range(engine.max_restarts + 1):
        failed = _one_group(request, engine)
        if not failed:
            return
        log.warning("%s: rank %d ended with code %d; attempt %d of %d", request.job, *failed[0], attempt + 1, engine.max_restarts + 1)
    raise RankFailure(f"{request.job}: the ranks failed {engine.max_restarts + 1} times (engine.max_restarts); see the log above")


def _one_group(request: RankRequest, engine: EngineConfig) -> list[tuple[int, int]]:
    """Starts the ranks and waits; when one fails the others are stopped. Returns (rank, exit code) of the failed."""
    with tempfile.TemporaryDirectory() as meeting:
        written = Path(meeting) / "request.json"
        written.write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", "pipelines.ranks", str(written), f"file://{meeting}/rendezvous", str(engine.num_ranks)]
        processes = [
            subprocess.Popen([*command, str(rank)], env=os.environ | {"LOCAL_RANK": str(rank)}) for rank in range(engine.num_ranks)
        ]
        try:
            while any(process.poll() is None for process in processes):
                if any(process.poll() not in (None, 0) for process in processes):
                    break
                time.sleep(POLL_S)
            return [(rank, process.poll() or 0) for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        finally:
            _stop(processes)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    end = time.monotonic() + STOP_GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -------------------------------------------------------------------------------------------------- torchrun

REQUEST_FILE, TRAINED_FILE = "request.json", "trained.json"


def _by_torchrun(request: RankRequest, engine: EngineConfig) -> None:
    """Returns where torchrun has trained; else writes what the ranks need and raises UserError with the command that starts them."""
    folder = Path(request.folder)
    if (folder / TRAINED_FILE).is_file():
        return
    write_atomically(folder / REQUEST_FILE, json.dumps(asdict(request)))
    raise UserError(
        f"{request.job} is ready for torchrun. On every node, with this folder mounted: torchrun --nnodes=NODES --nproc-per-node=GPUS "
        f"--rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --max-restarts={engine.max_restarts} -m pipelines.ranks {folder / REQUEST_FILE}; "
        f"{engine.num_ranks} ranks in all, or another number that divides the batches. Then give the present command again"
    )


def _main() -> None:
    """`REQUEST RENDEZVOUS NUM_RANKS RANK`, or `REQUEST` alone under torchrun, whose environment says the rest."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr)
    written, *place = sys.argv[1:]
    request = RankRequest(**json.loads(Path(written).read_text()))
    if place:
        rendezvous, num_ranks, rank = place
        run_rank(request, int(rank), int(num_ranks), rendezvous)
        return
    run_rank(request)
    if os.environ["RANK"] == "0":
        write_atomically(Path(request.folder) / TRAINED_FILE, json.dumps({"num_ranks": int(os.environ["WORLD_SIZE"])}))


if __name__ == "__main__":
    _main()
