"""DEG_pixel, recipe `deg_pixel_v1`: pixels made worse, with every parameter drawn from one seeded generator (3.3).

First the parameters are drawn (`draw_degradation`: pure numbers, the same on every machine, kept with the
sample), then they are applied to pixels (`Degradation.apply`). The paper says "blur and resize operations with
randomized strengths"; the ranges are Real-ESRGAN's and RealBasicVSR's (mmagic), as the authors point to.

Video is float `T C H W` in [0, 1]; an image is one frame. The output has the input's size. Kinds and strengths
are drawn once a clip and then walk a little from frame to frame, as mmagic does, so that a clip stays a clip.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from flashvideo.config import PixelDegradationConfig

Branch = Literal["weak", "strong"]
Name = TypeVar("Name", bound=str)
MIN_SIDE_PX = 4
"""No resize goes below this: an order of 0.15 times an order of 0.3 would leave nothing of a small crop."""
CODEC_BLOCK_PX = 32
"""Pictures are padded to whole blocks for the codec and cut back: small and odd sizes are where encoders fail."""
CODEC_MIN_BITS_PER_S = 4_000
"""x264 counts in kbit/s and refuses zero; only pictures below about 60 px of height come near."""


class DegradationError(ValueError):
    """A degradation that cannot be drawn or applied."""


class Draws:
    """Numbers from one generator, seeded by the hash of a key: the same key, the same numbers, on any worker."""

    def __init__(self, *key: object) -> None:
        seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=self.generator, dtype=torch.float64).item()

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def choice(self, weights: Mapping[Name, float]) -> Name:
        """One key, with the probability of its weight's share."""
        point = self.uniform(0.0, sum(weights.values()))
        for name, weight in weights.items():
            point -= weight
            if point < 0:
                return name
        return name

    def walk(self, low: float, high: float, step: float, num_frames: int) -> tuple[float, ...]:
        """One value a frame: the first uniform in the range, each next one within `step` of it, kept in the range."""
        values = [self.uniform(low, high)]
        for _ in range(num_frames - 1):
            values.append(min(high, max(low, values[-1] + self.uniform(-step, step))))
        return tuple(values)


class Operation(Protocol):
    """One thing done to a clip. Fields are the drawn parameters; tuples hold one value a frame."""

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Blur:
    """A blur or ringing kernel, of one kind and size, whose shape walks over the frames."""

    kind: str
    """iso | aniso | generalized_iso | generalized_aniso | plateau_iso | plateau_aniso | sinc."""
    size: int
    sigma_x: tuple[float, ...]
    sigma_y: tuple[float, ...]
    angle: tuple[float, ...]
    beta: tuple[float, ...]
    """Shape of generalized Gaussians and plateaus; 1 for the others."""
    omega: tuple[float, ...]
    """Cut-off of the sinc kernel, rad/px; 0 for the others."""

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor:
        return convolve(video, self.kernels(video.shape[0]).to(video.device))

    def kernels(self, num_frames: int) -> Tensor:
        """T K K, each summing to 1."""
        if self.kind == "sinc":
            return torch.stack([sinc_kernel(self.size, omega) for omega in self.omega[:num_frames]])
        rows = zip(self.sigma_x, self.sigma_y, self.angle, self.beta, strict=True)
        plateau = self.kind.startswith("plateau")
        return torch.stack([gaussian_kernel(self.size, *row, plateau=plateau) for row in rows])


@dataclass(frozen=True)
class Resize:
    """To `scale` times the present size, or times the clip's own size where `of_original`."""

    scale: float
    mode: str
    """area | bilinear | bicubic."""
    of_original: bool = False
    antialias: bool = False

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor:
        return self.to(video, tuple(video.shape[-2:]))

    def to(self, video: Tensor, reference: Sequence[int]) -> Tensor:
        height, width = (max(MIN_SIDE_PX, round(side * self.scale)) for side in reference)
        return resize(video, height, width, self.mode, self.antialias)


@dataclass(frozen=True)
class Noise:
    """Gaussian or Poisson noise, new in every frame; `strength` is sigma of 255, or the Poisson scale."""

    kind: str
    gray: bool
    """The same noise in all three channels."""
    strength: tuple[float, ...]

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor:
        strength = torch.tensor(self.strength).view(-1, 1, 1, 1)
        source = video.cpu()
        if self.kind == "gaussian":
            shape = (source.shape[0], 1 if self.gray else source.shape[1], *source.shape[2:])
            added = torch.randn(shape, generator=noise) * (strength / 255)
        else:
            light = source.mean(1, keepdim=True) if self.gray else source
            added = poisson_noise(light, noise) * strength
        return (video + added.to(video.device)).clamp(0, 1)


