"""What `predict` says of a source while it plays: its table, its film, and its end."""

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_frames
from test_live import FPS, make_frames, make_recognizer

from action_attention.errors import UserError
from data_prep import cameras
from data_prep.cameras import Shot
from data_prep.live import WARM_UP, LiveRecognizer
from data_prep.videos import read_frames
from experiments import watch as module
from experiments.watch import COLUMNS, Record, _drawn, _reported, _sights, watch


class Shots(list):
    """Of a source that has them all."""

    dropped = 3


def shots(count):
    return Shots(Shot(frame, number / FPS, 50 + number) for number, frame in enumerate(make_frames(count)))


@pytest.mark.parametrize(("settings", "late"), [({}, 0), ({"scores": "motion"}, 1)])
def test_a_delay_counts_from_the_arrival_of_the_frame_that_is_answered(settings, late, network, monkeypatch):
    monkeypatch.setattr(module, "monotonic", lambda: 100.0)
    live = LiveRecognizer(make_recognizer(network, "alstm", lstm_units=4, **settings))
    sights = list(_sights(shots(12), live, None))
    assert [sight.seen.time for sight in sights] == [number / FPS for number in range(WARM_UP - 1, 12 - late)]
    assert [sight.delay for sight in sights] == [50 - number for number in range(WARM_UP - 1, 12 - late)]
    assert {sight.dropped for sight in sights} == {3}


def test_a_watch_ends_after_its_seconds(network):
    live = LiveRecognizer(make_recognizer(network, "softmax"))
    assert [round(sight.seen.time * FPS) for sight in _sights(shots(30), live, 1.0)] == list(range(15))


def test_every_answer_is_in_the_table_and_one_a_second_on_the_screen(network, monkeypatch, capsys):
    clock = iter(np.arange(0, 100, 0.4))  # seconds between two answers
    live, table, record = LiveRecognizer(make_recognizer(network, "softmax")), io.StringIO(), Record()
    sights = list(_sights(shots(6), live, None))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    assert list(_reported(sights, record, csv.writer(table))) == sights
    rows = list(csv.reader(io.StringIO(table.getvalue())))
    assert rows[0] == list(COLUMNS)
    assert [row[0] for row in rows[1:]] == [f"{number / FPS:.3f}" for number in range(6)]
    for row, sight in zip(rows[1:], sights, strict=True):
        best = sight.seen.result.top5[0]
        assert row[1:4] == [best["class"], best["class"], f"{best['probability']:.4f}"]
    assert capsys.readouterr().out.count(" dropped") == 2  # after 0.4 and 1.6 seconds
    assert (record.answers, record.seconds, record.dropped) == (6, pytest.approx(2.4), 3)
    assert str(record).startswith("6 frames in 2.4 s: 2.5 frames/s, 3 dropped, delay ")


def test_a_film_keeps_its_time_where_frames_were_dropped(network, monkeypatch):
    monkeypatch.setattr(module, "_overlay", lambda seen, heatmap: round(seen.time * FPS))
    seen = [SimpleNamespace(seen=SimpleNamespace(time=number / FPS)) for number in (7, 8, 11, 12)]
    assert list(_drawn(seen[0], iter(seen[1:]), FPS, "absolute")) == [7, 8, 8, 8, 11, 12]


def test_a_source_is_watched_to_its_end(network, tmp_path, monkeypatch, capsys):
    """A file whose frames all come at once: the table has as many answers as are told."""
    monkeypatch.setattr(cameras.time, "sleep", lambda _: None)
    recognizer, film = make_recognizer(network, "softmax"), tmp_path / "my film.avi"
    write_frames(film, make_frames(20), fps=FPS)
    table, overlay = watch(recognizer, str(film), tmp_path)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert f"{len(rows)} frames in " in capsys.readouterr().out
    assert (table.name, overlay.name) == ("my_film_live.csv", "my_film_live.mp4")
    first, last = float(rows[0]["time"]), float(rows[-1]["time"])
    assert last == pytest.approx(19 / FPS, abs=0.001)
    assert len(read_frames(overlay, 1000.0)) == 1 + round((last - first) * FPS)
    assert watch(recognizer, str(film), tmp_path, overlay=False) == [table]


def test_a_source_that_ends_before_an_answer_says_so(network, tmp_path):
    recognizer, film = make_recognizer(network, "alstm", lstm_units=4), tmp_path / "short.avi"
    write_frames(film, make_frames(3), fps=FPS)
    with pytest.raises(UserError, match="ended before the model had seen enough"):
        watch(recognizer, str(film), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.avi"]
