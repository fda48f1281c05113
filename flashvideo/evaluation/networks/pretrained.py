"""The reference's networks in kept libraries, from weights that the user supplies. Nothing is downloaded.

Each takes a built module, so that tests may give a small or random one; `load_networks` builds the real ones from a
folder and says which file is wanted where one is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from flashvideo.evaluation.networks.interfaces import Networks
from flashvideo.evaluation.protocol import file_sha256


class Weights(NamedTuple):
    """A file or folder that the user supplies."""

    name: str
    origin: str


RAFT = Weights("raft_large_C_T_V1-22a6c225.pth", "download.pytorch.org/models (torchvision raft_large, C_T_V1)")
DINO = Weights("dino_vitbase16_pretrain.pth", "dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain")
CLIP_B = Weights("clip-vit-base-patch32", "the Hugging Face folder openai/clip-vit-base-patch32")
CLIP_L = Weights("clip-vit-large-patch14", "the Hugging Face folder openai/clip-vit-large-patch14")
AESTHETIC = Weights("sa_0_4_vit_l_14_linear.pth", "github.com/LAION-AI/aesthetic-predictor")
MUSIQ = Weights("musiq_spaq_ckpt-358bb6af.pth", "github.com/chaofengc/IQA-PyTorch, release v0.1-weights")
DINOV2 = Weights("dinov2-base", "the Hugging Face folder facebook/dinov2-base")
UMT = Weights("l16_ptk710_ftk710_ftk400_f16_res224.pth", "github.com/OpenGVLab/unmasked_teacher, single_modality")
KINETICS = Weights("kinetics_400_categories.txt", "github.com/Vchitect/VBench, vbench/third_party/umt")
VICLIP = Weights("ViClip-InternVid-10M-FLT.pth", "the Hugging Face repository OpenGVLab/ViCLIP")

NOT_IN_A_LIBRARY = {
    "interpolator": "AMT-S is its authors' code under CC BY-NC: give your own interpolator (--networks FILE.py)",
    "detector": "GRiT needs detectron2 and its authors' code: give your own detector (--networks FILE.py)",
    "dense_captioner": "GRiT's dense captions need its authors' code: give your own dense_captioner (--networks FILE.py)",
    "captioner": "Tag2Text needs its authors' code: give your own captioner (--networks FILE.py)",
    "dreamsim": "DreamSim's package is not a dependency: give your own dreamsim (--networks FILE.py), or take --no-slow-fast",
}
"""Networks without a kept library here, and what to do."""


class Pretrained:
    """A module in inference on one device; `identity` is its weights' sha256."""

    is_stand_in = False

    def __init__(self, name: str, module: torch.nn.Module, identity: str, device: torch.device | None = None) -> None:
        self.name, self.identity = name, identity
        self.device = device or torch.device("cpu")
        self.module = module.eval().requires_grad_(False).to(self.device)


class RaftFlow(Pretrained):
    """torchvision's raft_large; bit-identical to VBench's RAFT with 20 updates on pixels in -1..1."""

    UPDATES = 20

    @torch.inference_mode()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        a, b = (2 * (pixels.to(self.device) / 255) - 1 for pixels in (first, second))
        flow: torch.Tensor = self.module(a, b, num_flow_updates=self.UPDATES)[-1]
        return flow.cpu()


