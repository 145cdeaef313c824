"""What cameras, converters and people make of videos: fields, codecs, containers, changed folders, stuck decoders."""

import os
import random
import re
import shutil
import signal
from contextlib import closing

import av
import numpy as np
import pytest
from conftest import encode, mux_sound, write_video

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.decoder import Decoder
from data_prep.extract import extract
from data_prep.videos import UnusableVideoError, VideoReader, read_frames

pytestmark = pytest.mark.slow

FIELDS = {"flags": "+ilme+ildct", "b": "3000000"}
# suffixes -> codec, size, frames/s, encoder's options for each field order
INTERLACED = (
    (("mp4", "mkv", "mov", "ts", "avi"), "libx264", (64, 48), 30, [{"x264-params": f"{f}=1"} for f in ("tff", "bff")]),
    (("mpg", "ts", "mkv", "m2ts", "vob"), "mpeg2video", (64, 48), 25, [{**FIELDS, "top": top} for top in ("0", "1")]),
    (("mp4", "avi", "mkv"), "mpeg4", (64, 48), 30, [FIELDS]),
    (("dv", "avi", "mov"), "dvvideo", (720, 576), 25, [{}]),
)
PROGRESSIVE = (
    (("mp4", "mkv", "mov", "m4v", "ts", "flv", "avi", "3gp"), "libx264"), (("mp4", "mkv"), "libx265"),
    (("mkv", "mp4", "webm"), "libsvtav1"), (("webm", "mkv"), "libvpx-vp9"), (("webm", "mkv"), "libvpx"),
    (("avi", "mov", "mkv"), "mjpeg"), (("avi", "mkv"), "ffv1"), (("avi",), "huffyuv"), (("wmv", "asf"), "wmv2"),
    (("wmv", "avi"), "wmv1"), (("avi", "mkv"), "msmpeg4v3"), (("flv",), "flv"),
    (("mov",), "prores_ks"), (("avi",), "rawvideo"), (("mxf", "mpg"), "mpeg2video"),
)  # fmt: skip
FORMATS = {"mjpeg": "yuvj420p", "huffyuv": "yuv422p", "prores_ks": "yuv422p10le"}


def seen(path, fps):
    """Mean red and green of each frame."""
    frames = np.stack(list(VideoReader(path, fps, size=64)))
    return frames[..., 0].mean((1, 2)), frames[..., 1].mean((1, 2))


def test_interlaced_videos(tmp_path, fault):
    tried = 0
    for suffixes, codec, size, fps, orders in INTERLACED:
        for suffix in suffixes:
            for options in orders:
                path = tmp_path / f"{codec}-{tried}.{suffix}"
                encode(path, 40, fps, codec, size=size, options=options)
                red, green = seen(path, float(fps))
                assert len(red) == 40, path
                np.testing.assert_allclose(red, np.minimum(6 * np.arange(40), 250), atol=16, err_msg=str(path))
                np.testing.assert_allclose(green, 90, atol=9, err_msg=str(path))
                tried += 1
    fault("interlaced videos: H.264, MPEG-2, MPEG-4, DV, both field orders", tried,
          "every frame shows what was filmed", f"{tried} as filmed")  # fmt: skip


def test_codecs_in_containers(tmp_path, fault):
    tried = 0
    for suffixes, codec in PROGRESSIVE:
        for suffix in suffixes:
            path = tmp_path / f"{codec}.{suffix}"
            encode(
                path, 20, 25, codec, size=(64, 64), pix_fmt=FORMATS.get(codec, "yuv420p"),
                options={"b": "2M"} if codec != "rawvideo" else {},
            )  # fmt: skip
            red, green = seen(path, 25.0)
            assert len(red) == 20, path
            np.testing.assert_allclose(red, 6 * np.arange(20), atol=16, err_msg=str(path))
            np.testing.assert_allclose(green, 90, atol=9, err_msg=str(path))
            tried += 1
    fault("codecs in containers, from 3gp to mxf", tried, "every frame shows what was filmed", f"{tried} as filmed")


def test_what_looks_like_a_video_and_is_doubtful(tmp_path, network, fault):
    videos = tmp_path / "videos" / "nod"
    for suffix in ("mp4", "mkv", "avi"):
        encode(videos / f"still.{suffix}", 20, codec="mpeg4", still=True)
        encode(videos / f"one.{suffix}", 1, codec="mpeg4")
    for suffix in ("mp4", "mkv"):
        encode(videos / f"slow.{suffix}", 8, stamps=[1000.0 * n for n in range(8)])
        encode(
            videos / f"varies.{suffix}", 40, stamps=[*(0.1 * n for n in range(10)), *(1 + n / 40 for n in range(30))]
        )
    extract(tmp_path / "videos", tmp_path / "features", network)
    cache, tried = FeatureCache(tmp_path / "features"), 0
    for name, video in cache.videos.items():
        said = re.sub(r"0\.001\d* ", "0.001 ", "".join(cache.remarks.get(name, [])))
        wanted = {"still": "all its 10 sampled frames are the same picture", "one": "has a single frame",
                  "slow": "shows 0.001 frames/s by its time stamps, where 15 are sampled", "varies": ""}  # fmt: skip
        assert said == wanted[video.file_name.split(".")[0]], name
        assert not video.is_short, name
        tried += 1
    fault(
        "stills, single frames, absurd and varying time stamps", tried,
        "flagged where doubtful; a whole file of varying rate is not called short", f"{tried} as promised",
    )  # fmt: skip


