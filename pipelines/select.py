"""Job select: scores -> state and reasons by the policy, subsets, split, and a tag that names the dataset release.

Needs no model and no pixels: a changed threshold is a matter of seconds, and each release stays readable under its tag.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import policy
from curation.column_files import unchanged_columns
from curation.config import PolicyConfig, Rule
from curation.expression import QueryError
from curation.store import Store, Tag
from pipelines.artifacts import Report
from pipelines.job import JobContext, UserError, log, main
from pipelines.recipe import fingerprint
from pipelines.selection import Kept, Selection, select

INDEXED_CLIPS = 1_000_000
"""From so many clips on the end of the job makes the indexes that are absent (4 s for 2 M); below, reading everything is as quick."""


def run(context: JobContext) -> Report:
    """Selects, writes the verdicts, tags the release. Raises UserError when nothing is kept."""
    begin = time.monotonic()
    config = context.recipe.curation.policy
    try:
        policy.check_rules(config.rules)
    except QueryError as error:
        raise UserError(f"curation.policy: {error}") from None
    store = Store.open(context.workspace.store)
    selection = select(store, config)
    total = selection.clips
    changed = write(store, selection)
    store.register_run(selection.lineage, "cpu", time.monotonic() - begin, total, total, 0)
    if len(selection.kept) == 0:
        raise UserError(nothing_kept(store, selection, config.rules))
    store.compact()
    if total >= INDEXED_CLIPS:
        store.build_indexes()
    tag = release(store, selection, config)
    log.info("select: %d of %d clips kept, %d rows changed, tag %s", len(selection.kept), total, changed, tag.name)
    return _report(context, selection, tag)


def write(store: Store, selection: Selection) -> int:
    """Writes the verdicts where any differ from what is there; returns rows changed. Columns that no row changes are not written."""

    def rows(start: int, stop: int) -> pa.Table:
        uris = None
        if "uri" in selection.written:
            clips = store.at_version("clips", selection.version)
            uris = policy.whole_column(clips.to_table(columns=["uri"], offset=start, limit=stop - start), "uri")
        return selection.columns(selection.written, start, stop, uris)

    with ThreadPoolExecutor(1) as beside:
        beside.submit(lambda: selection.digest)  # of as much work as writing, and neither holds the interpreter's lock
        return store.set_columns("clips", selection.version, selection.changed, selection.written, rows)


def release(store: Store, selection: Selection, config: PolicyConfig) -> Tag:
    """Tags the present clips. The name follows from what is kept, its scores and the policy: equal work, equal name.

    Where that name exists already with other file addresses (the files moved), the next free `-2`, `-3` is taken.
    """
    scores = sorted({rule.column for rule in config.rules} | {"motion_proxy", "motion_raft"})
    base = "sel-" + fingerprint(selection.digest, selection.content_hash(scores), selection.lineage.run_id)[:12]
    known, name, number = store.tags(), base, 1
    while name in known:
        if _equal_addresses(store, name):
            return known[name]
        number += 1
        name = f"{base}-{number}"
    return store.tag(name, f"{len(selection.kept)} clips, {_hours(selection.kept):.2f} h", card(store, selection, config))


def _equal_addresses(store: Store, tag: str) -> bool:
    """Whether the kept clips of a release lie where those of now do."""
    if {"clip_id", "state", "uri"} <= unchanged_columns(store.dataset("clips", tag), store.dataset("clips")):
        return True
    of_tag, now = (store.read("clips", ["clip_id", "uri"], "state = 'kept'", tag=name) for name in (tag, None))
    equal: bool = of_tag.equals(now)
    return equal


def card(store: Store, selection: Selection, config: PolicyConfig) -> dict[str, Any]:
    """The dataset card of a release: sizes, policy, lineage, versions of the tables it was made from."""
    kept = selection.kept
    return {
        "rows": selection.clips,
        "kept": len(kept),
        "videos": _count(kept, "media_type", "video"),
        "images": _count(kept, "media_type", "image"),
        "train": _count(kept, "split", "train"),
        "val": _count(kept, "split", "val"),
        "sources": int(np.count_nonzero(np.bincount(kept["source"]))),
        "hours": _hours(kept),
        "preference": _preference_size(kept),
        "policy": config.model_dump(mode="json"),
        "select_run": selection.lineage.run_id,
        "digest": selection.digest,
        "table_versions": {name: store.version(name) for name in ("clips", "sources", "captions", "labels")},
    }


def nothing_kept(store: Store, selection: Selection, rules: Sequence[Rule]) -> str:
    """One line: the funnel's numbers, the rule that removed most, and the setting that would relax it."""
    total = selection.clips
    if total == 0:
        return "select found no clips: no source could be cut into clips. See: flashvideo errors"
    parts = [f"{row.rule} {row.rejected_alone}{f' ({row.unknown} unknown)' if row.unknown else ''}" for row in selection.funnel]
    parts += [f"{reason} {number}" for reason, number in _beside_rules(selection).items() if number]
    line = f"select kept 0 of {total} clips; turned away by each rule alone: {', '.join(parts)}"
    worst = max(range(len(rules)), key=lambda i: selection.funnel[i].rejected_alone, default=None)
    if worst is None or selection.funnel[worst].rejected_alone == 0:
        return line
    return f"{line}. {rules[worst].name} ({policy.condition_of(rules[worst])}) removed most; {_relaxation(store, selection, rules[worst])}"


