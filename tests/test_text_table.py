"""Markdown tables on a terminal: aligned, never wider than it, and nothing of them lost."""

import json
import os
import re
from pathlib import Path

import pytest

from action_attention.errors import UserError
from experiments import table
from experiments.text_table import aligned
from tests import forked

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
FILES = (
    "jhmdb", "jhmdb_ablations", "jhmdb_conv_ablations", "jhmdb_lite0", "jhmdb_lite0_tutorial", "jhmdb_two_streams",
    "jhmdb_vgg16_flow", "jhmdb_vgg16_looking", "jhmdb_vgg16_two_streams", "sample",
)  # fmt: skip
NARROW = """| data | model | seeds | top-1 |
|---|---|---|---|
| made, split 1 | alstm, a=1 | 1 | 50.0% |
| made, split 1 | softmax | 5 | 7.5% ± 1.0 |"""


def all_tables(results):
    made = (table.markdown, table.over_splits, table.localization, table.boxes, table.differences)
    return "\n\n".join(filter(None, (make(results) for make in made)))


def test_a_table_that_fits_is_aligned():
    assert aligned(f"before\n\n{NARROW}\n\nafter", 80).split("\n") == [
        "before",
        "",
        "data           model       seeds       top-1",
        "made, split 1  alstm, a=1      1       50.0%",
        "made, split 1  softmax         5  7.5% ± 1.0",
        "",
        "after",
    ]


def test_of_a_table_that_is_too_wide_each_row_is_called_above_its_numbers():
    assert aligned(NARROW, 20).split("\n") == [
        "data; model",
        "seeds       top-1",
        "",
        "made, split 1",
        "alstm, a=1",
        "    1       50.0%",
        "softmax",
        "    5  7.5% ± 1.0",
    ]


def test_numbers_that_are_too_wide_are_told_in_several_tables():
    wide = "| trial | left | right |\n|---|---|---|\n| 7 | 123456 | 1234567 |\n| 8 | none | 0 |"
    assert aligned(wide, 15).split("\n") == [
        "trial  left", "    7  123456", "    8  none", "", "trial    right", "    7  1234567", "    8        0",
    ]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_no_line_of_the_projects_own_results_is_wider_than_the_terminal(name):
    text = all_tables(table.read_results(RESULTS / f"{name}.json"))
    words = set(re.sub(r"[|]|---", " ", text).split())
    for columns in (60, 80, 200):
        lines = aligned(text, columns).split("\n")
        assert max(map(len, lines)) <= columns
        assert words <= {word.rstrip(";") for word in " ".join(lines).split()}


def test_there_are_no_other_results():
    for path in RESULTS.glob("*.json"):
        if path.stem not in FILES:
            with pytest.raises(UserError):
                table.read_results(path)


def of_80_columns():
    os.environ["COLUMNS"] = "80"


def test_in_a_pipe_tables_are_markdown_and_text_on_request():
    file = RESULTS / "sample.json"
    results = table.read_results(file)
    printed = forked.succeeds("experiments.table", f"--results={file}")
    assert printed == f"{table.markdown(results)}\n\n{table.localization(results)}\n"
    assert forked.succeeds("experiments.table", f"--results={file}", "--format=markdown") == printed

    done = forked.run("experiments.table", f"--results={file}", "--format=text", prepare=of_80_columns)
    assert (done.returncode, done.stdout) == (0, aligned(printed, 80).rstrip("\n") + "\n")


def test_models_without_attention_have_no_row_where_attention_is_told():
    results = json.loads((RESULTS / "sample.json").read_text())
    assert {result["model"] for result in results if "localization" in result} == {"alstm", "conv_alstm", "softmax"}
    told = table.localization(results)
    assert "| alstm" in told
    assert "softmax" not in told
    assert "| sample, split 1, 48 test videos | control: uniform attention | - | 19.2% |" in told
    assert table.localization([result for result in results if result["model"] == "softmax"]) == ""
    elsewhere = [{**result, "model": "mine"} for result in results[:1]]  # a module that is not imported has it
    assert "mine" in table.localization(elsewhere)
