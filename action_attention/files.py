"""Files' checksums, and folders that one process at a time may write to."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from action_attention.errors import UserError


def file_sha256(path: Path, skip: int = 0, on_block: Callable[[], object] = lambda: None) -> str:
    """Hexadecimal sha256 of a file's bytes after the first `skip`; `on_block` is called after every MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
            on_block()
    return digest.hexdigest()


@contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Makes the folder and holds it for this process. Raises UserError with the text `busy` if another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        yield
