"""The policy applied to the clips of the store, a batch at a time: numbers for every clip, texts for the kept ones only.

10 M clips are 4 GB as rows. What is held of a clip is a code for its source, reason and state; of a kept one also its id, caption
and scores, which the release's digest is made of.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import policy
from curation.config import PolicyConfig
from curation.expression import kind_of
from curation.schema import CLIPS
from curation.step import Lineage
from curation.store import READ_AHEAD, READ_ROWS, Store

VERSION = "1"
"""Bumped when the meaning of a rule, subset or split changes."""

WRITES = ("uri", "split", "state", "reject_reason", "reject_mask", "subsets", "select_run")
FACTS = ("clip_id", "source_id", "media_type", "duration_s", "duplicate_cluster", "caption", *WRITES)
"""Columns that selecting reads besides those of the rules and the scores."""
SCORES = ("motion_proxy", "motion_raft", "aesthetic_proxy", "aesthetic")
HELD = ("clip_id", "media_type", "duration_s", "caption", *SCORES)
"""Columns that are held of the kept clips, and those of the rules."""
RELEASED = ("clip_id", "caption", "split", "subsets", "motion_proxy", "motion_raft")
"""Columns whose values, over the kept clips, are the digest of the selection: what training reads (motion: Stage II's motion word)."""
PREFERENCE = "preference"
HASHED_ROWS = 65_536
"""Texts that are put in order at once to be hashed."""


class Verdicts:
    """What is gathered of the clips, batch by batch in the table's order."""

    def __init__(self, store: Store, config: PolicyConfig) -> None:
        self._rules = config.rules
        self._errors = store.read("errors", ["clip_id"], "resolved = false and clip_id is not null")["clip_id"].combine_chunks()
        self.columns = list(dict.fromkeys([*FACTS, *SCORES, *policy.columns_of(self._rules)]))
        self._held = [name for name in self.columns if name in HELD or name in {rule.column for rule in self._rules}]
        self.sources = policy.SourceFacts()
        self.states, self.reasons, self.splits, self.subsets, self.runs = (policy.TextCodes() for _ in range(5))
        self.masks: dict[int, int] = {}
        """Of each reason."""
        self.changes: Counter[tuple[str | None, str]] = Counter()
        """How many clips went from which state to which."""
        self.moved: list[tuple[np.ndarray, pa.Array]] = []
        """Places of clips whose file has another address, and the addresses."""
        self.written: set[str] = set()
        """Columns in which a verdict differs from what is there."""
        self.funnel: list[policy.RuleCount] = []
        self._numbers: dict[str, list[np.ndarray]] = {}
        self._places: list[np.ndarray] = []
        """Of the kept clips, batch by batch, in each in the order of clip_id."""
        self._kept: dict[str, list[pa.Array]] = {name: [] for name in self._held}
        self.count = 0

    def add(self, clips: pa.Table, files: Files) -> None:
        """Judges the next clips. Columns: `self.columns`."""
        encoded = policy.whole_column(clips, "source_id").dictionary_encode(null_encoding="encode")
        uris, unusable = files.of(encoded, policy.whole_column(clips, "uri"))
        judged = policy.judge(clips, self._rules, self._errors, unusable)
        self.funnel = policy.add_counts(self.funnel, judged.funnel) if self.funnel else judged.funnel
        states, reasons = (
            [codes.one(text) for text in texts] for codes, texts in ((self.states, policy.STATES), (self.reasons, judged.reasons))
        )
        numbers = {"state": np.array(states, np.int16)[judged.state], "reason": np.array(reasons, np.int32)[judged.reason]}
        some = np.zeros(len(reasons), np.int64)
        some[judged.reason] = judged.mask
        self.masks.update(zip(reasons, some.tolist(), strict=True))
        kept = judged.state == policy.STATES.index("kept")
        numbers["source"] = self.sources.add(clips, encoded, kept)
        numbers["changed"] = self._compare(clips, numbers, judged.mask, uris)
        numbers["split"] = self.splits.of(policy.whole_column(clips, "split"), np.int16)
        numbers["subsets"] = self._subset_codes(policy.whole_column(clips, "subsets"))
        numbers["run"] = self.runs.of(policy.whole_column(clips, "select_run"), np.int16)
        for name, values in numbers.items():
            self._numbers.setdefault(name, []).append(values)
        rows = np.flatnonzero(kept)
        rows = rows[sorted_places(policy.whole_column(clips, "clip_id").take(pa.array(rows))).to_numpy()]
        held = clips.select(self._held).take(pa.array(rows))
        for name in self._held:
            self._kept[name] += held[name].chunks
        self._places.append(self.count + rows)
        self.count += clips.num_rows

    def _subset_codes(self, subsets: pa.Array) -> np.ndarray:
        """Codes of the joined names; a clip is mostly in one subset or none, and then nothing is joined."""
        lengths = pc.list_value_length(subsets)
        if (pc.max(lengths).as_py() or 0) > 1:
            return self.subsets.of(pc.binary_join(subsets, ","), np.int16)
        number = pc.fill_null(lengths, -1).to_numpy()
        codes = np.where(number == 0, self.subsets.one(""), self.subsets.one(None)).astype(np.int16)
        codes[number == 1] = self.subsets.of(subsets.flatten(), np.int16)
        return codes

    def _compare(self, clips: pa.Table, numbers: Mapping[str, np.ndarray], mask: np.ndarray, uris: pa.Array | None) -> np.ndarray:
        """Which clips have another state, reason or address than the table says."""
        before = self.states.of(policy.whole_column(clips, "state"), np.int16)
        size = len(self.states)
        pairs, names = np.bincount(before.astype(np.int32) * size + numbers["state"], minlength=size * size), self.states.names()
        self.changes.update({(names[pair // size], names[pair % size]): int(pairs[pair]) for pair in np.flatnonzero(pairs)})
        differ = {
            "state": before != numbers["state"],
            "reject_reason": self.reasons.of(policy.whole_column(clips, "reject_reason")) != numbers["reason"],
            "reject_mask": _numbers_differ(policy.whole_column(clips, "reject_mask"), mask),
        }
        if uris is not None:
            old = policy.whole_column(clips, "uri")
            other = pc.or_(pc.xor(old.is_null(), uris.is_null()), pc.fill_null(pc.not_equal(old, uris), False))
            differ["uri"] = other.to_numpy(zero_copy_only=False)
            self.moved.append((self.count + np.flatnonzero(differ["uri"]), uris.filter(other)))
        self.written.update(name for name, rows in differ.items() if rows.any())
        changed: np.ndarray = np.logical_or.reduce(list(differ.values()))
        return changed

    def numbers(self, name: str) -> np.ndarray:
        """A number per clip: source, state, reason, split, subsets, run (codes; of the last three, as they were), changed."""
        parts = self._numbers.pop(name, [])
        return np.concatenate(parts) if parts else np.zeros(0, bool if name == "changed" else np.int32)

    def kept(self) -> tuple[Kept, np.ndarray]:
        """What is held of the kept clips, and their places in the table."""
        held = {name: pa.chunked_array(parts, CLIPS.field(name).type) for name, parts in self._kept.items()}
        places = np.concatenate(self._places) if self._places else np.zeros(0, np.int64)
        self._kept, self._places = {}, []
        return Kept(held), places


class Kept:
    """Columns of the kept clips, each made one array when it is first asked for.

    Runs, one a batch, each in the order of clip_id: put in order as a whole they are read run beside run, not here and there.
    """

    def __init__(self, columns: dict[str, pa.ChunkedArray]) -> None:
        self._columns: dict[str, pa.ChunkedArray | pa.Array] = columns

    def __getitem__(self, name: str) -> pa.Array:
        column = self._columns[name]
        if isinstance(column, pa.ChunkedArray):
            column = self._columns[name] = policy.whole_column(pa.table({name: column}), name)
        return column

    def __setitem__(self, name: str, column: pa.Array) -> None:
        self._columns[name] = column

    def __len__(self) -> int:
        return len(self._columns["clip_id"])

    def table(self, names: Sequence[str]) -> pa.Table:
        """Some of them as a table."""
        return pa.table({name: self[name] for name in names})


@dataclass(frozen=True)
class Selection:
    """The clips with their verdicts."""

    version: int
    """Of the table that was judged; everything below is in its order."""
    clips: int
    source: np.ndarray
    """Per clip: the number of its source."""
    state: np.ndarray
    reason: np.ndarray
    in_preference: np.ndarray
    changed: np.ndarray
    """Which clips differ in any column of WRITES from what is there."""
    written: tuple[str, ...]
    """Columns in which any do."""
    split_of_source: pa.Array
    verdicts: Verdicts
    kept: Kept
    """Columns HELD, those of the rules, split and in_preference of the kept clips."""
    split: policy.Split
    lineage: Lineage

    @property
    def funnel(self) -> list[policy.RuleCount]:
        return self.verdicts.funnel

    def columns(self, names: Sequence[str], start: int, stop: int, uris: pa.Array | None = None) -> pa.Table:
        """Columns of WRITES of these clips; `uris`: as the table has them, where uri is among them."""
        span = slice(start, stop)
        reasons = pa.array(self.verdicts.reasons.names(), pa.string())
        masks = np.array([self.verdicts.masks.get(code, 0) for code in range(len(reasons))], np.int64)
        made = {
            "split": lambda: self.split_of_source.take(pa.array(self.source[span])),
            "state": lambda: pa.array(self.verdicts.states.names(), pa.string()).take(pa.array(self.state[span])),
            "reject_reason": lambda: reasons.take(pa.array(self.reason[span])),
            "reject_mask": lambda: pa.array(masks[self.reason[span]] if len(masks) else np.zeros(0, np.int64)),
            "subsets": lambda: subsets_of(self.in_preference[span]),
            "select_run": lambda: pa.repeat(pa.scalar(self.lineage.run_id), stop - start),
            "uri": lambda: self._moved(uris, start, stop),
        }
        return pa.table([made[name]() for name in names], schema=pa.schema([CLIPS.field(name) for name in names]))

    def _moved(self, uris: pa.Array | None, start: int, stop: int) -> pa.Array:
        assert uris is not None
        for places, addresses in self.verdicts.moved:
            here = (places >= start) & (places < stop)
            if here.any():
                mask = np.zeros(stop - start, bool)
                mask[places[here] - start] = True
                uris = pc.replace_with_mask(uris, pa.array(mask), addresses.filter(pa.array(here)))
        return uris

    def reasons(self) -> Counter[str]:
        """How many clips have which reject_reason."""
        counts = np.bincount(self.reason, minlength=len(self.verdicts.reasons))
        return Counter({name: int(number) for name, number in zip(self.verdicts.reasons.names(), counts, strict=True) if name and number})

    def states(self) -> Counter[str]:
        """How many clips are kept, rejected, failed."""
        counts = np.bincount(self.state, minlength=len(self.verdicts.states))
        return Counter({name: int(number) for name, number in zip(self.verdicts.states.names(), counts, strict=True) if number})

    @cached_property
    def digest(self) -> str:
        """16 hex over what training reads of the kept clips (RELEASED)."""
        return self.content_hash(RELEASED)

    def content_hash(self, names: Sequence[str]) -> str:
        """16 hex over those columns of the kept clips in the order of clip_id."""
        return content_hash(self._order, ((name, self._column(name)) for name in names))

    def _column(self, name: str) -> pa.Array:
        if name == "subsets":
            return subsets_of(self.kept["in_preference"].to_numpy(zero_copy_only=False))
        return self.kept[name]

    @cached_property
    def _order(self) -> pa.Array:
        """Places of the kept clips in the order of clip_id."""
        return sorted_places(self.kept["clip_id"])


def select(store: Store, config: PolicyConfig) -> Selection:
    """The policy applied to the newest clips; writes nothing."""
    verdicts, version, files = Verdicts(store, config), store.version("clips"), Files(store)
    clips = store.at_version("clips", version)
    for batch in clips.to_batches(columns=verdicts.columns, batch_size=READ_ROWS, batch_readahead=READ_AHEAD):
        verdicts.add(pa.Table.from_batches([batch]), files)
    if not verdicts.funnel:
        verdicts.funnel = policy.funnel(CLIPS.empty_table(), config.rules)
    split = policy.assign_split(verdicts.sources, config)
    names = verdicts.sources.names
    split_of_source = pa.array([split.of_source.get(name) for name in names], pa.string())
    source, state = verdicts.numbers("source"), verdicts.numbers("state")
    kept, places = verdicts.kept()
    kept["source"] = pa.array(source[places])
    kept["split"] = split_of_source.take(kept["source"])
    ids = policy.preferred(kept.table(["clip_id", "split", "media_type", "aesthetic", "aesthetic_proxy"]), store.read("labels"), config)
    kept["in_preference"] = pc.is_in(kept["clip_id"], pa.array(sorted(ids), pa.string()))
    in_preference = np.zeros(len(state), bool)
    in_preference[places] = kept["in_preference"].to_numpy(zero_copy_only=False)
    lineage = _lineage(config, kept)
    changed, written = _late_changes(verdicts, split_of_source, source, in_preference, lineage)
    return Selection(
        version,
        verdicts.count,
        source,
        state,
        verdicts.numbers("reason"),
        in_preference,
        changed,
        written,
        split_of_source,
        verdicts,
        kept,
        split,
        lineage,
    )


def _late_changes(
    verdicts: Verdicts, split_of_source: pa.Array, source: np.ndarray, in_preference: np.ndarray, lineage: Lineage
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which clips differ from what is there, and in which columns, with what is known only when all were seen."""
    changed, written = verdicts.numbers("changed"), set(verdicts.written)
    wanted = {
        "split": (
            verdicts.splits,
            "split",
            lambda codes: codes.of(split_of_source, np.int16)[source],
        ),
        "subsets": (verdicts.subsets, "subsets", lambda codes: np.where(in_preference, codes.one(PREFERENCE), codes.one(""))),
        "select_run": (verdicts.runs, "run", lambda codes: codes.one(lineage.run_id)),
    }
    for name, (codes, number, target) in wanted.items():
        differs = verdicts.numbers(number) != target(codes)
        if differs.any():
            written.add(name)
            changed |= differs
    return changed, tuple(name for name in WRITES if name in written)


class Files:
    """Where the files of the sources are. Byte duplicates share a source_id; any present, unfailed copy will do."""

    def __init__(self, store: Store) -> None:
        sources = store.read("sources", ["uri", "source_id", "status"], "present and source_id is not null")
        usable = sources.filter(pc.fill_null(pc.not_equal(sources["status"], "failed"), True))
        ids, uris = usable["source_id"].to_pylist(), usable["uri"].to_pylist()
        self._uris = set(uris)
        self._place = dict(zip(reversed(ids), reversed(uris), strict=True))  # the first uri wins
        self._broken = {source for source in sources["source_id"].to_pylist() if source not in self._place}

    def of(self, sources: pa.DictionaryArray, uris: pa.Array) -> tuple[pa.Array | None, pa.Array]:
        """Per clip: the address of its file now (None: all as they are), and null or why the file cannot be used (absent, failed).

        The clip keeps its address while a file is there.
        """
        names = sources.dictionary.to_pylist()
        found = [self._place.get(name) for name in names]
        first = pa.array(found, pa.string()).take(sources.indices)
        reasons = [
            None if uri is not None else policy.SOURCE_FAILED if name in self._broken else policy.ABSENT
            for name, uri in zip(names, found, strict=True)
        ]
        unusable = pa.array(reasons, pa.string()).take(sources.indices)
        if first.equals(uris):
            return None, unusable
        encoded = uris.dictionary_encode(null_encoding="encode")
        stays = pa.array([uri in self._uris for uri in encoded.dictionary.to_pylist()], pa.bool_()).take(encoded.indices)
        return pc.if_else(stays, uris, pc.coalesce(first, uris)), unusable


def _lineage(config: PolicyConfig, kept: Kept) -> Lineage:
    column = policy.preference_column(kept.table(["aesthetic"]))
    by = "labels" if config.preference_subset == "labels" else f"top of {column} (stand-in for people)"
    return Lineage("select", "policy", VERSION, f"rules; preference: {by}", parameters=config.model_dump(mode="json"))


def subsets_of(chosen: np.ndarray) -> pa.Array:
    """Per clip the list of its subsets: ["preference"] or []."""
    offsets = np.concatenate([[0], np.cumsum(chosen)]).astype(np.int32)
    names = pa.repeat(pa.scalar(PREFERENCE), int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names).cast(CLIPS.field("subsets").type)


def _numbers_differ(old: pa.Array, new: np.ndarray) -> np.ndarray:
    differs: np.ndarray = pc.fill_null(pc.not_equal(old, pa.array(new)), True).to_numpy(zero_copy_only=False)
    return differs


# digest


def sorted_places(texts: pa.Array) -> pa.Array:
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


def content_hash(order: pa.Array, columns: Iterable[tuple[str, pa.Array]]) -> str:
    """16 hex over columns' values in that order of places: null masks, lengths and bytes, not the layout that Arrow happens to use."""
    hasher = hashlib.sha256()
    for name, values in columns:
        hasher.update(f"{name}:{CLIPS.field(name).type}:{len(order)};".encode())
        _hash_array(values, order, hasher)
    return hasher.hexdigest()[:16]


def _hash_array(values: pa.Array, order: pa.Array, hasher: Any) -> None:
    hasher.update(_bytes_of(_in_order(pc.cast(values.is_null(), pa.uint8()), order)))
    if kind_of(values.type) == "list":
        hasher.update(_bytes_of(_in_order(pc.fill_null(pc.list_value_length(values), 0), order)))
        items = values.take(order).flatten()
        _hash_array(items, pa.array(np.arange(len(items))), hasher)
    elif kind_of(values.type) == "text":
        hasher.update(_bytes_of(_in_order(pc.cast(pc.fill_null(pc.binary_length(values), 0), pa.int32()), order)))
        for start in range(0, len(order), HASHED_ROWS):
            texts = values.take(order.slice(start, HASHED_ROWS))
            hasher.update(_text_bytes(texts.drop_null() if texts.null_count else texts))
    else:
        filled = pc.fill_null(values, 0)
        hasher.update(_bytes_of(filled if values.null_count == len(values) == len(order) else _in_order(filled, order)))


def _in_order(numbers: pa.Array, order: pa.Array) -> pa.Array:
    """The numbers in that order of places; whole ones that are all alike (no nulls, ids of one length) are not moved about."""
    if pa.types.is_integer(numbers.type) and len(numbers) == len(order):
        ends = pc.min_max(numbers)
        if ends["min"] == ends["max"]:
            return numbers
    return numbers.take(order)


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
