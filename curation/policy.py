"""The policy: ordered rules over scores -> state, every failing rule, subsets, split. Pure functions of Arrow tables.

Scores are columns; nothing here drops a row. Null is unknown, and each rule says what unknown means for it.
A clip with an open error and an unknown that matters is `failed`, never `rejected`: nobody looked at it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.config import PolicyConfig, Rule
from curation.expression import QueryError, check_column, kind_of, unit_of
from curation.schema import CLIPS

MAX_RULES = 62
"""reject_mask is an int64, one bit a rule."""

TEXT_LIMIT_BYTES = 2_000_000_000
"""Of one array with 32-bit offsets; 3.5 M captions of 100 words are more."""

ABSENT = "absent"
"""Reason of a clip whose file was not listed at the last ingest."""
SOURCE_FAILED = "source:failed"
"""Reason of a clip whose file can no longer be read."""
NO_CAPTION = "caption:unknown"
"""Reason of a clip that has no text to train on."""


@dataclass(frozen=True)
class RuleCount:
    """What one rule does to a table, alone and in its place of the order."""

    rule: str
    condition: str
    """e.g. `motion_proxy >= 1.1`."""
    unit: str
    judged: int
    """Clips of the rule's media type."""
    rejected_alone: int
    """Clips that this rule by itself turns away, unknown ones included."""
    unknown: int
    """Judged clips whose column is null."""
    rejected_first: int
    """Clips that pass every rule before this one and fail here."""
    left: int
    """Clips that pass this rule and all before it."""


@dataclass(frozen=True)
class _Outcome:
    fails: pa.Array
    unknown: pa.Array
    judged: pa.Array


def check_rules(rules: Sequence[Rule]) -> None:
    """Raises QueryError (one line) for an unknown column, a bound on text, words for a number, repeated names."""
    if len(rules) > MAX_RULES:
        raise QueryError(f"the policy has {len(rules)} rules; at most {MAX_RULES} fit the reject mask")
    names = [rule.name for rule in rules]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise QueryError(f"the policy has more than one rule named {repeated[0]}; names go into reject_reason, so each needs its own")
    for rule in rules:
        if "," in rule.name or ":" in rule.name:
            raise QueryError(f"rule name {rule.name!r}: no comma or colon, they separate reasons in reject_reason")
        kind = kind_of(CLIPS.field(check_column(rule.column, CLIPS)).type)
        if (rule.at_least is not None or rule.at_most is not None) and kind != "number":
            raise QueryError(f"rule {rule.name}: at_least and at_most need a number, {rule.column} is {kind}; use one_of")
        if rule.one_of is not None and kind != "text":
            raise QueryError(f"rule {rule.name}: one_of needs a text column, {rule.column} is {kind}; use at_least, at_most")


def columns_of(rules: Sequence[Rule]) -> list[str]:
    """Columns that the rules read, each once, in order."""
    return list(dict.fromkeys(["media_type", *(rule.column for rule in rules)]))


def condition_of(rule: Rule) -> str:
    """The rule in words: `motion_proxy >= 1.1`, `state in (a, b)`."""
    parts = []
    if rule.at_least is not None:
        parts.append(f"{rule.column} >= {rule.at_least:g}")
    if rule.at_most is not None:
        parts.append(f"{rule.column} <= {rule.at_most:g}")
    if rule.one_of is not None:
        parts.append(f"{rule.column} in ({', '.join(rule.one_of)})")
    return " and ".join(parts)


