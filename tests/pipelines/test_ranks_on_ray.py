"""Ray Train carries the ranks, and starts them again from the last checkpoint when one is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from latent_root import context_of, finish, latent_recipe, make_latent_root

from flashvideo.training.metrics import read_losses
from pipelines import precompute_latents, train_stage1


def rank_processes() -> list[psutil.Process]:
    """Ray Train's workers among this process's descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.story
def test_a_killed_rank_is_started_again_from_the_checkpoint(tmp_path: Path) -> None:
    recipe = latent_recipe()
    engine = recipe.stage1.engine.model_copy(update={"num_ranks": 2, "checkpoint_every": 2, "max_restarts": 2})
    stage1 = recipe.stage1.model_copy(update={"engine": engine, "iterations": 600})
    runtime = recipe.runtime.model_copy(update={"backend": "ray"})
    recipe = latent_recipe(stage1=stage1, runtime=runtime)
    workspace = make_latent_root(tmp_path)
    context = context_of("precompute_latents", workspace, recipe)
    finish(context, precompute_latents.run(context))
    training = context_of("train_stage1", workspace, recipe)
    killed: list[int] = []

    def kill_one() -> None:
        while len(read_losses(training.folder / "losses.jsonl")) < 5:
            time.sleep(0.02)
        victim = rank_processes()[-1]
        killed.append(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    report = train_stage1.run(training)
    killer.join(timeout=1)
    assert killed
    assert [line["train_step"] for line in read_losses(training.folder / "losses.jsonl")] == list(range(1, 601))
    assert report.counts["samples"] == 4 and (training.folder / "stage1" / "adapter_model.safetensors").is_file()
