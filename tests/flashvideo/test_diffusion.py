"""Stage I's objective: the table's numbers, v by hand, stratified timesteps, independence of the split over ranks."""

import pytest
import torch
from torch import Tensor, nn

from flashvideo.config import DiffusionConfig
from flashvideo.objectives.batch import Batch
from flashvideo.objectives.diffusion import DiffusionObjective, alpha_table, sigmas_of

# alpha, beta of the released table (spec model.md 1.6)
RELEASED = {
    500: (0.490937, 0.871195),
    600: (0.357100, 0.934066),
    650: (0.294019, 0.955800),
    675: (0.263959, 0.964534),
    676: (0.262780, 0.964856),
    700: (0.235052, 0.971983),
    750: (0.181105, 0.983464),
    800: (0.132821, 0.991140),
    850: (0.090560, 0.995891),
    900: (0.054410, 0.998519),
}


class Echo(nn.Module):
    """Predicts its input, and keeps what it was called with."""

    def forward(self, latents: Tensor, text: Tensor, timestep: Tensor, noise_step: Tensor | None = None) -> Tensor:
        self.timestep = timestep
        return latents


def batch(size: int, positions: range | None = None, global_size: int | None = None) -> Batch:
    """Samples 0..size-1 of a global batch, each with the generator of its place."""
    places = positions or range(size)
    clean = torch.stack([torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(100 + p)) for p in places])
    return Batch(
        tuple(f"clip{p}" for p in places),
        clean,
        torch.zeros(len(places), 2, 8),
        torch.tensor(list(places)),
        global_size or size,
        tuple(torch.Generator().manual_seed(p) for p in places),
    )


@pytest.mark.parametrize("step", RELEASED)
def test_table_equals_the_released_one_to_the_printed_digits(step: int) -> None:
    alpha, beta = RELEASED[step]
    table = alpha_table(DiffusionConfig())
    assert table[step].item() == pytest.approx(alpha, abs=6e-7)
    assert sigmas_of(table)[step].item() == pytest.approx(beta, abs=6e-7)


def test_table_ends_in_pure_noise_and_begins_almost_clean() -> None:
    table = alpha_table(DiffusionConfig())
    assert table[-1] == 0 and table[0] == pytest.approx((1 - 0.00085) ** 0.5)
    assert (table.diff() < 0).all()
    assert alpha_table(DiffusionConfig(snr_shift_scale=3.0))[500].item() == pytest.approx(0.3088, abs=6e-5)


def test_loss_of_the_right_velocity_is_zero_and_of_none_is_its_power() -> None:
    """At alpha = 0 (last step) v = -x0, so predicting 0 costs the mean square of the latents."""

    class Zero(nn.Module):
        def forward(self, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
            return torch.zeros_like(latents)

    one = batch(2)
    losses = DiffusionObjective(DiffusionConfig()).losses_at(Zero(), one, torch.tensor([999, 999]))
    torch.testing.assert_close(losses, one.clean.square().flatten(1).mean(1))

    class Oracle(nn.Module):
        """v from x_t and the known clean latents: n = (x_t - a x0) / s, v = a n - s x0."""

        def forward(self, latents: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
            alpha = alpha_table(DiffusionConfig())[timestep.long()].view(-1, 1, 1, 1, 1)
            sigma = (1 - alpha**2).sqrt()
            return alpha * (latents - alpha * one.clean) / sigma - sigma * one.clean

    losses = DiffusionObjective(DiffusionConfig()).losses_at(Oracle(), batch(2), torch.tensor([300, 800]))
    assert losses.max() < 1e-8


def test_stratified_timesteps_cover_the_range_one_part_a_sample() -> None:
    objective = DiffusionObjective(DiffusionConfig())
    steps = objective.timesteps(batch(10))
    assert [int(step) // 100 for step in steps] == list(range(10))
    plain = DiffusionObjective(DiffusionConfig(timestep_sampling="uniform")).timesteps(batch(10))
    assert [int(step) // 100 for step in plain] != list(range(10))
    assert plain.min() >= 0 and plain.max() <= 999


def test_losses_do_not_depend_on_how_ranks_share_the_batch() -> None:
    objective = DiffusionObjective(DiffusionConfig())
    whole = objective.losses(Echo(), batch(4))
    ranks = [objective.losses(Echo(), batch(2, positions, 4)) for positions in (range(2), range(2, 4))]
    assert torch.equal(whole, torch.cat(ranks))
    assert len(set(whole.tolist())) == 4


def test_timesteps_reach_the_model_in_fp32_beside_bf16_latents() -> None:
    model = Echo()
    small = batch(2).to(torch.device("cpu"), torch.bfloat16)
    losses = DiffusionObjective(DiffusionConfig()).losses_at(model, small, torch.tensor([675, 999]))
    assert model.timestep.dtype == torch.float32 and model.timestep.tolist() == [675.0, 999.0]
    assert losses.dtype == torch.float32
