"""Damages videos and caches at random and runs the real code on them, for as long as it is told (`make fuzz`).

    python tests/fuzz.py --seconds 600 [--seed 7] [--videos DIR]

A video must be used, used and flagged, or rejected; a cache refused in one sentence or read as it was, and extraction
must mend it. Anything else (another exception, a crash, a hang, other features) ends with the seed and the input.
"""

import argparse
import faulthandler
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
HANG_SECONDS = 300
TAGS = (b"avih", b"strh", b"strf", b"idx1", b"movi", b"moov", b"tkhd", b"mvhd", b"mdhd", b"stts", b"stsz", b"stsd",
        b"stco", b"\x2a\xd7\xb1", b"\x44\x89", b"\xb0\x82", b"\x1a\x45\xdf\xa3", b"\x16\x54\xae\x6b")  # fmt: skip


def _flipped(data: bytes, rng: random.Random, first: float, last: float, bits: int) -> bytes:
    damaged = bytearray(data)
    for _ in range(bits):
        damaged[rng.randrange(int(first * len(data)), max(int(last * len(data)), 1))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(data)), rng.randrange(1, len(data))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _moved(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.sample(range(len(data)), 2))
    return data[:first] + rng.choice((b"", data[first:last] * 2, rng.randbytes(last - first))) + data[last:]


def _absurd(data: bytes, rng: random.Random) -> bytes:
    """A length, a size, a rate or a count in a header becomes zero, huge, negative or not a number."""
    places = [at + len(tag) for tag in TAGS if (at := data.find(tag)) >= 0]
    at = rng.choice(places or [rng.randrange(500)]) + 4 * rng.randrange(20)
    value = rng.choice((0, 1, 60000, 2**31 - 1, 2**32 - 1, 0x7FC00000)).to_bytes(4, rng.choice(("little", "big")))
    return data[:at] + value + data[at + 4 :]


def _avi_field(data: bytes, offsets: tuple[int, ...], *values: int) -> bytes:
    """AVI's headers as OpenCV writes them: microseconds per frame at 32, size at 64, stream's scale and rate at 128."""
    damaged = bytearray(data)
    for offset, value in zip(offsets, values, strict=True):
        damaged[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(damaged)


CONTENT = {
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "header flipped": lambda data, rng: _flipped(data, rng, 0, min(1, 2000 / len(data)), rng.randint(1, 20)),
    "payload flipped": lambda data, rng: _flipped(data, rng, 0, 1, rng.randint(1, 200)),
    "index flipped": lambda data, rng: _flipped(data, rng, 0.9, 1, rng.randint(1, 20)),
    "zeroed": _zeroed,
    "cut, doubled or overwritten": _moved,
    "absurd number": _absurd,
    "absurd size": lambda data, rng: _avi_field(data, (64, 68, 176, 180), *[rng.choice((60000, 16000, 2**31 - 1))] * 4),
    "no rate": lambda data, rng: _avi_field(data, (32, 128, 132), 0, rng.choice((0, 1)), rng.choice((0, 2**32 - 1))),
    "wrong extension": lambda data, rng: data,
    "noise": lambda data, rng: rng.randbytes(len(data)),
}


def _text(path: Path, rng: random.Random) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    path.write_text(rng.choice(("no video\n", playlist, "ffconcat version 1.0\nfile good0.avi\n")))


def _image(path: Path, rng: random.Random) -> None:
    import cv2  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    path.write_bytes(cv2.imencode(rng.choice((".png", ".jpg", ".bmp")), np.zeros((48, 64, 3), np.uint8))[1])


def _audio(path: Path, rng: random.Random) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rng.randbytes(16000))


def _rendered(frames: int):
    def write(path: Path, rng: random.Random) -> None:
        from conftest import write_video  # noqa: PLC0415

        write_video(path, frames, rng.choice((1.0, 25.0, 30.0)))

    return write


def _unreadable(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(1000))
    path.chmod(0)


FILES = {
    "empty": lambda path, rng: path.touch(),
    "text": _text,
    "image": _image,
    "audio only": _audio,
    "one frame": _rendered(1),
    "no frame": _rendered(0),
    "no permission": _unreadable,
    "folder": lambda path, rng: path.mkdir(),
    "dangling link": lambda path, rng: path.symlink_to("nothing.avi"),
    "link to itself": lambda path, rng: path.symlink_to(path.name),
    "pipe": lambda path, rng: os.mkfifo(path),
}


