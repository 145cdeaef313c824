"""Files as somebody who means ill would send them, for the tests of what becomes of them."""

import io
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np

from action_attention import shards
from action_attention.features import FeatureCache, shard_paths, write_index
from action_attention.shards import Shard
from action_attention.tables import Video
from tests.test_features import write_shard

CUBE = (2, 3, 4)
SECRET = b"what another file holds, 64 bytes of which are enough for a test" * 64


def make_cache(folder):
    """Two shards with videos of 3, 5 and 4 frames."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "shard-00000.h5", [3, 5], cube=CUBE)
    write_shard(folder / "shard-00001.h5", [4], prefix="w", cube=CUBE)
    write_index(folder, [Shard(path) for path in shard_paths(folder)], folder, complete=True)
    return folder


def read_all(folder):
    """Opens a cache and reads every video, as whoever uses it does: a shard is checked when it is first read."""
    cache = FeatureCache(folder)
    for name in cache.videos:
        cache.read(name)
    cache.close()


def tamper(path, change):
    """A shard with other content, and with the right checksum of it: anybody can compute that."""
    with h5py.File(path, "r+") as file:
        change(file)
    head = shards._head(path)
    with path.open("r+b") as file:
        file.write(head)


def replaced(name, make):
    """A change that puts something else in the place of a dataset."""

    def change(file):
        del file[name]
        make(file)

    return change


def external_storage(name, secret):
    """A dataset, of the type that it should have, whose values are another file's bytes."""

    def change(file):
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        size = int(np.prod(shape)) * 2
        file.create_dataset(name, shape, np.float16 if name == "features" else dtype, external=[(str(secret), 0, size)])

    return change


