"""The debug text encoder, a real T5 class with random weights and byte tokens; the real one's loading errors."""

from pathlib import Path

import pytest
import torch

from flashvideo.config import TextEncoderConfig
from flashvideo.models.text_encoder import DebugT5Encoder, build_text_encoder
from flashvideo.models.weight_files import WeightsError

CONFIG = TextEncoderConfig(kind="debug_t5", max_length=16, embed_dim=32)


@pytest.fixture(scope="module")
def encoder() -> DebugT5Encoder:
    built = build_text_encoder(CONFIG)
    assert isinstance(built, DebugT5Encoder)
    return built


def test_embeddings_are_padded_to_one_length_and_say_what_was_cut(encoder: DebugT5Encoder) -> None:
    result = encoder.encode(["a fox", "x" * 15, "x" * 16, "é"])
    assert result.embeddings.shape == (4, 16, 32)
    assert result.tokens == (6, 16, 17, 3)  # bytes and the end mark
    assert result.truncated == (False, False, True, False)


def test_equal_texts_get_equal_embeddings_and_others_do_not(encoder: DebugT5Encoder) -> None:
    one = encoder.encode(["a red fox"]).embeddings
    other = build_text_encoder(CONFIG)
    assert other.identity == encoder.identity
    assert torch.equal(other.encode(["a red fox"]).embeddings, one)
    assert (encoder.encode(["a red fix"]).embeddings - one).abs().max() > 0.1
    assert build_text_encoder(CONFIG.model_copy(update={"seed": 1})).identity != encoder.identity


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_text_encoder(CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_unconditional_embedding_is_zero_not_the_encoding_of_nothing(encoder: DebugT5Encoder) -> None:
    zero = encoder.zero_embedding(2)
    assert zero.shape == (2, 16, 32) and not zero.any()
    assert encoder.encode([""]).embeddings.abs().max() > 0.1


def test_padding_is_attended_to(encoder: DebugT5Encoder) -> None:
    """No mask: the same text padded to another length gets other embeddings, as in the released models."""
    longer = DebugT5Encoder(32, 20, 0)
    assert (longer.encode(["a fox"]).embeddings[:, :6] - encoder.encode(["a fox"]).embeddings[:, :6]).abs().max() > 1e-3


def test_it_names_itself_a_stand_in(encoder: DebugT5Encoder) -> None:
    assert encoder.is_stand_in and encoder.name == "DebugT5Encoder"
    assert (encoder.embed_dim, encoder.max_length) == (32, 16)


def test_missing_weights_of_the_real_encoder_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"text_encoder\.weights is not set"):
        build_text_encoder(TextEncoderConfig())
    with pytest.raises(WeightsError, match=r"no folder .*text_encoder"):
        build_text_encoder(TextEncoderConfig(weights=str(tmp_path)))
