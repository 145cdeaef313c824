"""The videos that somebody means by files, folders, patterns and lists of them, and where what is made of each goes."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from action_attention.errors import UserError
from data_prep.recognizer import check_video
from data_prep.videos import EXTENSIONS, as_text, is_video

MADE = "_prediction"  # ends the name of an overlay, before its suffix


@dataclass
class Inputs:
    """What was found.

    Attributes:
        videos: each video's path -> where its files go, from the output's folder: its own folder, from the deepest one
            that holds all that was given, and its name without the suffix. Where two videos of a folder differ in
            nothing else, the names in it keep their suffixes.
        passed_over: paths of what is no video -> why.
    """

    videos: dict[Path, Path] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


def find_videos(given: Iterable[str]) -> Inputs:
    """The videos of some files, folders (at any depth), patterns, and lists of these with spaces or commas between.

    A file that was named is a video whatever its name. Below folders, and of what patterns match, it must have one of
    `EXTENSIONS` and be no overlay by its name. Hidden files were not meant.

    Raises:
        UserError: a text is nothing of this, a folder cannot be read, or there is no video.
    """
    found, bases = Inputs(), list[str]()
    files: dict[Path, None] = {}  # each once, in order
    for text in given:
        for path, named in _paths(text):
            bases.append(str(path if path.is_dir() else path.parent))
            for file in _below(path, found) if path.is_dir() else [path]:
                if why := "" if named and file == path else _no_video(file):
                    found.passed_over[as_text(str(file))] = why
                else:
                    files[file] = None
    if not files:
        raise UserError(f"{' '.join(given)} holds no videos ({' '.join(EXTENSIONS)}); give files, or folders of them")
    stems = Counter((file.parent, file.stem) for file in files)
    ambiguous = {folder for (folder, _), count in stems.items() if count > 1}
    for file in files:
        place = file.relative_to(os.path.commonpath(bases))
        found.videos[file] = place if file.parent in ambiguous else place.with_name(file.stem)
    return found


def _paths(text: str) -> Iterator[tuple[Path, bool]]:
    """Absolute paths of files and folders, and whether they were named, not matched."""
    words = re.split(r"[\s,]+", text)
    if text and os.path.isdir(text):  # noqa: PTH112 - False for a name too long
        yield _absolute(text), True
    elif not os.path.exists(text) and len(words) > 1 and all(map(os.path.exists, words)):  # noqa: PTH110
        for word in words:
            yield from _paths(word)
    elif not os.path.exists(text) and glob.has_magic(text) and (matches := glob.glob(text, recursive=True)):  # noqa: PTH110, PTH207
        yield from ((_absolute(match), False) for match in sorted(matches))
    else:
        check_video(text)
        yield _absolute(text), True


def _absolute(text: str) -> Path:
    """Without `..`, so that nothing lies beside the folder that holds all; otherwise links keep their own names."""
    path = Path(text).absolute()
    if ".." not in path.parts:
        return path
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _below(folder: Path, found: Inputs) -> Iterator[Path]:
    """Files below a folder, sorted; what is not entered is noted."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); make it readable, or give its videos")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        for path in (Path(place, name) for name in folders):
            if path.is_symlink():  # it may lead back here
                found.passed_over[as_text(str(path))] = "a link to a folder; give that folder itself"
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _no_video(file: Path) -> str:
    """Why it is passed over where it was not named; empty if it is a video."""
    if not is_video(file):
        return f"no video by its name ({' '.join(EXTENSIONS)})"
    return "an overlay by its name" if file.stem.endswith(MADE) else ""
