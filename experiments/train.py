"""Trains a model on a feature cache.

python -m experiments.train --features DIR --splits DIR --split 1 --model alstm --run_dir DIR
"""

from contextlib import closing
from pathlib import Path

from absl import flags

from action_attention.registry import Config
from action_attention.training import choose_threads, train
from data_prep import program
from data_prep.splits import VALIDATIONS
from data_prep.terminal import say, warn
from data_prep.videos import frame_reader
from experiments import options
from experiments.progress import EpochLine


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
    flags.DEFINE_bool("resume", False, "continue the run in --run_dir after its last finished epoch")
    options.define_preset()
    options.define_settings()
    flags.adopt_module_key_flags(options)


def main() -> None:
    args = flags.FLAGS
    options.apply_preset()
    cache, run_dir = options.open_features(args.features, args.flow_features), Path(args.run_dir)
    config = Config.of(args.model, **options.given_settings())
    split, about = options.split_as_flagged(cache, run_dir, config.training.seed, args.validation)
    choose_threads(config.model)
    videos = Path(args.videos or cache.source)
    if not videos.is_dir():
        warn(f"{videos} does not exist, so there will be no pictures; say where the videos are with --videos")
    options.write_flags(run_dir, config.flat())
    with closing(EpochLine()) as line:
        run = train(
            config, cache, split, run_dir, about=about, resume=args.resume, callbacks=[line],
            read_frames=frame_reader(videos, cache.settings["fps"]) if videos.is_dir() else None,
        )  # fmt: skip
    best = run["best"]
    validation = "TEST-LIST validation" if args.validation == "tutorial" else "validation"
    say(f"{run_dir}: {config.model}, best of {run['epochs']} epochs is epoch {best['epoch']}"
          + (f" ({validation} video accuracy {best['val_video_top1']:.1%})" if "val_video_top1" in best else "")
          + f", {run['seconds']:.0f} s; next: make eval RUN_DIR={run_dir}")  # fmt: skip


if __name__ == "__main__":
    program.run(main, define_flags, "the same command with --resume goes on after the last finished epoch")
