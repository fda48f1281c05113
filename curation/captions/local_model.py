"""Backend `transformers`: a local vision-language model, loaded from a folder; nothing is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest
from curation.captions.prompt import prompt_hash
from curation.config import CaptionConfig
from curation.ingest import hash_file
from curation.step import Lineage, StepError
from curation.tracks import read_clip_track

MAX_NEW_TOKENS = 300


class TransformersCaptioner:
    """Describes clips by transformers' image-text-to-text models, key frames as images of one user turn."""

    def __init__(self, config: CaptionConfig, tracks: Path, device: str, network: Any = None) -> None:
        """`network`: (model, processor) in place of the folder's, for tests. Raises StepError when the folder is not there."""
        import torch

        self._torch, self._tracks, self._config = torch, tracks, config
        self._device = torch.device(device)
        self.lineage = local_model_lineage(config) if network is None else Lineage("caption", "transformers", "1", "random weights")
        self._model, self._processor = network or _load(model_folder(config), self._device)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: CaptionRequest) -> Caption | StepError:
        from PIL import Image

        track = read_clip_track(self._tracks, request.source_id, request.clip_id, request.start_us, request.end_us, read="keys")
        pictures = [Image.fromarray(frame.rgb()) for frame in track.keys]
        content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": self._config.prompt}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self._device)
        with self._torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        text = self._processor.batch_decode(new, skip_special_tokens=True)[0].strip()
        if not text:
            return StepError("caption_empty", f"{self.lineage.model} wrote nothing about the clip")
        finish = "length" if new.shape[1] >= MAX_NEW_TOKENS else "stop"
        return Caption(text, self.lineage.model, prompt_hash(self._config.prompt), finish)


def model_folder(config: CaptionConfig) -> Path:
    """The model's folder. Raises StepError that says what is wanted."""
    folder = Path(config.model) if config.model else None
    if folder is not None and (folder / "config.json").is_file():
        return folder
    where = f"{folder / 'config.json'} does not exist" if folder else "caption.model is not set"
    raise StepError(
        "weights_missing", f"caption.backend=transformers wants the folder of an image-text-to-text model in caption.model: {where}"
    )


def local_model_lineage(config: CaptionConfig) -> Lineage:
    """What made the captions: the folder's name, the hash of its weights' index or file, the prompt."""
    folder = model_folder(config)
    names = ("model.safetensors.index.json", "model.safetensors", "config.json")
    weights = hash_file(str(next(folder / name for name in names if (folder / name).is_file())))
    return Lineage("caption", "transformers", "1", folder.name, weights, {"prompt": config.prompt, "max_new_tokens": MAX_NEW_TOKENS})


def _load(folder: Path, device: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype="auto").eval().to(device)
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)
