"""Which videos there are, which prompt each shows, and what is wrong with the folder. Light (no torch).

A suite file is VBench_full_info.json, or a list of the same entries for videos of one's own:

    [{"prompt_en": "...", "dimension": ["scene"], "auxiliary_info": {...}, "video_list": ["a.mp4"]}]

Without `video_list` videos are found by name, `{prompt_en}-{index}.mp4`, in the folder or in its dimension folders.
Source: Vchitect/VBench README, vbench/VBench_full_info.json, dimension_to_folder.json, commit 45e79ec.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashvideo.evaluation.results import Record
from flashvideo.evaluation.scores import Prompt
from flashvideo.evaluation.totals import DIMENSIONS

FOLDER_OF: dict[str, str] = {name: name for name in DIMENSIONS} | {
    "background_consistency": "scene",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
}
"""dimension_to_folder.json."""
FULL_INFO_AT = "VBench_full_info.json is in github.com/Vchitect/VBench under vbench/"
NAME = re.compile(r"^(?P<prompt>.+)-(?P<index>\d+)$")


class SuiteError(ValueError):
    """A suite file or folder that cannot be used; one clear line."""


class Problem(Record):
    """One thing wrong with one item."""

    kind: str
    """missing, duplicate, name, case (of a folder); unreadable, frames, size, video, dimension, static (of a video); score (of a file)."""
    item: str
    message: str
    fatal: bool = True
    """The item is left out; False: only told."""


class VideoItem(Record):
    """One video to score."""

    path: Path
    prompt: Prompt
    dimensions: tuple[str, ...]
    """Of the prompt's, those that this file is scored in."""
    index: int

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Suite:
    """Videos in order of path, and the problems found."""

    items: tuple[VideoItem, ...]
    problems: tuple[Problem, ...] = field(default=())


def read_prompts(path: Path) -> list[tuple[Prompt, tuple[str, ...]]]:
    """Prompts with their `video_list`, entries of one prompt merged. Raises SuiteError with file and entry."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}; {FULL_INFO_AT}") from None
    except ValueError as error:
        raise SuiteError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, list) or not data:
        raise SuiteError(f"{path} must be a list of prompts as in VBench_full_info.json; {FULL_INFO_AT}")
    merged: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {}
    for place, entry in enumerate(data):
        text, names = _entry(path, place, entry)
        dimensions, auxiliary, videos = merged.setdefault(text, ([], {}, []))
        dimensions += [name for name in names if name not in dimensions]
        auxiliary.update(entry.get("auxiliary_info") or {})
        given = entry.get("video_list") or []
        videos += [given] if isinstance(given, str) else given
    return [(Prompt(text=text, dimensions=tuple(names), auxiliary=aux), tuple(videos)) for text, (names, aux, videos) in merged.items()]


def _entry(path: Path, place: int, entry: Any) -> tuple[str, list[str]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
        raise SuiteError(f"{path}: entry {place} has no prompt_en")
    names = entry.get("dimension")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise SuiteError(f'{path}: entry {place} ("{entry["prompt_en"]}") has no dimension')
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise SuiteError(f"{path}: entry {place} names the dimension {unknown[0]}; known: {', '.join(DIMENSIONS)}")
    return entry["prompt_en"], names


def find_videos(
    folder: Path, prompts: Sequence[tuple[Prompt, tuple[str, ...]]], dimensions: Iterable[str] = DIMENSIONS, samples: int = 5
) -> Suite:
    """The videos of `folder` that the prompts name, restricted to `dimensions`.

    Raises SuiteError for a folder without a video. What is missing, double or unexpected is a problem, told once each.
    """
    wanted = set(dimensions)
    paths = sorted(path for path in folder.rglob("*.mp4") if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise SuiteError(f"{folder} holds no .mp4 video" if folder.is_dir() else f"{folder} is no folder")
    listed = {str(Path(video)): prompt for prompt, videos in prompts for video in videos}
    by_text = {prompt.text: prompt for prompt, videos in prompts}
    items: list[VideoItem] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        place = path.relative_to(folder).as_posix()
        found = _prompt_of(path, place, listed, by_text)
        if found is None:
            problems.append(Problem(kind="name", item=place, message=_name_message(path, by_text)))
            continue
        prompt, index = found
        names = tuple(name for name in _of_folder(path.parent.name, prompt.dimensions) if name in wanted)
        doubles = [(name, seen[(prompt.text, name, index)]) for name in names if (prompt.text, name, index) in seen]
        if doubles:
            other = doubles[0][1].relative_to(folder).as_posix()
            problems.append(Problem(kind="duplicate", item=place, message=f"{place} repeats {other}; the latter counts"))
            continue
        seen.update({(prompt.text, name, index): path for name in names})
        if names:
            items.append(VideoItem(path=path, prompt=prompt, dimensions=names, index=index))
    problems += _absent(prompts, seen, wanted, samples) + _same_but_case(by_text)
    return Suite(tuple(items), tuple(problems))


def _prompt_of(path: Path, place: str, listed: dict[str, Prompt], by_text: dict[str, Prompt]) -> tuple[Prompt, int] | None:
    named = NAME.match(path.stem)
    for key in (place, path.name, str(path)):
        if key in listed:
            return listed[key], int(named["index"]) if named else 0
    if named and named["prompt"] in by_text:
        return by_text[named["prompt"]], int(named["index"])
    return None


def _name_message(path: Path, by_text: dict[str, Prompt]) -> str:
    named = NAME.match(path.stem)
    if named is None:
        return f'"{path.name}" must be named "{{prompt}}-{{index}}.mp4", or stand in a video_list'
    close = next((text for text in by_text if text.casefold() == named["prompt"].casefold()), None)
    hint = f'; did you mean "{close}"?' if close else ""
    return f'"{path.name}": no prompt reads "{named["prompt"]}"{hint}'


def _of_folder(folder: str, dimensions: Sequence[str]) -> tuple[str, ...]:
    """Those of a prompt's dimensions whose folder this is; all, where the folder is not a dimension's."""
    mine = tuple(name for name in dimensions if FOLDER_OF[name] == folder)
    return mine or tuple(dimensions)


def _absent(
    prompts: Sequence[tuple[Prompt, tuple[str, ...]]], seen: dict[tuple[str, str, int], Path], wanted: set[str], samples: int
) -> list[Problem]:
    """Prompts with fewer videos than `samples`, told but not fatal: the rest is scored."""
    counts = Counter((text, name) for text, name, _ in seen)
    problems = []
    for prompt, videos in prompts:
        expected = len(videos) or samples
        short = {name: counts[(prompt.text, name)] for name in prompt.dimensions if name in wanted}
        least = min(short.values(), default=expected)
        if least < expected:
            message = f'"{prompt.text}": {least} of {expected} videos'
            problems.append(Problem(kind="missing", item=prompt.text, message=message, fatal=False))
    return problems


def _same_but_case(by_text: dict[str, Prompt]) -> list[Problem]:
    folded: dict[str, list[str]] = {}
    for text in by_text:
        folded.setdefault(text.casefold(), []).append(text)
    return [
        Problem(kind="case", item=texts[0], message=f'"{texts[0]}" and "{texts[1]}" are one file where case does not count', fatal=False)
        for texts in folded.values()
        if len(texts) > 1
    ]
