"""Prints what a feature cache is, and checks it.

python -m data_prep.inspect --features DIR [--verify] [--merge]
"""

from pathlib import Path

from absl import flags

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep import program
from data_prep.partition import merge
from data_prep.terminal import say


def define_flags() -> None:
    flags.DEFINE_string("features", None, "folder of the feature cache", required=True)
    flags.DEFINE_bool("verify", False, "recompute every shard's checksum")
    flags.DEFINE_bool("merge", False, "make index.json of what the workers of extract --partition made")


def main() -> None:
    if flags.FLAGS.merge:
        merge(Path(flags.FLAGS.features))
    cache = FeatureCache(Path(flags.FLAGS.features))
    classes = sorted({video.class_name for video in cache.videos.values()})
    say(f"{cache.folder}: {len(cache.videos)} videos of {len(classes)} classes, {cache.frames} frames, "
          f"{len(cache.shards)} shards, {cache.file_bytes / 1e6:.0f} MB")  # fmt: skip
    say(f"source: {cache.source}" + ("" if cache.complete else " (extraction not finished)"))
    for key, value in cache.settings.items():
        say(f"{key}: {value}")
    say(f"classes: {', '.join(classes)}")
    for name, video in cache.videos.items():
        if video.is_short:
            say(f"short: {name!r} decodes {video.decoded_frames} of {video.announced_frames} announced frames")
    for name, remarks in cache.remarks.items():
        say(f"doubtful: {name!r} {'; '.join(remarks)}")
    for name, reason in cache.rejects.items():
        say(f"rejected: {name!r}: {reason}")
    for name, reason in cache.passed_over.items():
        say(f"passed over: {name!r}: {reason}")
    if flags.FLAGS.verify:
        bad = ", ".join(str(path) for path, holds in cache.verify() if not holds)
        if bad:
            raise UserError(f"damaged by their checksums: {bad}; run the same extraction again, which redoes only them")
        say(f"verified: all {len(cache.shards)} shards hold what was written")


if __name__ == "__main__":
    program.run(main, define_flags)
