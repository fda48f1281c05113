"""The protocol's digest, VBench-Long's clips, and slow-fast fusion."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from flashvideo.evaluation.clip_plan import clip_rate_hz, clip_seconds, plan_clips
from flashvideo.evaluation.fusion import MappingTable, fuse, read_mapping_table, read_mapping_tables
from flashvideo.evaluation.protocol import VBenchProtocol, file_sha256

VBENCH = Path(__file__).resolve().parents[3] / "shared" / "vbench"


def protocol(**changes: object) -> VBenchProtocol:
    return VBenchProtocol.model_validate({"suite": "vbench_long", "prompts": "long", "prompts_sha256": "ab" * 32} | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"suite": "vbench"},
        {"re_encode": "1.024M"},
        {"re_encode": "crf23"},
        {"repeatable": False},
        {"antialias": True},
        {"faithful": False},
        {"slow_fast": False},
        {"static_filter": False},
        {"prompts": "short"},
        {"prompts_sha256": "cd" * 32},
    ],
)
def test_every_field_changes_the_digest(change):
    assert protocol(**change).digest != protocol().digest
    assert protocol(**change).digest == protocol(**change).digest


def test_the_digest_goes_into_the_description():
    assert protocol().described() == protocol().model_dump(mode="json") | {"digest": protocol().digest}


def test_plain_vbench_writes_nothing_again():
    with pytest.raises(ValidationError, match=r"re_encode is crf23, but plain VBench scores the files themselves"):
        protocol(suite="vbench", re_encode="crf23")


def test_the_hash_is_of_the_files_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- clips


def spans(frames: int, fps: float, seconds: float, faithful: bool = True) -> list[tuple[str, int, int]]:
    return [tuple(span) for span in plan_clips(frames, fps, seconds, faithful)]


def test_49_frames_at_8_fps_are_4_clips_and_the_last_overlaps():
    assert spans(49, 8, 2) == [("000", 0, 16), ("001", 16, 32), ("002", 32, 48), ("003", 33, 49)]


def test_145_frames_at_24_fps_are_4_clips():
    assert spans(145, 24, 2) == [("000", 0, 48), ("001", 48, 96), ("002", 96, 144), ("003", 97, 145)]


@pytest.mark.parametrize(
    ("frames", "fps", "seconds", "expected"),
    [
        (15, 8, 2, [("full", 0, 15)]),  # shorter than a clip
        (16, 8, 2, [("000", 0, 16)]),
        (17, 8, 2, [("000", 0, 16), ("001", 1, 17)]),
        (32, 8, 2, [("000", 0, 16), ("001", 16, 32)]),
        (49, 8, 10, [("full", 0, 49)]),
        (81, 8, 10, [("000", 0, 80), ("001", 1, 81)]),
        (1, 8, 2, [("full", 0, 1)]),
        (10, 4, 0.5, [("000", 0, 2), ("001", 2, 4), ("002", 4, 6), ("003", 6, 8), ("004", 8, 10)]),
        (47, 23.976, 2, [("000", 0, 46), ("001", 1, 47)]),  # 23.976 is 23
        (129, 24, 2, [("000", 0, 48), ("001", 48, 96), ("002", 81, 129)]),  # HunyuanVideo: 3
        (102, 24, 2, [("000", 0, 48), ("001", 48, 96), ("002", 54, 102)]),
    ],
)
def test_clips(frames, fps, seconds, expected):
    assert spans(frames, fps, seconds) == expected


def test_every_clip_lies_in_the_video_and_all_frames_are_covered():
    for frames in range(1, 130, 7):
        for fps in (1, 7.9, 8, 12.5, 24, 29.97):
            for seconds in (0.5, 1, 2, 10):
                if int(int(fps) * seconds) < 1:
                    continue
                plan = plan_clips(frames, fps, seconds)
                assert {index for span in plan for index in range(span.start, span.stop)} == set(range(frames))
                assert len({span.frames for span in plan}) == 1


def test_not_faithful_rounds_the_rate():
    assert (clip_rate_hz(23.976), clip_rate_hz(23.976, faithful=False)) == (23, 24)
    assert spans(47, 23.976, 2, faithful=False) == [("full", 0, 47)]


def test_bad_rates_are_refused():
    with pytest.raises(ValueError, match=r"0\.5 frames/s; clips need at least 1"):
        plan_clips(49, 0.5, 2)
    with pytest.raises(ValueError, match="no frame"):
        plan_clips(49, 1, 0.5)
    with pytest.raises(ValueError, match="0 frames make no clip"):
        plan_clips(0, 8, 2)


def test_the_longest_clip_of_a_prompts_dimensions_counts():
    assert clip_seconds(["subject_consistency", "dynamic_degree"]) == 2
    assert clip_seconds(["aesthetic_quality", "overall_consistency"]) == 10
    with pytest.raises(ValueError, match="without dimensions"):
        clip_seconds([])


@pytest.mark.corpus
def test_clip_lengths_are_the_references():
    import yaml

    file = VBENCH / "vbench_long_configs" / "clip_length_mix.yaml"
    if not file.is_file():
        pytest.skip(f"{file.name} is absent")
    for dimension, seconds in yaml.safe_load(file.read_text()).items():
        assert clip_seconds([dimension]) == seconds


# ---- fusion

TABLE = MappingTable(((0.0, 0.0), (0.5, 0.8), (1.0, 1.0)))


@pytest.mark.parametrize(("score", "mapped"), [(-0.1, 0.0), (0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (0.75, 0.9), (1.0, 1.0), (1.1, 1.0)])
def test_the_table_is_piecewise_linear_and_flat_outside(score, mapped):
    assert TABLE(score) == pytest.approx(mapped)


def test_fusion_is_half_and_half():
    assert fuse(0.9, 0.75, TABLE) == pytest.approx(0.9)
    assert fuse(0.7, 0.5, TABLE) == pytest.approx(0.75)


def test_a_single_clip_keeps_its_own_score():
    assert fuse(0.7, None, TABLE) == 0.7
    assert fuse(0.7, 0.0, TABLE) == 0.7


def test_bad_tables_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"subject_mapping_table\.yaml cannot be read .*vbench2_beta_long/configs"):
        read_mapping_tables(tmp_path)
    (tmp_path / "short.yaml").write_text("0.0: 0.0\n")
    with pytest.raises(ValueError, match="must map scores to scores"):
        read_mapping_table(tmp_path / "short.yaml")
    (tmp_path / "nan.yaml").write_text("0.0: 0.0\n1.0: .nan\n")
    with pytest.raises(ValueError, match="not finite"):
        read_mapping_table(tmp_path / "nan.yaml")


@pytest.mark.corpus
def test_the_references_tables():
    if not (VBENCH / "vbench_long_configs").is_dir():
        pytest.skip("vbench_long_configs is absent")
    tables = read_mapping_tables(VBENCH)
    assert {name: len(table.points) for name, table in tables.items()} == {"subject_consistency": 101, "background_consistency": 101}
    subject = tables["subject_consistency"]
    assert subject(0.985) == pytest.approx((0.994591460602974 + 0.995516073547993) / 2)
    assert subject(1) == 1
