"""Enhances and measures one item at every cell of a sweep that wants it.

The item is decoded, shrunk and encoded once for all cells of one size; the models are loaded once a worker. Numbers are
written cell by cell, the picture first, so that a kill loses one cell of one item.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flashvideo.cascade import FlashVideoCascade, attention_options, enlarge, load_previews, seeded, stage2_prompt
from flashvideo.config import FrameShape
from flashvideo.evaluation.frame_quality import mean_gradient_magnitude
from flashvideo.evaluation.results import QualityRow
from flashvideo.evaluation.video_metrics import VideoMetrics
from flashvideo.models.transformer import CogVideoXTransformer, load_transformer
from flashvideo.models.vae import LatentPosterior, pixels_to_video, video_to_pixels
from flashvideo.objectives.degradation import enlarge_to, shrink_by
from flashvideo.sampling.stage2 import enhance_latents
from flashvideo.training.pieces import Piece, PieceFolder
from flashvideo.video_files import frames_digest, read_video, write_picture
from pipelines.evaluate import measure
from pipelines.generate import preview_path
from pipelines.job import Progress, UserError, write_json
from pipelines.reading import UnreadableItem, reading
from pipelines.recipe import Recipe
from pipelines.sweep_cells import Cell, Item, Trained, base_shape, check_handover, check_twin
from pipelines.trained_models import load_cascade, model_device, stage2_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("flashvideo")


@dataclass(frozen=True)
class Task:
    """One item and the cells that lack it. Small: it travels to a worker."""

    item: Item
    cells: tuple[Cell, ...]


class NoVideo(Exception):
    """A cell has no video of an item; the message says why."""


@dataclass
class Prepared:
    """An item at one size."""

    shape: FrameShape
    enlarged: Tensor | None
    """B C T H W in [-1, 1]: the low-quality video at full size. None: the item is another tool's video."""
    truth: NDArray[np.uint8] | None
    """T H W C; None where the source has fewer pixels than that, or there is none."""
    posterior: LatentPosterior | None = None
    """Of `enlarged`, once it is wanted."""
    text: Tensor | None = None
    encode_s: float = 0.0

    @cached_property
    def truth_gradient(self) -> float | None:
        return None if self.truth is None else mean_gradient_magnitude(self.truth)


