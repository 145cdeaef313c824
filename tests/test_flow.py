"""Flow, and where something moves against the camera: known motions of drawn textures, maps and pictures in caches."""

import json
import tracemalloc

import cv2
import h5py
import numpy as np
import pytest
from conftest import CLASSES, write_video

from action_attention.clips import Clips, class_names
from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import ArrayFeatures, FeatureCache
from action_attention.runs import Run
from action_attention.training import train
from data_prep.decoder import Decoder
from data_prep.extract import add_motion, extract
from data_prep.flow import LONGER_SIDE, MotionMaps, against_camera, flow_picture, network_pictures
from data_prep.recognizer import Recognizer
from data_prep.videos import read_frames, resize
from experiments import table
from tests.test_training import ABOUT, config, make_run

HEIGHT, WIDTH = 240, 320


def texture(height=HEIGHT, width=WIDTH, seed=0, margin=80):
    """A random pattern that flow can follow, larger than the frames by a margin on each side."""
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 8 + margin // 4, width // 8 + margin // 4), np.uint8
    )
    return cv2.resize(noise, (width + 2 * margin, height + 2 * margin), interpolation=cv2.INTER_CUBIC)


def seen(picture, camera, margin=80):
    """The frame that a camera sees of it: `camera` is a 2x3 affine matrix from frame to picture."""
    camera = np.array(camera, float)
    camera[:, 2] += margin
    grey = cv2.warpAffine(picture, camera, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def with_box(frame, x, y, side=60):
    """The frame with an object of another texture at `(x, y)`."""
    frame = frame.copy()
    frame[y : y + side, x : x + side] = texture(side, side, seed=9, margin=0)[..., None]
    return frame


STILL = [[1, 0, 0], [0, 1, 0]]


def motion_maps(frames, grid):
    maps = MotionMaps(grid)
    assert all(
        (picture == frame).all() for picture, frame in zip(network_pictures(frames, "rgb", maps), frames, strict=True)
    )
    return maps.all()


def flow_pictures(frames):
    return list(network_pictures(frames, "flow", MotionMaps((7, 7))))


def test_what_moves_stands_out_and_its_length_is_in_percent_of_the_longer_side():
    """A box of 100x100 pixels that moves 6 to the right before a still ground: 6 / 320 = 1.9 %."""
    ground = seen(texture(), STILL)
    frames = [with_box(ground, 110 + 6 * n, 70, 100) for n in range(4)]
    maps = motion_maps(frames, (7, 7)).astype(float)
    assert maps.shape == (4, 7, 7)
    for n in range(3):
        row, column = np.unravel_index(maps[n].argmax(), (7, 7))
        assert (int(row), int(column)) in ((3, 3), (3, 4))
        assert maps[n].max() == pytest.approx(100 * 6 / WIDTH, rel=0.1)
        assert maps[n, :, 0].max() < 0.1
    np.testing.assert_array_equal(maps[3], maps[2])


@pytest.mark.parametrize("camera", [
    [[1, 0, 4], [0, 1, -3]],
    [[1.03, 0, -4.8], [0, 1.03, -3.6]],
    [[np.cos(0.03), -np.sin(0.03), 3.5], [np.sin(0.03), np.cos(0.03), -4.7]],
], ids=["pan", "zoom", "roll"])  # fmt: skip
def test_the_cameras_motion_is_taken_away(camera):
    """Panned, zoomed or rolled, a still ground is still, and the box that moves is what stands out."""
    picture = texture()
    before, after = seen(picture, STILL), seen(picture, camera)
    still = motion_maps([before, after], (7, 7))[0]
    moving = motion_maps([with_box(before, 140, 90), with_box(after, 150, 90)], (7, 7))[0]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(before[..., 0], after[..., 0], None)
    assert 100 / WIDTH * np.linalg.norm(flow, axis=2).mean() > 0.6  # uncompensated, everything moves
    assert still[1:-1, 1:-1].max() < 0.15
    assert np.unravel_index(moving.argmax(), (7, 7)) == (3, 3)
    assert moving.max() > 5 * np.median(moving)


def test_the_fit_is_the_affine_motion_though_two_fifths_move_otherwise():
    rows, columns = np.mgrid[0:120, 0:160].astype(np.float32)
    camera = np.stack([1.5 + 0.01 * columns - 0.02 * rows, -0.5 + 0.03 * columns], axis=-1)
    flow = camera.copy()
    flow[:, :64] += [5, -4]
    left = against_camera(flow)
    np.testing.assert_allclose(left[:, 64:], 0, atol=0.02)
    np.testing.assert_allclose(left[:, :64], np.broadcast_to([5, -4], (120, 64, 2)), atol=0.02)


def test_size_of_the_frames_changes_little_and_small_or_single_ones_are_no_motion():
    ground = seen(texture(), STILL)
    frames = [with_box(ground, 140, 90), with_box(ground, 146, 90)]
    large = [cv2.resize(frame, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for frame in frames]
    assert max(large[0].shape) > LONGER_SIDE
    np.testing.assert_allclose(motion_maps(large, (7, 7)), motion_maps(frames, (7, 7)), atol=0.25)
    assert not motion_maps(frames[:1], (7, 7)).any()
    assert motion_maps([], (7, 7)).shape == (0, 7, 7)
    assert not motion_maps([frame[:8, :8] for frame in frames], (2, 3)).any()


def test_a_cache_has_the_maps_of_its_frames_and_the_decoder_makes_them(cache, videos):
    assert cache.has_motion
    for name in list(cache.videos)[:4]:
        expected = motion_maps(read_frames(videos / name, 15.0), cache.cube_shape[:2])
        np.testing.assert_array_equal(cache.read_motion(name), expected)
        assert len(expected) == cache.videos[name].frames
    decoder = Decoder(15.0, 32)
    assert len(list(decoder.frames(videos / name))) == cache.videos[name].frames
    assert decoder.motion is None
    decoder.close()


def without_motion(folder):
    """As a cache of before version 0.3 is."""
    from tests import hostile  # noqa: PLC0415

    for path in folder.glob("shard-*.h5"):
        hostile.tamper(path, lambda file: file.__delitem__("motion"))
    (folder / "shards.jsonl").unlink()


def test_a_cache_of_before_gets_its_maps_without_the_network(videos, network, tmp_path, cache_folder, monkeypatch):
    extract(videos, tmp_path / "f", network, shard_videos=5)
    without_motion(tmp_path / "f")
    old = FeatureCache(tmp_path / "f")
    name = next(iter(old.videos))
    assert not old.has_motion
    with pytest.raises(
        UserError, match=r"holds no motion maps; add them with `make extract FEATURES=.* ARGS=--motion_"
    ):
        old.read_motion(name)
    fingerprint = old.fingerprint
    old.close()
    assert add_motion(videos, tmp_path / "f") == len(old.videos)
    assert add_motion(videos, tmp_path / "f") == 0
    new, whole = FeatureCache(tmp_path / "f"), FeatureCache(cache_folder)
    assert (new.fingerprint, new.has_motion, new.rejects) == (fingerprint, True, whole.rejects)
    for each in whole.videos:
        np.testing.assert_array_equal(new.read_motion(each), whole.read_motion(each))
        np.testing.assert_array_equal(new.read(each), whole.read(each))
        np.testing.assert_array_equal(new.frame_hashes(each), whole.frame_hashes(each))
    assert all(holds for _, holds in new.verify())
    new.close()
    whole.close()
    assert not list((tmp_path / "f").glob("*.part"))


def test_maps_are_added_for_the_same_videos_only(network, tmp_path):
    for number, class_name in enumerate(CLASSES[:2]):
        write_video(tmp_path / "v" / class_name / "a.avi", 12, seed=number)
    extract(tmp_path / "v", tmp_path / "f", network)
    without_motion(tmp_path / "f")
    write_video(tmp_path / "v" / CLASSES[1] / "a.avi", 14, seed=5)
    with pytest.raises(UserError, match=rf"{CLASSES[1]}/a\.avi has changed since it was extracted; extract it anew"):
        add_motion(tmp_path / "v", tmp_path / "f")
    (tmp_path / "v" / CLASSES[1] / "a.avi").unlink()
    with pytest.raises(UserError, match="its features are there: put it back, or extract with --prune"):
        add_motion(tmp_path / "v", tmp_path / "f")
    assert json.loads((tmp_path / "f" / "index.json").read_text())["complete"]


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "what is no length"), (-1, "what is no length"),
                                               (None, "its motion maps")])  # fmt: skip
