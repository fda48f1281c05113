"""Caption backends: sentences of facts, sidecar files, a chat server that misbehaves, a tiny local model; and the checks."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from caption_stage import BLACK, BLUE, GREEN, RED, WHITE, Answer, Chat, chat_server, jpeg, painted, request_of, said, write_track
from pyarrow import csv, parquet

from curation.captions.attributes import AttributesCaptioner, dominant_colours, sentence
from curation.captions.backends import captioner_lineage, check_backend
from curation.captions.caption import Caption, CaptionRequest, CaptionSetupError
from curation.captions.checks import check_caption
from curation.captions.http import KEY_VARIABLE, HttpCaptioner
from curation.captions.sidecar import SidecarCaptioner, sidecar_listing
from curation.config import CaptionConfig
from curation.step import StepError

LONG = "A red kite climbs over a wheat field while two children run below it."


@pytest.fixture
def tracks(tmp_path: Path) -> Path:
    """Source s1 with clips a (red), b (green), c (blue), ..."""
    clips = {clip_id: [painted(colour)] * 2 for clip_id, colour in zip("abcdef", (RED, GREEN, BLUE, WHITE, BLACK, RED), strict=True)}
    write_track(tmp_path / "tracks", "s1", clips)
    return tmp_path / "tracks"


# attributes


def test_the_sentence_says_every_known_fact() -> None:
    facts = request_of(
        "a", duration_s=6.125, luma_mean=120.0, blur=500.0, letterbox_top_px=130, motion_proxy=5.0, camera_move="pan left"
    ).facts
    assert sentence(facts, ["blue", "grey"]) == (
        "A wide video of 6.12 seconds, evenly lit and detailed, in blue and grey, with black bars above and below; "
        "the camera pans to the left and there is much motion."
    )


def test_unknown_facts_are_left_out_and_an_image_has_no_motion() -> None:
    assert sentence(request_of("a").facts, []) == "A wide video of 1 seconds."
    image = request_of("a", media_type="image", width=1080, height=1920, luma_mean=220.0, motion_proxy=9.0, camera_move="static").facts
    assert sentence(image, ["white"]) == "A tall still image, very bright, in white."


def test_raft_goes_before_the_proxy_and_no_motion_word_is_written() -> None:
    slow = sentence(request_of("a", motion_proxy=5.0, motion_raft=0.5).facts, [])
    assert slow == "A wide video of 1 seconds; there is little motion."
    assert "very low motion" not in slow


def test_colours_are_named_by_the_share_that_they_cover() -> None:
    picture = painted(RED, RED, RED, GREEN, GREEN, WHITE, BLUE, RED, RED, RED)  # red 0.6, green 0.2, white 0.1, blue 0.1
    assert dominant_colours(picture.reshape(-1, 3)) == ["red", "green"]
    assert dominant_colours(np.full((4, 3), 128, np.uint8)) == ["grey"]


def test_bars_do_not_count_as_a_colour(tmp_path: Path) -> None:
    picture = painted(BLUE)
    picture[:90] = picture[-90:] = 0
    write_track(tmp_path, "s1", {"a": [picture]}, bars_px=(90, 90, 0, 0))
    assert AttributesCaptioner(tmp_path)([request_of("a")]) == [Caption("A wide video of 1 seconds, in blue.")]
    write_track(tmp_path, "s2", {"a": [picture]})
    assert AttributesCaptioner(tmp_path)([request_of("a", "s2")]) == [Caption("A wide video of 1 seconds, in black and blue.")]


def test_a_clip_without_track_or_key_frames_is_an_error_of_that_clip(tracks: Path) -> None:
    first, second, third = AttributesCaptioner(tracks)([request_of("a", "gone"), request_of("nobody"), request_of("b")])
    assert isinstance(first, StepError) and first.code == "no_track" and "detect_shots" in str(first)
    assert isinstance(second, StepError) and second.code == "no_key_frames"
    assert isinstance(third, Caption) and "green" in third.text


# checks


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (LONG, []),
        ("Red kite.", ["too_short"]),
        (" ".join(f"word{number}" for number in range(31)), ["too_long"]),
        ("the dog runs on and the dog runs on and the dog runs on", ["repeated"]),
        ("I\u2019m sorry, but I cannot describe these pictures for you.", ["refusal"]),
        ("Sure! A red kite climbs over a wheat field.", ["boilerplate"]),
        ("The video shows a red kite over a field.", ["boilerplate"]),
        ("A red kite over a field, see www.kites.example for more.", ["url"]),
    ],
)
def test_checks_flag_what_is_wrong(text: str, flags: list[str]) -> None:
    assert check_caption(Caption(text), min_words=5, max_words=30) == flags


def test_a_declared_refusal_is_flagged_whatever_its_words() -> None:
    assert check_caption(Caption(LONG, refused=True), 5, 30) == ["refusal"]


# sidecar


def beside(tmp_path: Path, **files: str) -> str:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text)
    return str(tmp_path / "talk.mp4")


def read_one(request: CaptionRequest) -> Caption | StepError:
    [answer] = SidecarCaptioner()([request])
    return answer


def test_the_sidecar_that_names_the_whole_file_goes_first(tmp_path: Path) -> None:
    uri = beside(tmp_path, talk__txt="stem text", talk__json='{"caption": "stem json"}')
    assert read_one(request_of("a", uri=uri)) == Caption("stem text", of="file")
    beside(tmp_path, talk__mp4__json='{"text": "file json"}')
    assert read_one(request_of("a", uri=uri)) == Caption("file json", of="file")
    beside(tmp_path, talk__mp4__txt="file text")
    assert read_one(request_of("a", uri=uri)) == Caption("file text", of="file")


def test_spans_describe_the_clip_that_they_overlap_most(tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 0.4, "text": "first"}, {"start": 0.4, "end": 3, "text": "second"}, {"start": 5, "end": 6, "text": "last"}]
    uri = beside(tmp_path, talk__json=json.dumps({"captions": spans}))
    assert read_one(request_of("a", uri=uri)) == Caption("second", of="clip")
    late = read_one(CaptionRequest("a", "s1", uri, 8_000_000, 9_000_000, {}))
    assert isinstance(late, StepError) and late.code == "no_sidecar"


@pytest.mark.parametrize("text", ["{", "[]", '"text"', '{"caption": 3}', '{"captions": [{"text": "x"}]}'])
def test_a_sidecar_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    answer = read_one(request_of("a", uri=beside(tmp_path, talk__json=text)))
    assert isinstance(answer, StepError) and answer.code == "bad_sidecar" and "talk.json" in str(answer)


def test_no_sidecar_says_where_it_looked_and_the_listing_follows_edits(tmp_path: Path) -> None:
    uri = str(tmp_path / "talk.mp4")
    answer = read_one(request_of("a", uri=uri))
    assert isinstance(answer, StepError) and answer.code == "no_sidecar" and "talk.mp4.txt" in str(answer)
    assert sidecar_listing([uri]) == []
    beside(tmp_path, talk__txt="one")
    before = sidecar_listing([uri])
    beside(tmp_path, talk__txt="longer")
    assert before != sidecar_listing([uri]) and before[0][0].endswith("talk.txt")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_table_describes_files_and_spans(tmp_path: Path, suffix: str) -> None:
    """Paths are relative to the table; the span that the clip (1-2 s) overlaps most goes before the whole file's caption."""
    rows = [
        {"path": "talk.mp4", "caption": "all of it", "start": None, "end": None},
        {"path": "talk.mp4", "caption": "first", "start": 0.0, "end": 1.2},
        {"path": "talk.mp4", "caption": "second", "start": 1.2, "end": 3.0},
        {"path": str(tmp_path / "other.mp4"), "caption": "another", "start": None, "end": None},
    ]
    table = tmp_path / f"captions.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), table)
    elif suffix == "csv":
        csv.write_csv(pa.Table.from_pylist(rows), table)
    else:
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = SidecarCaptioner(table)

    def ask(name: str, start_s: float, end_s: float) -> Caption | StepError:
        [answer] = read([CaptionRequest("a", "s1", str(tmp_path / name), round(start_s * 1e6), round(end_s * 1e6), {})])
        return answer

    assert ask("talk.mp4", 1, 2) == Caption("second", of="clip")
    assert ask("talk.mp4", 0, 1) == Caption("first", of="clip")
    assert ask("talk.mp4", 5, 6) == Caption("all of it", of="file")
    assert ask("other.mp4", 0, 9) == Caption("another", of="file")
    answer = ask("none.mp4", 0, 1)
    assert isinstance(answer, StepError) and answer.code == "no_sidecar"
    before = sidecar_listing([], str(table))
    table.touch()
    assert before != sidecar_listing([], str(table))


