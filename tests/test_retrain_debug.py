"""The whole story on a CPU: raw video in, a trained and evaluated model out; killed, resumed, changed.

One root runs uninterrupted with plain child processes. The other runs on Ray and is killed (`kill -9` of the whole
process group) at several moments, each time followed by the same command. Both must hold the same in the end.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import psutil
import pytest
import whole_story as story

from orchestration.processes import leftovers
from pipelines.plan import JOB_NAMES

pytestmark = [pytest.mark.story, pytest.mark.timeout(3000)]

MOMENTS = {
    "scoring": ("score", ""),
    "stage1": ("train_stage1", "stage1"),
    "stage2_phase": ("train_stage2", "mixed_patches"),
}
CHOSEN = os.environ.get("FLASHVIDEO_KILL_AT", "scoring,stage2_phase").split(",")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return story.render_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def uninterrupted(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted") / "root"
    story.run("retrain", root, sources, *story.LOCAL)
    return root


@pytest.fixture(scope="module")
def killed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed at every chosen moment, then run to the end; what was finished at a kill is never done again."""
    root = tmp_path_factory.mktemp("killed") / "root"
    recipe = story.recipe_of(sources)
    finished: dict[str, str] = {}
    for moment in CHOSEN:
        story.run_until("retrain", root, sources, *MOMENTS[moment])
        now = {name: report.started for name, report in story.reports(root, recipe).items()}
        assert finished.items() <= now.items(), "a finished job was done again"
        assert len(now) > len(finished), "nothing was finished before the kill"
        finished = now
    story.run("retrain", root, sources)
    now = {name: report.started for name, report in story.reports(root, recipe).items()}
    assert finished.items() <= now.items(), "a finished job was done again"
    return root


def test_every_job_made_the_same_as_without_kills(uninterrupted: Path, killed: Path, sources: Path):
    recipe = story.recipe_of(sources)
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
    done = story.run("retrain", killed, sources)
    assert "everything is done already" in done.stdout
    assert "report: " in done.stdout
    assert set((killed / "logs").iterdir()) == runs


def test_the_report_is_one_file_with_every_job(killed: Path):
    page = (killed / "report.html").read_text()
    for job in JOB_NAMES:
        assert job in page
    assert 'src="http' not in page


def test_a_changed_phase_redoes_only_what_depends_on_it(killed: Path, sources: Path, uninterrupted: Path):
    story.run("retrain", killed, sources, *story.LOCAL, "stage2.phases.preference.iterations=3")
    facts = story.last_run(killed)
    redone = [name for name, record in facts["jobs"].items() if record["state"] == "done"]
    assert redone == ["train_stage2", "generate", "evaluate"]
    log = (killed / facts["jobs"]["train_stage2"]["log"]).read_text()
    assert "preference: starts" in log
    assert "mixed_patches: starts" not in log
    assert facts["outcome"] == "done"
    assert facts["peak_memory_bytes"] > 0