def damage_video(sources: list[Path], path: Path, kind: str, rng: random.Random) -> Path:
    """Writes a video with a damage of `kind` (of `CONTENT` or `FILES`) and returns its path, `path` with a suffix."""
    if kind in FILES:
        path = path.with_suffix(".avi")
        FILES[kind](path, rng)
        return path
    plain_avi = [source for source in sources if source.stem == "good0"]
    source = rng.choice(plain_avi if kind in ("absurd size", "no rate") else sources)
    path = path.with_suffix(
        rng.choice((".avi", ".mp4", ".mkv", ".webm")) if kind == "wrong extension" else source.suffix
    )
    path.write_bytes(CONTENT[kind](source.read_bytes(), rng))
    return path


FIELDS = {"flags": "+ilme+ildct", "b": "2000000"}
ENCODED = (("mp4", "libx264", {"x264-params": "tff=1"}), ("ts", "mpeg2video", FIELDS), ("avi", "mpeg4", FIELDS),
           ("mp4", "libx265", {}), ("webm", "libvpx-vp9", {}), ("mkv", "libsvtav1", {}), ("wmv", "wmv2", {}),
           ("flv", "flv", {}), ("mov", "libx264", {"bf": "3"}), ("3gp", "libx264", {}))  # fmt: skip


def good_videos(folder: Path) -> list[Path]:
    """Twenty short videos: the containers and codecs that OpenCV writes, then newer, interlaced and older ones."""
    from conftest import encode, write_video  # noqa: PLC0415

    formats = (("avi", "MJPG"), ("avi", "XVID"), ("mp4", "mp4v"), ("mkv", "mp4v"), ("mkv", "MJPG"), ("webm", "VP80"),
               ("mov", "mp4v"), ("avi", "FFV1"), ("avi", "HFYU"), ("mkv", "XVID"))  # fmt: skip
    paths = [folder / f"good{index}.{suffix}" for index, (suffix, _) in enumerate(formats)]
    for index, (path, (_, codec)) in enumerate(zip(paths, formats, strict=True)):
        write_video(path, 10 + 3 * index, seed=index, codec=codec)
    for index, (suffix, codec, options) in enumerate(ENCODED, len(formats)):
        paths.append(folder / f"good{index}.{suffix}")
        encode(paths[-1], 10 + index, 25, codec, options=options, size=(64, 64))
    return paths


def content(folder: Path) -> dict:
    """All that a cache says and holds, by video; UserError if it is not whole."""
    from action_attention.errors import UserError  # noqa: PLC0415
    from action_attention.features import FeatureCache  # noqa: PLC0415

    with closing(FeatureCache(folder)) as cache:
        if bad := [path.name for path, holds in cache.verify() if not holds]:
            raise UserError(f"{', '.join(bad)}: a checksum does not hold")
        videos = {name: (video, cache.read(name).tobytes()) for name, video in cache.videos.items()}
        return (
            videos | cache.rejects | {"shards": sorted((shard.sha256, str(shard.settings)) for shard in cache.shards)}
        )


def _edited(path: Path, rng: random.Random) -> None:
    """A value of another type somewhere; what `complete` and `passed_over` say is for people only."""
    text = json.loads(path.read_text())
    place, key = text, rng.choice(("settings", "shards", "source"))
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
        place = place[key]
        key = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
    wrong = [None, -1, 1e308, "x", [], {}, True, [[]], {"x": {}}]
    place[key] = rng.choice([value for value in wrong if value != place[key]])
    path.write_text(json.dumps(text))


def _structure(path: Path, rng: random.Random) -> None:
    """HDF5 that reads other files, or says what cannot be, behind a checksum that holds: anyone can compute it."""
    import h5py  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from action_attention.shards import _head  # noqa: PLC0415

    with h5py.File(path, "r+") as file:
        name, kind = rng.choice(("features", "videos", "rejects")), rng.randrange(9)
        shape = file[name].shape
        if kind == 0:
            del file[name]
            file[name] = h5py.ExternalLink("/etc/hostname", "/")
        elif kind == 1:
            del file[name]
            file[name] = h5py.SoftLink("/nowhere")
        elif kind == 2:
            del file["features"]
            layout = h5py.VirtualLayout((7, 7, 7, 512), np.float16)
            layout[:] = h5py.VirtualSource("other.h5", "features", shape=(7, 7, 7, 512))
            file.create_virtual_dataset("features", layout)
        elif kind == 3:
            size = file["features"].size * 2
            shape = file["features"].shape
            del file["features"]
            file.create_dataset("features", shape, np.float16, external=[("/dev/zero", 0, size)])
        elif kind == 4:
            file["features"][0, 0, 0, 0] = rng.choice((np.nan, np.inf))
        elif kind == 5:
            rows = file["videos"][:]
            rows[rng.randrange(len(rows))] = rows[0] if len(rows) > 1 else rows[-1]
            rows["frames"][rng.randrange(len(rows))] = rng.choice((-1, 0, 2**62))
            file["videos"][:] = rows
        elif kind == 6:
            key = rng.choice(sorted(file.attrs))
            file.attrs[key] = rng.choice(([1, 2], np.nan, "x", 7, b"\xff"))
        elif kind == 7:
            del file[name]
        else:
            del file[name]
            file.create_dataset(name, data=np.zeros(rng.choice(((0,), (3, 3), shape)), rng.choice(("f4", "f2", "i8"))))
    data = path.read_bytes()
    path.write_bytes(_head(path) + data[512:])


