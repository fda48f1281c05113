"""The flows, to be read top to bottom: which jobs run, in which order. One job is one Prefect task.

A flow's parameters are texts (Prefect keeps them as JSON): the root, the recipe file, the run's id. The command line
opens the run before it calls a flow; a scheduled flow opens its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_client, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, State

from orchestration.jobs import JobCancelled, JobMistake
from orchestration.runs import Run, find_run, open_run
from orchestration.summary import funnel_markdown, headline_markdown
from pipelines.artifacts import Workspace
from pipelines.recipe import load


@flow(name="curate", flow_run_name="curate-{run_id}")
def curate(root: str, recipe: str, run_id: str | None = None) -> State[Any] | None:
    """Raw files to a tagged, queryable dataset."""
    with _opened("curate", root, recipe, run_id) as run:
        return _to_the_end(run, _curation)


@flow(name="train", flow_run_name="train-{run_id}")
def train(root: str, recipe: str, run_id: str | None = None, target: str = "train") -> State[Any] | None:
    """To two trained stages, or one of them (target "train stage1", "train stage2")."""
    with _opened(target, root, recipe, run_id) as run:
        return _to_the_end(run, _curation, _training)


@flow(name="evaluate", flow_run_name="evaluate-{run_id}")
def evaluate(root: str, recipe: str, run_id: str | None = None, target: str = "evaluate") -> State[Any] | None:
    """To generated videos (target "generate") and their evaluation."""
    with _opened(target, root, recipe, run_id) as run:
        return _to_the_end(run, _curation, _training, _evaluation)


@flow(name="retrain", flow_run_name="retrain-{run_id}")
def retrain(root: str, recipe: str, run_id: str | None = None) -> State[Any] | None:
    """Raw video in, a trained and evaluated two-stage model out."""
    with _opened("retrain", root, recipe, run_id) as run:
        return _to_the_end(run, _curation, _training, _evaluation)


def _curation(run: Run) -> None:
    run.render_samples()
    _job(run, "ingest")
    _job(run, "detect_shots")
    _job(run, "score")
    _job(run, "caption")
    _job(run, "select")
    _keep(run, "funnel", funnel_markdown(run.workspace, run.recipe))


def _training(run: Run) -> None:
    _job(run, "precompute_latents")
    if run.target != "train stage2":
        _job(run, "train_stage1")
    if run.target != "train stage1":
        _job(run, "train_stage2")


def _evaluation(run: Run) -> None:
    _job(run, "generate")
    if run.target != "generate":
        _job(run, "evaluate")
        _keep(run, "headline", headline_markdown(run.workspace, run.recipe))


def _job(run: Run, name: str) -> None:
    """One job as a Prefect task: tried again as often as the recipe says, unless the user must change something."""

    @task(
        name=name,
        task_run_name=name,
        retries=run.recipe.runtime.job_retries,
        retry_delay_seconds=1,
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def job() -> State[Any] | str:
        try:
            return run.job(name).fingerprint
        except JobCancelled:
            return Cancelled(message=f"{name} was stopped in order; the same command goes on from here")

    state = job(return_state=True)
    if state.is_cancelled():
        raise JobCancelled(name)
    state.result()


def _worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:
    try:
        state.result()
    except JobMistake:
        return False
    except Exception:
        return True
    return False


def _to_the_end(run: Run, *parts: Any) -> State[Any] | None:
    """Runs the parts in order. An interrupted job ends the flow as cancelled, not as failed."""
    try:
        for part in parts:
            part(run)
    except JobCancelled as stopped:
        return Cancelled(message=str(stopped))
    return None


def _keep(run: Run, key: str, markdown: str) -> None:
    """An artifact on the flow's page. The page is a convenience: a lost server never stops a run."""
    try:
        create_markdown_artifact(markdown, key=f"{run.target.replace(' ', '-')}-{key}", description=f"run {run.run_id}")
    except Exception as error:
        run.note(f"Prefect keeps no {key} artifact: {error}")


@contextmanager
def _opened(target: str, root: str, recipe: str, run_id: str | None) -> Iterator[Run]:
    """The run that the command line has open, or a new one (scheduled flows)."""
    run = find_run(run_id) if run_id else None
    if run is not None:
        yield run
        return
    with open_run(Workspace(Path(root)), load(recipe), target, run_id) as run:
        run.board.open()
        run.start_services()
        yield run


def _close_abandoned() -> None:
    """Runs that a `kill -9` left as running on the root's own server are marked as crashed (the lock says they are dead)."""
    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        for abandoned in client.read_flow_runs(flow_run_filter=running, sort=FlowRunSort.START_TIME_DESC, limit=20):
            client.set_flow_run_state(abandoned.id, Crashed(message="its process was killed"), force=True)


def run_flow(run: Run) -> None:
    """Runs the flow of the run's target. Raises JobFailed, JobMistake or JobCancelled."""
    if run.prefect is not None:
        _close_abandoned()
    chosen: dict[str, Any] = {"curate": curate, "retrain": retrain, "generate": evaluate, "evaluate": evaluate}
    function = chosen.get(run.target, train)
    parameters = {"root": str(run.workspace.root), "recipe": str(run.recipe_file), "run_id": run.run_id}
    if function in (train, evaluate):
        parameters["target"] = run.target
    state = function(**parameters, return_state=True)
    if state.is_cancelled():
        raise JobCancelled(state.message)
    state.result()
