"""The CogVideoX autoencoder in temporal chunks, spatial tiles and on several devices. Stock class: diffusers'."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvideo.config import VaeTilingConfig
from flashvideo.models import vae_passes
from flashvideo.models.vae import CogVideoXAutoencoder
from flashvideo.models.vae_passes import PartedConv3d, decode_piece, encode_piece, part_large_convolutions, temporal_chunks
from flashvideo.models.vae_tiling import Span, live_bytes, merge_tiles, plan_tiles, split_side

RECEPTIVE_LATENTS = 14
"""Of the tiny decoder below: 1 + 4 + 4 + .5 + 2 + .25 + 1 + .125 + .5 + .125 latents each way; the encoder's is smaller."""
WHOLE = VaeTilingConfig(decode_pass_latents=1 << 30, encode_pass_latents=1 << 30)
Autoencoder = Any


class FixedNorm(nn.Module):
    """GroupNorm with the statistics 0 and 1: what a tile cannot know about the whole picture, taken out."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def build(seed: int = 0, device: str = "cpu", **settings: Any) -> Autoencoder:
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(seed)
    with torch.device(device):
        return AutoencoderKLCogVideoX(**settings).eval().requires_grad_(False)


def tiny(fixed_norms: bool = False) -> Autoencoder:
    network = build(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    if fixed_norms:
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, FixedNorm())
    return network


def wrap(network: Autoencoder, tiling: VaeTilingConfig = WHOLE, mode: str = "inference") -> CogVideoXAutoencoder:
    return CogVideoXAutoencoder(network, mode, "test", None, tiling)


def latents(frames: int, height: int, width: int) -> Tensor:
    return torch.randn(1, frames, 16, height, width, generator=torch.Generator().manual_seed(frames))


def video(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def difference(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference over the second's standard deviation."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.std())


# ---- where the tiles are -------------------------------------------------------------------------------------------


def test_1080p_is_decoded_in_the_released_two_slices_and_540p_whole() -> None:
    tiling = VaeTilingConfig()
    tiles = plan_tiles(134, 240, 3, tiling.decode_pass_latents, tiling)
    assert [tile.columns for tile in tiles] == [Span(0, 136, 0, 120), Span(104, 240, 120, 240)]
    assert [tile.rows for tile in tiles] == [Span(0, 134, 0, 134)] * 2
    assert len(plan_tiles(66, 120, 3, tiling.decode_pass_latents, tiling)) == 1
    assert [tile.size for tile in plan_tiles(240, 134, 3, tiling.decode_pass_latents, tiling)] == [(136, 134)] * 2  # portrait
    assert len(plan_tiles(134, 240, 5, tiling.encode_pass_latents, tiling)) == 1
    assert len(plan_tiles(256, 256, 1, tiling.encode_pass_latents, tiling)) == 1


@pytest.mark.parametrize("limit", [60, 200, 700])
def test_tiles_stay_within_the_limit_and_their_own_parts_cover_all_once(limit: int) -> None:
    tiles = plan_tiles(23, 31, 1, limit, VaeTilingConfig(overlap=2))
    covered = torch.zeros(23, 31)
    for tile in tiles:
        assert tile.size[0] * tile.size[1] <= limit
        covered[tile.rows.own_start : tile.rows.own_stop, tile.columns.own_start : tile.columns.own_stop] += 1
    assert (covered == 1).all()


def test_layouts_that_cannot_be_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"overlap of 16 stay within 1000 latents"):
        plan_tiles(134, 240, 3, 1000, VaeTilingConfig())
    with pytest.raises(ValueError, match=r"blend = 32; lower it"):
        plan_tiles(16, 60, 1, 900, VaeTilingConfig(blend=32))
    with pytest.raises(ValueError, match="twice overlap"):
        VaeTilingConfig(overlap=4, blend=9)


@pytest.mark.parametrize("blend", [0, 1, 4])
def test_merging_pieces_of_one_picture_gives_the_picture(blend: int) -> None:
    picture = torch.randn(1, 3, 2, 23 * 2, 31 * 2, generator=torch.Generator().manual_seed(0))
    tiles = plan_tiles(23, 31, 1, 160, VaeTilingConfig(overlap=2, blend=blend))
    assert len(tiles) > 4
    pieces = (picture[..., 2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop] for rows, columns in tiles)
    torch.testing.assert_close(merge_tiles(pieces, tiles, (23, 31), 2, blend), picture, atol=1e-6, rtol=0)


def test_a_blend_fades_linearly_over_its_width() -> None:
    tiles = plan_tiles(4, 20, 1, 60, VaeTilingConfig(overlap=4, blend=4))
    assert [tile.columns for tile in tiles] == split_side(20, 2, 4)
    pieces = (torch.full((4, tile.size[1]), float(index)) for index, tile in enumerate(tiles))
    row = merge_tiles(pieces, tiles, (4, 20), 1, 4)[0]
    assert row.tolist() == [0.0] * 8 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 8


# ---- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "chunk", "lengths"),
    [
        (49, 16, [17, 16, 16]),
        (49, 12, [13, 12, 12, 12]),
        (49, 1 << 30, [49]),
        (5, 16, [5]),
        (1, 2, [1]),
        (2, 2, [2]),
        (13, 2, [3, 2, 2, 2, 2, 2]),
    ],
)
def test_temporal_chunks_are_the_released_ones(frames: int, chunk: int, lengths: list[int]) -> None:
    chunks = temporal_chunks(frames, chunk)
    assert [stop - start for start, stop in chunks] == lengths and chunks[-1][1] == frames


@pytest.mark.parametrize("frames", [1, 9, 33])
def test_one_tile_equals_the_stock_class(frames: int) -> None:
    network, stock = tiny(), tiny()
    stock.num_sample_frames_batch_size = 16
    vae = wrap(network)
    posterior, expected = vae.encode(video(frames, 48, 64)), stock.encode(video(frames, 48, 64)).latent_dist
    assert torch.equal(posterior.mean, expected.mean.transpose(1, 2))
    assert torch.equal(posterior.logvar, expected.logvar.transpose(1, 2))
    decoded = vae.decode(posterior.mean)
    torch.testing.assert_close(decoded, stock.decode(expected.mean).sample, atol=1e-6, rtol=0)


def test_two_latents_decode_to_five_frames_as_the_start_of_a_longer_video_does() -> None:
    """With fixed statistics the decoder is causal, so frames 0-4 cannot depend on what follows. Stock: eight frames."""
    network = tiny(fixed_norms=True)
    three = latents(3, 4, 6)
    with torch.no_grad():
        assert network.decode(three[:, :2].transpose(1, 2)).sample.shape[2] == 8
    short = wrap(network).decode(three[:, :2])
    assert short.shape == (1, 3, 5, 32, 48)
    torch.testing.assert_close(short, wrap(network).decode(three)[:, :, :5], atol=1e-6, rtol=0)
    assert wrap(network).encode(short).mean.shape == (1, 2, 16, 4, 6)


# ---- convolutions and memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [3, 9])
@pytest.mark.parametrize("limit", [1, 500, 2_000, 5_000])
def test_convolutions_in_parts_equal_whole_ones(frames: int, limit: int) -> None:
    torch.manual_seed(0)
    whole = nn.Conv3d(4, 6, 3, padding=(0, 1, 1))
    parted = PartedConv3d.of(whole)
    assert parted.weight is whole.weight
    parted.max_elements = limit
    picture = torch.randn(2, 4, frames, 7, 10)
    torch.testing.assert_close(parted(picture), whole(picture), atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [1, 4_000])
def test_frames_in_groups_are_enlarged_as_together(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wrap(tiny()).decode(latents(5, 4, 6))
    monkeypatch.setattr(vae_passes, "CONVOLUTION_ELEMENTS", limit)
    torch.testing.assert_close(wrap(tiny()).decode(latents(5, 4, 6)), expected, atol=1e-5, rtol=0)


STOCK_CRASHES = [("decode", (1, 16, 1, 134, 240)), ("encode", (1, 3, 1, 2048, 2048)), ("decode", (1, 16, 3, 256, 256))]


@pytest.mark.parametrize(("what", "shape"), STOCK_CRASHES, ids=str)
def test_sizes_where_the_stock_class_crashes_run_here_whole_and_tiled(what: str, shape: tuple[int, ...]) -> None:
    """Full-size network, meta device: every shape is computed, nothing is allocated."""
    sample = torch.empty(shape, device="meta")
    with pytest.raises(RuntimeError, match="Calculated padded input size per channel"):
        getattr(build(device="meta"), what)(sample)
    for tiling in (WHOLE, VaeTilingConfig()):
        vae = wrap(build(device="meta"), tiling)
        if what == "encode":
            assert vae.encode(sample).mean.shape == (1, 1, 16, 256, 256)
        else:
            frames, height, width = shape[2:]
            assert vae.decode(sample.transpose(1, 2)).shape == (1, 3, 4 * frames - 3, 8 * height, 8 * width)


def test_memory_is_planned_for_1080p_without_allocating() -> None:
    vae = wrap(nn.Module.to(build(device="meta"), torch.bfloat16), VaeTilingConfig())
    encode, decode = vae.plan_encode((1, 3, 49, 1072, 1920)), vae.plan_decode((1, 13, 16, 134, 240))
    assert encode.weights_bytes == decode.weights_bytes == 2 * 215_583_907
    assert len(encode.tiles) == 1 and len(decode.tiles) == 2
    one_tensor = 2 * 128 * 17 * 1072 * 1920  # the encoder's first activations
    assert 4 * one_tensor < encode.pass_bytes < 9 * one_tensor
    assert decode.peak_bytes < 64e9 < 70e9  # the released two slices fit an 80 GB card
    assert wrap(vae.network).plan_decode((1, 13, 16, 134, 240)).pass_bytes > 1.7 * decode.pass_bytes


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_planned_bytes_are_the_bytes_that_live(what: str) -> None:
    network = tiny()
    vae = wrap(network)
    plan = vae.plan_encode((1, 3, 17, 64, 96)) if what == "encode" else vae.plan_decode((1, 5, 16, 8, 12))
    with torch.inference_mode(), live_bytes() as counter:
        if what == "encode":
            encode_piece(network, video(17, 64, 96), 16)
        else:
            decode_piece(network, latents(5, 8, 12).transpose(1, 2))
    assert counter.peak == pytest.approx(plan.pass_bytes, rel=0.05)


# ---- space ---------------------------------------------------------------------------------------------------------


TILED = [
    pytest.param((3, 2, 60), 270, 2, id="slices"),
    pytest.param((1, 34, 34), 1_000, 4, id="tiles"),
]


@pytest.mark.parametrize(("shape", "limit", "count"), TILED)
def test_overlap_by_the_receptive_field_is_exact_where_statistics_agree(shape: tuple[int, int, int], limit: int, count: int) -> None:
    network, z = tiny(fixed_norms=True), latents(*shape)
    tiling = VaeTilingConfig(overlap=RECEPTIVE_LATENTS, decode_pass_latents=limit, encode_pass_latents=limit)
    assert len(wrap(network, tiling).plan_decode(tuple(z.shape)).tiles) == count
    whole, tiled = wrap(network).decode(z), wrap(network, tiling).decode(z)
    assert difference(tiled, whole) <= 1e-5
    narrow = wrap(network, tiling.model_copy(update={"overlap": 1})).decode(z)
    assert difference(narrow, whole) > 1e-3
    assert len(wrap(network, tiling).plan_encode(tuple(whole.shape)).tiles) == count
    assert difference(wrap(network, tiling).encode(whole).mean, wrap(network).encode(whole).mean) <= 1e-5


def step_at(picture: Tensor, column: int) -> float:
    """Mean |difference| of the two columns that meet there."""
    return float((picture[..., column] - picture[..., column - 1]).abs().mean())


def wide_latents(kind: str) -> Tensor:
    """1 1 16 8 64: a repeated pattern (both slices see the same), white noise (nearly), or a smooth picture (unlike halves)."""
    if kind == "repeated":
        return latents(1, 8, 8).repeat(1, 1, 1, 1, 8)
    if kind == "noise":
        return latents(1, 8, 64)
    return F.interpolate(latents(1, 3, 16).transpose(1, 2), size=(1, 8, 64), mode="trilinear").transpose(1, 2)


@pytest.mark.parametrize(
    ("kind", "mean_bound", "seam_bound"), [("repeated", 0.005, 1.02), ("noise", 0.03, 1.03), ("unlike halves", 0.12, 1.2)]
)
def test_slices_with_their_own_statistics_stay_within_the_stated_bound(kind: str, mean_bound: float, seam_bound: float) -> None:
    """GroupNorm spans a slice, so slices differ from the whole by as much as their statistics do. Mean |difference| over
    the whole's std, random weights, released overlap of 16: measured 0.0018, 0.017 and 0.078. The step at the seam
    over the whole picture's at that column: at most 1.12 (unlike halves); nearer to 1 with a cross-fade."""
    network, tiling = tiny(), VaeTilingConfig(decode_pass_latents=420)
    z, seam = wide_latents(kind), 256
    assert len(wrap(network, tiling).plan_decode(tuple(z.shape)).tiles) == 2
    whole, sliced = wrap(network).decode(z), wrap(network, tiling).decode(z)
    assert 0 < (sliced - whole).abs().mean() / whole.std() <= mean_bound
    assert step_at(sliced, seam) <= seam_bound * step_at(whole, seam)
    blended = wrap(network, tiling.model_copy(update={"blend": 16})).decode(z)
    assert abs(step_at(blended, seam) / step_at(whole, seam) - 1) <= max(0.01, abs(step_at(sliced, seam) / step_at(whole, seam) - 1))


