"""What programs print: no line wider than the terminal or glued to a bar, and nothing of TensorFlow's libraries."""

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from data_prep import terminal
from experiments.cli import PROGRAMS
from tests.terminals import on_a_terminal

ROOT = Path(__file__).parents[1]
SENTENCE = f"a warning that is rather long, for it names /a/folder{'/and/one/below' * 4} and goes on"


def test_a_programs_description_is_set_anew_for_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = "Says what it does in\na few words.\n\npython -m a.program --flag VALUE\n\n    an indented line\n"
    assert terminal.reflowed(text, io.StringIO()) == text
    described, command, line, end = terminal.reflowed(text, Terminal()).split("\n\n")
    assert described == "Says what it does in\na few words."
    assert command == "python -m a.program\n  --flag VALUE"
    assert (line, end) == ("    an indented line", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_lines_break_between_words_and_paths_stay_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = terminal.fitted(f"one\n\n{SENTENCE}", Terminal()).split("\n")
    assert lines[:4] == ["one", "", "a warning that is rather long, for it", "  names"]
    assert [line.strip() for line in lines if len(line) > 40] == [word for word in SENTENCE.split() if len(word) > 40]
    assert " ".join(line.strip() for line in lines[2:]) == SENTENCE
    assert terminal.fitted(SENTENCE, io.StringIO()) == SENTENCE


def test_a_log_line_is_a_sentence_and_no_bar_is_glued_to_it(monkeypatch):
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(terminal._BesideBars())
    handler.setFormatter(terminal._Sentence())
    with tqdm(total=2, file=stream, ncols=40, disable=False) as bar:
        bar.update()
        for level, text in (("INFO", "a note"), ("WARNING", "a warning"), ("ERROR", "a mistake")):
            handler.emit(logging.LogRecord("absl", getattr(logging, level), "", 1, text, (), None))
    screen = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert screen[:3] == ["a note", "WARNING: a warning", "ERROR: a mistake"]
    assert re.match(r" 50%\|.*\| 1/2 ", screen[3])


# Forks a process for each module, which says whether TensorFlow is first imported where it is kept quiet; it imports
# nothing of it.
FIRST_IMPORT = """
import importlib, os, sys
import absl.app, av, cv2, h5py, numpy, sklearn.model_selection, tqdm
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("keras", "tensorflow", "tensorboard"):
            os._exit(0 if "data_prep.quiet_tensorflow" in sys.modules else 1)
sys.meta_path.insert(0, Watch())
for module in sys.argv[1:]:
    if not (process := os.fork()):
        importlib.import_module(module)
        os._exit(2)
    print(module, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


def test_no_program_imports_tensorflow_but_where_it_is_kept_quiet():
    modules = [module for module, _ in PROGRAMS.values()]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT, *modules, "data_prep.backbones", "action_attention.runs"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = dict(line.split() for line in done.stdout.splitlines())
    assert said.pop("action_attention.runs") == "1"  # the library leaves that to whoever uses it
    assert {module for module, code in said.items() if code == "1"} == set()
    assert {module for module, code in said.items() if code == "2"} < {"data_prep.hmdb51", "data_prep.sample"} | set(
        modules
    )


@pytest.mark.parametrize("module", ["data_prep.sample", "experiments.table"])
def test_what_a_program_prints_on_a_terminal_fits_it(module, tmp_path):
    """In a real terminal of 80 columns, which would show a bar and break lines."""
    arguments = {
        "data_prep.sample": [f"--output={tmp_path}/a/folder/whose/name/is/so/long/that/its/line/would/not/fit/sample",
                             "--train_clips=1", "--test_clips=1"],
        "experiments.table": [f"--results={ROOT}/experiments/results/jhmdb_lite0.json"],
    }[module]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    printed = on_a_terminal([sys.executable, "-m", module, *arguments], ROOT, env)
    shown = [part for line in printed.split("\r\n") for part in line.split("\r")]
    assert len(shown) > 2
    assert [part for part in shown if len(part) > 80 and " " in part.strip()] == []