def test_files_that_are_no_videos_for_us(tmp_path, network, fault):
    """In a class folder under other names, beside the class folders, and below them."""
    write_video(tmp_path / "videos" / "nod" / "good.avi", 8)
    content = (tmp_path / "videos" / "nod" / "good.avi").read_bytes()
    names = [f"nod/a.{suffix}" for suffix in ("divx", "rm", "gif", "mp4.part", "txt", "jpg", "AVI~")]
    names += [f"{place}x.{suffix}" for place in ("", "nod/deep/", "nod/deep/er/") for suffix in ("mp4", "avi", "m4v")]
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(content)
    extract(tmp_path / "videos", tmp_path / "features", network)
    cache = FeatureCache(tmp_path / "features")
    assert (list(cache.videos), sorted(cache.passed_over)) == (["nod/good.avi"], sorted(names))
    fault("files beside the videos: other suffixes, wrong folders", len(names), "named in rejects.json with the reason",
          f"{len(names)} named")  # fmt: skip


def test_the_folder_changes_after_extraction(tmp_path, network, caplog, fault):
    whole, features, tried = tmp_path / "whole", tmp_path / "features", 0
    for seed, name in enumerate("abcd"):
        write_video(whole / "nod" / f"{name}.avi", 8 + seed, seed=seed)
    extract(whole, features, network, shard_videos=2)
    for seed in range(12):
        rng, videos, cache = random.Random(seed), tmp_path / f"v{seed}", tmp_path / f"f{seed}"
        shutil.copytree(whole, videos)
        shutil.copytree(features, cache)
        path = videos / "nod" / f"{rng.choice('abcd')}.avi"
        caplog.clear()
        change = seed % 3
        if change == 0:
            data = bytearray(path.read_bytes())
            data[rng.randrange(len(data) // 2, len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            with pytest.raises(
                UserError, match=rf"{path.name} has changed since it was extracted; delete .*shard-0000"
            ):
                extract(videos, cache, network, shard_videos=2)
        else:
            path.rename(path.with_name("z.avi")) if change == 1 else path.unlink()
            extract(videos, cache, network, shard_videos=2)
            now = r" \(now nod/z\.avi\)" if change == 1 else ""
            assert f"1 videos of {cache} are gone" in caplog.text
            assert re.search(rf"nod/{path.name}{now}; without --prune", caplog.text)
            extract(videos, cache, network, shard_videos=2, prune=True)
            kept = FeatureCache(cache)
            assert sorted(kept.videos) == sorted(f"nod/{file.name}" for file in (videos / "nod").iterdir())
            assert all(holds for _, holds in kept.verify())
        tried += 1
    fault("videos edited (same size), renamed or removed after extraction", tried,
          "said by name at the next extraction, with the remedy", f"{tried} said")  # fmt: skip


def test_decoders_that_stand_still_or_die_while_they_start(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("data_prep.decoder.GRACE_SECONDS", 0.3)
    write_video(tmp_path / "a.avi", 40)
    whole, tried, rng = read_frames(tmp_path / "a.avi", 15.0, 224), 0, random.Random(0)
    for kill in (signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
        with closing(Decoder(15.0, 224, timeout=1.0)) as decoder:
            list(decoder.frames(tmp_path / "a.avi"))
            frames = decoder.frames(tmp_path / "a.avi")
            taken = [next(frames) for _ in range(rng.randrange(12))]
            os.kill(decoder._process.pid, kill)
            np.testing.assert_array_equal([*taken, *frames], whole)
            tried += 1
    fault("a decoder's process stopped or killed by something else", tried, "replaced; no frame is lost or doubled",
          f"{tried} replaced")  # fmt: skip


def test_sound_art_and_codecs_without_a_decoder(tmp_path, fault):
    tried = 0
    for suffix in ("mp4", "mkv", "mov", "ts", "flv", "avi"):
        with av.open(str(tmp_path / f"sound.{suffix}"), "w") as container:
            codec = "libmp3lame" if suffix in ("avi", "flv") else "aac"
            mux_sound(container, container.add_stream(codec, rate=44100))
        with pytest.raises(UnusableVideoError, match="has no pictures, only sound"):
            VideoReader(tmp_path / f"sound.{suffix}", 15.0)
        tried += 1
    for suffix, codec, code, other in (
        ("avi", "mpeg4", b"FMP4", b"Zq9x"), ("avi", "mjpeg", b"MJPG", b"Zq9x"), ("mov", "mjpeg", b"jpeg", b"Zq9x"),
        ("mkv", "libx264", b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"), ("webm", "libvpx", b"V_VP8", b"V_XY8"),
    ):  # fmt: skip
        encode(tmp_path / f"b.{suffix}", 8, codec=codec, pix_fmt=FORMATS.get(codec, "yuv420p"))
        (tmp_path / f"c.{suffix}").write_bytes((tmp_path / f"b.{suffix}").read_bytes().replace(code, other))
        with pytest.raises(UnusableVideoError, match=r"its codec is unknown to FFmpeg, or has no decoder here"):
            VideoReader(tmp_path / f"c.{suffix}", 15.0)
        tried += 1
    fault(
        "files of sound only, and of codecs without a decoder", tried, "rejected with the reason", f"{tried} rejected"
    )
