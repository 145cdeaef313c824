"""Tensors out of files by PyTorch, without PyTorch: what is read, and what is refused before anything of it is run."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from data_prep.backbones.pytorch_file import MAGIC, read_state_dict

STORAGES = {"<f4": "FloatStorage", "<i8": "LongStorage"}


class Global:
    """Pickled as the name of something in another module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a `Global`."""

    def __init__(self, function, *words):
        self.function, self.words = function, words

    def __reduce__(self):
        return self.function, self.words


class Storage(list):
    """Pickled as a persistent id."""


class Writer(pickle._Pickler):
    """As PyTorch pickles: tensors as calls, storages by persistent ids, names of modules that are not there."""

    def persistent_id(self, value):
        return ("storage", *value) if isinstance(value, Storage) else None

    def save_global_by_name(self, value):
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    dispatch = pickle._Pickler.dispatch | {Global: save_global_by_name}

    def save_reduce(self, func, args, *rest, obj=None, **more):
        if isinstance(func, Global):
            self.save(func)
            self.save(tuple(args))
            self.write(pickle.REDUCE)
        else:
            super().save_reduce(func, args, *rest, obj=obj, **more)


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


def tensor(key, values, offset=0, shape=None, strides=None, length=None):
    shape = values.shape if shape is None else shape
    strides = [stride // values.itemsize for stride in values.strides] if strides is None else strides
    length = values.size if length is None else length
    storage = Storage([Global("torch", STORAGES[values.dtype.str]), key, "cpu", length, None])
    return Call(REBUILD, storage, offset, tuple(shape), tuple(strides), False, OrderedDict())


def write(path, state, storages, magic=MAGIC, protocol=1001):
    file = io.BytesIO()
    for part in (magic, protocol, {"little_endian": True}, state, sorted(storages)):
        Writer(file, 2).dump(part)
    for key in sorted(storages):
        file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pth"


def test_tensors_come_back_by_name_shape_and_strides(path):
    """A permuted one, as TensorFlow's kernels are; two that share a storage; a count."""
    values = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    permuted = values.transpose(2, 0, 1)
    state = OrderedDict(
        a=tensor("7", values, shape=permuted.shape, strides=(1, 12, 4)),
        b=tensor("7", values, offset=5, shape=(3,), strides=(2,)),
        count=tensor("8", np.array([9], "<i8"), shape=(), strides=()),
    )
    found = read_state_dict(write(path, state, {"7": values, "8": np.array([9], "<i8")}))
    assert list(found) == ["a", "b", "count"]
    np.testing.assert_array_equal(found["a"], permuted)
    np.testing.assert_array_equal(found["b"], [5, 7, 9])
    assert (found["count"].shape, found["count"].item(), found["a"].flags.c_contiguous) == ((), 9, True)


VALUES = np.arange(6, dtype="<f4")
WHOLE = {"a": tensor("0", VALUES)}


@pytest.mark.parametrize(("state", "reason"), [
    ({"a": Call(Global("os", "system"), "touch owned")}, r"it asks for os\.system"),
    ({"a": Call(Global("builtins", "eval"), "1")}, r"it asks for builtins\.eval"),
    ({"a": Call(Global("torch", "load"), "x")}, r"it asks for torch\.load"),
    ({"a": Call(Global("torch.storage", "_load_from_bytes"), b"x")}, "it asks for torch.storage._load_from_bytes"),
    ({"a": Call(Global("numpy", "zeros"), 10**12)}, r"it asks for numpy\.zeros"),
    ({"a": tensor("0", VALUES, shape=(7,))}, "the tensor a reaches beyond its storage"),
    ({"a": tensor("0", VALUES, offset=1)}, "the tensor a reaches beyond its storage"),
    ({"a": tensor("0", VALUES, shape=(2, 3), strides=(4, 1))}, "the tensor a reaches beyond its storage"),
    ({"a": tensor("0", VALUES, shape=(10**6, 10**6), strides=(0, 0))}, "the tensor a reaches beyond its storage"),
    ({"a": tensor("0", VALUES, offset=5, strides=(-1,))}, "the tensor a has no shape"),
    ({"a": tensor("0", VALUES, offset=-1)}, "the tensor a has no shape"),
    ({"a": tensor("0", VALUES, shape=(0,))}, "the tensor a has no shape"),
    ({"a": tensor("0", VALUES, shape=(2.0,))}, "the tensor a has no shape"),
    ({"a": tensor("0", VALUES, length=10**15)}, "a storage is not as long"),
    ({"a": tensor("1", VALUES)}, "its storages are not those of its tensors"),
    ({"a": 3}, "it is no state dict"),
    ([1, 2], "it is no state dict"),
])  # fmt: skip
def test_what_is_hostile_or_broken_is_refused(path, tmp_path, monkeypatch, state, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=reason):
        read_state_dict(write(path, state, {"0": VALUES}))
    assert not (tmp_path / "owned").exists()


def test_what_is_cut_or_longer_or_of_another_format_is_refused(path):
    whole = write(path, WHOLE, {"0": VALUES}).read_bytes()
    np.testing.assert_array_equal(read_state_dict(path)["a"], VALUES)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="it is no state dict"):
            read_state_dict(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="more in it"):
        read_state_dict(path)
    with pytest.raises(ValueError, match="no state dict that PyTorch saved with _use_new_zipfile_serialization=False"):
        read_state_dict(write(path, WHOLE, {"0": VALUES}, magic=1))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(ValueError, match="no state dict that PyTorch saved with _use_new_zipfile_serialization=False"):
        read_state_dict(path)


def test_a_pipe_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a plain file"):
        read_state_dict(path)
