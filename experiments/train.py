"""Trains a model on a feature cache.

python -m experiments.train --features DIR --splits DIR --split 1 --model alstm --run_dir DIR
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from absl import flags

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.layers import ABLATIONS, GLIMPSES, INITIAL_STATES
from action_attention.metrics import VOTES
from action_attention.models import HEADS, MODEL_NAMES, MOTIONS, NORMALIZATIONS
from action_attention.training import SCHEDULES, TrainConfig, choose_threads, train, writing
from data_prep import program
from data_prep.splits import (
    TEST,
    VALIDATION,
    VALIDATIONS,
    copies_across,
    make_split,
    make_tags,
    match_names,
    read_lists,
    write_lists,
)
from data_prep.videos import frame_reader


def _positive(name, default, text):
    flags.DEFINE_integer(name, default, text, lower_bound=1)


def _not_negative(name, default, text):
    flags.DEFINE_float(name, default, text, lower_bound=0)


def _share(name, default, text):
    flags.DEFINE_float(name, default, text, lower_bound=0, upper_bound=1)


def _one_of(values):
    return lambda name, default, text: flags.DEFINE_enum(name, default, values, text)


HYPER_PARAMETERS = {
    "clip_length": (_positive, "frames per clip, T [30]"),
    "clip_stride": (_positive, "frames from one clip's start to the next one's [clip_length]"),
    "batch_size": (_positive, "clips per step, B [16]"),
    "lstm_units": (_positive, "LSTM units or ConvLSTM filters, U [512; conv_alstm 256]"),
    "dropout": (_share, "at all fully connected layers, dt [0.5]"),
    "attention_penalty": (_not_negative, "lambda [alstm 0.5; others 0]"),
    "weight_decay": (_not_negative, "omega [0]"),
    "normalize": (_one_of(NORMALIZATIONS), "of the features: square root and L2 norm [none]"),
    "motion": (_one_of(MOTIONS), "append each cube's difference from the one before [none]"),
    "channel_dropout": (_share, "of whole channels of a clip's features [0]"),
    "head": (_one_of(HEADS), "from conv_alstm's hidden maps to its classifier [flatten]"),
    "cells": (_positive, "recurrent cells on top of each other; the attention reads the uppermost [1]"),
    "initial": (_one_of(INITIAL_STATES), "conv_alstm's first states: zeros, or from the clip's mean cube [zeros]"),
    "rescale": (flags.DEFINE_bool, "weigh conv_alstm's cube by attention of mean 1, not of sum 1 [false]"),
    "ablate": (_one_of(ABLATIONS), "from the LSTM models: MLPs of the initial states, or the cell state [none]"),
    "glimpse": (_one_of(GLIMPSES), "of alstm, avg_lstm: of the whole cube, or keeping its quarters apart [whole]"),
    "mirror": (flags.DEFINE_bool, "turn half of the training clips left to right, drawn anew each epoch [false]"),
    "learning_rate": (_not_negative, "of Adam [1e-4]"),
    "schedule": (_one_of(SCHEDULES), "of the learning rate: constant, or a cosine from it to 0 at the end [constant]"),
    "epochs": (_positive, "at most [100; conv_alstm 20]"),
    "patience": (flags.DEFINE_integer, "epochs without better validation before stopping [5; conv_alstm 3]"),
    "seed": (flags.DEFINE_integer, "of weights, order, dropout and held-out videos [0]"),
    "mixed_precision": (flags.DEFINE_bool, "compute in bfloat16, keep weights in float32 [false]"),
}

DUPLICATES = ("allow", "drop_train", "error")


def define_data_flags() -> None:
    """The flags that say which videos train and which are tested."""
    flags.DEFINE_string("features", None, "folder of the feature cache", required=True)
    flags.DEFINE_string("splits", None, "folder of lists <class>_test_split<N>.txt or CSV file; without it one is made")
    flags.DEFINE_integer("split", 1, "which of the lists", lower_bound=1)
    flags.DEFINE_string("dataset", None, "name of the dataset in tables [name of the folder above the videos]")
    flags.DEFINE_bool("allow_missing", False, "train although the lists name videos that the cache lacks")
    flags.DEFINE_enum(
        "duplicates", "allow", DUPLICATES, "videos with the bytes of a held-out one: keep, as official; leave out; stop"
    )


def define_hyper_parameters(without: tuple[str, ...] = ()) -> None:
    for name, (define, text) in HYPER_PARAMETERS.items():
        if name not in without:
            define(name, None, text)
    flags.DEFINE_enum(
        "vote", None, VOTES, "a video's class: its frames' most frequent one or by mean probability [mode]"
    )


def define_flags() -> None:
    define_data_flags()
    flags.DEFINE_enum("model", "alstm", MODEL_NAMES, "the model")
    flags.DEFINE_string("run_dir", None, "run directory, the only place that output goes to", required=True)
    flags.DEFINE_string("videos", None, "folder of the videos, for pictures [where they were extracted]")
    flags.DEFINE_enum(
        "validation", "source", VALIDATIONS, "by source film from the training list; from the test list; none"
    )
    flags.DEFINE_bool("resume", False, "go on after the last finished epoch of the run in --run_dir")
    define_hyper_parameters()


def main() -> None:
    args = flags.FLAGS
    cache, run_dir = FeatureCache(Path(args.features)), Path(args.run_dir)
    config = TrainConfig.for_model(args.model, vote=args.vote, **{name: args[name].value for name in HYPER_PARAMETERS})
    split, about = choose_split(args, cache, run_dir, config.seed, args.validation)
    choose_threads(config.model)
    videos = Path(args.videos or cache.source)
    if not videos.is_dir():
        print(f"WARNING: {videos} is gone, so there will be no pictures; --videos says where it is", file=sys.stderr)
    write_flags(run_dir, asdict(config))
    run = train(
        config, cache, split, run_dir, about=about, resume=args.resume, verbose=int(sys.stderr.isatty()),
        read_frames=frame_reader(videos, cache.settings["fps"]) if videos.is_dir() else None,
    )  # fmt: skip
    best = run["best"]
    validation = "TEST-LIST validation" if args.validation == "tutorial" else "validation"
    print(f"{run_dir}: {config.model}, best of {run['epochs']} epochs is epoch {best['epoch']}"
          + (f" ({validation} video accuracy {best['val_video_top1']:.1%})" if "val_video_top1" in best else "")
          + f", {run['seconds']:.0f} s; next: make eval RUN_DIR={run_dir}")  # fmt: skip


def choose_split(
    args, cache: FeatureCache, run_dir: Path, seed: int, validation: str = "source", *, test: bool = True
) -> tuple[dict[str, list[str]], dict]:
    """The lists of videos that the flags `args` ask for, and what `run.json` says of them.

    Without `test` the test videos are left out from the start: the cache need not hold them.
    """
    about = {"dataset": args.dataset or Path(cache.source).parent.name, "split": "made", "validation": validation}
    if args.splits:
        lists = Path(args.splits)
        about["split"] = lists.name if lists.is_file() else args.split
        tags = match_names(read_lists(lists, args.split), cache.videos)
        tags = {name: tag for name, tag in tags.items() if test or tag != TEST}
        missing = sorted(name for name, tag in tags.items() if tag and name not in cache.videos)
        if missing:
            sentence = f"{cache.folder} lacks {len(missing)} videos of the lists: {', '.join(missing[:10])}"
            if not args.allow_missing:
                raise UserError(f"{sentence}; extract them, or train without them by --allow_missing")
            print(f"WARNING: {sentence}; they are left out", file=sys.stderr)
            about["missing"] = {"videos": len(missing), "first": missing[:10]}
            about["split"] = f"{about['split']} without {len(missing)} missing videos"
        tags = {name: tag for name, tag in tags.items() if name in cache.videos}
        if VALIDATION in tags.values():
            about["validation"] = lists.name
    else:
        lists = run_dir / "splits"
        if not lists.exists():  # all of them or none, however this ends
            part = run_dir / ".splits"
            shutil.rmtree(part, ignore_errors=True)
            write_lists(part, make_tags(sorted(cache.videos), seed))
            part.rename(lists)
        tags = {name: tag for name, tag in read_lists(lists).items() if test or tag != TEST}
    split = make_split(tags, validation, seed)
    copies = copies_across(split, {name: video.file_sha256 for name, video in cache.videos.items()})
    if copies:
        sentence = f"{len(copies)} videos have the same bytes as a held-out one, such as {copies[0][0]}"
        if args.duplicates == "error":
            raise UserError(f"{sentence}; --duplicates=allow keeps them, drop_train leaves them out")
        dropped = {name for name, _ in copies} if args.duplicates == "drop_train" else set()
        if dropped:
            about["split"] = f"{about['split']} without {len(dropped)} copies"
        split = {subset: [name for name in videos if name not in dropped] for subset, videos in split.items()}
        about["duplicates"] = {"videos": len(copies), "policy": args.duplicates, "first": copies[:10]}
        what = "left out" if dropped else "kept, as officially; --duplicates=drop_train leaves them out"
        print(f"WARNING: {sentence}; {what}", file=sys.stderr)
    return split, about


def write_flags(run_dir: Path, resolved: dict) -> None:
    """Every flag's value, defaults included, in a file for --flagfile; a run that is there already keeps its own."""
    if (run_dir / "run.json").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        value = resolved.get(flag.name, flag.value)
        if value is not None and flag.name not in ("resume", "run_dir"):
            lines.append(f"--{flag.name}={str(value).lower() if isinstance(value, bool) else value}\n")
    with writing(run_dir):
        (run_dir / "flags.txt").write_text("".join(lines))


if __name__ == "__main__":
    program.run(main, define_flags, "the same command with --resume goes on after the last finished epoch")
