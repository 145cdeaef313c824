"""Flags that several programs share: the data, and every setting of every model, made from `settings`.

python -m experiments.options > docs/settings.md
"""

import sys
from collections import Counter
from dataclasses import Field
from pathlib import Path
from typing import Any

from absl import flags

from action_attention.features import FeatureCache
from action_attention.registry import all_settings, model_names
from action_attention.runs import Run
from action_attention.settings import kind
from data_prep.datasets import DUPLICATES, choose_split
from data_prep.splits import counts
from data_prep.terminal import say, warn

CONFIGS = Path(__file__).parent / "configs"
PRESETS = ("recommended", "rank_pool")
UNSAVED = ("resume", "run_dir", "import", "preset", "format", "devices", "seeds")  # no part of what a run is


def define_data_flags() -> None:
    """The flags that say which videos train and which are tested."""
    flags.DEFINE_string("features", None, "folder of the feature cache", required=True)
    flags.DEFINE_string("flow_features", None, "folder of the cache of the same videos' optical flow")
    flags.DEFINE_string("splits", None, "folder of lists <class>_test_split<N>.txt or CSV file; without it one is made")
    flags.DEFINE_integer("split", 1, "number of the split", lower_bound=1)
    flags.DEFINE_string("dataset", None, "name of the dataset in tables [name of the folder above the videos]")
    flags.DEFINE_bool("allow_missing", False, "train even if the cache lacks videos that the lists name")
    flags.DEFINE_enum(
        "duplicates",
        "allow",
        DUPLICATES,
        "training videos that are copies of held-out ones: keep them (as official), leave them out, or stop",
    )


def open_features(features: str, flow_features: str | None) -> FeatureCache:
    """The cache that two flags name, with its optical flow if that is given."""
    cache = FeatureCache(Path(features))
    return cache.pair(FeatureCache(Path(flow_features))) if flow_features else cache


def split_as_flagged(
    cache: FeatureCache, made_in: Path, seed: int, validation: str = "source", *, test: bool = True
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """`datasets.choose_split` by the data flags; prints the warnings and how many videos each class has."""
    args = flags.FLAGS
    split, about, warnings = choose_split(
        cache, Path(args.splits) if args.splits else None, args.split, made_in=made_in, seed=seed,
        validation=validation, test=test, dataset=args.dataset, allow_missing=args.allow_missing,
        duplicates=args.duplicates,
    )  # fmt: skip
    for warning in warnings:
        warn(warning)
    say("\n".join(counts(split)))
    return split, about


def define_settings(without: tuple[str, ...] = ()) -> None:
    """`--model` and a flag for every setting of every registered model; None stands for the model's default."""
    flags.DEFINE_enum("model", "alstm", model_names(), "the model")
    for name, fields in all_settings().items():
        if name in without:
            continue
        field = next(iter(fields.values()))
        text, low, high = f"{about(fields)} [{default(fields)}]", field.metadata["low"], field.metadata["high"]
        if kind(field) is bool:
            flags.DEFINE_bool(name, None, text)
        elif field.metadata["choices"]:
            flag = flags.EnumFlag(name, None, text, choices(fields))
            flag.parser = _Choices(choices(fields), field.metadata["former_choices"])
            flags.DEFINE_flag(flag)
        elif kind(field) is str:
            flags.DEFINE_string(name, None, text)
        else:
            define = flags.DEFINE_integer if kind(field) is int else flags.DEFINE_float
            define(name, None, text, lower_bound=low, upper_bound=high)
        if former := field.metadata["formerly"]:
            flags.DEFINE_alias(former, name, module_name="former names")  # of no program: --help does not show it


class _Choices(flags.EnumParser):
    """Takes the choices of older versions too."""

    def __init__(self, choices: list[str], former: dict[str, str]):
        super().__init__(choices)
        self.former = former

    def parse(self, argument: str) -> str:
        return super().parse(self.former.get(argument, argument))


def define_preset() -> None:
    """`--preset`: the settings of a file in `configs`."""
    flags.DEFINE_enum("preset", None, PRESETS, "a named set of settings; flags that you give win over it")


def apply_preset() -> None:
    """Sets the flags that `--preset`'s file names, but for those that were given."""
    if flags.FLAGS.preset:
        given = {name for name in flags.FLAGS if flags.FLAGS[name].present}
        if "epochs" in given:
            given.add("min_steps")  # which would overrule them
        for line in (CONFIGS / f"{flags.FLAGS.preset}.flags").read_text().splitlines():
            name, equals, value = line.removeprefix("--").partition("=")
            if line.startswith("--") and name not in given:
                flags.FLAGS[name].parse(value if equals else "true")


def given_settings() -> dict[str, Any]:
    """The settings that were given."""
    values = {name: flags.FLAGS[name].value for name in all_settings() if name in flags.FLAGS}
    return {name: value for name, value in values.items() if value is not None}


def write_flags(run_dir: Path, resolved: dict[str, Any]) -> None:
    """Every flag's value, defaults included, in a file for --flagfile; a run that is there already keeps its own."""
    run = Run(run_dir)
    if run.json_file.exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        value = resolved.get(flag.name, flag.value)
        if value is not None and flag.name not in UNSAVED:
            lines.append(f"--{flag.name}={str(value).lower() if isinstance(value, bool) else value}\n")
    with run.writing():
        run.flags_file.write_text("".join(lines))


def choices(fields: dict[str, Field]) -> list[str]:
    """Of all models that have the setting."""
    return list(dict.fromkeys(choice for field in fields.values() for choice in field.metadata["choices"]))


def default(fields: dict[str, Field]) -> str:
    """The most common default, and what other ones models have: "512; conv_alstm 256"."""
    shown = {model: "none" if field.default is None else str(field.default) for model, field in fields.items()}
    ((common, _),) = Counter(shown.values()).most_common(1)
    others = [f"{model} {value}" for model, value in shown.items() if value != common]
    return "; ".join([common, *others])


def about(fields: dict[str, Field]) -> str:
    """What the setting is, and of which models, if not of all."""
    of = "" if len(fields) == len(model_names()) else f" ({', '.join(fields)})"
    return next(iter(fields.values())).metadata["help"] + of


def settings_page() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings\n",
        "Made by `python -m experiments.options`. Every setting is a flag of `experiments.train`; its default is the",
        "tutorial's value where there is one.\n",
        "| flag | meaning | default | allowed |",
        "|---|---|---|---|",
    ]
    for name, fields in all_settings().items():
        metadata = next(iter(fields.values())).metadata
        low, high = metadata["low"], metadata["high"]
        allowed = [", ".join(choices(fields))] if metadata["choices"] else []
        allowed += [f"from {low:g}"] if low is not None else []
        allowed += [f"to {high:g}"] if high is not None else []
        lines.append(f"| `--{name}` | {about(fields)} | {default(fields)} | {' '.join(allowed)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_page(), end="")