@dataclass(frozen=True)
class Jpeg:
    """Each frame through a JPEG encoder."""

    quality: tuple[float, ...]

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor:
        return jpeg(video, self.quality)


@dataclass(frozen=True)
class Codec:
    """The clip through a video encoder at a number of bits per pixel."""

    name: str
    bits_per_pixel: float

    def apply(self, video: Tensor, noise: torch.Generator) -> Tensor:
        return compress_video(video, self.name, self.bits_per_pixel)


@dataclass(frozen=True)
class Degradation:
    """Everything drawn for one clip, ready to be applied and to be kept as JSON."""

    branch: Branch
    key: tuple[str | int, ...]
    """(seed, sample id, variant): gives the same degradation again, noise included."""
    operations: tuple[Operation, ...]

    def apply(self, video: Tensor) -> Tensor:
        """The degraded clip, T C H W in [0, 1], of the input's size, device and dtype."""
        check_video(video)
        noise = Draws("noise", *self.key).generator
        height, width = video.shape[-2:]
        worse = video.float()
        for operation in self.operations:
            if isinstance(operation, Resize) and operation.of_original:
                worse = operation.to(worse, (height, width))
            else:
                worse = operation.apply(worse, noise)
        return resize(worse, height, width, "bilinear", antialias=True).clamp(0, 1).to(video.dtype)

    def record(self) -> dict[str, Any]:
        """The parameters for the sample's row: where a value walks over the frames, the first frame's."""
        operations = []
        for operation in self.operations:
            fields = asdict(operation)  # type: ignore[call-overload]
            flat = {name: value[0] if isinstance(value, tuple) else value for name, value in fields.items()}
            rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in flat.items()}
            operations.append({"operation": type(operation).__name__.lower(), **rounded})
        return {"recipe": "deg_pixel_v1", "branch": self.branch, "key": list(self.key), "operations": operations}


# -------------------------------------------------------------------------------------------------- drawing


def cached_branches(config: PixelDegradationConfig) -> list[Branch | None]:
    """Branch of each copy that is kept of a clip: one weak, the others strong (None: drawn), so that few copies hold many strong ones.

    `drawn_copy` gives both branches their shares back.
    """
    count, share = config.cached_variants, config.strong_probability
    if count == 1 or share in (0, 1):
        return [None] * count
    return ["weak", *["strong"] * (count - 1)]  # type: ignore[list-item]


def drawn_copy(config: PixelDegradationConfig, count: int, generator: torch.Generator) -> int:
    """Index of the kept copy that a sample is trained on: strong ones in `strong_probability` of all reads."""
    chance, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if count == 1 or config.strong_probability in (0, 1):
        return int(place * count)
    return 1 + int(place * (count - 1)) if chance < config.strong_probability else 0


def draw_degradation(
    config: PixelDegradationConfig,
    *,
    seed: int,
    sample_id: str,
    variant: int,
    num_frames: int,
    strength: float = 1.0,
    branch: Branch | None = None,
) -> Degradation:
    """The parameters of one degraded copy; `branch` None: strong with `strong_probability`.

    `strength` multiplies (max - min) of the blur, noise and JPEG ranges, from the mild end.
    """
    key = (seed, sample_id, variant)
    draws = Draws("deg_pixel_v1", *key)
    drawn = draws.chance(config.strong_probability)  # also where the branch is given, so that the draws after it are the same
    if not (drawn if branch is None else branch == "strong"):
        factor = draws.uniform(*config.downscale)
        return Degradation("weak", key, (Resize(1 / factor, "bilinear", of_original=True, antialias=True),))
    operations = [
        *_order(draws, config, 1, num_frames, strength),
        *_order(draws, config, 2, num_frames, strength),
        *_final(draws, config, num_frames, strength),
    ]
    return Degradation("strong", key, tuple(operations))


