"""Which videos there are, which prompt each shows, and what is wrong with the folder. Light (no torch).

A suite file is VBench_full_info.json, or a list of the same entries for videos of one's own:

    [{"prompt_en": "...", "dimension": ["scene"], "auxiliary_info": {...}, "video_list": ["a.mp4"]}]

Without `video_list` videos are found by name, `{prompt_en}-{index}.mp4`, in the folder or in its dimension folders. A
`video_list` may name videos of other formats.
Source: Vchitect/VBench README, vbench/VBench_full_info.json, dimension_to_folder.json, commit 45e79ec.
"""

from __future__ import annotations

import itertools
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
SUFFIX = ".mp4"
OTHER_SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".webm")
"""Of videos that count only where a video_list names them: VBench finds .mp4 by name."""
MORE_SAMPLES = "temporal_flickering"
"""The dimension that takes any number of videos of a prompt: its static filter keeps the first 5 that stand still."""


class SuiteError(ValueError):
    """A suite file or folder that cannot be used; one clear line."""


class Problem(Record):
    """One thing wrong with one item."""

    kind: str
    """Of a folder: missing, duplicate, name, samples, case; of a video: unreadable, frames, size, video, dimension, static; of a
    file: score."""
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
    listed = _listed(prompts)
    paths = _video_paths(folder)
    if not any(path.suffix.lower() == SUFFIX or _place(path, folder, listed) for path in paths):
        raise SuiteError(f"{folder} holds no .mp4 video" if folder.is_dir() else f"{folder} is no folder")
    by_text = {prompt.text: prompt for prompt, videos in prompts}
    items: list[VideoItem] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        place = path.relative_to(folder).as_posix()
        given = _place(path, folder, listed)
        found = given or _named(path, by_text)
        if found is None:
            problems.append(Problem(kind="name", item=place, message=_name_message(path, by_text)))
            continue
        prompt, index = found
        names = tuple(name for name in _of_folder(path.parent.name, prompt.dimensions) if name in wanted)
        if given is None and index >= samples and set(names) - {MORE_SAMPLES}:
            names = tuple(name for name in names if name == MORE_SAMPLES)
            message = f"{place} is beyond the {samples} videos that count of a prompt, 0 to {samples - 1}; --samples takes more"
            problems.append(Problem(kind="samples", item=place, message=message))
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


def _video_paths(folder: Path) -> list[Path]:
    """Every file with a video's suffix, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (SUFFIX, *OTHER_SUFFIXES) and path.is_file() and not path.name.startswith(".")
    )


def _listed(prompts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> dict[str, tuple[Prompt, int]]:
    """Each file of a video_list with its prompt and index: the name's own where it follows the rule, the first that is free else."""
    found: dict[str, tuple[Prompt, int]] = {}
    for prompt, videos in prompts:
        named = {video: int(name["index"]) for video in videos if (name := NAME.match(Path(video).stem)) and name["prompt"] == prompt.text}
        free = (index for index in itertools.count() if index not in named.values())
        found |= {str(Path(video)): (prompt, named[video] if video in named else next(free)) for video in videos}
    return found


def _place(path: Path, folder: Path, listed: dict[str, tuple[Prompt, int]]) -> tuple[Prompt, int] | None:
    """What a video_list says of the file: by its place in the folder, its name, its path."""
    keys = (path.relative_to(folder).as_posix(), path.name, str(path), str(path.resolve()))
    return next((listed[key] for key in keys if key in listed), None)


def _named(path: Path, by_text: dict[str, Prompt]) -> tuple[Prompt, int] | None:
    named = NAME.match(path.stem)
    if path.suffix.lower() != SUFFIX or named is None or named["prompt"] not in by_text:
        return None
    return by_text[named["prompt"]], int(named["index"])


def _name_message(path: Path, by_text: dict[str, Prompt]) -> str:
    if path.suffix.lower() != SUFFIX:
        return f'"{path.name}" is no .mp4; a video of another format must stand in a video_list'
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
