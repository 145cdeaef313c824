"""The page to drop a video on: its server, asked as browsers and others would, and the page in a browser."""

import base64
import configparser
import http.client
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import forked
import numpy as np
import pytest
from conftest import CLASSES, encode, small_network

from action_attention.errors import UserError
from action_attention.heatmaps import overlay
from action_attention.metrics import VideoPrediction
from action_attention.runs import Run
from data_prep import recognizer as recognizer_module
from data_prep.live import LiveRecognizer
from data_prep.recognizer import Recognizer, Result
from experiments import jobs as jobs_module
from experiments import serve
from experiments.jobs import CAMERAS, KEPT, WAITING, read_jpeg
from experiments.server import THREADS, Server
from tests.browsers import chromium, in_browser
from tests.test_training import config, make_run

ME, OTHER = "0123456789abcdef", "fedcba9876543210"
LIMIT = 40_000_000  # bytes of a video
SIDE = 64
FRAMES = 6
HOSTILE = (
    "../../x.avi",
    '"><script>window.owned=1</script>.mp4',
    "<img src=x onerror=window.owned=1>",
    "it's 100%\n;.avi",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """The recommended kind of model, which takes motion maps too."""
    made = config(scores="location", motion_prior=True, epochs=1)
    return make_run(tmp_path_factory.mktemp("runs") / "run <b>", cache_folder, split, made)


@pytest.fixture(scope="module")
def recognizer(run_dir):
    return Recognizer(Run.open(run_dir), network=small_network())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    encode(path, 45)
    return path


class Gate:
    """Stands in for a recognizer: it answers when it is told to."""

    def __init__(self):
        self.opened, self.seen = threading.Semaphore(0), []

    def predict(self, path, scratch):
        assert path.parent == scratch
        with path.open("rb") as file:
            self.seen.append(file.read(10))
        assert self.opened.acquire(timeout=60)
        maps = np.full((FRAMES, 2, 2), 0.25)
        said = VideoPrediction("a/b", None, np.full((FRAMES, 2), [0.75, 0.25]), maps)
        frame = np.full((48, 64, 3), 90, np.uint8)
        return Result(said, ["a", "b"], "mode", 15.0, lambda: iter([frame] * FRAMES))


@contextmanager
def serving(folder, *recognizers, page="{{nonce}}"):
    """A server at work on these recognizers."""
    folder.mkdir(exist_ok=True)
    server = Server(("127.0.0.1", 0), list(recognizers), page, folder, LIMIT)
    for function in (partial(server.serve_forever, 0.05), server.jobs.work):
        threading.Thread(target=function, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def gated(tmp_path, gate):
    with serving(tmp_path / "files", gate) as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory, recognizer):
    with serving(tmp_path_factory.mktemp("files"), recognizer) as server:
        yield server


def ask(server, method, path, body=None, client=ME, **headers):
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    about = {"X-Client": client} if client else {}
    about |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, about)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.headers["Content-Type"] == "application/json":
        content = json.loads(content)
    return answer.status, answer.headers, content


def status_of(server, identity):
    return ask(server, "GET", f"/videos/{identity}")[2]


def give(server, video, client=ME, run=0):
    """The identity of a video that must be taken."""
    status, _, content = ask(server, "POST", f"/runs/{run}/videos", video, client)
    assert status == 201, content
    return content["video"]


def until(condition):
    """Its first value that is true; it must come."""
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def finished(server, identity):
    return until(lambda: (said := status_of(server, identity))["state"] in ("done", "failed") and said)


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Videos


