"""Draws pixel degradations (DEG_pixel) of one video and shows them: a table of their parameters, a contact sheet.

    python -m pipelines.degrade VIDEO --samples 8 --sheet out.png [--seed 1] [--weak | --strong] [--root ROOT]

The clip is read as Stage II's training reads it: the recipe's frame rate and the last phase's shape, from the middle of
the video. With a root that holds an autoencoder, each sample is shown through DEG_latent too. Exit codes: 0; 1 failed; 2 a
user's mistake.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashvideo.evaluation.sweeps import Table, markdown, shown
from pipelines.artifacts import Workspace
from pipelines.job import UserError, exit_after, log
from pipelines.recipe import Recipe, load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MAX_SAMPLES = 64
TILE_PX, LINE_PX, GAP_PX, COLUMNS = 400, 15, 10, 3
BACKGROUND, INK, PALE = (250, 250, 248), (25, 25, 25), (105, 105, 105)


@dataclass(frozen=True)
class Sample:
    """One degraded copy."""

    number: int
    record: dict[str, Any]
    """What training keeps with the sample: recipe, branch, key, operations with their drawn parameters."""
    frame: NDArray[np.uint8]
    """Middle frame, H W C."""
    latent: NDArray[np.uint8] | None
    """The same frame after DEG_latent, through the autoencoder."""
    psnr_db: float
    sharpness: float
    """Mean gradient magnitude over the clean clip's."""

    @property
    def lines(self) -> list[str]:
        """Its parameters, one line an operation."""
        return [operation_text(operation) for operation in self.record["operations"]]


def operation_text(operation: dict[str, Any]) -> str:
    """A drawn operation in words; where a value walks over the frames, the first frame's."""
    kind = operation["operation"]
    if kind == "blur":
        shape = (
            f"omega {operation['omega']:.2f}"
            if operation["kind"] == "sinc"
            else f"sigma {operation['sigma_x']:.2f} {operation['sigma_y']:.2f}"
        )
        beta = f" beta {operation['beta']:.2f}" if operation["kind"].startswith(("generalized", "plateau")) else ""
        return f"blur {operation['kind']} {operation['size']} px {shape}{beta}"
    if kind == "resize":
        to = "of the clip's size" if operation["of_original"] else "of the present size"
        return f"resize {operation['scale']:.3f} {to}, {operation['mode']}"
    if kind == "noise":
        unit = "sigma" if operation["kind"] == "gaussian" else "scale"
        return f"noise {operation['kind']}{' gray' if operation['gray'] else ''} {unit} {operation['strength']:.2f}"
    if kind == "jpeg":
        return f"jpeg quality {operation['quality']:.0f}"
    return f"codec {operation['name']} {operation['bits_per_pixel']:.3f} bits/px"


