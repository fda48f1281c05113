"""Real ranks, killed with signal 9 and started again: with as many ranks, with more, with fewer, at another ZeRO stage."""

import random
import shutil
from pathlib import Path

import pytest
from tiny_training import Run, engine_config, loss_lines, losses_of, run_rank, weight_digests

PHASES = {1: (), 2: ("images", "mixed")}
TRAIN_STEPS = {1: 10, 2: 12}


@pytest.fixture(scope="module", params=[1, 2])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two ranks, uninterrupted, of either stage."""
    run = Run(tmp_path_factory.mktemp(f"stage{request.param}"), stage=request.param)
    run.finish()
    return run


def test_a_run_killed_at_three_random_train_steps_ends_in_the_same_bits(tmp_path: Path, whole: Run) -> None:
    stage, phases = whole.stage, PHASES[whole.stage]
    for train_step in sorted(random.Random(f"stage {stage}").sample(range(1, TRAIN_STEPS[stage]), 3)):
        Run(tmp_path, stage, kill_at=train_step).die()
    Run(tmp_path, stage).finish()
    assert len(loss_lines(tmp_path, *phases)) == TRAIN_STEPS[stage]
    assert loss_lines(tmp_path, *phases) == loss_lines(whole.folder, *phases)
    assert weight_digests(tmp_path / f"stage{stage}") == weight_digests(whole.folder / f"stage{stage}")
    assert (tmp_path / "validation.json").read_text() == (whole.folder / "validation.json").read_text()


OTHER_RANKS = {2: [((2, 2), (1, 2)), ((1, 2), (2, 2))], 1: [((2, 3), (1, 1)), ((1, 0), (2, 3))]}
"""Stage -> (ranks, ZeRO stage) before a kill and after it."""


@pytest.mark.parametrize("case", [0, 1])
def test_a_run_goes_on_with_other_ranks_and_zero_stages(tmp_path: Path, whole: Run, case: int) -> None:
    stage, phases = whole.stage, PHASES[whole.stage]
    before, after = OTHER_RANKS[stage][case]
    Run(tmp_path, stage, *before, kill_at=TRAIN_STEPS[stage] - 1).die()
    Run(tmp_path, stage, *after).finish()
    assert "goes on after train_step" in Run(tmp_path, stage, *after).output()
    mine, reference = loss_lines(tmp_path, *phases), loss_lines(whole.folder, *phases)
    assert [line[2:3] + line[6:] for line in mine] == [line[2:3] + line[6:] for line in reference]
    assert losses_of(mine) == pytest.approx(losses_of(reference), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_checkpoint_goes_on_alike_at_every_zero_stage(tmp_path: Path, precision: str) -> None:
    """From ZeRO 2's train_step 2 to 10, on one rank; also with the optimizer off the device."""
    seed = tmp_path / "seed"
    seed.mkdir()
    often = {"checkpoint_every": 2, "keep_checkpoints": 9}
    run_rank(1, seed, engine_config(1, 2, precision, **often), seed / "meeting")
    reference = losses_of(loss_lines(seed))
    for zero_stage, offload in ((0, False), (1, False), (2, False), (3, False), (2, True), (3, True)):
        folder = tmp_path / f"{zero_stage}{offload}"
        shutil.copytree(seed, folder)
        for later in (4, 6, 8, 10):
            shutil.rmtree(folder / "checkpoints" / f"step-{later:08d}")
        run_rank(1, folder, engine_config(1, zero_stage, precision, cpu_offload=offload, **often), folder / "second")
        mine = losses_of(loss_lines(folder))
        assert len(mine) == 10 and mine[:2] == reference[:2]
        assert mine == pytest.approx(reference, rel=1e-5)
        if zero_stage == 2 and not offload:
            assert mine == reference
