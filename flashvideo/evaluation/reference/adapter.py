"""VBench's own evaluator as a subprocess: videos and dimensions go in as JSON, an eval_results.json comes out. Light.

Plain VBench (whole videos). One process a dimension, its answer kept under what it depends on, so that stopping or a
dimension that crashes loses nothing else. Videos are handed over as links named {prompt}-{index}.mp4, since the reference
reads actions and prompts off file names.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flashvideo.evaluation.exchange import ExchangeError, ImportedResults, read_eval_results
from flashvideo.evaluation.reference.environment import last_line, look, surroundings
from flashvideo.evaluation.suite import Problem, VideoItem
from flashvideo.evaluation.vbench_results import DimensionOutcome, VBenchResults, VideoValue, with_imported
from flashvideo.whole_files import write_text

RUNNER = Path(__file__).with_name("runner.py")
EXCHANGE = 1
Say = Callable[[str], None]


@dataclass
class ReferenceAnswers:
    """What the reference evaluator said."""

    identity: str
    results: dict[str, ImportedResults] = field(default_factory=dict)
    """By dimension."""
    links: dict[str, VideoItem] = field(default_factory=dict)
    """Link name -> video."""
    computed: int = 0
    kept: int = 0
    """Dimensions that were answered before."""
    problems: list[Problem] = field(default_factory=list)


class ReferenceEvaluator:
    """The package vbench in an environment of its own.

    `paths`: folders for its PYTHONPATH (a detectron2 checkout). `cache`: VBench's folder of weights. Raises ReferenceMistake
    where the interpreter cannot import vbench.
    """

    def __init__(self, python: Path, device: str = "cpu", cache: Path | None = None, paths: Sequence[Path] = ()) -> None:
        self._python, self._device, self._cache, self._paths = python, device, cache, tuple(paths)
        self.versions = look(python, self._paths)
        self.identity = "reference evaluator: " + ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items()))

    def evaluate(
        self, items: Sequence[VideoItem], dimensions: Sequence[str], folder: Path, hashes: Mapping[str, str], say: Say
    ) -> ReferenceAnswers:
        """Every dimension that has videos. `hashes`: path -> sha256. A dimension that fails is a problem, the others go on."""
        answers = ReferenceAnswers(self.identity)
        for name in dimensions:
            mine = [item for item in items if name in item.dimensions]
            if not mine:
                continue
            place = folder / f"{name}-{self._key(name, mine, hashes)}"
            answer = place / "answer.json"
            if answer.is_file():
                answers.kept += 1
            else:
                say(f"{name}: {len(mine)} videos to the reference evaluator")
                error = self._run(name, mine, place)
                if error is not None:
                    answers.problems.append(
                        Problem(kind="reference", item=name, message=f"{name}: the reference evaluator failed: {error}")
                    )
                    continue
                answers.computed += 1
            try:
                answers.results[name] = read_answer(answer, name)
            except ExchangeError as error:
                answers.problems.append(Problem(kind="reference", item=name, message=str(error)))
                continue
            answers.problems += answers.results[name].problems
            answers.links |= dict(zip(link_names(mine), mine, strict=True))
        return answers

    def _key(self, dimension: str, items: Sequence[VideoItem], hashes: Mapping[str, str]) -> str:
        what = [[hashes[str(item.path)], item.prompt.text, item.index, item.prompt.auxiliary.get(dimension)] for item in items]
        facts = [EXCHANGE, dimension, sorted(what, key=str), self.versions, self._device, [str(path) for path in self._paths]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _run(self, dimension: str, items: Sequence[VideoItem], place: Path) -> str | None:
        """Starts the runner; None, or why it failed."""
        videos = place / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        names = link_names(items)
        for name, item in zip(names, items, strict=True):
            (videos / name).unlink(missing_ok=True)
            (videos / name).symlink_to(item.path.resolve())
        _write(place / "full_info.json", list(_entries(dimension, items, [str(videos.resolve() / name) for name in names])))
        request = {
            "exchange": EXCHANGE,
            "dimension": dimension,
            "device": self._device,
            "full_info": str(place.resolve() / "full_info.json"),
            "local": self._cache is not None,
        }
        _write(place / "request.json", request)
        log = place / "log.txt"
        command = [str(self._python), str(RUNNER), str(place.resolve() / "request.json"), str(place.resolve() / "answer.json")]
        with log.open("w") as stream:
            around = surroundings(self._paths, self._cache)
            code = subprocess.call(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=around, cwd=place)
        if code == 0 and (place / "answer.json").is_file():
            return None
        return f"{last_line(log.read_text(errors='replace'))} (exit code {code}; {log})"


def link_names(items: Sequence[VideoItem]) -> list[str]:
    """{prompt}-{index}.mp4, as the reference reads them; a number where a file name cannot hold the prompt or it is taken."""
    names: list[str] = []
    for place, item in enumerate(items):
        name = f"{item.prompt.text}-{item.index}.mp4"
        fits = "/" not in name and len(name.encode()) < 250 and name not in names
        names.append(name if fits else f"video {place}-{item.index}.mp4")
    return names


def _entries(dimension: str, items: Sequence[VideoItem], paths: Sequence[str]) -> Iterator[dict[str, object]]:
    """full_info.json's entries of one dimension, a prompt's videos together."""
    entries: dict[str, dict[str, object]] = {}
    videos: dict[str, list[str]] = {}
    for item, path in zip(items, paths, strict=True):
        text = item.prompt.text
        entry = entries.setdefault(text, {"prompt_en": text, "dimension": [dimension]})
        if dimension in item.prompt.auxiliary:
            entry["auxiliary_info"] = {dimension: item.prompt.auxiliary[dimension]}
        videos.setdefault(text, []).append(path)
        entry["video_list"] = videos[text]
    yield from entries.values()


def read_answer(path: Path, dimension: str) -> ImportedResults:
    """Raises ExchangeError for an answer that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExchangeError(f"{path} is no answer of the reference evaluator: {error}") from None
    if not isinstance(data, dict) or data.get("exchange") != EXCHANGE or dimension not in data.get("results", {}):
        raise ExchangeError(f"{path} must hold exchange {EXCHANGE} and results of {dimension}; delete {path.parent} to ask again")
    beside = path.with_name("eval_results.json")
    _write(beside, data["results"])
    return read_eval_results(beside)


