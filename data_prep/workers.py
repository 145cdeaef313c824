"""Processes on any machines that work in one folder: which of them has claimed what, and which are still alive.

This needs no `flock`, which not every network file system has. A worker is a file of its own, `worker-<its name>.part`,
whose time it renews every `BEAT_SECONDS`. Its claim of a name is a hard link to that file, `<name>.lock`, which a file
system makes for one worker only. On one machine a worker is dead when its process is; seen from another it is dead when
its file was not renewed for `SILENT_SECONDS`, by the clock of the file system. The temporary files of a dead worker go,
so that a worker that was only thought dead cannot finish what somebody else has taken over.
"""

import errno
import json
import os
import re
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from action_attention.errors import UserError
from action_attention.untrusted import read_json

BEAT_SECONDS = 15.0
POLL_SECONDS = 1.0
SILENT_SECONDS = 180.0  # more than a network file system shows a file's old time: 60 s by NFS's defaults
OWNER = {"name": str, "machine": str, "pid": int, "started": str}


class Worker:
    """This process among those that work in `folder`, as long as a `with` block lasts.

    Attributes:
        name: `<host>-<pid>-<random>`, which no other worker has: two containers may share their host's name.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.file = self.part("worker-")
        self._ended, self._beat = Event(), Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Worker":
        pid = os.getpid()
        owner = {"name": self.name, "machine": _machine(), "pid": pid, "started": _started(pid)}
        self._appear(json.dumps(owner))
        self._beat.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._ended.set()
        self._beat.join()
        if error and not self.file.exists() and self.folder.is_dir():
            raise UserError(
                f"this worker was silent for {SILENT_SECONDS:.0f} s and was taken for dead; run the same command "
                "again, which makes what is still missing"
            ) from error
        for lock in self._locks():
            self.release(lock.stem)
        self.file.unlink(missing_ok=True)

    def _appear(self, owner: str) -> None:
        """Makes this worker's file, whole at once where the file system can: a killed one leaves none without owner."""
        try:
            with os.fdopen(os.open(self.folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "w", encoding="utf-8") as file:
                file.write(owner)
                file.flush()
                os.link(f"/proc/self/fd/{file.fileno()}", self.file, src_dir_fd=file.fileno())  # which follows the link
        except OSError:  # such as NFS
            self.file.write_text(owner, encoding="utf-8")

    def part(self, what: str) -> Path:
        """A temporary file of this worker's."""
        return self.folder / f"{what}{self.name}.part"

    def claim(self, name: str) -> bool:
        """Claims a name in the folder; False if another worker, who is alive, has it.

        Raises UserError where the file system makes no hard links.
        """
        lock = self.folder / f"{name}.lock"
        if self._link(lock):
            return True
        dead = self._dead_owner(lock)
        taking_over = f"{name}-{dead}"  # of several workers that see it one does, whose claim of this decides
        if not dead or not self.claim(taking_over):
            return False
        if taken := self._dead_owner(lock) == dead:
            own = self.part(f"{lock.name}-")
            os.link(self.file, own)
            own.replace(lock)
            self._remove_parts(dead)
        self.release(taking_over)
        return taken

    def wait_for(self, name: str) -> None:
        """Claims a name as soon as no other worker has it."""
        while not self.claim(name):
            time.sleep(POLL_SECONDS)

    def release(self, name: str) -> None:
        lock = self.folder / f"{name}.lock"
        if self._is_own(lock):
            lock.unlink(missing_ok=True)

    def others(self) -> list[str]:
        """The files of the other workers in this folder that are alive."""
        files = self.folder.glob("worker-*.part")
        return sorted(file.name for file in files if file != self.file and not self._dead_owner(file))

    def sweep(self) -> None:
        """Removes what dead workers left: their claims and their temporary files."""
        for lock in self._locks():
            if self.claim(lock.stem):
                self.release(lock.stem)
        for file in self.folder.glob("worker-*.part"):
            if self._dead_owner(file):
                self._remove_parts(file.name.removeprefix("worker-").removesuffix(".part"))

    def _locks(self) -> list[Path]:
        return [path for path in self.folder.glob("*.lock") if path.stem != ".lock"]

    def _link(self, lock: Path) -> bool:
        try:
            os.link(self.file, lock)
        except FileExistsError:  # or the answer to a first try was lost on the network
            return self._is_own(lock)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise UserError(
                    f"{self.folder} is on a file system without hard links, which workers need to share it; give a "
                    "folder on another one (or extract without --partition)"
                ) from error
            raise
        return True

    def _is_own(self, lock: Path) -> bool:
        with suppress(FileNotFoundError):
            return lock.samefile(self.file)
        return False

    def _remove_parts(self, name: str) -> None:
        if re.fullmatch(r"[\w.-]+-[0-9]+-[0-9a-f]{6}", name):
            for part in self.folder.glob(f"*{name}.part"):
                part.unlink(missing_ok=True)

    def _dead_owner(self, file: Path) -> str:
        """The name of the worker whose file, or claim, this is, if it is dead; empty if it lives or is unknown."""
        try:
            owner = read_json(file, OWNER)
        except FileNotFoundError:
            return ""
        except ValueError:  # not written yet, or damaged
            owner = {"name": "unknown", "machine": ""}
        if owner["machine"] == _machine():
            return owner["name"] if _started(owner["pid"]) != owner["started"] else ""
        try:
            os.utime(self.file)  # the file system's clock, which need not be this machine's
            silent = self.file.stat().st_mtime - file.stat().st_mtime
        except FileNotFoundError:
            return ""
        return owner["name"] if silent > SILENT_SECONDS else ""

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a network that is away for a while
                os.utime(self.file)


def _machine() -> str:
    """What the processes have in common that see each other: the boot of their machine, and the container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot, which tells it from a later one of that number; empty if none is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
