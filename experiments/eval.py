"""Evaluates a run's best model on its test videos, or other ones, and writes `eval/<subset>/` into the run directory.

python -m experiments.eval --run_dir DIR [--subset test]
"""

import sys
from pathlib import Path

from absl import flags

from action_attention.evaluation import SUBSETS, evaluate, read_run
from action_attention.features import FeatureCache
from action_attention.metrics import VOTES
from data_prep import program
from data_prep.videos import frame_reader
from experiments import table


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory", required=True)
    flags.DEFINE_enum("subset", "test", SUBSETS, "which videos")
    flags.DEFINE_string("features", None, "folder of the feature cache [the one that the run was trained on]")
    flags.DEFINE_string("videos", None, "folder of the videos, for pictures [where they were extracted]")
    flags.DEFINE_enum("vote", None, VOTES, "a video's class from its frames [as trained]")


def main() -> None:
    args = flags.FLAGS
    run_dir = Path(args.run_dir)
    cache = FeatureCache(Path(args.features or read_run(run_dir)[0]["cache"]["folder"]))
    videos = Path(args.videos or cache.source)
    if not videos.is_dir():
        print(f"WARNING: {videos} is gone, so there will be no pictures; --videos says where it is", file=sys.stderr)
    read_frames = frame_reader(videos, cache.settings["fps"]) if videos.is_dir() else None
    evaluate(run_dir, cache, args.subset, args.vote, read_frames)
    output = run_dir / "eval" / args.subset
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}\n")
    print(table.markdown([table.read_result(run_dir, args.subset)]))


if __name__ == "__main__":
    program.run(main, define_flags)
