"""Networks in int8: a Keras network that NNCF quantised, in one file, which OpenVINO runs (both optional).

The file is a zip of a JSON, which says what it was made of and how near it comes to that, and of OpenVINO's graph: an
XML and its tensors. It may be a stranger's, so nothing of it reaches OpenVINO before it is known to be small, plain and
made of operations that only compute.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import keras
import numpy as np

from action_attention.errors import UserError
from action_attention.files import check_plain, written_whole
from action_attention.untrusted import check_stored, parse_json
from data_prep.backbones.base import Backbone
from data_prep.backbones.openvino_runtime import OpenVinoNetwork, graph_of, library
from data_prep.backbones.weights import check_file

SUFFIX = ".zip"
BATCH = 32  # frames; extraction's
PRESET = "performance"
PARTS = ABOUT, XML, TENSORS = ("network.json", "network.xml", "network.bin")
WANTED = {"backbone": str, "preprocessing": str, "input_shape": [int] * 3, "output_shape": [int] * 3}
# what the networks of keras.applications consist of, with what NNCF puts between: no loop, no branch, no state, and
# nothing that makes large arrays of small ones
OPERATIONS = {
    "Add", "AvgPool", "Clamp", "Concat", "Const", "Convert", "Convolution", "Divide", "Elu", "Erf", "Exp",
    "FakeQuantize", "Gelu", "GroupConvolution", "HSigmoid", "HSwish", "MatMul", "Maximum", "MaxPool", "Minimum", "Mish",
    "Multiply", "MVN", "Pad", "Parameter", "Power", "PReLU", "ReduceMean", "ReduceSum", "ReLU", "Reshape", "Result",
    "Sigmoid", "Softmax", "Sqrt", "SquaredDifference", "Squeeze", "StridedSlice", "Subtract", "Swish", "Tanh",
    "Transpose", "Unsqueeze",
}  # fmt: skip
BYTES = {"u8": 1, "i8": 1, "i32": 4, "i64": 8, "f16": 2, "f32": 4}  # of a number
HEAD = b'<?xml version="1.0"?>'
LARGEST_TEXT = 16 << 20  # bytes; NASNetLarge's XML is the longest
DEEPEST = 16  # elements of XML in each other
WIDEST = 64  # times a frame's numbers; VGG16's first maps have 21 times as many


def is_meant(weights: str, precision: str, runtime: str | None) -> bool:
    """Whether weights are a network in int8. Raises UserError if precision or runtime are not theirs."""
    if not weights.endswith(SUFFIX):
        if precision == "int8":
            raise UserError(
                f"--precision=int8 needs the file of a quantised network, which --weights={weights} is not; make one "
                "with python -m data_prep.quantize and give it with --weights=FILE"
            )
        return False
    if precision not in ("auto", "int8"):
        raise UserError(
            f"{weights} is a network in int8, but {precision} is asked for; give other --weights or no --precision"
        )
    if runtime not in (None, "openvino"):
        raise UserError(f"{weights} is a network in int8, which OpenVINO alone runs; leave out --runtime={runtime}")
    return True


def quantize(exact: Backbone, batches: Sequence[np.ndarray]) -> Backbone:
    """A backbone in int8, with the ranges that its maps have in the batches, uint8 `(BATCH, size, size, 3)`.

    Raises UserError: its network is not Keras', or NNCF or OpenVINO are missing.
    """
    nncf, openvino = (library(module, "quantising") for module in ("nncf", "openvino"))
    if not isinstance(exact.model, keras.Model):
        raise UserError(f"only Keras networks can be quantised, and {exact.name} is not one; take another --backbone")
    graph, size = graph_of(exact.model), list(exact.model.input_shape[1:])
    graph.reshape([BATCH, *size])
    nncf.set_log_level(logging.ERROR)
    with contextlib.nullcontext() if sys.stdout.isatty() else contextlib.redirect_stdout(None):  # its progress bars
        graph = nncf.quantize(
            graph, nncf.Dataset(batches), subset_size=len(batches), preset=nncf.QuantizationPreset(PRESET)
        )
    graph.reshape([-1, *size])
    # anew, and with names by place: what it came with counts through the process and names temporary folders
    graph = openvino.Model(graph.get_results(), graph.get_parameters(), "network")
    for number, op in enumerate(graph.get_ordered_ops()):
        op.set_friendly_name(f"{op.get_type_name()}_{number}")
    graph.input(0).set_names({"frames"})
    graph.output(0).set_names({"cubes"})
    network = OpenVinoNetwork(graph, exact.model, "int8")
    return replace(exact, model=network, precision="int8", runtime="openvino")


def write(path: Path, network: Backbone, about: dict[str, Any]) -> None:
    """What `quantize` made, with what `about` says of that: whole or not at all, and the same bytes each time.

    Raises UserError for a network that `read` would refuse.
    """
    model = network.model
    assert isinstance(model, OpenVinoNetwork)
    made_of = {"backbone": network.name} | {key: getattr(network, key) for key in ("weights", "weights_sha256")}
    as_asked = {"preprocessing": network.preprocessing, "input_shape": model.input_shape[1:]}
    versions = {package: version(package) for package in ("openvino", "nncf", "keras", "tensorflow")}
    about = {**made_of, **as_asked, "output_shape": model.output_shape[1:], "preset": PRESET, **about}
    with tempfile.TemporaryDirectory() as folder, written_whole(path) as part:
        (Path(folder) / ABOUT).write_text(json.dumps(about | {"versions": versions}, indent=1))
        model.graph.reshape([-1, *model.input_shape[1:]])
        library("openvino", "quantising").save_model(model.graph, Path(folder) / XML, compress_to_fp16=False)
        try:
            _check_graph((Path(folder) / XML).read_bytes(), (Path(folder) / TENSORS).stat().st_size)
        except ValueError as error:
            raise UserError(f"{network.name} cannot be kept in int8 ({error}); take another --backbone") from error
        with zipfile.ZipFile(part, "w") as archive:
            for name in PARTS:
                archive.writestr(zipfile.ZipInfo(name), (Path(folder) / name).read_bytes())


def read(path: Path, asked: Backbone) -> Backbone:
    """The backbone `asked`, whose own weights do not matter, in int8 from a file.

    Raises UserError: OpenVINO is missing, or the file is damaged or of another network.
    """
    check_file(str(path), "the file of a quantised network")
    try:
        content = _content(path, asked)
        xml, tensors = _checked_parts(content, asked)
        openvino = library("openvino", f"--weights={path}")
        network = OpenVinoNetwork(openvino.Core().read_model(xml, tensors), asked.model, "int8")
        _check_maps(network)
    # those of zipfile, the XML parser and OpenVINO
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, SyntaxError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or "it ends too early").splitlines()[-1]
        raise UserError(
            f"{path} is no {asked.name} in int8 ({reason}); make one with python -m data_prep.quantize "
            f"--backbone={asked.name.split(' ')[0]}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    return replace(asked, model=network, weights=path.name, weights_sha256=sha256, precision="int8", runtime="openvino")


def _content(path: Path, asked: Backbone) -> bytes:
    """Raises ValueError if it is larger than the network in float32."""
    check_plain(path)
    largest = 2 * LARGEST_TEXT + 4 * sum(tensor.size for tensor in asked.model.get_weights())
    if path.stat().st_size > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return path.read_bytes()


def _checked_parts(content: bytes, asked: Backbone) -> tuple[bytes, bytes]:
    """The graph's XML and tensors. Raises ValueError if they are of another network or not what OpenVINO writes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        check_stored(archive, len(content))
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        if archive.namelist() != list(PARTS) or max(sizes[ABOUT], sizes[XML]) > LARGEST_TEXT:
            raise ValueError(f"it must hold {', '.join(PARTS)}, the first two of {LARGEST_TEXT} bytes at most")
        about, xml, tensors = (archive.read(name) for name in PARTS)
    said = parse_json(about.decode(), WANTED)
    of_asked = (asked.name, asked.preprocessing, list(asked.model.input_shape[1:]), list(asked.cube_shape))
    for name, ours in zip(WANTED, of_asked, strict=True):
        if said[name] != ours:
            raise ValueError(f"its {name} is {said[name]}, not {ours}")
    _check_graph(xml, len(tensors))
    return xml, tensors


