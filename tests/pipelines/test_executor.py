"""The executor: equal results on both backends, failures isolated to their rows, dead workers survived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from curation.step import Batch, Lineage, Resources, StepError
from pipelines.executor import (
    FailedShareError,
    Part,
    WorkerDied,
    Workers,
    check_failed_share,
    map_tasks,
    run_steps,
)
from pipelines.local_ray import ray_connected
from pipelines.worker import WorkerBuildError

LOCAL = Workers("local", 2)
RAY = Workers("ray", 2, object_store_bytes=80_000_000)


class Halve:
    """Half of an even number; an odd one is an error with code `odd`."""

    name = "halve"
    reads = ("number",)
    writes = pa.schema([pa.field("half", pa.int64())])
    resources = Resources()
    lineage = Lineage("test", "halve", "1", "arithmetic")

    def __call__(self, batch: Batch) -> Batch:
        numbers = batch.column("number").to_pylist()
        for number in numbers:
            if number % 2:
                raise StepError("odd", f"{number} is odd")
        return pa.RecordBatch.from_arrays([pa.array([n // 2 for n in numbers], pa.int64())], schema=self.writes)


class Square:
    """The square; never fails."""

    name = "square"
    reads = ("number",)
    writes = pa.schema([pa.field("square", pa.int64())])
    resources = Resources()
    lineage = Lineage("test", "square", "1", "arithmetic")

    def __call__(self, batch: Batch) -> Batch:
        return pa.RecordBatch.from_arrays([pa.array([n * n for n in batch.column("number").to_pylist()])], schema=self.writes)


class DieOnSeven(Square):
    """Kills its own process on a 7."""

    def __call__(self, batch: Batch) -> Batch:
        if 7 in batch.column("number").to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def both() -> list[object]:
    return [Halve(), Square()]


def dying() -> list[object]:
    return [DieOnSeven()]


def twice() -> object:
    return lambda item: item * 2


def broken() -> object:
    raise FileNotFoundError("weights raft.pth")


def failing() -> object:
    def fail(item: int) -> int:
        raise KeyError(f"item {item}")

    return fail


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray of our own, so that the backend under test connects to nobody else's; nothing of it is left."""
    before = set(psutil.Process().children(recursive=True))
    with ray_connected(80_000_000, cpus=2) as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module by name
        yield
    assert not set(psutil.Process().children(recursive=True)) - before


def table(*numbers: int) -> pa.Table:
    return pa.table({"clip_id": [f"c{n}" for n in numbers], "number": pa.array(numbers, pa.int64())})


def in_order(parts: list[Part]) -> list[dict[str, object]]:
    """One row per key with what every step wrote."""
    rows: dict[str, dict[str, object]] = {}
    for part in parts:
        for output in part.outputs.values():
            for row in output.to_pylist():
                rows.setdefault(row["clip_id"], {}).update(row)
    return [rows[key] for key in sorted(rows)]


def test_a_failing_row_is_null_and_named_and_its_neighbours_are_not_hurt() -> None:
    parts = list(run_steps(both, table(2, 3, 4, 6), ["clip_id"], LOCAL, batch_rows=4))
    assert in_order(parts) == [
        {"clip_id": "c2", "half": 1, "square": 4},
        {"clip_id": "c3", "half": None, "square": 9},
        {"clip_id": "c4", "half": 2, "square": 16},
        {"clip_id": "c6", "half": 3, "square": 36},
    ]
    [failure] = [failure for part in parts for failure in part.failures]
    assert (failure.row, failure.step, failure.code, failure.message) == (1, "halve", "odd", "3 is odd")
    assert failure.run_id == Halve.lineage.run_id


def test_a_step_does_only_the_rows_that_want_it() -> None:
    wanted = {"halve": [True, False, False], "square": [True, True, False]}
    parts = list(run_steps(both, table(2, 3, 5), ["clip_id"], LOCAL, batch_rows=4, wanted=wanted))
    assert in_order(parts) == [{"clip_id": "c2", "half": 1, "square": 4}, {"clip_id": "c3", "square": 9}]
    assert not [failure for part in parts for failure in part.failures]


def test_every_row_comes_back_once_whatever_the_batch_size() -> None:
    for batch_rows in (1, 3, 100):
        parts = list(run_steps(both, table(*range(10)), ["clip_id"], LOCAL, batch_rows=batch_rows))
        assert sorted(row for part in parts for row in part.rows) == list(range(10))


