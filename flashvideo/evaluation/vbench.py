"""Command `flashvideo vbench`: a folder of videos and their prompts -> vbench_results.json and VBench's own files.

Exit code 0 (bad videos are named and counted), 1 with --strict where a video could not be scored, 2 a user's mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flashvideo.evaluation.fusion import TABLE_FILES, MappingTable, read_mapping_tables
from flashvideo.evaluation.preflight import look
from flashvideo.evaluation.protocol import QUIRKS, VBenchProtocol, file_sha256
from flashvideo.evaluation.published import TABLE_1
from flashvideo.evaluation.score_store import CannotStore, ScoreStore
from flashvideo.evaluation.suite import Problem, Suite, SuiteError, VideoItem, find_videos, read_prompts
from flashvideo.evaluation.totals import DIMENSIONS
from flashvideo.whole_files import write_text

if TYPE_CHECKING:
    from flashvideo.evaluation.evaluator import Evaluator, Tally
    from flashvideo.evaluation.networks.interfaces import Networks
    from flashvideo.evaluation.reference.adapter import ReferenceEvaluator
    from flashvideo.evaluation.vbench_results import DimensionOutcome, VBenchResults

SHOWN_PROBLEMS = 20
NO_WEIGHTS = Path("WEIGHTS")
"""Stands for the folder in messages where none was given."""


class VBenchMistake(ValueError):
    """A wrong option or input; one clear line."""


class _Parser(argparse.ArgumentParser):
    """Help that begins as the other commands' does."""

    def format_help(self) -> str:
        return super().format_help().replace("usage:", "Usage:", 1)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = _Parser(prog="flashvideo vbench", description="Score a folder of videos under VBench or VBench-Long", allow_abbrev=False)
    made.add_argument("videos", type=Path, nargs="?", help="folder of {prompt}-{index}.mp4, or of VBench's dimension folders")
    made.add_argument("--prompts", type=Path, help="VBench_full_info.json, or a list of such entries for videos of your own")
    made.add_argument("--out", type=Path, help="results and stored scores; the same folder goes on where it stopped")
    made.add_argument("--suite", choices=("vbench", "vbench_long"), default="vbench_long")
    made.add_argument("--re-encode", choices=("none", "1.024M", "crf23"), default="none", help="vbench_long: write each clip again first")
    made.add_argument("--antialias", action="store_true", help="antialiased resizing (the reference has none)")
    made.add_argument("--corrected", action="store_true", help="without the reference's quirks")
    made.add_argument(
        "--both", action="store_true", help=f"{', '.join(QUIRKS)} once more without the quirks, in a column beside; totals stay faithful"
    )
    made.add_argument("--no-slow-fast", action="store_true", help="vbench_long without fusion across clips")
    made.add_argument("--no-static-filter", action="store_true", help="temporal flickering on all videos")
    made.add_argument("--sampled-from", type=Path, help="file of the prompts that the videos were made from; default: --prompts")
    made.add_argument("--long-prompts", action="store_true", help="--sampled-from is the long list")
    made.add_argument("--dimensions", help="with commas between; default: all 16")
    made.add_argument("--samples", type=int, default=5, help="videos that a prompt should have")
    made.add_argument("--frames", type=int, help="frames that every video must have; others are left out")
    made.add_argument("--weights", type=Path, help="folder of the networks' weights")
    made.add_argument("--networks", type=Path, metavar="FILE.py", help="your own networks (flashvideo/evaluation/networks/own_file.py)")
    made.add_argument("--vbench-data", type=Path, help="folder with VBench-Long's mapping tables (vbench2_beta_long/configs)")
    made.add_argument(
        "--stand-ins", action="store_true", help="closed-form stand-ins for the networks that are absent; marked in the results"
    )
    made.add_argument(
        "--fill-from", type=Path, help="eval_results.json or leaderboard zip of another evaluator: its scores where ours are missing"
    )
    made.add_argument("--reference-python", type=Path, help="interpreter of VBench's own environment: it scores what cannot be scored here")
    made.add_argument("--reference-dimensions", help="with commas between: these are scored by the reference too, and stand beside ours")
    made.add_argument("--reference-cache", type=Path, help="the reference's folder of weights (VBENCH_CACHE_DIR)")
    made.add_argument("--reference-path", type=Path, action="append", default=[], help="for its PYTHONPATH: a detectron2 checkout")
    made.add_argument("--device", default="cpu")
    made.add_argument(
        "--shard", default="0/1", metavar="I/N", help="score only every N-th video from I on; the last to end sees all scores"
    )
    made.add_argument("--strict", action="store_true", help="exit code 1 where a video could not be scored")
    made.add_argument("--dry-run", action="store_true", help="only look: videos, clips, cost, what is missing")
    return made