# ---- devices -------------------------------------------------------------------------------------------------------


def test_two_devices_decode_and_encode_side_by_side_and_give_the_same_bits() -> None:
    tiling = VaeTilingConfig(overlap=2, decode_pass_latents=300, encode_pass_latents=300)
    vae = wrap(tiny(), tiling)
    z, threads = latents(3, 8, 24), set()
    decoder = vae.network.decoder.conv_in.forward
    meet = threading.Barrier(2, timeout=60)

    def watched(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() not in threads and threading.current_thread() is not threading.main_thread():
            threads.add(threading.get_ident())
            meet.wait()  # passes only when two decode at the same time
        return decoder(*arguments, **options)

    alone = vae.decode(z)
    vae.network.decoder.conv_in.forward = watched
    assert torch.equal(vae.decode(z, devices=["cpu", "cpu"]), alone)
    assert len(threads) == 2
    posterior = vae.encode(alone)
    assert torch.equal(vae.encode(alone, devices=["cpu", "cpu"]).mean, posterior.mean)


def test_an_error_in_one_tile_is_raised() -> None:
    vae = wrap(tiny(), VaeTilingConfig(overlap=2, decode_pass_latents=300))

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("this tile fails")

    vae.network.decoder.conv_in.forward = broken
    with pytest.raises(RuntimeError, match="this tile fails"):
        vae.decode(latents(3, 8, 24), devices=["cpu", "cpu"])


def test_parting_keeps_every_name_and_weight() -> None:
    network = tiny()
    before = {key: value.data_ptr() for key, value in network.state_dict().items()}
    part_large_convolutions(network)
    assert {key: value.data_ptr() for key, value in network.state_dict().items()} == before
