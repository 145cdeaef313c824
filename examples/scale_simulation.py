"""How long 1 to 1,000 workers take for 300,000 clips, and what holds them up: prints the table of docs/scale.md.

    python examples/scale_simulation.py

Speeds, sizes and counts are measured ones (docs/performance.md, docs/scale.md); the server and the start are assumed:
change them to yours. Compute, transfers and file operations overlap; what each worker does at its start, and the last
one at its end, does not.
"""

import math
from dataclasses import dataclass

CLIPS, SHARD_CLIPS = 300_000, 64
FRAMES = 45  # of a clip: 3 s, sampled at 15 a second
CLIP_BYTES = 407_000  # mean of ten clips of HMDB-51
FRAME_BYTES = 25_500  # EfficientNet-Lite0's features of J-HMDB, compressed
FRAMES_A_SECOND = 128  # EfficientNet-Lite0 in float32 by TensorFlow on two cores, motion maps included
START_SECONDS = 15  # imports, network, decoder's process

SERVER_BYTES = 1.25e9  # a second, to and from all workers: one link of 10 Gbit/s
SERVER_OPERATIONS = 20_000  # on files, a second

CLIP_OPERATIONS = 14  # that strace counts: stat, open, fstat, close, for the sum of bytes and for decoding
SHARD_OPERATIONS = 90  # likewise: claim, temporary file, rename, check, the worker's index
LIST_OPERATIONS = 2 * CLIPS / 100  # the videos' folders are read twice, some hundred names at a time
SWEEP_OPERATIONS = 8  # of a worker's start, for each other worker that is alive: its file and its claim
NAME_BYTES = 45  # of a video in partition.json, which each worker reads
LINE_BYTES = 200  # of a video in the workers' indexes, which are written once, read and merged
MERGE_SECONDS = 20e-6  # of a core, a video


@dataclass(frozen=True)
class Estimate:
    """Seconds for all clips by so many workers, and what of them goes where."""

    workers: int
    compute: float
    transfers: float
    operations: float
    start: float
    merge: float

    @property
    def total(self) -> float:
        return max(self.compute, self.transfers, self.operations) + self.start + self.merge


def estimate(workers: int, ray: bool = False) -> Estimate:
    """By workers of --partition, or by as many actors of Ray, whose driver alone lists, sweeps and merges."""
    shards = math.ceil(CLIPS / SHARD_CLIPS)
    compute = math.ceil(shards / workers) * SHARD_CLIPS * FRAMES / FRAMES_A_SECOND
    transfers = CLIPS * (CLIP_BYTES + FRAMES * FRAME_BYTES) / SERVER_BYTES
    operations = (CLIPS * CLIP_OPERATIONS + shards * SHARD_OPERATIONS) / SERVER_OPERATIONS
    each = 1 if ray else workers
    listing = each * LIST_OPERATIONS / SERVER_OPERATIONS + each * CLIPS * NAME_BYTES / SERVER_BYTES
    sweeping = 0 if ray else SWEEP_OPERATIONS * workers * (workers - 1) / 2 / SERVER_OPERATIONS
    merge = CLIPS * (MERGE_SECONDS + 3 * LINE_BYTES / SERVER_BYTES)
    return Estimate(workers, compute, transfers, operations, START_SECONDS + listing + sweeping, merge)


def main() -> None:
    print("| workers | compute | transfers | operations | starts | index | all | efficiency | all, with Ray |")
    print("|---|---|---|---|---|---|---|---|---|")
    alone = estimate(1).total
    for workers in (1, 4, 16, 64, 128, 256, 512, 1000):
        found, by_ray = estimate(workers), estimate(workers, ray=True)
        parts = (found.compute, found.transfers, found.operations, found.start, found.merge)
        cells = [clock(seconds) for seconds in (*parts, found.total)]
        print(f"| {workers} | {' | '.join(cells)} | {alone / workers / found.total:.0%} | {clock(by_ray.total)} |")


def clock(seconds: float) -> str:
    """Hours, minutes or seconds, for people."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()
