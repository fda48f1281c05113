"""Stage II's path and objective: which end is which, the time grids, DEG_latent, independence of ranks."""

import pytest
import torch
from torch import Tensor, nn

from flashvideo.objectives.batch import Batch
from flashvideo.objectives.flow_matching import FlowMatchingObjective, degrade_latents, model_timestep, time_grid


class Recorder(nn.Module):
    """Predicts zero, and keeps what it was called with."""

    def forward(self, latents: Tensor, text: Tensor, timestep: Tensor, noise_step: Tensor) -> Tensor:
        self.latents, self.timestep, self.noise_step = latents, timestep, noise_step
        return torch.zeros_like(latents)


def batch(places: range, global_size: int) -> Batch:
    def latents(seed: int) -> Tensor:
        return torch.stack([torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(seed + p)) for p in places])

    generators = tuple(torch.Generator().manual_seed(p) for p in places)
    names = tuple(f"clip{p}" for p in places)
    return Batch(names, latents(100), torch.zeros(len(places), 2, 8), torch.tensor(list(places)), global_size, generators, latents(200))


@pytest.mark.parametrize(
    ("steps", "grid"),
    [
        (4, [0, 0.11765, 0.28571, 0.54545, 1]),
        (5, [0, 0.0909, 0.2105, 0.375, 0.6154, 1]),
        (6, [0, 0.0741, 0.1667, 0.2857, 0.4444, 0.6667, 1]),
    ],
)
def test_time_grids_equal_the_released_ones(steps: int, grid: list[float]) -> None:
    assert time_grid(steps, 2.5).tolist() == pytest.approx(grid, abs=6e-5)


@pytest.mark.parametrize(("steps", "timesteps"), [(4, [1000, 884, 712, 452]), (5, [1000, 904, 784, 624, 384])])
def test_bf16_rounds_the_timesteps_as_the_released_code(steps: int, timesteps: list[int]) -> None:
    assert model_timestep(time_grid(steps, 2.5, torch.bfloat16)).tolist()[:-1] == timesteps


def test_t_is_zero_at_the_degraded_end_and_one_at_the_clean_end() -> None:
    objective, model, given = FlowMatchingObjective((600, 900), latent_degradation=False), Recorder(), batch(range(2), 2)
    losses = objective.losses_at(model, given, torch.tensor([0.0, 1.0]), torch.tensor([700, 700]))
    assert given.degraded is not None
    assert torch.equal(model.latents[0], given.degraded[0]) and torch.equal(model.latents[1], given.clean[1])
    assert model.timestep.tolist() == [1000.0, 0.0]
    torch.testing.assert_close(losses, (given.clean - given.degraded).square().flatten(1).mean(1))
    assert model.noise_step.tolist() == [0.0, 0.0]  # nothing was added, and the model is told so


def test_latent_degradation_mixes_as_the_table_says() -> None:
    """alpha 0.6 makes sigma 0.8."""
    mixed = degrade_latents(torch.full((1, 1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1, 1), 3.0), torch.tensor([0.6]))
    assert mixed.item() == pytest.approx(0.6 * 2 + 0.8 * 3)


def test_the_embedded_noise_step_is_the_one_that_was_used() -> None:
    objective, model, given = FlowMatchingObjective((600, 900)), Recorder(), batch(range(1), 1)
    objective.losses_at(model, given, torch.zeros(1), torch.tensor([675]))
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert given.degraded is not None
    torch.testing.assert_close(model.latents[0], 0.263959 * given.degraded[0] + 0.964534 * noise, atol=1e-5, rtol=0)
    assert model.noise_step.tolist() == [675.0]


def test_noise_steps_are_stratified_inside_the_inclusive_range() -> None:
    steps = FlowMatchingObjective((650, 750)).draw_noise_steps(batch(range(101), 101))
    assert steps.tolist() == list(range(650, 751))  # 101 parts of one step each
    few = FlowMatchingObjective((600, 900)).draw_noise_steps(batch(range(3), 3))
    assert [600 <= few[0] <= 700, 700 <= few[1] <= 800, 800 <= few[2] <= 900] == [True] * 3


def test_losses_do_not_depend_on_how_ranks_share_the_batch() -> None:
    objective = FlowMatchingObjective((600, 900), time_shift=2.5)
    whole = objective.losses(Recorder(), batch(range(4), 4))
    ranks = [objective.losses(Recorder(), batch(places, 4)) for places in (range(1), range(1, 4))]
    assert torch.equal(whole, torch.cat(ranks))
    assert len(set(whole.tolist())) == 4


def test_a_wrong_range_and_a_batch_without_degraded_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(900, 1000\)"):
        FlowMatchingObjective((900, 1000))
    given = batch(range(1), 1)
    given.degraded = None
    with pytest.raises(ValueError, match="clip0"):
        FlowMatchingObjective((600, 900)).losses(Recorder(), given)
