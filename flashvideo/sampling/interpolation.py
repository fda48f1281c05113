"""Frame interpolation, 8 -> 24 frames a second: between every two frames, new ones at given moments.

Two interpolators, named in what they make. `FlowInterpolator` needs no weights: dense optical flow both ways (OpenCV's
DIS), motion projected to the moment, both frames warped, and blended by what each of them sees there. `RifeInterpolator`
is RIFE 4.6's network with its released weights. Frames are `uint8 T H W C`.
Source: RIFE (arXiv 2011.06294); DIS flow (arXiv 1603.03590); flow projection as in DAIN (arXiv 1904.00830), section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvideo.models.weight_files import WeightsError, check_keys

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class FrameInterpolator(Protocol):
    """Makes pictures between two frames."""

    name: str
    """Method and version, recorded in what it makes."""

    def between(self, first: Picture, second: Picture, moments: Sequence[float]) -> list[Picture]:
        """Pictures (uint8 H W C) at each moment, 0 < moment < 1, from `first` (0) to `second` (1)."""
        ...


def interpolate(frames: Picture, interpolator: FrameInterpolator, factor: int = 3) -> Picture:
    """uint8 T H W C -> factor (T - 1) + 1 frames over the same time; the given frames are kept as they are.

    49 frames at 8 Hz make 145 at 24 Hz. Raises ValueError for other arrays or a factor below 1.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; need uint8 T H W 3 with at least one frame")
    if factor < 1:
        raise ValueError(f"factor = {factor}; need 1 or more (3 makes 24 Hz of 8 Hz)")
    moments = [step / factor for step in range(1, factor)]
    result = np.empty((factor * (len(frames) - 1) + 1, *frames.shape[1:]), np.uint8)
    result[::factor] = frames
    for index in range(len(frames) - 1):
        between = interpolator.between(frames[index], frames[index + 1], moments) if moments else []
        for step, picture in enumerate(between, 1):
            result[index * factor + step] = picture
    return result


def build_interpolator(method: str, weights: str | None = None, device: torch.device | str = "cpu") -> FrameInterpolator | None:
    """The interpolator of GenerateConfig.interpolation; None for "none". Raises WeightsError when RIFE lacks its weights."""
    if method == "none":
        return None
    if method == "dis":
        return FlowInterpolator()
    if method != "rife":
        raise ValueError(f"no interpolation named {method!r}; have none, dis, rife")
    if weights is None:
        raise WeightsError(
            "generate.interpolation is rife, but generate.interpolation_weights is not set; want RIFE 4.6's flownet.pkl, or choose dis"
        )
    return RifeInterpolator.from_file(Path(weights), device)


# ---- optical flow ------------------------------------------------------------------------------------------------


class _Motion(NamedTuple):
    """What is known at a moment, per pixel of the flow's grid."""

    to_first: Floats
    """H W 2, pixels (x, y): where the pixel's content is in the first frame."""
    to_second: Floats
    first_sees: Floats
    """H W, 0..1: how sure it is that the first frame shows the content."""
    second_sees: Floats


