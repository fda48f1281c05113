"""Which frames of a clip a dimension looks at, and how they are brought to a network's size.

"AA" is antialiased resizing: the reference resizes tensors without it, the protocol's `antialias` turns it on.
Source: Vchitect/VBench vbench/utils.py (get_frame_indices, clip_transform, dino_transform), commit 45e79ec.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from flashvideo.evaluation.dimensions.dimension import picture

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def middle_frames(num_frames: int, count: int) -> tuple[int, ...]:
    """Middles of `count` equal intervals; a shorter clip gives every frame and repeats the last.

    linspace as int, then (first + last) // 2 of each interval. Raises ValueError for no frame.
    """
    if num_frames < 1:
        raise ValueError("a clip without frames has no middle")
    taken = min(count, num_frames)
    edges = np.linspace(0, num_frames, taken + 1).astype(int)
    middles = [int(low + high - 1) // 2 for low, high in itertools.pairwise(edges)]
    return tuple(middles + [middles[-1]] * (count - taken))


class ChosenFrames:
    """Keeps the frames of `indices` as they pass."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = tuple(indices)
        self._kept: dict[int, np.ndarray] = {}

    def wants(self, index: int) -> bool:
        return index in self._indices

    def keep(self, index: int, value: np.ndarray) -> None:
        self._kept[index] = value

    def all(self) -> list[np.ndarray]:
        """In order, repeated where an index is. Raises ValueError where one never came."""
        absent = [index for index in self._indices if index not in self._kept]
        if absent:
            raise ValueError(f"frame {absent[0]} is missing: the clip is shorter than it was said to be")
        return [self._kept[index] for index in self._indices]


def normalised(pictures: torch.Tensor, mean_and_std: tuple[Sequence[float], Sequence[float]]) -> torch.Tensor:
    """... 3 H W in 0-255 -> /255, less mean, over std."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in mean_and_std)
    return (pictures / 255 - mean) / std


def resized_short_side(pictures: torch.Tensor, side: int, mode: str, antialias: bool) -> torch.Tensor:
    """B 3 H W with the short side `side` and the long one int(side * long / short). Nothing is clamped."""
    height, width = pictures.shape[-2:]
    if min(height, width) == side:
        return pictures
    if height < width:
        size = (side, int(side * width / height))
    else:
        size = (int(side * height / width), side)
    return F.interpolate(pictures, size=size, mode=mode, align_corners=False, antialias=antialias)


def centre_crop(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The middle side x side, by torchvision's rounding. Raises ValueError for smaller pictures."""
    height, width = pictures.shape[-2:]
    if min(height, width) < side:
        raise ValueError(f"{width}x{height} px is smaller than the {side} px crop")
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pictures[..., top : top + side, left : left + side]


def dino_pixels(frame: np.ndarray, antialias: bool) -> torch.Tensor:
    """3 H W: short side 224, bilinear, no crop, ImageNet normalisation."""
    return normalised(resized_short_side(picture(frame)[None], 224, "bilinear", antialias), IMAGENET)[0]


def clip_pixels(frame: np.ndarray, antialias: bool) -> torch.Tensor:
    """3 224 224: bicubic on floats (overshoots stay), centre crop, CLIP normalisation."""
    return normalised(centre_crop(resized_short_side(picture(frame)[None], 224, "bicubic", antialias), 224), CLIP)[0]


def viclip_pixels(frame: np.ndarray, antialias: bool) -> torch.Tensor:
    """3 224 224: as clip_pixels, but resized as uint8, so clamped and rounded."""
    resized = resized_short_side(picture(frame)[None], 224, "bicubic", antialias).clamp(0, 255).round()
    return normalised(centre_crop(resized, 224), CLIP)[0]


def pil_clip_pixels(frame: np.ndarray) -> torch.Tensor:
    """3 224 224: PIL's bicubic (always antialiased), centre crop, CLIP normalisation."""
    from PIL import Image

    height, width = frame.shape[:2]
    size = (int(224 * width / height), 224) if height < width else (224, int(224 * height / width))
    image = Image.fromarray(frame) if min(height, width) == 224 else Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
    return normalised(centre_crop(picture(np.array(image))[None], 224), CLIP)[0]


def dinov2_pixels(frame: np.ndarray) -> torch.Tensor:
    """3 224 224: short side 256, bicubic antialiased on floats, centre crop, ImageNet normalisation."""
    return normalised(centre_crop(resized_short_side(picture(frame)[None], 256, "bicubic", antialias=True), 224), IMAGENET)[0]


def dreamsim_pixels(frame: np.ndarray) -> torch.Tensor:
    """3 224 224 in 0-1: both sides to 224, bicubic antialiased on floats."""
    return F.interpolate(picture(frame)[None], size=(224, 224), mode="bicubic", align_corners=False, antialias=True)[0] / 255


def musiq_pixels(frame: np.ndarray, antialias: bool) -> torch.Tensor:
    """3 H W in 0-1: a long side above 512 becomes 512, both sides truncated to whole pixels, bilinear."""
    pixels = picture(frame)[None]
    height, width = pixels.shape[-2:]
    if max(height, width) > 512:
        scale = 512 / max(height, width)
        size = (int(scale * height), int(scale * width))
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    return pixels[0] / 255


def action_pixels(frame: np.ndarray) -> torch.Tensor:
    """3 224 224: OpenCV bilinear to a short side of 256, centre crop, ImageNet normalisation."""
    import cv2

    height, width = frame.shape[:2]
    if min(height, width) != 256:
        size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
    return normalised(centre_crop(picture(frame)[None], 224), IMAGENET)[0]


def detector_pixels(frame: np.ndarray) -> np.ndarray:
    """H W 3 in 0-255, float: above 768 px of short side it becomes 720, bilinear antialiased."""
    size = _detector_size(frame)
    if size is None:
        return frame.astype(np.float32)
    resized = F.interpolate(picture(frame)[None], size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def dense_caption_pixels(frame: np.ndarray) -> np.ndarray:
    """H W 3 uint8: above 768 px of short side it becomes 720, OpenCV bilinear."""
    import cv2

    size = _detector_size(frame)
    return frame if size is None else cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)


def _detector_size(frame: np.ndarray) -> tuple[int, int] | None:
    height, width = frame.shape[:2]
    if min(height, width) <= 768:
        return None
    scale = 720 / min(height, width)
    return int(scale * height), int(scale * width)


def caption_pixels(frame: np.ndarray) -> np.ndarray:
    """384 384 3 uint8 by swscale's bicubic, as a decoder that is asked for that size gives it."""
    import av

    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(384, 384, interpolation="BICUBIC").to_ndarray()


def padded(pictures: torch.Tensor, multiple: int) -> torch.Tensor:
    """B 3 H W padded to multiples, half on each side (the odd pixel right and below), edges repeated."""
    height, width = pictures.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    if rows == 0 and columns == 0:
        return pictures
    return F.pad(pictures, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), mode="replicate")


def unpadded(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `padded`."""
    top, left = (pictures.shape[-2] - height) // 2, (pictures.shape[-1] - width) // 2
    return pictures[..., top : top + height, left : left + width]
