"""Probe and read_clip: exact times, upright pictures with square pixels, named outcomes."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from generated_films import CORPUS, moving, write_film

from curation.video import Geometry, MediaError, Picture, decode_media, open_media, picture_of, probe, read_clip, resize

REAL_OR_HOSTILE = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")

HOSTILE = {
    "audio_init_only.mp4": "no_video_stream",
    "audio_only.mp4": "no_video_stream",
    "chunk_out_of_range.mp4": "invalid_container",
    "empty.mp4": "empty_file",
    "encrypted_init_only.mp4": "encrypted",
    "text_named.mp4": "not_media",
    "truncated_no_moov.mp4": "truncated",
}


def ramp(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frame k is grey of value 40 + 4 k, so a frame says its own number."""
    return [np.full((height, width, 3), 40 + 4 * k, np.uint8) for k in range(num_frames)]


def numbers(clip: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 40) / 4) for frame in clip]


def test_probe_tells_what_the_film_is(tmp_path: Path) -> None:
    found = probe(str(write_film(tmp_path / "a.mp4", ramp(30), frame_rate_hz=25)))
    assert (found.media_type, found.codec, found.width, found.height) == ("video", "h264", 64, 48)
    assert (found.frame_rate_hz, found.declared_frames, found.packets) == (25.0, 30, 30)
    assert found.duration_s == pytest.approx(1.2)
    assert not (found.variable_frame_rate or found.hdr or found.full_range)


