"""The adapter to VBench's own evaluator: the exchange, resuming, and what is said where the environment is absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flashvideo.evaluation.reference.adapter import ReferenceEvaluator, link_names, with_reference
from flashvideo.evaluation.reference.environment import REQUIREMENTS, ReferenceMistake, look
from flashvideo.evaluation.scores import Prompt
from flashvideo.evaluation.suite import VideoItem
from flashvideo.evaluation.vbench import main
from flashvideo.evaluation.vbench_results import VBenchResults
from flashvideo.video_files import write_video

STAND_IN_REFERENCE = """#!{python}
# StandInReference: speaks the exchange as an interpreter that has vbench would. A video scores 0.5 + its index / 10.
import json, sys
if sys.argv[1] == "-c":
    print(json.dumps({{"vbench": "0.0+stand.in", "torch": "0"}}))
    sys.exit(0)
request = json.load(open(sys.argv[2]))
open({calls!r}, "a").write(request["dimension"] + "\\n")
if request["dimension"] in {failing!r}:
    print("Traceback ...\\nRuntimeError: no weights")
    sys.exit(1)
videos = [path for entry in json.load(open(request["full_info"])) for path in entry["video_list"]]
rows = [{{"video_path": path, "video_results": 0.5 + int(path.rsplit("-", 1)[1][0]) / 10}} for path in videos]
score = sum(row["video_results"] for row in rows) / len(rows)
json.dump({{"exchange": 1, "results": {{request["dimension"]: [score, rows]}}}}, open(sys.argv[3], "w"))
"""
STAND_IN_PACKAGE = {
    "vbench/__init__.py": "",
    "vbench/utils.py": "def init_submodules(names, local, read_frame):\n    return {name: [local] for name in names}\n",
    "vbench/temporal_flickering.py": """
import json
import numpy as np
def compute_temporal_flickering(full_info, device, submodules):
    paths = [path for entry in json.load(open(full_info)) for path in entry["video_list"]]
    rows = [{"video_path": path, "video_results": np.float32(0.25)} for path in paths]
    return np.float64(0.25), rows