def _order(draws: Draws, config: PixelDegradationConfig, order: int, num_frames: int, strength: float) -> list[Operation]:
    """One order of the strong branch: blur, resize, noise, compression."""
    first, image = order == 1, num_frames == 1
    operations: list[Operation] = []
    if first or draws.chance(config.second_blur_probability):
        sigma = config.blur_sigma_1 if first else config.blur_sigma_2
        operations.append(_draw_blur(draws, config, _narrowed(sigma, strength), num_frames))
    operations += _draw_resize(draws, config, first)
    operations.append(_draw_noise(draws, config, first, num_frames, strength))
    if image or draws.chance(config.jpeg_probability):
        operations.append(_draw_jpeg(draws, config, num_frames, strength))
    if first and not image and draws.chance(config.video_compression_probability):
        operations.append(_draw_codec(draws, config))
    return operations


def _final(draws: Draws, config: PixelDegradationConfig, num_frames: int, strength: float) -> list[Operation]:
    """{compression} and {resize to 1/f, sinc} in a drawn order; f ties the output to the 270p -> 1080p gap."""
    compression: list[Operation] = []
    if num_frames == 1:
        compression = [_draw_jpeg(draws, config, num_frames, strength)]
    elif draws.chance(config.video_compression_probability):
        compression = [_draw_codec(draws, config)]
    factor = draws.uniform(*config.downscale)
    shrink: list[Operation] = [Resize(1 / factor, draws.choice(INTERPOLATIONS), of_original=True)]
    if draws.chance(config.final_sinc_probability):
        shrink.append(_draw_sinc(draws, config, num_frames, config.final_sinc_omega))
    return compression + shrink if draws.chance(0.5) else shrink + compression


INTERPOLATIONS = {"bilinear": 1.0, "area": 1.0, "bicubic": 1.0}


def _narrowed(bounds: tuple[float, float], strength: float) -> tuple[float, float]:
    """The range with (max - min) multiplied by the strength; the mild end, the low one, stays."""
    return bounds[0], bounds[0] + (bounds[1] - bounds[0]) * strength


def _draw_blur(draws: Draws, config: PixelDegradationConfig, sigma: tuple[float, float], num_frames: int) -> Blur:
    kind = draws.choice(config.blur_kernels)
    if kind == "sinc":
        return _draw_sinc(draws, config, num_frames, None)
    size = _draw_size(draws, config)
    walk = config.walk
    sigma_x = draws.walk(*sigma, walk.blur_sigma, num_frames)
    flat = (1.0,) * num_frames
    isotropic = kind.endswith("iso") and not kind.endswith("aniso")
    sigma_y = sigma_x if isotropic else draws.walk(*sigma, walk.blur_sigma, num_frames)
    angle = (0.0,) * num_frames if isotropic else draws.walk(-math.pi, math.pi, walk.blur_angle, num_frames)
    if kind.startswith("generalized"):
        beta = draws.walk(*config.generalized_beta, walk.generalized_beta, num_frames)
    elif kind.startswith("plateau"):
        beta = draws.walk(*config.plateau_beta, walk.plateau_beta, num_frames)
    else:
        beta = flat
    return Blur(kind, size, sigma_x, sigma_y, angle, beta, (0.0,) * num_frames)


def _draw_size(draws: Draws, config: PixelDegradationConfig) -> int:
    return int(draws.choice({str(size): 1.0 for size in config.blur_sizes}))


def _draw_sinc(draws: Draws, config: PixelDegradationConfig, num_frames: int, omega: tuple[float, float] | None) -> Blur:
    """`omega` None: the range for a small or a large kernel, as Real-ESRGAN has it."""
    size = _draw_size(draws, config)
    bounds = omega or (config.sinc_omega_small if size < 13 else config.sinc_omega_large)
    still = (0.0,) * num_frames
    return Blur("sinc", size, still, still, still, still, draws.walk(*bounds, config.walk.sinc_omega, num_frames))


def _draw_resize(draws: Draws, config: PixelDegradationConfig, first: bool) -> list[Operation]:
    up, down, keep = config.resize_modes_1 if first else config.resize_modes_2
    direction = draws.choice({"up": up, "down": down, "keep": keep})
    if direction == "keep":
        return []
    ranges = (config.resize_up_1, config.resize_down_1) if first else (config.resize_up_2, config.resize_down_2)
    scale = draws.uniform(*(ranges[0] if direction == "up" else ranges[1]))
    return [Resize(scale, draws.choice(INTERPOLATIONS))]