def test_maps_that_cannot_be_are_refused(videos, network, tmp_path, value, reason):
    from tests import hostile  # noqa: PLC0415

    extract(videos, tmp_path, network, names=["nod/film0_nod_f_nm_1.avi"])

    def change(file):
        if value is None:
            maps = file["motion"][:, :3]
            del file["motion"]
            file["motion"] = maps
        else:
            file["motion"][0, 0, 0] = value

    hostile.tamper(tmp_path / "shard-00000.h5", change)
    with pytest.raises(UserError, match=rf"shard-00000\.h5 is damaged \(.*{reason}"):
        hostile.read_all(tmp_path)


def test_clips_bring_the_maps_of_their_frames_and_mirror_them(cache):
    names = sorted(cache.videos)
    clips = Clips(cache, names, class_names(names), 6, 4, motion=True)
    for row, clip in enumerate(clips.clips):
        features, _, _, motion = clips.load(np.array([row]))
        np.testing.assert_array_equal(
            motion[0, : clip.frames], cache.read_motion(clip.video)[clip.start :][: clip.frames]
        )
        assert not motion[0, clip.frames :].any()
        turned = clips.load(np.array([row]), np.array([True]))
        np.testing.assert_array_equal(turned[3], motion[..., ::-1])
        np.testing.assert_array_equal(turned[0], features[:, :, :, ::-1])
    ((inputs, _),) = clips.batches(len(clips))
    np.testing.assert_array_equal(inputs["motion"], clips.load(np.arange(len(clips)))[3])
    ((inputs, _),) = Clips(cache, names, class_names(names), 6).batches(len(clips))
    assert inputs.keys() == {"features", "mask"}


