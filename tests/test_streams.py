"""Two streams: caches of the same videos' frames and optical flow, read side by side, through a whole run."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_frames, write_video

from action_attention.clips import Clips, class_names
from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import ArrayFeatures, FeatureCache
from action_attention.loss import losses
from action_attention.models import build_model
from action_attention.models.inputs import sqrt_l2
from action_attention.runs import Run
from action_attention.training import train
from data_prep.extract import extract
from data_prep.recognizer import Recognizer
from data_prep.videos import read_frames
from tests.test_training import ABOUT, config


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory, videos, network):
    folder = tmp_path_factory.mktemp("flow")
    extract(videos, folder, network, stream="flow", shard_videos=5)
    extract(videos, folder / "mirrored", network, stream="mirrored_flow", shard_videos=5)
    return folder


@pytest.fixture
def pair(cache_folder, flow_folder):
    rgb, flow = FeatureCache(cache_folder), FeatureCache(flow_folder)
    yield rgb.pair(flow)
    rgb.close()
    flow.close()


def test_clips_bring_the_flow_of_their_own_frames(pair):
    names = sorted(pair.videos)
    for in_memory in (True, False):
        clips = Clips(pair, names, class_names(names), 7, 5, in_memory=in_memory, flow=True, motion=True)
        features, mask, _, motion, flow = clips.load(np.arange(len(clips)))
        for row, clip in enumerate(clips.clips):
            span = slice(clip.start, clip.start + clip.frames)
            np.testing.assert_array_equal(features[row][mask[row]], pair.read(clip.video)[span])
            np.testing.assert_array_equal(flow[row][mask[row]], pair.flow.read(clip.video)[span])
            np.testing.assert_array_equal(motion[row][mask[row]], pair.read_motion(clip.video)[span])
        ((inputs, _),) = clips.batches(len(clips)).take(1)
        np.testing.assert_array_equal(inputs["flow"], flow)


def test_a_mirrored_clip_has_the_flow_of_the_mirrored_video(pair, flow_folder):
    names, mirrored = sorted(pair.videos), FeatureCache(flow_folder / "mirrored")
    clips = Clips(pair, names, class_names(names), 1000, flow=True, mirror=True)
    turned = np.arange(len(clips)) % 2 == 0
    features, mask, _, flow = clips.load(np.arange(len(clips)), turned)
    for row, name in enumerate(names):
        rgb, source = (pair.read(name)[:, :, ::-1], mirrored) if turned[row] else (pair.read(name), pair.flow)
        np.testing.assert_array_equal(features[row][mask[row]], rgb)
        np.testing.assert_array_equal(flow[row][mask[row]], source.read(name))
    mirrored.close()


def test_mirrored_flow_is_what_the_mirrored_video_would_give(tmp_path, network):
    """A video and its mirror image: moving right in one is moving left in the other, in every location."""
    frames = 60 + 180 * np.random.default_rng(0).random((48, 96)).repeat(4, 0).repeat(4, 1)
    frames = [np.repeat(frames[:, 4 * n : 4 * n + 256, None], 3, axis=2).astype(np.uint8) for n in range(12)]
    for name, shown in (("a/plain", frames), ("a/turned", [frame[:, ::-1] for frame in frames])):
        write_frames(tmp_path / f"videos/{name}.avi", shown, fps=15)
    extract(tmp_path / "videos", tmp_path / "flow", network, stream="flow")
    extract(tmp_path / "videos", tmp_path / "flow" / "mirrored", network, stream="mirrored_flow")
    flow, mirrored = FeatureCache(tmp_path / "flow"), FeatureCache(tmp_path / "flow").open_mirrored()
    for name, other in (("a/plain.avi", "a/turned.avi"), ("a/turned.avi", "a/plain.avi")):
        np.testing.assert_array_equal(mirrored.read(name), flow.read(other))
        np.testing.assert_array_equal(mirrored.read_motion(name), flow.read_motion(other))
        assert np.abs(mirrored.read(name).astype(float) - flow.read(name)[:, :, ::-1]).max() > 0.05


@pytest.mark.parametrize("normalize", ["none", "sqrt_l2"])
def test_early_fusion_is_a_model_of_both_streams_channels_each_normalised_by_itself(normalize, pair):
    names = sorted(pair.videos)[:3]
    clips = Clips(pair, names, class_names(names), 6, flow=True)
    features, mask, _, flow = (each[:4] for each in clips.load(np.arange(len(clips))))
    fused = build_model("alstm", 3, lstm_units=4, fusion="early", normalize=normalize)
    outputs = fused({"features": features, "mask": mask, "flow": flow})
    streams = [np.array(sqrt_l2(s.astype("float32"))) if normalize == "sqrt_l2" else s for s in (features, flow)]
    plain = build_model("alstm", 3, lstm_units=4)
    both = np.concatenate(streams, axis=-1)
    plain({"features": both, "mask": mask})
    plain.set_weights(fused.get_weights())
    expected = plain({"features": both, "mask": mask})
    for key in ("logits", "attention"):
        np.testing.assert_allclose(outputs[key], expected[key], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("motion_conv_alstm", {"clip_length": 3, "lstm_units": 2, "epochs": 1}),
        ("softmax", {"fusion": "early", "mirror": True, "epochs": 3}),
    ],
)
def test_a_run_of_two_streams_is_trained_resumed_evaluated_and_asked(
    model, settings, pair, flow_folder, videos, network, split, tmp_path
):
    whole = config(model, **settings)
    train(whole, pair, split, tmp_path / "whole", about=ABOUT)
    run = Run.open(tmp_path / "whole")
    assert run.about["cache"]["flow"]["folder"] == str(flow_folder)
    if model == "softmax":
        train(config(model, **{**settings, "epochs": 2}), pair, split, tmp_path / "parts", about=ABOUT)
        train(whole, pair, split, tmp_path / "parts", about=ABOUT, resume=True)
        for one, other in zip(
            run.model().get_weights(), Run.open(tmp_path / "parts").model().get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    evaluate(tmp_path / "whole", pair)
    evaluated = run.predictions()[0]
    recognizer, frames = Recognizer(run, network=network), read_frames(videos / evaluated.name, 1000.0)
    for result in (recognizer.predict(videos / evaluated.name), recognizer.predict(frames, fps=30.0)):
        np.testing.assert_allclose(result.probabilities, evaluated.probabilities, atol=1e-5)
        np.testing.assert_allclose(result.attention, evaluated.attention, atol=1e-5)


def test_what_is_no_pair_is_refused(pair, cache_folder, flow_folder, videos, network, tmp_path):
    rgb, flow = FeatureCache(cache_folder), FeatureCache(flow_folder)
    with pytest.raises(UserError, match=r"has features of the stream rgb, flow belongs here; .*--flow_features"):
        rgb.pair(FeatureCache(cache_folder))
    with pytest.raises(UserError, match=r"has features of the stream flow, rgb belongs here; --features takes"):
        flow.pair(flow)
    extract(videos, tmp_path / "slow", network, stream="flow", fps=5.0)
    with pytest.raises(UserError, match=r"has fps 15\.0, .*slow has 5\.0; extract both alike$"):
        rgb.pair(FeatureCache(tmp_path / "slow"))
    shutil.copytree(videos, tmp_path / "videos")
    changed, gone = sorted(name for name in pair.videos)[:2]
    write_video(tmp_path / "videos" / changed, frames=24, seed=7)
    (tmp_path / "videos" / gone).unlink()
    extract(tmp_path / "videos", tmp_path / "other", network, stream="flow")
    with pytest.raises(UserError, match=rf"other differ in 2 videos: {changed}, {gone}; extract both from the same"):
        rgb.pair(FeatureCache(tmp_path / "other"))


def test_flow_and_models_that_do_not_fit_are_refused(pair, cache, split, tmp_path):
    names = sorted(cache.videos)
    with pytest.raises(UserError, match=r"takes the frames' optical flow too: .* --flow_features$"):
        train(config("alstm", fusion="early"), cache, split, tmp_path / "run")
    with pytest.raises(UserError, match=r"^--flow_features is for a model that takes optical flow; .*--fusion=early"):
        train(config("alstm"), pair, split, tmp_path / "run")
    with pytest.raises(UserError, match=r"takes the frames' optical flow too: "):
        Clips(ArrayFeatures({name: cache.read(name) for name in names}), names, class_names(names), 6, flow=True)
    train(config("softmax", fusion="early", epochs=1), pair, split, tmp_path / "run", about=ABOUT)
    with pytest.raises(UserError, match=r"takes the frames' optical flow too: "):
        evaluate(tmp_path / "run", cache)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["cache"]["flow"]["settings"]["precision"] = "bfloat16"
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"has precision=float32, but .* was trained with precision=bfloat16"):
        evaluate(tmp_path / "run", pair)


def test_the_flow_of_mirrored_videos_is_refused_where_it_is_not_that(pair, flow_folder, network, tmp_path):
    shutil.copytree(flow_folder, tmp_path / "flow")
    index = tmp_path / "flow/mirrored/index.json"
    for shard in (tmp_path / "flow/mirrored").glob("shard-*.h5"):
        shutil.copy(flow_folder / shard.name, shard)
    shutil.copy(flow_folder / "index.json", index)
    with pytest.raises(
        UserError, match=r"mirrored was not made from the videos and settings of .*; delete it, then extract"
    ):
        FeatureCache(tmp_path / "flow").open_mirrored()


def test_features_in_memory_have_flow_too(pair):
    names = sorted(pair.videos)
    arrays, flow = ({name: each.read(name) for name in names} for each in (pair, pair.flow))
    clips = Clips(ArrayFeatures(arrays, flow=flow), names, class_names(names), 6, flow=True)
    expected = Clips(pair, names, class_names(names), 6, flow=True)
    for one, other in zip(clips.load(np.arange(len(clips))), expected.load(np.arange(len(clips))), strict=True):
        np.testing.assert_array_equal(one, other)
    model = build_model("avg_lstm", 3, lstm_units=4, fusion="early")
    model.compile("adam", loss=losses())
    assert np.isfinite(model.fit(clips.batches(8), shuffle=False, verbose=0).history["loss"]).all()


def test_shuffled_flow_is_that_of_another_class_stretched_to_the_videos_length(pair, split, tmp_path):
    names = sorted(pair.videos)
    clips = Clips(pair, names, class_names(names), 5, flow=True)
    plain, shuffled = clips.load(np.arange(len(clips))), Clips(pair, names, class_names(names), 5, flow=True)
    shuffled.shuffle_flow(pair.flow)
    features, mask, labels, flow = shuffled.load(np.arange(len(clips)))
    for before, after in zip(plain[:3], (features, mask, labels), strict=True):
        np.testing.assert_array_equal(before, after)
    given = {}
    for row, clip in enumerate(clips.clips):
        frames, count = np.arange(clip.start, clip.start + clip.frames), pair.videos[clip.video].frames
        (given[clip.video],) = {
            other for other in names
            if np.array_equal(flow[row][mask[row]], pair.flow.read(other)[frames * pair.videos[other].frames // count])
        }  # fmt: skip
    assert sorted(given.values()) == names
    assert all(own.split("/")[0] != other.split("/")[0] for own, other in given.items())
    train(config("softmax", fusion="early", epochs=1), pair, split, tmp_path / "run", about=ABOUT)
    metrics = [evaluate(tmp_path / "run", pair, shuffle_flow=shuffle) for shuffle in (False, True)]
    assert [each["subset"] for each in metrics] == ["test", "test_shuffled_flow"]
    assert metrics[0]["cross_entropy"] != metrics[1]["cross_entropy"]
    assert Run.open(tmp_path / "run").metrics("test")["cross_entropy"] == metrics[0]["cross_entropy"]
    train(config("softmax", epochs=1), rgb := FeatureCache(pair.folder), split, tmp_path / "rgb", about=ABOUT)
    with pytest.raises(UserError, match="rgb takes no optical flow that could be shuffled"):
        evaluate(tmp_path / "rgb", rgb, shuffle_flow=True)
    rgb.close()