""",
    "vbench-0.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vbench\nVersion: 0.0+stand.in\n",
}


@pytest.fixture
def items(tmp_path: Path) -> list[VideoItem]:
    names = ("temporal_flickering", "scene")
    made = []
    for index in range(2):
        path = tmp_path / "videos" / f"a lake-{index}.mp4"
        write_video(path, np.full((4, 32, 48, 3), 90, np.uint8), 8, 10)
        made.append(VideoItem(path=path, prompt=Prompt(text="a lake", dimensions=names), dimensions=names, index=index))
    return made


def interpreter(folder: Path, failing: tuple[str, ...] = ()) -> Path:
    path = folder / "stand_in_python"
    path.write_text(STAND_IN_REFERENCE.format(python=sys.executable, calls=str(folder / "calls"), failing=failing))
    path.chmod(0o755)
    return path


def asked(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split() if (folder / "calls").is_file() else []


def test_a_dimension_is_asked_once_and_one_that_fails_keeps_the_others(items, tmp_path):
    hashes = {str(item.path): f"{place:064x}" for place, item in enumerate(items)}
    names = ("scene", "temporal_flickering", "color")
    failing = ReferenceEvaluator(interpreter(tmp_path, failing=("scene",)))
    first = failing.evaluate(items, names, tmp_path / "out", hashes, print)
    assert {name: found.scores for name, found in first.results.items()} == {"temporal_flickering": {"temporal_flickering": 0.55}}
    [problem] = first.problems
    assert problem.message.startswith("scene: the reference evaluator failed: RuntimeError: no weights (exit code 1; ")
    assert asked(tmp_path) == ["scene", "temporal_flickering"]  # no video is to be scored in colour
    mended = ReferenceEvaluator(interpreter(tmp_path))
    second = mended.evaluate(items, names, tmp_path / "out", hashes, print)
    assert (second.computed, second.kept, second.problems) == (1, 1, [])
    assert asked(tmp_path)[2:] == ["scene"]
    other = hashes | {str(items[0].path): "f" * 64}  # another video: asked anew
    assert mended.evaluate(items, names, tmp_path / "out", other, print).computed == 2


def test_the_runner_asks_the_installed_package(items, tmp_path):
    for name, text in STAND_IN_PACKAGE.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text(text)
    evaluator = ReferenceEvaluator(Path(sys.executable), paths=[tmp_path / "package"])
    assert evaluator.versions["vbench"] == "0.0+stand.in"
    hashes = {str(item.path): "0" * 64 for item in items}
    answers = evaluator.evaluate(items, ("temporal_flickering",), tmp_path / "out", hashes, print)
    assert answers.problems == []
    found = answers.results["temporal_flickering"]
    assert found.scores == {"temporal_flickering": 0.25}
    assert [Path(video.path).name for video in found.videos["temporal_flickering"]] == ["a lake-0.mp4", "a lake-1.mp4"]


def test_the_command_fills_what_it_cannot_score_and_stands_beside_what_it_can(items, tmp_path, capsys):
    entry = {"prompt_en": "a lake", "dimension": ["temporal_flickering", "motion_smoothness"]}
    (tmp_path / "info.json").write_text(json.dumps([entry]))
    given = [str(tmp_path / "videos"), "--prompts", str(tmp_path / "info.json"), "--out", str(tmp_path / "out"), "--samples", "2"]
    given += ["--suite", "vbench", "--no-static-filter", "--reference-python", str(interpreter(tmp_path))]
    assert main(given) == 0
    results = VBenchResults.model_validate_json((tmp_path / "out" / "vbench_results.json").read_bytes())
    smooth, flicker = results.of("motion_smoothness"), results.of("temporal_flickering")
    assert (smooth.score, smooth.reference, flicker.score, flicker.reference) == (0.55, 0.55, 1.0, None)
    assert smooth.imported == "reference evaluator: torch 0, vbench 0.0+stand.in"
    assert [(video.video, video.value) for video in smooth.videos] == [("a lake-0", 0.5), ("a lake-1", 0.6)]
    assert main([*given, "--reference-dimensions", "temporal_flickering"]) == 0
    results = VBenchResults.model_validate_json((tmp_path / "out" / "vbench_results.json").read_bytes())
    assert (results.of("temporal_flickering").score, results.of("temporal_flickering").reference) == (1.0, 0.55)
    assert "reference 55.0000, ours 100.0000" in capsys.readouterr().out


def test_links_are_named_as_the_reference_reads_them(items):
    assert link_names(items) == ["a lake-0.mp4", "a lake-1.mp4"]
    long = items[0].model_copy(update={"prompt": Prompt(text="x" * 300, dimensions=("scene",))})
    assert link_names([long, items[0], items[0]]) == ["video 0-0.mp4", "a lake-0.mp4", "video 2-0.mp4"]


def test_an_absent_environment_is_one_line(items, tmp_path, capsys):
    with pytest.raises(ReferenceMistake, match=r"nowhere is no file; make one \(6.3 GB\): flashvideo vbench --make-reference DIR"):
        look(tmp_path / "nowhere")
    with pytest.raises(ReferenceMistake, match=r"cannot import vbench \(ModuleNotFoundError: No module named 'vbench'\)"):
        look(Path(sys.executable))
    (tmp_path / "info.json").write_text(json.dumps([{"prompt_en": "a lake", "dimension": ["temporal_flickering"]}]))
    given = [str(tmp_path / "videos"), "--prompts", str(tmp_path / "info.json"), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--suite", "vbench", "--reference-python", "nowhere"], "--reference-python nowhere is no file"),
        (["--reference-python", sys.executable, "--no-slow-fast"], "scores whole videos, as plain VBench does: take --suite vbench"),
        (["--suite", "vbench", "--reference-dimensions", "scene"], "--reference-dimensions needs --reference-python"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # nothing was scored before the mistake was told


def test_the_pins_are_whole():
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line and not line.startswith("#"))
    assert (pins["vbench"], pins["torch"], pins["av"], pins["transformers"]) == ("0.1.5", "2.5.1", "13.1.0", "4.33.2")


def test_without_answers_nothing_changes(items, tmp_path):
    evaluator = ReferenceEvaluator(interpreter(tmp_path))
    answers = evaluator.evaluate(items, ("color",), tmp_path / "out", {}, print)
    assert (answers.computed, answers.kept, answers.results) == (0, 0, {})
    empty = VBenchResults(protocol={}, dimensions=(), totals={}, intervals={}, problems=(), notes=())
    assert with_reference(empty, answers).dimensions == ()
