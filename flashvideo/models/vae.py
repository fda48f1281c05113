"""Video autoencoders: pixels B C T H W in [-1, 1] <-> latents B T C H W, 4x in time, 8x8 in space, 16 channels.

The only file that swaps axes. Latents here are *unscaled*; `model_input_scale` says what to multiply them by.
The first frame stands alone and the others go in fours, so F frames make (F - 1) / 4 + 1 latents. The recipes' shapes
are 8k+1 frames; here 4k+1 will do (5 frames, two latents: the paper's 1080p ablation).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashvideo.config import VaeConfig, VaeTilingConfig
from flashvideo.models.vae_passes import LATENT_CHUNK, decode_piece, encode_piece, part_large_convolutions, temporal_chunks
from flashvideo.models.vae_tiling import MemoryPlan, Tile, live_bytes, merge_tiles, plan_tiles, run_tiles, tensor_bytes
from flashvideo.models.weight_files import (
    WeightsError,
    check_keys,
    folder_identity,
    read_config,
    read_tensors,
    state_identity,
    weight_paths,
    write_config,
    write_folder,
)

LATENT_CHANNELS = 16
GROUP = 4
"""Pixel frames in one latent frame, after the first."""
PATCH = 8
"""Pixels in one latent, each way."""


class LatentPosterior(NamedTuple):
    """Mean and log variance of the latents, unscaled, each B T C H W."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """mean + std * noise, B T C H W. Noise is drawn in fp32 on the CPU: sample i from generator i, or all from one."""
        if isinstance(generator, torch.Generator):
            noise = torch.randn(self.mean.shape, generator=generator)
        else:
            noise = torch.stack([torch.randn(self.mean.shape[1:], generator=one) for one in generator])
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)


class VideoAutoencoder(Protocol):
    """What the jobs and the cascade use of a video autoencoder."""

    name: str
    """Class and flavour, recorded in what it makes."""
    is_stand_in: bool
    """True: fitted or random, not the released weights."""

    @property
    def identity(self) -> str:
        """Hash of everything that defines its latents (weights, chunking)."""
        ...

    @property
    def latent_std(self) -> float | None:
        """Measured standard deviation of its latents over all channels; None where the released scales apply."""
        ...

    def encode(self, video: Tensor) -> LatentPosterior:
        """B C T H W in [-1, 1] -> posterior. Raises ValueError for sizes that do not fit."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """B T C H W, unscaled -> B C T H W, not clamped."""
        ...

    def save(self, folder: Path) -> None:
        """Writes a folder that `load_autoencoder` reads."""
        ...


def pixels_to_video(clip: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """uint8 T H W C (0..255) -> float C T H W in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(clip)) if isinstance(clip, np.ndarray) else clip
    return tensor.permute(3, 0, 1, 2).float() / 127.5 - 1.0


