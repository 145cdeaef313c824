"""Weights of version 0.1, which stand under other names in their files."""

import re
from typing import Any

OLD_MODULE = "action_attention.models"  # of all models, in a file's config.json
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


def move_weights(file: Any, config: dict[str, Any]) -> None:
    """Puts the weights in an open HDF5 file of a model with that config where they stand now."""
    cell = "forgetful_lstm_cell" if config.get("ablate") in ("carry", "cell_state") else "lstm_cell"
    places: list[str] = []
    file.visit(places.append)
    for place in places:
        if moved := new_place(place, cell):
            file.move(place, moved)


def new_place(place: str, cell: str) -> str | None:
    """Where a layer's weights stand now, or None if `place` is no such layer."""
    for old, new, step in MOVES:
        if match := re.fullmatch(old, place):
            n = step * (int(match[1] or 0) + 1) if step else 0
            return new.format(match[1], n=n, n1=n + 1, cell=cell)
    return None
