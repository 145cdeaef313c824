"""The report, as its files say it and as a browser shows it."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from action_attention import evaluation
from action_attention.boxes import action_boxes
from action_attention.errors import UserError
from action_attention.metrics import VideoPrediction, summarize
from experiments import report, table
from tests.browsers import chromium, in_browser
from tests.conftest import write_video

HOSTILE = "<img src=x onerror=window.owned=1>"
CLASSES = [HOSTILE, "nod & <", "spin"]
# the name of class 1 and that of its files make a closing script tag: nod & </script>
FILES = ('it\'s "50%" #{}?.avi', "script><script>window.owned={}<!--.avi", "ünï {}.avi")
VIDEOS, FRAMES, GONE = 18, 4, 5


def make_run(folder, seed, videos=VIDEOS, classes=CLASSES, validation="source", weights="imagenet"):
    """An evaluated run whose predictions are drawn, four in five of them right."""
    rng = np.random.default_rng(seed)
    predictions = []
    for number in range(videos):
        label = number % len(classes)
        name = f"{classes[label]}/{FILES[number % len(FILES)].format(number)}"
        logits = rng.normal(size=(FRAMES, len(classes)))
        logits[:, label] += 2 if rng.random() < 0.8 else -2
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        attention = rng.dirichlet(np.ones(49), FRAMES).reshape(FRAMES, 7, 7)
        predictions.append(VideoPrediction(name, label, probabilities, attention, [probabilities], 1.0))
    output = folder / "eval" / "test"
    output.mkdir(parents=True)
    about = {"dataset": "tiny", "split": 1, "validation": validation}
    settings = {"weights": weights, "fps": 15.0, "backbone": "VGG16", "precision": "float32"}
    config = {"model": "alstm", "seed": seed, "vote": "mode", "clip_stride": None}
    run = {**about, "config": config, "classes": classes, "cache": {"folder": "/absent", "settings": settings},
           "best": {"epoch": 1}, "epochs": 3, "seconds": 9.5, "git": "abc", "versions": {"keras": "3"}}  # fmt: skip
    metrics = {**about, "subset": "test", "model": "alstm", "seed": seed, "weights": weights,
               **summarize(predictions, classes, "mode")}  # fmt: skip
    history = [
        {"epoch": epoch, "logits_loss": 2.0 / (epoch + 1), "attention_loss": float("nan"), "logits_frame_top1": 0.3,
         "val_video_top1": 0.5, "val_cross_entropy": 1.5} for epoch in range(3)
    ]  # fmt: skip
    for path, content in (("run", run), ("split", {}), ("history", history), ("eval/test/metrics", metrics)):
        (folder / f"{path}.json").write_text(json.dumps(content))
    evaluation._write_predictions(output / "predictions.csv", predictions, classes, "mode")
    evaluation._write_frames(output / "frames.npz", predictions)
    return folder


def rows_of(run_dir):
    with (run_dir / "eval" / "test" / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def data_of(output):
    page = (output / "index.html").read_text()
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / "first", 1), make_run(root / "second <b>", 2, validation="tutorial", weights="random")]


@pytest.fixture(scope="module")
def source(tmp_path_factory, run_dirs):
    """The videos of the runs, but one that is gone."""
    root = tmp_path_factory.mktemp("source")
    for number, row in enumerate(rows_of(run_dirs[0])):
        if number != GONE:
            write_video(root / row["video"], 2 * FRAMES, seed=number)
    return root


@pytest.fixture(scope="module")
def output(tmp_path_factory, run_dirs, source):
    folder = tmp_path_factory.mktemp("report")
    report.make_report(report.read_runs(run_dirs, "test"), source, folder, 0)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser):
    """Opens a report; afterwards nothing may have been complained about, nor asked of a network."""
    said, pages = [], []

    def open_one(folder, width=1280, **settings):
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        page.goto((folder / "index.html").as_uri())
        return page

    yield open_one
    for page in pages:
        assert page.evaluate("window.owned") is None
        page.close()
    assert said == []


def walk(page, gallery):
    """File names and captions of all cards of a gallery, page by page, of the run that is shown first."""
    page.wait_for_timeout(50)
    cards = []
    while True:
        section = page.locator(f"#{gallery}")
        cards += zip(
            section.locator(".file").all_inner_texts(),
            section.locator(".look:first-child figcaption").all_inner_texts(), strict=True,
        )  # fmt: skip
        forward = section.get_by_role("button", name="Next page")
        if forward.is_disabled():
            return cards
        forward.click()


@in_browser
def test_the_page_shows_the_numbers_of_metrics_json(open_page, output, run_dirs):
    page = open_page(output)
    for column, run_dir in enumerate(run_dirs):
        metrics = json.loads((run_dir / "eval" / "test" / "metrics.json").read_text())
        shown = {
            line.locator("th").inner_text(): line.locator("td").nth(column).inner_text()
            for line in page.locator("#figures tbody tr").all()
        }
        low, high = metrics["video_top1_ci95"]
        assert shown == {
            "Video top-1": f"{metrics['video_top1']:.1%}",
            "95 % interval of video top-1": f"{low:.1%} to {high:.1%}",
            "Video top-5": f"{metrics['video_top5']:.1%}",
            "Clip top-1": f"{metrics['clip_top1']:.1%}",
            "Frame top-1": f"{metrics['frame_top1']:.1%}",
            "Macro F1": f"{metrics['macro_f1']:.1%}",
            "Cross-entropy": f"{metrics['cross_entropy']:.3f}",
        }
        assert page.locator(".tile strong").nth(column).inner_text() == shown["Video top-1"]
        assert shown["95 % interval of video top-1"] in page.locator(".tile").nth(column).inner_text()
        page.get_by_label("Run", exact=True).select_option(str(column))
        cells = [
            [int(cell or 0) for cell in line.locator("td").all_inner_texts()]
            for line in page.locator("#matrix tbody tr").all()
        ]
        assert cells == metrics["confusion"]
        for name, of_class in metrics["per_class"].items():
            line = page.locator("#per-class tbody tr").filter(has=page.get_by_role("button", name=name)).first
            right = round(of_class["accuracy"] * of_class["videos"])
            assert line.locator("td").all_inner_texts()[:1] == [str(of_class["videos"])]
            assert line.locator("td").nth(1 + column).inner_text() == f"{of_class['accuracy']:.1%} ({right})"


def test_the_page_has_every_control_of_pointing_and_mass(run_dirs, tmp_path):
    old, new, one = (tmp_path / name for name in ("old", "new", "one"))
    both = {"attention": 0.5, "attention_ci95": [0.4, 0.6], "uniform": 0.125, "centre": 0.5}
    known = {"motion": 0.25, "motion_centre": 0.6, "permuted": 0.15}
    above = {"uniform": [0.2, 0.55], "centre": [-0.1, 0.1], "motion": [0.2, 0.3], "motion_centre": [-0.15, -0.05],
             "permuted": [0.3, 0.4]}  # fmt: skip
    intervals = {f"above_{name}_ci95": of_it for name, of_it in above.items()}
    for folder, aim in (
        (old, both), (new, both | known | intervals), (one, both | known | dict.fromkeys(intervals)),
    ):  # fmt: skip
        shutil.copytree(run_dirs[0], folder)
        path = folder / "eval" / "test" / "metrics.json"
        metrics = json.loads(path.read_text())
        counts = {"videos": 4, "frames": 9, "frames_without_annotation": 1, "without_annotation": []}
        metrics["localization"] = {**counts, "pointing": aim, "mass": {**aim, "attention": 0.25}, "per_class": {}}
        path.write_text(json.dumps(metrics))
    report.make_report(report.read_runs([old, new, one], "test"), None, tmp_path / "page", 0)
    rows = [row for row in data_of(tmp_path / "page")["figures"] if row[0].startswith(("Pointing", "Mass"))]
    controls = [
        ["uniform attention", ["12.5%", "12.5% (attention: +20.0 to +55.0)", "12.5%"]],
        ["centre of the frame", ["50.0%", "50.0% (attention: -10.0 to +10.0)", "50.0%"]],
        ["motion alone", ["-", "25.0% (attention: +20.0 to +30.0)", "25.0%"]],
        ["motion x centred Gaussian", ["-", "60.0% (attention: -15.0 to -5.0)", "60.0%"]],
        ["another video's attention", ["-", "15.0% (attention: +30.0 to +40.0)", "15.0%"]],
    ]
    pointing, mass = "Pointing accuracy", "Mass on the actor"
    assert rows == [
        [pointing, ["50.0% (40.0% to 60.0%)"] * 3],
        *([f"{pointing}: {name}", values] for name, values in controls),
        [mass, ["25.0% (40.0% to 60.0%)"] * 3],
        *([f"{mass}: {name}", values] for name, values in controls),
    ]


def test_boxes_stand_in_the_numbers_and_are_drawn_where_they_are_asked_for(run_dirs, source, tmp_path, monkeypatch):
    """Of a run whose evaluation chose a threshold; the other one is drawn without."""
    known, drawn, draw_overlays = tmp_path / "known", {}, report.draw_overlays
    shutil.copytree(run_dirs[0], known)
    names = ("attention", "whole_frame", "centred_box", "training_box", "oracle")
    figures = dict.fromkeys(names, 0.25) | {"attention": 0.5, "above_training_box_ci95": [0.125, 0.375]}
    boxes = {"videos": 4, "training_videos": 3, "tau": {"attention": 0.3}, "tube_iou": figures}
    boxes |= dict.fromkeys(("corloc_0.2", "corloc_0.3", "corloc_0.5", "video_map_0.2", "video_map_0.5"), figures)
    path = known / "eval" / "test" / "metrics.json"
    metrics = json.loads(path.read_text())
    aim = {"attention": 0.5, "attention_ci95": None, "uniform": 0.1, "centre": 0.2}
    counts = {"videos": 4, "frames": 9, "frames_without_annotation": 1, "without_annotation": []}
    metrics["localization"] = {**counts, "pointing": aim, "mass": aim, "per_class": {}, "boxes": boxes}
    path.write_text(json.dumps(metrics))

    def draw(frames, prediction, *arguments, boxes, **settings):
        drawn.setdefault(prediction.name, []).append(boxes)
        return draw_overlays(frames, prediction, *arguments, boxes=boxes, **settings)

    monkeypatch.setattr(report, "draw_overlays", draw)
    runs = report.read_runs([known, run_dirs[1]], "test")
    report.make_report(runs, source, tmp_path / "page", 1)
    assert all(found is None for of_video in drawn.values() for found in of_video)
    drawn.clear()
    report.make_report(runs, source, tmp_path / "page", 1, boxes=True)
    for name, (first, second) in drawn.items():
        np.testing.assert_array_equal(first, action_boxes(runs[0].predictions[name].attention, 0.3))
        assert second is None
    rows = dict(data_of(tmp_path / "page")["figures"])
    assert rows["Tube IoU of boxes"] == ["0.500", "-"]
    assert rows["CorLoc 0.5: median training box"] == ["25.0% (attention: +12.5 to +37.5)", "-"]


@in_browser
def test_names_are_text_never_code(open_page, output, run_dirs):
    page = open_page(output)
    assert page.locator("main img").count() == 0
    assert page.locator("#matrix tbody th").all_inner_texts() == CLASSES
    assert page.locator(".tile .key").nth(1).evaluate("key => key.parentNode.textContent") == "second <b>"
    shown = {name for gallery in ("successes", "failures") for name, _ in walk(page, gallery)}
    assert shown == {row["video"].split("/", 1)[1] for row in rows_of(run_dirs[0])}


@in_browser
def test_what_must_not_be_overlooked_is_on_the_page(open_page, output, source):
    page = open_page(output)
    first, second = page.locator("#warnings .warning").all_inner_texts()
    assert first == table.RANDOM_WEIGHTS
    assert second == f"second <b>: {table.TUTORIAL}"
    (note,) = page.locator("#videos-warnings .warning").all_inner_texts()
    assert "1 of 18 videos have no overlay" in note
    assert "is gone" in note
    page.get_by_label("True class").select_option(str(GONE % 3))
    assert page.locator(".absent").first.inner_text().endswith("is gone")


@in_browser
def test_overlays_play_where_they_are_seen_and_nowhere_else(open_page, output):
    page = open_page(output)
    page.locator("#successes li").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('#successes video[src]').length > 1")
    page.wait_for_function(
        """() => [...document.querySelectorAll('#successes li:first-child video')].every(video =>
        video.currentTime > 0 && !video.paused && !video.error && video.videoWidth === 360)"""
    )
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("document.querySelectorAll('#galleries video[src]').length === 0")


@in_browser
def test_filters_leave_the_videos_that_predictions_csv_names(open_page, output, run_dirs):
    page = open_page(output)
    for column, run_dir in enumerate(run_dirs):
        page.get_by_label("Run", exact=True).select_option(str(column))
        rows = rows_of(run_dir)
        for label, predicted in ((None, None), (0, None), (None, 1), (2, 0), (1, 1)):
            page.get_by_label("True class").select_option("-1" if label is None else str(label))
            page.get_by_label("Predicted class").select_option("-1" if predicted is None else str(predicted))
            for gallery, right in (("successes", "1"), ("failures", "0")):
                expected = {
                    row["video"].split("/", 1)[1]
                    for row in rows
                    if row["right"] == right
                    and (label is None or row["label"] == CLASSES[label])
                    and (predicted is None or row["predicted"] == CLASSES[predicted])
                }
                cards = [name for name, _ in walk(page, gallery)]
                assert len(cards) == len(expected)
                assert set(cards) == expected
                assert page.locator(f"#{gallery} .count").inner_text().startswith(str(len(expected)))
        page.get_by_role("button", name="Clear filter").click()
    page.get_by_label("Only where the runs disagree").check()
    differ = sum(a["predicted"] != b["predicted"] for a, b in zip(*map(rows_of, run_dirs), strict=True))
    assert 0 < differ < VIDEOS
    assert len(walk(page, "successes")) + len(walk(page, "failures")) == differ


@in_browser
def test_a_number_of_the_confusion_matrix_shows_its_videos(open_page, output, run_dirs):
    page = open_page(output)
    counts = json.loads((run_dirs[0] / "eval" / "test" / "metrics.json").read_text())["confusion"]
    label, predicted = next((i, j) for i in range(3) for j in range(3) if i != j and counts[i][j])
    page.locator("#matrix tbody tr").nth(label).locator("td").nth(predicted).get_by_role("button").click()
    assert len(walk(page, "failures")) == counts[label][predicted]
    assert walk(page, "successes") == []


@in_browser
def test_galleries_begin_with_the_most_confident(open_page, output, run_dirs):
    page = open_page(output)
    probability = {row["video"].split("/", 1)[1]: float(row["probability"]) for row in rows_of(run_dirs[0])}
    for gallery in ("successes", "failures"):
        cards = walk(page, gallery)
        confidences = [probability[name] for name, _ in cards]
        assert len(set(confidences)) > 1
        assert confidences == sorted(confidences, reverse=True)
        for (_, caption), confidence in zip(cards, confidences, strict=True):
            assert abs(int(caption.rsplit(" ", 1)[1].rstrip("%")) - 100 * confidence) <= 0.51


@in_browser
def test_one_video_large_steps_through_its_frames_in_all_runs(open_page, output):
    page = open_page(output, reduced_motion="reduce")
    page.locator("#successes .open").nth(2).press("Enter")
    viewer = page.get_by_role("dialog")
    frame = "[...document.querySelectorAll('dialog video')].map(video => Math.floor(video.currentTime * 15) + 1)"
    page.wait_for_function("[...document.querySelectorAll('dialog video')].every(video => video.readyState > 1)")
    assert page.evaluate(frame) == [1, 1]
    viewer.get_by_role("button", name="One frame on").click()
    viewer.get_by_role("button", name="One frame on").click()
    assert page.evaluate(frame) == [3, 3]
    assert "frame 3 of 4" in viewer.inner_text()
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    page.wait_for_function("!document.querySelector('dialog video[src]')")  # its close event comes a moment later


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_in_light_and_dark(open_page, output, scheme):
    page = open_page(output, width=390, color_scheme=scheme)
    page.locator("details summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    colours = page.evaluate(
        """() => [...document.querySelectorAll('p, th, td, a, h2, summary, button:enabled, .right, .wrong')]
        .filter(element => element.offsetParent && element.textContent.trim()).map(element => {
            const numbers = colour => colour.match(/[\\d.]+/g).map(Number), layers = [];
            for (let each = element; each; each = each.parentElement)
                layers.unshift(numbers(getComputedStyle(each).backgroundColor));
            const behind = layers.reduce((under, [r, g, b, a = 1]) =>
                [r, g, b].map((channel, i) => a * channel + (1 - a) * under[i]), [255, 255, 255]);
            return [numbers(getComputedStyle(element).color), behind, element.textContent];
        })"""
    )

    def luminance(colour):
        channels = np.array(colour[:3]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for text, behind, words in colours:
        low, high = sorted([luminance(text), luminance(behind)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, behind, words)  # WCAG 2.1, AA
    (_, behind, title), *_ = colours
    assert (luminance(behind) > 0.5) == (scheme == "light"), title


@in_browser
def test_many_videos_make_the_page_no_larger(open_page, tmp_path, monkeypatch):
    """257 or 1,530 videos: as many elements, because only one page of each gallery is in the document."""
    monkeypatch.setattr(report, "draw_videos", lambda *given: {name: {"note": "none"} for name in given[2]})
    nodes = []
    for videos in (257, 1530):
        runs = [make_run(tmp_path / f"{videos}-{seed}", seed, videos, ["leap", "nod", "spin"]) for seed in (0, 1)]
        report.make_report(report.read_runs(runs, "test"), tmp_path, tmp_path / str(videos), 0)
        page = open_page(tmp_path / str(videos))
        nodes.append(page.evaluate("document.querySelectorAll('*').length"))
    assert nodes[0] == nodes[1] < 1500


def test_galleries_can_be_limited_to_the_most_confident(run_dirs, source, tmp_path, monkeypatch):
    drawn = []

    def draw(path, runs, name, files, heatmap, boxes):
        drawn.append(name)
        return {"fps": 15.0, "aspect": 1.0}

    monkeypatch.setattr(report, "draw_video", draw)
    runs = report.read_runs(run_dirs, "test")
    report.make_report(runs, source, tmp_path, 0)
    assert sorted(drawn) == sorted(runs[0].predictions)
    whole = [run["galleries"] for run in data_of(tmp_path)["runs"]]
    drawn.clear()
    report.make_report(runs, source, tmp_path, 2)
    data = data_of(tmp_path)
    assert [run["galleries"] for run in data["runs"]] == [[right[:2], wrong[:2]] for right, wrong in whole]
    shown = {v for run in data["runs"] for gallery in run["galleries"] for v in gallery}
    assert {data["videos"][v]["name"] for v in shown} == set(drawn)
    assert any("most confident videos only" in note for note in data["notes"])


def test_overlays_have_the_heatmap_that_was_asked_for(run_dirs, source, tmp_path, monkeypatch):
    """By default the absolute scale; the page's text is true of both."""
    asked, draw_overlays = [], report.draw_overlays

    def draw(*arguments, heatmap, **settings):
        asked.append(heatmap)
        return draw_overlays(*arguments, heatmap=heatmap, **settings)

    monkeypatch.setattr(report, "draw_overlays", draw)
    runs = report.read_runs(run_dirs, "test")
    report.make_report(runs, source, tmp_path / "default", 1)
    assert set(asked) == {"absolute"}
    asked.clear()
    report.make_report(runs, source, tmp_path / "tutorial", 1, "tutorial")
    assert set(asked) == {"tutorial"}
    for folder in ("default", "tutorial"):
        assert "below each picture stands what it means" in (tmp_path / folder / "index.html").read_text()
    with pytest.raises(UserError, match="there is no heatmap 'jet'"):
        report.make_report(runs, source, tmp_path / "jet", 1, "jet")
    assert not (tmp_path / "jet" / "index.html").exists()


