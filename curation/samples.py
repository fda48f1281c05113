"""The default sources: 1080p clips filmed from the photographs inside the scikit-image wheel, with their truth.

A virtual camera moves over a photograph by a known, sub-pixel amount per frame, so motion, cuts, letterbox,
duplicates and damage are known in advance and stand in `truth.json` beside the files. No download, no torch,
equal bytes for equal library versions. The files' modification time is fixed too, so two runs list them equally.

At 24 fps a camera speed of v px/frame at 1080 px short side is v px at 360 px per 1/8 s: the unit of
`flashvideo-motion/1`, so most expected scores can be read off the table below.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.sources import SourceError
from curation.whole_files import writing

if TYPE_CHECKING:
    import numpy as np

SAMPLES_VERSION = "samples/2"
"""Bumped when any rendered byte changes; an older folder is rendered anew."""

WIDTH, HEIGHT, FRAME_RATE_HZ = 1920, 1080, 24
MOTION_GAP_FRAMES, MOTION_SHORT_SIDE_PX = 3, 360
"""flashvideo-motion/1: frames 1/8 s apart, picture at 360 px short side."""
FIXED_TIME_S = 1_738_886_400
"""Modification time of every rendered file: the paper's date, 2025-02-07."""
NUM_PROCESSES = 2


@dataclass(frozen=True)
class Shot:
    """A camera move over one photograph. The window is 16:9 (less letterbox), `window_px` photo pixels wide at first."""

    photo: str
    centre_px: tuple[float, float]
    """Middle of the window at frame 0, photo pixels (x, y)."""
    window_px: float
    pan_px: tuple[float, float] = (0.0, 0.0)
    """Camera velocity (right, down), px/frame at 1920 px width."""
    zoom: float = 1.0
    """Factor of the window's width over the whole shot; below 1 zooms in."""
    num_frames: int = 120
    tint: tuple[float, float, float] | None = None
    """Red, green, blue gains for a grey photograph."""

    def centre(self, frame: int) -> tuple[float, float]:
        """Photo pixels; a pan keeps the window's width, so its velocity is constant."""
        photo_per_output = self.window_px / WIDTH
        return tuple(c + v * frame * photo_per_output for c, v in zip(self.centre_px, self.pan_px, strict=True))  # type: ignore[return-value]

    def window(self, frame: int) -> float:
        """Width in photo pixels; a zoom multiplies it by the same factor each frame."""
        return self.window_px * self.zoom ** (frame / max(1, self.num_frames - 1))


@dataclass(frozen=True)
class Film:
    """One video file. Several shots make hard cuts."""

    name: str
    shots: tuple[Shot, ...]
    letterbox_px: int = 0
    """Height of each of two black bars, even."""
    damage_frames: tuple[int, ...] = ()
    """Frames whose packet's middle third is overwritten; the decoder flags them, and the frames up to the next key
    frame are drawn from what it guessed."""
    duplicate_of: str | None = None

    @property
    def num_frames(self) -> int:
        return sum(shot.num_frames for shot in self.shots)


@dataclass(frozen=True)
class Still:
    """One image file: a photograph enlarged by `scale`."""

    name: str
    photo: str
    scale: float


