"""Rotary positions: hand-computed angles, and what rotation must keep."""

import math

import torch

from flashvideo.models.rope import apply_rotary, rotary_table

AXES = (4, 4, 4)  # two frequencies an axis: 1 and 1/100


def test_angles_of_a_small_grid_by_hand() -> None:
    cos, sin = rotary_table((2, 2, 3), AXES, num_text_tokens=1)
    assert cos.shape == sin.shape == (1 + 12, 6)
    assert torch.equal(cos[0], torch.ones(6)) and torch.equal(sin[0], torch.zeros(6))  # text is not turned
    token = 1 + (1 * 2 + 0) * 3 + 2  # t = 1, h = 0, w = 2
    angles = [1.0, 0.01, 0.0, 0.0, 2.0, 0.02]
    torch.testing.assert_close(cos[token], torch.tensor([math.cos(a) for a in angles]))
    torch.testing.assert_close(sin[token], torch.tensor([math.sin(a) for a in angles]))


def test_a_pair_turns_by_its_angle() -> None:
    x = torch.tensor([[[[1.0, 0.0, 0.0, 2.0]]]])  # B N heads head_dim: pairs (1, 0) and (0, 2)
    quarter, half = math.pi / 2, math.pi
    cos = torch.tensor([[math.cos(quarter), math.cos(half)]])
    sin = torch.tensor([[math.sin(quarter), math.sin(half)]])
    torch.testing.assert_close(apply_rotary(x, cos, sin), torch.tensor([[[[0.0, 1.0, 0.0, -2.0]]]]), atol=1e-6, rtol=0)


def test_products_depend_on_the_distance_between_positions_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 1, 1, 12, generator=generator) for _ in range(2))
    cos, sin = rotary_table((5, 5, 5), AXES)

    def product(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        rows = [(t * 5 + h) * 5 + w for t, h, w in (a, b)]
        turned = [apply_rotary(x, cos[row : row + 1], sin[row : row + 1]) for x, row in zip((query, key), rows, strict=True)]
        return float((turned[0] * turned[1]).sum())

    assert abs(product((0, 1, 2), (2, 2, 3)) - product((2, 3, 1), (4, 4, 2))) < 1e-5
    assert abs(product((0, 1, 2), (2, 2, 3)) - product((0, 1, 2), (2, 3, 3))) > 1e-3


def test_bf16_is_turned_in_fp32() -> None:
    x = torch.randn(1, 4, 2, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    cos, sin = rotary_table((1, 2, 2), AXES)
    assert torch.equal(apply_rotary(x, cos, sin), apply_rotary(x.float(), cos, sin).bfloat16())
