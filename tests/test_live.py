"""A stream before a model: what it says frame by frame, sources that do not wait, and what is dropped."""

import http.server
import resource
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_frames
from scipy.special import softmax

from action_attention.errors import UserError
from action_attention.models import build_model
from action_attention.registry import Config
from data_prep import cameras
from data_prep.cameras import Newest, is_live, open_source
from data_prep.flow import MotionMaps, network_pictures
from data_prep.live import WARM_UP, LiveRecognizer
from data_prep.videos import VideoReader, resize

FPS = 15.0


def make_recognizer(network, name, streams=("rgb",), **settings):
    """A run's model and backbone, of weights that nothing has trained."""
    config = Config.of(name, **settings)
    own = {key: value for key, value in settings.items() if key != "clip_length"}
    model = build_model(name, 3, cube_shape=network.cube_shape, **own)
    return SimpleNamespace(
        model=model, config=config, fps=FPS, networks=dict.fromkeys(streams, network), classes=["a", "b", "c"],
        of_run={"calibration": None, "box_tau": None},
    )  # fmt: skip


def make_frames(count, side=64):
    """A bright square that wanders over noise."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 60, (count, side, side, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[10 + number : 30 + number, 5 + 2 * number : 25 + 2 * number] += 150
    return frames


def inputs_of(frames, recognizer, network):
    """The model's inputs of all frames, made as `predict` makes them of frames in memory."""
    cubes, motion = {}, MotionMaps(network.cube_shape[:2])
    for name, stream in zip(("features", "flow"), recognizer.networks, strict=False):
        motion = MotionMaps(network.cube_shape[:2])
        pictures = list(network_pictures(iter(frames), stream, motion))
        cubes[name] = np.concatenate([network(resize(picture, network.input_size)[None]) for picture in pictures])[None]
    maps = {"motion": motion.all()[None]} if recognizer.config.settings.takes_motion else {}
    return {**cubes, **maps, "mask": np.ones((1, len(frames)), bool)}


def part(inputs, first, end):
    return {name: value[:, first:end] for name, value in inputs.items()}


@pytest.mark.parametrize(
    ("name", "streams", "settings"),
    [
        ("alstm", ("rgb",), {"scores": "motion", "centre_prior": True, "motion": "difference"}),
        ("alstm", ("rgb", "flow"), {"fusion": "early"}),
        ("alstm", ("rgb",), {"normalize": "sqrt_l2", "motion": "difference"}),
        ("conv_alstm", ("flow",), {"motion_prior": True}),
    ],
)
def test_a_stream_says_what_the_steps_over_its_features_say(name, streams, settings, network):
    """States are from the first frames, and begin anew after a clip's length from the mean of these frames."""
    length, count = 12, 27
    recognizer = make_recognizer(network, name, streams, clip_length=length, lstm_units=4, **settings)
    frames, live = make_frames(count), LiveRecognizer(recognizer)
    seen = [each for number, frame in enumerate(frames) if (each := live.step(frame, number / FPS))]
    late = name == "conv_alstm" or "flow" in streams or settings.get("scores") == "motion"
    inputs, model = inputs_of(frames, recognizer, network), recognizer.model
    states, logits, maps = model.first_states(part(inputs, 0, WARM_UP)), [], []
    for first, end in ((0, length), (length, 2 * length), (2 * length, count - late)):
        if first:  # the window of the last frames, the one that is next among them
            fresh = model.first_states(part(inputs, first + 1 - length, first + 1))
            states = {**fresh, "before": states["before"]}
        outputs, states = model.step(part(inputs, first, end), states)
        logits.append(outputs["logits"][0])
        maps.append(outputs["attention"][0])
    probabilities, maps = softmax(np.concatenate(logits), axis=-1), np.concatenate(maps)
    assert [each.time for each in seen] == [number / FPS for number in range(WARM_UP - 1, count - late)]
    for each, number in zip(seen, range(WARM_UP - 1, count - late), strict=True):
        np.testing.assert_array_equal(each.frame, frames[number])
        np.testing.assert_allclose(each.attention, maps[number], atol=1e-5)
        window = slice(max(0, number + 1 - length), number + 1)
        np.testing.assert_allclose(each.result.probabilities, probabilities[window], atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "attentive_pool"])
def test_a_model_without_memory_sees_the_last_frames_as_a_clip(name, network):
    recognizer = make_recognizer(network, name, clip_length=5)
    frames, live = make_frames(8), LiveRecognizer(recognizer)
    inputs = inputs_of(frames, recognizer, network)
    for number, frame in enumerate(frames):
        seen, first = live.step(frame, number / FPS), max(0, number - 4)
        outputs = recognizer.model(part(inputs, first, number + 1))
        expected = softmax(np.array(outputs["logits"][0]), axis=-1)
        np.testing.assert_allclose(seen.result.probabilities, expected, atol=1e-5)
        np.testing.assert_allclose(seen.attention, outputs["attention"][0, -1], atol=1e-5)


def test_only_sampled_frames_are_wanted(network):
    live, wanted = LiveRecognizer(make_recognizer(network, "softmax")), []
    for number in range(12):
        if live.wants(number / 30):
            wanted.append(number)
            live.step(make_frames(1)[0], number / 30)
    assert wanted == [0, 2, 4, 6, 8, 10]


