"""What a curation says of a set of films, and how right it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from curation.store import Store
from pipelines.artifacts import Workspace

SEEN_S = 0.5
"""A span speaks for a shot of which it covers so much."""


@dataclass(frozen=True)
class Answers:
    """By file name."""

    scenes: dict[str, list[list[Any]]]
    """[start s, end s, motion or None]; motion in px at 360 px short side per 1/8 s."""
    damaged: list[str]
    duplicates: dict[str, str]
    """A file and the one that it repeats."""
    cuts_s: dict[str, list[float]] = field(default_factory=dict)
    """Where they are not simply the scenes' beginnings."""


@dataclass(frozen=True)
class Score:
    """Against the truth."""

    cut_f1: float
    """Cuts within one frame."""
    motion_error: float
    """Median over moving shots of |found / true - 1|; a shot without an answer counts 100 %."""
    rank: float
    """Spearman's correlation of found and true motion over all shots."""
    damage_named: int
    damaged: int
    false_damage: int
    duplicates_found: int
    duplicates: int
    false_duplicates: int


def read_ours(root: Path) -> Answers:
    """The answers in a run root's store."""
    store = Store.open(Workspace(root).store)
    sources = {row["source_id"]: row for row in store.read("sources").to_pylist() if row["status"] != "duplicate"}
    clips = store.read("clips", ["clip_id", "source_id", "uri", "start_us", "end_us", "motion_proxy", "duplicate_cluster", "is_duplicate"])
    rows = clips.sort_by([("uri", "ascending"), ("start_us", "ascending")]).to_pylist()
    names = {row["clip_id"]: Path(row["uri"]).name for row in rows}
    scenes: dict[str, list[list[Any]]] = {}
    links: dict[str, Counter[str]] = {}
    for row in rows:
        name = Path(row["uri"]).name
        scenes.setdefault(name, []).append([row["start_us"] / 1e6, row["end_us"] / 1e6, row["motion_proxy"]])
        if row["is_duplicate"]:
            links.setdefault(name, Counter())[names[row["duplicate_cluster"]]] += 1
    duplicates = {name: count.most_common(1)[0][0] for name, count in links.items() if 2 * count.total() >= len(scenes[name])}
    for row in store.read("sources").to_pylist():
        if row["status"] == "duplicate":
            duplicates[Path(row["uri"]).name] = Path(row["duplicate_of"]).name
    errors = store.read("errors", where="resolved = false").to_pylist()
    damaged = {Path(row["uri"]).name for row in errors if row["job"] != "score" and row["code"] != "no_clip"}
    cuts = {Path(row["uri"]).name: [cut / 1e6 for cut in row["cuts_us"] or []] for row in sources.values() if row["uri"]}
    return Answers(scenes, sorted(damaged), duplicates, cuts)


def judge(truth: dict[str, dict[str, Any]], answers: Answers) -> Score:
    """How right the answers are; cuts and motion on the films and their second encodings."""
    sound = {name: row for name, row in truth.items() if row["kind"] in ("film", "re-encoded")}
    damaged = {name for name, row in truth.items() if row["kind"] == "damaged"}
    copies = {name for name, row in truth.items() if row["kind"] in ("bytes", "re-encoded")}
    family = {name: row.get("of") or name for name, row in truth.items()}
    links = {frozenset(pair) for pair in answers.duplicates.items()}
    true_links = {link for link in links if len({family[name] for name in link}) == 1}
    wrong = len(links) - len(true_links)
    linked = {name for link in true_links for name in link}
    pairs = [pair for name, row in sound.items() for pair in _motions(row, answers.scenes.get(name, []))]
    moving = sorted(abs(found / true - 1) for true, found in pairs if true > 0)
    return Score(
        cut_f1=_f1(sound, answers),
        motion_error=moving[len(moving) // 2],
        rank=float(spearmanr([true for true, _ in pairs], [found for _, found in pairs]).statistic),
        damage_named=len(damaged & set(answers.damaged)),
        damaged=len(damaged),
        false_damage=len(set(answers.damaged) - damaged),
        duplicates_found=sum(name in linked and _meets(name, family, true_links) for name in copies),
        duplicates=len(copies),
        false_duplicates=wrong,
    )


def _meets(name: str, family: dict[str, str], links: set[frozenset[str]]) -> bool:
    """Whether the copy is linked with its film or with another copy of it."""
    return any(name in link and all(family[other] == family[name] for other in link) for link in links)


def _f1(sound: dict[str, dict[str, Any]], answers: Answers) -> float:
    right = found_total = true_total = 0
    for name, row in sound.items():
        wanted = [shot["start_s"] for shot in row["shots"][1:]]
        found = list(answers.cuts_s.get(name, [scene[0] for scene in answers.scenes.get(name, [])[1:]]))
        found_total, true_total = found_total + len(found), true_total + len(wanted)
        for cut in wanted:
            near = [other for other in found if abs(other - cut) <= 1 / row["rate_hz"] + 1e-3]
            if near:
                right += 1
                found.remove(near[0])
    return 2 * right / (found_total + true_total)


def _motions(row: dict[str, Any], scenes: list[list[Any]]) -> list[tuple[float, float]]:
    """(true, found) per shot; 0 where nothing speaks for it."""
    pairs = []
    for shot in row["shots"]:
        parts = [(min(end, shot["end_s"]) - max(start, shot["start_s"]), motion) for start, end, motion in scenes]
        heard = [(weight, motion) for weight, motion in parts if weight >= SEEN_S and motion is not None]
        total = sum(weight for weight, _ in heard)
        pairs.append((shot["speed_px"], sum(weight * motion for weight, motion in heard) / total if total else 0.0))
    return pairs
