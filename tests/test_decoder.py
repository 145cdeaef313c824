"""The decoder's process: its frames are `VideoReader`'s, and it never outlives or holds up its parent."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import SPOILT, write_video

from action_attention.errors import UserError
from data_prep.decoder import Decoder, DecoderCrashError
from data_prep.videos import UnusableVideoError, read_frames

ROOT = Path(__file__).parents[1]


@pytest.fixture
def spoilt(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SPOILT), prepend=os.pathsep)


def pids_of(decoder):
    return decoder._process and decoder._process.pid


def test_frames_are_those_of_the_reader_and_one_process_decodes_all(tmp_path):
    pids = set()
    with closing(Decoder(15.0, 32)) as decoder:
        for frames in (8, 40, 1):
            write_video(tmp_path / "a.avi", frames)
            np.testing.assert_array_equal(
                list(decoder.frames(tmp_path / "a.avi")), read_frames(tmp_path / "a.avi", 15.0, 32)
            )
            assert decoder.about["decoded_frames"] == frames
            pids.add(pids_of(decoder))
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.mkdir(), "is no file, but a folder, a pipe or a device"),
        (os.mkfifo, "is no file, but a folder, a pipe or a device"),  # to open it would wait forever
        (lambda path: path.symlink_to("nothing"), "does not exist under this name"),
        (lambda path: path.symlink_to(path), "does not exist under this name"),
        (lambda path: path.touch(), "cannot be opened as a video"),
    ],
)
def test_what_is_no_video_file_is_said_and_the_process_goes_on(tmp_path, make, reason):
    make(tmp_path / "bad.avi")
    write_video(tmp_path / "good.avi", 8)
    with closing(Decoder(15.0, 32)) as decoder:
        list(decoder.frames(tmp_path / "good.avi"))
        pid = pids_of(decoder)
        with pytest.raises(UnusableVideoError, match=reason):
            list(decoder.frames(tmp_path / "bad.avi"))
        assert len(list(decoder.frames(tmp_path / "good.avi"))) == 4
        assert pids_of(decoder) == pid


def test_a_crash_is_blamed_on_a_video_only_if_it_crashes_a_fresh_process(tmp_path, spoilt):
    write_video(tmp_path / "a.avi", 40)
    write_video(tmp_path / "b-crash-at-9.avi", 40)
    with closing(Decoder(15.0, 32)) as decoder:
        frames = decoder.frames(tmp_path / "a.avi")
        taken = [next(frames) for _ in range(7)]
        os.kill(pids_of(decoder), signal.SIGKILL)  # while it decodes a healthy video, but its first
        with pytest.raises(DecoderCrashError, match="SIGKILL"):
            list(frames)
        list(decoder.frames(tmp_path / "a.avi"))
        frames = decoder.frames(tmp_path / "a.avi")
        taken = [next(frames) for _ in range(7)]
        os.kill(pids_of(decoder), signal.SIGKILL)
        np.testing.assert_array_equal([*taken, *frames], read_frames(tmp_path / "a.avi", 15.0, 32))
        frames = decoder.frames(tmp_path / "b-crash-at-9.avi")
        assert len([next(frames) for _ in range(5)]) == 5
        with pytest.raises(DecoderCrashError, match=r"the decoder crashed \(SIGSEGV\)"):
            next(frames)


def test_an_exit_status_is_that_of_the_process_not_of_its_being_stopped(tmp_path, spoilt):
    write_video(tmp_path / "a-raise-at-3.avi", 8)
    with closing(Decoder(15.0, 32)) as decoder, pytest.raises(DecoderCrashError, match=r"crashed \(exit status 1\)"):
        list(decoder.frames(tmp_path / "a-raise-at-3.avi"))


def test_it_waits_for_a_slow_reader(tmp_path):
    write_video(tmp_path / "a.avi", 40)
    with closing(Decoder(30.0, 224, timeout=0.5)) as decoder:
        frames = decoder.frames(tmp_path / "a.avi")
        next(frames)
        time.sleep(1.2)
        assert len(list(frames)) == 39


def test_closing_does_not_wait_for_a_decoder_that_hangs(tmp_path, spoilt):
    write_video(tmp_path / "a-hang-at-2.avi", 8)
    decoder = Decoder(15.0, 32, timeout=600)
    frames = decoder.frames(tmp_path / "a-hang-at-2.avi")
    next(frames)
    timer = threading.Timer(0.5, decoder.close)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"crashed|closed|does not start"):
        next(frames)
    timer.join()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["a.avi", "a-hang-at-2.avi"])
def test_it_ends_when_its_parent_is_killed(tmp_path, name, spoilt):
    """Idle, it sees the end of its input; hanging in a video, its alarm ends it."""
    write_video(tmp_path / name, 8)
    code = (
        "import sys\nfrom pathlib import Path\nfrom data_prep.decoder import Decoder\n"
        "decoder = Decoder(15.0, 32, 2)\nframes = decoder.frames(Path(sys.argv[1]))\nnext(frames)\n"
        "print(decoder._process.pid, flush=True)\nlist(frames)\nsys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], cwd=ROOT, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_stands_still_is_replaced_and_no_frame_is_lost(tmp_path, monkeypatch):
    """SIGSTOP reaches neither its alarm nor its limit: the parent has to notice."""
    monkeypatch.setattr("data_prep.decoder.GRACE_SECONDS", 0.3)
    write_video(tmp_path / "a.avi", 40)
    whole = read_frames(tmp_path / "a.avi", 15.0, 224)
    with closing(Decoder(15.0, 224, timeout=1.0)) as decoder:
        list(decoder.frames(tmp_path / "a.avi"))
        frames = decoder.frames(tmp_path / "a.avi")
        taken = [next(frames) for _ in range(3)]
        stopped = pids_of(decoder)
        os.kill(stopped, signal.SIGSTOP)
        np.testing.assert_array_equal([*taken, *frames], whole)
        assert pids_of(decoder) != stopped
        assert not Path(f"/proc/{stopped}").exists()
        os.kill(pids_of(decoder), signal.SIGKILL)
        frames = decoder.frames(tmp_path / "a.avi")
        taken = [next(frames)]
        os.kill(pids_of(decoder), signal.SIGSTOP)  # a fresh process and its first video: it is blamed
        with pytest.raises(DecoderCrashError, match=r"the decoder's process stood still for 1 s"):
            list(frames)


@pytest.mark.parametrize(("killed", "works"), [(1, True), (2, True), (3, False)])
def test_a_process_that_is_killed_while_it_starts_is_started_again(tmp_path, monkeypatch, killed, works):
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        if len(started) <= killed:
            started[-1].kill()
        return started[-1]

    monkeypatch.setattr("data_prep.decoder.subprocess.Popen", start)
    write_video(tmp_path / "a.avi", 8)
    with closing(Decoder(15.0, 32)) as decoder:
        if works:
            assert len(list(decoder.frames(tmp_path / "a.avi"))) == 4
        else:
            with pytest.raises(UserError, match="the decoder's process does not start"):
                list(decoder.frames(tmp_path / "a.avi"))
    assert len(started) == min(killed + 1, 3)


def test_a_long_file_may_be_read_for_longer_than_a_frame_may_take(tmp_path, monkeypatch, spoilt):
    """Its checksum comes first; `WAIT` says that it is still being read."""
    write_video(tmp_path / "a.avi", 8)
    code = (
        "import sys, time\nimport data_prep.decoder as d\n"
        "def slow(path, on_block):\n    for _ in range(8):\n        time.sleep(0.3)\n        on_block()\n"
        "    return 'x'\n"
        "d.file_sha256 = slow\nd.main()"
    )
    popen = subprocess.Popen
    monkeypatch.setattr("data_prep.decoder.GRACE_SECONDS", 0.1)
    monkeypatch.setattr(
        "data_prep.decoder.subprocess.Popen",
        lambda command, **options: popen([command[0], "-c", code, *command[3:]], **options),
    )
    with closing(Decoder(15.0, 32, timeout=1.0)) as decoder:
        assert len(list(decoder.frames(tmp_path / "a.avi"))) == 4
        assert decoder.about["file_sha256"] == "x"
