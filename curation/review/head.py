"""The preference head: a logistic regression on a clip's embedding (or its scores), trained on the labels so far.

Keep and drop labels are targets of a clip's logit; a comparison is the target of a difference of two logits (Bradley and
Terry 1952), a tie one half. How good it is, is measured on clips whose source it has not seen, since clips of one film are
nearly the same clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.expression import kind_of
from curation.review.labels import KEEP, Label, other_of

PRIOR_STD = 3.0
"""Standard deviation of a logit before any label; small enough that ten labels do not make certainties of all clips."""
FOLDS = 5
LEAST_LABELS = 8
"""Fewer keeps, drops and comparisons than this train nothing."""
MOST_LABELS = 20_000
"""The newest so many are trained on: a Newton step on 768 columns is then about a second."""
NEWTON_STEPS = 25
TOLERANCE = 1e-6
EMBEDDED_SHARE = 0.9
"""The embedding is read where at least this share of the clips has one, else the score columns are."""
LOGGED = frozenset({"motion_proxy", "motion_raft", "motion_top5", "motion_camera", "motion_object", "blur"})
"""Columns over several decades; their logarithm is read."""
SCORE_COLUMNS = (
    "motion_proxy",
    "motion_raft",
    "motion_top5",
    "motion_camera",
    "motion_object",
    "aesthetic_proxy",
    "aesthetic",
    "piqe",
    "musiq",
    "luma_mean",
    "blur",
    "black_ratio",
    "repeated_ratio",
    "short_side_px",
)


@dataclass(frozen=True)
class Features:
    """What the head reads of the clips: float32 N D, scaled so that a row's squared length is about 1."""

    values: np.ndarray
    names: str
    """e.g. `CLIP embedding (768)`."""
    unknown: int
    """Clips that lack it and are taken for the average clip."""


@dataclass(frozen=True)
class Targets:
    """Rows of the regression over the clips' places: logit(plus) - logit(minus), or logit(plus) + intercept where minus is -1."""

    plus: np.ndarray
    minus: np.ndarray
    value: np.ndarray
    """1, 0 or (ties) 0.5."""

    def __len__(self) -> int:
        return len(self.value)

    def take(self, mask: np.ndarray) -> Targets:
        return Targets(self.plus[mask], self.minus[mask], self.value[mask])


@dataclass(frozen=True)
class Check:
    """How the head does on sources that it was not trained on."""

    labels: int
    """Keeps and drops that were predicted."""
    accuracy: float | None
    always: float | None
    """Accuracy of always giving the commoner answer: what the head has to beat."""
    auc: float | None
    """Chance that a kept clip is put before a dropped one; None without both."""
    pairs: int
    """Comparisons without ties that were predicted; at least one of their clips is unseen."""
    pairs_right: float | None
    folds: int
    why_not: str = ""
    """Where nothing could be measured."""


@dataclass(frozen=True)
class Head:
    """A trained head."""

    weights: np.ndarray
    intercept: float
    labels: int
    check: Check

    def probabilities(self, features: Features) -> np.ndarray:
        """Chance of a keep for every clip, float64 N."""
        return _sigmoid(features.values @ self.weights + self.intercept)


def features_of(clips: pa.Table) -> Features:
    """The embedding where nearly all clips have one, else every score column that half of them have and that varies."""
    count = clips.num_rows
    embedding = clips["embedding"].combine_chunks() if "embedding" in clips.column_names else None
    if embedding is not None and count and count - embedding.null_count >= EMBEDDED_SHARE * count:
        known = np.asarray(embedding.is_valid())
        width = embedding.type.list_size
        vectors = np.zeros((count, width), np.float32)
        vectors[known] = embedding.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        vectors = np.where(known[:, None], vectors - vectors[known].mean(axis=0), 0.0)
        length = np.sqrt((vectors[known] ** 2).sum(axis=1).mean())
        return Features((vectors / max(length, 1e-12)).astype(np.float32), f"CLIP embedding ({width})", int((~known).sum()))
    columns, names, some_unknown = [], [], np.zeros(count, bool)
    for name in SCORE_COLUMNS:
        column = clips[name].combine_chunks()
        assert kind_of(column.type) == "number", name
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        known = np.isfinite(values)
        if known.sum() * 2 < count or count == 0:
            continue
        values = np.log1p(np.maximum(values, 0)) if name in LOGGED else values
        spread = values[known].std()
        if spread > 1e-9:
            columns.append(np.where(known, (values - values[known].mean()) / spread, 0.0))
            names.append(name)
            some_unknown |= ~known
    if not columns:
        return Features(np.zeros((count, 0), np.float32), "nothing: no score varies", 0)
    values = np.stack(columns, axis=1) / np.sqrt(len(columns))
    return Features(values.astype(np.float32), f"scores: {', '.join(names)}", int(some_unknown.sum()))


def targets_of(labels: Iterable[Label], place: dict[str, int]) -> Targets:
    """The newest MOST_LABELS keeps, drops and comparisons of clips that have a place; skipped ones say nothing."""
    rows: list[tuple[int, int, float]] = []
    for label in sorted(labels, key=lambda label: (label.time, label.key)):
        plus, other = place.get(label.clip_id), other_of(label)
        minus = place.get(other) if other is not None else -1
        if label.value is not None and plus is not None and minus is not None and (other is not None or label.kind == KEEP):
            rows.append((plus, minus, label.value))
    newest = rows[-MOST_LABELS:]
    places = np.array([row[:2] for row in newest], int).reshape(-1, 2)
    return Targets(places[:, 0], places[:, 1], np.array([row[2] for row in newest], float))


