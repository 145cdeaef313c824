"""A hook of mkdocs: pages link as they do on a Git host, also to files beyond docs/, which the site gets too."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#]*)")


def on_files(files: Files, config: Any) -> Files:
    """Adds what lies elsewhere: pages by their names on the site, and the files that any page links to."""
    outside = {ROOT / name: page for name, page in PAGES.items()}
    for page in [*outside, *(ROOT / "docs").glob("*.md")]:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / link).resolve()
            if (ROOT / "docs") not in path.parents and path not in outside:
                outside[path] = path.relative_to(ROOT).as_posix()
    for path, name in outside.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them: everything of docs/ and of the folder above it lies in one folder there."""

    def on_site(match: re.Match) -> str:
        link = re.sub(r"^(\.\./|docs/)", "", match[1])
        return f"]({PAGES.get(link, link)}"

    return LINK.sub(on_site, markdown)
