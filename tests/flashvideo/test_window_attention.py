"""Windowed attention against masks written out pair by pair, and full attention in chunks of heads."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvideo.config import AttentionConfig, TransformerConfig
from flashvideo.models.transformer import CogVideoXTransformer
from flashvideo.models.window_attention import AttentionOptions, Window, WindowPlan, choose_window, window_plan

CPU = torch.device("cpu")
TINY = TransformerConfig(flavour="debug", num_layers=2, num_attention_heads=3, text_embed_dim=24, time_embed_dim=32)
CASES = [
    ((3, 5, 7), 3, Window((3, 3, 5), (1, 2, 4))),
    ((4, 6, 4), 9, Window((1, 5, 3), (2, 2, 2))),
    ((1, 5, 6), 2, Window((7, 3, 3), (2, 4, 4))),  # an image: tiles reach beyond it
    ((5, 3, 3), 4, Window((3, 1, 7), (2, 1, 2))),
]


def expected_mask(grid: tuple[int, int, int], num_text: int, window: Window) -> Tensor:
    """Which token may see which, over [text, video], by asking every pair."""
    cells = list(itertools.product(*(range(size) for size in grid)))
    halves = [size // 2 for size in window.size]

    def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return all(abs(a - b) <= half for a, b, half in zip(one, other, halves, strict=True))

    def tile(cell: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(c // extent for c, extent in zip(cell, window.tile, strict=True))

    members: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for cell in cells:
        members.setdefault(tile(cell), []).append(cell)
    mask = torch.ones(num_text + len(cells), num_text + len(cells), dtype=torch.bool)
    for i, one in enumerate(cells):
        for j, other in enumerate(cells):
            if window.exact:
                sees = near(one, other)
            else:
                sees = any(near(a, b) for a in members[tile(one)] for b in members[tile(other)])
            mask[num_text + i, num_text + j] = sees
    return mask


def plans_mask(plan: WindowPlan) -> Tensor:
    """The plan's mask function, asked slot by slot, back in the order of the tokens."""
    slots = torch.arange(len(plan.order))
    mask = plan.block_mask.mask_mod(torch.tensor(0), torch.tensor(0), slots[:, None], slots[None])
    return mask[plan.place][:, plan.place]


@pytest.mark.parametrize("exact", [False, True], ids=["tiles", "exact"])
@pytest.mark.parametrize(("grid", "num_text", "window"), CASES, ids=str)
def test_mask_is_the_one_written_out_pair_by_pair(grid: tuple[int, int, int], num_text: int, window: Window, exact: bool) -> None:
    window = window._replace(exact=exact)
    plan = window_plan(grid, num_text, window, CPU)
    assert torch.equal(plans_mask(plan), expected_mask(grid, num_text, window))


@pytest.mark.parametrize("exact", [False, True], ids=["tiles", "exact"])
@pytest.mark.parametrize(("grid", "num_text", "window"), CASES, ids=str)
def test_block_lists_hold_every_pair_of_the_mask_and_full_blocks_are_full(
    grid: tuple[int, int, int], num_text: int, window: Window, exact: bool
) -> None:
    """A compiled kernel skips blocks outside the lists and asks no mask inside full ones."""
    window = window._replace(exact=exact)
    plan = window_plan(grid, num_text, window, CPU)
    block, slots = math.prod(window.tile), torch.arange(len(plan.order))
    mask = plan.block_mask.mask_mod(torch.tensor(0), torch.tensor(0), slots[:, None], slots[None])
    blocks = mask.unflatten(0, (-1, block)).unflatten(2, (-1, block)).transpose(1, 2)

    def listed(counts: Tensor, columns: Tensor) -> set[tuple[int, int]]:
        rows = zip(counts[0, 0].tolist(), columns[0, 0].tolist(), strict=True)
        return {(row, column) for row, (count, all_columns) in enumerate(rows) for column in all_columns[:count]}

    full = listed(plan.block_mask.full_kv_num_blocks, plan.block_mask.full_kv_indices)
    partial = listed(plan.block_mask.kv_num_blocks, plan.block_mask.kv_indices)
    assert not full & partial
    count = len(blocks)
    assert {(i, j) for i in range(count) for j in range(count) if blocks[i, j].all()} >= full
    assert {(i, j) for i in range(count) for j in range(count) if blocks[i, j].any()} <= full | partial
    tokens = num_text + math.prod(grid)
    assert plan.computed_share == pytest.approx(len(full | partial) * block**2 / tokens**2)
    exact_pairs = int(expected_mask(grid, num_text, window._replace(exact=True)).sum())
    assert plan.window_share == pytest.approx(exact_pairs / tokens**2)