def test_the_page_says_what_predict_says_and_the_overlay_is_one_that_browsers_play(served, recognizer, clip, tmp_path):
    identity = give(served, clip.read_bytes())
    said, expected = finished(served, identity)["result"], recognizer.predict(clip)
    assert (said["answer"], said["top5"]) == (expected.answer, expected.top5)
    assert said["confidence"] == expected.confidence
    keys = ("start", "end", "action", "confidence")
    assert [{key: part[key] for key in keys} for part in said["segments"]] == list(map(asdict, expected.segments))
    assert (said["frames"], said["seconds"]) == (23, pytest.approx(1.5, abs=0.05))
    status, headers, content = ask(served, "GET", f"/videos/{identity}/overlay.mp4")
    assert (status, headers["Content-Type"], headers["Accept-Ranges"]) == (200, "video/mp4", "bytes")
    (tmp_path / "overlay.mp4").write_bytes(content)
    with av.open(str(tmp_path / "overlay.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert len(list(file.decode(stream))) == 23
    for asked, start, end in (("0-", 0, None), ("10-99", 10, 100), ("-50", len(content) - 50, None)):
        part = ask(served, "GET", f"/videos/{identity}/overlay.mp4", Range=f"bytes={asked}")
        assert (part[0], part[2]) == (206, content[start:end])
    assert ask(served, "GET", f"/videos/{identity}/overlay.mp4", Range=f"bytes={len(content)}-")[0] == 416
    whole = ask(served, "GET", f"/videos/{identity}/overlay.mp4", Range="bytes=0-1,5-6")
    assert (whole[0], whole[1]["Content-Range"], whole[2]) == (200, None, content)


def test_nothing_of_a_video_is_left_but_its_overlay_and_that_only_until_the_next(gated, gate, tmp_path):
    first = give(gated, b"first")
    assert until(lambda: gate.seen) == [b"first"]
    assert files_of(tmp_path / "files") == [f"{first}/video"]
    gate.opened.release()
    finished(gated, first)
    until(lambda: files_of(tmp_path / "files") == [f"{first}/overlay.mp4"])
    second = give(gated, b"second")
    assert ask(gated, "GET", f"/videos/{first}")[0] == 404
    ask(gated, "DELETE", f"/videos/{second}", client=OTHER)  # not theirs
    assert status_of(gated, second)["state"] in ("queued", "running")
    gate.opened.release()
    finished(gated, second)
    ask(gated, "DELETE", f"/videos/{second}")
    until(lambda: not any((tmp_path / "files").iterdir()))


def test_overlays_do_not_pile_up(gated, gate, tmp_path):
    for number in range(KEPT + 3):
        gate.opened.release()
        finished(gated, give(gated, b"video", f"{number:016}"))
    until(lambda: len(list((tmp_path / "files").iterdir())) == KEPT)


def test_one_video_at_a_time_the_others_wait_in_their_order(gated, gate):
    clients = [f"{number:016}" for number in range(WAITING)]
    waiting = [give(gated, client.encode(), client) for client in clients]
    until(lambda: gate.seen)
    assert [status_of(gated, each)["before"] for each in waiting] == [0, *range(1, WAITING)]
    assert [status_of(gated, each)["state"] for each in waiting] == ["running", *["queued"] * (WAITING - 1)]
    status, _, content = ask(gated, "POST", "/runs/0/videos", b"again", clients[3])
    assert (status, content["error"][:23]) == (409, "one video at a time: wa")
    status, _, content = ask(gated, "POST", "/runs/0/videos", b"one more", OTHER)
    assert (status, content["error"]) == (503, f"{WAITING} videos are waiting already; try again in a minute")
    ask(gated, "DELETE", f"/videos/{waiting[2]}", client=clients[2])  # while it waits
    ask(gated, "DELETE", f"/videos/{waiting[0]}", client=clients[0])  # while it runs
    assert status_of(gated, waiting[1])["before"] == 1  # what runs still does
    assert status_of(gated, waiting[3])["before"] == 2
    gate.opened.release(WAITING)
    assert {finished(gated, each)["state"] for each in (waiting[1], *waiting[3:])} == {"done"}
    assert gate.seen == [client[:10].encode() for number, client in enumerate(clients) if number != 2]


def test_progress_is_the_share_of_frames_that_are_drawn(tmp_path, gate, monkeypatch):
    shares, counted = [], jobs_module.Jobs._counted

    def watch(self, job, frames, count):
        for frame in counted(self, job, frames, count):
            shares.append(job.share)
            yield frame

    monkeypatch.setattr(jobs_module.Jobs, "_counted", watch)
    gate.opened.release()
    with serving(tmp_path / "files", gate) as server:
        finished(server, give(server, b"video"))
    assert shares == [number / FRAMES for number in range(1, FRAMES + 1)]


@pytest.mark.parametrize("content", [b"no video", b"\0" * 5000, b"RIFF\x10\0\0\0AVI LIST"])
def test_a_broken_file_gives_one_sentence_without_a_path(served, content):
    said = finished(served, give(served, content))
    assert said["state"] == "failed"
    assert re.fullmatch(
        r"this file cannot be used \([^/\n]+\); give a video that FFmpeg can decode", said["error"], re.DOTALL
    )


def test_what_fails_unexpectedly_is_one_sentence_and_the_next_video_is_looked_at(gated, gate, monkeypatch):
    logged = []
    monkeypatch.setattr(jobs_module.logging, "exception", logged.append)
    predict, gate.predict = gate.predict, lambda *_, **__: 1 / 0
    said = finished(gated, give(gated, b"video"))
    assert said["error"] == "something went wrong; the terminal that serves this page says what"
    assert len(logged) == 1
    gate.predict = predict
    gate.opened.release()
    assert finished(gated, give(gated, b"video"))["state"] == "done"


# What is refused


def raw(server, text):
    """What is answered to these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    return answer


def test_videos_are_bounded_before_and_while_they_come_and_one_that_ends_early_leaves_nothing(gated, gate, tmp_path):
    head = f"POST /runs/0/videos HTTP/1.1\r\nHost: localhost\r\nX-Client: {ME}\r\n".encode()
    too_large = f"Content-Length: {LIMIT + 1}\r\n\r\n".encode()
    answer = raw(gated, head + too_large)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"a video may have up to 40 MB" in answer
    for length in (b"", b"Content-Length: -1\r\n", b"Content-Length: 1e3\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert raw(gated, head + length + b"\r\n").startswith(b"HTTP/1.1 411 ")
    assert raw(gated, head + b"Content-Length: 0\r\n\r\n").endswith(b'{"error": "the file is empty"}')
    assert raw(gated, head + b"Content-Length: 1000\r\n\r\n" + b"x" * 900) == b""
    until(lambda: not any((tmp_path / "files").iterdir()))
    gate.opened.release()
    assert finished(gated, give(gated, b"the place is free again"))["state"] == "done"


def test_a_full_disk_is_one_sentence_and_the_place_is_free_again(gated, gate, tmp_path, monkeypatch):
    (tmp_path / "full").symlink_to("/dev/full")
    with monkeypatch.context() as full:
        full.setattr(jobs_module.Job, "video", tmp_path / "full")
        status, _, content = ask(gated, "POST", "/runs/0/videos", bytes(100_000))
    assert (status, content["error"]) == (507, "the video cannot be kept here (No space left on device)")
    gate.opened.release()
    assert finished(gated, give(gated, b"video"))["state"] == "done"


def test_a_video_is_never_in_memory_as_a_whole(gated, gate, tmp_path):
    video = tmp_path / "large"
    video.write_bytes(bytes(LIMIT))
    tracemalloc.start()
    with video.open("rb") as file:
        status, *_ = ask(gated, "POST", "/runs/0/videos", file, Content_Length=str(LIMIT))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 201
    assert peak < LIMIT / 20
    gate.opened.release()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "192.168.0.7"])
def test_an_address_is_a_host(gated, host):
    assert ask(gated, "GET", "/", Host=f"{host}:{gated.server_port}")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "evil@x"])
def test_a_name_that_was_made_to_lead_here_is_refused(gated, host):
    for method, path in (("GET", "/"), ("POST", "/runs/0/videos"), ("POST", "/runs/0/camera"), ("DELETE", "/camera")):
        status, _, content = ask(gated, method, path, b"x", Host=f"{host}:{gated.server_port}")
        assert (status, content["error"]) == (421, "open this page by its address; this server has no other name")


def test_what_another_page_asks_is_refused(gated, gate, tmp_path):
    own = f"http://127.0.0.1:{gated.server_port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", own.replace("http", "https"), f"{own}.evil"):
        for path in ("/runs/0/videos", "/runs/0/camera"):
            assert ask(gated, "POST", path, b"x", Origin=origin)[0] == 403
    for client in ("", "short", "<script>alert(1)</script>"):
        assert ask(gated, "POST", "/runs/0/videos", b"x", client)[0] == 403
    # what a browser asks before it sends such a header on another page's behalf
    assert ask(gated, "OPTIONS", "/runs/0/videos", Origin="http://evil.example")[0] == 501
    assert not any((tmp_path / "files").iterdir())
    status, headers, _ = ask(gated, "POST", "/runs/0/videos", b"x", Origin=own)
    assert status == 201
    assert not [name for name in headers if name.startswith("Access-Control")]
    gate.opened.release()


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/videos/..", "/videos/%2e%2e%2fvideo", "/videos/" + "a" * 22, "/videos/a/b/overlay.mp4",
     "/runs/0/videos", "//evil.example/", "/" + "x" * 3000],
)  # fmt: skip
def test_there_is_nothing_else(gated, path):
    assert ask(gated, "GET", path)[0] == 404


def test_connections_are_bounded(gated):
    """Those that say nothing hold no more than their number; the next ones are closed, until some end."""
    silent = [socket.create_connection(("127.0.0.1", gated.server_port)) for _ in range(THREADS)]
    with pytest.raises(OSError, match=r"closed connection|reset"):
        ask(gated, "GET", "/")
    for connection in silent:
        connection.close()

    def answers():
        try:
            return ask(gated, "GET", "/")[0] == 200
        except OSError:
            return False

    until(answers)


def test_there_are_no_other_runs(gated):
    for run in (1, 9999):
        assert (
            ask(gated, "POST", f"/runs/{run}/videos", b"x")[2]["error"] == "there is no such run here; reload the page"
        )


def test_the_page_runs_nothing_but_itself_and_is_in_no_others_frame(served):
    pages = [ask(served, "GET", "/") for _ in range(2)]
    policies = [headers["Content-Security-Policy"] for _, headers, _ in pages]
    for policy, (_, headers, nonce) in zip(policies, pages, strict=True):
        assert f"default-src 'none'; script-src 'nonce-{nonce.decode()}'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert len({*policies}) == 2


# Cameras


def jpeg_of(frame):
    return cv2.imencode(".jpg", frame)[1].tobytes()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [jpeg_of(rng.integers(0, 256, (48, SIDE, 3), np.uint8)) for _ in range(14)]


def step(server, jpeg, seconds=0.0, client=ME):
    status, _, content = ask(server, "POST", "/runs/0/camera", jpeg, client, X_Time=str(seconds))
    return status, content


def test_a_camera_is_told_what_a_live_recognizer_says_of_its_frames(served, recognizer, pictures):
    live, answers = LiveRecognizer(recognizer), 0
    for number, jpeg in enumerate(pictures):
        frame = read_jpeg(jpeg)
        expected = live.step(frame, number / 15)
        status, said = step(served, jpeg, number / 15)
        assert status == 200
        if expected is None:
            assert said == {}
            continue
        answers += 1
        assert (said["answer"], said["time"]) == (expected.result.answer, expected.time)
        assert said["confidence"] == pytest.approx(expected.result.confidence, abs=1e-5)
        assert [row["class"] for row in said["top5"]] == [row["class"] for row in expected.result.top5]
        shown = cv2.imdecode(np.frombuffer(base64.b64decode(said["picture"].partition(",")[2]), np.uint8), 1)
        drawn = overlay(expected.frame, expected.attention)[..., ::-1]
        np.testing.assert_array_equal(shown, cv2.imdecode(np.frombuffer(jpeg_of(drawn), np.uint8), 1))
    assert answers > 3
    assert step(served, pictures[0], 13.01 / 15) == (200, {})  # between two samples
    ask(served, "DELETE", "/camera")
    assert step(served, pictures[0], 0) == (200, {})  # the states are gone: a stream begins
    ask(served, "DELETE", "/camera")


@pytest.mark.parametrize(
    ("jpeg", "seconds", "sentence"),
    [
        (b"no picture", 0, "a frame must be a JPEG picture"),
        (cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes(), 0, "a frame must be a JPEG picture"),
        (jpeg_of(np.zeros((400, 400, 3), np.uint8))[:900], 0, "a frame must be a JPEG picture"),
        (jpeg_of(np.zeros((4, 1281, 3), np.uint8)), 0, "a frame may have 1280 pixels a side. Received: (1281, 4)"),
        (b"", 0, "a frame may have up to 1048576 bytes"),
        (bytes(1048577), 0, "a frame may have up to 1048576 bytes"),
        *((jpeg_of(np.zeros((4, 4, 3), np.uint8)), seconds, "say the frame's time in seconds in X-Time")
          for seconds in ("nan", "inf", "-1", "", "x")),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_read_are_refused(served, jpeg, seconds, sentence):
    status, content = step(served, jpeg, seconds)
    assert (status, content["error"]) == (413 if "bytes" in sentence else 400, sentence)
    assert not served.cameras._cameras


def test_cameras_are_bounded_and_one_that_is_silent_gives_its_place_back(served, pictures, monkeypatch):
    clients = [f"{number:016}" for number in range(CAMERAS + 1)]
    for client in clients[:-1]:
        assert step(served, pictures[0], client=client)[0] == 200
    status, content = step(served, pictures[0], client=clients[-1])
    assert (status, content["error"]) == (503, f"{CAMERAS} cameras are in use already; try again in a minute")
    monkeypatch.setattr(jobs_module, "IDLE_SECONDS", 0)
    assert step(served, pictures[0], client=clients[-1])[0] == 200
    assert [*served.cameras._cameras] == clients[-1:]
    served.cameras.stop(clients[-1])


def test_a_frame_that_comes_before_the_last_is_finished_is_refused(served, pictures, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def wait(self, frame, seconds):
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(LiveRecognizer, "step", wait)
    first = threading.Thread(target=step, args=(served, pictures[0]))
    first.start()
    assert begun.wait(60)
    status, content = step(served, pictures[1], 1)
    assert (status, content["error"]) == (429, "the previous frame is not finished")
    go_on.set()
    first.join()
    ask(served, "DELETE", "/camera")


def test_a_camera_that_is_turned_begins_anew(served, pictures):
    for number, jpeg in enumerate(pictures[:3]):
        step(served, jpeg, number / 15)
    upright = jpeg_of(np.zeros((SIDE, 48, 3), np.uint8))
    assert step(served, upright, 0.2) == (200, {})
    ask(served, "DELETE", "/camera")


# The program


@pytest.fixture
def program(run_dir, monkeypatch, capsys):
    """Runs it with flags, until it would look at videos. Gives the server's arguments and what was said."""
    started = []

    class Stopped:
        server_port = 8000

        def __init__(self, *arguments):
            started.append(arguments)
            self.jobs = SimpleNamespace(work=self.stop)
            self.serve_forever = self.shutdown = self.server_close = lambda: None

        def stop(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(serve, "Server", Stopped)
    monkeypatch.setattr(serve, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=signal.SIGTERM))
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: small_network())

    def call(**given):
        flags = {"run_dir": [str(run_dir)], "pretrained": None, "weights": None, "host": "127.0.0.1", "port": 8000,
                 "max_megabytes": 2}  # fmt: skip
        monkeypatch.setattr(serve.flags, "FLAGS", SimpleNamespace(**{**flags, **given}))
        serve.main()
        return started.pop(), capsys.readouterr()

    return call


def test_it_listens_on_this_machine_only_unless_told_otherwise(program, run_dir):
    (address, recognizers, page, folder, max_bytes), said = program()
    assert (address, max_bytes, len(recognizers)) == (("127.0.0.1", 8000), 2_000_000, 1)
    assert said.out == "http://127.0.0.1:8000/  (Ctrl-C ends it)\n"
    assert said.err.strip() == "stopped"
    assert not folder.exists()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [(run["name"], run["classes"]) for run in data["runs"]] == [(run_dir.name, list(CLASSES))]
    assert "<b>" not in page
    (address, *_), said = program(host="0.0.0.0")
    assert address == ("0.0.0.0", 8000)
    assert "WARNING: --host=0.0.0.0: whoever reaches this machine may use the page" in said.err
    for host in ("localhost", "127.0.0.5", "::1"):
        assert "WARNING" not in program(host=host)[1].err


def test_it_takes_runs_or_a_pretrained_model(program, run_dir):
    (_, recognizers, *_), _ = program(run_dir=[str(run_dir)] * 2)
    assert len(recognizers) == 2
    for given, count in (({"run_dir": []}, "neither is"), ({"pretrained": "jhmdb21"}, "both are")):
        with pytest.raises(UserError, match=f"^give --run_dir, a run of yours, or --pretrained .*; {count} given$"):
            program(**given)


def test_the_page_is_in_the_package():
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[1] / "setup.cfg")
    assert "serve.html" in settings["options.package_data"]["experiments"].split()