def test_ray_gives_what_local_gives(ray_here: None) -> None:
    rows = table(*range(12))
    local = list(run_steps(both, rows, ["clip_id"], LOCAL, batch_rows=5))
    remote = list(run_steps(both, rows, ["clip_id"], RAY, batch_rows=5))
    assert in_order(local) == in_order(remote)
    facts = [{(f.row, f.step, f.code, f.message, f.run_id) for part in parts for f in part.failures} for parts in (local, remote)]
    assert facts[0] == facts[1]
    assert len(facts[0]) == 6


def test_a_ray_of_our_own_is_lean_and_bound_to_this_machine(ray_here: None) -> None:
    import ray

    [node] = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1", "a Ray without a token must not be reached from outside"
    commands = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            commands.append(" ".join(process.cmdline()))
    assert any("gcs_server" in command for command in commands)
    assert not [command for command in commands if "monitor.py" in command or "dashboard.py" in command]


def loaded_after(program: str, *names: str) -> list[str]:
    """Which of the modules a fresh process holds after that program."""
    asked = f"{program}\nimport sys\nprint(*sorted(set({names!r}) & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()


def test_a_keeper_of_decode_passes_imports_no_decoder() -> None:
    assert loaded_after("import pipelines.worker, curation.passes", "av", "cv2", "numpy", "pyarrow", "torch") == []


def test_a_worker_leaves_pandas_alone_until_it_is_wanted() -> None:
    work = "import pyarrow\nfrom pipelines.worker import RayWorker\nRayWorker(lambda: pyarrow.array).run([1, 2])"
    assert loaded_after(work, "pandas", "pyarrow") == ["pyarrow"]
    assert loaded_after(f"{work}.to_pandas()", "pandas") == ["pandas"]


def test_a_row_that_kills_its_worker_fails_alone(ray_here: None) -> None:
    parts = list(run_steps(dying, table(5, 6, 7, 8), ["clip_id"], replace(RAY, count=1), batch_rows=2))
    assert [row["square"] for row in in_order(parts)] == [25, 36, None, 64]
    [failure] = [failure for part in parts for failure in part.failures]
    assert (failure.row, failure.code) == (2, "worker_died")


def test_map_tasks_returns_every_result(ray_here: None) -> None:
    for workers in (LOCAL, RAY):
        assert sorted(map_tasks(twice, [5, 6, 7], workers)) == [(0, 10), (1, 12), (2, 14)]
        assert list(map_tasks(twice, [], workers)) == []


def waiting_for_the_others(folder: Path) -> object:
    """Item 0 is long: it ends when items 1 and 2 have been done."""

    def work(item: int) -> bool:
        (folder / str(item)).touch()
        deadline = time.monotonic() + 20
        while item == 0 and len(list(folder.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        return item > 0 or len(list(folder.iterdir())) == 3

    return work


def test_the_last_items_do_not_wait_behind_a_long_one(ray_here: None, tmp_path: Path) -> None:
    for number, workers in enumerate((LOCAL, RAY)):
        (folder := tmp_path / str(number)).mkdir()
        assert dict(map_tasks(partial(waiting_for_the_others, folder), [0, 1, 2], workers)) == {0: True, 1: True, 2: True}


def test_a_worker_that_cannot_be_built_says_why(ray_here: None) -> None:
    for workers in (LOCAL, RAY):
        with pytest.raises(WorkerBuildError, match=r"raft\.pth"):
            list(map_tasks(broken, [1, 2], workers))


def test_an_exception_of_a_task_ends_the_map(ray_here: None) -> None:
    for workers in (LOCAL, RAY):
        with pytest.raises(KeyError):
            list(map_tasks(failing, [1, 2, 3], workers))


def test_a_consumer_that_leaves_early_leaves_no_thread_behind() -> None:
    results = map_tasks(twice, list(range(100)), LOCAL)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]


def test_a_step_that_breaks_the_protocol_is_reported_not_stored() -> None:
    class Short(Square):
        def __call__(self, batch: Batch) -> Batch:
            return super().__call__(batch).slice(0, 0)

    parts = list(run_steps(partial(list, [Short()]), table(1), ["clip_id"], LOCAL))
    assert parts[0].outputs["square"].to_pylist() == [{"clip_id": "c1", "square": None}]
    assert "returned 0" in parts[0].failures[0].message


def test_too_many_failures_fail_the_job() -> None:
    check_failed_share(1, 2, 0.5, "clips")
    with pytest.raises(FailedShareError, match="3 of 4 clips failed"):
        check_failed_share(3, 4, 0.5, "clips")


def test_a_dead_worker_is_a_value_not_an_exception() -> None:
    assert WorkerDied("x").message == "x"
