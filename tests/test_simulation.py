"""What examples/scale_simulation.py computes, and that docs/scale.md has its table."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
simulation = runpy.run_path(str(ROOT / "examples" / "scale_simulation.py"))
estimate = simulation["estimate"]


def test_the_page_has_the_table_that_the_script_prints(capsys):
    simulation["main"]()
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 10
    assert table in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("workers", [1, 3, 100, 4688, 10_000])
def test_no_time_is_below_what_the_work_and_the_server_take(workers):
    """Frames by the network, bytes by the link; workers beyond the shards bring nothing, and Ray is never behind."""
    found, clips, frames = estimate(workers), simulation["CLIPS"], simulation["FRAMES"]
    seconds = clips * frames / simulation["FRAMES_A_SECOND"]
    assert found.compute >= seconds / workers
    assert found.compute <= seconds / workers + 64 * frames / simulation["FRAMES_A_SECOND"]
    assert found.total >= (clips * simulation["CLIP_BYTES"]) / simulation["SERVER_BYTES"]
    assert found.compute >= estimate(4688).compute
    assert estimate(workers, ray=True).total <= found.total