def with_reference(results: VBenchResults, answers: ReferenceAnswers) -> VBenchResults:
    """The reference's score beside each of ours, and in its place where ours is missing; totals anew."""
    scores = {name: found.scores[name] for name, found in answers.results.items() if name in found.scores}
    filled = with_imported(results, scores, answers.identity)
    outcomes = [_with_videos(one, scores, answers) for one in filled.dimensions]
    problems = tuple(sorted({*results.problems, *answers.problems}, key=lambda one: (one.kind, one.item, one.message)))
    return filled.model_copy(update={"dimensions": tuple(outcomes), "problems": problems})


def _with_videos(outcome: DimensionOutcome, scores: Mapping[str, float], answers: ReferenceAnswers) -> DimensionOutcome:
    name = outcome.dimension
    if name not in scores:
        return outcome
    update: dict[str, object] = {"reference": scores[name]}
    if outcome.imported == answers.identity:
        videos = []
        for video in answers.results[name].videos.get(name, ()):
            item = answers.links.get(Path(video.path).name)
            if item is not None:
                one = VideoValue(
                    video=item.name, prompt=item.prompt.text, sample=item.index, value=video.value, clips={"full": video.value}
                )
                videos.append(one)
        update |= {"videos": tuple(videos), "metric": answers.identity}
    return outcome.model_copy(update=update)


def _write(path: Path, data: object) -> None:
    write_text(path, json.dumps(data, indent=1))
