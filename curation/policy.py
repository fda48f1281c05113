"""The policy: ordered rules over scores -> state, every failing rule, subsets, split. Pure functions of Arrow tables.

Scores are columns; nothing here drops a row. Null is unknown, and each rule says what unknown means for it.
A clip with an open error and an unknown that matters is `failed`, never `rejected`: nobody looked at it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

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


STATES = ("kept", "rejected", "failed")


@dataclass(frozen=True)
class Judgement:
    """Of clips, in their order."""

    state: np.ndarray
    """Place in STATES."""
    reason: np.ndarray
    """Place in `reasons`."""
    reasons: list[str | None]
    """Each combination of failing rules once; null: none."""
    mask: np.ndarray
    funnel: list[RuleCount]

    def table(self) -> pa.Table:
        """Columns `state`, `reject_reason`, `reject_mask`."""
        state = pa.array(STATES).take(pa.array(self.state))
        reason = pa.array(self.reasons, pa.string()).take(pa.array(self.reason))
        return pa.table({"state": state, "reject_reason": reason, "reject_mask": pa.array(self.mask)})


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


def judge(
    clips: pa.Table, rules: Sequence[Rule], open_errors: Collection[str] | pa.Array = (), unusable: pa.Array | None = None
) -> Judgement:
    """The verdict on each clip; it does not depend on the others.

    `clips` holds clip_id, caption and `columns_of(rules)`. `open_errors`: clip_ids that have an unresolved error.
    `unusable`: per clip null, or ABSENT or SOURCE_FAILED. Bit i of the mask: rule i failed (or was unknown and
    rejects); reasons in the rules' order, `<rule>:unknown` for nulls, after that what keeps a clip out besides rules.
    """
    count = clips.num_rows
    causes: list[tuple[str, pa.Array]] = []
    mask, missing = np.zeros(count, np.int64), whole_column(clips, "caption").is_null()
    no_caption, outcomes = missing, [_outcome(clips, rule) for rule in rules]
    for bit, (rule, outcome) in enumerate(zip(rules, outcomes, strict=True)):
        rejects_unknown = pc.and_(outcome.unknown, outcome.fails)
        causes += [(f"{rule.name}:unknown", rejects_unknown), (rule.name, pc.and_not(outcome.fails, rejects_unknown))]
        mask |= _numpy(outcome.fails).astype(np.int64) << bit
        missing = pc.or_(missing, rejects_unknown)
    causes.append((NO_CAPTION, no_caption))
    failed = _constant(False, count)
    if open_errors:
        known = open_errors if isinstance(open_errors, pa.Array) else pa.array(sorted(open_errors), pa.string())
        failed = pc.and_(pc.is_in(whole_column(clips, "clip_id"), known), missing)
    if unusable is not None and unusable.null_count < count:
        causes += [
            (reason, pc.fill_null(pc.equal(unusable, reason), False)) for reason in sorted(unusable.unique().drop_null().to_pylist())
        ]
        failed = pc.or_(failed, pc.fill_null(pc.equal(unusable, SOURCE_FAILED), False))
    reasons, reason = _reasons(causes, count)
    free = np.array([text is None for text in reasons], bool)
    state = np.where(_numpy(failed), STATES.index("failed"), np.where(free[reason], STATES.index("kept"), STATES.index("rejected")))
    return Judgement(state.astype(np.int8), reason, reasons, mask, _funnel(rules, outcomes, count))


def _reasons(causes: Sequence[tuple[str, pa.Array]], count: int) -> tuple[list[str | None], np.ndarray]:
    """Per row the names of the causes that hold, comma between; null where none does. Each combination is spelt once."""
    texts, codes = [""], np.zeros(count, np.int64)
    for name, holds in causes:
        if not pc.any(holds).as_py():
            continue
        codes = 2 * codes + _numpy(holds)
        used = np.flatnonzero(np.bincount(codes, minlength=2 * len(texts)))
        place = np.zeros(2 * len(texts), np.int64)
        place[used] = np.arange(len(used))
        texts = [f"{texts[code // 2]},{name}" if code % 2 else texts[code // 2] for code in used]
        codes = place[codes]
    return [text[1:] or None for text in texts], codes


def funnel(clips: pa.Table, rules: Sequence[Rule]) -> list[RuleCount]:
    """What each rule turns away, alone and cumulative in order, over all the clips given (`columns_of(rules)`)."""
    return _funnel(rules, [_outcome(clips, rule) for rule in rules], clips.num_rows)


def _funnel(rules: Sequence[Rule], outcomes: Sequence[_Outcome], count: int) -> list[RuleCount]:
    passing = _constant(True, count)
    counts = []
    for rule, outcome in zip(rules, outcomes, strict=True):
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


def add_counts(one: Sequence[RuleCount], other: Sequence[RuleCount]) -> list[RuleCount]:
    """The funnel over the clips of both."""
    counted = ("judged", "rejected_alone", "unknown", "rejected_first", "left")
    return [replace(a, **{name: getattr(a, name) + getattr(b, name) for name in counted}) for a, b in zip(one, other, strict=True)]


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
        pool = pc.and_(pool, pc.fill_null(pc.is_finite(kept[score]), False))
        known = _numpy(whole_column(kept, score).filter(whole_column(pa.table({"pool": pool}), "pool")))
        if 0 < config.preference_size < len(known):  # ids are looked at among the best scores only
            worst = np.partition(known, len(known) - config.preference_size)[len(known) - config.preference_size]
            pool = pc.and_(pool, pc.greater_equal(kept[score], worst))
        known = kept.select(["clip_id", score]).filter(pool)
        best = pc.select_k_unstable(known, config.preference_size, [(score, "descending"), ("clip_id", "ascending")])
        return set(known["clip_id"].take(best).to_pylist())
    votes: dict[str, list[float]] = defaultdict(list)
    for label in labels.select(["clip_id", "kind", "value"]).filter(pc.is_in(labels["clip_id"], whole_column(kept, "clip_id"))).to_pylist():
        if label["kind"] == "keep" and label["value"] is not None:
            votes[label["clip_id"]].append(label["value"])
    agreed = {clip: sum(values) / len(values) for clip, values in votes.items()}
    best = sorted((clip for clip, mean in agreed.items() if mean > 0.5), key=lambda clip: (-agreed[clip], clip))
    return set(best[: config.preference_size])


# split

SIDES = ("train", "val")


@dataclass(frozen=True)
class Split:
    """source_id -> train | val, for every source that has a split or a kept clip."""

    of_source: dict[str, str]
    mixed_groups: int
    """Groups of duplicate sources that were fixed on both sides before they were known as duplicates."""


def assign_split(clips: pa.Table | SourceFacts, config: PolicyConfig) -> Split:
    """Which sources are held out. `clips`: source_id, media_type, state, split, duplicate_cluster; or what was gathered of them.

    Sticky: a source that has a split keeps it. Sources that share a duplicate cluster form one group, on one side.
    New groups with kept clips are taken in the order of a hash of their ids: held out until `held_out_share` of
    the sources (by media type; at least `min_held_out_sources` of the videos, or of the images where there are
    no videos) are, the rest train. A group that would overshoot the share by more than it is missed trains, as long as
    a smaller one is there. The last group of a media type is never held out.
    """
    if isinstance(clips, pa.Table):
        sources = SourceFacts()
        kept = pc.fill_null(pc.equal(whole_column(clips, "state"), "kept"), False)
        sources.add(clips, whole_column(clips, "source_id").dictionary_encode(null_encoding="encode"), _numpy(kept))
    else:
        sources = clips
    fixed = sources.fixed()
    mixed = 0
    new: dict[str, list[tuple[bytes, int, Sequence[str]]]] = {"video": [], "image": []}
    held: dict[str, int] = {"video": 0, "image": 0}
    total: dict[str, int] = {"video": 0, "image": 0}
    training: dict[str, int] = {"video": 0, "image": 0}
    for media, side, count in sources.alone():
        total[media] += count
        held[media] += count * (side == "val")
        training[media] += count * (side == "train")
    for media, source in sources.alone_and_new():
        new[media].append((_order(source), 1, (source,)))
    members: Sequence[str]
    for members in sources.groups():
        kept = [source for source in members if sources.is_kept(source)]
        if not kept:
            continue
        media = "video" if any(sources.is_video(source) for source in kept) else "image"
        total[media] += len(kept)
        sides = {fixed[source] for source in members if source in fixed}
        mixed += len(sides) > 1
        if not sides:
            new[media].append((_order(min(members)), len(kept), members))
            continue
        common = "train" if "train" in sides else "val"
        for source in members:
            fixed.setdefault(source, common)
        held[media] += sum(fixed[source] == "val" for source in kept)
        training[media] += sum(fixed[source] == "train" for source in kept)
    for media in ("video", "image"):
        least = config.min_held_out_sources if media == "video" or not total["video"] else 0
        wanted = max(round(config.held_out_share * total[media]), least)
        waiting = sorted(new[media])
        short, chosen = wanted - held[media], 0
        smallest = min((size for _, size, _ in waiting), default=0)
        for _, size, members in waiting:
            others = training[media] + len(waiting) - chosen - 1
            nearer = abs(short - size) <= short or size == smallest
            is_held = short > 0 and others > 0 and nearer
            chosen += is_held
            short -= size * is_held
            for source in members:
                fixed[source] = "val" if is_held else "train"
    return Split(fixed, mixed)


def _order(source: str) -> bytes:
    return hashlib.sha256(("split:" + source).encode()).digest()


class SourceFacts:
    """Sources of clips, gathered batch by batch: media type, fixed split, which have kept clips, which share duplicates."""

    def __init__(self) -> None:
        self.codes = TextCodes()
        self._video, self._kept = np.zeros(0, bool), np.zeros(0, bool)
        self._split = np.zeros(0, np.int8)
        self._clustered: set[tuple[str, str]] = set()
        self._parents: dict[str, str] = {}

    @property
    def names(self) -> list[str]:
        """By code."""
        return self.codes.names()

    def add(self, clips: pa.Table, sources: pa.DictionaryArray, kept: np.ndarray) -> np.ndarray:
        """Takes clips (media_type, split, duplicate_cluster), the source of each and whether it is kept; returns its source's code."""
        codes = self.codes.of(sources)
        grown = len(self.codes) - len(self._kept)
        self._video, self._kept, self._split = (np.pad(held, (0, grown)) for held in (self._video, self._kept, self._split))
        media = whole_column(clips, "media_type")
        known = _numpy(media.is_valid())
        self._video[codes[known]] = _numpy(pc.equal(media, "video").drop_null())  # of several, the last
        self._kept[codes[kept]] = True
        sides = pc.index_in(whole_column(clips, "split"), pa.array(SIDES))
        known = _numpy(sides.is_valid())
        self._split[codes[known]] = _numpy(sides.drop_null()) + 1
        clusters = whole_column(clips, "duplicate_cluster")
        if clusters.null_count < len(clusters):
            known = _numpy(clusters.is_valid())
            names = sources.dictionary.take(sources.indices.filter(pa.array(known)))
            self._clustered.update(zip(clusters.drop_null().to_pylist(), names.to_pylist(), strict=True))
        return codes

    def fixed(self) -> dict[str, str]:
        """source_id -> its split, of those that have one."""
        names = self.names
        return {names[code]: SIDES[self._split[code] - 1] for code in np.flatnonzero(self._split)}

    def is_kept(self, source: str) -> bool:
        return bool(self._kept[self.codes.place[source]])

    def is_video(self, source: str) -> bool:
        return bool(self._video[self.codes.place[source]])

    def alone(self) -> Iterator[tuple[str, str | None, int]]:
        """(media type, split, how many) of the sources with kept clips that are in no cluster of duplicates."""
        alone = self._alone()
        for media, is_video in (("video", True), ("image", False)):
            counts = np.bincount(self._split[alone & (self._video == is_video)], minlength=len(SIDES) + 1)
            yield from zip((media,) * len(counts), (None, *SIDES), map(int, counts), strict=True)

    def alone_and_new(self) -> Iterator[tuple[str, str]]:
        """(media type, source) of those that have no split yet."""
        names = self.names
        for code in np.flatnonzero(self._alone() & (self._split == 0)):
            yield "video" if self._video[code] else "image", names[code]

    def groups(self) -> list[list[str]]:
        """The others: sources that are duplicates of each other together, every list and the whole sorted."""
        self._parents = {source: source for _, source in self._clustered}
        first: dict[str, str] = {}
        for cluster, source in sorted(self._clustered):
            self._parents[self._root(source)] = self._root(first.setdefault(cluster, source))
        groups: dict[str, list[str]] = defaultdict(list)
        for source in sorted(self._parents):
            groups[self._root(source)].append(source)
        return sorted(groups.values())

    def _alone(self) -> np.ndarray:
        alone = self._kept.copy()
        alone[[self.codes.place[source] for source in {source for _, source in self._clustered}]] = False
        return alone

    def _root(self, source: str) -> str:
        while self._parents[source] != source:
            self._parents[source] = self._parents[self._parents[source]]
            source = self._parents[source]
        return source


class TextCodes:
    """A number for every distinct text, in the order in which they come; null has one too."""

    def __init__(self) -> None:
        self.place: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self.place)

    def of(self, values: pa.Array, type_: type[np.signedinteger[Any]] = np.int32) -> np.ndarray:
        """Code per value; a dictionary's null is a value of it. Raises OverflowError when the type has no number left."""
        encoded = values if isinstance(values, pa.DictionaryArray) else values.dictionary_encode(null_encoding="encode")
        codes = np.array([self.one(value) for value in encoded.dictionary.to_pylist()], type_)
        found: np.ndarray = codes[encoded.indices.to_numpy()]
        return found

    def one(self, value: object) -> int:
        """The code of one value."""
        return self.place.setdefault(value, len(self.place))

    def names(self) -> list[Any]:
        """The values by code."""
        return list(self.place)