def _relaxation(store: Store, selection: Selection, rule: Rule) -> str:
    key = f"curation.policy.rules.{rule.name}"
    count = next(row for row in selection.funnel if row.rule == rule.name)
    known = store.read("clips", [rule.column], ordered=False)[rule.column].drop_null()
    if rule.unknown == "reject" and 2 * count.unknown >= count.rejected_alone:
        return f"{rule.column} is unknown for {count.unknown} clips: compute it, or --set {key}.unknown=keep"
    if rule.one_of is not None:
        return f"the clips have {', '.join(sorted(set(known.to_pylist()))[:5])}: change {key}.one_of"
    middle = float(pc.approximate_median(pc.cast(known, pa.float64())).as_py())
    if rule.at_least is not None and middle < rule.at_least:
        return f"half of the clips reach {middle:.3g}: --set {key}.at_least={_rounded(middle, math.floor):g}"
    return f"half of the clips are at or below {middle:.3g}: --set {key}.at_most={_rounded(middle, math.ceil):g}"


def _rounded(value: float, toward: Callable[[float], int]) -> float:
    """Two significant digits, rounded so that the bound lets the value pass."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return toward(value / step) * step


def _report(context: JobContext, selection: Selection, tag: Tag) -> Report:
    kept, states = selection.kept, selection.states()
    counts = {
        "in": selection.clips,
        "kept": len(kept),
        "rejected": states["rejected"],
        "failed": states["failed"],
        "train": _count(kept, "split", "train"),
        "val": _count(kept, "split", "val"),
        "preference": _preference_size(kept),
    }
    beside = _beside_rules(selection)
    counts |= {f"rejected by {row.rule}": row.rejected_alone for row in selection.funnel}
    counts |= {reason: number for reason, number in beside.items() if number}
    return context.report(
        selection.digest,
        counts=counts,
        outputs={"store": context.workspace.relative(context.workspace.store), "tag": tag.name},
        models={"policy": selection.lineage.model},
        headline={
            "funnel": [asdict(row) for row in selection.funnel],
            "beside_rules": beside,
            "hours": _hours(kept),
            "tag_version": tag.version,
        },
        warnings=_warnings(selection, counts, context.recipe.curation.policy),
    )


def _warnings(selection: Selection, counts: dict[str, int], config: PolicyConfig) -> list[str]:
    warnings = []
    if counts["val"] == 0:
        warnings.append("nothing is held out: the kept clips come from one source (or its duplicates); add a second one")
    if counts["preference"] == 0:
        what = (
            "no kept clip has a row with kind keep and value 1 in table labels"
            if config.preference_subset == "labels"
            else "no kept train video has a score"
        )
        warnings.append(f"the preference subset is empty: {what}")
    if selection.split.mixed_groups:
        warnings.append(
            f"{selection.split.mixed_groups} groups of duplicate sources are on both sides of the split, "
            "fixed before they were found to be duplicates"
        )
    return warnings


def _beside_rules(selection: Selection) -> dict[str, int]:
    """Clips kept out by what is no rule: file absent, file failed, no caption."""
    reasons = selection.reasons()
    return {
        cause: sum(number for reason, number in reasons.items() if cause in reason.split(","))
        for cause in (policy.ABSENT, policy.SOURCE_FAILED, policy.NO_CAPTION)
    }


def _count(kept: Kept, column: str, value: str) -> int:
    return int(pc.sum(pc.equal(kept[column], value)).as_py() or 0)


def _preference_size(kept: Kept) -> int:
    return int(pc.sum(kept["in_preference"]).as_py() or 0)


def _hours(kept: Kept) -> float:
    return round(float(pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600, 6)


if __name__ == "__main__":
    main("select", run)
