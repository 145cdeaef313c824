"""The tutorial: what is committed is executed and small; executed again, it says the same."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "tutorial.ipynb"
# of the test of part 6, one line for each kind of scores
SHUFFLED = re.compile(
    r"scores by (\w+).*?: the map differs by (\S+) from the old one, by (\S+) from the old one shuffled"
)


def printed(notebook):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output.get("text", "")) for output in outputs)


def check(notebook):
    """Each cell ran, in order, without a complaint, and part 6 shows what it says."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    differences = {
        scores: (float(stayed), float(followed)) for scores, stayed, followed in SHUFFLED.findall(printed(notebook))
    }
    assert differences["mean"][0] < 1e-5 < differences["mean"][1]
    assert differences["location"][1] < 1e-5 < differences["location"][0]


def test_what_is_committed_was_executed_is_small_and_knows_no_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    check(notebook)
    assert len(text) < 500_000
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert '"stderr"' not in text
    pictures = [output for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output]
    assert len(pictures) > 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_and_shows_the_same(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (pip install '.[notebook]')")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (pip install '.[notebook]')")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=folder).execute()
    check(notebook)
    right = {name: int(n) for name, n in re.findall(r"(.*): (\d+) of 24 test videos right", printed(notebook))}
    assert right["the tutorial's ALSTM"] >= 18
    assert right["recommended"] >= 18
    peaks = [int(share) for share in re.findall(r"peak on the figure in (\d+)%", printed(notebook))]
    assert peaks[1] > peaks[0] + 30  # recommended and the tutorial's, in percent of the frames
    assert "answer: None" in printed(notebook)  # the pretrained model knows no drawn figures
