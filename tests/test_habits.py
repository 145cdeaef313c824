"""What a project keeps beside its code says what is so: workflows, pins, versions, extras."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = configparser.ConfigParser()
CONFIG.read(ROOT / "setup.cfg")
EXTRAS = set(CONFIG["options.extras_require"])
TARGETS = re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text())
LOW, HIGH = map(int, re.fullmatch(r">=3\.(\d+), <3\.(\d+)", CONFIG["options"]["python_requires"]).groups())
PYTHONS = [f"3.{minor}" for minor in range(LOW, HIGH)]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
JOBS = [
    pytest.param(job, id=f"{file.stem}-{name}")
    for file in WORKFLOWS
    for name, job in yaml.safe_load(file.read_text())["jobs"].items()
]


@pytest.mark.parametrize("job", JOBS)
def test_steps_of_workflows_are_make_targets_extras_and_tests_that_are_there(job):
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps
    for step in steps:
        if target := re.fullmatch(r"make ([a-z-]+)", step):
            assert target[1] in TARGETS
        elif extra := re.fullmatch(r"\.venv/bin/python -m pip install --editable '\.\[(\w+)\]'", step):
            assert extra[1] in EXTRAS
        else:
            test = re.fullmatch(r"\.venv/bin/python -m pytest -m slow (tests/\w+\.py)", step)
            assert "pytest.mark.slow" in (ROOT / test[1]).read_text()


@pytest.mark.parametrize("job", JOBS)
def test_jobs_end_and_may_only_read(job):
    assert job["timeout-minutes"] <= 60
    assert "permissions" not in job
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_workflows_try_every_python_that_is_promised():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text())["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == PYTHONS
    used = {step.get("with", {}).get("python-version") for param in JOBS for step in param.values[0]["steps"]}
    assert used <= {None, "${{ matrix.python }}", *PYTHONS}
    for file in WORKFLOWS:
        assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


def test_pre_commit_has_the_ruff_that_is_pinned():
    pinned = re.search(r"(?m)^(ruff==\S+)", (ROOT / "constraints.txt").read_text())[1]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["additional_dependencies"] for hook in local["hooks"]] == [[pinned]] * 2


def test_the_version_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"(?m)^## (\d+\.\d+\.\d+)$", changes)
    assert versions == sorted(versions, key=lambda version: tuple(map(int, version.split("."))), reverse=True)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {versions[0], cited["version"]} == {CONFIG["metadata"]["version"]}
    assert cited["license"] == CONFIG["metadata"]["license"]


def test_changes_have_one_form():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert changes.startswith("# Changes\n\n## Unreleased\n")
    for part in re.split(r"(?m)^## ", changes)[1:]:
        heads = re.findall(r"(?m)^\*\*(\w+)\*\*$", part)
        assert heads
        assert heads == [head for head in ("New", "Changed", "Fixed") if head in heads]
        lines = [line for line in part.splitlines()[1:] if line]
        assert all(re.match(r"- \S|  \S|\*\*(New|Changed|Fixed)\*\*$", line) for line in lines)


def test_extras_that_pages_and_sentences_name_are_there():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    files += [
        path for folder in ("action_attention", "data_prep", "experiments") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {name for file in files for name in re.findall(r"'\.\[(\w+)\]'", file.read_text())}
    assert named
    assert named <= EXTRAS


def test_the_dockerfile_installs_as_make_setup_does_what_the_package_consists_of():
    """It needs no builder to be checked: each line names what is here, or what another file says too."""
    lines = [line.split(maxsplit=1) for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1].isupper()]
    said = {word: [rest for name, rest in lines if name == word] for word, _ in lines}
    assert said.keys() == {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    assert re.fullmatch(r"python:(3\.\d+)-slim", said["FROM"][0])[1] in PYTHONS

    copied = {source for line in said["COPY"] for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    include = CONFIG["options.packages.find"]["include"].split()
    metadata = {"setup.cfg", "pyproject.toml", "README.md", CONFIG["metadata"]["license_files"]}  # read by the build
    assert copied == {"constraints.txt", *metadata, *(package.rstrip("*") for package in include)}
    for line in said["COPY"]:
        *sources, target = line.split()
        assert target in ("./", *sources)  # a folder to its own name, files to the current folder
        assert target == "./" or len(sources) == 1

    setup = re.findall(r"install (--\S.*?) (?:constraints\.txt|--editable \.)", (ROOT / "Makefile").read_text())
    run = [line.removeprefix("pip install --no-cache-dir ") for line in said["RUN"]]
    assert run == [f"{setup[0]} constraints.txt", f"{setup[1]} ."]

    (command,) = yaml.safe_load(said["ENTRYPOINT"][0])
    assert f"{command} = " in CONFIG["options.entry_points"]["console_scripts"]
    (cache,) = said["ENV"]
    assert cache == "XDG_CACHE_HOME=/data/.cache"
    assert cache.split("=")[0] in (ROOT / "data_prep" / "backbones" / "weights.py").read_text()
