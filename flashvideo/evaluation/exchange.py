"""VBench's own files in and out: eval_results.json, full_info.json, and the leaderboard's zip. Light.

    {name}_eval_results.json   {dimension: [score, [per clip], [per video]]}; the third list is VBench-Long's, whose fused
                               dimensions have two, each clip with inclip_score, clip2clip_score, mapped_clip2clip_score
    {name}_full_info.json      the prompts in use with their video_list

Source: Vchitect/VBench vbench/__init__.py, vbench2_beta_long, the leaderboard's app, commit 45e79ec.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from flashvideo.evaluation.results import Record
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.totals import DIMENSIONS
from flashvideo.evaluation.vbench_results import DimensionOutcome, VBenchResults
from flashvideo.whole_files import write_text, writing

IMAGING = "imaging_quality"
"""Its videos are on 0-100 in the reference's file, its score on 0-1."""
BOOLEAN = ("dynamic_degree", "human_action")
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file in a zip, so that equal results give equal bytes."""


class ExchangeError(ValueError):
    """A file that is none of VBench's; one clear line."""


class ImportedVideo(Record):
    """One clip or video of somebody's results, 0-1."""

    path: str
    value: float


class ImportedResults(Record):
    """An eval_results.json: scores as fractions, and what was wrong with it."""

    scores: dict[str, float]
    videos: dict[str, tuple[ImportedVideo, ...]]
    """By dimension, in order of path; entries that are not finite are left out and told."""
    per_video: dict[str, tuple[ImportedVideo, ...]]
    """VBench-Long's third list."""
    problems: tuple[Problem, ...]


def read_eval_results(path: Path) -> ImportedResults:
    """Takes 1, 2 or 3 list items a dimension, in any order. NaN and unknown dimensions are problems; ExchangeError else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExchangeError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ExchangeError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ExchangeError(f"{path} must map dimensions to [score, videos], as VBench's eval_results.json does")
    return _imported(data, path.name)


def read_any_results(path: Path) -> ImportedResults:
    """An eval_results.json or a leaderboard's zip of them."""
    return read_leaderboard_zip(path) if path.suffix.lower() == ".zip" else read_eval_results(path)


def _imported(data: Mapping[str, Any], origin: str) -> ImportedResults:
    scores: dict[str, float] = {}
    lists: tuple[dict[str, tuple[ImportedVideo, ...]], ...] = ({}, {})
    problems: list[Problem] = []
    for key, entry in data.items():
        name = str(key).strip().replace(" ", "_")
        if name not in DIMENSIONS:
            problems.append(Problem(kind="name", item=str(key), message=f"{origin}: {key} is no dimension; left out", fatal=False))
            continue
        items = entry if isinstance(entry, list) else [entry]
        score = _finite(items[0] if items else None)
        if score is None:
            shown = items[0] if items else "missing"
            problems.append(Problem(kind="score", item=name, message=f"{origin}: {name} is {shown}, not a number; it counts as missing"))
        else:
            scores[name] = score
        for place, target in zip(items[1:3], lists, strict=False):
            target[name], bad = _videos(name, place)
            problems += [Problem(kind="video", item=one, message=f"{origin}: {name}: {one} has no finite score; left out") for one in bad]
    return ImportedResults(scores=scores, videos=lists[0], per_video=lists[1], problems=tuple(problems))


def _videos(name: str, entries: Any) -> tuple[tuple[ImportedVideo, ...], list[str]]:
    found, bad = [], []
    for place, entry in enumerate(entries if isinstance(entries, list) else []):
        path = str(entry.get("video_path", f"entry {place}")) if isinstance(entry, dict) else f"entry {place}"
        value = _finite(entry.get("video_results")) if isinstance(entry, dict) else None
        if value is None:
            bad.append(path)
        else:
            found.append(ImportedVideo(path=path, value=value / 100 if name == IMAGING else value))
    return tuple(sorted(found, key=lambda one: one.path)), bad


def _finite(value: Any) -> float | None:
    """Numbers and booleans; None for anything else, NaN included."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


# ---- out


def eval_results(results: VBenchResults) -> dict[str, list[Any]]:
    """The reference's mapping. Dimensions without a score are left out, as the leaderboard counts what it reads."""
    return {
        one.dimension: _exported(one, results.protocol["suite"] == "vbench_long") for one in results.dimensions if one.score is not None
    }