def test_a_stopped_report_leaves_no_page_even_over_an_older_one(run_dirs, source, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "index.html").write_text("older")
    monkeypatch.setattr(report, "draw_video", stop)
    with pytest.raises(KeyboardInterrupt):
        report.make_report(report.read_runs(run_dirs, "test"), source, tmp_path, 0)
    assert not (tmp_path / "index.html").exists()


def test_a_video_that_is_another_one_now_has_a_note_and_no_overlay(run_dirs, tmp_path):
    (run,) = report.read_runs(run_dirs[:1], "test")
    name, file = sorted(run.predictions)[0], tmp_path / "00000.mp4"
    for frames in (2 * FRAMES + 4, 2 * FRAMES - 2):
        write_video(tmp_path / name, frames)
        said = report.draw_video(tmp_path / name, [run], name, [file])
        assert "was evaluated with 4 sampled frames and has another number of them now" in said["note"]
    (tmp_path / name).write_text("no video")
    assert "cannot be opened as a video" in report.draw_video(tmp_path / name, [run], name, [file])["note"]
    assert not file.exists()


def test_runs_that_cannot_be_compared_or_are_not_evaluated_are_refused(run_dirs, tmp_path):
    other = make_run(tmp_path / "classes", 1, classes=["leap", "nod", "spin"])
    with pytest.raises(UserError, match=r"first and .*classes have different classes and cannot stand side by side"):
        report.read_runs([run_dirs[0], other], "test")
    other = make_run(tmp_path / "fewer", 1, videos=VIDEOS - 3)
    with pytest.raises(UserError, match="have different test videos and cannot"):
        report.read_runs([run_dirs[0], other], "test")
    shutil.rmtree(other / "eval")
    with pytest.raises(UserError, match="make it with `make eval RUN_DIR="):
        report.read_runs([other], "test")
    with pytest.raises(UserError, match="is not a folder; give --videos"):
        report.find_videos(str(tmp_path / "absent"), report.read_runs(run_dirs[:1], "test")[0])


def test_videos_that_nobody_can_find_leave_a_page_that_says_so(run_dirs, tmp_path):
    runs = report.read_runs(run_dirs[:1], "test")
    assert report.find_videos(None, runs[0]) is None
    report.make_report(runs, None, tmp_path, 0)
    data = data_of(tmp_path)
    assert "18 of 18 videos have no overlay" in data["notes"][0]
    assert not list(Path(tmp_path).glob("overlays/*/*"))
