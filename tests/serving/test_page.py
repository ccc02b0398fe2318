"""The page in a real browser: what people do on it, with a mouse and without, and what it does with what it is given wrongly."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Locator, Page, expect, sync_playwright
from rooms import listening, opened_to_browsers

from pipeline import page_server
from pipeline.serving.client import Server
from pipeline.serving.room import Room
from pipeline.teaching import adapted
from pipeline.teaching.answers import answers, opened

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 60_000
MARKUP = "<img src=x onerror=\"document.title='run'\"> ${1+1} {{value}}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Shown:
    """A page in a browser, and what is behind it."""

    def __init__(self, page: Page, room: Room):
        self.page, self.room = page, room

    def choose(self, name: str, *files: Path) -> None:
        """Give a field its files, and wait until they are there."""
        field = self.page.locator(f"#{name}")
        if field.get_by_role("button", name="Clear").count():
            field.get_by_role("button", name="Clear").click()
        field.locator("input[type=file]").set_input_files(files)
        field.get_by_role("button", name="Clear").wait_for()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def says(self, where: str, *words: str) -> None:
        for word in words:
            expect(self.page.locator(f"#{where}")).to_contain_text(word)

    def teach(self, name: str, *files: Path) -> None:
        self.page.get_by_label("Name of the class").fill(name)
        self.choose("images", *files)
        self.press("Teach")
        self.says("taught", f"{name!r} is taught")

    def settled(self) -> None:
        """Nothing is being waited for."""
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('[data-testid=status-tracker]')]"
            ".every(each => each.classList.contains('hide'))"
        )

    def tab(self, wanted: Locator) -> None:
        """Press Tab until something has the focus."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            if wanted.evaluate("each => each === document.activeElement"):
                return
        raise AssertionError(f"{wanted} is not reached by the keyboard")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)


@pytest.fixture
def open_page(browser, request, tmp_path, monkeypatch) -> Iterator[Callable[[str], Shown]]:
    """Opens the page of a learner of a task; at the end, nothing was asked of another host and nothing of a page has failed."""
    monkeypatch.setenv(page_server.PLACE, str(tmp_path / "uploads"))
    for name, value in page_server.QUIET.items():
        monkeypatch.setenv(name, value)
    asked, failed = set(), []
    with ExitStack() as stack:

        def show(task: str) -> Shown:
            root = request.getfixturevalue("scenes_root" if task in ("segmentation", "detection") else "glyphs_root")
            room, api = stack.enter_context(opened_to_browsers(task, root, tmp_path, token="secret"))
            server = Server(api, token="secret")
            stack.callback(server.close)
            # Playwright's event loop runs in this thread.
            made = stack.enter_context(ThreadPoolExecutor()).submit(page_server.app, server).result()
            url = stack.enter_context(listening(page_server.guarded(made)))
            context = stack.enter_context(browser.new_context(viewport={"width": 1280, "height": 1400}))
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            page.on("request", lambda each: asked.add(re.sub(r"^(\w+:(//[^/:]*)?).*", r"\1", each.url)))
            # From now on choosers come here: to ask for it with the key that opens one may be too late.
            page.on("filechooser", lambda chooser: None)
            page.on("pageerror", lambda error: failed.append(str(error)))
            page.goto(url)
            page.get_by_role("button", name="Teach").wait_for()
            expect(page.locator("#known")).to_contain_text("0 classes")
            return Shown(page, room)

        expect.set_options(timeout=PATIENCE_MS)
        yield show
    assert asked <= {"http://127.0.0.1", "data:", "blob:http://127.0.0.1", "blob:"} and not failed


@pytest.fixture
def drawings(tmp_path) -> dict[str, list[Path]]:
    """Three images of a cross and of a filled square each."""
    found: dict[str, list[Path]] = {"cross": [], "square": []}
    for number in range(3):
        for name, made in found.items():
            image = Image.new("L", (16, 16), 255)
            pen = ImageDraw.Draw(image)
            if name == "square":
                pen.rectangle((3, 3 + number, 10 + number, 11), fill=0)
            else:
                pen.line((2, 2 + number, 13, 13), fill=0)
                pen.line((2, 13, 13 - number, 2), fill=0)
            image.save(tmp_path / f"{name}-{number}.png")
            made.append(tmp_path / f"{name}-{number}.png")
    return found


