"""Which frames of a file are taken, and what is wrong with files."""

import os

import cv2
import numpy as np
import pytest
from conftest import write_video

from action_attention.errors import UserError
from data_prep.videos import UnusableVideoError, VideoReader, frame_reader, list_videos, read_frames


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


def test_variable_rate_file_is_sampled_by_its_time_stamps(tmp_path, monkeypatch):
    """Stamps of a file that shows 10 frames in its first second and 40 in its second."""
    write_video(tmp_path / "a.avi", 40)
    stamps = iter([*(100.0 * n for n in range(10)), *(1000 + 25.0 * n for n in range(30))])

    class Capture:
        def __init__(self, *arguments):
            self._capture = cv2_capture(*arguments)
            self.grab, self.retrieve = self._capture.grab, self._capture.retrieve
            self.isOpened, self.release = self._capture.isOpened, self._capture.release

        def get(self, key):
            return next(stamps) if key == cv2.CAP_PROP_POS_MSEC else self._capture.get(key)

    cv2_capture = cv2.VideoCapture
    monkeypatch.setattr("data_prep.videos.cv2.VideoCapture", Capture)
    # all ten slow frames, then the first at or after each fifteenth of a second
    later = [10 + -(-k * 1000 // (15 * 25)) for k in range(12)]
    assert taken_frames(tmp_path / "a.avi", 15.0) == [*range(10), *[n for n in later if n < 40]]