class SweepWorker:
    """Holds the models in one worker and does one item at a time."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._recipe: Recipe = trained.recipe
        self._device = model_device(trained.recipe)
        try:
            self._metrics = VideoMetrics(trained.recipe.evaluation, trained.recipe.latents.frame_rate_hz, self._device)
        except ValueError as error:
            raise UserError(f"evaluation: {error}") from None

    @cached_property
    def _cascade(self) -> FlashVideoCascade:
        trained = self._trained
        return load_cascade(trained.workspace, trained.recipe, trained.reports, self._device, with_stage1=False)

    @cached_property
    def _handover(self) -> CogVideoXTransformer:
        """Stage II as the phase before the last one left it."""
        stage2 = self._cascade.stage2
        assert stage2 is not None
        weight = next(stage2.parameters())
        return load_pieces(CogVideoXTransformer(stage2.config), check_handover(self._trained)).to(weight.device, weight.dtype)

    @cached_property
    def _twin(self) -> CogVideoXTransformer:
        """Stage II trained with the other latent degradation."""
        stage2 = self._cascade.stage2
        assert stage2 is not None
        weight = next(stage2.parameters())
        folder = stage2_folder(self._trained.workspace, {"train_stage2": check_twin(self._trained)})
        return load_transformer(folder, weight.device, weight.dtype)

    def __call__(self, task: Task) -> str | None:
        """Writes the numbers of every cell; returns why the item cannot be read, or None. Raises OSError where writing fails."""
        progress = Progress(None, f"sweep, {task.item.about[:40]}")
        try:
            done = 0
            for shape in dict.fromkeys(cell.shape for cell in task.cells):
                prepared: Prepared | None = None
                for cell in task.cells:
                    if cell.shape != shape:
                        continue
                    if prepared is None:
                        prepared = self._prepare(task.item, shape)
                    self._do(cell, task.item, prepared)
                    done += 1
                    progress.update(done, len(task.cells), "cells", f"{cell.sweep} {cell.label}")
        except UnreadableItem as error:
            return str(error)
        return None

    def _do(self, cell: Cell, item: Item, prepared: Prepared) -> None:
        """One cell of one item: its frames, its row, its picture."""
        times: dict[str, float] = {}
        root, file = self._trained.folder, cell.file(self._trained.folder, item)
        row, gradient, frames, note, problem = None, None, None, "", ""
        try:
            frames, note = self._frames(cell, item, prepared, times)
            truth = prepared.truth if prepared.truth is not None and frames.shape == prepared.truth.shape else None
            gradient = prepared.truth_gradient if truth is not None else None
            begin = time.perf_counter()
            row = self._measure(cell, frames, truth, gradient)
            times["measure_s"] = time.perf_counter() - begin
        except NoVideo as error:
            problem = str(error)
        if item.pictured and frames is not None:
            write_picture(cell.picture(root, item), frames[len(frames) // 2])
        file.parent.mkdir(parents=True, exist_ok=True)
        if not (file.parent / "cell.json").is_file():
            write_json(file.parent / "cell.json", dict(cell.protocol))
        write_json(
            file,
            {
                "item": item.name,
                "identity": item.identity,
                "quality": None if row is None else row.model_dump(mode="json"),
                "truth_gradient": gradient,
                "frames": 0 if frames is None else len(frames),
                "pixels": None if frames is None else frames_digest(frames),
                "times": {"encode_s": prepared.encode_s, **times},
                "note": note,
                "problem": problem,
            },
        )

    def _measure(self, cell: Cell, frames: NDArray[np.uint8], truth: NDArray[np.uint8] | None, gradient: float | None) -> QualityRow:
        """The item's row. Raises NoVideo where a metric has no number for it."""
        try:
            return measure(cell.label, frames, self._metrics, None if cell.kind == "truth" else truth, gradient)
        except ValueError as error:  # a metric that is not finite, e.g. on flat frames
            raise NoVideo(str(error)) from None

    def _frames(self, cell: Cell, item: Item, prepared: Prepared, times: dict[str, float]) -> tuple[NDArray[np.uint8], str]:
        """uint8 T H W C of a cell, and a note on how they came to their size. Raises NoVideo."""
        if cell.kind in ("stage1", "stage2", "folder"):
            return self._from_file(cell, item, prepared.shape)
        assert prepared.enlarged is not None
        if cell.kind == "input":
            return video_to_pixels(prepared.enlarged[0]), ""
        if cell.kind == "enhanced":
            return self._enhanced(cell, item, prepared, times), ""
        if prepared.truth is None:
            raise NoVideo(
                f"the source has fewer pixels than {prepared.shape.height}x{prepared.shape.width}, so there is no truth at that size"
            )
        if cell.kind == "truth":
            return prepared.truth, ""
        vae = self._cascade.vae
        posterior = vae.encode(pixels_to_video(prepared.truth)[None].to(self._device))
        return video_to_pixels(vae.decode(posterior.sample(seeded([item.seed])))[0]), ""

    @torch.no_grad()
    def _enhanced(self, cell: Cell, item: Item, prepared: Prepared, times: dict[str, float]) -> NDArray[np.uint8]:
        """As cascade.enhance, with the input's latents and the text encoded once for all cells."""
        cascade, sampling = self._cascade, cell.sampling
        model = self._handover if cell.handover else self._twin if cell.twin else cascade.stage2
        assert sampling is not None and model is not None and prepared.enlarged is not None
        if prepared.posterior is None or prepared.text is None:
            begin = time.perf_counter()
            prepared.posterior = cascade.vae.encode(prepared.enlarged.to(self._device))
            prepared.text = cascade.text_encoder.encode([stage2_prompt(item.text, self._recipe.generate.motion)]).embeddings
            self._settle()
            prepared.encode_s = time.perf_counter() - begin
        generators = seeded([item.seed])
        degraded = prepared.posterior.sample(generators) * cascade.scales[2]
        begin = time.perf_counter()
        latents = enhance_latents(
            model,
            degraded,
            prepared.text,
            sampling,
            generators,
            latent_degradation=cascade.latent_degradation != cell.twin,
            attention=attention_options(sampling.attention, prepared.enlarged, prepared.shape),
        )
        self._settle()
        sampled = time.perf_counter()
        frames = video_to_pixels(cascade.vae.decode(latents / cascade.scales[2])[0])
        times |= {"sample_s": sampled - begin, "decode_s": time.perf_counter() - sampled}
        return frames

    def _settle(self) -> None:
        """Kernels are asynchronous: times are of work that is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _from_file(self, cell: Cell, item: Item, shape: FrameShape) -> tuple[NDArray[np.uint8], str]:
        """A generated video, or another tool's; enlarged to the sweep's size where it has another."""
        if cell.kind == "folder":
            from pipelines.sweep_cells import videos_in

            path = Path(item.path) if item.path else videos_in(Path(cell.folder or "."))[item.name]
        else:
            assert item.row is not None
            path = self._generate_folder / item.row[cell.kind]
        with reading():
            frames, _ = read_video(path)
        if frames.shape[1:3] == (shape.height, shape.width):
            return frames, ""
        sized = video_to_pixels(enlarge(pixels_to_video(frames)[None], shape.height, shape.width)[0])
        return sized, f"{frames.shape[1]}x{frames.shape[2]} px, resized to {shape.height}x{shape.width} (bilinear, antialiased)"

    @property
    def _generate_folder(self) -> Path:
        return self._trained.workspace.folder("generate", self._trained.reports["generate"].fingerprint)

    def small(self, item: Item) -> Tensor:
        """The low-quality video as another tool gets it, B C T h w in [-1, 1]. Raises MediaError, VideoFileError."""
        if item.clip is None:
            return self._preview(item)
        return (self._shrunk(item)[0].clamp(0, 1) * 2 - 1).transpose(0, 1)[None]

    # ---- the item ----------------------------------------------------------------------------------------------------

    def _prepare(self, item: Item, shape: FrameShape) -> Prepared:
        """The low-quality video at that size, and truth where the source has it. Raises UnreadableItem."""
        with reading():
            return self._prepared(item, shape)

    def _prepared(self, item: Item, shape: FrameShape) -> Prepared:
        if item.clip is None:
            enlarged = None if item.row is None else enlarge(self._preview(item).float(), shape.height, shape.width)
            return Prepared(shape, enlarged, None)
        small, own = self._shrunk(item)
        truth = own if shape == base_shape(self._recipe) else self._larger_truth(item, shape)
        light = enlarge_to(small, shape.height, shape.width)
        return Prepared(shape, (light * 2 - 1).transpose(0, 1)[None], truth)

    def _shrunk(self, item: Item) -> tuple[Tensor, NDArray[np.uint8]]:
        """The clip shrunk by evaluation.downscale (T C h w in [0, 1]), and truth at the model's own size."""
        from curation.video import read_clip

        assert item.clip is not None
        recipe, base, clip = self._recipe, base_shape(self._recipe), item.clip
        span = (clip["start_us"], clip["end_us"], recipe.latents.frame_rate_hz, base.frames, base.height, base.width)
        truth, _ = read_clip(clip["uri"], *span)
        light = torch.from_numpy(truth).permute(0, 3, 1, 2).float() / 255
        return shrink_by(light, recipe.evaluation.downscale), truth

    def _larger_truth(self, item: Item, shape: FrameShape) -> NDArray[np.uint8] | None:
        """Truth at another size, where the source has so many pixels."""
        from curation.video import probe, read_clip

        assert item.clip is not None
        clip = item.clip
        source = probe(clip["uri"])
        if source.height < shape.height or source.width < shape.width:
            return None
        rate = self._recipe.latents.frame_rate_hz
        truth, _ = read_clip(clip["uri"], clip["start_us"], clip["end_us"], rate, shape.frames, shape.height, shape.width)
        return truth

    def _preview(self, item: Item) -> Tensor:
        """Stage I's video, B C T H W in [-1, 1], no longer than Stage II's: as it was sampled where that is kept, else from its mp4."""
        assert item.row is not None
        frames = base_shape(self._recipe).frames
        trained, folder = self._trained, self._generate_folder
        if "train_stage1" in trained.reports:
            path = preview_path(trained.recipe, folder, trained.reports, item.text, item.row["seed"])
            if path.is_file():
                return load_previews(path).video[:, :, :frames]
        small, _ = read_video(folder / item.row["stage1"])
        return pixels_to_video(small[:frames])[None]


def load_pieces(model: CogVideoXTransformer, checkpoint: Path) -> CogVideoXTransformer:
    """The model with a training checkpoint's weights, for inference. Raises PieceError where they do not fit."""
    folder = PieceFolder(checkpoint)
    for name, parameter in model.named_parameters():
        flat = torch.empty(parameter.numel())
        folder.fill(Piece(name, 0, {"weight": flat}))
        parameter.data = flat.view_as(parameter)
    return model.eval().requires_grad_(False)


def kept(cell: Cell, item: Item, root: Path) -> dict[str, Any] | None:
    """The item's numbers at a cell, where they are there and of this very item."""
    file = cell.file(root, item)
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    pictured = item.pictured and found["quality"] is not None
    if found["identity"] != item.identity or (pictured and not cell.picture(root, item).is_file()):
        return None
    return found


def unfinished(pairs: Sequence[tuple[Item, Cell]], root: Path) -> list[Task]:
    """The work that is left, item by item."""
    todo: dict[str, tuple[Item, list[Cell]]] = {}
    for item, cell in pairs:
        if kept(cell, item, root) is None:
            todo.setdefault(item.identity, (item, []))[1].append(cell)
    return [Task(item, tuple(cells)) for item, cells in todo.values()]