def _draw_noise(draws: Draws, config: PixelDegradationConfig, first: bool, num_frames: int, strength: float) -> Noise:
    kind = "gaussian" if draws.chance(config.gaussian_noise_probability) else "poisson"
    gray = draws.chance(config.gray_noise_probability)
    if kind == "gaussian":
        bounds, step = config.noise_sigma_1 if first else config.noise_sigma_2, config.walk.noise_sigma
    else:
        bounds, step = config.poisson_scale_1 if first else config.poisson_scale_2, config.walk.poisson_scale
    return Noise(kind, gray, draws.walk(*_narrowed(bounds, strength), step, num_frames))


def _draw_jpeg(draws: Draws, config: PixelDegradationConfig, num_frames: int, strength: float) -> Jpeg:
    """The mild end of JPEG's range is the high one."""
    low, high = config.jpeg_quality
    return Jpeg(draws.walk(high - (high - low) * strength, high, config.walk.jpeg_quality, num_frames))


def _draw_codec(draws: Draws, config: PixelDegradationConfig) -> Codec:
    return Codec(draws.choice(config.video_codecs), draws.log_uniform(*config.bits_per_pixel))


# -------------------------------------------------------------------------------------------------- applying


def blur_by(video: Tensor, factor: float) -> Tensor:
    """The clip shrunk by exactly `factor` and enlarged again, antialiased bilinear: evaluation's fixed blur.

    T C H W in [0, 1], to the same size.
    """
    return enlarge_to(shrink_by(video, factor), *video.shape[-2:])


def shrink_by(video: Tensor, factor: float) -> Tensor:
    """The first half of `blur_by`: T C H W to T C H/factor W/factor."""
    check_video(video)
    height, width = video.shape[-2:]
    return resize(video, max(1, round(height / factor)), max(1, round(width / factor)), "bilinear", antialias=True)


def enlarge_to(video: Tensor, height: int, width: int) -> Tensor:
    """The second half of `blur_by`: T C h w to T C height width, in [0, 1]."""
    return resize(video, height, width, "bilinear", antialias=True).clamp(0, 1)


def check_video(video: Tensor) -> None:
    """Raises DegradationError unless the tensor is float T C H W with three channels."""
    if video.ndim != 4 or video.shape[1] != 3 or not video.is_floating_point():
        raise DegradationError(f"expected float T 3 H W in [0, 1], got {video.dtype} {tuple(video.shape)}")


def resize(video: Tensor, height: int, width: int, mode: str, antialias: bool = False) -> Tensor:
    """T C H W to T C height width; bicubic overshoot is cut off."""
    if tuple(video.shape[-2:]) == (height, width):
        return video
    if mode == "area":
        return functional.interpolate(video, (height, width), mode="area")
    return functional.interpolate(video, (height, width), mode=mode, antialias=antialias, align_corners=False).clamp(0, 1)


