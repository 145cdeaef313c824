"""What is said of a file's bytes."""

import hashlib
from collections.abc import Callable
from pathlib import Path


def file_sha256(path: Path, skip: int = 0, on_block: Callable[[], object] = lambda: None) -> str:
    """Hexadecimal sha256 of a file's bytes after the first `skip`; `on_block` is called after every MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while block := file.read(1 << 20):
            digest.update(block)
            on_block()
    return digest.hexdigest()
