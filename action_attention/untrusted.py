"""Readers for files that somebody may have sent: nothing is run, nothing waited for, no other file read, nothing
unpacked to more than the file's own size. They raise ValueError, or what their parts raise; the caller says which file
it was and what to do.
"""

import json
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from action_attention.files import check_plain

KINDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list",
    None: "null",
}  # fmt: skip
ROWS = 64  # of a table, read at once


def read_json(path: Path, wanted: Any) -> Any:
    """The content of a JSON file that is as `complaint` wants it."""
    check_plain(path)
    return parse_json(path.read_text(encoding="utf-8"), wanted)


def parse_json(text: str, wanted: Any) -> Any:
    """As `read_json`."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if wrong := complaint(content, wanted):
        raise ValueError(wrong)
    return content


def complaint(value: Any, wanted: Any, place: str = "") -> str:
    """What is wrong with a value from JSON, with its place; empty if nothing is.

    `wanted` is a type of `KINDS`; a set of possible values; a tuple of alternatives; a list, [of_each] or one entry for
    each place; or a dict: {"name": of_it, "perhaps?": of_it}, other names being free, or {str: of_each}.
    """
    if isinstance(wanted, tuple):
        said = [complaint(value, each, place) for each in wanted]
        return "" if "" in said else said[0]
    if isinstance(wanted, set):
        return "" if value in list(wanted) else f"{place or 'it'} must be one of {', '.join(sorted(wanted))}"
    kind: Any = type(wanted) if isinstance(wanted, dict | list) else wanted
    if not _is(value, kind):
        return f"{place or 'it'} must be {KINDS[kind]}"
    within = f"{place}." if place else ""
    parts: list[tuple] = []
    if isinstance(wanted, list):
        each = wanted * len(value) if len(wanted) == 1 else wanted
        if len(each) != len(value):
            return f"{place} must have {len(each)} entries"
        parts = [(value[number], of_it, f"{within}{number}") for number, of_it in enumerate(each)]
    elif isinstance(wanted, dict) and str in wanted:
        parts = [(part, wanted[str], f"{within}{name}") for name, part in value.items()]
    elif isinstance(wanted, dict):
        for key, of_it in wanted.items():
            name = key.rstrip("?")
            if name in value:
                parts.append((value[name], of_it, f"{within}{name}"))
            elif name == key:
                return f"{within}{name} is missing"
    return next(filter(None, (complaint(*part) for part in parts)), "")


def _is(value: Any, kind: Any) -> bool:
    if kind is str:
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)  # which UTF-8 cannot hold
    if type(value) is int:
        return kind in (int, float) and -(2**63) <= value < 2**63
    return value is None if kind is None else type(value) is kind


def read_npz(path: Path, check: Callable[[dict[str, tuple]], None] = lambda arrays: None) -> dict[str, np.ndarray]:
    """The arrays of a NumPy file; `check` is given each one's shape and type by name, before any is read."""
    check_plain(path)
    with zipfile.ZipFile(path) as archive:
        check_stored(archive, path.stat().st_size)
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        check({name: _shape_and_type(archive, info) for name, info in names.items()})
        arrays = {}
        for name, info in names.items():
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def _shape_and_type(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    """What an array's header says, which must be what there is of it."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(info) as member:
        shape, _, dtype = headers[np.lib.format.read_magic(member)](member)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be read, they could hold code")
        if min(shape, default=0) < 0 or info.file_size - member.tell() != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{info.filename} is not of the size that it says")
    return shape, dtype


def check_stored(archive: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError unless all files in an archive of `size` bytes stand there as they are, not packed."""
    files = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in files) or sum(info.file_size for info in files) > size:
        raise ValueError("its parts are packed or overlap, as none that was written here are")


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values stand in this file: not a link, which may lead elsewhere, nor made of other files."""
    links = file.id.links
    if not links.exists(name.encode()) or links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"it holds no {name} of its own")
    return _own(file[name])


def rows(file: h5py.File, name: str) -> Iterator[tuple]:
    """The rows of a table, plain values, a few read at a time: each text may be as long as the file."""
    table = own_dataset(file, name)
    if table.ndim != 1:
        raise ValueError(f"its {name} are no table")
    check_whole(table)
    for first in range(0, len(table), ROWS):
        yield from (tuple(map(plain, row)) for row in table[first : first + ROWS])


def check_arrays(file: h5py.File) -> int:
    """Raises ValueError unless the file holds plain arrays of numbers only; returns how many numbers they are."""
    numbers = 0
    link = file.id.links.visit(lambda name, info: None if info.type == h5py.h5l.TYPE_HARD else name, info=True)
    if link is not None:
        raise ValueError(f"its {link.decode()} is a link")

    def visit(name: str, part: Any) -> None:
        nonlocal numbers
        if isinstance(part, h5py.Dataset):
            numbers += check_whole(_own(part)).size
            if part.dtype.kind not in "biuf":
                raise ValueError(f"its {name} is no array of numbers")

    file.visititems(visit)
    return numbers


def _own(dataset: Any) -> h5py.Dataset:
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"its {dataset.name} is no dataset")
    made = dataset.id.get_create_plist()  # asked first: whoever asks for the shape of a virtual dataset opens its files
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ValueError(f"its {dataset.name} lies in other files")
    return dataset


def check_whole(dataset: h5py.Dataset) -> h5py.Dataset:
    """Raises ValueError unless all values stand in the file as they are: not packed, nor filled in on reading."""
    size = dataset.size * dataset.id.get_type().get_size()
    if dataset.chunks is not None or dataset.id.get_storage_size() < size:
        raise ValueError(f"its {dataset.name} is packed or was never written")
    return dataset


def check_written(dataset: h5py.Dataset) -> h5py.Dataset:
    """Raises ValueError if some of the values are filled in on reading: a small file would be as large as it likes."""
    if dataset.chunks is None:
        return check_whole(dataset)
    parts = math.prod(-(-size // of_chunk) for size, of_chunk in zip(dataset.shape, dataset.chunks, strict=True))
    if dataset.id.get_num_chunks() != parts:
        raise ValueError(f"parts of its {dataset.name} were never written")
    return dataset


def attribute(file: h5py.File, name: str) -> Any:
    """The single value of an attribute."""
    if file.attrs.get_id(name).shape != ():
        raise ValueError(f"its {name} is not a single value")
    return plain(file.attrs[name])


def plain(value: Any) -> Any:
    """A Python value from what h5py returns."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
