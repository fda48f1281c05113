"""`flashvideo errors`: what failed, by code with examples; and one code tried again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curation.errors import ErrorCode, errors_by_code
from curation.expression import QueryError
from curation.store import MissingStoreError, Store
from orchestration.lock import hold_root
from orchestration.runs import execute
from orchestration.summary import print_summary, shown
from pipelines.artifacts import Workspace
from pipelines.job import UserError
from pipelines.recipe import Recipe
from pipelines.retry import mark_for_retry, still_open

EXAMPLES, LISTED = 2, 20
"""Examples of each code where all are shown, and of one code that is asked for."""


def print_errors(workspace: Workspace, code: str | None, limit: int | None, format: str) -> None:
    """Raises QueryError, UserError."""
    if format not in ("table", "json"):
        raise UserError(f"no format {format!r}; formats: table, json")
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}; give 1 or more")
    found = errors_by_code(_store(workspace), code, limit or (EXAMPLES if code is None else LISTED))
    if format == "json":
        print(json.dumps([_plain(each) for each in found], indent=1, ensure_ascii=False))
    else:
        print("\n".join(_lines(found, code, workspace.root)))


def retry(recipe: Recipe, workspace: Workspace, code: str) -> None:
    """Marks the code's items as not done, curates, and says what became of them. Raises what a curation raises."""
    store = _store(workspace)
    with hold_root(workspace.root, "flashvideo errors"):
        marked = mark_for_retry(workspace, store, code)
    print(marked, flush=True)
    print_summary(workspace, recipe, execute("curate", recipe, workspace))
    failed, total = still_open(store, marked), len(marked.error_ids)
    print(f"{code}: {total - failed} of {total} resolved" + (f", {failed} failed again" if failed else ""))


def _store(workspace: Workspace) -> Store:
    try:
        return Store.open(workspace.store, create=False)
    except MissingStoreError as error:
        raise QueryError(str(error)) from None


def _lines(found: Sequence[ErrorCode], code: str | None, root: Path) -> list[str]:
    total, done = sum(each.open for each in found), sum(each.resolved for each in found)
    if not found:
        return ["no file and no clip ended in an error"]
    lines = [f"{total} open, {done} resolved by a later attempt"]
    for each in found:
        lines += ["", f"{each.code}  {each.open} open" + (f", {each.resolved} resolved" if each.resolved else "") + f"  ({_step(each)})"]
        lines += [f"  {_item(row)}" for row in each.examples]
        more = each.open - len(each.examples)
        lines += (
            [f"  and {more} more" + (f": flashvideo errors {shlex.quote(each.code)}" if code is None else "; --limit N shows them")]
            if more
            else []
        )
    worst = next((each.code for each in found if each.open), None)
    if worst is not None:
        lines += ["", f"try one code again: flashvideo errors {shlex.quote(worst)} --retry --root {shlex.quote(shown(root))}"]
    return lines


def _step(each: ErrorCode) -> str:
    return each.job if each.step in ("", each.job) else f"{each.job}, {each.step}"


def _item(row: dict[str, Any]) -> str:
    """The message, with the file (and clip) before it where it does not name them itself."""
    uri, clip, message = row["uri"] or "", row["clip_id"], " ".join((row["message"] or "").split())
    message = message.removeprefix(f"{uri}: ")
    where = uri.rsplit("/", 1)[-1] + (f" clip {clip[:12]}" if clip else "")
    return f"{where}: {message}"


def _plain(each: ErrorCode) -> dict[str, Any]:
    facts = asdict(each)
    for row in facts["examples"]:
        row["time"] = row["time"].isoformat() if row["time"] else None
    return facts