def train(features: Features, targets: Targets, groups: Sequence[str]) -> Head | None:
    """The head, checked on unseen `groups` (a name per clip: its source). None: too few labels, or all of them say the same."""
    if len(targets) < LEAST_LABELS or features.values.shape[1] == 0 or not _differ(targets):
        return None
    weights, intercept = solution = fit(features.values, targets)
    if not (targets.minus < 0).any():  # comparisons fix differences only: let the middle clip be the undecided one
        intercept = -float(np.median(features.values @ weights))
    check = cross_validate(features.values, targets, groups, solution)
    return Head(weights, intercept, len(targets), check)


def _differ(targets: Targets) -> bool:
    single = targets.value[targets.minus < 0]
    return bool((targets.minus >= 0).any() or (len(single) and single.min() < single.max()))


def fit(values: np.ndarray, targets: Targets, start: tuple[np.ndarray, float] | None = None) -> tuple[np.ndarray, float]:
    """(weights D, intercept) of the most probable logistic regression, by Newton's method. The prior is on the weights only.

    There is one such solution; a `start` near it saves steps and changes nothing else.
    """
    single = targets.minus < 0
    rows = values[targets.plus].astype(np.float64)
    rows[~single] -= values[targets.minus[~single]]
    span = None
    if len(rows) < rows.shape[1]:  # the weights lie in the span of the rows, and the prior does not mind a turn into it
        span = np.linalg.svd(rows, full_matrices=False)[2]
        rows = rows @ span.T
    rows = np.concatenate([rows, single[:, None]], axis=1)
    penalty = np.full(rows.shape[1], 1 / PRIOR_STD**2)
    penalty[-1] = 1e-6  # only to keep the system solvable without single labels
    solution = np.zeros(rows.shape[1])
    if start is not None:
        solution = np.append(start[0] if span is None else span @ start[0], start[1])
    for _ in range(NEWTON_STEPS):
        chance = _sigmoid(rows @ solution)
        gradient = rows.T @ (chance - targets.value) + penalty * solution
        scaled = (rows * np.sqrt(chance * (1 - chance))[:, None]).astype(np.float32)  # steers the steps only; the gradient ends them
        curvature = (scaled.T @ scaled).astype(np.float64) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 10.0 / max(float(np.abs(rows @ step).max()), 1e-12))  # at most 10 logits at once: far steps overshoot
        solution -= step
        if np.abs(step).max() < TOLERANCE:
            break
    weights = solution[:-1] if span is None else solution[:-1] @ span
    return weights, float(solution[-1])


def cross_validate(values: np.ndarray, targets: Targets, groups: Sequence[str], start: tuple[np.ndarray, float] | None = None) -> Check:
    """Every label predicted by a head that was trained without the sources of its fold."""
    labelled = sorted({groups[place] for place in (*targets.plus, *targets.minus[targets.minus >= 0])})
    if len(labelled) < 2:
        return Check(0, None, None, None, 0, None, 0, "every label is of one source, and another is needed to check against")
    order = sorted(labelled, key=lambda name: hashlib.sha256(name.encode()).digest())
    folds = min(FOLDS, len(order))
    fold_of = {name: index % folds for index, name in enumerate(order)}
    fold = np.array([fold_of.get(name, -1) for name in groups])
    plus_fold = fold[targets.plus]
    minus_fold = np.where(targets.minus >= 0, fold[targets.minus], -1)
    logits = np.full(len(targets), np.nan)
    for held_out in range(folds):
        seen = targets.take((plus_fold != held_out) & (minus_fold != held_out))
        asked = plus_fold == held_out
        if len(seen) and _differ(seen) and asked.any():
            weights, intercept = fit(values, seen, start)
            scores = values @ weights
            base = np.where(targets.minus >= 0, -scores[targets.minus], intercept)  # place -1 of single labels is not used
            logits[asked] = (scores[targets.plus] + base)[asked]
    return _measured(targets, logits, folds)


def _measured(targets: Targets, logits: np.ndarray, folds: int) -> Check:
    told = np.isfinite(logits)
    single, pair = told & (targets.minus < 0), told & (targets.minus >= 0) & (targets.value != 0.5)
    kept = targets.value[single] > 0.5
    if not single.any() and not pair.any():
        return Check(0, None, None, None, 0, None, folds, "without one source the labels that are left all say the same")
    accuracy = float(((logits[single] > 0) == kept).mean()) if single.any() else None
    always = float(max(kept.mean(), 1 - kept.mean())) if single.any() else None
    right = float(((logits[pair] > 0) == (targets.value[pair] > 0.5)).mean()) if pair.any() else None
    return Check(int(single.sum()), accuracy, always, auc(logits[single], kept), int(pair.sum()), right, folds)


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Share of (positive, negative) pairs in the right order, equal scores counted half (Mann-Whitney). None without both."""
    ups, downs = scores[positive], scores[~positive]
    if not len(ups) or not len(downs):
        return None
    downs = np.sort(downs)
    below, not_above = np.searchsorted(downs, ups, "left"), np.searchsorted(downs, ups, "right")
    return float((below + not_above).sum() / 2 / (len(ups) * len(downs)))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(np.asarray(logits, np.float64) / 2))
