"""What README and docs name is there: files, headings, make targets with their variables, programs with their flags."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import forked
import pytest
from absl import flags as absl_flags

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROGRAM = re.compile(r"-m ((?:data_prep|experiments)\.\w+)((?: [^`\n]*)?)")
# flags of absl, pytest, Slurm, mkdocs, uv and docker that the pages name, and one that stands for any
OF_OTHERS = {"array", "cov", "flagfile", "flags", "generate", "help", "rm", "strict", "tag", "upgrade", "volume"}


def text(page):
    """A page in which a command that goes on below is one line."""
    return re.sub(r" *\\\n *", " ", page.read_text())


def blocks(page):
    """The lines of a page's code blocks that are no Python."""
    shown = re.sub(r"(?ms)^```python\n.*?^```$", "", text(page))
    fenced = re.findall(r"(?ms)^```\w*\n(.*?)^```$", shown)
    return [line for block in fenced for line in block.splitlines()] + re.findall(r"(?m)^ {4}(\S.*)", shown)


def anchors(page):
    """Of a page's headings, as Git hosts and mkdocs make them."""
    prose = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    plain = (re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"(?m)^#+ (.*)", prose))
    return [re.sub(r"\s", "-", title.strip()) for title in plain]


def parsed(commands):
    """What absl says against each command, a module with its arguments, and the names of all flags of their modules."""
    said, names, before = {}, set(), set(absl_flags.FLAGS)
    for module, words in commands:
        for name in set(absl_flags.FLAGS) - before:
            delattr(absl_flags.FLAGS, name)
        absl_flags.FLAGS.unparse_flags()
        absl_flags.DEFINE_multi_string("import", [], "as program.run has it")
        import_module(module).define_flags()
        names |= set(absl_flags.FLAGS)
        try:
            rest = absl_flags.FLAGS([module, *words])[1:]
        except absl_flags.Error as error:
            rest = str(error)
        if rest:
            said[f"{module} {shlex.join(words)}"] = rest
    return said, names


def arguments(rest):
    """Of a program, what stands behind its name in a shell's line, up to what is the shell's again."""
    words = shlex.split(re.split(r" [&|>]", rest)[0], comments=True)
    return [word for word in words if word not in ('"$@"', "$@")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()))
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if "://" not in link:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_two_headings_of_a_page_have_one_anchor(page):
    if page.name != "CHANGELOG.md":  # whose versions have the same parts
        assert len(set(anchors(page))) == len(anchors(page))


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def make_commands():
    return sorted({line.partition("  #")[0].rstrip() for page in PAGES for line in blocks(page) if line[:5] == "make "})


def test_make_commands_name_targets_variables_and_flags_that_are_there():
    commands = make_commands()
    assert len(commands) > 25
    programs = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{command} --dry-run"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        programs += [(m, arguments(rest)) for m, rest in PROGRAM.findall(re.sub(r" *\\\n *", " ", done.stdout))]
    assert len(programs) > len(commands)
    assert forked.call(parsed, programs)[0] == {}


def test_commands_of_programs_are_ones_that_the_programs_take():
    found = {program for page in PAGES for line in blocks(page) for program in PROGRAM.findall(line)}
    programs = [(module, arguments(re.sub(r"\$i/\$\{.*?\}", "0/4", rest))) for module, rest in found]
    assert len(programs) > 5
    assert forked.call(parsed, programs)[0] == {}


def test_all_flags_that_pages_name_are_flags_of_a_program():
    programs = {
        f"{path.parent.name}.{path.stem}"
        for folder in ("data_prep", "experiments")
        for path in (ROOT / folder).glob("*.py")
        if "program.run(" in path.read_text()
    }
    known = forked.call(parsed, [(module, []) for module in programs])[1]
    known |= {f"no{name}" for name in known} | OF_OTHERS
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--([a-z]\w*)", page.read_text()))
        assert named <= known, (page.name, named - known)


@pytest.mark.slow
def test_the_pages_become_a_site_without_a_warning_that_asks_for_nothing_else(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.glob("*.html")}
    assert made.keys() >= {"index.html", *(page.stem + ".html" for page in PAGES if page.name != "README.md")}
    for name, html in made.items():
        assert re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="?(?:https?:)?//[^>]*', html) == [], name
