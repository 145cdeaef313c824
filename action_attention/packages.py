"""A model to pass on: the four files of a pretrained model as a folder, a `.zip` of them, or a repository on the Hub.

Somebody else may have made it. Of an archive or repository only these files are read, as they stand there, and written
to a temporary folder under their own names: nothing is unpacked, no other name is looked at, and nothing is run.
"""

import importlib
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from action_attention.errors import UserError, first_line, remedy
from action_attention.files import check_plain, new_folder, written_whole
from action_attention.untrusted import check_stored

PARTS = ("run.json", "model.npz", "calibration.json", "card.md")
_ON_HUB = re.compile(r"hf:/+([\w.-]+/[\w.-]+)")  # of a Path, which has one slash


def write_package(files: dict[str, bytes], output: Path) -> None:
    """Writes the `PARTS` into a new or empty folder, or an archive if its name ends in `.zip`. Raises UserError."""
    if output.suffix != ".zip":
        with new_folder(output) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
        return
    if output.exists():
        raise UserError(f"{output} is there already; give another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(output) as part, zipfile.ZipFile(part, "w") as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # of no date, so that its bytes are always the same
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror or error}); {remedy(error)}") from error


def unpacked(address: Path) -> Path | None:
    """A temporary folder with the files of an archive or of `hf://owner/name`, which the caller removes; None if it is
    neither. Raises UserError if it holds no package, or cannot be had."""
    if on_hub := _ON_HUB.fullmatch(str(address)):
        files = _from_hub(on_hub[1])
    elif address.suffix == ".zip" and address.is_file():
        files = _from_zip(address)
    else:
        return None
    folder = Path(tempfile.mkdtemp(prefix="action_attention-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def _from_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(PARTS):
                raise ValueError(f"it must hold {', '.join(PARTS)} and nothing else")
            check_stored(archive, path.stat().st_size)
            return {name: archive.read(name) for name in PARTS}
    except Exception as error:  # zipfile raises whatever its parts raise
        raise UserError(
            f"{path} is not a package made by `make export FORMAT=package` ({first_line(error)}); get it again, or "
            "unpack it yourself and give the folder that holds its run.json"
        ) from error


def _from_hub(name: str) -> dict[str, bytes]:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(f"hf://{name} is fetched by huggingface_hub ({error}): pip install huggingface_hub") from error
    try:
        folder, files = Path(hub.snapshot_download(name, allow_patterns=list(PARTS))), {}
        for part in PARTS:
            check_plain(folder / part)  # there a link into the Hub's own cache
            files[part] = (folder / part).read_bytes()
        return files
    except Exception as error:  # the library raises whatever its parts raise
        raise UserError(
            f"hf://{name} cannot be obtained as a package ({first_line(error)}); check that it exists and holds "
            f"{', '.join(PARTS)}"
        ) from error