def _garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice((b"", b"[" * 100000, b"{}", b"null", b"\xff\xfe", rng.randbytes(300))))


def _swapped(path: Path, rng: random.Random) -> None:
    other = rng.choice([shard for shard in path.parent.glob("shard-*.h5") if shard != path])
    aside = path.rename(path.with_suffix(".aside"))
    other.rename(path)
    aside.rename(other)


BYTES = {
    "flipped": lambda data, rng: _flipped(data, rng, 0, 1, rng.choice((1, 1, 8))),
    "flipped at its head": lambda data, rng: _flipped(data, rng, 0, 9000 / len(data), 1),
    "truncated": lambda data, rng: data[: rng.randrange(len(data))],
    "zeroed": _zeroed,
    "cut, doubled or overwritten": _moved,
    "empty": lambda data, rng: b"",
}
STRUCTURE = "HDF5 structure"
INDEX = {"index edited": _edited, "index garbage": _garbage, "index missing": lambda path, rng: path.unlink()}
LIST = "list of shards"
CACHE_DAMAGE = [*BYTES, *INDEX, *[STRUCTURE] * 4, LIST, "missing", "foreign", "copy", "swapped"]


def damage_cache(folder: Path, kind: str, rng: random.Random, foreign: Path) -> str:
    """Damages one file of a cache; returns its name. `foreign` is a shard of another extraction."""
    path = rng.choice(sorted(folder.glob("shard-*.h5")))
    if kind in BYTES:
        path.write_bytes(BYTES[kind](path.read_bytes(), rng))
    elif kind in INDEX:
        path = folder / "index.json"
        INDEX[kind](path, rng)
    elif kind == LIST:
        path = folder / "shards.jsonl"
        path.write_bytes(rng.choice([*BYTES.values()])(path.read_bytes(), rng))
    elif kind == STRUCTURE:
        _structure(path, rng)
    elif kind == "missing":
        path.unlink()
    elif kind == "swapped":
        _swapped(path, rng)
    else:
        path = Path(shutil.copy2(foreign if kind == "foreign" else path, folder / "shard-00077.h5"))
    return path.name


def sentence_of(call: Callable[[], object]) -> str:
    """What a UserError says, empty if there is none."""
    from action_attention.errors import UserError  # noqa: PLC0415

    try:
        call()
    except UserError as error:
        return str(error)
    return ""


