"""How far annotators agree: share, Cohen's kappa, and the clips that they judge differently. Pure functions of labels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from curation.review.labels import KEEP, Label, other_of


@dataclass(frozen=True)
class Annotator:
    """What one person said."""

    name: str
    kept: int
    dropped: int
    skipped: int
    compared: int
    """Pairs, ties included, skipped ones not."""
    first: str
    """Times of the first and the last label, ISO 8601."""
    last: str


@dataclass(frozen=True)
class Agreement:
    """Two people over the clips that both kept or dropped."""

    names: tuple[str, str]
    clips: int
    share: float
    kappa: float | None
    """Cohen's; None where both gave every clip the same one answer, so that chance alone would agree."""


@dataclass(frozen=True)
class Dispute:
    """A clip with keeps and drops."""

    clip_id: str
    keep: tuple[str, ...]
    drop: tuple[str, ...]


def annotators(labels: Iterable[Label]) -> list[Annotator]:
    """Every annotator by name."""
    by_name: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        by_name[label.annotator].append(label)
    return [_annotator(name, given) for name, given in sorted(by_name.items())]


def _annotator(name: str, labels: Sequence[Label]) -> Annotator:
    keeps = [label.value for label in labels if label.kind == KEEP]
    times = sorted(label.time for label in labels)
    return Annotator(
        name=name,
        kept=sum(value is not None and value > 0.5 for value in keeps),
        dropped=sum(value is not None and value <= 0.5 for value in keeps),
        skipped=sum(label.value is None for label in labels),
        compared=sum(other_of(label) is not None and label.value is not None for label in labels),
        first=times[0].isoformat(timespec="seconds"),
        last=times[-1].isoformat(timespec="seconds"),
    )


def agreements(labels: Iterable[Label]) -> list[Agreement]:
    """Every two annotators who judged a clip in common."""
    votes = _votes(labels)
    found = []
    for a, b in combinations(sorted({name for given in votes.values() for name in given}), 2):
        pairs = [(given[a], given[b]) for given in votes.values() if a in given and b in given]
        if pairs:
            found.append(Agreement((a, b), len(pairs), sum(x == y for x, y in pairs) / len(pairs), cohens_kappa(pairs)))
    return found


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """(p_o - p_e) / (1 - p_e): agreement beyond what both people's shares of keeps would give by chance (Cohen 1960, eq. 1)."""
    n = len(pairs)
    observed = sum(a == b for a, b in pairs) / n
    keep_a, keep_b = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    chance = keep_a * keep_b + (1 - keep_a) * (1 - keep_b)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def disputes(labels: Iterable[Label]) -> list[Dispute]:
    """Clips with both answers, the most evenly split first."""
    found = []
    for clip_id, given in _votes(labels).items():
        keep = tuple(sorted(name for name, kept in given.items() if kept))
        drop = tuple(sorted(name for name, kept in given.items() if not kept))
        if keep and drop:
            found.append(Dispute(clip_id, keep, drop))
    return sorted(found, key=lambda dispute: (-min(len(dispute.keep), len(dispute.drop)), dispute.clip_id))


def majority(labels: Iterable[Label]) -> set[str]:
    """Clips that most of their annotators keep, as `curation.policy.preferred` counts them."""
    return {clip_id for clip_id, given in _votes(labels).items() if sum(given.values()) > len(given) / 2}


def _votes(labels: Iterable[Label]) -> dict[str, dict[str, bool]]:
    """clip_id -> annotator -> kept."""
    votes: dict[str, dict[str, bool]] = defaultdict(dict)
    for label in labels:
        if label.kind == KEEP and label.value is not None:
            votes[label.clip_id][label.annotator] = label.value > 0.5
    return votes