def test_frames_that_nobody_reads_in_time_are_dropped_and_counted():
    """Of 30 frames a second 15 are sampled; the reader comes when all are over."""
    frames = ((number / 30, np.full((1, 1, 3), number, np.uint8)) for number in range(20))
    with Newest(frames, FPS) as source:
        source._thread.join()
        shots = list(source)
    assert [(shot.frame.max(), shot.time) for shot in shots] == [(18, 18 / 30)]
    assert source.dropped == 9


def test_a_reader_that_is_fast_enough_gets_every_sampled_frame():
    read = threading.Semaphore(1)

    def frames():
        for number in range(20):
            if number % 2 == 0:
                read.acquire()
            yield number / 30, np.full((1, 1, 3), number, np.uint8)

    numbers = []
    with Newest(frames(), FPS) as source:
        for shot in source:
            numbers.append(shot.frame.max())
            read.release()
    assert (numbers, source.dropped) == ([0, 2, 4, 6, 8, 10, 12, 14, 16, 18], 0)


def test_what_a_source_raises_is_raised_at_the_reader():
    def frames():
        yield 0.0, np.zeros((1, 1, 3), np.uint8)
        raise UserError("the cable was pulled")

    with pytest.raises(UserError, match="cable was pulled"), Newest(frames(), FPS) as source:
        list(source)


def test_a_source_is_ended_with_its_reader():
    """A camera is let go of."""
    ended = threading.Event()

    def frames():
        try:
            for number in range(1_000_000):
                yield number / 30, np.zeros((1, 1, 3), np.uint8)
        finally:
            ended.set()

    with Newest(frames(), FPS) as source:
        next(iter(source))
    assert ended.is_set()
    assert not source._thread.is_alive()


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only while somebody sleeps."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(cameras.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr(cameras.time, "sleep", lambda seconds: setattr(now, "seconds", now.seconds + seconds))
    return now


def test_a_file_plays_at_its_own_speed(clock, tmp_path):
    write_frames(tmp_path / "film.avi", make_frames(10), fps=20.0)
    expected = list(VideoReader(tmp_path / "film.avi", 20.0))
    for number, (at, frame) in enumerate(open_source(str(tmp_path / "film.avi"))):
        assert at == pytest.approx(number / 20)
        assert clock.seconds == pytest.approx(100 + number / 20)
        np.testing.assert_array_equal(frame, expected[number])
    assert number == 9
    with pytest.raises(UserError, match=r"none\.avi cannot be used \(.*give a video that FFmpeg can decode"):
        next(open_source(str(tmp_path / "none.avi")))


@pytest.fixture
def server(tmp_path):
    """A folder on loopback; gives its address."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_an_address_is_a_source(server, clock, tmp_path):
    write_frames(tmp_path / "film.mkv", make_frames(6), fps=20.0)
    expected = list(VideoReader(tmp_path / "film.mkv", 20.0))
    shown = list(open_source(f"{server}/film.mkv"))
    np.testing.assert_allclose([at for at, _ in shown], np.arange(6) / 20, atol=0.001)  # Matroska counts milliseconds
    for (_, frame), wanted in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(frame, wanted)


def test_what_an_address_gives_opens_nothing_on_this_machine(server, tmp_path):
    write_frames(tmp_path / "secret.ts", make_frames(3), codec="MPEG")
    inside = f"file://{tmp_path}/secret.ts"
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inside}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{inside}'\n")
    for name in ("list.m3u8", "list.ffconcat", "absent.mp4"):
        with pytest.raises(UserError, match=r"cannot be opened as a video \(.*check the address"):
            next(open_source(f"{server}/{name}"))


def test_a_camera_is_a_source_and_let_go_of(monkeypatch):
    class Camera:
        released = False

        def __init__(self, number):
            self.number, self.left = number, 3

        def isOpened(self):
            return self.number == 0

        def read(self):
            self.left -= 1
            return (self.left >= 0, np.full((2, 2, 3), (1, 2, 3), np.uint8))

        def release(self):
            Camera.released = True

    monkeypatch.setattr(cameras.cv2, "VideoCapture", Camera)
    frames = [frame for _, frame in open_source("camera:0")]
    assert len(frames) == 3
    np.testing.assert_array_equal(frames[0][0, 0], (3, 2, 1))  # RGB
    assert Camera.released
    with pytest.raises(UserError, match="camera:7 cannot be opened; is it connected, and free"):
        next(open_source("camera:7"))


def test_what_is_live():
    for source in ("camera:0", "rtsp://host/1", "https://host/a.mp4", "udp://@:1234"):
        assert is_live(source)
    for source in ("clip.avi", "camera:front", "file:///etc/passwd", "concat:a|b", "data://x", "0"):
        assert not is_live(source)


@pytest.mark.slow
def test_nothing_grows_with_the_length_of_a_stream(network):
    recognizer = make_recognizer(network, "alstm", clip_length=20, lstm_units=8, scores="motion", motion="difference")
    live, frames = LiveRecognizer(recognizer), make_frames(16)

    def peak_after(first, end):
        for number in range(first, end):
            live.step(frames[number % len(frames)], number / FPS)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    settled = peak_after(0, 2_000)
    assert peak_after(2_000, 10_000) < settled + 8  # MiB: a frame's cube alone would take 8,000 * 50 kB
