"""One pass of diffusers' CogVideoX autoencoder over a spatial piece of video, in temporal chunks.

The networks are diffusers' (`AutoencoderKLCogVideoX`); what is ours is how they are driven: convolutions that are too
large are cut without the stock class's crash, two latent frames decode to five pixel frames as in the released code,
and nothing is kept on the modules between calls, so that one network can serve several threads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTION_ELEMENTS = 1 << 30
"""Larger inputs are convolved in parts (diffusers' limit: 2 GiB at 2 bytes, "suitable for CuDNN")."""
LATENT_CHUNK = 2
"""Latent frames decoded together; the first chunk takes the odd one too: 3, 2, 2, ... (code)."""


class PartedConv3d(nn.Conv3d):
    """A Conv3d that cuts large inputs in time, then in height, into parts that overlap by the kernel: the same sums.

    diffusers' CogVideoXSafeConv3d cuts the input's frames instead and leaves parts shorter than the kernel, which fails
    from 1072x1920 on ("Calculated padded input size per channel"). Time is not padded here (the caller did), height and
    width are, by (kernel - 1) / 2.
    """

    max_elements = CONVOLUTION_ELEMENTS

    @classmethod
    def of(cls, source: nn.Conv3d) -> PartedConv3d:
        """The same layer, sharing its weights. Raises ValueError for strides, dilations or paddings not meant here."""
        padding = (0, source.kernel_size[1] // 2, source.kernel_size[2] // 2)
        if source.padding != padding or set(source.stride + source.dilation) != {1} or source.groups != 1:
            raise ValueError(f"{source} is not a causal convolution with stride 1 and 'same' padding in space")
        with torch.device("meta"):
            conv = cls(
                source.in_channels,
                source.out_channels,
                (source.kernel_size[0], source.kernel_size[1], source.kernel_size[2]),
                padding=padding,
                bias=source.bias is not None,
            )
        conv.weight, conv.bias = source.weight, source.bias
        return conv.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T - kernel + 1, H, W)."""
        if input.numel() <= self.max_elements:
            return super().forward(input)
        time_halo, row_halo = self.kernel_size[0] - 1, self.kernel_size[1] // 2
        batch, _, frames, height, width = input.shape
        frames -= time_halo
        row_elements = input[:, :, 0, 0].numel()
        num_frames = max(1, self.max_elements // (row_elements * height) - time_halo)
        num_rows = max(1, self.max_elements // (row_elements * (num_frames + time_halo)) - 2 * row_halo)
        output = input.new_empty(batch, self.out_channels, frames, height, width)
        for start in range(0, frames, num_frames):
            for top in range(0, height, num_rows):
                bottom = min(top + num_rows, height)
                above, below = min(row_halo, top), min(row_halo, height - bottom)
                part = input[:, :, start : min(start + num_frames, frames) + time_halo, top - above : bottom + below]
                padding = (self.kernel_size[2] // 2,) * 2 + (row_halo - above, row_halo - below)
                output[:, :, start : start + num_frames, top:bottom] = F.conv3d(F.pad(part, padding), self.weight, self.bias)
        return output


def part_large_convolutions(network: Any) -> None:
    """Puts a `PartedConv3d` in the place of every CogVideoXSafeConv3d. Names and weights stay."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

    for module in network.modules():
        if isinstance(module, CogVideoXCausalConv3d) and not isinstance(module.conv, PartedConv3d):
            module.conv = PartedConv3d.of(module.conv)


def temporal_chunks(num_frames: int, chunk: int) -> list[tuple[int, int]]:
    """(start, stop) of chunks of `chunk` frames; the first takes the remainder too: 49 in 16s is 17 + 16 + 16."""
    first = chunk + num_frames % chunk if num_frames >= chunk else num_frames
    return [(0, first), *((start, start + chunk) for start in range(first, num_frames, chunk))]


def encode_piece(network: Any, video: Tensor, chunk_frames: int) -> Tensor:
    """B C T H W in [-1, 1] -> mean and log variance (B, 32, T', H / 8, W / 8), channels before time."""
    cache: Any = None
    moments = []
    for start, stop in temporal_chunks(video.shape[2], chunk_frames):
        part, cache = network.encoder(video[:, :, start:stop], conv_cache=cache)
        moments.append(part)
    return torch.cat(moments, dim=2)


def decode_piece(network: Any, latents: Tensor) -> Tensor:
    """B C T H W latents, channels before time, -> B 3 (4 T - 3) 8H 8W: the first latent frame always is one frame."""
    cache: dict[Any, Any] = {}
    frames = []
    for start, stop in temporal_chunks(latents.shape[2], LATENT_CHUNK):
        part, cache = _decode_chunk(network.decoder, latents[:, :, start:stop], cache, first=start == 0)
        frames.append(part)
    return torch.cat(frames, dim=2)


def _decode_chunk(decoder: Any, latents: Tensor, cache: dict[Any, Any], first: bool) -> tuple[Tensor, dict[Any, Any]]:
    """The decoder's own layers in its own order, told whether this chunk holds the video's first frame."""
    kept: dict[Any, Any] = {}
    x, kept["conv_in"] = decoder.conv_in(latents, conv_cache=cache.get("conv_in"))
    x, kept["mid_block"] = decoder.mid_block(x, None, latents, conv_cache=cache.get("mid_block"))
    for level, block in enumerate(decoder.up_blocks):
        for index, resnet in enumerate(block.resnets):
            x, kept[level, index] = resnet(x, None, latents, conv_cache=cache.get((level, index)))
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler, x, first)
    x, kept["norm_out"] = decoder.norm_out(x, latents, conv_cache=cache.get("norm_out"))
    x, kept["conv_out"] = decoder.conv_out(decoder.conv_act(x), conv_cache=cache.get("conv_out"))
    return x, kept


def _upsample(layer: Any, x: Tensor, first: bool) -> Tensor:
    """Twice the height and width, and twice the frames where the layer does time (of the first chunk: but the first).

    diffusers keeps the first frame single only where the chunk is odd, so it decodes two latent frames to eight pixel
    frames; the released code always does (force_split). Frames go through in groups that a convolution can take.
    """
    batch, channels, frames, height, width = x.shape
    doubled = list(range(frames))
    if layer.compress_time and frames > 1:
        doubled = [frame for frame in doubled for _ in range(1 if first and frame == 0 else 2)]
    group = max(1, CONVOLUTION_ELEMENTS // (batch * channels * 4 * height * width))
    parts = []
    for start in range(0, len(doubled), group):
        chosen = x[:, :, doubled[start : start + group]].transpose(1, 2).flatten(0, 1)
        parts.append(layer.conv(F.interpolate(chosen, scale_factor=2.0)).unflatten(0, (batch, -1)))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).transpose(1, 2)
