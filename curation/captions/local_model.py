"""Backend `transformers`: a local vision-language model, loaded from a folder; nothing is fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from curation.captions.caption import Caption, CaptionRequest, CaptionSetupError
from curation.captions.frames import read_key_frames
from curation.config import CaptionConfig
from curation.step import StepError

VERSION = "1"
MAX_NEW_TOKENS = 300
WANTED = (
    ("config.json",),
    ("*.safetensors",),
    ("tokenizer.json", "tokenizer_config.json"),
    ("processor_config.json", "preprocessor_config.json"),
)
"""Files of a model folder; one of each group is enough."""
DECISIVE = frozenset([".safetensors", ".json", ".jinja", ".model", ".txt"])
"""Files that an answer depends on: weights, settings, tokenizer, template."""


class TransformersCaptioner:
    """Describes clips by transformers' image-text-to-text models, key frames as images of one user turn.

    StepError: no_track, no_key_frames, caption_empty.
    """

    def __init__(self, folder: Path, prompt: str, tracks: Path, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._torch, self._prompt, self._tracks, self._device = torch, prompt, tracks, torch.device(device)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self._model = model.eval().to(self._device)
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def __call__(self, requests: list[CaptionRequest]) -> list[Caption | StepError]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: CaptionRequest) -> Caption | StepError:
        from PIL import Image

        try:
            track = read_key_frames(self._tracks, request)
        except StepError as error:
            return error
        pictures = [Image.fromarray(frame.rgb()) for frame in track.keys]
        content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": self._prompt}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self._device, dtype=self._model.dtype)
        with self._torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        text = self._processor.decode(new, skip_special_tokens=True).strip()
        if not text:
            return StepError("caption_empty", "the model wrote nothing about the clip")
        return Caption(text, "stop" if self._ended(new) else "length")

    def _ended(self, new: Any) -> bool:
        """True when the last token is one that ends an answer."""
        ends = self._model.generation_config.eos_token_id
        return len(new) > 0 and int(new[-1]) in (ends if isinstance(ends, list) else [ends])


def model_folder(config: CaptionConfig) -> Path:
    """The model's folder. Raises CaptionSetupError that names the folder and the files that are missing."""
    if not config.model:
        raise CaptionSetupError("caption.backend=transformers wants caption.model, the folder of an image-text-to-text model")
    folder = Path(config.model).expanduser()
    missing = [" or ".join(group) for group in WANTED if not any(any(folder.glob(name)) for name in group)]
    if missing:
        state = "lacks" if folder.is_dir() else "is no folder; it must hold"
        raise CaptionSetupError(
            f"caption.backend=transformers wants an image-text-to-text model in caption.model: {folder} {state} {', '.join(missing)}; "
            "or set curation.caption.backend=attributes"
        )
    return folder


def model_sha256(folder: Path) -> str:
    """Hash of the names and bytes of the model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DECISIVE):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