def video_to_pixels(video: Tensor) -> npt.NDArray[np.uint8]:
    """float C T H W -> uint8 T H W C, clamped and rounded."""
    pixels = ((video.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    array: npt.NDArray[np.uint8] = pixels.permute(1, 2, 3, 0).cpu().numpy()
    return array


def check_video(video: Tensor) -> None:
    """Raises ValueError unless B 3 T H W with T = 4k+1 and sides that divide by 8."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video is {tuple(video.shape)}; need B 3 T H W")
    frames, height, width = video.shape[2:]
    if frames < 1 or (frames - 1) % GROUP or height % PATCH or width % PATCH:
        raise ValueError(f"video is {frames} frames of {height}x{width}; need 4k+1 frames and sides that divide by {PATCH}")


def check_latents(latents: Tensor) -> None:
    """Raises ValueError unless B T 16 H W."""
    if latents.ndim != 5 or latents.shape[2] != LATENT_CHANNELS or latents.shape[1] < 1:
        raise ValueError(f"latents are {tuple(latents.shape)}; need B T {LATENT_CHANNELS} H W with at least one frame T")


# ---- the released autoencoder ------------------------------------------------------------------------------------


CHUNK_FRAMES: dict[str, int] = {"inference": 16, "training": 12, "unsplit": 1 << 30}
"""Pixel frames encoded together (the first chunk takes the remainder too): 49 = 17+16+16, 13+12+12+12, or 49.

GroupNorm spans a chunk, so the chunking is part of the latents' definition (code)."""


class CogVideoXAutoencoder:
    """diffusers' AutoencoderKLCogVideoX with the released weights, temporal chunking and spatial slices.

    Small pictures go through in one piece, large ones in tiles that follow from the shape (`VaeTilingConfig`). The tiles
    may run on several devices. `plan_encode` and `plan_decode` say the memory; on a GPU that lacks it, encoding and
    decoding raise before they start.
    """

    WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
    is_stand_in = False
    latent_std: float | None = None

    def __init__(self, network: Any, chunk_mode: str, identity: str, folder: Path | None, tiling: VaeTilingConfig | None = None) -> None:
        """`network` is an AutoencoderKLCogVideoX; `from_folder` is the usual way in."""
        self.name = f"CogVideoXAutoencoder/{chunk_mode}"
        self.network = network
        self.network.num_sample_frames_batch_size = CHUNK_FRAMES[chunk_mode]
        part_large_convolutions(network)
        self.chunk_mode = chunk_mode
        self.tiling = tiling or VaeTilingConfig()
        self.identity = identity
        self._folder = folder
        self._replicas: dict[torch.device, Any] = {}
        self._plans: dict[tuple[Any, ...], MemoryPlan] = {}

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        chunk_mode: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tiling: VaeTilingConfig | None = None,
    ) -> CogVideoXAutoencoder:
        """Loads strictly from diffusers' layout. Imports diffusers (about 15 s)."""
        from diffusers import AutoencoderKLCogVideoX

        config = read_config(folder)
        paths = weight_paths(folder, cls.WEIGHTS_FILE)
        state = read_tensors(folder, cls.WEIGHTS_FILE, device, dtype)
        with torch.device("meta"):
            network = AutoencoderKLCogVideoX.from_config(config)
        check_keys(state, network.state_dict(), str(folder))
        network.load_state_dict(state, strict=True, assign=True)
        network.eval().requires_grad_(False)
        settings = (chunk_mode, *_encode_settings(tiling))
        return cls(network, chunk_mode, folder_identity("cogvideox", *settings, paths=[folder / "config.json", *paths]), folder, tiling)

    @torch.inference_mode()
    def encode(self, video: Tensor, devices: Sequence[torch.device | str] = ()) -> LatentPosterior:
        """B C T H W in [-1, 1] -> posterior, on the weights' device. `devices` run the tiles side by side; none: that one.

        Raises ValueError for sizes that do not fit, MemoryError when a GPU lacks the planned memory.
        """
        check_video(video)
        height, width = video.shape[3] // PATCH, video.shape[4] // PATCH
        tiles = self._encode_tiles(video.shape)
        chosen = self._devices(devices, lambda: self.plan_encode(tuple(video.shape)))

        @torch.inference_mode()
        def run(tile: Tile, device: torch.device) -> Tensor:
            rows, columns = (slice(span.start * PATCH, span.stop * PATCH) for span in tile)
            piece = video[..., rows, columns].to(device, self.dtype)
            return encode_piece(self._replica(device), piece, CHUNK_FRAMES[self.chunk_mode]).to(chosen[0])

        moments = merge_tiles(run_tiles(tiles, chosen, run), tiles, (height, width), 1, self.tiling.blend)
        mean, logvar = moments.transpose(1, 2).float().chunk(2, dim=2)
        return LatentPosterior(mean, logvar.clamp(-30.0, 20.0))

    @torch.inference_mode()
    def decode(self, latents: Tensor, devices: Sequence[torch.device | str] = ()) -> Tensor:
        """B T C H W -> B C T H W, chunks of 3, 2, 2, ... latents; two latents make five frames. `devices` as in `encode`."""
        check_latents(latents)
        tiles = self._decode_tiles(latents.shape)
        chosen = self._devices(devices, lambda: self.plan_decode(tuple(latents.shape)))

        @torch.inference_mode()
        def run(tile: Tile, device: torch.device) -> Tensor:
            rows, columns = (slice(span.start, span.stop) for span in tile)
            piece = latents[..., rows, columns].transpose(1, 2).to(device, self.dtype)
            return decode_piece(self._replica(device), piece).to(chosen[0])

        return merge_tiles(run_tiles(tiles, chosen, run), tiles, (latents.shape[3], latents.shape[4]), PATCH, self.tiling.blend).float()

    def plan_encode(self, shape: tuple[int, ...]) -> MemoryPlan:
        """Memory of encoding video of `shape` (B, 3, T, H, W), and its tiles. Allocates nothing; about a second."""
        tiles = self._encode_tiles(shape)
        height, width = _largest_tile(tiles)
        piece = (*shape[:3], height * PATCH, width * PATCH)
        return self._plan("encode", tiles, piece, shape)

    def plan_decode(self, shape: tuple[int, ...]) -> MemoryPlan:
        """Memory of decoding latents of `shape` (B, T, 16, H, W), and its tiles. Allocates nothing; about a second."""
        tiles = self._decode_tiles(shape)
        batch, frames, channels, height, width = shape
        result = (batch, 3, GROUP * (frames - 1) + 1, height * PATCH, width * PATCH)
        return self._plan("decode", tiles, (batch, channels, frames, *_largest_tile(tiles)), result)

    def save(self, folder: Path) -> None:
        """Writes pointer.json with the folder that holds the weights (they are not copied)."""
        if self._folder is None:
            raise WeightsError("this autoencoder was not loaded from a folder, so there is nothing to point to")
        write_config(folder, {"kind": "cogvideox", "identity": self.identity, "weights": str(self._folder)}, "pointer.json")

    @property
    def device(self) -> torch.device:
        return next(iter(self.network.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.network.parameters())).dtype

    def _encode_tiles(self, shape: Sequence[int]) -> list[Tile]:
        frames, height, width = shape[2:]
        first = temporal_chunks(frames, CHUNK_FRAMES[self.chunk_mode])[0][1]
        chunk = math.ceil(first / GROUP)
        return plan_tiles(height // PATCH, width // PATCH, chunk, self.tiling.encode_pass_latents, self.tiling)

    def _decode_tiles(self, shape: Sequence[int]) -> list[Tile]:
        chunk = temporal_chunks(shape[1], LATENT_CHUNK)[0][1]
        return plan_tiles(shape[3], shape[4], chunk, self.tiling.decode_pass_latents, self.tiling)

    def _plan(self, what: str, tiles: list[Tile], piece: tuple[int, ...], pixels: tuple[int, ...]) -> MemoryPlan:
        """`piece`: the largest tile's input; `pixels`: shape of the whole video, which dwarfs its latents."""
        if (what, piece, pixels) not in self._plans:
            with torch.device("meta"):
                network = type(self.network).from_config(self.network.config)
            torch.nn.Module.to(network, self.dtype)  # diffusers' own `to` warns of dtypes that its config may pin
            part_large_convolutions(network)
            with torch.inference_mode(), live_bytes() as counter:
                start = torch.empty(piece, dtype=self.dtype, device="meta")
                encode_piece(network, start, CHUNK_FRAMES[self.chunk_mode]) if what == "encode" else decode_piece(network, start)
            self._plans[what, piece, pixels] = MemoryPlan(
                tiles=tuple(tiles),
                weights_bytes=sum(tensor_bytes(weight.shape, weight.dtype) for weight in self.network.parameters()),
                pass_bytes=counter.peak,
                result_bytes=tensor_bytes(pixels, torch.float32) + (tensor_bytes(pixels, self.dtype) if what == "decode" else 0),
            )
        return self._plans[what, piece, pixels]

    def _devices(self, devices: Sequence[torch.device | str], plan: Callable[[], MemoryPlan]) -> list[torch.device]:
        """The devices as given, or the weights' own. Raises MemoryError when one of them is a GPU without the memory."""
        chosen = [_with_index(torch.device(device)) for device in devices] or [self.device]
        for device in dict.fromkeys(chosen):
            if device.type != "cuda":
                continue
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            memory, first = plan(), device == chosen[0]
            needed = memory.pass_bytes * chosen.count(device) + (memory.result_bytes if first else memory.weights_bytes)
            if needed > free:
                raise MemoryError(
                    f"{device} has {free / 1e9:.1f} GB free; this needs {needed / 1e9:.1f} GB in {len(memory.tiles)} tiles of up to "
                    f"{memory.pass_bytes / 1e9:.1f} GB. Lower vae.tiling's limits (other tiles, other pixels), or move models off it"
                )
        for device in chosen:
            if device != self.device and device not in self._replicas:
                self._replicas[device] = copy.deepcopy(self.network).to(device)
        return chosen

    def _replica(self, device: torch.device) -> Any:
        """The network on that device; `_devices` has put it there."""
        return self.network if device == self.device else self._replicas[device]


def _with_index(device: torch.device) -> torch.device:
    """ "cuda" as the current device's own name, as tensors on it say it."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def _largest_tile(tiles: Sequence[Tile]) -> tuple[int, int]:
    return max((tile.size for tile in tiles), key=math.prod)


def _encode_settings(tiling: VaeTilingConfig | None) -> tuple[str, ...]:
    """What of the tiling defines latents, where it is not the released layout (whose identity has none)."""
    chosen, released = ((one.encode_pass_latents, one.overlap, one.blend) for one in (tiling or VaeTilingConfig(), VaeTilingConfig()))
    return () if chosen == released else (f"tiles {chosen}",)


# ---- the stand-in ------------------------------------------------------------------------------------------------


class PatchPcaAutoencoder:
    """Stand-in for the VAE: principal components of 4x8x8 patches (of 8x8 for the first frame), 16 each.

    Fitted on the run's own clips in about a second; about 32 dB on smooth clips. The basis of the groups of four is
    divided by sqrt(4), so that a still scene has latents of one size in the first frame and after it; within that,
    channels keep their own variances (whitening them makes Stage II learn noise). The log variance is constant and
    small, so that sampling is the mean to three digits. Colour is [-1, 1], as at the real VAE.
    """

    name = "PatchPcaAutoencoder"
    is_stand_in = True
    LOGVAR = -14.0
    """Standard deviation of e^-7, a thousandth."""
    WEIGHTS_FILE = "patch_pca.safetensors"

    def __init__(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """`state`: first_mean (192), first_basis (16, 192), group_mean (768), group_basis (16, 768), latent_std ()."""
        self._state = {key: value.to(device) for key, value in state.items()}
        self._identity = state_identity(self.name, self.LOGVAR, state=state)

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def latent_std(self) -> float:
        return float(self._state["latent_std"])

    @classmethod
    def fit(cls, clips: Iterable[npt.NDArray[np.uint8] | Tensor], max_patches: int = 40_000) -> PatchPcaAutoencoder:
        """Fits on clips uint8 T H W C with 1 or 4k+1 frames and sides that divide by 8.

        Every clip gives at most 2,000 evenly spaced patches of each kind until `max_patches` are there. Equal clips in
        equal order give equal components; their signs are fixed by the largest entry being positive. Raises ValueError
        when no clip has five frames, which the basis of the groups of four needs.
        """
        first_rows: list[Tensor] = []
        group_rows: list[Tensor] = []
        for clip in clips:
            first, groups = _patch_rows(pixels_to_video(clip)[None])
            first_rows.append(_every(first.flatten(0, -2), 2_000))
            if groups.shape[1]:
                group_rows.append(_every(groups.flatten(0, -2), 2_000))
            if sum(map(len, first_rows)) >= max_patches and sum(map(len, group_rows)) >= max_patches:
                break
        if not group_rows:
            raise ValueError(
                f"none of {len(first_rows)} clips has 5 frames or more; the patch codec needs some to fit its groups of four frames"
            )
        first_mean, first_basis = _principal_components(torch.cat(first_rows))
        group_mean, group_basis = _principal_components(torch.cat(group_rows))
        latents = [
            (torch.cat(first_rows) - first_mean) @ first_basis.T,
            (torch.cat(group_rows) - group_mean) @ group_basis.T / GROUP**0.5,
        ]
        state = {
            "first_mean": first_mean,
            "first_basis": first_basis,
            "group_mean": group_mean,
            "group_basis": group_basis,
            "latent_std": torch.cat(latents).double().std().float(),
        }
        return cls(state)

    @torch.inference_mode()
    def encode(self, video: Tensor) -> LatentPosterior:
        """B C T H W in [-1, 1] -> posterior."""
        check_video(video)
        state = self._state
        first, groups = _patch_rows(video.to(state["first_mean"]))
        latents = torch.cat(
            [
                (first - state["first_mean"]) @ state["first_basis"].T,
                (groups - state["group_mean"]) @ state["group_basis"].T / GROUP**0.5,
            ],
            dim=1,
        )
        mean = latents.permute(0, 1, 4, 2, 3).contiguous()
        return LatentPosterior(mean, torch.full_like(mean, self.LOGVAR))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """B T C H W -> B C T H W."""
        check_latents(latents)
        state = self._state
        rows = latents.to(state["first_mean"]).permute(0, 1, 3, 4, 2)
        first = rows[:, :1] @ state["first_basis"] + state["first_mean"]
        groups = rows[:, 1:] @ state["group_basis"] * GROUP**0.5 + state["group_mean"]
        return torch.cat([_rows_to_frames(first, 1), _rows_to_frames(groups, GROUP)], dim=2)

    def save(self, folder: Path) -> None:
        """Writes config.json and patch_pca.safetensors."""
        config = {"kind": "patch_pca", "name": self.name, "identity": self.identity, "latent_std": self.latent_std}
        write_folder(Path(folder), config, self._state, self.WEIGHTS_FILE)

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device | str = "cpu") -> PatchPcaAutoencoder:
        """Reads what `save` wrote. Raises WeightsError when the tensors are not those that config.json names."""
        config = read_config(folder)
        codec = cls(read_tensors(folder, cls.WEIGHTS_FILE), device)
        if config.get("identity") != codec.identity:
            raise WeightsError(f"{folder}: {cls.WEIGHTS_FILE} has identity {codec.identity}, but config.json says {config.get('identity')}")
        return codec


def _patch_rows(video: Tensor) -> tuple[Tensor, Tensor]:
    """B 3 T H W -> first frame's patches (B, 1, h, w, 192), groups' (B, (T-1)/4, h, w, 768)."""
    return _frames_to_rows(video[:, :, :1], 1), _frames_to_rows(video[:, :, 1:], GROUP)


def _frames_to_rows(video: Tensor, group: int) -> Tensor:
    batch, channels, frames, height, width = video.shape
    split = video.reshape(batch, channels, frames // group, group, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _rows_to_frames(rows: Tensor, group: int) -> Tensor:
    split = rows.unflatten(-1, (3, group, PATCH, PATCH))
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _every(rows: Tensor, at_most: int) -> Tensor:
    """Evenly spaced rows, at most so many."""
    count = len(rows)
    return rows if count <= at_most else rows[torch.linspace(0, count - 1, at_most).round().long()]


def _principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the 16 strongest orthonormal directions (16, D) of rows (N, D), computed in fp64."""
    wide = rows.double()
    mean = wide.mean(0)
    centred = wide - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    basis = vectors[:, -LATENT_CHANNELS:].flip(1).T
    signs = basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return mean.float(), (basis * signs).float().contiguous()


# ---- choosing one ------------------------------------------------------------------------------------------------


def load_autoencoder(
    folder: Path | str, config: VaeConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoAutoencoder:
    """The autoencoder of a folder: one that `save` wrote (fitted stand-in, or pointer), or diffusers' weights.

    Raises WeightsError when the folder holds another kind than `config.kind`, or not the weights that it points to.
    """
    folder = Path(folder)
    if config.kind == "patch_pca":
        return PatchPcaAutoencoder.from_folder(folder, device)
    pointer = read_config(folder, "pointer.json") if (folder / "pointer.json").is_file() else None
    weights = Path(pointer["weights"]) if pointer is not None else folder
    vae = CogVideoXAutoencoder.from_folder(weights, config.chunk_mode, device, dtype, config.tiling)
    if pointer is not None and pointer["identity"] != vae.identity:
        raise WeightsError(
            f"{weights} (chunk mode {config.chunk_mode}) has identity {vae.identity}, but {folder} was made with {pointer['identity']}"
        )
    return vae


def model_input_scale(config: VaeConfig, vae: VideoAutoencoder, stage: int) -> float:
    """Model input = latent x this. The config's number, or 1 / std of the run's latents where it is None.

    Raises ValueError when the config leaves it open and the autoencoder has not measured its latents.
    """
    scale = {1: config.scale_stage1, 2: config.scale_stage2}[stage]
    if scale is not None:
        return scale
    if vae.latent_std is None:
        raise ValueError(
            f"vae.scale_stage{stage} is None, but {vae.name} has no measured latent std; set it (released: 0.7 for I, 1.15258426 for II)"
        )
    return 1.0 / vae.latent_std
