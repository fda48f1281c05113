"""pyiqa's no-reference metrics from weights that the user supplies. pyiqa is PolyForm Noncommercial.

The paper names no variants; these are pyiqa's defaults: musiq and maniqa of KonIQ-10k, clipiqa with RN50 and five pairs of
texts, niqe of its authors' natural pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from flashvideo.evaluation.networks.pretrained import Weights
from flashvideo.evaluation.protocol import file_sha256

ORIGIN = "github.com/chaofengc/IQA-PyTorch, release v0.1-weights"
FILES = {
    "musiq": Weights("musiq_koniq_ckpt-e95806b9.pth", ORIGIN),
    "musiq-spaq": Weights("musiq_spaq_ckpt-358bb6af.pth", ORIGIN),
    "maniqa": Weights("ckpt_koniq10k.pt", ORIGIN),
    "clipiqa": Weights("RN50.pt", "openaipublic.azureedge.net/clip, the TorchScript file"),
    "niqe": Weights("niqe_modelparameters.mat", ORIGIN),
}
"""Metric -> its file. piqe needs none."""


def missing_files(names: tuple[str, ...], folder: Path | None) -> list[str]:
    """One line a metric of `names` whose file is not in the folder. Loads nothing."""
    lines = []
    for name in names:
        wanted = FILES.get(name)
        if wanted is not None and (folder is None or not (folder / wanted.name).is_file()):
            place = wanted.name if folder is None else str(folder / wanted.name)
            lines.append(f"{name}: {place} is missing ({wanted.origin})")
    return lines


def build_metric(name: str, device: torch.device, folder: Path | None) -> torch.nn.Module:
    """The metric. With a folder nothing is downloaded for the metrics of FILES; without one pyiqa fetches what it lacks.

    Raises ValueError for a metric that pyiqa does not know, and for weights that are missing or do not fit.
    """
    import pyiqa  # 8 s: only where a metric is asked for

    if name not in pyiqa.list_models():
        raise ValueError(f"pyiqa has no metric {name}; evaluation.frame_metrics takes names of pyiqa.list_models()")
    if folder is not None and (lines := missing_files((name,), folder)):
        raise ValueError(lines[0])
    try:
        with _timm_without_download():
            _import_openai_clip()
            metric: torch.nn.Module = pyiqa.create_metric(name, device=device, **_options(name, folder))
    except Exception as error:  # pyiqa raises what torch, urllib and scipy raise
        advice = "" if folder is not None else "; give a folder of weights, evaluation.frame_weights"
        raise ValueError(f"{name} cannot be built: {str(error).splitlines()[0] if str(error) else type(error).__name__}{advice}") from None
    if name == "clipiqa":
        model: Any = metric
        model.net = TextsOnce(model.net)
    return metric


def identity(name: str, folder: Path | None) -> str:
    """Library, version and weights, for the protocol."""
    wanted = FILES.get(name)
    weights = f", weights {file_sha256(folder / wanted.name)[:16]}" if wanted is not None and folder is not None else ""
    return f"pyiqa {version('pyiqa')} {name}{weights}"


def _options(name: str, folder: Path | None) -> dict[str, Any]:
    wanted = FILES.get(name)
    if wanted is None or folder is None:
        return {}
    place = str(folder / wanted.name)
    return {"backbone": place} if name == "clipiqa" else {"pretrained_model_path": place}


def _import_openai_clip() -> None:
    """openai-clip (of CLIPIQA) takes `packaging` out of pkg_resources, which setuptools 81 dropped: lends it one meanwhile."""
    import packaging.version

    if find_spec("clip") is None or "clip" in sys.modules or find_spec("pkg_resources") is not None:
        return
    lent: Any = ModuleType("pkg_resources")
    lent.packaging = packaging
    sys.modules["pkg_resources"] = lent
    try:
        import_module("clip")
    finally:
        del sys.modules["pkg_resources"]


@contextmanager
def _timm_without_download() -> Iterator[None]:
    """pyiqa's MANIQA fetches ImageNet weights of its ViT, which its own checkpoint then overwrites whole (strictly)."""
    import timm

    original = timm.create_model
    timm.create_model = lambda *given, **named: original(*given, **{**named, "pretrained": False})
    try:
        yield
    finally:
        timm.create_model = original


class TextsOnce(torch.nn.Module):
    """pyiqa's CLIPIQA with its ten texts encoded once, not at every frame (half of the time). Same numbers."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self._texts: torch.Tensor | None = None

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        net: Any = self.net
        normalised = (pictures - net.default_mean.to(pictures)) / net.default_std.to(pictures)
        clip = net.clip_model[0].to(pictures)
        if self._texts is None or self._texts.device != pictures.device:
            self._texts = clip.encode_text(net.prompt_pairs.to(pictures.device))
        logits, _ = clip(normalised, None, pos_embedding=net.pos_embedding, text_features=self._texts)
        likely: torch.Tensor = logits.reshape(len(logits), -1, 2).softmax(dim=-1)[..., 0]
        return likely.mean(dim=1, keepdim=True)