def judge(clips: pa.Table, rules: Sequence[Rule], open_errors: Collection[str] = (), unusable: pa.Array | None = None) -> pa.Table:
    """Columns `state`, `reject_reason`, `reject_mask`, one row a clip, same order.

    `clips` holds clip_id, caption and `columns_of(rules)`. `open_errors`: clip_ids that have an unresolved error.
    `unusable`: per clip null, or ABSENT or SOURCE_FAILED. Bit i of the mask: rule i failed (or was unknown and
    rejects); reasons in the rules' order, `<rule>:unknown` for nulls, after that what keeps a clip out besides rules.
    """
    count = clips.num_rows
    causes: list[tuple[str, pa.Array]] = []
    mask, missing = np.zeros(count, np.int64), clips["caption"].is_null().combine_chunks()
    no_caption = missing
    for bit, rule in enumerate(rules):
        outcome = _outcome(clips, rule)
        rejects_unknown = pc.and_(outcome.unknown, outcome.fails)
        causes += [(f"{rule.name}:unknown", rejects_unknown), (rule.name, pc.and_not(outcome.fails, rejects_unknown))]
        mask |= _numpy(outcome.fails).astype(np.int64) << bit
        missing = pc.or_(missing, rejects_unknown)
    causes.append((NO_CAPTION, no_caption))
    failed = _constant(False, count)
    if open_errors:
        failed = pc.and_(pc.is_in(whole_column(clips, "clip_id"), pa.array(sorted(open_errors), pa.string())), missing)
    if unusable is not None and unusable.null_count < count:
        causes += [
            (reason, pc.fill_null(pc.equal(unusable, reason), False)) for reason in sorted(unusable.unique().drop_null().to_pylist())
        ]
        failed = pc.or_(failed, pc.fill_null(pc.equal(unusable, SOURCE_FAILED), False))
    reason = _reasons(causes, count)
    state = pc.if_else(failed, "failed", pc.if_else(reason.is_null(), "kept", "rejected"))
    return pa.table({"state": state, "reject_reason": reason, "reject_mask": pa.array(mask)})


