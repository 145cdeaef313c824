"""Gets HMDB-51: downloads the archives or takes those that are given, checks them, unpacks them, checks the result.

    python -m data_prep.hmdb51 --output DIR [--archive FILE ...]

Whatever stops it, the same command goes on: a download from its last byte, unpacking after the last whole file. The
layout is `videos/<class>/<clip>.avi` and `splits/<class>_test_split<N>.txt`; how the archives nest does not matter.
"""

import errno
import re
import shutil
import stat
import tempfile
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import rarfile
import requests
from absl import flags, logging
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.files import file_sha256
from data_prep import program
from data_prep.splits import read_lists
from data_prep.terminal import say

CLASSES, CLIPS, SPLITS = 51, 6766, (1, 2, 3)
FRUITLESS_TRIES = 4  # in a row; a try that brings bytes does not count
PAUSE_SECONDS = 0.5  # before the next try; doubles with every fruitless one
BLOCK_BYTES = 1 << 16  # what a broken connection loses at most
UNPACKED_BYTES = 20 * 10**9  # the dataset has 2 GB; an archive may hold it twice over, as archives and unpacked
NESTED_ARCHIVES = 2  # the original nests one archive per class
LIST_NAME = re.compile(r".+_test_split[123]\.txt")


@dataclass(frozen=True)
class Source:
    """An archive on a server; `size` in bytes where it is known."""

    url: str
    sha256: str
    size: int | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


_MIRROR = "https://huggingface.co/datasets/MichiganNLP/hmdb/resolve/main/"
_ORIGIN = "https://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/"
SOURCES = {
    "videos": (
        Source(
            _MIRROR + "hmdb51_org.zip", "2d652f386debd04ae8f83508faacb959c03c9cbf1176fc76848b73cda4d52e57", 4246812958
        ),
        Source(_ORIGIN + "hmdb51_org.rar", "9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e"),
    ),
    "splits": (
        Source(
            _MIRROR + "test_train_splits.zip",
            "12df0053bd9d570817edb10d2299030f43646969d5d42ff40200249b45ab2efa",
            222848,
        ),
        Source(_ORIGIN + "test_train_splits.rar", "229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7"),
    ),
}  # fmt: skip


def get_dataset(output: Path, archives: list[Path] | tuple = (), sources: dict = SOURCES) -> bool:
    """Completes the dataset in `output`; returns False if it was complete already.

    Args:
        output: folder of the dataset; downloads are kept in its `archives/`.
        archives: files that the user has; what they hold is not downloaded.
        sources: where to download `videos` and `splits` from, the first that works.

    Raises:
        UserError: an archive cannot be had, is not what it should be or unsafe, or the result is not HMDB-51.
    """
    if not incomplete(output):
        return False
    for left in output.glob(".unpacking-*"):
        shutil.rmtree(left)
    given = Unpacked()
    known = {source.sha256 for choices in sources.values() for source in choices}
    for path in archives:
        if not path.is_file():
            raise UserError(f"{path} is not a file; give an archive of HMDB-51 with --archive")
        if file_sha256(path) not in known:
            logging.warning("%s is none of the known archives of HMDB-51 by its sha256; it is used anyway", path)
        unpack(path, output, given)
    # what a given archive holds in part is not filled up by gigabytes that nobody asked for
    wanted = [sources[part] for part in incomplete(output) if not getattr(given, part)]
    for path in _download_all(wanted, output / "archives"):
        unpack(path, output)
    lacks = incomplete(output)
    if lacks:
        raise UserError(f"{output} is not HMDB-51 yet: {'; '.join(lacks.values())}; give the missing archives too")
    _warn_of_unlisted(output)
    return True


def incomplete(output: Path) -> dict[str, str]:
    """What `videos` and `splits` of a dataset lack; empty if it is complete. Raises UserError if there is too much."""
    clips = [path for path in output.glob("videos/*/*.avi") if path.stat().st_size]
    classes = {path.parent.name for path in clips}
    lists = [path for path in output.glob("splits/*.txt") if LIST_NAME.fullmatch(path.name) and path.stat().st_size]
    has = f"{output}/videos has {len(clips):,} clips of {len(classes)} classes, HMDB-51 {CLIPS:,} of {CLASSES}"
    if len(clips) > CLIPS or len(classes) > CLASSES:
        raise UserError(f"{has}: move away what does not belong there")
    lacks = {}
    if (len(classes), len(clips)) != (CLASSES, CLIPS):
        lacks["videos"] = has
    if len(lists) != CLASSES * len(SPLITS):
        lacks["splits"] = f"{output}/splits has {len(lists)} lists, HMDB-51 {CLASSES * len(SPLITS)}"
    return lacks


