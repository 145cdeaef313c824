"""The line that training prints for each epoch: its exact text, in a pipe and on a terminal."""

import io
import sys

from experiments.progress import EpochLine

LOGS = {"loss": 1.23449, "logits_frame_top1": 0.4521, "val_cross_entropy": 1.5316, "val_video_top1": 0.5208}
LAST = {"loss": 0.00049, "logits_frame_top1": 1.0, "val_cross_entropy": 123.4567, "val_video_top1": 0.0}


def shown(ends, logs, epochs=12, first=0, steps=2):
    """Prints the lines of epochs that end at these times; training begins at time 0 with epoch `first`."""
    times = iter([0.0, *ends])
    line = EpochLine(clock=lambda: next(times))
    line.set_params({"epochs": epochs, "steps": steps})
    for epoch, of_epoch in enumerate(logs, first):
        line.on_epoch_begin(epoch)
        for batch in range(steps):
            line.on_train_batch_end(batch, {key: of_epoch[key] for key in of_epoch if not key.startswith("val_")})
        line.on_epoch_end(epoch, of_epoch)
    line.close()


def test_in_a_pipe_an_epoch_is_one_line_of_exact_text(capsys):
    shown([20.0, 24.0, 29.0], [LOGS, LOGS, LAST])
    out, lines = capsys.readouterr()
    assert out == ""
    # left: 11 epochs of 20 s; 10 of the second one's 4 s, since the first begins slowly; 9 of the mean 4.5 s
    assert lines == (
        "epoch  1/12  loss 1.234  frames  45.2%  val 1.532  videos  52.1%  3:40 left\n"
        "epoch  2/12  loss 1.234  frames  45.2%  val 1.532  videos  52.1%  0:40 left\n"
        "epoch  3/12  loss 0.000  frames 100.0%  val 123.457  videos   0.0%  0:40 left\n"
    )


def test_a_resumed_run_goes_on_with_its_own_epoch_and_its_own_time(capsys):
    shown([3600.0], [{"loss": 1.0, "logits_frame_top1": 0.5}], epochs=12, first=9)
    assert capsys.readouterr().err == "epoch 10/12  loss 1.000  frames  50.0%  2:00:00 left\n"
    shown([1.0], [LOGS], epochs=1)
    assert capsys.readouterr().err == ("epoch 1/1  loss 1.234  frames  45.2%  val 1.532  videos  52.1%  0:00 left\n")


def on_a_terminal(monkeypatch):
    """One of 80 columns that stands in for stderr, in the test itself: pytest puts its own there before each."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_on_a_terminal_steps_are_counted_in_place_and_the_finished_line_takes_their_place(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    shown([20.0, 24.0], [LOGS, LAST])
    printed = terminal.getvalue()
    assert "\repoch  1/12  step 0/2" in printed
    screen = [line.split("\r")[-1] for line in printed.split("\n")]
    assert screen == [
        "epoch  1/12  loss 1.234  frames  45.2%  val 1.532  videos  52.1%  3:40 left",
        "epoch  2/12  loss 0.000  frames 100.0%  val 123.457  videos   0.0%  0:40 left",
        "",
    ]
    assert max(len(part) for part in printed.replace("\n", "\r").split("\r")) <= 80


def test_what_stops_an_epoch_leaves_a_line_of_its_own_to_what_is_said_then(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    line = EpochLine()
    line.set_params({"epochs": 3, "steps": 5})
    line.on_epoch_begin(0)
    line.close()
    sys.stderr.write("error: stopped\n")
    assert terminal.getvalue().split("\r")[-1] == "error: stopped\n"