def protocol_of(options: argparse.Namespace) -> VBenchProtocol:
    """Raises VBenchMistake for options that contradict each other."""
    if options.both and options.corrected:
        raise VBenchMistake("--both shows corrected scores beside faithful ones; leave --corrected out")
    listed = options.sampled_from or options.prompts
    try:
        return VBenchProtocol(
            suite=options.suite,
            re_encode=options.re_encode,
            antialias=options.antialias,
            faithful=not options.corrected,
            slow_fast=not options.no_slow_fast,
            static_filter=not options.no_static_filter,
            prompts="long" if options.long_prompts else "short",
            prompts_sha256=file_sha256(listed),
        )
    except ValidationError as error:
        raise VBenchMistake(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    except OSError as error:
        raise VBenchMistake(f"{listed}: {error.strerror}") from None


def networks_of(options: argparse.Namespace, fields: set[str]) -> Networks:
    """Those of `fields`: the user's own, else from the weights' folder, else stand-ins where they are asked for."""
    import torch

    from flashvideo.evaluation.networks.interfaces import Networks
    from flashvideo.evaluation.networks.own_file import build_own
    from flashvideo.evaluation.networks.pretrained import load_networks
    from flashvideo.evaluation.networks.stand_ins import stand_in_networks

    if options.weights is not None and not options.weights.is_dir():
        raise VBenchMistake(f"--weights {options.weights} is no folder")
    device = torch.device(options.device)
    own = {} if options.networks is None else build_own(options.networks, device, fields)
    found = load_networks(options.weights or NO_WEIGHTS, device, fields - set(own))
    standing_in = stand_in_networks(action_labels(options)).present() if options.stand_ins else {}
    mixed: dict[str, Any] = {**standing_in, **found.present(), **own}
    return Networks(**mixed, absent=found.absent)


def action_labels(options: argparse.Namespace) -> tuple[str, ...]:
    """Classes of the stand-in that recognises actions: the prompts' own."""
    return tuple(sorted({prompt.text.lower().split("person is ")[-1] for prompt, _ in read_prompts(options.prompts)}))


Score = Callable[[argparse.Namespace, "Evaluator", Sequence[VideoItem]], "Tally"]
"""Scores what the store lacks of the items: here, or spread over workers (pipelines/vbench.py)."""


def score_here(options: argparse.Namespace, judge: Evaluator, items: Sequence[VideoItem]) -> Tally:
    """In this process, on one thread: as one worker of many does, so that the numbers are the same."""
    with one_thread():
        return judge.evaluate(items, progress=_progress)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch sums in another order on more threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(options: argparse.Namespace, score: Score = score_here) -> int:
    """The whole command on a folder. Raises SuiteError, VBenchMistake and ValueError for a user's mistakes."""
    for given, name in ((options.videos, "VIDEOS"), (options.prompts, "--prompts"), (options.out, "--out")):
        if given is None:
            raise VBenchMistake(f"{name} is missing: flashvideo vbench VIDEOS --prompts FILE --out FOLDER")
    chosen = _dimensions(options.dimensions)
    return run_suite(options, find_videos(options.videos, read_prompts(options.prompts), chosen, options.samples), score)


def run_suite(options: argparse.Namespace, suite: Suite, score: Score = score_here) -> int:
    """Looks at the videos, scores them and writes everything into `options.out`."""
    chosen = _dimensions(options.dimensions)
    shard, shards = _shard(options.shard)
    protocol = protocol_of(options)
    before = look(suite.items, protocol, options.frames)
    print("\n".join(before.lines(suite.problems)))
    _tell((*suite.problems, *before.problems))
    if options.both:
        print(f"  {sum(bool(set(QUIRKS) & set(item.dimensions)) for item in before.items)} of them a second time, without the quirks")
    if options.dry_run:
        _tell_absent(options, protocol, chosen)
        return 0
    if not before.items:
        raise VBenchMistake(f"none of {len(suite.items)} videos can be scored; {_first(before.problems)}")
    tables_of(options, protocol, before.items)  # a missing table is told before anything is scored
    reference = reference_of(options, protocol)
    judge, corrected = build_evaluators(options, protocol, before.items)
    mine = before.items[shard::shards]
    tally = score(options, judge, mine)
    if options.both and corrected is not None:
        tally.problems += _score_corrected(options, corrected, mine, score)
    outcome = _write_results(options, (judge, corrected), before.items, (*suite.problems, *before.problems), tally, reference)
    left_out = len({problem.item for problem in outcome.problems if problem.fatal})
    print(f"{tally.scored} videos scored, {tally.kept} were there already" + (f"; {left_out} items left out" if left_out else ""))
    print("\n".join(table(outcome)))
    if not any(one.score is not None for one in outcome.dimensions):
        raise VBenchMistake(f"nothing could be scored; for one: {outcome.dimensions[0].dimension}: {outcome.dimensions[0].reason}")
    return 1 if options.strict and any(problem.fatal for problem in outcome.problems) else 0


def _score_corrected(options: argparse.Namespace, corrected: Evaluator, items: Sequence[VideoItem], score: Score) -> list[Problem]:
    """A second pass over the videos of QUIRKS' dimensions, into the scores that a run under --corrected has; what went wrong."""
    chosen = [(item, tuple(name for name in item.dimensions if name in QUIRKS)) for item in items]
    again = [item.model_copy(update={"dimensions": names}) for item, names in chosen if names]
    given = argparse.Namespace(**vars(options) | {"corrected": True, "both": False})
    tally = score(given, corrected, again)
    print(f"without the quirks: {tally.scored} videos scored, {tally.kept} were there already")
    return tally.problems


def build_evaluator(options: argparse.Namespace, protocol: VBenchProtocol, items: Sequence[VideoItem]) -> Evaluator:
    """With the networks that the items' dimensions need."""
    return build_evaluators(options, protocol, items)[0]


def build_evaluators(
    options: argparse.Namespace, protocol: VBenchProtocol, items: Sequence[VideoItem]
) -> tuple[Evaluator, Evaluator | None]:
    """Under the protocol and, where that is faithful, under the corrected one, with the same networks."""
    from flashvideo.evaluation.evaluator import Evaluator
    from flashvideo.evaluation.rules import build_rules, needed

    shown = {name for item in items for name in item.dimensions}
    networks = networks_of(options, {field for name in shown for field in needed(name, protocol)})
    store = ScoreStore(options.out / "scores")
    judge = Evaluator(protocol, build_rules(networks, protocol), store, options.frames)
    if not protocol.faithful:
        return judge, None
    corrected = protocol.corrected()
    return judge, Evaluator(corrected, build_rules(networks, corrected), store, options.frames, judge.hashes)


def reference_of(options: argparse.Namespace, protocol: VBenchProtocol) -> ReferenceEvaluator | None:
    """None where it is not asked for. Raises VBenchMistake and ReferenceMistake before anything is scored."""
    from flashvideo.evaluation.reference.adapter import ReferenceEvaluator

    if options.reference_python is None:
        if options.reference_dimensions:
            raise VBenchMistake("--reference-dimensions needs --reference-python")
        return None
    if protocol.suite != "vbench":
        raise VBenchMistake("--reference-python scores whole videos, as plain VBench does: take --suite vbench")
    return ReferenceEvaluator(options.reference_python, options.device, options.reference_cache, options.reference_path)


def _ask_reference(
    options: argparse.Namespace, reference: ReferenceEvaluator, items: Sequence[VideoItem], hashes: dict[str, str], outcome: VBenchResults
) -> VBenchResults:
    """The reference's scores of the dimensions that are asked for, or that have videos and no score."""
    from flashvideo.evaluation.reference.adapter import with_reference

    absent = tuple(one.dimension for one in outcome.dimensions if one.score is None)
    names = _dimensions(options.reference_dimensions) if options.reference_dimensions else absent
    answers = reference.evaluate(items, names, options.out / "reference", hashes, print)
    _tell(answers.problems)
    print(f"reference evaluator: {answers.computed} dimensions scored, {answers.kept} were there already")
    return with_reference(outcome, answers)


def _write_results(
    options: argparse.Namespace,
    judges: tuple[Evaluator, Evaluator | None],
    items: Sequence[VideoItem],
    known: tuple[Problem, ...],
    tally: Tally,
    reference: ReferenceEvaluator | None,
) -> VBenchResults:
    """Everything that the store holds of the items, with pictures and the reference's files."""
    judge, corrected = judges
    from flashvideo.evaluation.exchange import read_any_results, write_exchange, write_submission
    from flashvideo.evaluation.pictures import with_extremes
    from flashvideo.evaluation.vbench_results import VBENCH_RESULTS_FILE, assemble, with_corrected, with_imported

    filled = None if options.fill_from is None else read_any_results(options.fill_from)
    problems = dict.fromkeys((*tally.problems, *judge.failures(items), *(filled.problems if filled else ())))
    _tell(tuple(problems))
    tables = tables_of(options, judge.protocol, items)
    outcome = assemble(judge.protocol, items, judge.score_of, tables, judge.rules.absent, (*known, *problems))
    if corrected is not None:
        outcome = with_corrected(outcome, corrected.protocol, items, judge.score_of, corrected.score_of, tables)
    if filled is not None:
        outcome = with_imported(outcome, filled.scores, options.fill_from.name)
    hashes = {str(item.path): judge.sha256(item) for item in items}
    if reference is not None:
        outcome = _ask_reference(options, reference, items, hashes, outcome)
    outcome = with_extremes(outcome, items, hashes, options.out)
    _write(options.out / VBENCH_RESULTS_FILE, outcome.model_dump(mode="json"))
    write_exchange(options.out, "results", outcome, items)
    write_submission(options.out, "results", outcome)
    return outcome


def tables_of(options: argparse.Namespace, protocol: VBenchProtocol, items: Sequence[VideoItem]) -> dict[str, MappingTable]:
    """Slow-fast fusion's mapping tables where the protocol and the dimensions need them; VBenchMistake where they are missing."""
    shown = {name for item in items for name in item.dimensions}
    if not (protocol.suite == "vbench_long" and protocol.slow_fast and shown & set(TABLE_FILES)):
        return {}
    if options.vbench_data is None:
        raise VBenchMistake("--vbench-data is missing: slow-fast fusion reads its mapping tables there; or take --no-slow-fast")
    return read_mapping_tables(options.vbench_data)


def _first(problems: Sequence[Problem]) -> str:
    return problems[0].message if problems else "the folder holds none that a prompt names"


def table(outcome: VBenchResults, beside: str = "FlashVideo 8fps") -> list[str]:
    """The 16 dimensions and the totals, percent, beside a row of the paper's Table 1."""
    paper = next(row for row in TABLE_1 if row.model == beside)
    both = any(one.corrected is not None for one in outcome.dimensions)
    lines = [f"  {'':<24}{'score':>8}  {'95 %':<16}{_beside('corrected', 'change', both)}  paper, {beside}"]
    for one in outcome.dimensions:
        printed = f"{paper.dimensions[one.dimension]:.2f}"
        if one.score is None:
            lines.append(f"  {one.dimension:<24}{'-':>8}  {'':<16}{_beside('', '', both)}  {printed:>6}  {one.reason}")
        else:
            bounds = _bounds(None if one.low is None else 100 * one.low, None if one.high is None else 100 * one.high)
            change = ("", "") if one.corrected is None else (f"{100 * one.corrected:.2f}", f"{100 * (one.corrected - one.score):+.2f}")
            lines.append(f"  {one.dimension:<24}{100 * one.score:>8.2f}  {bounds:<16}{_beside(*change, both)}  {printed:>6}{_origin(one)}")
    for name in ("quality", "semantic", "total"):
        if (value := outcome.totals[name]) is not None:
            bounds = _bounds(*outcome.intervals.get(name, (None, None)))
            lines.append(f"  {name:<24}{value:>8.2f}  {bounds:<16}{_beside('', '', both)}  {getattr(paper, name):>6.2f}")
    return lines + [f"  ! {note}" for note in outcome.notes]


def _beside(score: str, change: str, shown: bool) -> str:
    """The two columns without the quirks; nothing where no dimension has them."""
    return f"  {score:>9}  {change:>7}" if shown else ""


def _origin(one: DimensionOutcome) -> str:
    text = "  STAND-IN" if one.stand_in else f"  from {one.imported}" if one.imported else ""
    if one.reference is not None and one.score is not None and not one.imported:
        text += f"  reference {100 * one.reference:.4f}, ours {100 * one.score:.4f}"
    if one.corrected is not None and one.last_frame is not None:
        text += f"  last frames only, as the reference's several processes: {100 * one.last_frame:.2f}"
    return text


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _dimensions(text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else DIMENSIONS
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown:
        raise VBenchMistake(f"--dimensions names {unknown[0]}; known: {', '.join(DIMENSIONS)}")
    return names


def _shard(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not (slash and first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise VBenchMistake(f"--shard {text}: write I/N with I from 0 to N - 1, e.g. 0/4")
    return int(first), int(count)


def _tell(problems: tuple[Problem, ...] | list[Problem]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        print(f"  {'x' if problem.fatal else '!'} {problem.kind}: {problem.message}")
    if len(problems) > SHOWN_PROBLEMS:
        print(f"  ... and {len(problems) - SHOWN_PROBLEMS} more, all in the results")


def _tell_absent(options: argparse.Namespace, protocol: VBenchProtocol, chosen: tuple[str, ...]) -> None:
    from flashvideo.evaluation.networks.own_file import own_builders
    from flashvideo.evaluation.networks.pretrained import missing_weights
    from flashvideo.evaluation.rules import needed

    own = () if options.networks is None else own_builders(options.networks)
    missing = {field: text for field, text in missing_weights(options.weights or NO_WEIGHTS).items() if field not in own}
    for name in chosen:
        for field in needed(name, protocol):
            if field in missing:
                print(f"  {'stand-in' if options.stand_ins else 'missing'} for {name}: {missing[field]}")


def _progress(done: float, total: int) -> None:
    print(
        f"\r  {done if isinstance(done, int) else f'{done:.2f}'} of {total} videos  ",
        end="\n" if done == total else "",
        file=sys.stderr,
        flush=True,
    )


def _write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(data, indent=1))


def main(arguments: list[str] | None = None) -> int:
    """Command line of one process; `python -m pipelines.vbench` spreads over workers and takes a run's videos too."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except (SuiteError, ValueError) as error:
        print(f"vbench: {error}", file=sys.stderr)
        return 2
    except (CannotStore, OSError) as error:
        print(f"\nvbench: {unwritten(error)}", file=sys.stderr)  # after a line of progress
        return 1


def unwritten(error: CannotStore | OSError) -> str:
    """Which file could not be written, and why, in one line; raises again what is no such error."""
    cause = getattr(error, "cause", error)  # Ray's errors hold their worker's
    if isinstance(cause, CannotStore):
        return str(cause)
    if not isinstance(cause, OSError) or cause.filename is None:
        raise error
    return f"{cause.filename}: {cause.strerror}; the same command goes on from there"


if __name__ == "__main__":
    sys.exit(main())
