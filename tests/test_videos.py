"""Which frames of a file are taken, and what is wrong with files."""

import os

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from conftest import encode, mux_sound, write_video

from action_attention.errors import UserError
from data_prep.videos import UnusableVideoError, VideoReader, frame_reader, list_videos, passed_over, read_frames


def taken_frames(path, fps):
    """Numbers of the source frames that sampling took, read back from the frames' red channel."""
    return [round(float(frame[..., 0].mean()) / 6) for frame in VideoReader(path, fps, size=32)]


@pytest.mark.parametrize(
    ("source_fps", "expected"),
    [
        (30.0, list(range(0, 40, 2))),
        (29.97, list(range(0, 40, 2))),
        (60.0, list(range(0, 40, 4))),
        (15.0, list(range(40))),
        (10.0, list(range(40))),  # slower than asked for: every frame once, none twice
        (25.0, [-(-5 * k // 3) for k in range(24)]),  # the first frame at or after k / 15 s
    ],
)
def test_sampling_to_15_fps_takes_frames_by_time(tmp_path, source_fps, expected):
    write_video(tmp_path / "a.avi", 40, source_fps)
    assert taken_frames(tmp_path / "a.avi", 15.0) == expected


def test_sampled_frame_rate_is_what_the_file_can_give(tmp_path):
    for fps, expected in ((30.0, 15.0), (10.0, 10.0)):
        write_video(tmp_path / "a.avi", 40, fps)
        reader = VideoReader(tmp_path / "a.avi", 15.0)
        frames = list(reader)
        assert reader.info.sampled_fps == pytest.approx(expected, rel=1e-6)
        assert (reader.info.decoded_frames, reader.info.announced_frames) == (40, 40)
        assert reader.info.sampled_frames == len(frames)


def test_frames_are_rgb(tmp_path):
    """write_video paints blue 40, green 120 and red 6 n."""
    write_video(tmp_path / "a.avi", 31)
    frame = list(VideoReader(tmp_path / "a.avi", 15.0, size=None))[15]
    assert frame.shape == (48, 64, 3)
    np.testing.assert_allclose(frame.mean((0, 1)), [180, 123.5, 43.5], atol=4)


def test_truncated_file_gives_what_is_there_and_says_so(tmp_path):
    write_video(tmp_path / "a.avi", 40)
    whole = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "b.avi").write_bytes(whole[: len(whole) // 2])
    reader = VideoReader(tmp_path / "b.avi", 15.0)
    frames = list(reader)
    assert 0 < len(frames) < 20
    assert reader.info.announced_frames == 40 > reader.info.decoded_frames


@pytest.mark.parametrize("content", [b"", b"no video at all", b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(200)])
def test_junk_is_unusable_not_empty(tmp_path, content):
    (tmp_path / "a.avi").write_bytes(content)
    with pytest.raises(UnusableVideoError):
        read_frames(tmp_path / "a.avi", 15.0)
    assert frame_reader(tmp_path, 15.0)("a.avi") is None


class AppearingStream:
    """What PyAV does if a stream appears within a file, and the memory after its list of streams is not 0."""

    def __init__(self, container):
        self._container = container

    def demux(self, stream):
        yield from self._container.demux(stream)
        raise IndexError("list index out of range")

    def __getattr__(self, name):
        return getattr(self._container, name)


def test_a_stream_that_appears_within_a_file_costs_no_frame(tmp_path):
    encode(tmp_path / "a.ts", 40)
    whole, reader = VideoReader(tmp_path / "a.ts", 15.0), VideoReader(tmp_path / "a.ts", 15.0)
    reader._container = AppearingStream(reader._container)
    assert np.array_equal(list(reader), list(whole))
    assert reader.info == whole.info


def test_names_with_punctuation_open(tmp_path):
    for name in ("100%d_(a)_!&#'+@.avi", "Größe [x] 1.avi"):
        write_video(tmp_path / "wave" / "plain.avi", 10)
        (tmp_path / "wave" / "plain.avi").rename(tmp_path / "wave" / name)
        assert len(read_frames(tmp_path / "wave" / name, 15.0)) == 5


def test_listing_is_sorted_by_class_and_name_whatever_the_folder_order(tmp_path):
    for name in ("b/2.avi", "a/z.MP4", "b/10.mkv", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == ["a/z.MP4", "b/10.mkv", "b/2.avi"]
    with pytest.raises(UserError, match="is not a folder"):
        list_videos(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no videos"):
        list_videos(tmp_path / "a")


def test_a_name_that_is_not_utf8_is_listed_as_text_and_cannot_be_opened(tmp_path):
    (tmp_path / "a").mkdir()
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a/caf\xe9.avi")
    write_video(tmp_path / "a" / "x.avi", 8)
    (tmp_path / "a" / "x.avi").rename(path)
    assert list_videos(tmp_path) == ["a/caf\\xe9.avi"]
    with pytest.raises(UnusableVideoError, match="its name is not UTF-8; rename it"):
        VideoReader(path, 15.0)


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:9,\nb.avi\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile b.avi\n"])
def test_a_playlist_with_a_videos_name_opens_nothing_else(tmp_path, text):
    write_video(tmp_path / "b.avi", 8)
    (tmp_path / "a.avi").write_text(text)
    with pytest.raises(UnusableVideoError, match="cannot be opened as a video"):
        VideoReader(tmp_path / "a.avi", 15.0)


def test_variable_rate_file_is_sampled_by_its_time_stamps_and_is_whole(tmp_path):
    """10 frames in its first second, 30 in the next 0.75 s: their number is not the average rate times the duration."""
    encode(tmp_path / "a.mkv", 40, stamps=[*(0.1 * n for n in range(10)), *(1 + 0.025 * n for n in range(30))])
    # all ten slow frames, then the first at or after each fifteenth of a second
    later = [10 + -(-k * 1000 // (15 * 25)) for k in range(12)]
    reader = VideoReader(tmp_path / "a.mkv", 15.0, size=32)
    reds = [float(frame[..., 0].mean()) for frame in reader]
    assert reader.info.source_frames == [*range(10), *[n for n in later if n < 40]]
    np.testing.assert_allclose(reds, [6 * n for n in reader.info.source_frames], atol=12)
    assert (reader.info.decoded_frames, reader.info.announced_frames) == (40, 40)
    assert not reader.info.remarks(15.0)


INTERLACED = {
    "h264.mp4": ("libx264", {"x264-params": "tff=1"}),
    "h264.mkv": ("libx264", {"x264-params": "bff=1"}),
    "mpeg2.mpg": ("mpeg2video", {"flags": "+ilme+ildct"}),
    "mpeg2.ts": ("mpeg2video", {"flags": "+ilme+ildct"}),
    "mpeg4.avi": ("mpeg4", {"flags": "+ilme+ildct"}),
}


@pytest.mark.parametrize("name", INTERLACED)
def test_interlaced_video_shows_what_was_filmed(tmp_path, name):
    codec, options = INTERLACED[name]
    encode(tmp_path / name, 40, codec=codec, options={**options, "b": "2000000"})
    reader = VideoReader(tmp_path / name, 30.0)
    frames = np.stack(list(reader))
    assert len(frames) == 40
    np.testing.assert_allclose(frames[..., 0].mean((1, 2)), [min(6 * n, 250) for n in range(40)], atol=9)
    np.testing.assert_allclose(frames[..., 1].mean((1, 2)), 90, atol=6)
    assert not reader.info.remarks(30.0)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx265"), ("mkv", "libsvtav1"), ("webm", "libvpx-vp9"), ("mov", "prores_ks"), ("wmv", "wmv2"),
     ("flv", "flv"), ("3gp", "h263"), ("ogv", "libtheora"), ("m4v", "mpeg4"), ("ts", "libx264"), ("mxf", "mpeg2video")],
)  # fmt: skip
def test_codecs_and_containers(tmp_path, suffix, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    sizes = {"h263": (176, 144)}
    encode(
        tmp_path / f"a.{suffix}", 20, 25 if codec == "mpeg2video" else 30, codec, size=sizes.get(codec, (64, 64)),
        pix_fmt="yuv422p10le" if codec == "prores_ks" else "yuv420p", options={"b": "2000000"},
    )  # fmt: skip
    frames = np.stack(read_frames(tmp_path / f"a.{suffix}", 30.0))
    assert len(frames) == 20
    np.testing.assert_allclose(frames[..., 0].mean((1, 2)), [6 * n for n in range(20)], atol=12)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_is_upright(tmp_path, rotation):
    """The darker half is on the left of the coded frame; a display matrix turns it counterclockwise."""
    encode(tmp_path / "a.mp4", 8, rotation=rotation)
    reader = VideoReader(tmp_path / "a.mp4", 30.0)
    green = next(iter(reader))[..., 1].astype(int)
    assert green.shape == ((48, 64) if rotation == 180 else (64, 48)) == (reader.info.height, reader.info.width)
    dark = {90: green[-20:], 180: green[:, -20:], 270: green[:20]}[rotation]
    np.testing.assert_allclose(dark, 60, atol=8)
    assert green.mean() == pytest.approx(90, abs=4)


def test_what_is_doubtful_is_said(tmp_path):
    def remarks(name, **options):
        encode(tmp_path / name, **options)
        reader = VideoReader(tmp_path / name, 15.0)
        list(reader)
        return reader.info.remarks(15.0)

    assert remarks("still.mp4", frames=20, still=True) == ["all its 10 sampled frames are the same picture"]
    assert remarks("one.mp4", frames=1) == ["has a single frame"]
    assert remarks("slow.mp4", frames=8, stamps=[1000.0 * n for n in range(8)]) == [
        "shows 0.001 frames/s by its time stamps, where 15 are sampled"
    ]
    assert remarks("ten.mp4", frames=20, fps=10) == []
    assert remarks("good.mp4", frames=20) == []


def test_sound_and_cover_art_are_no_video(tmp_path):
    for name, cover in (("sound.mp4", False), ("cover.mp4", True)):
        with av.open(str(tmp_path / name), "w") as container:
            sound = container.add_stream("aac", rate=44100)
            picture = container.add_stream("mjpeg", rate=1, width=64, height=48, pix_fmt="yuvj420p") if cover else None
            if cover:
                picture.disposition = Disposition.attached_pic
                container.mux(picture.encode(av.VideoFrame(64, 48, "yuvj420p")))
                container.mux(picture.encode(None))
            mux_sound(container, sound)
    with pytest.raises(UnusableVideoError, match="has no pictures, only sound"):
        VideoReader(tmp_path / "sound.mp4", 15.0)
    with pytest.raises(UnusableVideoError, match="has no moving pictures, only cover art"):
        VideoReader(tmp_path / "cover.mp4", 15.0)


def test_files_that_are_passed_over_are_named(tmp_path):
    for name in (
        "a/x.avi",
        "a/x.M4V",
        "a/notes.txt",
        "a/.hidden.avi",
        "a/deep/y.mp4",
        "a/deep/z.txt",
        "top.mkv",
        "README",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos(tmp_path) == ["a/x.M4V", "a/x.avi"]
    assert {name: why.split(";")[0].split(" (")[0] for name, why in passed_over(tmp_path).items()} == {
        "a/deep/y.mp4": "not <class>/<video>",
        "a/notes.txt": "no video by its name",
        "top.mkv": "not <class>/<video>",
    }


@pytest.mark.parametrize(("size", "rotation", "expected"), [
    ((192, 108), 0, (54, 96)), ((108, 192), 0, (96, 54)), ((192, 108), 90, (96, 54)), ((90, 66), 0, (66, 90)),
])  # fmt: skip
def test_frames_of_at_most_so_many_pixels_are_the_same_ones_smaller(tmp_path, size, rotation, expected):
    encode(tmp_path / "a.mp4", 12, size=size, rotation=rotation)
    whole, small = (VideoReader(tmp_path / "a.mp4", 15.0, longest=longest) for longest in (None, 96))
    for large, little in zip(whole, small, strict=True):
        assert little.shape == (*expected, 3)
        resized = cv2.resize(large, little.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(resized.astype(int) - little).mean() < 3
    assert small.info.sample_times == whole.info.sample_times