def test_of_several_streams_the_largest_picture_is_read(tmp_path: Path) -> None:
    """Small, large, and a cover that is larger still but no film."""
    path = tmp_path / "several.mp4"
    with av.open(str(path), "w") as container:
        streams = []
        for index, (width, height) in enumerate([(64, 48), (128, 96), (32, 32)]):
            streams.append(container.add_stream("libx264", rate=25))
            streams[index].width, streams[index].height, streams[index].pix_fmt = width, height, "yuv420p"
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 256, 256, "yuvj420p", av.stream.Disposition.attached_pic
        for frame in range(5):
            for stream in [*streams, *([cover] if frame == 0 else [])]:
                picture = np.full((stream.height, stream.width, 3), 40 + 4 * frame, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in [*streams, cover]:
            container.mux(stream.encode(None))
    found = probe(str(path))
    assert (found.codec, found.width, found.height, found.packets) == ("h264", 128, 96, 5)
    with open_media(str(path)) as (container, stream):
        assert [event.frame.width for event in decode_media(container, stream) if event.frame is not None] == [128] * 5


def test_a_codec_that_does_not_exist_is_named(tmp_path: Path) -> None:
    """What fuzzing found: one broken letter of the codec's name in the header, and there is no decoder."""
    film = write_film(tmp_path / "a.mp4", ramp(5))
    film.write_bytes(film.read_bytes().replace(b"avc1", b"avcZ").replace(b"avcC", b"avcY"))
    with pytest.raises(MediaError, match="no decoder for") as caught:
        probe(str(film))
    assert caught.value.code == "no_decoder"


def test_frames_are_those_on_show_at_the_wanted_times(tmp_path: Path) -> None:
    """24 fps read at 8 Hz: every third frame. From 0.25 s on that is frame 6, 9, 12."""
    film = str(write_film(tmp_path / "a.mp4", ramp(30)))
    clip, times = read_clip(film, 250_000, 1_000_000, 8, 3, 48, 64)
    assert numbers(clip) == [6, 9, 12]
    assert times.tolist() == [250_000, 375_000, 500_000]


def test_a_frame_rate_that_does_not_divide_shows_the_latest_frame(tmp_path: Path) -> None:
    """10 fps read at 8 Hz: 0, 125, 250, 375 ms show the frames that began at 0, 100, 200, 300 ms."""
    film = str(write_film(tmp_path / "a.mp4", ramp(10), frame_rate_hz=10))
    clip, times = read_clip(film, 0, 1_000_000, 8, 4, 48, 64)
    assert numbers(clip) == [0, 1, 2, 3]
    assert times.tolist() == [0, 100_000, 200_000, 300_000]


def test_too_short_a_span_is_named(tmp_path: Path) -> None:
    film = str(write_film(tmp_path / "a.mp4", ramp(24)))
    with pytest.raises(MediaError, match="last 1 s") as caught:
        read_clip(film, 0, 1_000_000, 8, 9, 48, 64)
    assert caught.value.code == "too_few_frames"
    with pytest.raises(MediaError, match="of 9 frames"):
        read_clip(film, 500_000, 3_000_000, 8, 9, 48, 64)


def test_the_picture_covers_the_size_and_is_cropped_at_its_centre(tmp_path: Path) -> None:
    """A 64 x 48 picture, left third red: at 48 x 48 the crop takes columns 8 to 56, so red ends at column 13 of 48."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :21] = (255, 0, 0)
    film = str(write_film(tmp_path / "a.mp4", [frame] * 3))
    clip, _ = read_clip(film, 0, 100_000, 24, 1, 48, 48)
    assert clip.shape == (1, 48, 48, 3)
    red = clip[0, 24, :, 0].astype(int) > 128
    assert abs(int(red.sum()) - 13) <= 1
    assert abs(clip[0, 24, 3].astype(int) - [255, 0, 0]).max() < 12, "BT.709 comes back as it was"


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_rotated_films_come_out_upright(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """The bright corner stored at the top left is shown at the top right after a quarter turn clockwise."""
    frame = np.full((48, 64, 3), 20, np.uint8)
    frame[:16, :16] = 230
    film = str(write_film(tmp_path / "a.mp4", [frame] * 3, rotation_deg=rotation))
    found = probe(film)
    assert found.rotation_deg == rotation
    assert (found.width, found.height) == ((48, 64) if rotation != 180 else (64, 48))
    clip, _ = read_clip(film, 0, 100_000, 24, 1, found.height, found.width)
    places = {(y, x): float(clip[0, y * 5 + 2 * (y == 0), x * 5 + 2 * (x == 0)].mean()) for y in (0, -1) for x in (0, -1)}
    assert max(places, key=lambda place: places[place]) == corner


def test_pixels_that_are_not_square_are_stretched() -> None:
    assert Geometry(0, 4 / 3).display_size(720, 540) == (960, 540)
    assert Geometry(0, 0.5).display_size(720, 540) == (720, 1080)
    assert Geometry(90, 2.0).display_size(100, 50) == (50, 200)


def test_full_range_and_limited_range_give_the_same_colours() -> None:
    """White and black are 255 and 0 in full range, 235 and 16 in limited range."""
    neutral = (np.full((1, 1), 128, np.uint8), np.full((1, 1), 128, np.uint8))
    for full_range, values in ((True, [0, 255]), (False, [16, 235])):
        rgb = Picture(np.array([values], np.uint8), neutral, full_range, (0.2126, 0.0722)).to_rgb(2, 1)
        assert rgb[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    cv2.imwrite(str(path), np.full((40, 60, 3), (10, 60, 200), np.uint8))
    found = probe(str(path))
    assert (found.media_type, found.width, found.height, found.duration_s) == ("image", 60, 40, 0.0)
    clip, times = read_clip(str(path), 0, 0, 8, 1, 20, 20)
    assert clip.shape == (1, 20, 20, 3)
    assert abs(clip[0, 10, 10].astype(int) - [200, 60, 10]).max() <= 3
    assert times.tolist() == [0]


def test_reading_from_the_middle_equals_reading_from_the_start(tmp_path: Path) -> None:
    film = str(write_film(tmp_path / "a.mp4", moving(48, 64, 60, (2, 1))))
    whole, _ = read_clip(film, 0, 2_500_000, 24, 60, 48, 64)
    part, times = read_clip(film, 1_500_000, 2_500_000, 24, 12, 48, 64)
    assert np.array_equal(part, whole[36:48])
    assert times[0] == 1_500_000


def test_where_a_seek_lands_too_late_the_file_is_read_from_its_beginning(tmp_path: Path) -> None:
    """The film starts at 1 s: nothing is on show at 0.5 s, and the first frame is shown for it."""
    path = tmp_path / "late.mkv"
    with av.open(str(write_film(tmp_path / "film.mp4", ramp(24)))) as film, av.open(str(path), "w") as late:
        stream = late.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = (stamp + round(1 / packet.time_base) for stamp in (packet.pts, packet.dts))
                packet.stream = stream
                late.mux(packet)
    clip, times = read_clip(str(path), 500_000, 3_000_000, 8, 2, 48, 64)
    assert numbers(clip) == [0, 0]
    assert len(set(times.tolist())) == 1


def test_what_cannot_be_opened_has_a_code(tmp_path: Path) -> None:
    film = write_film(tmp_path / "whole.mp4", ramp(30)).read_bytes()
    cases = {"empty.mp4": (b"", "empty_file"), "text.mp4": (b"hello\n", "not_media"), "cut.mp4": (film[: len(film) // 2], "truncated")}
    for name, (data, code) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MediaError) as caught:
            probe(str(tmp_path / name))
        assert caught.value.code == code
    with pytest.raises(MediaError) as caught:
        probe(str(tmp_path / "gone.mp4"))
    assert caught.value.code == "missing"


@pytest.mark.corpus
@REAL_OR_HOSTILE
def test_every_hostile_file_is_read_or_named() -> None:
    outcomes = {}
    for path in sorted((CORPUS / "hostile").iterdir()):
        try:
            probe(str(path))
        except MediaError as error:
            outcomes[path.name] = error.code
    assert outcomes == HOSTILE


@pytest.mark.corpus
@REAL_OR_HOSTILE
def test_probe_reads_what_the_corpus_says() -> None:
    def facts(name: str) -> tuple[object, ...]:
        found = probe(str(CORPUS / name))
        return found.width, found.height, found.rotation_deg, found.bit_depth, found.full_range, found.variable_frame_rate

    assert facts("hostile/rotation_90.mov") == (320, 568, 90, 8, False, False)
    assert facts("hostile/h265_10bit.mp4") == (200, 200, 0, 10, False, False)
    assert facts("hostile/full_range.mp4") == (1280, 720, 0, 8, True, False)
    assert facts("hostile/vfr_360p.mp4") == (640, 360, 0, 8, False, True)
    assert facts("real/photo_2725x2225.jpg")[:2] == (2725, 2225)


def test_a_third_is_the_area_reduction_to_the_last_bit() -> None:
    """1080 lines to 360 take a quicker way; other reductions OpenCV's own."""
    plane = np.random.default_rng(1).integers(0, 256, (54, 96), np.uint8)
    plane[:9, :9] = 255
    assert (resize(plane, 32, 18) == cv2.resize(plane, (32, 18), interpolation=cv2.INTER_AREA)).all()


def test_decoder_threads_change_no_picture(tmp_path: Path) -> None:
    film = str(write_film(tmp_path / "a.mp4", moving(96, 128, 30, (2, 1))))
    shown = []
    for threads in (1, 2):
        with open_media(film) as (container, stream):
            shown.append([picture_of(event.frame).luma.copy() for event in decode_media(container, stream, threads)])
            assert stream.codec_context.thread_count == threads
    assert len(shown[0]) == 30
    assert np.array_equal(*shown)