def _reasons(causes: Sequence[tuple[str, pa.Array]], count: int) -> pa.Array:
    """Per row the names of the causes that hold, comma between; null where none does. Each combination is spelt once."""
    texts, codes = [""], np.zeros(count, np.int64)
    for name, holds in causes:
        codes = 2 * codes + _numpy(holds)
        used = np.flatnonzero(np.bincount(codes, minlength=2 * len(texts)))
        place = np.zeros(2 * len(texts), np.int64)
        place[used] = np.arange(len(used))
        texts = [f"{texts[code // 2]},{name}" if code % 2 else texts[code // 2] for code in used]
        codes = place[codes]
    spelt = pa.array([text[1:] or None for text in texts], pa.string())
    return spelt.take(pa.array(codes)) if texts else pa.nulls(count, pa.string())


def funnel(clips: pa.Table, rules: Sequence[Rule]) -> list[RuleCount]:
    """What each rule turns away, alone and cumulative in order, over all the clips given (`columns_of(rules)`)."""
    passing = _constant(True, clips.num_rows)
    counts = []
    for rule in rules:
        outcome = _outcome(clips, rule)
        first = pc.and_(passing, outcome.fails)
        passing = pc.and_not(passing, outcome.fails)
        counts.append(
            RuleCount(
                rule=rule.name,
                condition=condition_of(rule),
                unit=unit_of(CLIPS.field(rule.column)),
                judged=_true(outcome.judged),
                rejected_alone=_true(outcome.fails),
                unknown=_true(outcome.unknown),
                rejected_first=_true(first),
                left=_true(passing),
            )
        )
    return counts


def _outcome(clips: pa.Table, rule: Rule) -> _Outcome:
    values = whole_column(clips, rule.column)
    judged = _constant(True, clips.num_rows)
    if rule.media != "any":
        judged = pc.fill_null(pc.equal(whole_column(clips, "media_type"), rule.media), False)
    unknown = pc.and_(judged, values.is_null(nan_is_null=pa.types.is_floating(values.type)))
    outside = _constant(False, clips.num_rows)
    if rule.at_least is not None:
        outside = pc.or_(outside, _compare(pc.less, values, rule.at_least))
    if rule.at_most is not None:
        outside = pc.or_(outside, _compare(pc.greater, values, rule.at_most))
    if rule.one_of is not None:
        outside = pc.or_(outside, pc.invert(pc.is_in(values, pa.array(rule.one_of, pa.string()))))
    fails = pc.and_not(pc.and_(judged, outside), unknown)
    if rule.unknown == "reject":
        fails = pc.or_(fails, unknown)
    return _Outcome(fails, unknown, judged)


def _compare(relation: object, values: pa.Array, bound: float) -> pa.Array:
    """The comparison in the column's own precision: a stored float32 0.05 is at most 0.05."""
    if pa.types.is_floating(values.type):
        limit, compared = pa.scalar(bound, pa.float64()).cast(values.type), values
    else:
        limit, compared = pa.scalar(bound, pa.float64()), values.cast(pa.float64())
    return pc.fill_null(relation(compared, limit), False)  # type: ignore[operator]


def whole_column(rows: pa.Table, name: str) -> pa.Array:
    """The column as one array; copied only where it is in pieces (`combine_chunks` copies a single piece too)."""
    column = rows.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    if pa.types.is_string(column.type) and column.nbytes > TEXT_LIMIT_BYTES:
        column = column.cast(pa.large_string())
    return column.combine_chunks()


def _numpy(mask: pa.Array) -> np.ndarray:
    values: np.ndarray = mask.to_numpy(zero_copy_only=False)
    return values


def _constant(value: bool | int, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)


def _true(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)


# subsets


def preference_column(kept: pa.Table) -> str:
    """The score that stands in for people: `aesthetic` where any kept clip has it, else `aesthetic_proxy`."""
    return "aesthetic" if kept["aesthetic"].null_count < kept.num_rows else "aesthetic_proxy"


def preferred(kept: pa.Table, labels: pa.Table, config: PolicyConfig) -> set[str]:
    """clip_ids of the preference subset, at most `preference_size`.

    labels: kept clips that most annotators marked keep (mean of the `keep` labels above one half), best first.
    top_aesthetic (a stand-in): the train videos with the highest `preference_column`. Ties go by clip_id.
    """
    if config.preference_subset == "top_aesthetic":
        score = preference_column(kept)
        pool = pc.and_(pc.equal(kept["split"], "train"), pc.equal(kept["media_type"], "video"))
        known = kept.select(["clip_id", score]).filter(pc.and_(pool, pc.fill_null(pc.is_finite(kept[score]), False)))
        if 0 < config.preference_size < known.num_rows:  # ids are compared among the best scores only
            worst = pc.select_k_unstable(known.select([score]), config.preference_size, [(score, "descending")])[-1]
            known = known.filter(pc.greater_equal(known[score], known[score][worst.as_py()]))
        best = pc.select_k_unstable(known, config.preference_size, [(score, "descending"), ("clip_id", "ascending")])
        return set(known["clip_id"].take(best).to_pylist())
    votes: dict[str, list[float]] = defaultdict(list)
    for label in labels.select(["clip_id", "kind", "value"]).to_pylist():
        if label["kind"] == "keep" and label["value"] is not None:
            votes[label["clip_id"]].append(label["value"])
    known = set(kept["clip_id"].to_pylist())
    agreed = {clip: sum(values) / len(values) for clip, values in votes.items() if clip in known}
    best = sorted((clip for clip, mean in agreed.items() if mean > 0.5), key=lambda clip: (-agreed[clip], clip))
    return set(best[: config.preference_size])


# split


@dataclass(frozen=True)
class Split:
    """source_id -> train | val, for every source that has a split or a kept clip."""

    of_source: dict[str, str]
    mixed_groups: int
    """Groups of duplicate sources that were fixed on both sides before they were known as duplicates."""


def assign_split(clips: pa.Table, config: PolicyConfig) -> Split:
    """Which sources are held out. `clips`: clip_id, source_id, media_type, state, split, duplicate_cluster.

    Sticky: a source that has a split keeps it. Sources that share a duplicate cluster form one group, on one side.
    New groups with kept clips are taken in the order of a hash of their ids: held out until `held_out_share` of
    the sources (by media type; at least `min_held_out_sources` of the videos, or of the images where there are
    no videos) are, the rest train. A group that would overshoot the share by more than it is missed trains, as long as
    a smaller one is there. The last group of a media type is never held out.
    """
    sources = _Sources(clips)
    fixed = dict(sources.fixed)
    mixed = 0
    new: dict[str, list[tuple[str, list[str]]]] = {"video": [], "image": []}
    held: dict[str, int] = {"video": 0, "image": 0}
    total: dict[str, int] = {"video": 0, "image": 0}
    training: dict[str, int] = {"video": 0, "image": 0}
    for source in sources.alone():
        media = "video" if sources.media[source] == "video" else "image"
        total[media] += 1
        side = fixed.get(source)
        held[media] += side == "val"
        training[media] += side == "train"
        if side is None:
            new[media].append((_order([source]), [source]))
    for members in sources.groups():
        kept = [source for source in members if source in sources.kept]
        if not kept:
            continue
        media = "video" if any(sources.media[source] == "video" for source in kept) else "image"
        total[media] += len(kept)
        sides = {fixed[source] for source in members if source in fixed}
        mixed += len(sides) > 1
        if not sides:
            new[media].append((_order(members), members))
            continue
        common = "train" if "train" in sides else "val"
        for source in members:
            fixed.setdefault(source, common)
        held[media] += sum(fixed[source] == "val" for source in kept)
        training[media] += sum(fixed[source] == "train" for source in kept)
    for media in ("video", "image"):
        least = config.min_held_out_sources if media == "video" or not total["video"] else 0
        wanted = max(round(config.held_out_share * total[media]), least)
        waiting = [(sum(source in sources.kept for source in members), members) for _, members in sorted(new[media])]
        chosen: set[int] = set()
        short = wanted - held[media]
        smallest = min((size for size, _ in waiting), default=0)
        for place, (size, _) in enumerate(waiting):
            others = training[media] + len(waiting) - len(chosen) - 1
            nearer = abs(short - size) <= short or size == smallest
            if short > 0 and others > 0 and nearer:
                chosen.add(place)
                short -= size
        for place, (_, members) in enumerate(waiting):
            fixed.update(dict.fromkeys(members, "val" if place in chosen else "train"))
    return Split(fixed, mixed)


def _order(members: list[str]) -> str:
    return hashlib.sha256(("split:" + min(members)).encode()).hexdigest()


class _Sources:
    """Sources of a clips table: media type, fixed split, which have kept clips, which share duplicates."""

    def __init__(self, clips: pa.Table) -> None:
        encoded = encoded_sources(clips)
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        self.media: dict[str, str | None] = dict(zip(names, _one_each(codes, len(names), whole_column(clips, "media_type")), strict=True))
        splits = zip(names, _one_each(codes, len(names), whole_column(clips, "split")), strict=True)
        self.fixed: dict[str, str] = {source: split for source, split in splits if split is not None}
        kept = _numpy(pc.fill_null(pc.equal(whole_column(clips, "state"), "kept"), False))
        self.kept: set[str] = {names[code] for code in np.flatnonzero(np.bincount(codes[kept], minlength=len(names)))}
        clustered = clips.select(["source_id", "duplicate_cluster"]).filter(clips["duplicate_cluster"].is_valid())
        pairs = clustered.group_by(["duplicate_cluster", "source_id"]).aggregate([]).to_pylist()
        self._parent = {row["source_id"]: row["source_id"] for row in pairs}
        first: dict[str, str] = {}
        for row in pairs:
            self._join(first.setdefault(row["duplicate_cluster"], row["source_id"]), row["source_id"])

    def alone(self) -> list[str]:
        """Sources with kept clips that are in no cluster of duplicates."""
        return sorted(source for source in self.kept if source not in self._parent)

    def groups(self) -> list[list[str]]:
        """The others: sources that are duplicates of each other together, every list and the whole sorted."""
        groups: dict[str, list[str]] = defaultdict(list)
        for source in sorted(self._parent):
            groups[self._root(source)].append(source)
        return sorted(groups.values())

    def _root(self, source: str) -> str:
        while self._parent[source] != source:
            self._parent[source] = self._parent[self._parent[source]]
            source = self._parent[source]
        return source

    def _join(self, a: str, b: str) -> None:
        self._parent[self._root(b)] = self._root(a)


def encoded_sources(clips: pa.Table) -> pa.DictionaryArray:
    """The column source_id as codes into its distinct values."""
    column = whole_column(clips, "source_id")
    return column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode(null_encoding="encode")


def _one_each(codes: np.ndarray, count: int, values: pa.Array) -> list[str | None]:
    """Per code the last known value of its rows."""
    known = np.flatnonzero(_numpy(values.is_valid()))
    place = np.full(count, -1)
    place[codes[known]] = known
    found: list[str | None] = values.take(pa.array(place, mask=place < 0)).to_pylist()
    return found
