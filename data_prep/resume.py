"""What a cache holds already, and whether the extraction that is asked for may go on from there."""

from collections.abc import Iterator, Sized
from contextlib import closing, contextmanager
from pathlib import Path

from absl import logging

from action_attention.errors import UserError, remedy
from action_attention.features import listed_sha256, open_shards, with_stream
from action_attention.files import file_sha256
from action_attention.shards import DamagedError, Shard
from action_attention.tables import Video


def whole_shards(paths: list[Path]) -> list[Shard]:
    """Shards of a cache, after what is damaged was set aside under another name: its videos are extracted again."""
    for path in paths:
        try:
            with closing(Shard(path)) as shard:
                if not shard.has_head and shard.compute_sha256() != shard.sha256:
                    raise DamagedError(path, "its features are not those that were written")
        except DamagedError as error:
            aside = path.with_name(f"{path.name}.damaged")
            logging.warning("%s; set aside as %s, its videos are extracted again", str(error).split(";")[0], aside.name)
            path.replace(aside)
    return open_shards([path for path in paths if path.exists()])


def check_resumable(shards: list[Shard], settings: dict, videos: Path, features: Path) -> None:
    """Raises UserError if the extraction that is there is not the one that is asked for."""
    listed = listed_sha256(features)
    for shard in shards:
        there = with_stream(shard.settings)
        for key, value in with_stream(settings).items():
            if there[key] != value:
                raise UserError(
                    f"{features} was extracted with {key}={there[key]}, now {key}={value} is asked for; "
                    "give another --features folder or the same settings"
                )
        for video in shard.videos:
            path = videos / video.name
            if path.is_file() and _has_changed(path, video, shard.path):
                raise UserError(f"{path} has changed since it was extracted; delete {shard.path} and run this again")
            # a video may be gone, but not from a shard that nothing but its presence speaks for
            if listed.get(shard.path.name) != shard.sha256 and not path.is_file():
                raise UserError(
                    f"{shard.path} is not in index.json and holds {video.name}, which {videos} does not: "
                    "it belongs to another extraction; remove it"
                )


def _has_changed(path: Path, video: Video, shard: Path) -> bool:
    """Its bytes are compared only if the file was touched after its features were written."""
    there = path.stat()
    if there.st_size != video.file_bytes:
        return True
    return there.st_ctime > shard.stat().st_mtime and file_sha256(path) != video.file_sha256


def gone(shards: list[Shard], names: list[str], videos: Path, features: Path) -> set[str]:
    """The videos that the cache holds and the folder does not; says which, and those that have another name now."""
    held = {video.name: video for shard in shards for video in shard.videos}
    gone = {name: held[name] for name in held.keys() - names}
    if not gone:
        return set()
    sizes = {video.file_bytes for video in gone.values()}
    new = [path for name in names if name not in held and (path := videos / name).is_file()]
    now = {file_sha256(path): path.relative_to(videos) for path in new if path.stat().st_size in sizes}
    said = [name + (f" (now {now[gone[name].file_sha256]})" if gone[name].file_sha256 in now else "") for name in gone]
    logging.warning(
        "%d videos of %s are gone from %s: %s; without --prune, which removes them from the cache, they stay in use",
        len(gone), features, videos, ", ".join(sorted(said)[:10]),
    )  # fmt: skip
    return set(gone)


@contextmanager
def writing(features: Path, shards: Sized) -> Iterator[None]:
    """Turns the system's refusal to write into a sentence; `shards` are those that are finished by then."""
    try:
        yield
    except OSError as error:
        safe = f"its {len(shards)} finished shards are safe: " if shards else ""
        raise UserError(
            f"{features} cannot be written ({error.strerror}); {safe}{remedy(error)} and run the same command again"
        ) from error
