"""Claims of names in a folder that several processes share."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import forked
import pytest

from action_attention.errors import UserError
from data_prep import workers
from data_prep.workers import SILENT_SECONDS, Worker


def hold(folder: Path, name: str) -> None:
    """A process that claims a name and stays."""
    worker = Worker(folder).__enter__()
    assert worker.claim(name)
    worker.part("something-").touch()
    time.sleep(600)


def started_holder(folder: Path, name: str):
    process = forked._context.Process(target=hold, args=(folder, name))
    process.start()
    while not list(folder.glob("something-*.part")):
        assert process.exitcode is None
        time.sleep(0.01)
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_claim_is_one_workers_until_it_is_released(tmp_path):
    with Worker(tmp_path) as first, Worker(tmp_path) as second:
        assert first.claim("a")
        assert first.claim("a")
        assert not second.claim("a")
        second.release("a")
        assert not second.claim("a")
        assert second.claim("b")
        first.release("a")
        assert second.claim("a")
        assert first.others() == [second.file.name]
    assert names(tmp_path) == []


@pytest.mark.parametrize("before", ["free", "of a dead worker"])
def test_of_many_that_claim_at_once_one_gets_it(tmp_path, before):
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        if before != "free":
            dead = {"name": "host-7-012345", "machine": workers._machine(), "pid": 2**22 + 1, "started": "1"}
            (folder / "a.lock").write_text(json.dumps(dead))
        barrier, got = threading.Barrier(6), []

        def claim(folder=folder, barrier=barrier, got=got):
            with Worker(folder) as worker:
                barrier.wait()
                got.append(worker.claim("a"))
                barrier.wait()

        threads = [threading.Thread(target=claim) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # all may be refused while one looks whether the dead worker's claim is still there; then the next try succeeds
        assert sum(got) <= 1
        with Worker(folder) as worker:
            assert worker.claim("a")
        assert names(folder) == []
    assert before != "free" or sum(got) == 1


def test_a_killed_process_holds_nothing_on_its_machine_and_its_files_go(tmp_path):
    process = started_holder(tmp_path, "a")
    with Worker(tmp_path) as worker:
        assert not worker.claim("a")
        os.kill(process.pid, signal.SIGSTOP)  # alive, if it does not stir
        assert not worker.claim("a")
        process.kill()
        process.join()
        assert worker.claim("a")
        assert names(tmp_path) == ["a.lock", worker.file.name]
    assert names(tmp_path) == []


def test_a_killed_process_without_a_claim_is_swept_away_too(tmp_path):
    process = started_holder(tmp_path, "a")
    process.kill()
    process.join()
    with Worker(tmp_path) as worker:
        worker.sweep()
        assert worker.others() == []
        assert names(tmp_path) == [worker.file.name]


def start_and_die(folder: Path) -> None:
    """A process that is killed as soon as it would give its file a name, its content written."""
    os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    Worker(folder).__enter__()


def test_a_worker_that_is_killed_while_it_starts_leaves_nothing(tmp_path):
    process = forked._context.Process(target=start_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == []


def test_a_file_system_without_unnamed_files_serves_too(tmp_path, monkeypatch):
    def refuse(path, flags, *_):
        assert flags & os.O_TMPFILE
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        worker = Worker(tmp_path).__enter__()
    assert json.loads(worker.file.read_text())["pid"] == os.getpid()
    assert worker.claim("a")
    worker.__exit__(None, None, None)
    assert names(tmp_path) == []


def test_a_worker_of_another_machine_is_dead_when_it_was_silent_by_the_file_systems_clock(tmp_path, monkeypatch):
    owner = {"name": "elsewhere-7-012345", "machine": "another boot", "pid": os.getpid(), "started": "1"}
    (tmp_path / "worker-elsewhere-7-012345.part").write_text(json.dumps(owner))
    (tmp_path / "a.lock").hardlink_to(tmp_path / "worker-elsewhere-7-012345.part")
    with Worker(tmp_path) as worker:
        now = worker.file.stat().st_mtime
        monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock does not matter
        os.utime(tmp_path / "a.lock", (now, now - SILENT_SECONDS / 2))
        worker.sweep()
        assert not worker.claim("a")
        assert worker.others() == ["worker-elsewhere-7-012345.part"]
        os.utime(tmp_path / "a.lock", (now, now - SILENT_SECONDS - 1))
        assert worker.claim("a")
        assert names(tmp_path) == ["a.lock", worker.file.name]


def test_a_worker_renews_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.02)
    with Worker(tmp_path) as worker:
        os.utime(worker.file, (0, 0))
        deadline = time.monotonic() + 60
        while worker.file.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_worker_that_was_taken_for_dead_says_so(tmp_path):
    def claim():
        with Worker(tmp_path) as worker:
            worker.file.unlink()
            worker.claim("a")

    with pytest.raises(UserError, match=r"silent for 180 s and was taken for dead; run the same command again"):
        claim()


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with (
        Worker(tmp_path) as worker,
        pytest.raises(UserError, match=r"without hard links, .*; give a folder on another one"),
    ):
        worker.claim("a")