def test_features_in_memory_may_have_maps_too():
    features, maps = np.zeros((4, 2, 3, 5), np.float16), np.arange(24).reshape(4, 2, 3)
    given = ArrayFeatures({"a/x": features, "a/y": features}, {"a/x": maps})
    np.testing.assert_array_equal(given.read_motion("a/x"), maps)
    with pytest.raises(UserError, match="a/y has no motion maps, which this model takes"):
        Clips(given, ["a/y"], ["a"], 4, motion=True)


def test_a_shard_keeps_its_schema(cache_folder):
    """Older versions read it: what they know is where it was."""
    with h5py.File(next(cache_folder.glob("shard-*.h5"))) as file:
        assert {"features", "videos", "rejects", "remarks", "hashes", "motion"} == set(file)
        assert (file.attrs["schema_version"], file["motion"].dtype) == (1, np.float16)


def test_a_picture_of_flow_is_its_parts_and_its_length_in_sixteenths_of_a_pixel_about_128():
    flow = np.array([[[0, 0], [1, -0.5], [3, 4]], [[-7.9, 0], [-20, 0], [0.1, 0.02]]], np.float32)
    np.testing.assert_array_equal(flow_picture(flow), [
        [[128, 128, 128], [144, 120, 146], [176, 192, 208]], [[2, 128, 254], [0, 128, 255], [130, 128, 130]],
    ])  # fmt: skip


@pytest.mark.parametrize("side", [1, 3])
def test_each_frame_is_shown_as_its_flow_to_the_next_the_last_as_the_one_before(side):
    """Three frames that the camera pans over, of 320 pixels and of thrice as many, whose flow is that of 320."""
    frames = [seen(texture(), [[1, 0, 4 * n], [0, 1, -3 * n]]) for n in range(3)]
    pictures = flow_pictures([cv2.resize(frame, None, fx=side, fy=side) for frame in frames])
    assert [picture.shape for picture in pictures] == [(HEIGHT, WIDTH, 3)] * 3
    for picture in pictures:  # the ground goes 4 to the left and 3 down
        assert np.median(picture, axis=(0, 1)) == pytest.approx([128 - 64, 128 + 48, 128 + 80], abs=2)
    np.testing.assert_array_equal(pictures[2], pictures[1])
    (alone,) = flow_pictures(frames[:1])
    assert (alone == 128).all()
    assert flow_pictures([]) == []
    assert (np.array(flow_pictures([frame[:8, :8] for frame in frames])) == 128).all()


