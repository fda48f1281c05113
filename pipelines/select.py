"""Job select: scores -> state and reasons by the policy, subsets, split, and a tag that names the dataset release.

Needs no model and no pixels: a changed threshold is a matter of seconds, and each release stays readable under its tag.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import policy
from curation.config import PolicyConfig, Rule
from curation.expression import QueryError, kind_of
from curation.schema import CLIPS
from curation.step import Lineage
from curation.store import Store, Tag
from pipelines.artifacts import Report
from pipelines.job import JobContext, UserError, log, main
from pipelines.recipe import fingerprint

VERSION = "1"
"""Bumped when the meaning of a rule, subset or split changes."""

INDEXED_CLIPS = 1_000_000
"""From so many clips on the end of the job makes the indexes that are absent (4 s for 2 M); below, reading everything is as quick."""

FACTS = (
    "clip_id",
    "source_id",
    "uri",
    "media_type",
    "duration_s",
    "split",
    "duplicate_cluster",
    "caption",
    "motion_proxy",
    "motion_raft",
    "aesthetic_proxy",
    "aesthetic",
)
"""Columns that selecting reads besides those of the rules and its own."""
WRITES = ("uri", "split", "state", "reject_reason", "reject_mask", "subsets", "select_run")
KEPT = ("source_id", "media_type", "duration_s", "split", "subsets")
"""Columns of the kept clips that the card and the report count."""
RELEASED = ("clip_id", "caption", "split", "subsets", "motion_proxy", "motion_raft")
"""Columns whose values, over the kept clips, are the digest of the selection: what training reads (motion: Stage II's motion word)."""


@dataclass(frozen=True)
class Selection:
    """The clips with their verdicts: every column of FACTS, of the rules, and of WRITES."""

    before: pa.Table
    """As the table has them."""
    clips: pa.Table
    """The same rows in the same order."""
    funnel: list[policy.RuleCount]
    split: policy.Split
    lineage: Lineage

    @cached_property
    def kept(self) -> pa.Table:
        """Columns KEPT of the kept clips."""
        return self.clips.select(list(KEPT)).filter(pc.equal(self.clips["state"], "kept"))

    @cached_property
    def digest(self) -> str:
        """16 hex over what training reads of the kept clips (RELEASED)."""
        return _content_hash(self.by_id([*RELEASED]), RELEASED)

    def by_id(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the kept clips in the order of clip_id; the rows themselves come in the engine's order."""
        values = [policy.whole_column(self.clips, name).take(self._kept_by_id) for name in columns]
        fields = [self.clips.schema.field(name).with_type(column.type) for name, column in zip(columns, values, strict=True)]
        return pa.table(values, schema=pa.schema(fields))

    @cached_property
    def _kept_by_id(self) -> pa.Array:
        """Places of the kept clips in the order of clip_id."""
        places = pc.indices_nonzero(pc.equal(self.clips["state"], "kept"))
        return places.take(_sorted_places(policy.whole_column(self.clips, "clip_id").take(places)))


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
    total = selection.clips.num_rows
    changed = write(store, selection)
    store.register_run(selection.lineage, "cpu", time.monotonic() - begin, total, total, 0)
    if selection.kept.num_rows == 0:
        raise UserError(nothing_kept(selection, config.rules))
    store.compact()
    if total >= INDEXED_CLIPS:
        store.build_indexes()
    tag = release(store, selection, config)
    log.info("select: %d of %d clips kept, %d rows changed, tag %s", selection.kept.num_rows, total, changed, tag.name)
    return _report(context, selection, tag)


def select(store: Store, config: PolicyConfig) -> Selection:
    """The policy applied to the newest clips; writes nothing."""
    columns = list(dict.fromkeys([*FACTS, *policy.columns_of(config.rules), *WRITES]))
    before = store.read("clips", columns, ordered=False)
    sources = policy.encoded_sources(before)
    uris, unusable = _sources_of(store, policy.whole_column(before, "uri"), sources)
    errors = store.read("errors", ["clip_id"], "resolved = false and clip_id is not null")
    verdicts = policy.judge(before, config.rules, set(errors["clip_id"].to_pylist()), unusable)
    clips = _with(before, {"uri": uris, **{name: verdicts[name] for name in verdicts.column_names}})
    grouped = clips.select(["clip_id", "media_type", "state", "split", "duplicate_cluster"]).append_column("source_id", sources)
    split = policy.assign_split(grouped, config)
    clips = _with(clips, {"split": _by_source(sources, split.of_source)})
    kept = clips.select(["clip_id", "split", "media_type", "aesthetic", "aesthetic_proxy"]).filter(pc.equal(clips["state"], "kept"))
    preference = policy.preferred(kept, store.read("labels"), config)
    lineage = _lineage(config, kept)
    clips = _with(
        clips,
        {"subsets": _subsets(clips, preference), "select_run": pa.repeat(pa.scalar(lineage.run_id), clips.num_rows)},
    )
    return Selection(before, clips, policy.funnel(before, config.rules), split, lineage)


def write(store: Store, selection: Selection) -> int:
    """Merges the verdicts into the rows where any differ from what is there; returns rows changed. Columns that no row changes
    are not written."""
    before, after = selection.before, selection.clips
    changed, written = None, ["clip_id"]
    for name in WRITES:
        old, new = policy.whole_column(before, name), policy.whole_column(after, name)
        if old.equals(new):
            continue
        differs = _differs(old, new)
        changed = differs if changed is None else pc.or_(changed, differs)
        written.append(name)
    if changed is None:
        return 0
    rows = after.select(written)
    with ThreadPoolExecutor(1) as beside:
        beside.submit(lambda: selection.digest)  # of as much work as writing, and neither holds the interpreter's lock
        return store.merge_columns("clips", rows if pc.all(changed).as_py() else rows.filter(changed))


def release(store: Store, selection: Selection, config: PolicyConfig) -> Tag:
    """Tags the present clips. The name follows from what is kept, its scores and the policy: equal work, equal name.

    Where that name exists already with other file addresses (the files moved), the next free `-2`, `-3` is taken.
    """
    kept = selection.kept
    scores = sorted({rule.column for rule in config.rules} | {"motion_proxy", "motion_raft"})
    base = "sel-" + fingerprint(selection.digest, _content_hash(selection.by_id(scores), scores), selection.lineage.run_id)[:12]
    known, name, number = store.tags(), base, 1
    while name in known:
        if store.read("clips", ["clip_id", "uri"], "state = 'kept'", tag=name).equals(selection.by_id(["clip_id", "uri"])):
            return known[name]
        number += 1
        name = f"{base}-{number}"
    return store.tag(name, f"{kept.num_rows} clips, {_hours(kept):.2f} h", card(store, selection, config))


def card(store: Store, selection: Selection, config: PolicyConfig) -> dict[str, Any]:
    """The dataset card of a release: sizes, policy, lineage, versions of the tables it was made from."""
    kept = selection.kept
    return {
        "rows": selection.clips.num_rows,
        "kept": kept.num_rows,
        "videos": _count(kept, "media_type", "video"),
        "images": _count(kept, "media_type", "image"),
        "train": _count(kept, "split", "train"),
        "val": _count(kept, "split", "val"),
        "sources": pc.count_distinct(kept["source_id"]).as_py(),
        "hours": _hours(kept),
        "preference": _preference_size(kept),
        "policy": config.model_dump(mode="json"),
        "select_run": selection.lineage.run_id,
        "digest": selection.digest,
        "table_versions": {name: store.version(name) for name in ("clips", "sources", "captions", "labels")},
    }


def nothing_kept(selection: Selection, rules: Sequence[Rule]) -> str:
    """One line: the funnel's numbers, the rule that removed most, and the setting that would relax it."""
    total = selection.clips.num_rows
    if total == 0:
        return "select found no clips: no source could be cut into clips. See: flashvideo query --table errors"
    parts = [f"{row.rule} {row.rejected_alone}{f' ({row.unknown} unknown)' if row.unknown else ''}" for row in selection.funnel]
    parts += [f"{reason} {number}" for reason, number in _beside_rules(selection.clips).items() if number]
    line = f"select kept 0 of {total} clips; turned away by each rule alone: {', '.join(parts)}"
    worst = max(range(len(rules)), key=lambda i: selection.funnel[i].rejected_alone, default=None)
    if worst is None or selection.funnel[worst].rejected_alone == 0:
        return line
    return f"{line}. {rules[worst].name} ({policy.condition_of(rules[worst])}) removed most; {_relaxation(selection, rules[worst])}"


def _relaxation(selection: Selection, rule: Rule) -> str:
    key = f"curation.policy.rules.{rule.name}"
    count = next(row for row in selection.funnel if row.rule == rule.name)
    known = selection.before[rule.column].drop_null()
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


def _sources_of(store: Store, uris: pa.Array, of_clips: pa.DictionaryArray) -> tuple[pa.Array, pa.Array]:
    """Per clip: the address of its file now, and null or why the file cannot be used (absent, failed).

    Byte duplicates share a source_id; any present, unfailed copy will do. The clip keeps its address while a file is there.
    """
    sources = store.read("sources", ["uri", "source_id", "status"], "present and source_id is not null")
    usable = sources.filter(pc.fill_null(pc.not_equal(sources["status"], "failed"), True))
    place = dict(reversed(list(zip(usable["source_id"].to_pylist(), usable["uri"].to_pylist(), strict=True))))  # the first uri wins
    broken = set(sources["source_id"].to_pylist()) - set(place)
    reason = {
        source: policy.SOURCE_FAILED if source in broken else policy.ABSENT
        for source in of_clips.dictionary.to_pylist()
        if source not in place
    }
    first = _by_source(of_clips, place)
    if first.equals(uris):
        return uris, _by_source(of_clips, reason)
    stays = pc.is_in(uris, policy.whole_column(usable, "uri"))
    return pc.if_else(stays, uris, pc.coalesce(first, uris)), _by_source(of_clips, reason)


def _by_source(of_clips: pa.DictionaryArray, values: Mapping[str, str]) -> pa.Array:
    """Per clip the value of its source, or null."""
    if not values:
        return pa.nulls(len(of_clips), pa.string())
    known = pa.array([values.get(source) for source in of_clips.dictionary.to_pylist()], pa.string())
    return known.take(of_clips.indices)


def _sorted_places(texts: pa.Array) -> pa.Array:
    """Places of texts in their order. Texts of one length of whole 8-byte words (ids) sort as numbers, ten times quicker."""
    widths = pc.min_max(pc.binary_length(texts))
    low, width = widths["min"].as_py(), widths["max"].as_py()
    if low != width or not width or width % 8 or texts.null_count:
        return pc.array_sort_indices(texts)
    words = np.frombuffer(_text_bytes(texts), np.uint8).view(">u8").reshape(-1, width // 8)
    first = words[:, 0].astype(np.uint64)
    places = np.argsort(first)
    in_order = first[places]
    if (in_order[1:] == in_order[:-1]).any():  # ids that begin alike are rare: most of the work is the first word
        places = np.lexsort(words.astype(np.uint64).T[::-1])
    return pa.array(places)


def _subsets(clips: pa.Table, preference: set[str]) -> pa.Array:
    """Per clip the list of its subsets: ["preference"] or []."""
    chosen = pc.is_in(policy.whole_column(clips, "clip_id"), pa.array(sorted(preference), pa.string()))
    ends = pc.cumulative_sum(pc.cast(chosen, pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    names = pa.repeat(pa.scalar("preference"), len(preference))
    return pa.ListArray.from_arrays(offsets, names).cast(CLIPS.field("subsets").type)


def _lineage(config: PolicyConfig, kept: pa.Table) -> Lineage:
    by = "labels" if config.preference_subset == "labels" else f"top of {policy.preference_column(kept)} (stand-in for people)"
    return Lineage("select", "policy", VERSION, f"rules; preference: {by}", parameters=config.model_dump(mode="json"))


def _report(context: JobContext, selection: Selection, tag: Tag) -> Report:
    clips, kept = selection.clips, selection.kept
    counts = {
        "in": clips.num_rows,
        "kept": kept.num_rows,
        "rejected": _count(clips, "state", "rejected"),
        "failed": _count(clips, "state", "failed"),
        "train": _count(kept, "split", "train"),
        "val": _count(kept, "split", "val"),
        "preference": _preference_size(kept),
    }
    beside = _beside_rules(clips)
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


def _beside_rules(clips: pa.Table) -> dict[str, int]:
    """Clips kept out by what is no rule: file absent, file failed, no caption."""
    reasons = clips["reject_reason"].drop_null().combine_chunks()
    found = {}
    for reason in (policy.ABSENT, policy.SOURCE_FAILED, policy.NO_CAPTION):
        listed = pc.match_substring_regex(reasons, f"(^|,){reason}($|,)")
        found[reason] = int(pc.sum(listed).as_py() or 0)
    return found


def _with(table: pa.Table, columns: dict[str, pa.Array | pa.ChunkedArray]) -> pa.Table:
    for name, column in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, CLIPS.field(name), column.cast(CLIPS.field(name).type))
    return table


def _differs(a: pa.Array, b: pa.Array) -> pa.Array:
    if kind_of(a.type) == "list":
        a, b = pc.binary_join(a, ","), pc.binary_join(b, ",")
    return pc.or_(pc.xor(a.is_null(), b.is_null()), pc.fill_null(pc.not_equal(a, b), False))


def _content_hash(rows: pa.Table, columns: Sequence[str]) -> str:
    """16 hex over the rows' values in their order: null masks, lengths and bytes, not the layout that Arrow happens to use."""
    hasher = hashlib.sha256()
    for name in columns:
        type_ = pa.string() if pa.types.is_large_string(rows.schema.field(name).type) else rows.schema.field(name).type
        hasher.update(f"{name}:{type_}:{rows.num_rows};".encode())
        _hash_array(policy.whole_column(rows, name), hasher)
    return hasher.hexdigest()[:16]


def _hash_array(values: pa.Array, hasher: hashlib._Hash) -> None:
    hasher.update(_bytes_of(pc.cast(values.is_null(), pa.uint8())))
    if kind_of(values.type) == "list":
        hasher.update(_bytes_of(pc.fill_null(pc.list_value_length(values), 0)))
        _hash_array(values.flatten(), hasher)
    elif kind_of(values.type) == "text":
        hasher.update(_bytes_of(pc.cast(pc.fill_null(pc.binary_length(values), 0), pa.int32())))
        hasher.update(_text_bytes(values.drop_null() if values.null_count else values))
    else:
        hasher.update(_bytes_of(pc.fill_null(values, 0)))


def _text_bytes(texts: pa.Array) -> memoryview:
    """The bytes of texts without nulls, one after the other; nothing is copied."""
    _, places, data = texts.buffers()
    if len(texts) == 0 or data is None:
        return memoryview(b"")
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    offsets = np.frombuffer(places, width)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[offsets[0] : offsets[-1]]


def _bytes_of(numbers: pa.Array) -> bytes:
    data: bytes = numbers.to_numpy(zero_copy_only=False).tobytes()
    return data


def _count(table: pa.Table, column: str, value: str) -> int:
    return int(pc.sum(pc.equal(table[column], value)).as_py() or 0)


def _preference_size(kept: pa.Table) -> int:
    return int(pc.sum(pc.equal(pc.list_flatten(kept["subsets"]), "preference")).as_py() or 0)


def _hours(kept: pa.Table) -> float:
    return round(float(pc.sum(kept["duration_s"]).as_py() or 0.0) / 3600, 6)


if __name__ == "__main__":
    main("select", run)
