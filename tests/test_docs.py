"""What README and docs name is there: files, and make targets with their variables."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_make_commands_name_targets_and_variables_that_are_there():
    commands = [(page.name, line) for page in PAGES for line in re.findall(r"(?m)^ {4}(make .*)", page.read_text())]
    assert len(commands) > 10
    for page, command in commands:
        words = command.partition("  #")[0].rstrip()
        done = subprocess.run(
            ["bash", "-c", f"{words} --dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page}: {words}: {done.stderr}"