def read_middle(video: Path, recipe: Recipe) -> NDArray[np.uint8]:
    """The clip as training sees it, uint8 T H W C, from the middle of the video; an image gives one frame. Raises UserError."""
    from curation.video import MediaError, probe, read_clip

    shape, rate = recipe.stage2.phases[-1].shape, recipe.latents.frame_rate_hz
    if not video.is_file():
        raise UserError(f"no such video: {video}")
    try:
        facts = probe(str(video))
        frames = 1 if facts.media_type == "image" else min(shape.frames, max(1, (int(facts.duration_s * rate) - 1) // 8 * 8 + 1))
        start_us = round(max(0.0, facts.duration_s - frames / rate) / 2 * 1e6)
        pixels, _ = read_clip(str(video), start_us, start_us + round(frames / rate * 1e6) + 1, rate, frames, shape.height, shape.width)
    except MediaError as error:
        raise UserError(f"{video} cannot be read: {error}") from None
    return pixels


def draw_samples(
    pixels: NDArray[np.uint8], name: str, recipe: Recipe, count: int, seed: int, share: float | None, latent: LatentDegrader | None
) -> list[Sample]:
    """So many degraded copies. `share` of strong ones: None takes the recipe's. Equal seeds and names give equal pixels."""
    import torch

    from flashvideo.evaluation.frame_quality import mean_gradient_magnitude, psnr_db
    from flashvideo.objectives.degradation import DegradationError, draw_degradation, from_uint8, to_uint8

    config = recipe.stage2.pixel_degradation
    if share is not None:
        config = config.model_copy(update={"strong_probability": share})
    light = from_uint8(pixels, torch.empty(0))
    sharp = mean_gradient_magnitude(pixels)
    samples = []
    for number in range(1, count + 1):
        try:
            drawn = draw_degradation(config, seed=seed, sample_id=name, variant=number, num_frames=len(pixels))
            worse = drawn.apply(light)
        except DegradationError as error:
            raise UserError(f"sample {number}: {error}") from None
        clip = to_uint8(worse)
        through = None if latent is None else latent(worse, seed, number)
        ratio = mean_gradient_magnitude(clip) / sharp if sharp else float("nan")
        samples.append(Sample(number, drawn.record(), clip[len(clip) // 2], through, psnr_db(clip, pixels), ratio))
        log.info("%d of %d samples", number, count)
    return samples


class LatentDegrader:
    """DEG_latent as Stage II meets it: encoded, noised at a step, decoded to be looked at."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        """Raises UserError where the root holds no autoencoder."""
        from flashvideo.models.vae import load_autoencoder, model_input_scale
        from pipelines.trained_models import vae_folder

        workspace = Workspace(root)
        state = workspace.states(recipe, ["precompute_latents"])[-1]
        if state.report is None:
            raise UserError(
                f"{root} holds no autoencoder of this recipe (precompute_latents is {state.state}); run: flashvideo train "
                f"--root {root}, or leave --root out"
            )
        self.vae = load_autoencoder(vae_folder(workspace, {"precompute_latents": state.report}), recipe.vae, "cpu")
        self.scale = model_input_scale(recipe.vae, self.vae, 2)
        self.noise_step = recipe.generate.stage2.noise_step

    @property
    def alpha(self) -> float:
        """Share of the latent that is kept; the noise's is sqrt(1 - alpha^2)."""
        from flashvideo.config import DiffusionConfig
        from flashvideo.objectives.diffusion import alpha_table

        return float(alpha_table(DiffusionConfig())[self.noise_step])

    def __call__(self, light: Tensor, seed: int, number: int) -> NDArray[np.uint8]:
        """T C H W in [0, 1] -> the middle frame, H W C."""
        import torch

        from flashvideo.models.vae import video_to_pixels
        from flashvideo.objectives.degradation import Draws
        from flashvideo.objectives.flow_matching import degrade_latents

        video = (light * 2 - 1).transpose(0, 1)[None]
        latents = self.vae.encode(video).mean * self.scale
        noise = torch.randn(latents.shape, generator=Draws("sheet", seed, number).generator)
        noised = degrade_latents(latents, noise, torch.tensor([self.alpha]))
        frames = video_to_pixels(self.vae.decode(noised / self.scale)[0])
        return frames[len(frames) // 2]


# ---- what is shown ---------------------------------------------------------------------------------------------------


def parameter_table(samples: Sequence[Sample]) -> Table:
    """One line an operation."""
    rows = []
    for sample in samples:
        for place, text in enumerate(sample.lines, 1):
            first = place == 1
            facts = (str(sample.number), sample.record["branch"], shown(sample.psnr_db, ".1f"), shown(sample.sharpness, ".2f"))
            rows.append((*(facts if first else ("", "", "", "")), str(place), text))
    return Table(("sample", "branch", "PSNR, dB", "sharpness", "step", "operation (first frame's values)"), tuple(rows))


def draw_sheet(clean: NDArray[np.uint8], samples: Sequence[Sample], title: str, latent_label: str, path: Path) -> None:
    """PNG: the clean frame and every sample with its parameters below; DEG_latent's picture under the pixels'. Raises UserError."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
    height = round(clean.shape[0] * TILE_PX / clean.shape[1])
    has_latent = any(sample.latent is not None for sample in samples)
    lines = max([len(sample.lines) for sample in samples], default=0) + 1
    cell = (TILE_PX + GAP_PX, height * (1 + has_latent) + (lines + has_latent) * LINE_PX + 2 * GAP_PX)
    count = len(samples) + 1
    across = min(COLUMNS, count)
    sheet = Image.new("RGB", (across * cell[0] + GAP_PX, -(-count // across) * cell[1] + 3 * GAP_PX + LINE_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, GAP_PX), title, fill=INK, font=font)

    def tile(picture: NDArray[np.uint8], left: int, top: int) -> None:
        sheet.paste(Image.fromarray(picture).resize((TILE_PX, height), Image.Resampling.LANCZOS), (left, top))

    for place in range(count):
        left, top = GAP_PX + place % across * cell[0], 2 * GAP_PX + LINE_PX + place // across * cell[1]
        sample = samples[place - 1] if place else None
        tile(clean if sample is None else sample.frame, left, top)
        top += height + 2
        if sample is None:
            draw.text((left, top), "clean", fill=INK, font=font)
            continue
        head = f"{sample.number}: {sample.record['branch']}, {sample.psnr_db:.1f} dB, sharpness {sample.sharpness:.2f}"
        for number, text in enumerate([head, *sample.lines]):
            draw.text((left, top + number * LINE_PX), text, fill=PALE if number else INK, font=font)
        if sample.latent is not None:
            top += lines * LINE_PX
            tile(sample.latent, left, top)
            draw.text((left, top + height + 1), latent_label, fill=PALE, font=font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise UserError(f"--sheet {path}: {error.strerror or error}; choose another file") from None


# ---- the command line ------------------------------------------------------------------------------------------------


def show_degradations(arguments: argparse.Namespace) -> None:
    """What the command does. Raises UserError."""
    if not 1 <= arguments.samples <= MAX_SAMPLES:
        raise UserError(f"--samples {arguments.samples}: give 1 to {MAX_SAMPLES}")
    if arguments.weak and arguments.strong:
        raise UserError("--weak and --strong exclude each other; leave both out for the recipe's share of strong ones")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() != ".png":
        raise UserError(f"--sheet {arguments.sheet}: the sheet is a PNG; name a file that ends in .png")
    recipe = load(arguments.recipe, tuple(arguments.overrides))
    pixels = read_middle(arguments.video, recipe)
    latent = LatentDegrader(recipe, arguments.root) if arguments.root is not None else None
    share = 0.0 if arguments.weak else 1.0 if arguments.strong else None
    samples = draw_samples(pixels, arguments.video.name, recipe, arguments.samples, arguments.seed, share, latent)
    print(markdown(parameter_table(samples)))
    strong = sum(sample.record["branch"] == "strong" for sample in samples)
    what = f"{arguments.video.name}: {len(pixels)} frames of {pixels.shape[1]}x{pixels.shape[2]} px"
    print(f"{what}, deg_pixel_v1, seed {arguments.seed}: {strong} strong, {len(samples) - strong} weak")
    if arguments.sheet is not None:
        label = "" if latent is None else f"after DEG_latent, step {latent.noise_step} (alpha {latent.alpha:.3f}), {latent.vae.name}"
        title = f"{what}; deg_pixel_v1, recipe {recipe.name}, seed {arguments.seed}; middle frame"
        draw_sheet(pixels[len(pixels) // 2], samples, title, label, arguments.sheet)
        print(f"sheet: {arguments.sheet}")


def main() -> None:
    """Command line; exits the process."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.degrade", description="draw pixel degradations of one video and show them")
    parser.add_argument("video", type=Path)
    parser.add_argument("--samples", type=int, default=8, help="degraded copies")
    parser.add_argument("--sheet", type=Path, default=None, help="contact sheet (PNG)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weak", action="store_true", help="weak ones only: one resize down and up")
    parser.add_argument("--strong", action="store_true", help="strong ones only: two orders of blur, resize, noise, compression")
    parser.add_argument("--recipe", default="debug", help="preset name, or a YAML/JSON file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--root", type=Path, default=None, help="run root whose autoencoder shows DEG_latent too")
    arguments = parser.parse_args()
    exit_after("flashvideo", lambda: show_degradations(arguments), logging.WARNING)


if __name__ == "__main__":
    main()