def download(source: Source, folder: Path) -> Path:
    """Downloads an archive into `folder`, from where a stopped download ended, and checks its size and sha256.

    Raises:
        UserError: what is there or comes is not the archive.
        requests.RequestException: the server cannot be reached, refuses, or breaks off without end.
    """
    target = folder / source.name
    if target.exists():
        if file_sha256(target) == source.sha256:
            return target
        raise UserError(f"{target} has another sha256; delete it, or give it with --archive to use it anyway")
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{source.name}.part")
    resumed = part.exists()
    _fetch(source, part)
    if resumed and file_sha256(part) != source.sha256:
        logging.warning("%s has changed since its download began; it starts again", source.url)
        part.unlink()
        _fetch(source, part)
    if file_sha256(part) != source.sha256:
        part.unlink()
        raise UserError("the server's file has another sha256")
    part.replace(target)
    return target


def _download_all(wanted: list[tuple[Source, ...]], folder: Path) -> list[Path]:
    """An archive of each kind from the first source that gives it. Raises UserError that names all that none gave."""
    paths, failed, by_hand = [], [], []
    for choices in wanted:
        for source in choices:
            logging.info("downloading %s", source.url)
            try:
                paths.append(download(source, folder))
                break
            except UserError as error:
                reason = str(error)
            except requests.RequestException as error:
                reason = type(error).__name__ if error.response is None else f"HTTP {error.response.status_code}"
            failed.append(f"{source.url} ({reason})")
            logging.warning("no download: %s", failed[-1])
        else:
            by_hand.append(" or ".join(source.name for source in choices))
    if by_hand:
        raise UserError(
            f"no download of {', '.join(failed)}; get {', and '.join(by_hand)} by hand, and put them into {folder} or "
            "give each with --archive=FILE"
        )
    return paths


def _fetch(source: Source, part: Path) -> None:
    """Appends to `part` until it is whole, over as many connections as it takes."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _transfer(source, part, before)
        except requests.RequestException as error:
            response = error.response if isinstance(error, requests.HTTPError) else None
            refused = response is not None and response.status_code < 429  # too many requests
            fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
            if refused or fruitless == FRUITLESS_TRIES:
                raise
            time.sleep(PAUSE_SECONDS * 2**fruitless)


def _transfer(source: Source, part: Path, start: int) -> None:
    """One request for the bytes from `start` on. A server without ranges sends all, and the part begins anew."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(source.url, headers=headers, stream=True, timeout=(10, 60)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # there is no more of it; whether it is right, its sha256 tells
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise UserError(f"the server sent different bytes ({response.headers.get('Content-Range')}) than asked for")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else source.size
        if source.size and total != source.size:
            raise UserError(f"the server's file has {total:,} bytes, not {source.size:,}")
        progress = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=source.name, disable=None, dynamic_ncols=True
        )
        with progress, part.open("ab" if start else "wb") as file:
            for block in response.iter_content(BLOCK_BYTES):
                file.write(block)
                progress.update(len(block))
        if total and part.stat().st_size < total:
            raise requests.ConnectionError(f"broke off after {part.stat().st_size:,} of {total:,} bytes")


@dataclass
class Unpacked:
    """What was unpacked so far: numbers of `videos` and `splits`, bytes, and the size and CRC of every file."""

    videos: int = 0
    splits: int = 0
    bytes: int = 0
    files: dict[Path, tuple[int, int]] = field(default_factory=dict)


