"""Maps work over items, in this process tree or on Ray; the one place that catches a step's failures.

Two entrances on one engine: `map_tasks` for per-source work (the decode pass) and `run_steps` for Steps over
rows. Workers are made once per call and hold what they were built with. Items and results are small (rows,
paths); pictures are read and written by the workers and never travel through Ray. Both backends give the same
results: items are the same, workers are single-threaded, and nothing depends on which worker did what.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic

import pyarrow as pa

from curation.step import Step, StepError
from pipelines.local_ray import ray_connected
from pipelines.recipe import RuntimeConfig
from pipelines.worker import Item, RayWorker, Result, WorkerBuildError, built, close

log = logging.getLogger("flashvideo.executor")

IN_FLIGHT = 2
"""Items handed to a Ray worker ahead of its results: one in work, one waiting, so that it works on while this process commits."""
LAST_ITEMS = 4
"""Per worker. When no more are left only idle workers are given one: none shall wait behind a long item while a worker idles."""
WORKER_ATTEMPTS = 2
"""Workers that one item may take down before it is given up."""


@dataclass(frozen=True)
class Workers:
    """How many workers, where, and what each asks for."""

    backend: str
    """local: threads of this process. ray: Ray actors."""
    count: int
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    object_store_bytes: int = 200_000_000
    """Of a Ray that is started here; a cluster keeps its own."""

    @classmethod
    def of(cls, runtime: RuntimeConfig, gpus: float = 0.0, memory_bytes: int = 0) -> Workers:
        """The recipe's workers, each with one CPU and the given extras."""
        return cls(runtime.backend, runtime.workers, 1.0, gpus, memory_bytes, runtime.ray_object_store_bytes)


class FailedShareError(RuntimeError):
    """More rows failed than the recipe allows."""


@dataclass(frozen=True)
class WorkerDied:
    """In place of a result: the item took WORKER_ATTEMPTS workers down (crash, out of memory)."""

    message: str


def check_failed_share(failed: int, total: int, limit: float, what: str) -> None:
    """Raises FailedShareError when more than `limit` of the items failed."""
    if total and failed / total > limit:
        raise FailedShareError(
            f"{failed} of {total} {what} failed ({failed / total:.0%}, curation.max_failed_share is {limit:.0%}); "
            "the errors table says why: flashvideo errors"
        )


# map_tasks


def map_tasks(
    build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[int, Result | WorkerDied]]:
    """(index, result) of every item, in order of completion. `build` is called once per worker.

    The built callable may have `close()`. An exception that it raises ends the map (per-item failures are results,
    not exceptions). Raises WorkerBuildError when no worker can be built. With Ray, `build` and the items are pickled.
    """
    if not items:
        return iter(())
    workers = Workers(**{**vars(workers), "count": max(1, min(workers.count, len(items)))})
    return _map_on_ray(build, items, workers) if workers.backend == "ray" else _map_in_threads(build, items, workers)


class _Stopped(Exception):
    pass