FILMS = (
    Film("astronaut_pan_right.mp4", (Shot("astronaut.png", (205, 115), 150, pan_px=(3.5, 0)),)),
    Film("brick_camera_cut.mp4", (
        Shot("brick.png", (300, 250), 150, pan_px=(-2.5, 0), num_frames=60, tint=(1.25, 0.86, 0.7)),
        Shot("camera.png", (240, 130), 170, pan_px=(0, 2.25), num_frames=60),
    )),
    Film("chelsea_zoom_out.mp4", (Shot("chelsea.png", (222, 120), 150, zoom=1.4),)),
    Film("coffee_zoom_in.mp4", (Shot("coffee.png", (330, 190), 260, zoom=0.65),)),
    Film("coffee_zoom_in_copy.mp4", (), duplicate_of="coffee_zoom_in.mp4"),
    Film("coins_static.mp4", (Shot("coins.png", (192, 150), 200, num_frames=90),)),
    Film("grass_pan_right_damaged.mp4", (Shot("grass.png", (170, 260), 150, pan_px=(4.0, 0), tint=(0.85, 1.15, 0.55)),),
         damage_frames=(56, 57, 60, 61, 64)),
    Film("gravel_slow_pan.mp4", (Shot("gravel.png", (240, 250), 190, pan_px=(0.6, 0), num_frames=90, tint=(1.05, 1.0, 0.92)),)),
    Film("helmet_letterbox_pan_left.mp4", (Shot("astronaut.png", (330, 396), 170, pan_px=(-3.0, 0)),), letterbox_px=138),
    Film("hubble_diagonal.mp4", (Shot("hubble_deep_field.jpg", (300, 420), 200, pan_px=(3.5, -1.5)),)),
    Film("ihc_tilt_down.mp4", (Shot("ihc.png", (256, 150), 150, pan_px=(0, 4.5)),)),
    Film("motorcycle_pan_left.mp4", (Shot("motorcycle_left.png", (470, 250), 190, pan_px=(-5.0, 0)),)),
    Film("motorcycle_tilt_up.mp4", (Shot("motorcycle_right.png", (300, 320), 200, pan_px=(0, -2.75)),)),
    Film("retina_pan_left.mp4", (Shot("retina.jpg", (820, 520), 320, pan_px=(-2.0, 0)),)),
    Film("rocket_pan_left.mp4", (Shot("rocket.jpg", (345, 300), 170, pan_px=(-1.75, 0)),)),
)  # fmt: skip
"""Windows of 150 to 320 photo pixels: closer than a film maker would go, since the debug recipe looks at these clips at 256x448 and
its patch codec keeps what is smooth there (docs/log.md, 2026-11-20)."""

STILLS = (
    Still("astronaut_still.jpg", "astronaut.png", 2.5),
    Still("chelsea_too_small.jpg", "chelsea.png", 1.0),
    Still("coffee_still.jpg", "coffee.png", 3.0),
    Still("motorcycle_still.png", "motorcycle_left.png", 2.4),
    Still("retina_still.jpg", "retina.jpg", 1.0),
)

NAMES = tuple(sorted([film.name for film in FILMS] + [still.name for still in STILLS]))


