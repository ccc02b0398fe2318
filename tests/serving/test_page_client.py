"""The client of `metashard serve`, the pictures and the words of the page: what is told wrongly, and that text stays text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from rooms import listening, opened_to_browsers

from pipeline.data.images import decode_mask, encode_png
from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.client import Compared, Image, Learned, Server, Taught

MARKUP = "<img src=x onerror=\"document.title='run'\">"
NAMES = ["glyph", MARKUP, "a/b", "…", "ключ ?#%2F"]


def drawing(number: int, size: int = 16) -> Image:
    """A bar at a place of its own."""
    array = np.full((size, size, 1), 255, np.uint8)
    array[:, number : number + 3] = 0
    return Image(f"{number}.png", encode_png(array))


@pytest.fixture
def server(glyphs_root, tmp_path):
    with opened_to_browsers("classification", glyphs_root, tmp_path, token="secret") as (_, url):
        found = Server(url + "/", token="secret")
        yield found
        found.close()


def test_classes_are_taught_listed_asked_about_and_deleted(server):
    """Whatever they are called."""
    assert server.taught().classes == [] and server.taught().accuracy is None
    for number, name in enumerate(NAMES):
        done = server.teach(name, [drawing(2 * number), drawing(2 * number + 1)])
        assert (done.name, done.samples) == (name, 2)
    assert done.warnings
    told = server.taught()
    assert told.classes == [(name, 2) for name in NAMES] and told.accuracy is not None
    assert server.taught(offset=3).classes == told.classes[3:]
    found = server.predict(drawing(2 * NAMES.index(MARKUP)), threshold=-1e9)
    assert found["label"] == MARKUP and found["nearest"]["class"] == MARKUP
    assert server.predict(drawing(1), threshold=1e9)["label"] == words.UNKNOWN
    assert server.sample(found["nearest"]["id"]).startswith(b"\x89PNG")
    assert len(server.model()) > 1000
    for name in NAMES:
        server.forget(name)
    assert server.taught().total == 0
    with pytest.raises(InputError, match="class 'glyph': is not taught"):
        server.forget("glyph")


def test_two_images_are_compared(glyphs_root, tmp_path):
    with opened_to_browsers("verification", glyphs_root, tmp_path) as (_, url):
        server = Server(url)
        with pytest.raises(InputError, match="no class is taught yet"):
            server.compare(drawing(0), drawing(0))
        for number, name in enumerate("ab"):
            server.teach(name, [drawing(2 * number), drawing(2 * number + 1)])
        found = server.compare(drawing(0), drawing(0))
        assert found == Compared(True, pytest.approx(1.0), found.threshold) and -1 < found.threshold < 1
        server.close()


def test_the_server_s_own_sentence_is_told(server):
    with pytest.raises(InputError, match="no class is taught yet; teach one"):
        server.predict(drawing(0))
    with pytest.raises(InputError, match=r"image 'x.png': not a whole image .* give one of PNG"):
        server.teach("a", [Image("x.png", b"garbage")])
    server.teach("a", [drawing(0)])
    with pytest.raises(InputError, match="one class is taught, 'a', and nothing to tell it from; teach a second"):
        server.predict(drawing(0))
    server.teach("b", [drawing(1)])
    with pytest.raises(InputError, match=r"image 'cut.png': PNG is cut off"):
        server.predict(Image("cut.png", drawing(0).data[:-20]))
    nobody = Server(server.url, token="wrong")
    with pytest.raises(InputError, match="the token is not known here"):
        nobody.taught()
    nobody.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x/", "http://", "http://name:word@x/", "http://x/?a=1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InputError, match="is no URL of metashard serve"):
        Server(url)


def test_nobody_there():
    server = Server("http://127.0.0.1:9")
    with pytest.raises(InputError, match="does not answer .* start metashard serve"):
        server.taught()
    server.close()


@pytest.mark.parametrize(
    "answer",
    [PlainTextResponse("hello"), JSONResponse([]), JSONResponse({}), JSONResponse({"classes": [{}]}), JSONResponse(None),
     PlainTextResponse("no", 404), JSONResponse({"detail": "Not Found"}, 404), JSONResponse(["error"], 500)],
)  # fmt: skip
def test_another_program_is_told_of(answer):
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def anything(request: Request) -> Any:
        return answer

    with listening(app) as url:
        server = Server(url)
        for act in (server.taught, lambda: server.predict(drawing(0)), lambda: server.compare(drawing(0), drawing(1))):
            with pytest.raises(InputError, match="give the URL of a metashard serve of this version"):
                act()
        server.close()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (48, 30), (700, 1400), (1, 600)])
def test_what_is_painted_is_a_mask_of_the_image(height, width):
    """A mask laid over what is shown, and read back as if a person had painted it, is the same mask."""
    rng = np.random.default_rng(height)
    picture = drawn.picture(encode_png(rng.integers(0, 256, (height, width, 3), np.uint8)), "x")
    assert picture.size == (height, width) and max(picture.shown.shape) == drawn.SIDE
    mask = drawn.filled(np.zeros((height, width), bool), (width / 4, 0, width, height / 2))
    shown = drawn.canvas(picture, mask)
    assert {array.shape[:2] for array in (shown["background"], *shown["layers"])} == {(drawn.SIDE, drawn.SIDE)}
    found = drawn.painted({"layers": [*shown["layers"], np.zeros_like(shown["layers"][0])]}, picture)
    assert mask.any() and (found == mask).mean() > 0.99
    assert not drawn.painted({"layers": []}, picture).any() and not drawn.painted(None, picture).any()
    assert drawn.canvas(picture, ~mask & mask)["layers"] == []


def test_a_box_is_of_two_corners_in_any_order_and_inside():
    size = 40, 60
    box = (10.0, 5.0, 30.0, 20.0)
    for values in ((10, 5, 30, 20), (30, 20, 10, 5), (10, 20, 30, 5)):
        assert drawn.box(values, size) == box
    assert drawn.box((-5, -5, 100, 100), size) == (0, 0, 60, 40)
    with pytest.raises(InputError, match="lacks a number"):
        drawn.box((1, None, 2, 3), size)
    for values in ((0, 0, 0, 0), (70, 0, 80, 10), (5, 5, 5, 9)):
        with pytest.raises(InputError, match="has no pixel of the image of 60 × 40"):
            drawn.box(values, size)
    assert drawn.filled(np.zeros(size, bool), box).sum() == 20 * 15
    picture = drawn.picture(encode_png(np.zeros((*size, 3), np.uint8)), "x")
    shown = drawn.boxed(picture, [box], corner=(50.0, 30.0))
    assert (shown != picture.shown).any() and shown.shape == picture.shown.shape


def test_masks_and_boxes_of_an_answer_are_laid_over_what_is_shown():
    picture = drawn.picture(encode_png(np.zeros((20, 40, 3), np.uint8)), "x")
    mask = np.zeros((20, 40), np.uint8)
    mask[:10] = 2
    answer = {"mask": encode_png(mask), "classes": ["a", MARKUP], "areas": {MARKUP: 0.5}}
    shown, ((place, label),) = drawn.masks_over(picture, answer)
    assert shown is picture.shown and label == f"{MARKUP}: 50.0 %"
    assert place.shape == shown.shape[:2] and place[:128].all() and not place[128:].any()
    boxes = {"boxes": [{"label": "a", "score": 0.9, "box": [-3.0, 0.0, 10.0, 99.0]}]}
    assert drawn.boxes_over(picture, boxes)[1] == [((0, 0, 128, 256), "a: 90 %")]
    with pytest.raises(InputError):
        drawn.masks_over(picture, {**answer, "mask": b"no"})
    assert decode_mask(encode_png(mask), "x").max() == 2


TAUGHT = Taught("classification", 2, 5, (16, 16, 1), "", "accuracy", 0.5, 4, False, [(MARKUP, 1), ("b", 3)])


@pytest.mark.parametrize(
    "said",
    [
        words.told(MARKUP),
        words.refused(InputError(MARKUP)),
        words.learned(Learned(MARKUP, 1, None, [MARKUP])),
        words.table(TAUGHT, offset=0),
        words.verdict({"label": MARKUP, "probability": 0.5, "likeness": 1.0}),
    ],
)
def test_markup_is_text(said):
    assert "<img" not in said and "&lt;img" in said


def test_words():
    assert "2 classes of at most 5. Accuracy: 50.0 % of 4 images left out in turn." in words.summary(TAUGHT)
    alone = TAUGHT._replace(copies=True, total=1, most=None)
    assert "1 class. Accuracy: 50.0 % of 4 turned" in words.summary(alone)
    assert "not known" in words.summary(TAUGHT._replace(accuracy=None))
    assert "1 class. Teach a second." in words.summary(alone._replace(lacks="teach a second"))
    assert "AP50: 50.0 %" in words.summary(TAUGHT._replace(measure="AP50"))
    assert "Nothing is taught" in words.table(TAUGHT._replace(classes=[]), offset=0)
    assert "Classes 101 to 102 of 2" in words.table(TAUGHT, offset=100)
    unknown = words.verdict({"label": "unknown", "probability": 0.9, "likeness": -3.0})
    assert 'class="verdict unknown"' in unknown and "likeness -3" in unknown
    assert "nothing found" in words.found(0) and "2 found" in words.found(2)
    assert "different" in words.compared(Compared(False, 0.2, 0.5)) and "same" in words.compared(Compared(True, 1, 0.5))
    assert "nothing is marked" in words.painted("a", 0, 9) and "1 of 2,000" in words.painted("a", 1, 2000)
    assert "No box" in words.marked([]) and "1, 2, 3, 4" in words.marked([(1.0, 2.0, 3.0, 4.0)])