def convolve(video: Tensor, kernels: Tensor) -> Tensor:
    """Frame i with kernel i; edges are repeated. T C H W and T K K (K odd) to T C H W in [0, 1]."""
    frames, channels, height, width = video.shape
    radius = kernels.shape[-1] // 2
    padded = functional.pad(video, (radius, radius, radius, radius), mode="replicate")
    weight = kernels.repeat_interleave(channels, 0).unsqueeze(1)
    blurred = functional.conv2d(padded.reshape(1, frames * channels, *padded.shape[2:]), weight, groups=frames * channels)
    return blurred.reshape(frames, channels, height, width).clamp(0, 1)


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float, plateau: bool) -> Tensor:
    """K K, sums to 1: exp(-(r/2)^beta), or 1 / (1 + r^beta) for a plateau, r = x' S^-1 x (Real-ESRGAN)."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    distance = (along / sigma_x) ** 2 + (across / sigma_y) ** 2
    kernel = 1 / (1 + distance**beta) if plateau else torch.exp(-0.5 * distance**beta)
    return (kernel / kernel.sum()).float()


def sinc_kernel(size: int, omega: float) -> Tensor:
    """K K circular low-pass of cut-off `omega` rad/px, sums to 1: the ringing of over-sharpened pictures (Real-ESRGAN)."""
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.sqrt(x**2 + y**2)
    middle = size // 2
    radius[middle, middle] = 1.0
    kernel = omega * torch.special.bessel_j1(omega * radius) / (2 * math.pi * radius)
    kernel[middle, middle] = omega**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def poisson_noise(light: Tensor, generator: torch.Generator) -> Tensor:
    """Shot noise of a picture in [0, 1] whose brightest count is the number of its grey levels (Real-ESRGAN)."""
    levels = torch.unique((light * 255).round().to(torch.uint8)).numel()
    counts = 2.0 ** math.ceil(math.log2(max(2, levels)))
    return torch.poisson(light.clamp(0, 1) * counts, generator=generator) / counts - light


def jpeg(video: Tensor, quality: Sequence[float]) -> Tensor:
    """Each frame encoded at its quality (1-100) and decoded; 4:2:0, as OpenCV writes it."""
    import cv2
    import numpy as np

    decoded = []
    for frame, q in zip(to_uint8(video), quality, strict=True):
        ok, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(q)])
        if not ok:
            raise DegradationError(f"OpenCV could not encode a {frame.shape[1]}x{frame.shape[0]} frame as JPEG at quality {q:.0f}")
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert picture is not None  # it was encoded just now
        decoded.append(picture[..., ::-1])
    return from_uint8(np.stack(decoded), video)


def compress_video(video: Tensor, codec: str, bits_per_pixel: float, frame_rate_hz: int = 8, group: int = 12) -> Tensor:
    """The clip encoded at a bit rate and decoded again: yuv420p, whole macroblocks (padded and cut back), one thread.

    Raises DegradationError when this build of FFmpeg lacks the encoder, or when frames are lost.
    """
    import cv2
    import numpy as np

    height, width = video.shape[-2:]
    padded_height, padded_width = (-(-side // CODEC_BLOCK_PX) * CODEC_BLOCK_PX for side in (height, width))
    padded = functional.pad(video, (0, padded_width - width, 0, padded_height - height), mode="replicate")
    bit_rate = max(CODEC_MIN_BITS_PER_S, int(bits_per_pixel * height * width * frame_rate_hz))
    planes = [cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420) for frame in to_uint8(padded)]
    decoded = _decode(_encode(planes, codec, bit_rate, frame_rate_hz, group))
    if len(decoded) != len(video):
        raise DegradationError(f"{codec} gave back {len(decoded)} of {len(video)} frames at {bits_per_pixel:.3f} bits/px, {width}x{height}")
    frames = np.stack([cv2.cvtColor(plane, cv2.COLOR_YUV2RGB_I420) for plane in decoded])
    return from_uint8(frames[:, :height, :width], video)


def check_encoders(codecs: Iterable[str]) -> None:
    """Raises DegradationError where this build of FFmpeg lacks one."""
    import av

    for codec in codecs:
        if codec not in av.codecs_available:
            raise DegradationError(f"this build of FFmpeg has no encoder {codec}; take it out of stage2.pixel_degradation.video_codecs")


def _encode(planes: Sequence[Any], codec: str, bit_rate: int, frame_rate_hz: int, group: int) -> bytes:
    """I420 pictures (uint8, 3/2 H x W) to a Matroska file in memory."""
    import av

    check_encoders((codec,))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        # Without a buffer of half a second the encoders do not come near a low rate within a short clip.
        rate = {"maxrate": str(bit_rate), "bufsize": str(bit_rate // 2)}
        stream = container.add_stream(codec, rate=Fraction(frame_rate_hz), options=CODEC_OPTIONS.get(codec, {}) | rate)
        stream.height, stream.width, stream.pix_fmt = planes[0].shape[0] * 2 // 3, planes[0].shape[1], "yuv420p"
        stream.bit_rate, stream.gop_size = bit_rate, group
        stream.thread_count = 1
        for plane in planes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


CODEC_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "x264-params": "mbtree=0:scenecut=0"},
}
"""Fast presets; one thread, so that equal pixels give equal bits. x264 with its lookahead gave unequal bits for
equal pixels about once in six calls (seen in x264 of PyAV 18.1), so it goes without one (zerolatency)."""


def _decode(data: bytes) -> list[Any]:
    """I420 pictures of a file in memory."""
    import av

    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def to_uint8(video: Tensor) -> Any:
    """T C H W in [0, 1] to a uint8 array T H W C."""
    return (video.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def from_uint8(frames: Any, like: Tensor) -> Tensor:
    """A uint8 array T H W C to T C H W in [0, 1], of the device of `like`."""
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float().div(255).to(like.device)
