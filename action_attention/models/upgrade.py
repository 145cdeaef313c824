"""Reads model files, those of version 0.1 too, whose weights stand under other names. Nothing in a file is run."""

import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras

WEIGHTS, OLD_MODULE = "model.weights.h5", "action_attention.models"
# Old place -> new place, {n} one more than the old number (none is 0) times a step, {cell} by the ablation.
MOVES = (
    ("core/(from_frame|from_hidden|to_scores)", "core/attention/{0}", 0),
    ("core/(from_regions)", "core/glimpse/{0}", 0),
    ("core/initial_hidden()", "core/first/mlps/dense", 0),
    ("core/initial_cell()", "core/first/mlps/dense_1", 0),
    (r"core/upper_hidden/dense(?:_(\d+))?", "core/first/mlps/dense_{n}", 2),
    (r"core/upper_cell/dense(?:_(\d+))?", "core/first/mlps/dense_{n1}", 2),
    ("core/initial_states/(dense[^/]*)", "core/first/mlps/{0}", 0),
    ("core/lstm()", "core/cells/{cell}", 0),
    (r"core/upper_lstm/lstm_cell(?:_(\d+))?", "core/cells/{cell}_{n}", 1),
    ("core/cell()", "core/cells/conv_lstm_cell", 0),
    (r"core/upper/conv_lstm_cell(?:_(\d+))?", "core/cells/conv_lstm_cell_{n}", 1),
)


def load_keras(path: Path) -> keras.Model:
    """A model of a `.keras` file, not compiled. Raises whatever Keras and its parts raise if it cannot be read."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        if config.get("module") != OLD_MODULE:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        members = {name: archive.read(name) for name in archive.namelist()}
    cell = "forgetful_lstm_cell" if config["config"].get("ablate") == "carry" else "lstm_cell"
    weights = io.BytesIO(members[WEIGHTS])
    with h5py.File(weights, "r+") as file:
        places: list[str] = []
        file.visit(places.append)
        for place in places:
            if moved := new_place(place, cell):
                file.move(place, moved)
    members[WEIGHTS] = weights.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder) / "model.keras"
        with zipfile.ZipFile(renamed, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return keras.saving.load_model(renamed, compile=False, safe_mode=True)


def new_place(place: str, cell: str) -> str | None:
    """Where a layer's weights stand now, or None if `place` is no such layer."""
    for old, new, step in MOVES:
        if match := re.fullmatch(old, place):
            n = step * (int(match[1] or 0) + 1) if step else 0
            return new.format(match[1], n=n, n1=n + 1, cell=cell)
    return None