class DinoEncoder(Pretrained):
    """A timm VisionTransformer's class token under DINO's own position rule, for any size.

    Positions: bicubic with scale (n + 0.1) / grid; patches that do not fit are left out. timm's dynamic_img_size scales
    otherwise (1.3e-2 on features) and refuses sizes that are no multiple of 16.
    """

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        model: Any = self.module
        grid = model.patch_embed.proj(pictures.to(self.device))
        rows, columns = grid.shape[-2:]
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([model.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + dino_positions(model.pos_embed, rows, columns)
        features: torch.Tensor = model.norm(model.blocks(model.norm_pre(tokens)))[:, 0]
        return features.float().cpu()


def dino_positions(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Position embeddings 1 (1 + rows columns) D out of 1 (1 + n n) D."""
    side = math.isqrt(positions.shape[1] - 1)
    if (rows, columns) == (side, side):
        return positions
    patches = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    if patches.shape[-2:] != (rows, columns):
        raise ValueError(f"positions became {tuple(patches.shape[-2:])}, the patches are {(rows, columns)}")
    return torch.cat([positions[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class ClipEncoder(Pretrained):
    """transformers' CLIPModel: projected features of pictures and texts (77 tokens at most)."""

    def __init__(self, name: str, module: torch.nn.Module, identity: str, tokenizer: Any, device: torch.device | None = None) -> None:
        super().__init__(name, module, identity, device)
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        model: Any = self.module
        features: torch.Tensor = model.visual_projection(model.vision_model(pixel_values=pictures.to(self.device)).pooler_output)
        return features.float().cpu()

    @torch.inference_mode()
    def text(self, texts: list[str]) -> torch.Tensor:
        model: Any = self.module
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt").to(self.device)
        features: torch.Tensor = model.text_projection(model.text_model(**tokens).pooler_output)
        return features.float().cpu()


class Dinov2Encoder(Pretrained):
    """transformers' Dinov2Model: the normalised class token."""

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.module(pixel_values=pictures.to(self.device)).pooler_output
        return features.float().cpu()


class LinearAesthetic(Pretrained):
    """LAION's linear layer: B 768 -> B."""

    @torch.inference_mode()
    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.module(features.to(self.device))
        return scores[:, 0].cpu()


class MusiqQuality(Pretrained):
    """pyiqa's MUSIQ, one frame at a time as the reference. pyiqa is PolyForm Noncommercial."""

    @torch.inference_mode()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.module(one[None].to(self.device)).reshape(1).float().cpu() for one in pictures])


# ---- from a folder


def load_networks(folder: Path, device: torch.device | None = None, fields: Collection[str] | None = None) -> Networks:
    """Every network whose weights lie in `folder`; the others are told in `absent`, with the file and where it comes from.

    `fields`: only these fields of Networks are built.

    Raises ValueError for a file that is there and does not fit.
    """
    builders: dict[str, Callable[[], Any]] = {
        "flow": lambda: _raft(folder, device),
        "dino": lambda: _dino(folder, device),
        "clip_b": lambda: _clip(folder / CLIP_B.name, device),
        "clip_l": lambda: _clip(folder / CLIP_L.name, device),
        "aesthetic": lambda: _aesthetic(folder, device),
        "quality": lambda: _musiq(folder, device),
        "dinov2": lambda: _dinov2(folder, device),
        "action": lambda: _umt(folder, device),
        "video_text": lambda: _viclip(folder, device),
    }
    absent = missing_weights(folder)
    wanted = [field for field in builders if field not in absent and (fields is None or field in fields)]
    return Networks(**{field: builders[field]() for field in wanted}, absent=absent)


WANTED: dict[str, tuple[Weights, ...]] = {
    "flow": (RAFT,),
    "dino": (DINO,),
    "clip_b": (CLIP_B,),
    "clip_l": (CLIP_L,),
    "aesthetic": (AESTHETIC,),
    "quality": (MUSIQ,),
    "dinov2": (DINOV2,),
    "action": (UMT, KINETICS),
    "video_text": (VICLIP, CLIP_B),
}
"""Files of each network, by field of Networks."""


def missing_weights(folder: Path) -> dict[str, str]:
    """Field of Networks -> what is missing and where it comes from. Loads nothing."""
    absent = dict(NOT_IN_A_LIBRARY)
    for field, wanted in WANTED.items():
        lacking = [one for one in wanted if not (folder / one.name).exists()]
        if lacking:
            absent[field] = "; ".join(f"{folder / one.name} is missing ({one.origin})" for one in lacking)
    return absent


def _state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what pickle, zip and its own reader raise
        raise ValueError(f"{path} cannot be read as weights: {error}") from None
    for wrapper in ("params", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            return dict(state[wrapper])
    return dict(state)


def _fitted(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    try:
        module.load_state_dict(_state(path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(module).__name__}: {str(error).splitlines()[-1].strip()}") from None
    return module


def _raft(folder: Path, device: torch.device | None) -> RaftFlow:
    from torchvision.models.optical_flow import raft_large

    path = folder / RAFT.name
    return RaftFlow("torchvision raft_large", _fitted(raft_large(weights=None), path), file_sha256(path), device)


def _dino(folder: Path, device: torch.device | None) -> DinoEncoder:
    import timm

    path = folder / DINO.name
    model = timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0)
    return DinoEncoder("timm vit_base_patch16_224.dino", _fitted(model, path), file_sha256(path), device)


def _aesthetic(folder: Path, device: torch.device | None) -> LinearAesthetic:
    path = folder / AESTHETIC.name
    return LinearAesthetic("LAION linear", _fitted(torch.nn.Linear(768, 1), path), file_sha256(path), device)


def _musiq(folder: Path, device: torch.device | None) -> MusiqQuality:
    from pyiqa.archs.musiq_arch import MUSIQ as Musiq

    path = folder / MUSIQ.name
    return MusiqQuality("pyiqa MUSIQ-SPAQ", _fitted(Musiq(pretrained=False), path), file_sha256(path), device)


def _clip(folder: Path, device: torch.device | None) -> ClipEncoder:
    from transformers import CLIPModel, CLIPTokenizerFast

    model = _hub_folder(folder, CLIPModel.from_pretrained)
    tokenizer = _hub_folder(folder, CLIPTokenizerFast.from_pretrained)
    return ClipEncoder(f"transformers {folder.name}", model, _folder_identity(folder), tokenizer, device)


def _dinov2(folder: Path, device: torch.device | None) -> Dinov2Encoder:
    from transformers import Dinov2Model

    place = folder / DINOV2.name
    return Dinov2Encoder("transformers dinov2-base", _hub_folder(place, Dinov2Model.from_pretrained), _folder_identity(place), device)


def _umt(folder: Path, device: torch.device | None) -> Pretrained:
    from flashvideo.evaluation.networks.umt import UmtActions, build_umt, kinetics_labels

    path = folder / UMT.name
    return UmtActions(build_umt(_state(path)), kinetics_labels(folder / KINETICS.name), file_sha256(path), device)


def _viclip(folder: Path, device: torch.device | None) -> Pretrained:
    from transformers import CLIPTokenizerFast

    from flashvideo.evaluation.networks.viclip import Viclip, ViclipEncoder

    path = folder / VICLIP.name
    tokenizer = _hub_folder(folder / CLIP_B.name, CLIPTokenizerFast.from_pretrained)  # the same vocabulary
    model = Viclip()
    _fitted(model, path)
    return ViclipEncoder(model, file_sha256(path), tokenizer, device)


def _hub_folder(folder: Path, load: Callable[..., Any]) -> Any:
    try:
        return load(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from None


def _folder_identity(folder: Path) -> str:
    """sha256 of the weight file. Raises ValueError where there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return file_sha256(folder / name)
    raise ValueError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")
