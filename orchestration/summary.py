"""What a run tells at its end, on the terminal and on its Prefect page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import Workspace
from pipelines.plan import CURATION_JOBS
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from orchestration.runs import Run


def print_summary(workspace: Workspace, recipe: Recipe, run: Run | None) -> None:
    """Builds the report where a job ran or it is missing; prints where it lies and the headline. `run` None: all was done."""
    from orchestration.reports import build_report, headline

    page = workspace.report_html
    if run is not None or not page.is_file():
        page = build_report(workspace, recipe)
    rows = headline(workspace, recipe)
    if run is None:
        print("everything is done already; nothing was started")
    width = max((len(label) for label, _ in rows), default=0)
    for label, value in rows:
        print(f"  {label:<{width}}  {value}")
    if run is not None:
        peak = run.sampler.peak_bytes / 1e9
        print(f"run {run.run_id}: {run.seconds:.0f} s, peak memory of all its processes {peak:.2f} GB (PSS), logs {shown(run.logs)}")
    print(f"report: {shown(page)}")


def funnel_markdown(workspace: Workspace, recipe: Recipe) -> str:
    """Counts of every curation job, and what each rule of the policy left."""
    lines = ["| job | counts |", "|---|---|"]
    rules: list[dict[str, Any]] = []
    for state in workspace.states(recipe, [CURATION_JOBS[-1]]):
        if state.report is not None:
            counts = ", ".join(f"{value:,} {key}" for key, value in state.report.counts.items())
            lines.append(f"| {state.spec.name} | {counts} |")
            rules = state.report.headline.get("funnel", rules)
    if rules:
        keys = list(rules[0])
        lines += ["", f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
        lines += [f"| {' | '.join(str(rule[key]) for key in keys)} |" for rule in rules]
    return "\n".join(lines)


def headline_markdown(workspace: Workspace, recipe: Recipe) -> str:
    """The headline rows, and where the report will lie."""
    from orchestration.reports import headline

    rows = "\n".join(f"| {label} | {value} |" for label, value in headline(workspace, recipe))
    return f"| | |\n|---|---|\n{rows}\n\nreport: [{workspace.report_html}](file://{workspace.report_html})"


def shown(path: Path) -> str:
    """The path as a person in the working directory would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_mistake(message: str) -> None:
    """A user's mistake: one line on stderr."""
    print(f"flashvideo: {' '.join(message.split())}", file=sys.stderr)
