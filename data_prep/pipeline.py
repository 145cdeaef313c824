"""Videos -> shards: decoding, the network and writing run at once.

`Pipeline.make` is the one way that a shard is made, by a single worker, one of several, or an actor of Ray.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import logging
from tqdm import tqdm

from action_attention.shards import Shard, ShardWriter
from action_attention.tables import HASH_BYTES, Video, are_finite
from data_prep.backbones import Backbone
from data_prep.decoder import Decoder
from data_prep.flow import PICTURES
from data_prep.terminal import BAR
from data_prep.videos import UnusableVideoError

BATCH_FRAMES = 32
QUEUE_BATCHES = 4
NOT_FINITE = "its features hold NaN or more than float16 can; check the backbone's weights and precision"


@dataclass(frozen=True)
class VideoEnd:
    """A video's last frame has passed: what is known of it, its frames' times in seconds, or why it is rejected."""

    name: str
    video: Video | None = None
    reason: str = ""
    remarks: tuple[str, ...] = ()
    motion: np.ndarray | None = None
    times: tuple[float, ...] = ()


@dataclass
class Batch:
    """`count` frames (the rest of `frames` is padding), their hashes, uint8 `(size, HASH_BYTES)`, and the videos that
    end among them, each with its position."""

    frames: np.ndarray
    hashes: np.ndarray
    count: int = 0
    ends: list[tuple[int, VideoEnd]] = field(default_factory=list)


@dataclass
class Summary:
    """What an extraction did; `network_seconds` of `seconds` were spent in the network.

    `share` is a sentence of what one of several workers made."""

    videos: int = 0
    frames: int = 0
    rejected: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    share: str = ""

    def add(self, other: "Summary") -> None:
        """Adds what another worker did, but its `seconds`."""
        for name in ("videos", "frames", "rejected", "network_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Pipeline:
    """How shards are made of the videos below `videos`; `extract.extract` says what its settings mean."""

    videos: Path
    network: Backbone
    fps: float = 15.0
    stream: str = "rgb"
    compression: str = "zstd"
    decode_timeout: float = 60.0
    on_end: Callable[[VideoEnd], object] = lambda _: None
    summary: Summary = field(default_factory=Summary)

    @property
    def settings(self) -> dict:
        return cache_settings(self.network, self.fps, self.stream)

    def make(
        self, groups: list[list[str]], claimed: Iterable[list[str]], paths: Iterator[tuple[Path, Path | None]]
    ) -> Generator[Shard, None, None]:
        """Makes a shard of each group of names that `claimed` gives, at the next path, in the next temporary file.

        `groups` are all that it may give.
        """
        network, settings = self.network, self.settings
        packages = sorted({"tensorflow", "keras", "numpy", "h5py", "hdf5plugin", "av", network.runtime})
        software = {package: version(package) for package in packages}
        decoder = Decoder(self.fps, network.input_size, self.decode_timeout, network.cube_shape[:2], self.stream)
        writers = (
            ShardWriter(path, network.cube_shape, settings, software, self.compression, part) for path, part in paths
        )
        batches = in_background(decode_batches(self.videos, claimed, decoder))
        pieces = in_background(_forward(network, batches, self.summary), decoder.close)
        with closing(pieces), closing(_new_shards(groups, pieces, writers, self.summary, self.on_end)) as new_shards:
            yield from new_shards


def _new_shards(
    groups: list[list[str]],
    pieces: Iterable[tuple],
    writers: Iterator[ShardWriter],
    summary: Summary,
    on_end: Callable[[VideoEnd], object],
) -> Generator[Shard, None, None]:
    """Writes the pieces that `_forward` gives into a shard for each group; yields each when it is complete."""
    last_of_shard, writer, finite, started = {group[-1] for group in groups}, None, True, time.monotonic()
    with tqdm(total=sum(map(len, groups)), bar_format=BAR, disable=None, dynamic_ncols=True) as progress:
        frames = 0
        try:
            for cubes, hashes, end in pieces:
                writer = writer or next(writers)
                writer.append(cubes, hashes)
                frames, finite = frames + len(cubes), finite and are_finite(cubes)
                progress.set_postfix_str(f"{frames} frames, {frames / (time.monotonic() - started):.1f} frames/s")
                if not end:
                    continue
                on_end(end)
                _finish_video(writer, end if finite else replace(end, video=None, reason=NOT_FINITE), summary)
                finite = True
                progress.update()
                if end.name in last_of_shard:
                    writer.commit()
                    path, writer = writer.path, None
                    yield Shard(path)
        finally:
            if writer:
                writer.discard()


def cache_settings(network: Backbone, fps: float, stream: str = "rgb") -> dict:
    """What a cache says of how its features were made (`features.SETTINGS`)."""
    of_stream = {"stream": stream, "preprocessing": f"{PICTURES}; {network.preprocessing}"}
    settings = {
        "backbone": network.name,
        "weights": network.weights,
        "weights_sha256": network.weights_sha256,
        "precision": network.precision,
        "preprocessing": network.preprocessing,
        "resize": f"{network.input_size}x{network.input_size} bilinear",
        "fps": float(fps),
    }
    return settings if stream == "rgb" else settings | of_stream


def in_background(items: Generator, stop: Callable[[], None] = lambda: None) -> Generator:
    """Iterates over `items` in a thread of its own, at most QUEUE_BATCHES ahead; errors are raised at the consumer.

    At the end, however it comes, `stop` is called before the thread is waited for.
    """
    thread, done = ThreadPoolExecutor(max_workers=1), object()
    ahead = deque(thread.submit(next, items, done) for _ in range(QUEUE_BATCHES))
    try:
        while (item := ahead.popleft().result()) is not done:
            ahead.append(thread.submit(next, items, done))
            yield item
    finally:
        stop()
        thread.shutdown(cancel_futures=True)
        items.close()


def decode_batches(videos: Path, groups: Iterable[list[str]], decoder: Decoder) -> Generator[Batch, None, None]:
    """Decodes the videos of each group (a shard) in order into batches that are full, whatever the videos' lengths.

    A shard begins with a batch: on some processors a frame's features differ in their last bit by its place in the
    batch, and a shard must not depend on what was extracted before it. Frames that a video gave before it turned out
    to be unusable stay in; its `VideoEnd` says to drop them.
    """

    def empty() -> Batch:
        frames = np.zeros((BATCH_FRAMES, decoder.size, decoder.size, 3), np.uint8)
        return Batch(frames, np.zeros((BATCH_FRAMES, HASH_BYTES), np.uint8))

    for group in groups:
        batch = empty()
        for name in group:
            try:
                for frame in decoder.frames(videos / name):
                    batch.frames[batch.count] = frame
                    batch.hashes[batch.count] = decoder.hash
                    batch.count += 1
                    if batch.count == len(batch.frames):
                        yield batch
                        batch = empty()
                class_name, file_name = name.split("/")
                video = Video(class_name, file_name, 0, **decoder.about)
                remarks, times = tuple(decoder.remarks), tuple(decoder.times)
                end = VideoEnd(name, video, remarks=remarks, motion=decoder.motion, times=times)
                batch.ends.append((batch.count, end))
            except UnusableVideoError as error:
                batch.ends.append((batch.count, VideoEnd(name, reason=str(error))))
        if batch.ends:
            yield batch


def _forward(network: Backbone, batches: Iterable[Batch], summary: Summary) -> Generator[tuple, None, None]:
    """Cubes and hashes in order, cut where a video ends, each piece with that end or None."""
    for batch in batches:
        started = time.monotonic()
        cubes = network(batch.frames)
        summary.network_seconds += time.monotonic() - started
        first = 0
        for position, end in batch.ends:
            yield cubes[first:position], batch.hashes[first:position], end
            first = position
        if first < batch.count:
            yield cubes[first : batch.count], batch.hashes[first : batch.count], None


def _finish_video(writer: ShardWriter, end: VideoEnd, summary: Summary) -> None:
    summary.videos += 1
    if end.video is None:
        summary.rejected += 1
        writer.reject(end.name, end.reason)
    else:
        writer.add_video(end.video, end.remarks, end.motion)
        summary.frames += end.video.frames
    warn_of(end.name, end.video, end.reason, end.remarks)


def warn_of(name: str, video: Video | None, reason: str, remarks: Iterable[str]) -> None:
    """Says what is wrong with a video that has ended."""
    if video is None:
        logging.warning("rejected %r: %s", name, reason)
    elif video.is_short:
        logging.warning("short: %r decodes %d of %d frames", name, video.decoded_frames, video.announced_frames)
    for remark in remarks:
        logging.warning("doubtful: %r %s", name, remark)