def unpack(path: Path, output: Path, done: Unpacked | None = None, nested: int = 0) -> None:
    """Puts the clips and lists of a ZIP or RAR, and of archives in it, into their places below `output`.

    A file that is there in its full size is left alone; others appear under their names only when they are whole.

    Raises:
        UserError: the archive cannot be read, or holds what must not be unpacked: absolute names, `..`, links, more
            bytes than `UNPACKED_BYTES`, two different files for one place.
    """
    done = done or Unpacked()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with _open(path) as archive:
            members = [(_name(member), member) for member in archive.infolist()]
            _refuse_unsafe(path, members, done)
            done.bytes += sum(member.file_size for _, member in members)
            for name, member in tqdm(members, desc=path.name, unit=" files", disable=True if nested else None):
                target = _target(output, name, path.stem)
                if target is None or member.is_dir():
                    continue
                if target.parent == output:
                    if nested == NESTED_ARCHIVES:
                        raise UserError(f"{path.name} is not unpacked: {name!r} in it is one archive too deep")
                    with tempfile.TemporaryDirectory(dir=output, prefix=".unpacking-") as folder:
                        inner = Path(folder) / PurePosixPath(name).name
                        _copy(archive, member, inner)
                        unpack(inner, output, done, nested + 1)
                else:
                    content = member.file_size, member.CRC
                    if done.files.setdefault(target, content) != content:
                        raise UserError(f"{path.name} holds two different files for {target}")
                    if not (target.exists() and target.stat().st_size == member.file_size):
                        _copy(archive, member, target)
                    part = target.relative_to(output).parts[0]
                    setattr(done, part, getattr(done, part) + 1)
    except UserError:
        raise
    except rarfile.RarCannotExec as error:
        raise UserError(f"to unpack {path.name}, install unar (free) or unrar, then run this again") from error
    except Exception as error:  # the libraries raise whatever their parts raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk, not of the archive
        raise UserError(
            f"{path.name} cannot be unpacked ({error}); get it again"
            + (", or install unar or unrar if only bsdtar or 7z is there" if isinstance(error, rarfile.Error) else "")
        ) from error


def _open(path: Path) -> zipfile.ZipFile | rarfile.RarFile:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"Rar!":
        return rarfile.RarFile(path, errors="strict")  # by default it ends in silence where a header is damaged
    if magic[:2] == b"PK":
        return zipfile.ZipFile(path)
    raise UserError(f"{path.name} is no ZIP or RAR archive")


def _name(member: zipfile.ZipInfo | rarfile.RarInfo) -> str:
    name = member.filename
    if isinstance(member, zipfile.ZipInfo) and not member.flag_bits & 0x800:
        # without the flag names are cp437 by the standard, and UTF-8 by the habit of most programs
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/")


def _refuse_unsafe(path: Path, members: list[tuple], done: Unpacked) -> None:
    for name, member in members:
        if name.startswith("/") or re.match("[A-Za-z]:/", name) or ".." in PurePosixPath(name).parts:
            raise UserError(f"{path.name} is not unpacked: {name!r} in it points outside of the dataset")
        if isinstance(member, zipfile.ZipInfo):
            link = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        else:
            link = member.is_symlink() or member.file_redir
        if link:
            raise UserError(f"{path.name} is not unpacked: {name!r} in it is a link or a device")
    total = done.bytes + sum(member.file_size for _, member in members)
    if total > UNPACKED_BYTES:
        raise UserError(f"{path.name} is not unpacked: it would fill {total:,} bytes, more than {UNPACKED_BYTES:,}")


def _target(output: Path, name: str, archive_stem: str) -> Path | None:
    """Where a member belongs: `output` itself for an archive, None for what is no clip, list or archive.

    A clip without a folder is of the class that its archive is named after.
    """
    *folders, file_name = PurePosixPath(name).parts
    if file_name.startswith(".") or "__MACOSX" in folders:
        return None
    if LIST_NAME.fullmatch(file_name):
        return output / "splits" / file_name
    if file_name.lower().endswith((".zip", ".rar")):
        return output / file_name
    if file_name.endswith(".avi"):
        return output / "videos" / (folders[-1] if folders else archive_stem) / file_name
    return None


def _copy(archive: zipfile.ZipFile | rarfile.RarFile, member: zipfile.ZipInfo | rarfile.RarInfo, target: Path) -> None:
    """Both libraries stop at the announced size and check the CRC."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        with archive.open(member) as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
        if part.stat().st_size != member.file_size:
            raise EOFError(f"{target.name} ends early")
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _warn_of_unlisted(output: Path) -> None:
    clips = {f"{path.parent.name}/{path.name}" for path in output.glob("videos/*/*.avi")}
    for number in SPLITS:
        absent = sorted(read_lists(output / "splits", number).keys() - clips)
        if absent:
            logging.warning("split %d lists %d clips that are not there, such as %s", number, len(absent), absent[0])


def define_flags() -> None:
    flags.DEFINE_string("output", None, "folder of the dataset", required=True)
    flags.DEFINE_multi_string("archive", [], "archive of clips or lists, ZIP or RAR, that you have; may be repeated")


def main() -> None:
    output = Path(flags.FLAGS.output)
    new = get_dataset(output, [Path(file) for file in flags.FLAGS.archive])
    say(f"{output}: HMDB-51 is {'now' if new else 'already'} complete, {CLIPS:,} clips of {CLASSES} classes")
    if new and (output / "archives").exists():
        say(f"{output / 'archives'} can be deleted")


if __name__ == "__main__":
    program.run(main, define_flags, "the same command goes on from here")
