"""The tensors of an ONNX file, without ONNX: enough of its wire format (protobuf) to read float32 weights."""

from collections.abc import Iterator
from typing import Any

import numpy as np

GRAPH, INITIALIZER = 7, 5  # fields of a model and of its graph
DIMS, DATA_TYPE, NAME, RAW_DATA, FLOAT32 = 1, 2, 8, 9, 1  # fields of a tensor, and the type that is read
FIXED = {1: 8, 5: 4}  # bytes of values whose kind says how long they are


def float_tensors(onnx: bytes) -> dict[str, np.ndarray]:
    """A model's float32 initializers by name. Raises ValueError or IndexError if the bytes are no such file."""
    tensors = {}
    for graph in (value for field, value in _fields(memoryview(onnx)) if field == GRAPH):
        for tensor in (value for field, value in _fields(graph) if field == INITIALIZER):
            fields = list(_fields(tensor))
            of_tensor = dict(fields)
            if of_tensor.get(DATA_TYPE) == FLOAT32 and RAW_DATA in of_tensor:
                shape = [size for field, size in fields if field == DIMS]
                values = np.frombuffer(of_tensor[RAW_DATA], "<f4").reshape(shape)
                tensors[bytes(of_tensor[NAME]).decode()] = values
    return tensors


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message, in order: integers, or the bytes of anything else."""
    at = 0

    def integer() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = integer()
        if tag & 7 == 0:
            yield tag >> 3, integer()
            continue
        size = FIXED.get(tag & 7) or integer()
        if at + size > len(message):
            raise ValueError("the file ends within a field")
        yield tag >> 3, message[at : at + size]
        at += size
