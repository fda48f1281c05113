"""The whole story on a CPU: raw video in, a trained and evaluated model out; killed, resumed, changed.

One root runs uninterrupted with plain child processes. The other runs on Ray and is killed (`kill -9` of the whole
process group) at several moments, each time followed by the same command. Both must hold the same in the end.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import whole_story as story

from orchestration.processes import leftovers
from pipelines.artifacts import Workspace
from pipelines.plan import JOB_NAMES

pytestmark = [pytest.mark.story, pytest.mark.timeout(3000)]

WANTED = os.environ.get("FLASHVIDEO_KILL_AT", "scoring,stage2_phase")
CHOSEN = list(story.MOMENTS) if WANTED == "all" else WANTED.split(",")
"""FLASHVIDEO_KILL_AT: names of `whole_story.MOMENTS` in their order, with commas between, or "all"."""
SETTINGS = story.settings_of(CHOSEN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.render_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def uninterrupted(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted") / "root"
    story.run("retrain", root, sources, *story.LOCAL, *SETTINGS)
    return root


@pytest.fixture(scope="module")
def launches(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> list[story.Launch]:
    root = tmp_path_factory.mktemp("killed") / "root"
    return story.kill_and_resume("retrain", root, sources, CHOSEN, *SETTINGS)


@pytest.fixture(scope="module")
def killed(launches: list[story.Launch]) -> Path:
    """Killed at every chosen moment, then run to the end."""
    return launches[-1].root


def test_nothing_finished_is_done_again(launches: list[story.Launch]):
    """Whole jobs, and of the killed job its committed rows, checkpoints, phases and prompts."""
    for launch in launches[:-1]:
        before = JOB_NAMES[: JOB_NAMES.index(story.MOMENTS[launch.moment].job)]
        assert tuple(launch.finished) == before, f"killed at {launch.moment}"
    assert story.done_again(launches) == []


def test_what_is_done_again_is_noticed():
    """Killed in Stage I with 3 train_steps saved; ingest had begun at 10 h."""
    killed = story.Launch(Path(), "stage1", "4 of 10", {"ingest": "10 h"}, (3,), ("ingest",), {}, 0, 1.0)
    went_on = replace(killed, moment=None, finished={"ingest": "10 h", "train_stage1": "11 h"}, ran=("train_stage1",))
    assert story.done_again([killed, replace(went_on, found={"train_stage1": (3,)})]) == []
    assert story.done_again([killed, replace(went_on, found={"train_stage1": (0,)})]) == [
        "train_stage1 found (0,) done, but (3,) was done at the kill"
    ]
    ran_again = replace(went_on, finished={"ingest": "11 h"}, ran=("ingest",))
    assert story.done_again([killed, ran_again]) == [
        "ingest (finished at the kill at stage1)",
        "ingest (its report is another since the kill at stage1)",
    ]


def test_every_job_made_the_same_as_without_kills(uninterrupted: Path, killed: Path, sources: Path):
    recipe = story.recipe_of(sources, *SETTINGS)
    there, here = story.reports(uninterrupted, recipe), story.reports(killed, recipe)
    assert list(here) == list(there) == list(JOB_NAMES)
    assert {name: report.digest for name, report in here.items()} == {name: report.digest for name, report in there.items()}


def test_the_tables_are_equal_and_no_clip_is_there_twice(uninterrupted: Path, killed: Path):
    there, here = story.tables(uninterrupted), story.tables(killed)
    for name, table in there.items():
        assert here[name].num_rows == table.num_rows, name
        assert here[name].equals(table), name
    assert max(Counter(here["clips"]["clip_id"].to_pylist()).values()) == 1
    assert Counter(here["clips"]["state"].to_pylist())["kept"] >= 3


def test_nothing_of_a_run_is_left_running(killed: Path):
    alive = leftovers(killed)
    _, alive = psutil.wait_procs(alive, timeout=20)
    assert alive == []


def test_a_finished_run_starts_nothing(killed: Path, sources: Path):
    """Without Ray, without Prefect; the report and the headline are still told."""
    runs = set((killed / "logs").iterdir())
    done = story.run("retrain", killed, sources, *SETTINGS)
    assert "everything is done already" in done.stdout
    assert "report: " in done.stdout
    assert set((killed / "logs").iterdir()) == runs


def test_the_report_is_one_file_with_every_job(killed: Path):
    page = (killed / "report.html").read_text()
    for job in JOB_NAMES:
        assert job in page
    assert 'src="http' not in page


def test_a_changed_phase_redoes_only_what_depends_on_it(killed: Path, sources: Path):
    """Phase 4 is trained again on the phases before it; the videos and their evaluation are out of date."""
    changed = (*SETTINGS, "stage2.phases.preference.iterations=3")
    story.run("train stage2", killed, sources, *story.LOCAL, *changed)
    facts = story.last_run(killed)
    assert [name for name, record in facts["jobs"].items() if record["state"] == "done"] == ["train_stage2"]
    log = (killed / facts["jobs"]["train_stage2"]["log"]).read_text()
    assert "preference: starts" in log
    assert "mixed_patches: starts" not in log
    assert facts["outcome"] == "done"
    assert facts["peak_memory_bytes"] > 0
    states = Workspace(killed).states(story.recipe_of(sources, *changed), JOB_NAMES)
    assert [state.spec.name for state in states if state.state != "done"] == ["generate", "evaluate"]