@pytest.mark.parametrize("exact", [False, True], ids=["tiles", "exact"])
@pytest.mark.parametrize(("grid", "num_text", "window"), CASES, ids=str)
def test_attention_equals_masked_attention_in_the_order_of_the_tokens(
    grid: tuple[int, int, int], num_text: int, window: Window, exact: bool
) -> None:
    window = window._replace(exact=exact)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, num_text + math.prod(grid), 16, generator=generator) for _ in range(3))
    attended = window_plan(grid, num_text, window, CPU).attend(query, key, value)
    reference = F.scaled_dot_product_attention(query, key, value, attn_mask=expected_mask(grid, num_text, window))
    torch.testing.assert_close(attended, reference, atol=1e-5, rtol=0)


def inputs(frames: int = 3, height: int = 12, width: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, frames, 16, height, width, generator=generator)
    return latents, torch.randn(2, 5, 24, generator=generator), torch.tensor([3.5, 900.0])


@pytest.mark.parametrize("exact", [False, True], ids=["tiles", "exact"])
def test_a_window_over_everything_is_full_attention(exact: bool) -> None:
    model = CogVideoXTransformer(TINY).eval()
    whole = AttentionOptions(Window((5, 11, 19), (2, 4, 4), exact))
    narrow = AttentionOptions(Window((1, 3, 3), (1, 2, 2), exact))
    with torch.no_grad():
        full = model(*inputs())
        assert (model(*inputs(), attention=whole) - full).abs().max() <= 1e-5
        assert (model(*inputs(), attention=narrow) - full).abs().max() > 1e-3


def test_heads_in_chunks_give_the_same_bits_and_gradients() -> None:
    results = []
    for head_chunk in (None, 1, 2):
        model = CogVideoXTransformer(TINY)
        output = model(*inputs(), attention=AttentionOptions(head_chunk=head_chunk))
        output.square().mean().backward()
        results.append((output.detach(), model.transformer_blocks[0].attn1.to_qkv.weight.grad))
    for output, gradient in results[1:]:
        assert torch.equal(output, results[0][0])
        torch.testing.assert_close(gradient, results[0][1], atol=1e-7, rtol=1e-5)


@torch.no_grad()
def test_heads_in_chunks_see_the_same_window() -> None:
    model, window = CogVideoXTransformer(TINY).eval(), Window((3, 3, 5), (1, 2, 4))
    whole, chunked = (model(*inputs(), attention=AttentionOptions(window, chunk)) for chunk in (None, 2))
    assert torch.equal(whole, chunked)


def test_plans_are_cached_by_what_they_depend_on() -> None:
    window = Window((3, 3, 5), (1, 2, 4))
    plan = window_plan((2, 4, 4), 3, window, CPU)
    assert window_plan((2, 4, 4), 3, window, CPU) is plan
    others = [((2, 4, 8), 3, window), ((2, 4, 4), 4, window), ((2, 4, 4), 3, window._replace(exact=True))]
    assert all(window_plan(grid, text, other, CPU) is not plan for grid, text, other in others)


def test_the_papers_window_computes_a_few_percent_at_1080p() -> None:
    plan = window_plan((13, 67, 120), 226, Window((7, 11, 11)), CPU)
    assert plan.window_share == pytest.approx(0.0105, abs=0.0005)  # 0.66 % of video pairs before borders, and text's 0.43 %
    assert 0.03 < plan.computed_share < 0.06


def test_faster_clips_get_wider_windows_and_the_fastest_full_attention() -> None:
    config = AttentionConfig(kind="window")
    grid = (13, 67, 120)
    still, slow, quick = (choose_window(motion, grid, config) for motion in (0.0, 2.0, 6.0))
    assert still == slow == Window((7, 11, 11))  # 2 px x 2.98 / 4 x 3 latent frames = 4.5 tokens, inside 5
    assert quick == Window((7, 29, 29))  # 6 px: 13.4 tokens
    assert choose_window(8.1, grid, config) is None
    assert choose_window(0.0, grid, AttentionConfig()) is None
    with pytest.raises(ValueError, match="motion is nan"):
        choose_window(math.nan, grid, config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_kernel_equals_masked_attention_on_a_gpu() -> None:
    grid, num_text, window = (5, 18, 20), 226, Window((3, 7, 7))
    device = torch.device("cuda")
    query, key, value = (torch.randn(1, 2, num_text + math.prod(grid), 64, device=device) for _ in range(3))
    plan = window_plan(grid, num_text, window, device)
    mask = plans_mask(window_plan(grid, num_text, window, CPU)).to(device)
    reference = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(plan.attend(query, key, value), reference, atol=2e-3, rtol=0)
