"""The report page: whole runs, runs in any state, nothing from outside, numbers that are the tables'."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from curation.schema import TABLES
from curation.step import Lineage
from curation.store import Store
from flashvideo.config import EvaluationConfig
from flashvideo.evaluation.results import (
    ClipQuality,
    DimensionScore,
    Picture,
    Protocol,
    QualityRow,
    Results,
    dimension_totals,
    enhancement_gates,
    learning_gates,
    published_rows,
    verdict,
)
from orchestration.charts import Band, Curve, Limit, curves, histogram, ticks
from orchestration.page import format_bytes, format_number, format_seconds
from orchestration.report_data import spread
from orchestration.reports import build_report, headline, loss_chart
from pipelines.artifacts import Report, Workspace
from pipelines.plan import JOBS
from pipelines.recipe import Recipe, load

MOVES = ("static", "pan left", "zoom in", "tilt up")


def small_recipe(folder: Path) -> Recipe:
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    (folder / "sources" / "a.mp4").write_bytes(b"x")
    return load("debug", sources=(str(folder / "sources"),))


def fill_store(workspace: Workspace, clips: int = 40) -> None:
    """Clips with seeded scores, two of them failed, and their thumbnails."""
    store = Store.open(workspace.store)
    draws = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for index in range(clips):
        motion = float(draws.gamma(2.0, 1.2))
        kept = motion >= 1.1 and index % 7 != 0
        rows.append(
            {
                "clip_id": f"{index:032x}",
                "uri": f"/videos/reel{index // 4}.mp4",
                "media_type": "video",
                "start_us": index * 1_250_000,
                "end_us": (index + 1) * 1_250_000,
                "duration_s": 1.25,
                "short_side_px": 1080 if index % 7 else 720,
                "split": "val" if index % 5 == 0 else "train",
                "corrupt_frames": 0,
                "black_ratio": 0.0,
                "repeated_ratio": 0.1,
                "is_duplicate": 0,
                "motion_proxy": motion if index != 3 else None,
                "aesthetic_proxy": float(draws.normal(5, 1)),
                "piqe": float(draws.normal(35, 8)),
                "camera_move": MOVES[index % 4],
                "caption": f"a <b>moving</b> scene, number {index}",
                "state": "failed" if index == 3 else "kept" if kept else "rejected",
                "reject_reason": None if kept and index != 3 else "motion:unknown" if index == 3 else "motion",
            }
        )
        thumb = Image.fromarray(draws.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize((320, 180))
        path = workspace.tracks / "thumbs" / f"{index:032x}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        thumb.save(path)
    store.upsert("clips", pa.Table.from_pylist(rows, schema=pa.schema([TABLES["clips"].field(name) for name in rows[0]])))
    lineage = Lineage("score", "motion", "1", "OpenCV DIS (stand-in for RAFT)")
    store.register_run(lineage, "cpu", 3.2, clips, clips - 1, 1)
    store.append_errors(
        [
            {
                "job": "ingest",
                "step": "probe",
                "code": "truncated",
                "uri": "/videos/broken.mp4",
                "message": "broken.mp4 has no moov box <script>",
                "run_id": lineage.run_id,
                "error_id": "e1",
            },
            {
                "job": "score",
                "step": "motion",
                "code": "too_few_frames",
                "clip_id": f"{3:032x}",
                "uri": "/videos/reel0.mp4",
                "message": "3 frames",
                "run_id": lineage.run_id,
                "error_id": "e2",
            },
        ]
    )
    store.tag("sel-0123456789ab", "29 clips, 0.01 h")


def write_training(folder: Path, stage: str, phases: dict[str, int], modality: str = "video") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(1)
    lines = []
    for phase, count in phases.items():
        for step in range(1, count + 1):
            kind = modality if phase != "mixed_patches" or step % 3 else "image"
            loss = 0.3 + 0.9 * np.exp(-step / 30) + 0.05 * draws.normal()
            lines.append({"stage": stage, "phase": phase, "train_step": step, "loss": float(loss), "modality": kind})
    (folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "validation.json").write_text(
        json.dumps({"before": 1.2, "after": 0.5, "samples": 4, "by_bin": {"t 0.5": {"before": 1.3, "after": 0.4567}}})
    )


def results() -> Results:
    def row(name: str, ratio: float | None, psnr: float | None) -> QualityRow:
        return QualityRow(
            name=name, clips=2, metrics={"piqe": 40.0}, gradient=0.03, gradient_ratio=ratio, psnr_db=psnr, temporal_flickering=0.95
        )

    rows = [
        row("truth", None, None),
        row("codec", 0.98, 32.0),
        row("input", 0.66, 27.1),
        row("enhanced", 1.02, 25.3),
        row("untrained", 2.9, 14.2),
    ]
    stages = [row("stage1", None, None), row("stage2", None, None)]
    dimensions = (DimensionScore(dimension="temporal_flickering", score=0.9512, videos=2, note="all videos"),)
    gates = (
        *enhancement_gates({one.name: one for one in rows}, EvaluationConfig()),
        *learning_gates({"before": 1.0, "after": 0.6}, {"before": 1.2, "after": 0.5}),
    )
    return Results(
        protocol=Protocol(
            metrics={"piqe": "pyiqa 0.1.16 piqe"},
            upsampling="Stage I enlarged",
            degradation="Shrunk by 8",
            truth="held-out clips",
            shape=(9, 128, 224),
            frame_rate_hz=8,
            sampling={"num_steps": 4},
            seeds={"evaluate": 4},
        ),
        held_out=tuple(rows),
        held_out_clips=(ClipQuality(item="00" * 16, about="a scene", rows=tuple(rows)),),
        generated=tuple(stages),
        generated_videos=(ClipQuality(item="a red fox", about="a-red-fox", rows=tuple(stages)),),
        dimensions=dimensions,
        totals=dict(dimension_totals(dimensions).__dict__),
        gates=gates,
        verdict=verdict(gates),
        pictures=(
            Picture(
                file="pictures/one.png",
                title="Held out: a scene",
                columns=("input", "enhanced", "untrained", "truth"),
                rows=("frame 0", "frame 4"),
            ),
        ),
        models={"vae": "PatchPcaAutoencoder (stand-in)"},
        published=published_rows(),
        notes=("evaluation.vbench_data is not set",),
    )


def finish_jobs(workspace: Workspace, recipe: Recipe, count: int) -> None:
    """Reports of the first `count` jobs, and what training and evaluation leave behind."""
    reports: dict[str, Report] = {}
    for place, spec in enumerate(JOBS[:count]):
        name = workspace.job_fingerprint(recipe, spec, reports)
        folder = workspace.begin(spec, name)
        if spec.name == "train_stage1":
            write_training(folder / "stage1", "stage1", {"": 150})
            (folder / "samples").mkdir(exist_ok=True)
            (folder / "samples" / "sampling.json").write_text(json.dumps({"num_steps": 20, "guidance_scale": 8.0}))
            for step in range(20, 160, 20):
                Image.new("RGB", (step, 16), (0, 0, 200)).save(folder / "samples" / f"step-{step:08d}.jpg")
        if spec.name == "train_stage2":
            write_training(
                folder / "stage2", "stage2", {"image_patches": 120, "mixed_patches": 200, "full_resolution": 40, "preference": 10}
            )
        if spec.name == "train_stage2":
            (folder / "samples").mkdir(exist_ok=True)
            Image.new("RGB", (96, 32), (0, 200, 0)).save(folder / "samples" / "2-mixed_patches-step-00000160.jpg")
            Image.new("RGB", (64, 32), (0, 200, 0)).save(folder / "samples" / "2-mixed_patches-step-00000080.jpg")
        if spec.name == "evaluate":
            (folder / "results.json").write_text(results().model_dump_json())
            (folder / "pictures").mkdir(exist_ok=True)
            wide = np.tile(np.arange(908, dtype=np.uint16)[None, :, None] // 4, (260, 1, 3)).astype(np.uint8)
            Image.fromarray(wide).save(folder / "pictures" / "one.png")
        report = Report(
            job=spec.name,
            fingerprint=name,
            digest=spec.name,
            counts={"in": 40, "kept": 29, "train": 23, "val": 6, "rejected by motion": 9}
            if spec.name == "select"
            else {"in": 40, "failed": place % 2},
            outputs={"tag": "sel-0123456789ab"} if spec.name == "select" else {},
            models={"vae": "PatchPcaAutoencoder (stand-in for AutoencoderKLCogVideoX)"} if spec.name == "precompute_latents" else {},
            headline={"gates": results().verdict, "piqe": 40.25, "table": [1]} if spec.name == "evaluate" else {},
            seconds=12.3 + place,
            peak_memory_bytes=800_000_000 + place * 90_000_000,
            log=f"logs/run1/{spec.name}.log",
            started="2031-01-02T03:04:05+00:00",
            versions={"torch": "2.15.0"},
        )
        workspace.finish(spec, report)
        reports[spec.name] = report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recipe, str]:
    folder = tmp_path_factory.mktemp("report")
    workspace, recipe = Workspace(folder / "root"), small_recipe(folder)
    fill_store(workspace)
    finish_jobs(workspace, recipe, len(JOBS))
    return workspace, recipe, build_report(workspace, recipe).read_text()


class Page(HTMLParser):
    """Addresses, anchors and open elements of a page."""

    VOID = frozenset(["meta", "img", "br", "wbr"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value is not None:
                self.addresses.append(value)
            if name == "id" and value is not None:
                self.ids.add(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mismatched.append(tag)


def test_the_page_needs_nothing_outside(whole: tuple[Workspace, Recipe, str]) -> None:
    _, _, text = whole
    page = Page(text)
    for address in page.addresses:
        assert address.startswith(("#", "data:image/jpeg;base64,", "logs/run1/")), address[:80]
    assert "@import" not in text and "url(" not in text and "<script" not in text
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= page.ids
    assert page.open == [] and page.mismatched == []


def test_every_section_is_filled(whole: tuple[Workspace, Recipe, str]) -> None:
    _, _, text = whole
    assert 'class="missing"' not in text
    for words in ("Funnel", "Just below the motion threshold", "Just above the motion threshold", "too_few_frames", "Validation loss"):
        assert words in text
    for job in JOBS:
        assert f"<b>{job.name}</b>" in text and f"logs/run1/{job.name}.log" in text
    for name in (
        "Hunyuan<wbr>Video",
        "Flash<wbr>Video 24fps",
        "sel-0123456789ab",
        "PatchPcaAutoencoder (stand-in for AutoencoderKLCogVideoX)",
    ):
        assert name in text
    for phase in ("image_patches", "mixed_patches", "full_resolution", "preference"):
        assert f"<title>{phase}</title>" in text
    assert "t 0.5" in text and "0.4567" in text
    assert "control: an untrained model must fail" in text and ">pass<" in text and ">fail<" in text


def test_text_from_tables_is_escaped(whole: tuple[Workspace, Recipe, str]) -> None:
    _, _, text = whole
    assert "no moov box &lt;script&gt;" in text and "&lt;b&gt;moving&lt;/b&gt;" in text


def test_sheets_show_the_clips_nearest_the_threshold(whole: tuple[Workspace, Recipe, str]) -> None:
    workspace, _, text = whole
    motion = [
        value for value in Store.open(workspace.store).read("clips", ["motion_proxy"])["motion_proxy"].to_pylist() if value is not None
    ]
    below = text[text.index("Just below the motion") : text.index("Just above the motion")]
    above = text[text.index("Just above the motion") : text.index("Just below the resolution")]
    shown_below = [float(value) for value in re.findall(r"motion (\d+\.\d\d) ·", below)]
    shown_above = [float(value) for value in re.findall(r"motion (\d+\.\d\d) ·", above)]
    assert shown_below == [round(value, 2) for value in sorted((v for v in motion if v < 1.1), reverse=True)[:12]]
    assert shown_above == [round(value, 2) for value in sorted(v for v in motion if v >= 1.1)[:12]]
    assert below.count("data:image/jpeg") == len(shown_below) > 3


def test_every_threshold_has_its_sheets_where_they_show_something(whole: tuple[Workspace, Recipe, str]) -> None:
    workspace, _, text = whole
    data = text[text.index('id="data"') : text.index('id="errors"')]
    titles = re.findall(r"<h3>(Just [^<]+) threshold</h3>", data)
    assert titles == [
        "Just below the motion", "Just above the motion", "Just below the resolution", "Just above the aesthetic",
    ], "no aesthetic below 3; 1080 above, no damage, no black and no duplicate throughout: nothing to look at"  # fmt: skip
    scores = Store.open(workspace.store).read("clips", ["aesthetic_proxy"])["aesthetic_proxy"].to_pylist()
    above = data[data.index("Just above the aesthetic") :]
    assert [float(value) for value in re.findall(r"aesthetic (\d+\.\d\d) ·", above)] == [
        round(score, 2) for score in sorted(score for score in scores if score >= 3.0)[:12]
    ]
    assert "short_side_px nearest below 1080 (px): this rule turns them away" in data


def test_hours_and_work_so_far(whole: tuple[Workspace, Recipe, str]) -> None:
    workspace, _, text = whole
    store = Store.open(workspace.store)
    seconds = [sum(store.read("clips", ["duration_s"], where)["duration_s"].to_pylist()) for where in (None, "state = 'kept'")]
    assert f"{format_seconds(seconds[0])} of video, {format_seconds(seconds[1])} of it kept" in text
    assert "3.2 s of the workers" in text


def test_pictures_are_inlined_whole(whole: tuple[Workspace, Recipe, str]) -> None:
    _, _, text = whole
    section = text[text.index('id="pictures"') : text.index('id="evaluation"')]
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section)
    assert base64.b64decode(data)[:2] == b"\xff\xd8" and "Top to bottom: frame 0; frame 4." in section


def test_samples_of_training_stand_in_its_section(whole: tuple[Workspace, Recipe, str]) -> None:
    """The newest, then the first and the middle one: Stage I has seven sheets, as wide as their train_step here."""
    _, _, text = whole
    section = text[text.index('id="training"') : text.index('id="pictures"')]
    assert "Stage I</b> after 140 train_steps; first, middle and last frame of held-out clips" in section
    assert "sampled from the caption in 20 steps (guidance scale 8), then true" in section
    assert "Stage II, mixed_patches</b> after 160 train_steps; first frames of held-out clips: degraded" in section
    sizes = []
    for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section):
        with Image.open(io.BytesIO(base64.b64decode(data))) as sheet:
            sizes.append(sheet.size)
    assert sizes == [(140, 16), (20, 16), (80, 16), (96, 32), (64, 32)]


def test_sweeps_of_the_root_are_shown_with_their_pages(tmp_path: Path) -> None:
    workspace, recipe = Workspace(tmp_path / "root"), small_recipe(tmp_path)
    fill_store(workspace, clips=2)
    folder = workspace.root / "sweep" / "nfe"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("the page")
    (folder / "table.csv").write_text("NFE,whose,NIQE\n1,ours,5.25\n1,paper,5.148\n")
    facts: dict[str, object] = {
        "title": "Function <evaluations>",
        "table": 8,
        "setting": "NFE",
        "inputs": "1 clip",
        "notes": [],
        "rows": [],
    }
    (folder / "results.json").write_text(json.dumps(facts | {"models": {"vae": "a stand-in"}, "published": {}, "strips": []}))
    learning = workspace.root / "sweep" / "learning"
    learning.mkdir()
    (learning / "index.html").write_text("another")
    Image.new("RGB", (64, 36)).save(learning / "clip.png")
    text = build_report(workspace, recipe).read_text()
    page = Page(text)
    assert {"sweep/nfe/index.html", "sweep/learning/index.html"} <= set(page.addresses) and page.open == [] and page.mismatched == []
    assert "Function &lt;evaluations&gt;" in text and "5.25" in text and "5.148" in text and 'alt="clip"' in text


def test_the_headline_is_light_and_flat(whole: tuple[Workspace, Recipe, str]) -> None:
    workspace, recipe, _ = whole
    lines = dict(headline(workspace, recipe))
    assert lines["clips kept"] == "29 of 40 (23 train, 6 held out)"
    assert lines["piqe"] == "40.25" and "table" not in lines and "not done" not in lines
    assert "4 of 4 pass" in lines["gates"]
    assert lines["largest process"] == "1.61 GB (evaluate)"


@pytest.mark.parametrize("count", [0, 2, 5, 8])
def test_a_partial_run_says_what_is_missing_and_how_to_make_it(tmp_path: Path, count: int) -> None:
    workspace, recipe = Workspace(tmp_path / "root"), small_recipe(tmp_path)
    workspace.root.mkdir()
    if count:
        fill_store(workspace, clips=12)
        finish_jobs(workspace, recipe, count)
    text = build_report(workspace, recipe).read_text()
    page = Page(text)
    assert page.open == [] and page.mismatched == []
    assert f"flashvideo evaluate --root {workspace.root}" in text
    assert ("flashvideo curate --root" in text) == (count == 0)
    assert ("flashvideo train stage1 --root" in text) == (count < 7)
    assert (JOBS[count].name in dict(headline(workspace, recipe))["not done"]) is True


def test_a_missing_thumbnail_leaves_its_clip_on_the_sheet(tmp_path: Path) -> None:
    workspace, recipe = Workspace(tmp_path / "root"), small_recipe(tmp_path)
    fill_store(workspace, clips=6)
    (workspace.tracks / "thumbs" / f"{1:032x}.jpg").unlink()
    assert "no picture" in build_report(workspace, recipe).read_text()


def test_reports_stay_light() -> None:
    code = "import orchestration.reports, sys; print([name for name in ('torch', 'matplotlib', 'lance', 'cv2') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


# ---- charts


def test_ticks_are_round() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.13, 0.52) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert ticks(3, 3) == [3]


def test_a_histogram_counts_every_value_once() -> None:
    svg = histogram([1, 1, 2], [0.5, 9], [Limit(1.1, "motion ≥ 1.1")], "px")
    assert sum(int(n) for n in re.findall(r'class="kept"[^>]*><title>[^:]*: (\d+) kept', svg)) == 3
    assert sum(int(n) for n in re.findall(r'class="rejected"[^>]*><title>[^:]*: \d+ kept, (\d+) rejected', svg)) == 2
    assert "motion ≥ 1.1" in svg
    assert "<svg" in histogram([2.0], [], [], "px")
    with pytest.raises(ValueError, match="at least one value"):
        histogram([], [], [], "px")


def test_a_long_tail_is_one_bar_and_leaves_the_limit_room() -> None:
    svg = histogram([*(i / 20 for i in range(40)), 75.0], [0.5], [Limit(1.1, "motion ≥ 1.1")], "px")
    bars = re.findall(r'class="kept"[^>]*><title>([^:]*): (\d+) kept', svg)
    assert sum(int(n) for _, n in bars) == 41
    assert bars[-1][0].endswith("and above") and float(bars[-1][0].split()[0]) < 2.2 and "the last bar is of all above" in svg
    assert "and above" not in histogram([*(i / 20 for i in range(40)), 3.0], [0.5], [], "px")


def test_curves_keep_order_and_leave_gaps_out() -> None:
    svg = curves([Curve("a", (1, 2, 3), (1.0, float("nan"), 3.0))], [Band("one", 1, 3)], "train_step", "loss")
    raw = re.findall(r'class="line0 raw" points="([^"]+)"', svg)[0].split()
    assert (
        len(raw) == 2
        and float(raw[0].split(",")[0]) < float(raw[1].split(",")[0])
        and float(raw[0].split(",")[1]) > float(raw[1].split(",")[1])
    )
    with pytest.raises(ValueError, match="finite"):
        curves([Curve("a", (1,), (float("nan"),))], [], "x", "y")


@pytest.mark.parametrize("restarts", [True, False])
def test_phases_follow_each_other_whether_train_steps_restart_or_not(restarts: bool) -> None:
    entries = []
    for place, phase in enumerate(("one", "two")):
        entries += [
            {"phase": phase, "train_step": step + (0 if restarts else 10 * place), "loss": 1.0, "modality": "video"}
            for step in range(1, 11)
        ]
    chart = loss_chart("Stage II", entries)
    assert chart is not None
    lines = re.findall(r'class="line0 raw" points="([^"]+)"', chart.svg)
    xs = [float(point.split(",")[0]) for line in lines for point in line.split()]
    assert len(lines) == 2 and len(xs) == 20 and xs == sorted(xs) and len(set(xs)) == 20
    assert loss_chart("Stage II", []) is None


def test_words_and_numbers() -> None:
    assert [format_seconds(value) for value in (3.21, 99.94, 200, 7500)] == ["3.2 s", "99.9 s", "3 min 20 s", "2 h 05 min"]
    assert [format_bytes(value) for value in (812e6, 1.524e9)] == ["812 MB", "1.52 GB"]
    assert (
        format_number({"num_steps": 4, "shift": 2.5}) == "num steps 4, shift 2.5"
        and format_number(None) == "–"
        and format_number(True) == "yes"
    )
    assert spread(pa.chunked_array([list("abcdefghij")]), 3) == ["a", "d", "g"]