class Fuzz:
    """Rounds of damage below `folder`; a round depends on its seed alone."""

    def __init__(self, folder: Path, videos: Path | None):
        from conftest import small_network  # noqa: PLC0415

        self.folder, self.network = folder, small_network()
        self.good, self.cache, other = folder / "good" / "wave", folder / "cache", folder / "other"
        (other / "videos").mkdir(parents=True)
        paths = good_videos(self.good)
        self.sources = paths + (sorted(videos.glob("*/*.*"))[::50] if videos else [])
        self._extract(folder / "good", self.cache, shard_videos=4)
        self.whole = content(self.cache)
        _rendered(9)(other / "videos" / "nod" / "x.avi", random.Random(0))
        self._extract(other / "videos", other / "features")
        self.foreign = other / "features" / "shard-00000.h5"

    def _extract(self, videos: Path, features: Path, **options) -> None:
        from data_prep.extract import extract  # noqa: PLC0415

        extract(videos, features, self.network, decode_timeout=20, **options)

    def videos(self, folder: Path, rng: random.Random, kinds: list[str]) -> Counter:
        """Damaged videos among good ones."""
        from action_attention.features import FeatureCache  # noqa: PLC0415

        for path in self.good.iterdir():
            target = folder / "videos" / "wave" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        tried = {}
        for number, kind in enumerate(kinds):
            path = damage_video(self.sources, folder / "videos" / "wave" / f"bad{number:04}", kind, rng)
            tried[f"wave/{path.name}"] = kind
        self._extract(folder / "videos", folder / "features", shard_videos=16)
        outcomes = Counter()
        with closing(FeatureCache(folder / "features")) as cache:
            for path in self.good.iterdir():
                name = f"wave/{path.name}"
                assert cache.read(name).tobytes() == self.whole[name][1], f"{name} is good and has other features"
            for name, kind in tried.items():
                video, reason = cache.videos.get(name), cache.rejects.get(name)
                assert (video is None) != (reason is None), f"{name} ({kind}) is lost, or both used and rejected"
                assert video or reason.strip(), f"{name} ({kind}) is rejected without a reason"
                assert not reason or "exit status" not in reason, f"{name} ({kind}): the decoder raised, see above"
                outcomes["flagged" if video and video.is_short else "used" if video else f"rejected: {reason}"] += 1
        content(folder / "features")
        return outcomes

    def caches(self, folder: Path, rng: random.Random, kind: str) -> str:
        """One damaged cache: how it was found, `harmless` if it reads as it was; extraction mends it or refuses it."""
        shutil.copytree(self.cache, folder)
        stamps = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.h5")}
        damaged = damage_cache(folder, kind, rng, self.foreign)
        said = sentence_of(lambda: content(folder))
        assert said or content(folder) == self.whole, f"{kind}: {damaged} has other features, and nothing was said"
        assert not said or damaged in said, f"{kind}: {damaged} is to be named, and said was: {said}"
        if refused := sentence_of(lambda: self._extract(self.folder / "good", folder, shard_videos=4)):
            assert kind in ("foreign", "copy", STRUCTURE), f"{kind}: {damaged} is not mended: {refused}"
            assert damaged in refused, f"{kind}: {damaged} is to be named, and said was: {refused}"
            (folder / damaged).unlink()
            self._extract(self.folder / "good", folder, shard_videos=4)
        if kind == STRUCTURE and sentence_of(lambda: content(folder)):  # a forged checksum holds until --verify
            (folder / damaged).unlink()
            self._extract(self.folder / "good", folder, shard_videos=4)
        assert content(folder) == self.whole, f"{kind}: {damaged} is not what it was after extraction"
        now = [path.stat().st_mtime_ns for path in folder.glob("shard-*.h5")]
        redone = {name for name, stamp in stamps.items() if stamp not in now}
        assert redone <= {damaged}, f"{kind}: of {damaged} only, but {redone} were made again"
        assert not list(folder.glob("*.part"))
        return f"{'refused, then ' if refused else ''}{'found' if said else 'harmless'}: {kind}"

    def round(self, seed: int) -> str:
        rng, folder = random.Random(seed), Path(tempfile.mkdtemp(prefix=f"seed-{seed}-", dir=self.folder))
        if seed % 2:
            kinds = [*CONTENT, *FILES]
            outcomes = self.videos(folder, rng, [rng.choice(kinds) for _ in range(12)])
        else:
            outcomes = Counter(self.caches(folder / str(n), rng, rng.choice(CACHE_DAMAGE)) for n in range(6))
        shutil.rmtree(folder)
        return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))


def work(args: argparse.Namespace) -> None:
    faulthandler.enable()
    end, seed = time.monotonic() + args.seconds, args.seed
    fuzz = Fuzz(Path(args.folder), args.videos)
    while True:
        print(f"seed {seed} ...", flush=True)
        print(f"seed {seed}: {fuzz.round(seed)}", flush=True)
        seed += 1
        if time.monotonic() > end:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--videos", type=Path, help="a folder of class folders of real videos, to be damaged too")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # given to the process that does the work
    args = parser.parse_args()
    if args.folder:
        work(args)
        return
    folder = tempfile.mkdtemp(prefix="fuzz-")
    process = subprocess.Popen([sys.executable, *sys.argv, f"--seed={args.seed}", f"--folder={folder}"],
                               stdout=subprocess.PIPE, text=True, bufsize=1)  # fmt: skip
    line = ""
    while select.select([process.stdout], [], [], HANG_SECONDS)[0] and (said := process.stdout.readline()):
        line = said.strip()
        print(line, flush=True)
    process.kill()  # if it hangs
    if process.wait():
        sys.exit(f"FAILED (exit status {process.returncode}) at: {line}\ninput: {folder}\nagain: --seed=N --seconds=0")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
