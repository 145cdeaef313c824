"""Evaluates a run's best model on its test videos, or other ones, and writes `eval/<subset>/` into the run directory.

python -m experiments.eval --run_dir DIR [--subset test] [--annotations FILE]
"""

from pathlib import Path

from absl import flags

from action_attention.evaluation import evaluate
from action_attention.heatmaps import HEATMAPS
from action_attention.runs import SUBSETS, Run
from action_attention.settings import VOTES
from data_prep import program
from data_prep.annotations import actor_reader, find_annotations
from data_prep.terminal import say, warn
from data_prep.videos import frame_reader
from experiments import options, table, text_table


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory", required=True)
    flags.DEFINE_enum("subset", "test", SUBSETS, "which videos to evaluate")
    flags.DEFINE_string("features", None, "folder of the feature cache [the one that the run was trained on]")
    flags.DEFINE_string("flow_features", None, "folder of the cache of optical flow [the one that it was trained on]")
    flags.DEFINE_string(
        "videos", None, "folder of the videos, for pictures and annotations [where they were extracted]"
    )
    flags.DEFINE_string(
        "annotations", None, "file that says where the actor is [boxes.json beside the videos, if it exists]"
    )
    flags.DEFINE_bool("shuffle_flow", False, "as a control, give each video the optical flow of another one")
    flags.DEFINE_enum("vote", None, VOTES, "how frames decide a video's class [as trained]")
    flags.DEFINE_enum(
        "heatmap", "absolute", HEATMAPS, "colour scale: times uniform, or each frame scaled to its own peak"
    )
    text_table.define_format()
    flags.adopt_module_key_flags(text_table)


def main() -> None:
    args = flags.FLAGS
    run_dir = Path(args.run_dir)
    made = Run.open(run_dir).about["cache"]
    flow_features = args.flow_features or made.get("flow", {}).get("folder")
    cache = options.open_features(args.features or made["folder"], flow_features)
    videos = Path(args.videos or cache.source)
    annotations = Path(args.annotations) if args.annotations else find_annotations(videos)
    if not videos.is_dir():
        warn(f"{videos} does not exist, so there will be no pictures; say where the videos are with --videos")
    read_frames = frame_reader(videos, cache.settings["fps"]) if videos.is_dir() else None
    read_actor = actor_reader(annotations, videos, cache) if annotations else None
    asked = args.subset, args.vote, read_frames, read_actor, args.heatmap, args.shuffle_flow
    metrics, subset = evaluate(run_dir, cache, *asked), args.subset + "_shuffled_flow" * args.shuffle_flow
    output = Run(run_dir).evaluation(subset)
    say(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}\n")
    result = table.read_result(run_dir, subset)
    text_table.show(table.markdown([result]))
    found = metrics.get("localization")
    if found and table.looks(result):
        text_table.show("\n" + "\n\n".join(filter(None, [table.localization([result]), table.boxes([result])])))
        if found["frames_without_annotation"]:
            say(
                f"\n{found['frames_without_annotation']} of {found['frames'] + found['frames_without_annotation']} "
                "frames have no annotated actor and do not count; videos that have none in any frame, named in "
                f"metrics.json: {len(found['without_annotation'])}"
            )


if __name__ == "__main__":
    program.run(main, define_flags)
