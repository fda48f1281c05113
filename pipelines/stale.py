"""What a curation with this recipe would compute again, and why: `python -m pipelines.stale ROOT < recipe.json`. Writes nothing.

Each job's own rule decides (the lineage beside every value, the listing of the files), so this table and the jobs cannot
disagree. Jobs that come later see more once earlier ones have run: new files make new clips.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from curation.captions.backends import FACT_READERS, captioner_lineage
from curation.captions.caption import CaptionSetupError
from curation.expression import QueryError
from curation.ingest import ingest_lineage
from curation.sources import SourceError, list_sources
from curation.step import Lineage
from curation.store import MissingStoreError, Store
from pipelines import select as selecting
from pipelines.artifacts import Workspace
from pipelines.caption import captions_of
from pipelines.detect_shots import is_done, shots_lineage
from pipelines.ingest import is_known
from pipelines.job import UserError
from pipelines.recipe import Recipe, RecipeError
from pipelines.score import Plan, plan_steps, present_clips, stale_rows, track_run

REASONS = 3
"""Reasons that a line names; the rest are counted."""


@dataclass(frozen=True)
class Stale:
    """One step that has something to do."""

    step: str
    todo: int
    total: int
    unit: str
    why: Mapping[str, int]
    """Reason -> items."""

    def __str__(self) -> str:
        reasons = [f"{count} {reason}" for reason, count in Counter(self.why).most_common()]
        more = [f"{len(reasons) - REASONS} more reasons"] if len(reasons) > REASONS else []
        return f"{self.step:<16} {self.todo:>8} of {self.total} {self.unit:<6} {'; '.join([*reasons[:REASONS], *more])}"


def find_stale(workspace: Workspace, recipe: Recipe) -> list[Stale]:
    """Every step that would compute something, in running order. Raises SourceError, UserError (weights that are missing)."""
    try:
        store = Store.open(workspace.store, create=False)
    except MissingStoreError:
        files = list_sources(workspace.sources(recipe)).files
        return [Stale("ingest", len(files), len(files), "files", {"new": len(files)})]
    registry = {row["run_id"]: row for row in store.read("runs").to_pylist()}
    found = [_files(workspace, recipe, store), _decodes(workspace, recipe, store, registry)]
    found += _scores(recipe, store, registry)
    found += [_captions(recipe, store, registry), _verdicts(recipe, store)]
    return [each for each in found if each.todo]


def _files(workspace: Workspace, recipe: Recipe, store: Store) -> Stale:
    files = list_sources(workspace.sources(recipe)).files
    known = {row["uri"]: row for row in store.read("sources").to_pylist()}
    run_id = ingest_lineage().run_id
    todo = [file for file in files if not is_known(known.get(file.uri), file, run_id)]
    why = Counter("new" if file.uri not in known else "changed, not readable before, or probed by an older version" for file in todo)
    listed = {file.uri for file in files}
    gone = sum(bool(row["present"]) and uri not in listed for uri, row in known.items())
    if gone:
        why["gone, their clips are set aside"] = gone
    return Stale("ingest", len(todo) + gone, len(files) + gone, "files", why)


def _decodes(workspace: Workspace, recipe: Recipe, store: Store, registry: Mapping[str, Any]) -> Stale:
    lineage = shots_lineage(recipe.curation)
    present = store.read("sources", where="present = true").to_pylist()
    rows = [row for row in present if row["media_type"] is not None and row["status"] != "duplicate"]
    todo = [row for row in rows if not is_done(row, workspace.tracks, lineage)]
    why = Counter(
        "track file is absent" if row["shots_run"] == lineage.run_id else reason(row["shots_run"], lineage, registry) for row in todo
    )
    return Stale("detect_shots", len(todo), len(rows), "files", why)


def _scores(recipe: Recipe, store: Store, registry: Mapping[str, Any]) -> Iterator[Stale]:
    plans: Sequence[Plan] = [plan for group in plan_steps(recipe.curation) for plan in group]
    rows = present_clips(store, ["clip_id", "media_type", *(plan.run_column for plan in plans)])
    masks = stale_rows(rows, plans)
    for plan in plans:
        runs = rows[plan.run_column].to_pylist()
        old = Counter(run for run, wanted in zip(runs, masks[plan.name], strict=True) if wanted)
        why = _reasons(old, plan.lineage, registry)
        total = int(pc.sum(pc.equal(rows["media_type"], "video")).as_py() or 0) if plan.video_only else rows.num_rows
        yield Stale(plan.name, sum(old.values()), total, "clips", why)


def _captions(recipe: Recipe, store: Store, registry: Mapping[str, Any]) -> Stale:
    config = recipe.curation
    try:
        lineage = captioner_lineage(config.caption, track_run(config))
    except CaptionSetupError as error:
        raise UserError(str(error)) from None
    rows = present_clips(store, ["clip_id", "caption_run"])
    described = captions_of(store, lineage, rows)["clip_id"].combine_chunks()
    todo = rows.filter(pc.invert(pc.is_in(rows["clip_id"], described)))
    why = _reasons(Counter(todo["caption_run"].to_pylist()), lineage, registry)
    step = "caption (facts are read anew for every clip)" if config.caption.backend in FACT_READERS and todo.num_rows else "caption"
    return Stale(step, todo.num_rows, rows.num_rows, "clips", why)


def _verdicts(recipe: Recipe, store: Store) -> Stale:
    """Clips whose state would change on the scores of now."""
    selection = selecting.select(store, recipe.curation.policy)
    why: Counter[str] = Counter()
    for (old, new), number in selection.verdicts.changes.items():
        why[f"{old or 'new'} -> {new}"] += number * (old != new)
    return Stale("select", sum(why.values()), selection.clips, "clips", +why)


def _reasons(old_runs: Mapping[str | None, int], lineage: Lineage, registry: Mapping[str, Any]) -> Counter[str]:
    why: Counter[str] = Counter()
    for run_id, count in old_runs.items():
        why[reason(run_id, lineage, registry)] += count
    return why


def reason(run_id: str | None, lineage: Lineage, registry: Mapping[str, Any]) -> str:
    """Why a value of that run is not this lineage's: what differs between the two."""
    if run_id is None:
        return "not made yet"
    old = registry.get(run_id)
    if old is None:
        return f"made by a run that is not registered ({run_id})"
    now = {"version": lineage.version, "model": lineage.model, "weights": lineage.weights_sha256}
    before = {"version": old["version"], "model": old["model"], "weights": old["weights_sha256"]}
    now |= _flat(json.loads(json.dumps(lineage.parameters)))
    before |= _flat(json.loads(old["parameters"] or "{}"))
    changed = [
        f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}"
        for key in dict.fromkeys([*now, *before])
        if now.get(key) != before.get(key)
    ]
    return ", ".join(changed) or "made by another lineage of equal settings"


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def main() -> int:
    """Prints a line a step; returns the exit code."""
    try:
        found = find_stale(Workspace(Path(sys.argv[1])), Recipe.model_validate_json(sys.stdin.read()))
    except (UserError, RecipeError, SourceError, QueryError) as error:
        print(f"flashvideo: {error}", file=sys.stderr)
        return 2
    for each in found:
        print(each)
    print(f"{len(found)} step{'s have' if found[1:] else ' has'} something to do" if found else "nothing is stale")
    return 0


if __name__ == "__main__":
    sys.exit(main())
