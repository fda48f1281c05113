"""Which samples every train_step sees, in which order, with which random draws: the same for any number of ranks.

A global batch has places 0 .. size-1. The order of samples is a fresh permutation an epoch, so a set smaller than
the batch is simply gone through several times in it. Every draw of a sample (text dropout, which degraded copy,
its latents' noise, then the objective's) comes from a generator of its own, seeded by (seed, phase, train_step,
place): resuming needs no saved random state, and ranks change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flashvideo.objectives.batch import Batch

Modality = Literal["image", "video"]


class EmptySetError(ValueError):
    """A phase asks for samples of a kind of which there are none."""


@dataclass(frozen=True)
class LatentSample:
    """One training sample, ready for the model."""

    clean: Tensor
    """T C H W, model input."""
    text: Tensor
    """L D."""
    degraded: Tensor | None = None
    """T C H W, model input; Stage II."""
    degradation: Mapping[str, Any] | None = None
    """How it was degraded, where that was drawn on reading (deg_pixel_v1's key and branch)."""


class SampleSource(Protocol):
    """Where samples come from; all videos have one shape, all images another."""

    def ids(self, modality: Modality) -> Sequence[str]:
        """Sample ids of that kind, in a fixed order."""
        ...

    def read(self, modality: Modality, index: int, generator: torch.Generator) -> LatentSample:
        """The sample, its latents sampled (and its degraded copy picked) with the generator."""
        ...


@dataclass(frozen=True)
class BatchOrder:
    """The global batches of one phase."""

    seed: int
    phase: str
    num_images: int
    """Images to choose from."""
    num_videos: int
    images: int = 0
    """Part of images in the images:videos ratio of train_steps."""
    videos: int = 1
    batch_size: int = 1
    """Global, for videos."""
    image_batch_size: int | None = None
    """Global, for images; None: as batch_size."""

    def __post_init__(self) -> None:
        for modality, part, number in (("images", self.images, self.num_images), ("videos", self.videos, self.num_videos)):
            if part and not number:
                raise EmptySetError(f"phase {self.phase} trains on {modality} ({self.images}:{self.videos}), but there are none for it")

    def modality(self, train_step: int) -> Modality:
        """Kind of the whole global batch: in each run of images + videos train_steps the ratio is exact, its order drawn."""
        block, place = divmod(train_step, self.images + self.videos)
        return "image" if self._block(block)[place] < self.images else "video"

    def size(self, modality: Modality) -> int:
        """Samples in a global batch of that kind."""
        return self.image_batch_size or self.batch_size if modality == "image" else self.batch_size

    def indices(self, train_step: int) -> list[int]:
        """Index of the sample at each place of the global batch."""
        modality = self.modality(train_step)
        number = self.num_images if modality == "image" else self.num_videos
        size = self.size(modality)
        first = self._earlier(train_step, modality) * size
        places = (divmod(first + place, number) for place in range(size))
        return [permutation(number, self.seed, self.phase, modality, epoch)[offset] for epoch, offset in places]

    def generator(self, train_step: int, place: int) -> torch.Generator:
        """The sample's own generator."""
        return seeded(self.seed, self.phase, "sample", train_step, place)

    def _block(self, block: int) -> Sequence[int]:
        return permutation(self.images + self.videos, self.seed, self.phase, "modality", block)

    def _earlier(self, train_step: int, modality: Modality) -> int:
        """train_steps of that kind before this one."""
        block, place = divmod(train_step, self.images + self.videos)
        images = block * self.images + sum(entry < self.images for entry in self._block(block)[:place])
        return images if modality == "image" else train_step - images


def seeded(*key: object) -> torch.Generator:
    """A CPU generator seeded by the hash of a key."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


@lru_cache(maxsize=64)
def permutation(number: int, *key: object) -> list[int]:
    """0 .. number-1 in an order drawn from the key. Cached: an epoch asks for it at every train_step."""
    order: list[int] = torch.randperm(number, generator=seeded("permutation", *key)).tolist()
    return order


def micro_batch_sizes(share: int, at_most: int) -> list[int]:
    """A rank's share of a global batch cut into equal micro-batches, the largest that divide it: 6 by 4 gives [3, 3]."""
    size = next(size for size in range(min(share, at_most), 0, -1) if share % size == 0)
    return [size] * (share // size)


class BatchReader:
    """One rank's micro-batches of every global batch of a phase."""

    def __init__(
        self, source: SampleSource, order: BatchOrder, text_dropout: float, rank: int, num_ranks: int, micro_batch_size: int
    ) -> None:
        """Raises ValueError when a global batch does not divide over the ranks."""
        for modality, part in (("image", order.images), ("video", order.videos)):
            size = order.size(modality)  # type: ignore[arg-type]
            if part and size % num_ranks:
                raise ValueError(f"phase {order.phase}: batch of {size} {modality}s does not divide over {num_ranks} ranks")
        self.source, self.order, self.text_dropout = source, order, text_dropout
        self.rank, self.num_ranks, self.micro_batch_size = rank, num_ranks, micro_batch_size

    def sample_ids(self, train_step: int) -> list[str]:
        """Ids at every place of the global batch, all ranks'."""
        ids = self.source.ids(self.order.modality(train_step))
        return [ids[index] for index in self.order.indices(train_step)]

    def micro_batches(self, train_step: int) -> list[Batch]:
        """This rank's contiguous part of the global batch, in pieces of at most micro_batch_size."""
        modality, indices = self.order.modality(train_step), self.order.indices(train_step)
        share = len(indices) // self.num_ranks
        first = self.rank * share
        batches = []
        for size in micro_batch_sizes(share, self.micro_batch_size):
            places = range(first, first + size)
            batches.append(self._read(modality, [indices[place] for place in places], places, train_step, len(indices)))
            first += size
        return batches

    def _read(self, modality: Modality, indices: Sequence[int], places: Sequence[int], train_step: int, global_size: int) -> Batch:
        generators = tuple(self.order.generator(train_step, place) for place in places)
        ids = self.source.ids(modality)
        samples = []
        for index, generator in zip(indices, generators, strict=True):
            dropped = torch.rand(1, generator=generator).item() < self.text_dropout
            sample = self.source.read(modality, index, generator)
            samples.append(replace(sample, text=torch.zeros_like(sample.text)) if dropped else sample)
        return collate(samples, [ids[index] for index in indices], places, global_size, generators)


def collate(
    samples: Sequence[LatentSample],
    ids: Sequence[str],
    places: Sequence[int],
    global_size: int,
    generators: tuple[torch.Generator, ...],
) -> Batch:
    """Samples of one shape as a batch."""
    degraded = [sample.degraded for sample in samples if sample.degraded is not None]
    return Batch(
        sample_ids=tuple(ids),
        clean=torch.stack([sample.clean for sample in samples]),
        text=torch.stack([sample.text for sample in samples]),
        positions=torch.tensor(list(places)),
        global_size=global_size,
        generators=generators,
        degraded=torch.stack(degraded) if degraded else None,
        degradations=tuple(sample.degradation for sample in samples if sample.degradation is not None),
    )


def fixed_batches(source: SampleSource, modality: Modality, seed: int, at_most: int) -> list[Batch]:
    """Validation: the first samples one by one, text kept, the same draws every time they are asked for."""
    batches = []
    ids = source.ids(modality)
    count = min(at_most, len(ids))
    for index in range(count):
        generator = seeded(seed, "validation", index)
        sample = source.read(modality, index, generator)
        batches.append(collate([sample], [ids[index]], [index], count, (generator,)))
    return batches