def test_a_port_that_is_taken_is_one_sentence(program, monkeypatch):
    monkeypatch.setattr(serve, "Server", Server)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = f"^--host=127.0.0.1 --port={port} cannot be listened at .*in use.*; give another --port$"
        with pytest.raises(UserError, match=sentence):
            program(port=port)


def end_at_work(port, video, number, folder):
    """In the program's process: gives it a video and ends it by a signal in the midst of that."""
    folder.mkdir()
    tempfile.tempdir = str(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control has it ignored
    recognizer_module.build_backbone = lambda *_: small_network()
    server = SimpleNamespace(server_port=port)

    def listens():
        try:
            return ask(server, "GET", "/")[0] == 200
        except OSError:
            return False

    def end():
        try:
            until(listens)
            give(server, video.read_bytes())
            until(lambda: any(folder.rglob("shard-*.part")))
            os.kill(os.getpid(), number)
        except BaseException:
            os._exit(9)

    threading.Thread(target=end, daemon=True).start()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ended_while_a_video_is_looked_at_it_leaves_no_file(run_dir, tmp_path, number, code):
    encode(tmp_path / "long.mp4", 3000)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    prepare = partial(end_at_work, port, tmp_path / "long.mp4", number, tmp_path / "temporary")
    done = forked.run("experiments.serve", f"--run_dir={run_dir}", f"--port={port}", prepare=prepare)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / "temporary").iterdir())