class FlowInterpolator:
    """DIS optical flow in both directions, projected to the moment; each frame is warped and weighted by what it sees.

    A pixel's motion is that of the flow vector that passes it; where several do, the one whose two ends look most alike
    (the thing in front, which both frames show). Where the ends differ, content is covered or uncovered, and the frame
    that shows it counts more. Equal frames give the frame itself.
    """

    name = "DIS flow, bidirectional warping with occlusion blending (OpenCV)"
    FLOW_SHORT_SIDE_PX = 540
    """Larger pictures are matched at this size: flow is smooth, and its cost grows with the area."""
    MISMATCH_LEVELS = 40.0
    """Difference of a vector's two ends (of 255, mean over colours) at which the other frame counts 1/e. Tried on moving
    squares over textures: half of it is 0.5 dB worse, no weighting 0.4 to 1 dB, disagreement of the two flows 1.5 dB."""

    def __init__(self) -> None:
        import cv2

        self._cv2 = cv2
        self._dis: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
        self._dis.setFinestScale(0)  # the presets stop at half or a quarter of the size: edges of things are worth more here
        self._dis.setPatchStride(2)
        self._dis.setVariationalRefinementIterations(10)

    def between(self, first: Picture, second: Picture, moments: Sequence[float]) -> list[Picture]:
        """As the protocol says. Raises ValueError for frames of unequal size or below 16 px."""
        if first.shape != second.shape or min(first.shape[:2]) < 16:
            raise ValueError(f"frames are {first.shape} and {second.shape}; need one size of at least 16 px")
        if np.array_equal(first, second):
            return [first.copy() for _ in moments]
        small_first, small_second = self._small(first), self._small(second)
        forward, backward = self._flow(small_first, small_second), self._flow(small_second, small_first)
        doubts = [self._mismatch(small_first, small_second, forward), self._mismatch(small_second, small_first, backward)]
        return [self._render(first, second, self._project(forward, backward, doubts, moment), moment) for moment in moments]

    def _small(self, frame: Picture) -> Picture:
        scale = self.FLOW_SHORT_SIDE_PX / min(frame.shape[:2])
        if scale >= 1:
            return frame
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        smaller: Picture = self._cv2.resize(frame, size, interpolation=self._cv2.INTER_AREA)
        return smaller

    def _flow(self, start: Picture, end: Picture) -> Floats:
        """H W 2 in pixels: start(p) = end(p + flow(p))."""
        greys = [self._cv2.cvtColor(frame, self._cv2.COLOR_RGB2GRAY) for frame in (start, end)]
        flow: Floats = self._dis.calc(*greys, None)
        return flow

    def _mismatch(self, start: Picture, end: Picture, flow: Floats) -> Floats:
        """H W, levels of 255: how much the flow's two ends differ, over 3x3 px."""
        difference = np.abs(start.astype(np.float32) - self._sample(end, flow)).mean(axis=2)
        smooth: Floats = self._cv2.blur(difference, (3, 3))
        return smooth

    def _sample(self, picture: npt.NDArray[np.generic], flow: Floats) -> Floats:
        """picture(p + flow(p)), bilinear, the border repeated."""
        height, width = flow.shape[:2]
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        source = picture.astype(np.float32)
        border = self._cv2.BORDER_REPLICATE
        sampled: Floats = self._cv2.remap(source, x + flow[..., 0], y + flow[..., 1], self._cv2.INTER_LINEAR, borderMode=border)
        return sampled

    def _project(self, forward: Floats, backward: Floats, doubts: Sequence[Floats], moment: float) -> _Motion:
        """The motion at the moment, from both flows. Candidates land on the nearest pixel, the most doubtful first."""
        height, width = forward.shape[:2]
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        candidates = []
        for flow, doubt, share, is_first in ((forward, doubts[0], moment, True), (backward, doubts[1], 1 - moment, False)):
            column, row = np.rint(x + share * flow[..., 0]).astype(np.int32), np.rint(y + share * flow[..., 1]).astype(np.int32)
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            motion = flow if is_first else -flow  # from the first frame to the second
            sure = np.exp(-doubt / self.MISMATCH_LEVELS)
            sees = (np.ones_like(sure), sure) if is_first else (sure, np.ones_like(sure))
            facts = np.dstack([motion, *sees])
            candidates.append((doubt[inside], (row * width + column)[inside], facts[inside]))
        doubt, place, facts = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
        order = np.argsort(-np.rint(4 * doubt).astype(np.int16), kind="stable")  # quarters of a level: numpy's radix sort
        landed = np.full((height * width, 4), np.nan, np.float32)
        landed[place[order]] = facts[order]
        field = self._fill(landed.reshape(height, width, 4))
        motion = field[..., :2]
        return _Motion(-moment * motion, (1 - moment) * motion, field[..., 2], field[..., 3])

    def _fill(self, field: Floats) -> Floats:
        """Pixels that no vector reaches take the mean of their neighbours, from ever wider around."""
        known = ~np.isnan(field[..., 0])
        filled = np.where(known[..., None], field, 0.0).astype(np.float32)
        weight = known.astype(np.float32)
        size = 3
        while not known.all():
            total = self._cv2.blur(filled * weight[..., None], (size, size), borderType=self._cv2.BORDER_CONSTANT)
            count = self._cv2.blur(weight, (size, size), borderType=self._cv2.BORDER_CONSTANT)
            new = ~known & (count > 1e-6)
            filled[new] = total[new] / count[new, None]
            known |= new
            size = 2 * size + 1
        return filled

    def _render(self, first: Picture, second: Picture, motion: _Motion, moment: float) -> Picture:
        """Both frames warped to the moment, each by its nearness in time and by how surely it shows the content."""
        height, width = first.shape[:2]
        size, scale = (width, height), (width / motion.to_first.shape[1], height / motion.to_first.shape[0])
        fields = [field if field.shape[:2] == (height, width) else self._cv2.resize(field, size) for field in motion]
        to_first, to_second = (field * np.array(scale, np.float32) for field in fields[:2])
        near_first, near_second = (1 - moment) * fields[2][..., None], moment * fields[3][..., None]
        mixed = near_first * self._sample(first, to_first) + near_second * self._sample(second, to_second)
        picture: Picture = np.rint(mixed / np.maximum(near_first + near_second, 1e-6)).clip(0, 255).astype(np.uint8)
        return picture


# ---- RIFE --------------------------------------------------------------------------------------------------------


class _ScaledResidual(nn.Module):
    """leaky(x + beta conv(x)), beta per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.beta * self.conv(x), 0.2)


class _Leaky(nn.Sequential):
    """A convolution that halves the size, then leaky ReLU; its weight is named `0`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2))


