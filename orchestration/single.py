"""One job or one enhancement by itself, in the foreground: no Prefect and no Ray of the run's own are needed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from orchestration.jobs import job_command
from orchestration.lock import hold_root
from orchestration.processes import ROOT_MARK, shell_code
from pipelines.artifacts import Workspace, write_atomically
from pipelines.job import UserError
from pipelines.plan import JOB_NAMES
from pipelines.recipe import Recipe, did_you_mean, dump


def run_one(job: str, recipe: Recipe, workspace: Workspace) -> int:
    """Runs one job in a child process whose output is this terminal's; returns its exit code. Raises UserError."""
    if job not in JOB_NAMES:
        raise UserError(f"no job named {job!r}{did_you_mean(job, JOB_NAMES)} (jobs: {', '.join(JOB_NAMES)})")
    with hold_root(workspace.root, f"flashvideo run {job}"):
        run_id = _new_id()
        recipe_file = _record(recipe, workspace, run_id)
        return _foreground(job_command(sys.executable, job, workspace.root, recipe_file, run_id), workspace.root)


def enhance_videos(
    recipe: Recipe, workspace: Workspace, videos: Sequence[Path], prompt: str, out: Path, options: Sequence[str], dry_run: bool
) -> int:
    """Enhances videos with the root's trained Stage II; returns the exit code. Raises UserError for a missing video."""
    missing = [str(video) for video in videos if not video.is_file()]
    if missing:
        raise UserError(f"no such video: {', '.join(missing)}")
    command = [sys.executable, "-m", "pipelines.enhance", "--root", str(workspace.root)]
    tail = ["--out", str(out), "--prompt", prompt, *options, "--", *map(str, videos)]
    if dry_run:
        print(shlex.join([*command, "--recipe", "RECIPE", *tail]))
        return 0
    recipe_file = _record(recipe, workspace, _new_id())
    return _foreground([*command, "--recipe", str(recipe_file), *tail], workspace.root)


def run_sweep(recipe: Recipe, workspace: Workspace, name: str, options: Sequence[str], dry_run: bool) -> int:
    """Sweeps the root's trained Stage II and makes the page of each sweep; returns the exit code. Raises UserError."""
    command = [sys.executable, "-m", "pipelines.sweep", name, "--root", str(workspace.root), *options]
    if dry_run:
        with _passing_recipe(recipe) as file:
            return _foreground([*command, "--recipe", file, "--dry-run"], workspace.root)
    code = _foreground([*command, "--recipe", str(_record(recipe, workspace, _new_id()))], workspace.root)
    if code == 0 or recipe.sweep.strict:
        from orchestration.sweep_report import build_sweep_page

        pattern = "*" if name == "all" else name
        names = sorted(path.parent.name for path in (workspace.root / "sweep").glob(f"{pattern}/results.json"))
        for entry in names:
            print(f"page: {build_sweep_page(workspace.root / 'sweep' / entry)}")
    return code


def degrade_video(recipe: Recipe, video: Path, options: Sequence[str], workspace: Workspace | None) -> int:
    """Draws degradations of a video; returns the exit code."""
    with _passing_recipe(recipe) as file:
        command = [sys.executable, "-m", "pipelines.degrade", str(video), "--recipe", file, *options]
        command += ["--root", str(workspace.root)] if workspace is not None else []
        return subprocess.call(command)


@contextmanager
def _passing_recipe(recipe: Recipe) -> Iterator[str]:
    """A recipe file that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(dump(recipe))
        yield str(path)


def _new_id() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ") + f"-{os.getpid()}"


def _record(recipe: Recipe, workspace: Workspace, run_id: str) -> Path:
    path = workspace.logs(run_id) / "recipe.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dump(recipe))
    except OSError as error:
        raise UserError(f"cannot write under {workspace.root}: {error.strerror}; choose another --root") from None
    return path


def _foreground(command: Sequence[str], root: Path) -> int:
    """Same terminal, same process group: Ctrl-C reaches the job. Returns its exit code."""
    process = subprocess.Popen(command, env={**os.environ, ROOT_MARK: str(root)})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = process.wait()
    return shell_code(code, command[2].removeprefix("pipelines."))  # 130: by Ctrl-C while it still imported