# The page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """With a camera that shows a film of its own."""
    film, size = tmp_path_factory.mktemp("camera") / "film.y4m", (96, 128)
    rng = np.random.default_rng(0)
    with film.open("wb") as file:
        file.write(f"YUV4MPEG2 W{size[1]} H{size[0]} F30:1 Ip A1:1 C420jpeg\n".encode())
        for _ in range(30):
            file.write(b"FRAME\n" + rng.integers(16, 236, 3 * size[0] * size[1] // 2, np.uint8).tobytes())
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
              f"--use-file-for-fake-video-capture={film}"]  # fmt: skip
    with chromium(*camera) as started:
        yield started


@pytest.fixture(scope="module")
def with_page(tmp_path_factory, recognizer):
    """Two runs to choose from."""
    page = serve.make_page([recognizer] * 2, LIMIT)
    with serving(tmp_path_factory.mktemp("served"), recognizer, recognizer, page=page) as server:
        yield server


@pytest.fixture
def open_page(browser, with_page):
    """Opens the page; everything but its server is out of reach, nothing may ask for it, nor complain."""
    url, asked, said, pages = f"http://127.0.0.1:{with_page.server_port}/", [], [], []

    def open_one(width=1280, **settings):
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        pages.append(page)
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(url)
        return page

    yield open_one
    for page in pages:
        assert page.evaluate("window.owned") is None
        page.close()
    assert [address for address in asked if not address.startswith((url, "data:", f"blob:{url}"))] == []
    assert said == []


def plays(page):
    """The overlay does: its time goes on, and it has a picture."""
    video = page.locator("#overlay")
    until(lambda: video.evaluate("video => video.currentTime > 0.2 && video.videoWidth >= 480 && !video.error"))
    return True


@in_browser
def test_an_upload_plays_beside_what_the_model_says(open_page, recognizer, clip):
    page, expected = open_page(), recognizer.predict(clip)
    page.set_input_files("#file-input", clip)
    page.locator("#overlay").wait_for(timeout=60_000)
    assert plays(page)
    assert page.locator("#answer").inner_text() == expected.answer
    assert page.locator("#sure").inner_text() == f"Confidence {int(100 * expected.confidence)} %, not calibrated"
    rows = [row.inner_text().split("\n") for row in page.locator("#top li").all()]
    assert [name for name, _ in rows] == [row["class"] for row in expected.top5]
    assert (
        page.locator("#meaning").inner_text().startswith("Mean probability over the frames; in the order of frames won")
    )
    assert page.locator("#file").inner_text() == "“clip.mp4”: 1.5 s, 23 frames looked at"
    parts = page.locator("#segments li").all_inner_texts()
    assert len(parts) == page.locator("#timeline button").count() == len(expected.segments)
    assert page.locator("#ticks").inner_text().split() == ["1x", "2x", "4x", "8x"]
    video = page.locator("#overlay")
    video.evaluate("video => { video.pause(); video.currentTime = 1; }")
    until(lambda: video.evaluate("video => !video.seeking && video.currentTime === 1"))  # needs parts of the file
    page.locator("#run").select_option("1")
    assert not page.locator("#seen").is_visible()


@in_browser
def test_names_are_text_and_a_broken_file_is_one_sentence(open_page, run_dir):
    page = open_page()
    assert page.locator("#run option").all_inner_texts() == [str(run_dir)] * 2  # "run <b>" of the same folder twice
    sentence = page.locator("#said")
    for name in (*HOSTILE, "y" * 300):
        page.set_input_files("#file-input", {"name": name, "mimeType": "video/mp4", "buffer": b"no video"})
        shown = name if len(name) <= 60 else "y" * 40 + "…" + "y" * 15
        until(partial(lambda shown: f"“{shown}”: this" in sentence.evaluate("said => said.textContent"), shown))
        assert re.fullmatch(
            r"“.*”: this file cannot be used \(.+\); give a video that FFmpeg can decode\.", sentence.inner_text()
        )
        until(lambda: not page.locator("#work").is_visible())
    assert page.locator("main script, main img:not(#picture, #scale)").count() == 0
    page.set_input_files("#file-input", {"name": "none.avi", "mimeType": "video/avi", "buffer": b""})
    assert sentence.inner_text() == "“none.avi” is empty; give a video."


@in_browser
def test_a_frame_that_arrives_after_the_camera_was_closed_leaves_none_open(open_page, with_page):
    page, late = open_page(390), []
    page.click("#live")
    page.locator("#picture").wait_for(timeout=60_000)
    page.route("**/runs/*/camera", lambda route: late.append(route))  # noqa: PLW0108 (a builtin is refused)
    until(lambda: page.wait_for_timeout(20) or late)
    page.click("#stop")
    until(lambda: not with_page.cameras._cameras)
    with page.expect_response("**/runs/*/camera"):
        late[0].continue_()
    until(lambda: page.wait_for_timeout(20) or not with_page.cameras._cameras)


@in_browser
def test_the_camera_gives_a_class_live_and_recorded(open_page, with_page):
    page = open_page(390)
    page.click("#live")
    page.locator("#picture").wait_for(timeout=60_000)
    assert page.locator("#answer").inner_text() in CLASSES
    pattern = r"Delay \d+ ms, of which the model \d+ ms; .*\d+ of \d+ frames dropped"
    assert re.fullmatch(pattern, page.locator("#measured").inner_text())
    assert page.locator("#picture").get_attribute("src").startswith("data:image/jpeg;base64,")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.click("#stop")
    until(lambda: not with_page.cameras._cameras)
    assert not page.locator("#seen").is_visible()
    page.click("#record")
    page.click("#start")
    page.wait_for_timeout(800)
    page.click("#stop")
    page.locator("#overlay:visible, #said:visible").wait_for(timeout=60_000)
    assert page.locator("#said").inner_text() == ""
    assert plays(page)
    assert page.locator("#answer").inner_text() in CLASSES
    assert page.locator("#file").inner_text().startswith("your recording: ")
