"""Trains a model on a feature cache.

python -m experiments.train --features DIR --splits DIR --split 1 --model alstm --run_dir DIR [--seeds 0-4]
"""

import sys
from contextlib import closing
from pathlib import Path

from absl import flags

from action_attention.devices import find_devices
from action_attention.registry import Config
from action_attention.training import choose_threads, train
from data_prep import program
from data_prep.datasets import made_lists
from data_prep.splits import VALIDATIONS
from data_prep.terminal import say, warn
from data_prep.videos import frame_reader
from experiments import options
from experiments.progress import EpochLine
from experiments.seeds import find_places, parse_seeds, summary, train_seeds


def define_flags() -> None:
    options.define_data_flags()
    flags.DEFINE_string("run_dir", None, "run directory; all output goes there", required=True)
    flags.DEFINE_string("videos", None, "folder of the videos, for pictures [where they were extracted]")
    flags.DEFINE_enum(
        "validation",
        "source",
        VALIDATIONS,
        "held-out videos: whole recordings of the training list; part of the test list; none",
    )
    flags.DEFINE_string("seeds", None, "several runs, RUN_DIR/seed-0 and so on, side by side: 0-4, or 0,2,5")
    flags.DEFINE_string("devices", "1", "how many GPUs of this machine share every batch, or all")
    flags.DEFINE_bool("resume", False, "continue the run in --run_dir after its last finished epoch")
    options.define_preset()
    options.define_settings()
    flags.adopt_module_key_flags(options)


def main() -> None:
    args = flags.FLAGS
    options.apply_preset()
    cache, run_dir = options.open_features(args.features, args.flow_features), Path(args.run_dir)
    config = Config.of(args.model, **options.given_settings())
    seeds = parse_seeds(args.seeds) if args.seeds else []
    split, about = options.split_as_flagged(cache, run_dir, [*seeds, config.training.seed][0], args.validation)
    validation = "TEST-LIST validation" if args.validation == "tutorial" else "validation"
    choose_threads(config.model)
    devices = find_devices(args.devices)
    if seeds:
        lists = [] if args.splits else [f"--splits={made_lists(run_dir)}"]  # one for all of them
        train_seeds(seeds, run_dir, [*sys.argv[1:], *lists], find_places(len(seeds), max(1, len(devices)), cache))
        say(summary(seeds, run_dir, validation))
        return
    videos = Path(args.videos or cache.source)
    if not videos.is_dir():
        warn(f"{videos} does not exist, so there will be no pictures; say where the videos are with --videos")
    options.write_flags(run_dir, config.flat())
    with closing(EpochLine()) as line:
        run = train(
            config, cache, split, run_dir, about=about, resume=args.resume, devices=devices, callbacks=[line],
            read_frames=frame_reader(videos, cache.settings["fps"]) if videos.is_dir() else None,
        )  # fmt: skip
    best = run["best"]
    say(f"{run_dir}: {config.model}, best of {run['epochs']} epochs is epoch {best['epoch']}"
          + (f" ({validation} video accuracy {best['val_video_top1']:.1%})" if "val_video_top1" in best else "")
          + f", {run['seconds']:.0f} s; next: make eval RUN_DIR={run_dir}")  # fmt: skip


if __name__ == "__main__":
    program.run(
        main, define_flags, "the same command with --resume, or with --seeds, goes on after the last finished epoch"
    )
