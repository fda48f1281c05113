"""The command line as a user meets it: child processes, exit codes, one clear line for a mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from curation.store import Store
from orchestration.cli import spread_sources
from orchestration.lock import hold_root

COMMANDS = ["retrain", "curate", "query", "train", "generate", "enhance", "evaluate", "report", "schedule"]
COMMANDS += ["convert", "diff", "errors", "review", "totals", "vbench", "samples", "plan", "doctor", "run"]
COMMANDS += ["sweep", "degrade"]


def flashvideo(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestration.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)


def mistake(*arguments: str, folder: Path | None = None) -> str:
    """The one line on stderr of a command that must end with exit code 2."""
    done = flashvideo(*arguments, folder=folder)
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("flashvideo: ")
    return lines[0]


def test_help_lists_every_command():
    done = flashvideo("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "train stage1", "train stage2", "schedule curate"])
def test_every_command_explains_itself(command: str):
    done = flashvideo(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import sys, orchestration.cli; heavy = {'torch', 'ray', 'prefect', 'lancedb', 'pyarrow', 'pydantic', 'rich.console'};"
        " print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- a user's mistakes -------------------------------------------------------------------------------------------


def test_misspelt_key_is_told_with_the_nearest(tmp_path: Path):
    line = mistake("retrain", "--root", str(tmp_path / "root"), "--set", "stage1.iteration=3")
    assert "'iteration'" in line
    assert 'did you mean "iterations"?' in line


def test_misspelt_key_in_a_recipe_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("preset: debug\nstage2:\n  phase: []\n")
    line = mistake("retrain", "--root", str(tmp_path / "root"), "--recipe", str(tmp_path / "mine.yaml"))
    assert 'did you mean "phases"?' in line


def test_a_report_of_jobs_that_the_recipe_knows_no_more_is_left_as_it_is(tmp_path: Path):
    root, sources = tmp_path / "root", tmp_path / "sources"
    (root / "artifacts" / "ingest" / "0123").mkdir(parents=True)
    (root / "artifacts" / "ingest" / "0123" / "report.json").write_text("{}")
    (root / "report.html").write_text("whole")
    sources.mkdir()
    (sources / "new.mp4").write_bytes(b"of another time")
    assert "is left as it is" in mistake("report", "--root", str(root), "--sources", str(sources))
    assert (root / "report.html").read_text() == "whole"
    assert "there is no run in" in mistake("report", "--root", str(sources))


def test_misspelt_recipe_name(tmp_path: Path):
    assert 'did you mean "debug"?' in mistake("retrain", "--root", str(tmp_path), "--recipe", "debgu")


def test_missing_source_path(tmp_path: Path):
    line = mistake("retrain", "--root", str(tmp_path / "root"), "--sources", str(tmp_path / "nowhere"))
    assert f"{tmp_path}/nowhere does not exist" in line
    assert not (tmp_path / "root").exists(), "nothing is made before the sources are known"


def test_empty_source_folder(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    line = mistake("curate", "--root", str(tmp_path / "root"), "--sources", str(tmp_path / "empty"))
    assert "empty holds no video or image" in line


def test_unknown_column_in_a_query(tmp_path: Path):
    Store.open(tmp_path / "store")
    line = mistake("query", "motoin_proxy >= 1.1", "--root", str(tmp_path))
    assert "motoin_proxy" in line
    assert "motion_proxy" in line


def test_query_without_a_store(tmp_path: Path):
    assert str(tmp_path) in mistake("query", "--root", str(tmp_path))


def test_unwritable_root(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "clip.mp4").write_bytes(b"0")
    line = mistake("retrain", "--root", str(tmp_path / "file" / "root"), "--sources", str(tmp_path / "clip.mp4"))
    assert f"cannot write under {tmp_path}/file/root" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage1.batch_size=15", "15 does not divide over 2 ranks; use 14"),
        ("stage2.phases.3.shape.height=130", "130 px does not divide by 16"),
        ("stage1.shape.frames=10", "frames = 10 is neither 8k+1 nor 5"),
    ],
)
def test_sizes_that_do_not_divide(tmp_path: Path, override: str, said: str):
    assert said in mistake("retrain", "--root", str(tmp_path), "--set", override)


def test_unknown_job(tmp_path: Path):
    assert 'did you mean "score"?' in mistake("run", "scroe", "--root", str(tmp_path))


def test_schedule_without_a_time(tmp_path: Path):
    assert "--cron" in mistake("schedule", "curate", "--root", str(tmp_path))


def test_missing_prompts_file_and_missing_video(tmp_path: Path):
    assert "No such file" in mistake("generate", "--root", str(tmp_path), "--prompts", str(tmp_path / "none.txt"))
    arguments = [str(tmp_path / "none.mp4"), "--prompt", "a cat", "--out", str(tmp_path / "out"), "--root", str(tmp_path)]
    assert "no such video" in mistake("enhance", *arguments)


def test_unknown_option_ends_with_exit_code_2(tmp_path: Path):
    done = flashvideo("retrain", "--bogus")
    assert done.returncode == 2
    assert "--bogus" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_held_root_says_who_holds_it(tmp_path: Path):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    root = tmp_path / "root"
    with hold_root(root, "flashvideo curate (run 7)"):
        line = mistake("retrain", "--root", str(root), "--sources", str(tmp_path / "clip.mp4"))
    assert f"flashvideo curate (run 7), pid {os.getpid()} on " in line
    assert re.search(r"since 20\d\d-\d\d-\d\dT", line)


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        (["retrain", "--sources", "a", "b", "--root", "r"], ["retrain", "--sources", "a", "--sources", "b", "--root", "r"]),
        (["--sources", "a", "--sources", "b", "c"], ["--sources", "a", "--sources", "b", "--sources", "c"]),
        (["--sources", "a", "--", "b"], ["--sources", "a", "--", "b"]),
        (["retrain", "--sources"], ["retrain", "--sources"]),
        (["--sources", "--dry-run"], ["--sources", "--dry-run"]),
        (["query", "a > 1"], ["query", "a > 1"]),
    ],
)
def test_sources_takes_several_values(given: list[str], spread: list[str]):
    assert spread_sources(given) == spread


def test_sources_are_the_same_from_any_folder(tmp_path: Path):
    """A relative source names the same file for the jobs, which run elsewhere."""
    (tmp_path / "one.mp4").write_bytes(b"0")
    (tmp_path / "two.mp4").write_bytes(b"00")
    done = flashvideo("retrain", "--dry-run", "--root", "root", "--sources", "one.mp4", "two.mp4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sources: 2 files" in done.stdout


def test_a_root_goes_on_with_its_own_recipe(tmp_path: Path):
    """Without --recipe the recipe of the root's last run is taken."""
    (tmp_path / "recipe.json").write_text('{"preset": "debug", "name": "mine", "sources": ["/nowhere/mine.mp4"]}')
    done = flashvideo("retrain", "--dry-run", "--root", str(tmp_path))
    assert "recipe mine" in done.stdout
    assert "/nowhere/mine.mp4 does not exist" in done.stdout


def test_convert_is_one_line_and_exit_code_2_for_a_mistake(tmp_path):
    done = flashvideo("convert", "--from", "official", str(tmp_path / "none.pt"), "--to", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stderr.strip() == f"convert: no file {tmp_path / 'none.pt'}"


def test_sweep_and_degrade_end_in_one_line_and_exit_code_2_for_a_mistake(tmp_path: Path):
    assert 'did you mean "guidance"' in mistake("sweep", "guidence", "--root", str(tmp_path))
    assert "no such video" in mistake("degrade", str(tmp_path / "none.mp4"))
    assert "--weak and --strong exclude each other" in mistake("degrade", "a.mp4", "--weak", "--strong")