def test_a_table_that_cannot_be_used_is_said_before_the_work_starts(tmp_path: Path) -> None:
    for name, text, message in (
        ("none.csv", None, "does not exist"),
        ("notes.txt", "x", r"is none of \.parquet, \.csv, \.jsonl"),
        ("odd.csv", "path,words\na,b\n", "none of the columns caption, text, prompt; it has path, words"),
        ("odd.parquet", "no parquet", "cannot be read"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(CaptionSetupError, match=message):
            check_backend(CaptionConfig(backend="sidecar", table=str(tmp_path / name)))


# http


class Asking:
    """A captioner of a server, whose pauses are noted instead of slept."""

    def __init__(self, chat: Chat, tracks: Path, **config: Any) -> None:
        settings = {"backend": "http", "model": "eye-7b", "base_url": chat.url, "attempts": 3, "timeout_s": 10.0, **config}
        self.config = CaptionConfig.model_validate(settings)
        self.pauses: list[float] = []
        self.captioner = HttpCaptioner(self.config, tracks, tracks.parent / "cache", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def __call__(self, *clip_ids: str) -> list[Caption | StepError]:
        return self.captioner([request_of(clip_id) for clip_id in clip_ids])


def code_of(answer: Caption | StepError) -> str:
    assert isinstance(answer, StepError), answer
    return answer.code


def test_key_frames_prompt_and_key_reach_the_server(tracks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with chat_server(lambda number, body: said(LONG)) as chat:
        assert Asking(chat, tracks, prompt="What is it?")("b") == [Caption(LONG)]
    [body], [headers] = chat.requests, chat.headers
    assert headers["Authorization"] == "Bearer sk-secret"
    assert body["model"] == "eye-7b"
    first, second, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert first == second and first["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert base64.b64decode(first["image_url"]["url"].split(",")[1]) == jpeg(painted(GREEN))


def test_429_waits_as_long_as_the_server_asks(tracks: Path) -> None:
    busy = Answer(429, b"slow down", {"Retry-After": "7"})
    with chat_server(lambda number, body: busy if number == 0 else said(LONG)) as chat:
        asking = Asking(chat, tracks)
        assert asking("a") == [Caption(LONG)]
    assert asking.pauses == [7.0]


def test_server_errors_are_tried_again_with_growing_pauses_of_the_clip(tracks: Path) -> None:
    with chat_server(lambda number, body: Answer(503, b"loading")) as chat:
        first, again, other = (Asking(chat, tracks, attempts=4) for _ in range(3))
        [error] = first("a")
        assert code_of(error) == "caption_server_error" and "loading" in str(error) and "4 attempts" in str(error)
        assert len(chat.requests) == 4
        again("a"), other("b")
    assert len(first.pauses) == 3 and first.pauses == again.pauses != other.pauses
    for pause, middle in zip(first.pauses, (0.5, 1.0, 2.0), strict=True):
        assert middle / 2 <= pause <= middle * 1.5


def test_a_trickling_answer_ends_at_the_deadline(tracks: Path) -> None:
    with chat_server(lambda number, body: Answer(200, b" " * 40, trickle_s=0.05)) as chat:
        [error] = Asking(chat, tracks, attempts=1, timeout_s=0.3)("a")
    assert code_of(error) == "caption_timeout" and "0.3 s" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>"),
        Answer(200, b"[]"),
        Answer(200, b'{"choices": []}'),
        said(None),
        said("  "),
        said(7),
        said(LONG, "tool_calls"),
    ],
    ids=["html", "list", "no choice", "null", "blank", "number", "tool call"],
)
def test_malformed_answers_are_asked_again_and_then_an_error(tracks: Path, answer: Answer) -> None:
    with chat_server(lambda number, body: answer) as chat:
        [error] = Asking(chat, tracks)("a")
    assert code_of(error) == "caption_malformed" and len(chat.requests) == 3
    with chat_server(lambda number, body: answer if number == 0 else said(LONG)) as chat:
        assert Asking(chat, tracks)("a") == [Caption(LONG)]


def test_refusals_length_and_parts_are_told_apart(tracks: Path) -> None:
    script = [
        said(None, refusal="I'd rather not."),
        said("", "content_filter"),
        said("A red", "length"),
        said([{"type": "text", "text": LONG}]),
    ]
    with chat_server(lambda number, body: script[number]) as chat:
        answers = [Asking(chat, tracks)(clip_id)[0] for clip_id in "abcd"]
    assert answers == [
        Caption("I'd rather not.", refused=True), Caption("(content filter)", refused=True), Caption("A red", "length"), Caption(LONG),
    ]  # fmt: skip


def test_a_rejected_request_is_final_and_never_shows_the_key(tracks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with chat_server(lambda number, body: Answer(400, b"bad image; your key sk-secret")) as chat:
        [error] = Asking(chat, tracks)("a")
    assert code_of(error) == "caption_rejected" and len(chat.requests) == 1
    assert "sk-secret" not in str(error) and "bad image" in str(error)


def test_answers_are_kept_by_clip_model_prompt_and_frames(tracks: Path) -> None:
    with chat_server(lambda number, body: said(f"{LONG} {number}")) as chat:
        first = Asking(chat, tracks)("a", "b")
        assert Asking(chat, tracks)("a", "b") == first and len(chat.requests) == 2
        Asking(chat, tracks, prompt="Other?")("a")
        Asking(chat, tracks, model="eye-8b")("a")
        assert len(chat.requests) == 4
        write_track(tracks, "s1", {"a": [painted(BLUE)]})
        Asking(chat, tracks)("a")
        assert len(chat.requests) == 5


def test_a_refusal_is_not_kept(tracks: Path) -> None:
    with chat_server(lambda number, body: said("I'm sorry, I can't help.") if number == 0 else said(LONG)) as chat:
        assert Asking(chat, tracks)("a") == [Caption("I'm sorry, I can't help.")]
        assert Asking(chat, tracks)("a") == [Caption(LONG)]


def test_a_kept_answer_cut_short_is_asked_again(tracks: Path) -> None:
    with chat_server(lambda number, body: said(LONG)) as chat:
        Asking(chat, tracks)("a")
        [kept] = (tracks.parent / "cache").rglob("*.json")
        kept.write_text("")
        assert Asking(chat, tracks)("a") == [Caption(LONG)] and len(chat.requests) == 2


def test_requests_in_flight_are_as_many_as_allowed(tracks: Path) -> None:
    together = threading.Barrier(3)  # every answer waits until three questions are there at once

    def answer(number: int, body: dict[str, Any]) -> Answer:
        together.wait(timeout=20)
        return said(LONG)

    with chat_server(answer) as chat:
        assert Asking(chat, tracks, max_in_flight=3)(*"abcdef") == [Caption(LONG)] * 6
    assert chat.most_at_once == 3


def test_a_server_that_cannot_be_used_is_a_setup_mistake(tracks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with chat_server(lambda number, body: Answer(401)) as chat:
        config = Asking(chat, tracks).config
        with pytest.raises(CaptionSetupError, match=KEY_VARIABLE) as refused:
            check_backend(config)
        assert "sk-secret" not in str(refused.value)
    with pytest.raises(CaptionSetupError, match="no caption server answers"):
        check_backend(config)
    for missing in ({"model": None}, {"base_url": None}, {"base_url": "127.0.0.1:8000"}):
        with pytest.raises(CaptionSetupError, match=r"caption\.backend=http wants"):
            captioner_lineage(config.model_copy(update=missing), "track")


# lineage and local models


def test_lineage_follows_what_decides_the_caption_and_nothing_else() -> None:
    config = CaptionConfig(backend="http", model="eye-7b", base_url="http://a/v1")
    run = captioner_lineage(config, "track").run_id
    for same in ({"base_url": "http://b/v1"}, {"max_in_flight": 1}, {"timeout_s": 1.0}, {"attempts": 1}):
        assert captioner_lineage(config.model_copy(update=same), "track").run_id == run
    for other in ({"model": "eye-8b"}, {"prompt": "?"}, {"max_words": 9}):
        assert captioner_lineage(config.model_copy(update=other), "track").run_id != run
    assert captioner_lineage(config, "other track").run_id != run


def test_a_missing_local_model_names_folder_and_files(tmp_path: Path) -> None:
    config = CaptionConfig(backend="transformers", model=str(tmp_path / "eye"))
    with pytest.raises(CaptionSetupError, match=r"eye is no folder; it must hold config\.json, \*\.safetensors"):
        captioner_lineage(config, "track")
    (tmp_path / "eye").mkdir()
    (tmp_path / "eye" / "config.json").write_text("{}")
    with pytest.raises(CaptionSetupError, match=r"eye lacks \*\.safetensors, tokenizer\.json or tokenizer_config\.json"):
        captioner_lineage(config, "track")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of random weights with 16 channels and a byte tokenizer, saved as any model is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
    from transformers.models.llava import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    words = ["<pad>", "<s>", "</s>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", bos_token="<s>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=len(words), num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, **size)
    vision = CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **size)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    ).save_pretrained(folder)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}: "
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28)
    LlavaProcessor(
        pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template
    ).save_pretrained(folder)
    return folder


def test_a_local_model_describes_clips_and_says_when_it_was_cut_off(
    tracks: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from curation.captions import local_model

    torch.set_num_threads(1)
    monkeypatch.setattr(local_model, "MAX_NEW_TOKENS", 24)
    captioner = local_model.TransformersCaptioner(tiny_model, "What is it?", tracks, "cpu")
    first, missing, again = captioner([request_of("a"), request_of("nobody"), request_of("a")])
    assert isinstance(first, Caption) and first.finish == "length" and first.text  # random weights: nonsense
    assert first == again and code_of(missing) == "no_key_frames"
    other = captioner([request_of("c")])[0]
    assert isinstance(other, Caption) and other.text != first.text  # it looks at the pictures

    said_letter = next(letter for letter in first.text if letter.isascii() and letter.isprintable())
    captioner._model.generation_config.eos_token_id = [captioner._processor.tokenizer(said_letter)["input_ids"][-1]]
    [ended] = captioner([request_of("a")])
    assert isinstance(ended, Caption) and ended.finish == "stop" and len(ended.text) < len(first.text)


def test_changed_weights_change_the_lineage_of_a_local_model(tiny_model: Path) -> None:
    config = CaptionConfig(backend="transformers", model=str(tiny_model))
    lineage = captioner_lineage(config, "track")
    assert lineage.model == "tiny-llava" and captioner_lineage(config, "track").run_id == lineage.run_id
    weights = tiny_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert captioner_lineage(config, "track").run_id != lineage.run_id