@pytest.fixture
def scenes(tmp_path) -> list[Path]:
    """Images of 60 × 40 pixels with a disc of 10 to 30, 8 to 28."""
    rng, found = np.random.default_rng(0), []
    for number in range(2):
        image = Image.fromarray(rng.integers(90, 130, (40, 60, 3), dtype=np.uint8))
        ImageDraw.Draw(image).ellipse((10, 8, 29, 27), fill=(220, 40, 40))
        found.append(tmp_path / f"scene-{number}.png")
        image.save(found[-1])
    return found


def huge() -> bytes:
    """A PNG that claims 50,000 × 50,000 pixels in a few bytes."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.smoke
def test_two_classes_are_taught_and_a_query_gets_the_right_answer(open_page, drawings, tmp_path):
    shown = open_page("classification")
    page = shown.page
    expect(page.locator("#download")).to_have_attribute("aria-disabled", "true")
    shown.press("Teach")
    shown.says("taught", "the class has no name; give one")
    shown.teach("cross", *drawings["cross"][:2])
    shown.teach("square", *drawings["square"][:2])
    shown.says("taught", "2 images", "accuracy is of 4 samples")
    shown.says("known", "2 classes", "of 4 images left out in turn")
    assert page.locator("#classes tbody tr").all_inner_texts() == ["cross\t2", "square\t2"]
    for name, number in (("square", 1), ("cross", 2)):
        shown.choose("query", drawings[name][number])
        page.get_by_label("Threshold").fill("-1e9")
        shown.press("Ask")
        expect(page.locator("#answer .verdict")).to_have_text(name)
        shown.says("probabilities", "cross", "square", "%")
        shown.says("nearest", f", of {name}")
        assert page.locator("#nearest img").evaluate("each => each.naturalWidth") == 512
    page.get_by_label("Threshold").fill("1e9")
    page.keyboard.press("Enter")
    expect(page.locator("#answer .verdict.unknown")).to_have_text("unknown")
    page.get_by_label("Threshold").fill("much")
    shown.press("Ask")
    shown.says("answer", "threshold 'much': is no number")
    expect(page.locator("#nearest")).to_be_hidden()

    with page.expect_download() as download:
        page.get_by_role("link", name="Download the adapted model").click()
    assert download.value.suggested_filename == "model.safetensors"
    download.value.save_as(tmp_path / "model")
    model, image = adapted.load(tmp_path / "model"), drawings["cross"][2].read_bytes()
    known = shown.room.snapshot.answering
    assert answers(model, [opened(model, image, "x")]) == answers(known, [opened(known, image, "x")])

    page.get_by_label("Class to delete").fill("cross")
    page.keyboard.press("Enter")
    shown.press("Delete the class")
    shown.says("deleted", "'cross' is deleted")
    shown.says(
        "known", "1 class of at most", "One class is taught, 'square', and nothing to tell it from; teach a second."
    )
    expect(page.locator("#download")).to_have_attribute("aria-disabled", "true")
    assert list(shown.room.snapshot.counts) == ["square"]


@pytest.mark.smoke
def test_a_name_with_markup_is_text_everywhere(open_page, drawings):
    shown = open_page("classification")
    page = shown.page
    shown.teach(MARKUP, *drawings["cross"][:2])
    shown.teach("square", *drawings["square"][:2])
    shown.choose("query", drawings["cross"][2])
    page.get_by_label("Threshold").fill("-1e9")
    shown.press("Ask")
    expect(page.locator("#answer .verdict")).to_have_text(MARKUP)
    shown.says("probabilities", MARKUP)
    shown.says("nearest", MARKUP)
    shown.says("classes", MARKUP)
    page.get_by_label("Class to delete").click()
    expect(page.get_by_role("option", name=MARKUP)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_label("Class to delete").fill(MARKUP)
    page.keyboard.press("Enter")
    shown.press("Delete the class")
    shown.says("deleted", "is deleted")
    shown.says("deleted", "${1+1} {{value}}")
    assert page.title() == "Metashard" and page.locator("img[src=x]").count() == 0


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"garbage", "not a whole image (it starts with b'garbage'); give one of PNG"),
        (None, "not a whole image"),
        (huge(), "50000 x 50000 is more than"),
    ],
    ids=["garbage", "truncated", "huge"],
)
def test_a_hostile_file_is_told_of_and_the_page_goes_on(open_page, drawings, tmp_path, data, sentence):
    path = tmp_path / ("bad.png" if data else "bad.jpg")
    if data is None:
        Image.open(drawings["cross"][0]).resize((300, 300)).save(path)
        data = path.read_bytes()[:-1000]
    path.write_bytes(data)
    shown = open_page("classification")
    shown.page.get_by_label("Name of the class").fill("bad")
    shown.choose("images", path)
    shown.press("Teach")
    shown.says("taught", f"image {path.name!r}", sentence)
    expect(shown.page.locator("#taught").get_by_role("alert")).to_be_visible()
    for name in ("cross", "square"):
        shown.teach(name, *drawings[name][:2])
    shown.choose("query", path)
    shown.press("Ask")
    expect(shown.page.locator("#answer").get_by_role("alert")).to_contain_text(sentence)
    shown.choose("query", drawings["cross"][2])
    shown.page.get_by_label("Threshold").fill("-1e9")
    shown.press("Ask")
    expect(shown.page.locator("#answer .verdict")).to_have_text("cross")


@pytest.mark.smoke
def test_all_of_it_goes_by_the_keyboard(open_page, drawings):
    """From one thing to the next in the order of reading, each with a name of its own."""
    shown = open_page("classification")
    page = shown.page

    def give(name: str, *files: Path) -> None:
        shown.tab(shown.button(name))
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(files)

    for name in ("cross", "square"):
        shown.tab(page.get_by_role("textbox", name="Name of the class"))
        page.keyboard.type(name)
        give("Images of the class", *drawings[name][:2])
        page.locator("#images").get_by_role("button", name="Clear").wait_for()
        shown.tab(shown.button("Teach"))
        page.keyboard.press("Enter")
        shown.says("taught", f"{name!r} is taught")
        shown.settled()
    give("Image to ask about", drawings["square"][2])
    page.locator("#query").get_by_role("button", name="Clear").wait_for()
    shown.tab(page.get_by_role("textbox", name=re.compile("Threshold")))
    page.keyboard.type("-1e9")
    shown.tab(shown.button("Ask"))
    page.keyboard.press("Space")
    expect(page.locator("#answer").get_by_role("status")).to_contain_text("square")
    shown.tab(page.get_by_role("link", name="Download the adapted model"))
    with page.expect_download():
        page.keyboard.press("Enter")
    shown.tab(page.get_by_role("combobox", name="Class to delete"))
    page.keyboard.type("cross")
    page.keyboard.press("Enter")
    shown.tab(shown.button("Delete the class"))
    page.keyboard.press("Enter")
    shown.says("deleted", "'cross' is deleted")


@pytest.mark.parametrize("task", ["classification", "verification", "segmentation", "detection"])
def test_every_field_has_a_name(open_page, scenes, task):
    shown = open_page(task)
    if task in ("segmentation", "detection"):
        shown.choose("images", *scenes)
        expect(shown.page.get_by_label("Image to mark")).to_be_visible()
    nameless = shown.page.evaluate(
        """() => [...document.querySelectorAll("input:not([type=file]), button, a[href], textarea, select")]
            .filter(each => each.checkVisibility())
            .filter(each => !(each.getAttribute("aria-label") || each.title || each.textContent.trim()
                              || each.querySelector("img[alt]")
                              || [...(each.labels || [])].some(label => label.textContent.trim())))
            .map(each => each.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.smoke
def test_a_mask_is_painted_and_a_rectangle_filled(open_page, scenes):
    shown = open_page("segmentation")
    page = shown.page
    page.get_by_label("Name of the class").fill("disc")
    shown.choose("images", *scenes)
    page.locator("#mask canvas").first.wait_for()
    shown.settled()
    for name, value in (("Left", "10"), ("Top", "8"), ("Right", "30"), ("Bottom", "28")):
        page.get_by_label(name, exact=True).fill(value)
    shown.press("Fill the rectangle")
    shown.says("marked", "scene-0.png: 400 of 2,400 pixels are marked")
    shown.settled()
    shown.press("Teach")
    shown.says("taught", "'scene-1.png': has no mask; paint over the class in it, or take it out")
    page.get_by_label("Image to mark").click()
    page.get_by_role("option", name="2: scene-1.png").click()
    shown.says("marked", "scene-1.png: nothing is marked yet")
    shown.settled()
    area = page.locator("#mask canvas").first.bounding_box()
    across, down = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    # What is painted while the editor still loads its picture is gone with the picture before, and who paints sees that.
    for _ in range(6):
        page.mouse.move(across - 120, down - 30)
        page.mouse.down()
        for step in range(20):
            page.mouse.move(across - 120 + step, down - 30 + step)
        page.mouse.up()
        page.wait_for_timeout(1000)
        shown.press("Teach")
        page.wait_for_timeout(1000)
        shown.settled()
        if shown.room.snapshot.support is not None:
            break
    shown.says("taught", "'disc' is taught: 2 images")
    first, second = shown.room.snapshot.answering.support.targets
    assert set(first.unique().tolist()) == set(second.unique().tolist()) == {0, 1}
    # A rectangle from 10, 8 to 30, 28 of 60 × 40 pixels, after it was shown and read back; a stroke is a part of the left half.
    rows, columns = (first == 1).nonzero(as_tuple=True)
    sides = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.allclose(np.array(sides) / 48, [10 / 60, 8 / 40, 30 / 60, 28 / 40], atol=0.03)
    assert (first == 1).double().mean().item() == pytest.approx(1 / 6, abs=0.02)
    assert 0 < (second == 1).double().mean().item() < 0.2 and not (second == 1)[:, 30:].any()
    shown.choose("query", scenes[0])
    shown.press("Ask")
    shown.says("answer", "found")
    expect(page.locator("#found img").first).to_be_visible()


@pytest.mark.smoke
def test_a_box_is_clicked_and_another_written(open_page, scenes):
    shown = open_page("detection")
    page = shown.page
    page.get_by_label("Name of the class").fill(MARKUP)
    shown.choose("images", *scenes)
    image = page.locator("#boxes img").first
    image.wait_for()
    area = image.bounding_box()
    # What is shown is 512 pixels wide, in the middle of its place.
    scale = 512 / 60
    left, top = area["x"] + (area["width"] - 512) / 2, area["y"] + (area["height"] - 40 * scale) / 2
    for x, y in ((10, 8), (30, 28)):
        before = image.get_attribute("src")
        page.mouse.click(left + x * scale, top + y * scale)
        expect(image).not_to_have_attribute("src", before)
    shown.says("marked", "1 marked (left, top, right, bottom): 10, 8, 30, 28")
    page.get_by_label("Image to mark").click()
    page.get_by_role("option", name="2: scene-1.png").click()
    shown.says("marked", "No box is marked yet")
    shown.press("Add the box")
    shown.says("taught", "has no pixel of the image of 60 × 40; give other corners")
    shown.press("Teach")
    shown.says("taught", "'scene-1.png': has no box; mark the class in it, or take it out")
    for name, value in (("Left", "10"), ("Top", "8"), ("Right", "30"), ("Bottom", "28")):
        page.get_by_label(name, exact=True).fill(value)
    shown.press("Add the box")
    shown.says("marked", "1 marked")
    shown.press("Teach")
    shown.says("taught", "is taught: 2 images")
    boxes = shown.room.snapshot.answering.support.targets
    expected = [[10 / 60, 8 / 40, 30 / 60, 28 / 40, 1.0]] * 2
    assert np.allclose(boxes[:, 0].numpy(), expected, atol=0.02)
    shown.choose("query", scenes[0])
    page.get_by_label("Threshold").fill("0.0001")
    shown.press("Ask")
    shown.says("answer", "found")
    shown.says("found", MARKUP)
    assert page.title() == "Metashard" and page.locator("img[src=x]").count() == 0


def test_two_images_are_the_same_or_not(open_page, drawings):
    shown = open_page("verification")
    shown.press("Compare")
    shown.says("compared", "two images are compared; choose both")
    for name in ("cross", "square"):
        shown.teach(name, *drawings[name][:2])
    shown.choose("first", drawings["cross"][0])
    shown.choose("second", drawings["cross"][0])
    shown.press("Compare")
    expect(shown.page.locator("#compared .verdict")).to_have_text("same")
    shown.says("compared", "likeness 1; same from ")
    expect(shown.page.locator("#second-seen img")).to_be_visible()
