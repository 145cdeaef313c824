"""Reads the tensors of a file by PyTorch, without PyTorch; nothing that the file says is run.

It is a state dict in the format of before PyTorch 1.6: pickles of a magic number, a protocol, a system, the state dict
and the storages' keys, then each storage: its length as int64, and its values.
"""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from action_attention.files import check_plain

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
DTYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
NOT_OURS = "it is no state dict that PyTorch saved with _use_new_zipfile_serialization=False"


class _RefusedError(ValueError):
    """Says what is wrong."""


class _Tensor(NamedTuple):
    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Unpickler(pickle.Unpickler):
    """Knows an ordered dict, tensors and the types of storages, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *words: _Tensor(*words[:4]),
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise _RefusedError(f"it asks for {module}.{name}, which is not part of a state dict")

    def persistent_load(self, words: Any) -> _Storage:
        _, dtype, key, _, length, _ = words
        if not (isinstance(key, str) and dtype in DTYPES.values() and type(length) is int and length >= 0):
            raise _RefusedError(NOT_OURS)
        return _Storage(key, dtype, length)


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Name -> tensor. Raises ValueError, in one line, if the file is anything else, and OSError."""
    check_plain(path)
    content = path.read_bytes()
    file = io.BytesIO(content)
    try:
        magic, protocol, _, state, keys = (_Unpickler(file).load() for _ in range(5))
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise _RefusedError(NOT_OURS)
        storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
        if sorted(keys) != sorted(storages):
            raise _RefusedError("its storages are not those of its tensors")
        values, position = {}, file.tell()
        for key in keys:
            length = int(np.frombuffer(content, "<i8", 1, position)[0])
            if length != storages[key].length:
                raise _RefusedError("a storage is not as long as its tensors need")
            values[key] = np.frombuffer(content, storages[key].dtype, length, position + 8)
            position += 8 + values[key].nbytes
        if position != len(content):
            raise _RefusedError("there is more in it than its tensors")
        return {name: _strided(name, tensor, values[tensor.storage.key]) for name, tensor in state.items()}
    except _RefusedError:
        raise
    except Exception as error:  # a pickle raises what it likes
        raise _RefusedError(NOT_OURS) from error


def _strided(name: str, tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """The tensor in memory order. Strides count: TensorFlow's kernels were stored as they are, and only permuted."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if not (all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) and 0 not in shape):
        raise _RefusedError(f"the tensor {name} has no shape")
    if last >= len(values) or np.prod(shape, dtype=object) > len(values):
        raise _RefusedError(f"the tensor {name} reaches beyond its storage")
    bytes_apart = [stride * values.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, bytes_apart).copy()
