"""Prompt -> T5 embeddings, padded to a fixed length and unmasked, as CogVideoX was trained.

The unconditional branch of both stages is the all-zero embedding (released code: force_uc_zero_embeddings), never
the encoding of an empty text. transformers' T5 takes about 11 s to import, so it is imported on construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flashvideo.config import TextEncoderConfig
from flashvideo.models.weight_files import WeightsError, folder_identity, state_identity


class TextEmbeddings(NamedTuple):
    """Encoded texts."""

    embeddings: Tensor
    """B L D, fp32 or the encoder's dtype."""
    tokens: tuple[int, ...]
    """Tokens of each text before cutting and padding, end mark included."""
    truncated: tuple[bool, ...]
    """True where the text was longer than L tokens and lost its end."""


class TextEncoder(Protocol):
    """What the jobs and the cascade use of a text encoder."""

    name: str
    is_stand_in: bool
    embed_dim: int
    max_length: int

    @property
    def identity(self) -> str:
        """Hash of what defines its embeddings (weights, tokens, length)."""
        ...

    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """Embeddings of the texts, B = len(texts)."""
        ...

    def zero_embedding(self, batch: int) -> Tensor:
        """All-zero B L D: the unconditional branch, and dropped text in training."""
        ...


class _T5:
    """What both encoders share: a transformers T5EncoderModel and fixed-length, unmasked input."""

    def __init__(self, network: Any, max_length: int, identity: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.embed_dim: int = network.config.d_model
        self.max_length = max_length
        self.identity = identity

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the end mark, uncut."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> TextEmbeddings:
        """B L D; padding is the pad token and is attended to (no mask), as in CogVideoX."""
        ids = [self.tokenize(text) for text in texts]
        pad, end = self.network.config.pad_token_id, self.network.config.eos_token_id
        cut = [row if len(row) <= self.max_length else [*row[: self.max_length - 1], end] for row in ids]
        padded = torch.tensor([row + [pad] * (self.max_length - len(row)) for row in cut], device=self.network.device)
        embeddings: Tensor = self.network(input_ids=padded).last_hidden_state
        return TextEmbeddings(embeddings, tuple(map(len, ids)), tuple(len(row) > self.max_length for row in ids))

    def zero_embedding(self, batch: int) -> Tensor:
        """All-zero B L D on the encoder's device, in its dtype."""
        weight = self.network.shared.weight
        return torch.zeros(batch, self.max_length, self.embed_dim, device=weight.device, dtype=weight.dtype)


class T5Encoder(_T5):
    """T5 v1.1-XXL's encoder and tokenizer, from a folder that holds text_encoder/ and tokenizer/."""

    name = "T5Encoder"
    is_stand_in = False

    def __init__(self, folder: Path, max_length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16) -> None:
        from transformers.models.t5 import T5EncoderModel, T5Tokenizer

        for part in ("text_encoder", "tokenizer"):
            if not (folder / part).is_dir():
                raise WeightsError(f"no folder {folder / part}; text_encoder.weights wants one that holds text_encoder/ and tokenizer/")
        network = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype, local_files_only=True).to(device)
        self._tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        files = sorted(path for part in ("text_encoder", "tokenizer") for path in (folder / part).iterdir() if path.is_file())
        super().__init__(network, max_length, folder_identity(self.name, max_length, str(dtype), paths=files))

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=True, truncation=False)["input_ids"]
        return ids


class DebugT5Encoder(_T5):
    """Stand-in: the same class, tiny, seeded random, one token a UTF-8 byte. Equal texts get equal embeddings."""

    name = "DebugT5Encoder"
    is_stand_in = True
    FIRST_BYTE = 3
    """Ids 0, 1, 2 are pad, end and unknown, as in ByT5."""

    def __init__(self, embed_dim: int, max_length: int, seed: int, device: torch.device | str = "cpu") -> None:
        from transformers.models.t5 import T5Config, T5EncoderModel

        config = T5Config(
            vocab_size=256 + self.FIRST_BYTE,
            d_model=embed_dim,
            d_kv=max(8, embed_dim // 4),
            d_ff=2 * embed_dim,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = T5EncoderModel(config)
        identity = state_identity(self.name, max_length, state=network.state_dict())
        super().__init__(network.to(device), max_length, identity)

    def tokenize(self, text: str) -> list[int]:
        return [byte + self.FIRST_BYTE for byte in text.encode()] + [1]


def build_text_encoder(config: TextEncoderConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder that a config names. Raises WeightsError when weights are missing or of another width."""
    if config.kind == "debug_t5":
        return DebugT5Encoder(config.embed_dim, config.max_length, config.seed, device)
    if config.weights is None:
        raise WeightsError("text_encoder.weights is not set; want a folder that holds text_encoder/ and tokenizer/ of T5 v1.1-XXL")
    encoder = T5Encoder(Path(config.weights), config.max_length, device)
    if encoder.embed_dim != config.embed_dim:
        raise WeightsError(f"{config.weights} is {encoder.embed_dim} wide, but text_encoder.embed_dim is {config.embed_dim}")
    return encoder