def _exported(outcome: DimensionOutcome, long: bool) -> list[Any]:
    name = outcome.dimension
    clips = [
        {
            "video_path": f"{video.video}_{clip}.mp4" if long else f"{video.video}.mp4",
            "video_results": _reference_value(name, value),
            **video.extras.get(clip, {}),
        }
        for video in outcome.videos
        for clip, value in sorted(video.clips.items())
    ]
    rows: list[Any] = [outcome.score, clips]
    fused = any("mapped_clip2clip_score" in clip for clip in clips)
    if long and not fused:
        rows.append(
            [{"video_path": f"{video.video}.mp4", "video_results": _reference_value(name, video.value)} for video in outcome.videos]
        )
    return rows


def _reference_value(dimension: str, value: float) -> float | bool:
    if dimension in BOOLEAN and value in (0.0, 1.0):
        return bool(value)
    return 100 * value if dimension == IMAGING else value


def full_info(items: Sequence[VideoItem]) -> list[dict[str, Any]]:
    """The prompts in use, each with its videos, in order of prompt."""
    entries: dict[str, dict[str, Any]] = {}
    for item in sorted(items, key=lambda one: (one.prompt.text, str(one.path))):
        entry = entries.setdefault(item.prompt.text, {"prompt_en": item.prompt.text, "dimension": list(item.prompt.dimensions)})
        if item.prompt.auxiliary:
            entry["auxiliary_info"] = item.prompt.auxiliary
        entry.setdefault("video_list", []).append(str(item.path))
    return list(entries.values())


def write_exchange(folder: Path, name: str, results: VBenchResults, items: Sequence[VideoItem]) -> tuple[Path, Path]:
    """Writes `{name}_eval_results.json` and `{name}_full_info.json`; returns both."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, data in (("eval_results", eval_results(results)), ("full_info", full_info(items))):
        path = folder / f"{name}_{suffix}.json"
        write_text(path, json.dumps(data, indent=4, allow_nan=False))
        written.append(path)
    return written[0], written[1]


def write_submission(folder: Path, name: str, results: VBenchResults) -> Path | None:
    """`{name}_leaderboard.zip` of `{name}_eval_results.json`. None, and no such file, where a stand-in scored a dimension."""
    path = folder / f"{name}_leaderboard.zip"
    if any(one.stand_in for one in results.dimensions):
        path.unlink(missing_ok=True)
        return None
    write_leaderboard_zip(path, [folder / f"{name}_eval_results.json"])
    return path


def write_leaderboard_zip(path: Path, files: Sequence[Path]) -> None:
    """The JSON files at the zip's top, byte for byte the same for the same files.

    Raises ExchangeError where two files hold one dimension: the leaderboard would silently take the last.
    """
    holders: dict[str, str] = {}
    for file in files:
        for dimension in read_eval_results(file).scores:
            if dimension in holders:
                raise ExchangeError(
                    f"{dimension} is in {holders[dimension]} and in {file.name}; the leaderboard would take the last of them"
                )
            holders[dimension] = file.name
    with writing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files, key=lambda one: one.name):
            archive.writestr(zipfile.ZipInfo(file.name, ZIP_TIME), file.read_bytes(), zipfile.ZIP_DEFLATED)


def read_leaderboard_zip(path: Path) -> ImportedResults:
    """As the leaderboard reads it: JSON mappings at most one folder deep, lists skipped, `_` and blanks alike, the last
    file wins on duplicates (told). Raises ExchangeError for a file that is no zip or holds no score."""
    merged: dict[str, Any] = {}
    problems: list[Problem] = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".json") and len(PurePosixPath(name).parts) <= 2]
            contents = [(name, json.loads(archive.read(name))) for name in names]
    except OSError as error:
        raise ExchangeError(f"{path}: {error.strerror}") from None
    except (zipfile.BadZipFile, ValueError) as error:
        raise ExchangeError(f"{path} is no zip of VBench's JSON files: {error}") from None
    for name, data in contents:
        if not isinstance(data, dict):
            continue
        for key, entry in data.items():
            dimension = str(key).strip().replace(" ", "_")
            if dimension in merged:
                problems.append(
                    Problem(kind="duplicate", item=dimension, message=f"{name} gives {dimension} again; it counts", fatal=False)
                )
            merged[dimension] = entry
    imported = _imported(merged, path.name)
    if not imported.scores:
        raise ExchangeError(f"{path} holds no VBench score")
    return imported.model_copy(update={"problems": (*problems, *imported.problems)})
