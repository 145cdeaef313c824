"""A setting is one line: a field of a dataclass that says its default, meaning, range and what a sweep tries.

Flags and their help, refusals, the sweep's search space, `run.json` and docs/settings.md are all made from these lines.
The defaults are the tutorial's table (batch size, clip length, units, dropout, lambda, omega, learning rate) where it
has a value, and "off" elsewhere. A model's own settings stand beside the model; `but` changes an inherited one.
"""

import dataclasses
import sys
from dataclasses import MISSING, Field, dataclass
from typing import Any, get_args

from action_attention.errors import UserError

VOTES = ("mode", "mean")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class LogRange:
    """What a sweep draws from on a logarithmic scale; a tuple stands for a choice."""

    low: float
    high: float


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    search: tuple | LogRange | None = None,
    formerly: str | None = None,
    former_choices: dict[str, str] | None = None,
) -> Any:
    """A field of a `Settings` class; `low` and `high` are allowed values too.

    Flags, flag files and runs of older versions may call it `formerly`, and its choices by the keys of
    `former_choices` (`registry.renamed`).
    """
    metadata = {
        "help": help, "choices": choices, "low": low, "high": high, "search": search, "formerly": formerly,
        "former_choices": former_choices or {},
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def but(settings: type, name: str, default: Any = MISSING, **changes: Any) -> Any:
    """The field `name` of `settings` with another default, or with other choices, range or search."""
    (inherited,) = (field for field in dataclasses.fields(settings) if field.name == name)
    return setting(inherited.default if default is MISSING else default, **{**inherited.metadata, **changes})


def kind(field: Field) -> Any:
    """`bool`, `int`, `float` or `str`, also of a field that may be None."""
    return next((part for part in get_args(field.type) if part is not type(None)), field.type)


@dataclass(frozen=True)
class Settings:
    """Base of all settings. Raises UserError, by the setting's name, for a value that is not of its type or range."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _allowed(field, value):
                raise UserError(f"{field.name} must be {_expected(field)}. Received: {value!r}")


def _allowed(field: Field, value: Any) -> bool:
    if value is None:
        return field.default is None
    of_kind, low, high = kind(field), field.metadata["low"], field.metadata["high"]
    if of_kind is float and type(value) is int:
        of_kind = int
    return (
        type(value) is of_kind
        and (kind(field) is not float or abs(value) <= sys.float_info.max)
        and (not field.metadata["choices"] or value in field.metadata["choices"])
        and (low is None or value >= low)
        and (high is None or value <= high)
    )


def _expected(field: Field) -> str:
    if field.metadata["choices"]:
        return f"one of {', '.join(field.metadata['choices'])}"
    bounds = (("at least", field.metadata["low"]), ("at most", field.metadata["high"]))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
    said += ["finite"] if kind(field) is float and field.metadata["high"] is None else []
    return " ".join([words[kind(field)], *([", ".join(said)] if said else [])])


@dataclass(frozen=True)
class Training(Settings):
    """How any model is trained, and how its frames decide on a video."""

    clip_length: int = setting(
        30, "frames per clip, T; the paper's 30 are 2 s at 15 per second", low=1, high=1000, search=(15, 30)
    )  # the recurrence is unrolled: a step for each
    clip_stride: int | None = setting(
        None, "frames from the start of one clip to that of the next; none: clip_length", low=1
    )
    batch_size: int = setting(16, "clips per step, B", low=1, high=65536)
    attention_penalty: float = setting(
        0.0, "weight of the loss's term that asks to look everywhere about once, lambda", low=0
    )
    mirror: bool = setting(False, "mirror half of the training clips, chosen anew in each epoch")
    learning_rate: float = setting(1e-4, "learning rate of Adam", low=0, search=LogRange(3e-5, 3e-3))
    schedule: str = setting(
        "constant", "course of the learning rate: constant, or a cosine down to 0 at the last epoch", choices=SCHEDULES
    )
    epochs: int = setting(100, "train for at most this many epochs", low=1, high=1_000_000)
    min_steps: int = setting(
        0, "train for more epochs if all of them together have fewer steps than this", low=0, high=1_000_000
    )
    patience: int = setting(5, "epochs without better validation before training stops", low=1)
    seed: int = setting(0, "seed of weights, order, dropout and held-out videos", low=0, high=2**32 - 1)
    vote: str = setting(
        "mode",
        "a video's class: the most frequent one of its frames, or the one of the highest mean probability",
        choices=VOTES,
    )
    mixed_precision: bool = setting(False, "compute in bfloat16, keep weights in float32")
