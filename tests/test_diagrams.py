"""The diagrams: the files are what the script makes, arrows meet boxes, all is legible in light and in dark."""

import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.browsers import chromium, in_browser

SCRIPT = Path(__file__).parents[1] / "docs" / "diagrams.py"
DRAWINGS = runpy.run_path(str(SCRIPT))["DRAWINGS"]
FILES = sorted((SCRIPT.parent / "diagrams").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
# each text with its place, that of the smallest box around its middle, and the contrast of the two (WCAG 2)
TEXTS = """() => {
    const light = colour => {
        const parts = colour.match(/[0-9]+/g).slice(0, 3)
            .map(part => part / 255).map(c => c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92)
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    }
    const place = element => { const b = element.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height] }
    const boxes = [...document.querySelectorAll(".paper, .box")]
    return [...document.querySelectorAll("text")].map(text => {
        const [left, top, right, bottom] = place(text), x = (left + right) / 2, y = (top + bottom) / 2
        const box = boxes.findLast(box => {
            const b = place(box)
            return b[0] < x && x < b[2] && b[1] < y && y < b[3]
        })
        const fills = [text, box].map(element => light(getComputedStyle(element).fill) + 0.05)
        const contrast = Math.max(...fills) / Math.min(...fills)
        return {words: text.textContent, place: [left, top, right, bottom], box: place(box), contrast}
    })
}"""


def test_the_files_are_what_the_script_makes():
    assert {file.stem: file.read_text(encoding="utf-8") for file in FILES} == {
        name: draw().svg() for name, draw in DRAWINGS.items()
    }, "run python docs/diagrams.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_diagram_is_xml_that_asks_for_nothing_else(file):
    tree = ElementTree.parse(file).getroot()
    assert tree.tag == f"{SVG}svg"
    assert tree.find(f"{SVG}title").text
    assert len(tree.findall(f"{SVG}text")) > 10  # text as text
    text = file.read_text(encoding="utf-8")
    assert re.findall(r"url\((.*?)\)", text) == ["#head"]
    assert not re.search(r"href|@import|@font-face|<script|<image|<foreignObject", text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_arrow_leads_from_the_edge_of_a_box_to_the_edge_of_another(file):
    tree = ElementTree.parse(file).getroot()
    boxes = [
        tuple(float(rect.get(key)) for key in ("x", "y", "width", "height"))
        for rect in tree.findall(f"{SVG}rect")
        if "box" in rect.get("class").split()
    ]
    arrows = [path.get("d") for path in tree.findall(f"{SVG}path")]
    assert len(arrows) > 5
    for path in arrows:
        numbers = [float(number) for number in re.findall(r"[\d.]+", path)]
        ends = [
            {
                index
                for index, (left, top, width, height) in enumerate(boxes)
                if (x in (left, left + width) and top <= y <= top + height)
                or (y in (top, top + height) and left <= x <= left + width)
            }
            for x, y in (numbers[:2], numbers[-2:])
        ]
        assert [len(found) for found in ends] == [1, 1], path
        assert ends[0] != ends[1], path


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_text_is_inside_of_its_box_upon_no_other_and_in_contrast(file, scheme, browser):
    page = browser.new_page(color_scheme=scheme)
    page.goto(file.as_uri())
    texts = page.evaluate(TEXTS)
    dark = page.evaluate("getComputedStyle(document.querySelector('.paper')).fill") != "rgb(255, 255, 255)"
    page.close()
    assert dark == (scheme == "dark")
    for number, text in enumerate(texts):
        left, top, right, bottom = text["place"]
        box = text["box"]
        assert box[0] <= left < right <= box[2], text["words"]
        assert box[1] <= top < bottom <= box[3] + 2, text["words"]  # below the letters a line has room to spare
        assert text["contrast"] >= 4.5, text["words"]
        for other in texts[:number]:
            across = min(right, other["place"][2]) - max(left, other["place"][0])
            along = min(bottom, other["place"][3]) - max(top, other["place"][1])
            assert across <= 0 or along <= 6, (text["words"], other["words"])  # lines of one box are close