class _FlowBlock(nn.Module):
    """One level of RIFE's IFNet (section 3.2): refines the flows and the blending mask at 1/scale of the size."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_Leaky(inputs, width // 2), _Leaky(width // 2, width))
        self.convblock = nn.Sequential(*(_ScaledResidual(width) for _ in range(8)))
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 24, 4, stride=2, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor, flow: Tensor | None, scale: int) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), flow (B, 4, H, W) in pixels -> what to add to flow and mask (B, 1, H, W)."""
        given = x if flow is None else torch.cat([x, flow / scale], dim=1)
        small = F.interpolate(given, scale_factor=1 / scale, mode="bilinear") if scale > 1 else given
        change = self.lastconv(self.convblock(self.conv0(small)))
        change = F.interpolate(change, scale_factor=float(scale), mode="bilinear") if scale > 1 else change
        return change[:, :4] * scale, change[:, 4:5]


class RifeNetwork(nn.Module):
    """RIFE 4.6's IFNet: four levels from 1/8 to full size, any moment, no feature encoder. Keys as in its flownet.pkl."""

    WIDTHS = (192, 128, 96, 64)
    SCALES = (8, 4, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        for level, width in enumerate(self.WIDTHS):  # both pictures and the moment; then also the mask and both flows
            self.add_module(f"block{level}", _FlowBlock(7 if level == 0 else 12, width))

    def forward(self, first: Tensor, second: Tensor, moment: float) -> Tensor:
        """B 3 H W in [0, 1], sides that divide by 32, -> the picture at the moment, of that shape."""
        time = torch.full_like(first[:, :1], moment)
        flow: Tensor | None = None
        mask = torch.zeros_like(time)
        warped = first, second
        for level, scale in enumerate(self.SCALES):
            block = self.get_submodule(f"block{level}")
            given = torch.cat([*warped, time] if flow is None else [*warped, time, mask], dim=1)
            change, mask_change = block(given, flow, scale)
            flow = change if flow is None else flow + change
            mask = mask + mask_change
            warped = warp(first, flow[:, :2]), warp(second, flow[:, 2:])
        share = mask.sigmoid()
        return warped[0] * share + warped[1] * (1 - share)


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """picture(p + flow(p)), bilinear, the border repeated. B C H W and B 2 H W (x, y in pixels)."""
    height, width = picture.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device, dtype=flow.dtype), torch.arange(width, device=flow.device, dtype=flow.dtype), indexing="ij"
    )
    column, row = (x + flow[:, 0]) * (2 / max(width - 1, 1)) - 1, (y + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    return F.grid_sample(picture, torch.stack([column, row], dim=-1), mode="bilinear", padding_mode="border", align_corners=True)


RIFE_DROPPED = re.compile(r"(block_tea|teacher|caltime)\..*")
"""Parts of RIFE's training that some flownet.pkl files carry and inference does not run."""


class RifeInterpolator:
    """RIFE 4.6 with released weights."""

    def __init__(self, network: RifeNetwork, weights: str) -> None:
        """`weights`: where they come from, for the name."""
        self.name = f"RIFE 4.6 ({weights})"
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path, device: torch.device | str = "cpu") -> RifeInterpolator:
        """Loads flownet.pkl, strictly. Raises WeightsError that names missing, unknown or misshapen keys."""
        return cls(load_rife(path).to(device), path.name)

    @torch.inference_mode()
    def between(self, first: Picture, second: Picture, moments: Sequence[float]) -> list[Picture]:
        """As the protocol says. Raises ValueError for frames of unequal size."""
        if first.shape != second.shape:
            raise ValueError(f"frames are {first.shape} and {second.shape}; need one size")
        height, width = first.shape[:2]
        padding = (0, -width % 32, 0, -height % 32)
        pictures = [F.pad(self._tensor(frame), padding, mode="replicate") for frame in (first, second)]
        made = [self.network(pictures[0], pictures[1], moment)[0, :, :height, :width] for moment in moments]
        return [(picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy() for picture in made]

    def _tensor(self, frame: Picture) -> Tensor:
        weight = next(self.network.parameters())
        return torch.from_numpy(np.ascontiguousarray(frame)).to(weight.device).permute(2, 0, 1)[None].to(weight.dtype) / 255


def load_rife(path: Path) -> RifeNetwork:
    """RIFE 4.6's network from a flownet.pkl (its keys may begin with `module.`). Raises WeightsError."""
    import pickle

    if not path.is_file():
        raise WeightsError(f"no file {path}; want RIFE 4.6's flownet.pkl")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{path} is not a file of tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold a dictionary of tensors; want RIFE 4.6's flownet.pkl")
    state = {key.removeprefix("module."): value.float() for key, value in content.items()}
    state = {key: value for key, value in state.items() if not RIFE_DROPPED.fullmatch(key)}
    network = RifeNetwork()
    check_keys(state, network.state_dict(), f"{path} (RIFE 4.6 wanted)")
    network.load_state_dict(state)
    return network