def test_flow_of_a_long_4k_video_takes_the_memory_of_a_few_frames():
    """Thirty frames of 25 MB, each given away before the next is made."""

    def frames():
        for number in range(30):
            frame = np.zeros((2160, 3840, 3), np.uint8)
            frame[:, 40 * number : 40 * number + 400] = 200
            yield frame

    maps = MotionMaps((7, 7))
    tracemalloc.start()
    shapes = {picture.shape for picture in network_pictures(frames(), "flow", maps)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shapes == {(180, 320, 3)}
    assert len(maps.all()) == 30
    assert peak < 4 * 2160 * 3840 * 3


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory, videos, network):
    folder = tmp_path_factory.mktemp("flow")
    extract(videos, folder, network, stream="flow", shard_videos=5)
    return folder


def test_a_cache_of_flow_holds_the_networks_view_of_it_and_the_frames_own_hashes(flow_folder, cache, videos, network):
    """The hashes are those of the frames: pictures of flow would all be near duplicates where nothing moves."""
    flow = FeatureCache(flow_folder)
    assert flow.settings["stream"] == "flow"
    assert flow.settings["preprocessing"].startswith("DIS medium flow to the next sampled frame, ")
    assert "stream" not in cache.settings
    assert {name: video.frames for name, video in flow.videos.items()} == {
        name: video.frames for name, video in cache.videos.items()
    }
    assert flow.rejects == cache.rejects
    for name in list(cache.videos)[:4]:
        pictures = [resize(picture, 224) for picture in flow_pictures(read_frames(videos / name, 15.0))]
        np.testing.assert_array_equal(flow.read(name), network(np.stack(pictures)))
        np.testing.assert_array_equal(flow.read_motion(name), cache.read_motion(name))
        np.testing.assert_array_equal(flow.frame_hashes(name), cache.frame_hashes(name))
    flow.close()


def test_streams_are_not_taken_for_each_other(flow_folder, cache_folder, videos, network, split, tmp_path):
    with pytest.raises(UserError, match="was extracted with stream=flow, now stream=rgb is asked for"):
        extract(videos, flow_folder, network, shard_videos=5)
    with pytest.raises(UserError, match="was extracted with stream=rgb, now stream=flow is asked for"):
        extract(videos, cache_folder, network, stream="flow", shard_videos=5)
    flow, rgb = FeatureCache(flow_folder), FeatureCache(cache_folder)
    with pytest.raises(UserError, match=r"has no flow of the mirrored videos, .* --mirrored\"`, or give --nomirror$"):
        train(config("softmax", mirror=True), flow, split, tmp_path / "mirrored")
    for name, own, other in (("rgb", rgb, flow), ("flow", flow, rgb)):
        train(config("softmax", epochs=1), own, split, tmp_path / name, about=ABOUT)
        with pytest.raises(UserError, match=rf"has stream=(rgb|flow), but .* was trained with stream={name}"):
            evaluate(tmp_path / name, other)
    flow.close()
    rgb.close()


def test_a_run_of_flow_sees_the_flow_of_a_file_and_of_frames(flow_folder, videos, network, split, tmp_path):
    flow = FeatureCache(flow_folder)
    run_dir = make_run(tmp_path / "run", flow_folder, split, config("softmax", epochs=1))
    run = Run.open(run_dir)
    recognizer = Recognizer(run, network=network)
    for evaluated in run.predictions()[:2]:
        path = videos / evaluated.name
        frames = read_frames(path, 1000.0)
        for result in (recognizer.predict(path), recognizer.predict(frames, fps=30.0)):
            np.testing.assert_allclose(result.probabilities, evaluated.probabilities, atol=1e-6)
    flow.close()


def test_a_table_keeps_runs_of_flow_apart(flow_folder, cache_folder, split, tmp_path):
    for name, folder in (("flow", flow_folder), ("rgb", cache_folder)):
        make_run(tmp_path / name, folder, split, config("softmax", epochs=1))
    rows = table.markdown([table.read_result(tmp_path / name) for name in ("flow", "rgb")]).splitlines()[2:]
    assert [", stream=flow | 1 | " in row for row in rows if row.startswith("| ")] == [True, False]
