"""Tables of results: who shares a row, what a row says of spread, and of where models look."""

import json
from pathlib import Path

import pytest

from action_attention.errors import UserError
from experiments import table

ROOT = Path(__file__).parents[1]
WITH_MOTION = {"motion": 0.25, "motion_centre": 0.6, "permuted": 0.15}


def result(seed, top1, pointing=None, controls=None, **config):
    found = {"attention_ci95": [0.1, 0.3], "uniform": 0.125, "centre": 0.5, **(controls or {})}
    localization = {key: {**found, "attention": pointing} for key in ("pointing", "mass")}
    return {
        "dataset": "made", "split": 1, "subset": "test", "validation": "source", "weights": "imagenet",
        "model": "alstm", "seed": seed, "videos": 40, "video_top1": top1, "video_top1_ci95": [0.35, 0.65],
        **dict.fromkeys(table.COLUMNS, 0.5), "epochs": 10, "seconds": 5.0,
        "config": {"attention_penalty": 0.5, **config}, **({"localization": localization} if pointing else {}),
    }  # fmt: skip


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_one_seed_has_its_own_interval_and_several_have_that_of_their_mean():
    (alone,) = rows(table.markdown([result(0, 0.5)]))
    assert alone[1:5] == ["alstm", "1", "50.0%", "35.0% to 65.0%"]
    (both,) = rows(table.markdown([result(0, 0.5), result(1, 0.6)]))
    # mean 55 %, standard deviation 7.07 points, Student's t with one degree of freedom: 12.706 * 5 points
    assert both[1:5] == ["alstm", "2", "55.0% ± 7.1", "-8.5% to 118.5%"]


def test_a_row_names_the_settings_that_are_not_the_models_own():
    runs = [result(0, 0.5), result(0, 0.6, normalize="sqrt_l2", attention_penalty=0.0)]
    assert [row[1] for row in rows(table.markdown(runs))] == [
        "alstm",
        "alstm, normalize=sqrt_l2, attention_penalty=0.0",
    ]


def test_where_models_look_is_told_of_the_runs_that_know():
    assert table.localization([result(0, 0.5)]) == ""
    row, *controls = rows(table.localization([result(0, 0.5), result(1, 0.5, 0.2), result(2, 0.5, 0.4)]))
    assert row[2:4] == ["2", "30.0% ± 14.1"]
    where = "made, split 1, 40 test videos"
    assert controls == [
        [where, "control: uniform attention", "-", "12.5%", "-", "-", "12.5%", "-", "-"],
        [where, "control: centre of the frame", "-", "50.0%", "-", "-", "50.0%", "-", "-"],
        [where, "control: motion alone", *"-------"],  # results of before version 0.3 do not have it
        [where, "control: motion x centred Gaussian", *"-------"],
    ]
    assert (row[5], row[8]) == ("-", "-")


def test_controls_stand_once_below_the_models_of_a_split():
    def of(split, *given, **config):
        made = result(*given, **config)
        made["localization"]["mass"] = {
            key: value / 2 if isinstance(value, float) else value for key, value in made["localization"]["mass"].items()
        }
        return {**made, "split": split}

    other = {**WITH_MOTION, "permuted": 0.35}
    results = [
        of(1, 0, 0.5, 0.2), of(2, 0, 0.5, 0.2, WITH_MOTION), of(1, 0, 0.5, 0.3, WITH_MOTION, cells=2),
        of(1, 1, 0.5, 0.5, other, cells=2), of(2, 0, 0.5, 0.4, {"centre": 0.75}, cells=3),
    ]  # fmt: skip
    shown = [[*row[:2], row[3], row[5], row[6], row[8]] for row in rows(table.localization(results))]
    first, second = (f"made, split {split}, 40 test videos" for split in (1, 2))
    names = "uniform attention", "centre of the frame", "motion alone", "motion x centred Gaussian"
    controls = [["12.5%", "-", "6.2%", "-"], ["50.0%", "-", "25.0%", "-"], ["25.0%", "-", "12.5%", "-"],
                ["60.0%", "-", "30.0%", "-"]]  # fmt: skip
    known = [[f"control: {name}", *values] for name, values in zip(names, controls, strict=True)]
    elsewhere = [known[0], ["control: centre of the frame", "75.0%", "-", "37.5%", "-"],
                 *([f"control: {name}", *"----"] for name in names[2:])]  # fmt: skip
    assert shown == [
        [first, "alstm", "20.0%", "-", "10.0%", "-"],
        [first, "alstm, cells=2", "40.0% ± 14.1", "25.0%", "20.0% ± 7.1", "12.5%"],  # its other videos' are its own
        *([first, *control] for control in known),
        [second, "alstm", "20.0%", "15.0%", "10.0%", "7.5%"],
        *([second, *control] for control in known),
        [second, "alstm, cells=3", "40.0%", "-", "20.0%", "-"],  # on another grid the centre's cell is another one
        *([second, *control] for control in elsewhere),
    ]


def test_results_of_every_version_are_read():
    for name in ("sample", "jhmdb", "jhmdb_ablations", "jhmdb_conv_ablations"):
        path = ROOT / "experiments" / "results" / f"{name}.json"
        results = table.read_results(path)
        for result, written in zip(results, json.loads(path.read_text()), strict=True):
            kept = written["best_epoch"]  # counted from 0 before schema 2
            assert result == {**written, "schema_version": 2, "best_epoch": None if kept is None else kept + 1}
        assert "control: motion alone" in table.localization(results)