def _check_graph(xml: bytes, size: int) -> None:
    """Raises ValueError unless it is plain XML of OPERATIONS, whose constants lie among `size` bytes of tensors."""
    if not (xml.startswith(HEAD) and xml.isascii()) or b"\0" in xml or b"<!" in xml:
        raise ValueError("its XML is not as OpenVINO writes it")
    depth = 0
    for event, element in ElementTree.iterparse(io.BytesIO(xml), ("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > DEEPEST:
            raise ValueError("its XML is nested too deeply")
        if element.tag == "layer" and element.get("type") not in OPERATIONS:
            raise ValueError(f"its operation {element.get('type')!r:.40} is not part of such a network")
        if element.tag == "data" and "offset" in element.attrib:
            first, length, kind = (element.get(name, "") for name in ("offset", "size", "element_type"))
            shape = [int(side) for side in element.get("shape", "").split(",") if side]
            numbers = math.prod(shape) if min(shape, default=0) >= 0 else -1
            if int(length) != BYTES.get(kind, 0) * numbers or not 0 <= int(first) <= size - int(length):
                raise ValueError("a constant of it is not of the size that it says")


def _check_maps(network: OpenVinoNetwork) -> None:
    """Raises ValueError, or what OpenVINO raises, unless it makes frames into cubes, by way of maps of usual sizes."""
    frames = np.zeros((BATCH, *network.input_shape[1:]), np.uint8)
    network.graph.reshape(list(frames.shape))
    largest = max([WIDEST * frames.size, *(tensor.size for tensor in network.get_weights())])
    shapes = (output.partial_shape for op in network.graph.get_ops() for output in op.outputs())
    if any(shape.is_dynamic or math.prod(shape.to_shape()) > largest for shape in shapes):
        raise ValueError("its maps are larger than those of such networks")
    cubes = network.predict_on_batch(frames)
    if (cubes.shape, cubes.dtype) != ((BATCH, *network.output_shape[1:]), np.float16):
        raise ValueError(f"its cubes are {cubes.dtype} {cubes.shape}")