def virtual(name, secret):
    def change(file):
        shape, dtype = file[name].shape, file[name].dtype
        with h5py.File(secret, "w") as other:
            other.create_dataset("stolen", shape, dtype)
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(str(secret), "stolen", shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


def table(**changes):
    """The table of videos with another field in its first row; `None` leaves the field out."""

    def change(file):
        rows = file["videos"][:]
        for name, value in changes.items():
            rows[0][name] = value
        del file["videos"]
        file["videos"] = rows

    return change


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def hostile_shards(folder):
    """Description -> change of `shard-00000.h5` of a cache in that folder; what reads elsewhere."""
    secret = folder.parent / "secret"
    secret.write_bytes(SECRET)
    pipe = folder.parent / "pipe"
    os.mkfifo(pipe)
    changes = {}
    for name in ("features", "videos", "rejects"):
        for kind, link in (
            ("external link", h5py.ExternalLink(str(folder / "shard-00001.h5"), f"/{name}")),
            ("external link to a pipe", h5py.ExternalLink(str(pipe), f"/{name}")),
            ("soft link", h5py.SoftLink(f"/elsewhere/{name}")),
        ):
            changes[f"{kind} for {name}"] = replaced(name, lambda file, n=name, to=link: file.__setitem__(n, to))
        changes[f"virtual dataset for {name}"] = virtual(name, folder.parent / f"secret-{name}.h5")
        changes[f"group for {name}"] = replaced(name, lambda file, n=name: file.create_group(n))
    changes["external storage for features"] = external_storage("features", secret)
    changes["external link for remarks"] = lambda file: (
        file.__delitem__("remarks"), file.__setitem__("remarks", h5py.ExternalLink(str(pipe), "/x")))  # fmt: skip
    return changes


def bad_tables(folder):
    """Description -> change of a shard, and a part of the reason that must be given."""

    def twice(file):
        rows = file["videos"][:]
        rows[1]["file_name"] = rows[0]["file_name"]
        del file["videos"]
        file["videos"] = rows

    def packed(file):
        rows = file["videos"][:]
        del file["videos"]
        file.create_dataset("videos", data=rows, compression="gzip", chunks=(1,))

    def never_written(file):
        dtype = file["videos"].dtype
        del file["videos"]
        file.create_dataset("videos", (10**9,), dtype)

    def no_features(file):
        del file["features"]
        file.create_dataset("features", (8, *CUBE), np.float16, chunks=(8, *CUBE))

    names = ["../x.mp4", "..", ".", "a/b.mp4", "a\0b", "", "/etc/passwd"]
    changes = {
        f"file name {name!r}": (table(file_name=name), "expected <class>/<file> as video, found")
        for name in names if "\0" not in name
    } | {
        f"class name {name!r}": (table(class_name=name), "expected <class>/<file> as video, found")
        for name in ("..", ".", "/etc", "a/b", "")
    }  # fmt: skip
    return changes | {
        "the same video twice": (twice, "'wave/v0.avi' stands in it 2 times"),
        "a negative number of frames": (table(frames=-3), "'wave/v0.avi' has frames=-3"),
        "no frames": (table(frames=0), "'wave/v0.avi' has frames=0"),
        "more frames than there are": (table(frames=4), "its table of videos"),
        "another first row": (table(first_row=1), "its table of videos"),
        "NaN frames per second of a video": (table(source_fps=np.nan), "'wave/v0.avi' has source_fps=nan"),
        "infinite frames per second of a video": (table(sampled_fps=np.inf), "'wave/v0.avi' has sampled_fps=inf"),
        "a packed table": (packed, "its /videos is packed or was never written"),
        "a table of a billion rows that were never written": (never_written, "its /videos is packed or was never"),
        "features that were never written": (no_features, "parts of its /features were never written"),
        "an array for fps": (attribute("fps", np.full(3, 15.0)), "its fps is not a single value"),
        "NaN for fps": (attribute("fps", np.nan), "fps is nan"),
        "zero for fps": (attribute("fps", 0.0), "fps is 0.0"),
        "text for fps": (attribute("fps", "15"), "fps must be a number"),
        "a number for backbone": (attribute("backbone", 3), "backbone must be text"),
        "an array of texts for weights": (
            attribute("weights", np.array(["a", "b"], h5py.string_dtype())), "its weights is not a single value",
        ),
        "a number for features_sha256": (attribute("features_sha256", 3), "features_sha256 must be text"),
        "an array for schema_version": (attribute("schema_version", [1, 1]), "its schema_version is not a single"),
    }  # fmt: skip


def with_nan(source, folder, value=np.nan):
    """A copy of a cache, in one shard, the last frame of whose every video holds a number that is not finite."""
    folder.mkdir(parents=True)
    cache = FeatureCache(source)
    writer = shards.ShardWriter(folder / "shard-00000.h5", cache.cube_shape, cache.settings, {})
    for name, video in cache.videos.items():
        cubes = cache.read(name)
        cubes[-1, -1, -1, -1] = value
        writer.append(cubes)
        writer.add_video(Video(**{**vars(video), "first_row": 0}))
    writer.commit()
    write_index(folder, [Shard(folder / "shard-00000.h5")], Path(cache.source), complete=True)
    cache.close()
    return folder


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(shape, dtype="<f4", content=b""):
    """A NumPy file whose header says what it likes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def bomb(path, name, header, size):
    """Adds a packed member of a header and so many zeros; it takes a thousandth of that."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(header)
        for _ in range(size >> 24):
            member.write(bytes(1 << 24))


def change_config(path, change):
    members = members_of(path)
    members["config.json"] = json.dumps(change(json.loads(members["config.json"]))).encode()
    write_members(path, members)


def change_weights(path, change):
    """A `.keras` file with other content in its weights."""
    members = members_of(path)
    content = io.BytesIO(members["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        change(file)
    members["model.weights.h5"] = content.getvalue()
    write_members(path, members)


def in_place_of_a_kernel(make):
    """A change of weights that puts something in the place of the first array."""

    def change(file):
        places = []
        file.visititems(lambda name, part: places.append(name) if isinstance(part, h5py.Dataset) else None)
        del file[places[0]]
        make(file, places[0])

    return change


def each_value(content, place=()):
    """The place of every value in a JSON document, its own first."""
    yield place
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, part in parts:
        yield from each_value(part, (*place, key))


def with_value(content, place, value):
    """The document with another value at a place."""
    if not place:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[place[0]] = with_value(copy[place[0]], place[1:], value)
    return copy
