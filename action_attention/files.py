"""Files' checksums, what files and names may be, and folders that one process at a time may write to."""

import errno
import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from action_attention.errors import UserError, remedy


def file_sha256(path: Path, skip: int = 0, on_block: Callable[[], object] = lambda: None) -> str:
    """Hexadecimal sha256 of a file's bytes after the first `skip`; `on_block` is called after every MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
            on_block()
    return digest.hexdigest()


def check_plain(path: Path) -> None:
    """Raises UserError if it is a pipe, a device or a folder, or a link to one: reading it might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a plain file; remove it")


def check_tree(folder: Path) -> None:
    """Raises UserError if there is anything but plain files and folders: through a link, others would be written to."""
    folders = [folder]
    while folders:
        with suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:  # others may remove what they had there
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(f"{entry.path} is a link, a pipe or a device; remove it, or put a plain file there")


# two parts without a slash, of text that UTF-8 can hold, neither of them . or ..
_NAME = re.compile("(?!\\.{1,2}/)[^/\0\ud800-\udfff]+/(?!\\.{1,2}\\Z)[^/\0\ud800-\udfff]+")


def check_name(name: object) -> None:
    """Raises ValueError unless a video's name is `<class>/<file>`, which stays inside of the videos' folder."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"expected <class>/<file> as video, found {name!r:.200}")


@contextmanager
def written_whole(path: Path, part: Path | None = None) -> Iterator[Path]:
    """The file beside `path` to write to: it takes that name when the block ends, and goes if it is left early.

    `part` is its name where several processes may write to `path` at once.
    """
    part = part or path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, whose content is in `folder` when the block ends; if it is left early, there is nothing.

    Raises UserError if `folder` is there and not an empty folder, or cannot be written to.
    """
    is_new = not os.path.lexists(folder)
    try:
        if not is_new and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is there already and not an empty folder; give another --output")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
            yield Path(part)
            for path in Path(part).iterdir():
                path.replace(folder / path.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror or error}); {remedy(error)}") from error
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # if nothing came into it


@contextmanager
def locked(folder: Path, busy: str, shared: bool = False) -> Iterator[None]:
    """Makes the folder and holds it for this process. Raises UserError with the text `busy` if another holds it.

    Several processes may hold it as `shared`, which keeps out only those that want it alone; where the file system has
    no such locks, nobody is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    try:  # to be read too, which network file systems want for shared locks
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "w")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is not a plain file; remove it") from error
        raise
    with lock:
        if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
            raise UserError(f"{path} is not a plain file; remove it")
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError:
            if not shared:
                raise
        yield