def _map_in_threads(
    build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[int, Result | WorkerDied]]:
    results: queue.Queue[tuple[int, Any] | BaseException] = queue.Queue(maxsize=workers.count * IN_FLIGHT)
    pending = iter(range(len(items)))
    lock, build_lock, stop = threading.Lock(), threading.Lock(), threading.Event()

    def put(entry: tuple[int, Any] | BaseException) -> None:
        while True:
            if stop.is_set():
                raise _Stopped
            try:
                return results.put(entry, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        function: Callable[[Item], Result] | None = None
        try:
            with build_lock:  # one at a time: importing the same library from two threads can deadlock
                function = built(build)
            while True:
                with lock:
                    index = next(pending, None)
                if index is None:
                    return
                put((index, function(items[index])))
        except _Stopped:
            pass
        except BaseException as error:
            if not stop.is_set():
                put(error)
        finally:
            close(function)

    threads = [threading.Thread(target=work, name=f"worker-{number}", daemon=True) for number in range(workers.count)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(len(items)):
            entry = results.get()
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _map_on_ray(
    build: Callable[[], Callable[[Item], Result]], items: Sequence[Item], workers: Workers
) -> Iterator[tuple[int, Result | WorkerDied]]:
    with ray_connected(workers.object_store_bytes, workers.count) as ray:
        pool = _RayPool(ray, build, workers)
        try:
            yield from pool.map(items)
        finally:
            pool.close()


class _RayPool(Generic[Item, Result]):
    """A few actors with bounded work in flight; one that dies is replaced, its items are tried again."""

    def __init__(self, ray: Any, build: Callable[[], Callable[[Item], Result]], workers: Workers) -> None:
        self._ray, self._build = ray, build
        options = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "max_restarts": 0}
        if workers.memory_bytes:
            options["memory"] = workers.memory_bytes
        self._actor_class = ray.remote(**options)(RayWorker)
        self._starting: dict[Any, Any] = {}  # reference of ready() -> actor
        self._running: dict[Any, tuple[Any, int]] = {}  # reference of run() -> (actor, index)
        self._load: dict[Any, int] = {}  # ready actor -> items in flight
        self._deaths: dict[int, int] = {}
        for _ in range(workers.count):
            self._start()

    def _start(self) -> None:
        actor = self._actor_class.remote(self._build)
        self._starting[actor.ready.remote()] = actor

    def map(self, items: Sequence[Item]) -> Iterator[tuple[int, Result | WorkerDied]]:
        waiting = list(range(len(items)))[::-1]
        left = len(items)
        while left:
            self._feed(waiting, items)
            [reference], _ = self._ray.wait([*self._running, *self._starting], num_returns=1)
            if reference in self._starting:
                self._took_up(reference)
                continue
            done = self._fetch(reference, waiting)
            left -= len(done)
            yield from done

    def _fetch(self, reference: Any, waiting: list[int]) -> list[tuple[int, Result | WorkerDied]]:
        """The finished item's result; after its worker's death whatever the worker had finished."""
        actor, index = self._running[reference]
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            return self._bury(actor, waiting)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        del self._running[reference]
        self._load[actor] -= 1
        return [(index, result)]

    def _bury(self, dead: Any, waiting: list[int]) -> list[tuple[int, Result | WorkerDied]]:
        """Sorts out a dead worker's items: done before it died, in work when it died (the suspect), or only waiting."""
        done: list[tuple[int, Result | WorkerDied]] = []
        suspect: int | None = None
        for reference, (actor, index) in list(self._running.items()):  # in the order in which the worker took them
            if actor is not dead:
                continue
            del self._running[reference]
            try:
                done.append((index, self._ray.get(reference)))
            except self._ray.exceptions.RayActorError as error:
                if suspect is None:
                    suspect = index
                    self._deaths[index] = self._deaths.get(index, 0) + 1
                    if self._deaths[index] >= WORKER_ATTEMPTS:
                        why = str(error).splitlines()[0]
                        done.append((index, WorkerDied(f"the worker process died {WORKER_ATTEMPTS} times on this item: {why}")))
                        continue
                waiting.append(index)
        del self._load[dead]
        self._start()
        return done

    def _feed(self, waiting: list[int], items: Sequence[Item]) -> None:
        """Hands items to the least loaded ready actors; actors that Ray has no room for get none and block nobody."""
        while waiting and self._load:
            actor = min(self._load, key=lambda a: self._load[a])
            if self._load[actor] >= (IN_FLIGHT if len(waiting) > LAST_ITEMS * len(self._load) else 1):
                return
            index = waiting.pop()
            self._running[actor.run.remote(items[index])] = (actor, index)
            self._load[actor] += 1

    def _took_up(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            problem = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            problem = str(error).splitlines()[0]
        if problem is not None:
            raise WorkerBuildError(problem)
        self._load[actor] = 0

    def close(self) -> None:
        """Lets the workers close what they hold (child processes), then ends them."""
        closing = [actor.close.remote() for actor in self._load]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=10)
        for actor in [*self._load, *self._starting.values()]:
            self._ray.kill(actor)


# run_steps


@dataclass(frozen=True)
class RowFailure:
    """A row that a step could not do."""

    row: int
    """Index in the table that was given."""
    step: str
    run_id: str
    code: str
    message: str
    node: str
    seconds: float


@dataclass(frozen=True)
class Part:
    """What the steps made of some rows."""

    rows: tuple[int, ...]
    """Indices in the table that was given."""
    outputs: dict[str, pa.RecordBatch]
    """Step name -> key columns and written columns of the rows that it was asked to do; nulls where it failed."""
    failures: tuple[RowFailure, ...]
    seconds: dict[str, float]
    """Step name -> seconds of work."""


@dataclass(frozen=True)
class _Batch:
    """Some rows, and which of them each step is to do."""

    rows: tuple[int, ...]
    batch: pa.RecordBatch
    wanted: dict[str, tuple[int, ...]]
    """Step name -> places in the batch."""


class StepRunner:
    """Holds steps and runs them on one batch after the other; catches what they raise, row by row."""

    def __init__(self, build: Callable[[], Sequence[Step]], keys: tuple[str, ...]) -> None:
        self._steps, self._keys = tuple(build()), keys

    def __call__(self, item: _Batch) -> Part:
        outputs: dict[str, pa.RecordBatch] = {}
        failures: list[RowFailure] = []
        seconds: dict[str, float] = {}
        for step in self._steps:
            places = item.wanted[step.name]
            if not places:
                continue
            begin = time.perf_counter()
            batch = item.batch.take(pa.array(places, pa.int64()))
            written, failed = _run_step(step, batch.select(list(step.reads)))
            seconds[step.name] = time.perf_counter() - begin
            failures += [
                RowFailure(item.rows[places[row]], step.name, step.lineage.run_id, code, message, socket.gethostname(), spent)
                for row, code, message, spent in failed
            ]
            outputs[step.name] = _with_keys(batch, self._keys, step, written.columns)
        return Part(item.rows, outputs, tuple(failures), seconds)

    def close(self) -> None:
        for step in self._steps:
            close(step)


def _with_keys(batch: pa.RecordBatch, keys: Sequence[str], step: Step, columns: Sequence[pa.Array]) -> pa.RecordBatch:
    fields = [batch.schema.field(key) for key in keys] + list(_nullable(step.writes))
    return pa.RecordBatch.from_arrays([batch.column(key) for key in keys] + list(columns), schema=pa.schema(fields))


def _run_step(step: Step, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[tuple[int, str, str, float]]]:
    """The step's output, and (row, code, message, seconds) of the rows that fail when run alone."""
    try:
        return _checked(step, batch, step(batch)), []
    except Exception as error:
        log.info("%s failed on a batch of %d rows, running them one by one: %s", step.name, batch.num_rows, error)
    pieces, failed = [], []
    for place in range(batch.num_rows):
        row = batch.slice(place, 1)
        begin = time.perf_counter()
        try:
            pieces.append(_checked(step, row, step(row)))
        except Exception as error:
            code = error.code if isinstance(error, StepError) else getattr(error, "code", type(error).__name__)
            failed.append((place, str(code), str(error) or type(error).__name__, time.perf_counter() - begin))
            nulls = [pa.nulls(1, field.type) for field in step.writes]
            pieces.append(pa.RecordBatch.from_arrays(nulls, schema=_nullable(step.writes)))
    merged = pa.Table.from_batches([piece.cast(_nullable(step.writes)) for piece in pieces]).combine_chunks()
    return merged.to_batches()[0], failed


def _checked(step: Step, batch: pa.RecordBatch, output: pa.RecordBatch) -> pa.RecordBatch:
    """The output; AssertionError (our mistake, not the row's) when it breaks the Step protocol."""
    assert output.num_rows == batch.num_rows, f"step {step.name} was given {batch.num_rows} rows and returned {output.num_rows}"
    assert output.schema.equals(step.writes), f"step {step.name} declares {step.writes} and wrote {output.schema}"
    return output


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def run_steps(
    build: Callable[[], Sequence[Step]],
    rows: pa.Table,
    keys: Sequence[str],
    workers: Workers,
    batch_rows: int = 4,
    wanted: Mapping[str, Sequence[bool]] | None = None,
) -> Iterator[Part]:
    """Runs the steps over all rows; yields parts in order of completion, each row in exactly one.

    `wanted[step name][row]` says whether that step does that row (absent: all). A batch that kills its worker is run
    again row by row; a row that kills it alone fails with code `worker_died`. `build` must be picklable and is called
    in each worker.
    """
    names = tuple(wanted) if wanted is not None else tuple(step.name for step in build())
    masks = wanted if wanted is not None else {name: [True] * rows.num_rows for name in names}
    runner = partial(StepRunner, build, tuple(keys))
    batches = _Batches(rows, range(rows.num_rows), batch_rows, masks)
    lonely: list[int] = []
    for index, part in map_tasks(runner, batches, workers):
        if isinstance(part, WorkerDied):
            lonely += batches[index].rows
        else:
            yield part
    if not lonely:
        return
    singles = _Batches(rows, lonely, 1, masks)
    for index, part in map_tasks(runner, singles, workers):
        yield _killed(build, keys, singles[index], part.message) if isinstance(part, WorkerDied) else part


class _Batches(Sequence[_Batch]):
    """The rows in groups, each cut out when it is asked for: millions of clips wait as one table and a list of numbers."""

    def __init__(self, rows: pa.Table, indices: Sequence[int], size: int, masks: Mapping[str, Sequence[bool]]) -> None:
        self._rows, self._indices, self._size, self._masks = rows.combine_chunks(), indices, size, masks

    def __len__(self) -> int:
        return -(-len(self._indices) // self._size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = tuple(self._indices[index * self._size : (index + 1) * self._size])
        batch = self._rows.take(pa.array(group, pa.int64())).combine_chunks().to_batches()[0]
        wanted = {name: tuple(place for place, row in enumerate(group) if mask[row]) for name, mask in self._masks.items()}
        return _Batch(group, batch, wanted)


def _killed(build: Callable[[], Sequence[Step]], keys: Sequence[str], item: _Batch, message: str) -> Part:
    """A failed part for a row that no worker survives: every step of it is null."""
    steps = [step for step in build() if item.wanted[step.name]]
    outputs = {step.name: _with_keys(item.batch, keys, step, [pa.nulls(1, field.type) for field in step.writes]) for step in steps}
    failures = tuple(
        RowFailure(item.rows[0], step.name, step.lineage.run_id, "worker_died", message, socket.gethostname(), 0.0) for step in steps
    )
    return Part(item.rows, outputs, failures, {})
