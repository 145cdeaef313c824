"""Models and backbones by name: those of this project, and those of a user's own module (`--import=my.module`).

A model registers by `@register_model(name, Settings)`, a backbone by `@register_backbone(name)`; nothing else in the
code knows a model by its name. A `Config` is a model's name with all its settings.
"""

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from action_attention.errors import UserError
from action_attention.settings import Settings, Training

Registered = TypeVar("Registered", bound=Any)


@dataclass(frozen=True)
class ModelEntry:
    """A model's class, its settings, and how it is trained; `training` changes defaults of `Training` where it must."""

    build: Any
    settings: type[Settings]
    training: type[Training]

    @property
    def fields(self) -> dict[str, Field]:
        """All settings by name, the model's own first."""
        return {field.name: field for part in (self.settings, self.training) for field in fields(part)}


_models: dict[str, ModelEntry] = {}
_backbones: dict[str, Callable] = {}


def register_model(
    name: str, settings: type[Settings], training: type[Training] = Training
) -> Callable[[Registered], Registered]:
    """Makes a subclass of `models.ActionModel` known as `--model=name`, with its settings as flags.

    Raises UserError if another model has the name.
    """

    def register(cls: Registered) -> Registered:
        import keras  # noqa: PLC0415 - this module is read without TensorFlow

        cls.settings_class = settings
        _add(_models, name, ModelEntry(cls, settings, training), cls, "model")
        return keras.saving.register_keras_serializable(cls.__module__.split(".")[0])(cls)

    return register


def register_backbone(name: str) -> Callable[[Registered], Registered]:
    """Makes a function `(weights, precision) -> Backbone` known as `--backbone=name`.

    Raises UserError if another backbone has the name.
    """

    def register(build: Registered) -> Registered:
        _add(_backbones, name, build, build, "backbone")
        return build

    return register


def _add(registered: dict[str, Any], name: str, entry: Any, what: Any, sort: str) -> None:
    there = registered.get(name)
    there = getattr(there, "build", there)
    if there and (there.__module__, there.__qualname__) != (what.__module__, what.__qualname__):
        raise UserError(f"{what.__module__} registers the {sort} {name}, but {there.__module__} has that name already")
    registered[name] = entry


def model_names() -> tuple[str, ...]:
    importlib.import_module("action_attention.models")  # which registers ours
    return tuple(_models)


def find_model(name: str) -> ModelEntry:
    """Raises UserError for a name that no module registered."""
    if name not in model_names():
        raise UserError(
            f"the models are {', '.join(_models)}. Received: name={name!r}; --import=MODULE brings your own"
        )
    return _models[name]


def registered_backbones() -> dict[str, Callable]:
    """Name -> function that builds it."""
    return dict(_backbones)


def import_modules(modules: Iterable[str]) -> None:
    """Imports a user's own modules, from the current folder or anywhere on Python's path. Raises UserError."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(
                f"--import={module}: Python finds no module {error.name}; start in its folder, or put it on PYTHONPATH"
            ) from error


def all_settings() -> dict[str, dict[str, Field]]:
    """Setting -> model -> field, for every setting of every model that has it."""
    found: dict[str, dict[str, Field]] = {}
    for model in model_names():
        for name, field in _models[model].fields.items():
            found.setdefault(name, {})[model] = field
    return found


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings, those of older versions by the names and choices of now."""
    values, known = dict(values), all_settings()
    for name, of in known.items():
        metadata = next(iter(of.values())).metadata
        if (former := metadata["formerly"]) in values and former not in known:
            values.setdefault(name, values.pop(former))
        if name in values and isinstance(values[name], str):
            values[name] = metadata["former_choices"].get(values[name], values[name])
    return values


def defaults(model: str) -> dict[str, Any]:
    """The default of every setting; of what the model does not have, the most common one."""
    found = {}
    for name, of in all_settings().items():
        ((usual, _),) = Counter(field.default for field in of.values()).most_common(1)
        found[name] = of[model].default if model in of else usual
    return found


@dataclass(frozen=True)
class Config:
    """What a run is: a model's name, its settings, and how it is trained."""

    model: str
    settings: Any  # of the model's own class
    training: Training

    @classmethod
    def of(cls, model: str, **given: Any) -> "Config":
        """The model's defaults, except what is given and not None.

        A setting of other models is accepted at a default of theirs, where it says nothing. Raises UserError for any
        other, for an unknown model, and for a value out of range.
        """
        entry, known = find_model(model), all_settings()
        given = renamed({name: value for name, value in given.items() if value is not None})
        for name, value in given.items():
            if name not in known:
                raise UserError(f"no model has a setting {name}; {model} has {', '.join(entry.fields)}")
            if name not in entry.fields and value not in [field.default for field in known[name].values()]:
                raise UserError(f"--{name}={value} is for {', '.join(known[name])}, not for {model}")
        return cls(model, _make(entry.settings, given), _make(entry.training, given))

    @classmethod
    def read(cls, flat: dict[str, Any]) -> "Config":
        """From what `flat` gave, maybe in an older version: what it lacks has its default, what the model has not is
        left out. Raises UserError for an unknown model or a value out of range."""
        entry, flat = find_model(flat["model"]), renamed(flat)
        return cls(flat["model"], _make(entry.settings, flat), _make(entry.training, flat))

    def flat(self) -> dict[str, Any]:
        """As `run.json` has it."""
        return {"model": self.model, **asdict(self.settings), **asdict(self.training)}


def _make(part: type, values: dict[str, Any]) -> Any:
    return part(**{field.name: values[field.name] for field in fields(part) if field.name in values})
