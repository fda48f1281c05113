"""Makes the caption backend that the recipe names, and its lineage without making it."""

from __future__ import annotations

from pathlib import Path

from curation.captions import attributes, sidecar
from curation.captions.caption import Captioner
from curation.captions.checks import CHECKS_VERSION
from curation.config import CaptionConfig
from curation.revisions import revision_of
from curation.step import Lineage

FACT_READERS = ("attributes", "sidecar")
"""Backends without a model: cheap, and what they read can change, so they run over every clip each time."""


def build_captioner(config: CaptionConfig, tracks: Path, cache: Path, device: str) -> Captioner:
    """The backend. Raises CaptionSetupError when it is not configured or its weights are missing."""
    if config.backend == "attributes":
        return attributes.AttributesCaptioner(tracks)
    if config.backend == "sidecar":
        return sidecar.SidecarCaptioner(None if config.table is None else Path(config.table).expanduser())
    if config.backend == "http":
        from curation.captions.http import HttpCaptioner

        return HttpCaptioner(config, tracks, cache)
    from curation.captions.local_model import TransformersCaptioner, model_folder

    return TransformersCaptioner(model_folder(config), config.prompt, tracks, device)


def captioner_lineage(config: CaptionConfig, track_run: str) -> Lineage:
    """What makes the captions; `track_run`: identity of the tracks that the key frames come from.

    The server's address does not count, the hash of a local model does. Raises CaptionSetupError as `build_captioner`.
    """
    checks = {"checks": CHECKS_VERSION, "min_words": config.min_words, "max_words": config.max_words}
    if config.backend == "sidecar":
        return Lineage("caption", "sidecar", sidecar.VERSION, sidecar.MODEL, parameters=checks)
    looked_at = {**checks, "track": track_run}
    if config.backend == "attributes":
        return Lineage("caption", "attributes", attributes.VERSION, attributes.MODEL, parameters=looked_at)
    asked = {**looked_at, "prompt": config.prompt}
    if config.backend == "http":
        from curation.captions import http

        http.server_url(config)
        return Lineage("caption", "http", http.VERSION, str(config.model), parameters={**asked, "max_tokens": http.MAX_TOKENS})
    from curation.captions import local_model

    folder = local_model.model_folder(config)
    asked["max_new_tokens"] = local_model.MAX_NEW_TOKENS
    return Lineage(
        "caption", "transformers", local_model.VERSION, folder.name, local_model.model_sha256(folder), asked, revision_of(folder)
    )


def check_backend(config: CaptionConfig) -> None:
    """Raises CaptionSetupError when backend http's server or sidecar's table cannot be used. Asked only when there is work for it."""
    if config.backend == "sidecar":
        build_captioner(config, Path(), Path(), "cpu")
    if config.backend == "http":
        from curation.captions.http import check_server

        check_server(config)