def render_samples(folder: Path, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Renders what is missing and returns the path of truth.json, written last as the mark of completeness.

    `progress` is called with (files done, files in all, name). About half a minute on two cores; at once when complete.
    Raises SourceError when the folder cannot be written, RuntimeError when a photograph is not in the wheel.
    """
    truth_path = folder / "truth.json"
    if is_complete(folder):
        return truth_path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _forget_other_version(folder)
    except OSError as error:
        raise SourceError(f"cannot write the samples to {folder}: {error.strerror}; choose another folder") from None
    originals = [item.name for item in (*FILMS, *STILLS) if not (isinstance(item, Film) and item.duplicate_of)]
    missing = [name for name in originals if not (folder / name).is_file()]
    done = len(originals) - len(missing)
    if missing:
        with ProcessPoolExecutor(min(NUM_PROCESSES, len(missing)), multiprocessing.get_context("spawn")) as pool:
            for future in as_completed([pool.submit(render_one, name, folder) for name in missing]):
                done += 1
                if progress is not None:
                    progress(done, len(NAMES), future.result())
                future.result()
    for film in FILMS:
        if film.duplicate_of is not None:
            with _beside(folder / film.name) as beside:
                shutil.copyfile(folder / film.duplicate_of, beside)
    if progress is not None:
        progress(len(NAMES), len(NAMES), truth_path.name)
    text = json.dumps(truth(folder), indent=1, sort_keys=True) + "\n"
    with _beside(truth_path) as beside:
        beside.write_text(text)
    return truth_path


def is_complete(folder: Path) -> bool:
    """True when truth.json is of this version and every file that it names has the length that it says."""
    path = folder / "truth.json"
    if not path.is_file():
        return False
    known = json.loads(path.read_text())
    return known.get("version") == SAMPLES_VERSION and all(
        (folder / name).is_file() and (folder / name).stat().st_size == facts["bytes"] for name, facts in known["files"].items()
    )


def render_one(name: str, folder: Path) -> str:
    """Renders one file beside its place and renames it; returns its name."""
    import cv2

    cv2.setNumThreads(1)
    film = next((film for film in FILMS if film.name == name), None)
    with _beside(folder / name) as beside:
        if film is not None:
            _render_film(film, beside)
        else:
            _render_still(next(still for still in STILLS if still.name == name), beside)
    return name


def truth(folder: Path) -> dict[str, Any]:
    """What is known about every rendered file: moves, expected motion, cuts, letterbox, duplicates, damage."""
    files: dict[str, Any] = {}
    originals = {film.name: film for film in FILMS}
    for film in FILMS:
        source = originals[film.duplicate_of] if film.duplicate_of else film
        starts = [sum(shot.num_frames for shot in source.shots[:index]) for index in range(len(source.shots))]
        files[film.name] = {
            "media": "video",
            "width": WIDTH,
            "height": HEIGHT,
            "frame_rate_hz": FRAME_RATE_HZ,
            "num_frames": source.num_frames,
            "cut_frames": starts[1:],
            "letterbox_px": {"top": source.letterbox_px, "bottom": source.letterbox_px, "left": 0, "right": 0},
            "duplicate_of": film.duplicate_of,
            "damaged": bool(source.damage_frames),
            "damaged_frames": list(source.damage_frames),
            "shots": [
                {"first_frame": start, **_shot_truth(shot, source.letterbox_px)} for start, shot in zip(starts, source.shots, strict=True)
            ],
        }
    for still in STILLS:
        height, width = _read_photo(still.photo).shape[:2]
        files[still.name] = {
            "media": "image",
            "width": round(width * still.scale),
            "height": round(height * still.scale),
            "photo": still.photo,
            "duplicate_of": None,
            "damaged": False,
        }
    for name, facts in files.items():
        data = (folder / name).read_bytes()
        facts["bytes"], facts["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    return {"version": SAMPLES_VERSION, "motion_definition": "flashvideo-motion/1", "files": files}


def camera_move(shot: Shot) -> str:
    """The word of the clips table: static, pan left/right, tilt up/down, zoom in/out; the larger part of a diagonal."""
    if shot.zoom != 1.0:
        return "zoom in" if shot.zoom < 1 else "zoom out"
    right, down = shot.pan_px
    if right == 0 and down == 0:
        return "static"
    if abs(right) >= abs(down):
        return "pan right" if right > 0 else "pan left"
    return "tilt down" if down > 0 else "tilt up"


def mean_displacement_px(shot: Shot, gap_frames: int, height: int) -> float:
    """Mean over the picture of how far a point moves in `gap_frames`, px at 1920 px width; the same for every pair."""
    import numpy as np

    factor = shot.window(0) / shot.window(gap_frames)  # a smaller window enlarges the picture
    x = np.arange(WIDTH) + 0.5 - WIDTH / 2
    y = np.arange(height) + 0.5 - height / 2
    right, down = (-velocity * gap_frames for velocity in shot.pan_px)
    return float(np.hypot(x[None] * (factor - 1) + right, y[:, None] * (factor - 1) + down).mean())


def _shot_truth(shot: Shot, letterbox_px: int) -> dict[str, Any]:
    active_height = HEIGHT - 2 * letterbox_px
    at_definition = MOTION_SHORT_SIDE_PX / active_height
    return {
        "num_frames": shot.num_frames,
        "photo": shot.photo,
        "camera_move": camera_move(shot),
        "pan_px_per_frame": list(shot.pan_px),
        "zoom": shot.zoom,
        "speed_px_per_frame": round(mean_displacement_px(shot, 1, active_height), 4),
        "expected_motion": round(mean_displacement_px(shot, MOTION_GAP_FRAMES, active_height) * at_definition, 4),
    }


def _forget_other_version(folder: Path) -> None:
    """Files of another version of the samples go; files of this version that an interrupted run left stay."""
    mark = folder / ".samples-version"
    if mark.is_file() and mark.read_text() == SAMPLES_VERSION:
        return
    for name in ("truth.json", *NAMES):
        (folder / name).unlink(missing_ok=True)
    with _beside(mark) as beside:
        beside.write_text(SAMPLES_VERSION)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name to write to beside `path`, renamed to it at the end, with the fixed modification time."""
    with writing(path, suffix=path.suffix) as beside:
        yield beside
        os.utime(beside, (FIXED_TIME_S, FIXED_TIME_S))


def _read_photo(name: str) -> np.ndarray:
    """uint8 H W 3, blue green red."""
    import cv2

    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("scikit-image is not installed; the samples are filmed from the photographs in its wheel")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    photo = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if photo is None:
        raise RuntimeError(f"photograph {path} is missing or unreadable; the samples need the scikit-image of requirements.lock")
    return photo


def _render_still(still: Still, path: Path) -> None:
    import cv2

    photo = _read_photo(still.photo)
    height, width = photo.shape[:2]
    if still.scale != 1.0:
        size = (round(width * still.scale), round(height * still.scale))
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_LANCZOS4)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 93] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 4]
    if not cv2.imwrite(str(path), photo, quality):
        raise RuntimeError(f"could not write {path}")


