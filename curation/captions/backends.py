"""Makes the caption backend that the recipe names, and its lineage without making it."""

from __future__ import annotations

from pathlib import Path

from curation.captions.attributes import AttributesCaptioner, attributes_lineage
from curation.captions.caption import Captioner
from curation.captions.http import HttpCaptioner, http_lineage
from curation.captions.local_model import TransformersCaptioner, local_model_lineage
from curation.captions.sidecar import SidecarCaptioner, sidecar_lineage
from curation.config import CaptionConfig
from curation.step import Lineage


def build_captioner(config: CaptionConfig, tracks: Path, cache: Path, device: str) -> Captioner:
    """The backend. Raises StepError when it is not configured or its weights are missing."""
    if config.backend == "attributes":
        return AttributesCaptioner(config, tracks)
    if config.backend == "sidecar":
        return SidecarCaptioner(config)
    if config.backend == "http":
        return HttpCaptioner(config, tracks, cache)
    return TransformersCaptioner(config, tracks, device)


def captioner_lineage(config: CaptionConfig) -> Lineage:
    """The backend's lineage. Raises StepError as `build_captioner`, without loading a model."""
    if config.backend == "http" and not (config.base_url and config.model):
        HttpCaptioner(config, Path(), Path())
    makers = {
        "attributes": attributes_lineage, "sidecar": sidecar_lineage, "http": http_lineage, "transformers": local_model_lineage,
    }  # fmt: skip
    return makers[config.backend](config)