@pytest.mark.parametrize("control", list(WITH_MOTION))
def test_controls_that_cannot_be_are_one_sentence_and_those_that_can_are_read(tmp_path, control):
    path = tmp_path / "a.json"
    _, old, _ = table.read_results(ROOT / "experiments" / "results" / "sample.json")
    for key, good, bad in (
        (control, (0.5, 1), ("x", None, [])),
        (f"above_{control}_ci95", ([0.1, 0.2], None), ("x", 1.0, [0.1], {}, [0.1, None])),
    ):
        for value in (*good, *bad):
            aim = {**old["localization"]["pointing"], key: value}
            path.write_text(json.dumps([{**old, "localization": {**old["localization"], "pointing": aim}}]))
            if value in good:
                (found,) = table.read_results(path)
                assert found["localization"]["pointing"] == aim
                assert table.localization([found])  # what only one of the two measures knows is not shown
            else:
                with pytest.raises(UserError, match=rf"\(0\.localization\.pointing\.{key}.* must .*\); write it again"):
                    table.read_results(path)


def test_the_mean_of_splits_takes_the_seeds_that_ran_on_all():
    runs = [{**result(seed, top1), "split": split} for split, seed, top1 in
            [(1, 0, 0.5), (1, 1, 0.6), (1, 2, 0.9), (2, 0, 0.3), (2, 1, 0.6)]]  # fmt: skip
    (row,) = rows(table.over_splits(runs))
    # seed 0: 40 %, seed 1: 60 %; 12.706 * 10 points
    assert row == ["made, splits 1, 2", "alstm", "2", "50.0% ± 14.1", "-77.1% to 177.1%", "-", "-", "-"]
    assert table.over_splits(runs[:3]) == ""
    shuffled = [{**run, "subset": "test_shuffled_flow"} for run in runs]
    assert [row[0] for row in rows(table.over_splits(runs + shuffled))] == [
        "made, splits 1, 2", "made, splits 1, 2, test_shuffled_flow",
    ]  # fmt: skip
    looked = [
        {**result(0, 0.5, pointing), "split": split, "entropy": pointing} for split, pointing in ((1, 0.2), (2, 0.3))
    ]
    (row,) = rows(table.over_splits(looked))
    assert row[-3:] == ["25.0%", "25.0%", "0.25"]
    del looked[0]["localization"]
    assert rows(table.over_splits(looked))[0][-3:] == ["-", "-", "0.25"]
    svm = [{**result(0, 0.5, C=c), "split": split, "model": "svm"} for split, c in ((1, 0.3), (2, 3.0))]
    svm[1]["validation"] = "none"  # as given, where a class has a single video
    (row,) = rows(table.over_splits(svm))
    assert row[1:] == ["svm, attention_penalty=0.5", "1", "50.0%", "-", "-", "-", "-"]


def test_differences_are_those_of_the_same_seed():
    runs = [result(0, 0.5, mirror=True), result(1, 0.6, mirror=True)]
    runs += [result(seed, top1, mirror=True, cells=2) for seed, top1 in ((1, 0.64), (0, 0.52), (7, 0.9))]
    (row,) = rows(table.differences(runs))
    # +2 and +4 points: mean 3, standard deviation 1.414, 12.706 * 1
    assert row == ["cells=2", "1", "2", "+3.0", "-9.7 to +15.7"]
    other = {**result(0, 0.5, mirror=True), "validation": "tutorial", "model": "avg_lstm"}
    assert rows(table.differences([runs[0], other])) == [[f"avg_lstm, {table.TUTORIAL}", "1", "1", "+0.0", "-"]]


def test_differences_of_several_splits_are_the_mean_of_those_that_both_ran():
    ran = {1: {0: (0.5, 0.6), 1: (0.5, 0.5)}, 2: {0: (0.4, 0.6), 1: (0.4, 0.8), 2: (0.4, 0.9)}}
    runs = [
        {**result(seed, pair[which], **settings), "split": split}
        for which, settings in enumerate(({}, {"cells": 2}))
        for split, seeds in ran.items()
        for seed, pair in seeds.items()
    ]
    alone = [{**result(seed, 0.9, cells=2), "split": 3} for seed in (0, 1)]  # there is no first model's run of it
    (row,) = rows(table.differences(runs + alone))
    # seed 0: the mean of 10 and 20 points; seed 1: of 0 and 40; seed 2 lacks split 1
    assert row == ["cells=2", "1, 2", "2", "+17.5", "-14.3 to +49.3"]


@pytest.mark.parametrize("others", [[], [result(1, 0.5, cells=2)]])
def test_without_another_models_run_of_a_seed_there_is_no_difference_to_show(others):
    with pytest.raises(
        UserError, match=r"^--differences: no other model ran on a split and seed of alstm; add such runs"
    ):
        table.differences([result(0, 0.5), *others])


@pytest.mark.parametrize(("change", "label"), [({"weights": "random"}, table.RANDOM_WEIGHTS),
                                               ({"validation": "tutorial"}, table.TUTORIAL)])  # fmt: skip
def test_what_must_not_be_mistaken_is_labelled(change, label):
    assert label not in table.markdown([result(0, 0.5)])
    assert label in table.markdown([{**result(0, 0.5), **change}])


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 9000, '[{"model": "alstm"}]', "null"])
def test_results_that_are_none_are_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not what --output of this program wrote \(.*\); write it again"):
        table.read_results(tmp_path / "a.json")