def _render_film(film: Film, path: Path) -> None:
    """Encodes the film as H.264; one encoder thread and no time or version stamps keep the bytes equal."""
    import av

    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE_HZ)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = 1  # MPEG: luma 16-235
        stream.codec_context.color_primaries = stream.codec_context.color_trc = stream.codec_context.colorspace = 1  # BT.709
        stream.options = {"preset": "superfast", "crf": "18", "x264-params": "keyint=24:bframes=0:threads=1"}
        index = 0
        for shot in film.shots:
            camera = _Camera(shot, film.letterbox_px)
            for frame_index in range(shot.num_frames):
                frame = av.VideoFrame.from_ndarray(camera.frame(frame_index), format="yuv420p")
                frame.pts = index
                container.mux(stream.encode(frame))
                index += 1
        container.mux(stream.encode(None))
    if film.damage_frames:
        _damage(path, film.damage_frames)


def _damage(path: Path, frames: tuple[int, ...]) -> None:
    """Overwrites the middle third of some frames' packets; the container and the packets' headers stay whole.

    There are no B-frames, so packets stand in the order of the frames.
    """
    import av

    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    noise = random.Random(0)
    with open(path, "r+b") as file:
        for index in frames:
            position, size = spans[index]
            file.seek(position + size // 3)
            file.write(noise.randbytes(size // 3))


class _Camera:
    """Films one shot: luma and chroma are warped apart, straight into yuv420p.

    The photograph's part that the shot sees is enlarged once (Lanczos) to about the output's size; each frame is
    then a linear warp at a scale near 1. The enlarged picture is so smooth that this costs nothing to see, and
    OpenCV's linear warp keeps whole sub-pixel positions, where its bicubic one rounds them to 1/32 px.
    """

    def __init__(self, shot: Shot, letterbox_px: int) -> None:
        self._shot, self._bar = shot, letterbox_px
        self._height = HEIGHT - 2 * letterbox_px
        self._scale = WIDTH / min(shot.window(0), shot.window(shot.num_frames - 1))
        photo = _read_photo(shot.photo)
        self._left, self._top, right, bottom = self._seen(photo.shape[1], photo.shape[0])
        luma, blue, red = _to_video_range(photo[self._top : bottom, self._left : right], shot.tint)
        self._luma = _enlarge(luma, self._scale)
        self._chroma = [_enlarge(plane, self._scale / 2) for plane in (blue, red)]

    def _seen(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the photo pixels that the shot needs. Raises ValueError when it looks past an edge."""
        edges = []
        for frame in (0, self._shot.num_frames - 1):
            (x, y), half = self._shot.centre(frame), self._shot.window(frame) / 2
            tall = half * self._height / WIDTH
            edges.append((x - half, y - tall, x + half, y + tall))
        left, top = min(e[0] for e in edges), min(e[1] for e in edges)
        right, bottom = max(e[2] for e in edges), max(e[3] for e in edges)
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ValueError(
                f"shot over {self._shot.photo} sees x {left:.1f}..{right:.1f}, y {top:.1f}..{bottom:.1f}, "
                f"beyond the photo's {width}x{height} px; move its centre or narrow its window"
            )
        margin = 4
        return max(0, int(left) - margin), max(0, int(top) - margin), min(width, int(right) + margin), min(height, int(bottom) + margin)

    def frame(self, index: int) -> np.ndarray:
        """uint8, (HEIGHT * 3 / 2, WIDTH): the planes of yuv420p below each other, chroma sited left."""
        import numpy as np

        picture = np.empty((HEIGHT * 3 // 2, WIDTH), np.uint8)
        luma = picture[:HEIGHT]
        chroma = picture[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
        luma[: self._bar], luma[HEIGHT - self._bar :] = 16, 16
        chroma[:, : self._bar // 2], chroma[:, HEIGHT // 2 - self._bar // 2 :] = 128, 128
        luma[self._bar : HEIGHT - self._bar] = self._look(self._luma, index, self._scale, step=1, offset=(0.5, 0.5))
        for plane, source in zip(chroma, self._chroma, strict=True):
            inner = plane[self._bar // 2 : HEIGHT // 2 - self._bar // 2]
            inner[:] = self._look(source, index, self._scale / 2, step=2, offset=(0.5, 1.0))
        return picture

    def _look(self, source: np.ndarray, index: int, scale: float, step: int, offset: tuple[float, float]) -> np.ndarray:
        """One plane: sample (i, j) lies at (i, j) * step + offset in the active picture, `source` is enlarged by `scale`."""
        import cv2
        import numpy as np

        photo_per_output = self._shot.window(index) / WIDTH
        x, y = self._shot.centre(index)
        first_x = x - self._left + (offset[0] - WIDTH / 2) * photo_per_output
        first_y = y - self._top + (offset[1] - self._height / 2) * photo_per_output
        gain = step * photo_per_output * scale
        inverse = np.array([[gain, 0, first_x * scale - 0.5], [0, gain, first_y * scale - 0.5]], np.float64)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(source, inverse, (WIDTH // step, self._height // step), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _enlarge(plane: np.ndarray, scale: float) -> np.ndarray:
    import cv2
    import numpy as np

    height, width = plane.shape
    size = (round(width * scale), round(height * scale))
    # a warp, not a resize: the scale stays exact where width x scale is not a whole number
    inverse = np.array([[1 / scale, 0, 0.5 / scale - 0.5], [0, 1 / scale, 0.5 / scale - 0.5]], np.float64)
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(plane, inverse, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _to_video_range(photo: np.ndarray, tint: tuple[float, float, float] | None) -> list[np.ndarray]:
    """Luma 16-235 and the two chroma planes 16-240 (BT.709), uint8 H W each, of blue-green-red uint8 H W 3."""
    import numpy as np

    blue, green, red = (photo[..., channel].astype(np.float32) for channel in range(3))
    if tint is not None:
        red, green, blue = (np.clip(plane * gain, 0, 255) for plane, gain in zip((red, green, blue), tint, strict=True))
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    planes = (
        16 + luma * (219 / 255),
        128 + (blue - luma) / 1.8556 * (224 / 255),
        128 + (red - luma) / 1.5748 * (224 / 255),
    )
    return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes]


def main() -> None:
    """`python -m curation.samples DIR`: renders the samples and prints where their truth lies."""
    parser = argparse.ArgumentParser(prog="python -m curation.samples", description="Render the default sources.")
    parser.add_argument("folder", type=Path, help="folder for the files, made if absent")
    folder: Path = parser.parse_args().folder
    try:
        path = render_samples(folder, lambda done, total, name: print(f"{done}/{total} {name}", file=sys.stderr))
    except SourceError as error:
        print(f"samples: {error}", file=sys.stderr)
        sys.exit(2)
    print(path)


if __name__ == "__main__":
    main()
