"""Where a class is in its images, as a person marks it on the page: masks by a brush, boxes by their corners, both by numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.client import Box, Image
from pipeline.serving.drawn import LINE, SHADE, Picture

BRUSH = 24
"""Width of a stroke, in pixels shown."""
PAINT = f"{LINE}{SHADE:02x}"

Files = list[str] | None


class Marks(NamedTuple):
    """What was marked in files so far, by their paths; `current` is the one that is shown."""

    current: str = ""
    masks: dict[str, np.ndarray] = {}
    boxes: dict[str, list[Box]] = {}
    corner: tuple[float, float] | None = None


class Marking(NamedTuple):
    """The part of the page in which images are marked.

    inputs: what holds the marks; `of` makes what a server is taught beside the images from the files and their values.
    outputs: what is emptied by `empty` after that.
    """

    inputs: list[Any]
    of: Callable[..., dict[str, Any]]
    outputs: list[Any]
    empty: Callable[[], list[Any]]


def read(path: str) -> Image:
    """A file that a browser sent.

    Raises:
        InputError: it is not there any more.
    """
    file = Path(path)
    try:
        return Image(file.name, file.read_bytes())
    except OSError as error:
        raise InputError(f"{file.name!r}: is not there any more ({error.strerror}); choose it again") from error


def telling(act: Callable[..., Sequence[Any]], outputs: int) -> Callable[..., list[Any]]:
    """`act`, for a message and so many outputs; where it is refused, the message says so and all else stays."""

    def run(*given: Any) -> list[Any]:
        try:
            return [words.NOTHING, *act(*given)]
        except InputError as error:
            return [words.refused(error), *[gr.skip()] * outputs]

    return run


def masks(files: gr.File, message: gr.HTML) -> Marking:
    """Marking by a brush, or by rectangles that are filled."""
    marks = gr.State(Marks())
    with gr.Column(visible=False) as panel:
        which = _which()
        editor = gr.ImageEditor(
            label="Mask: paint over the class",
            type="numpy",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=BRUSH, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
            eraser=gr.Eraser(default_size=BRUSH),
            height=drawn.SIDE + 80,
            interactive=True,
            buttons=[],
            elem_id="mask",
        )
        corners, add, clear = _numbers("Fill the rectangle")

    def kept(editor: dict[str, Any] | None, marks: Marks) -> Marks:
        """The marks with what was painted last."""
        if not marks.current or editor is None:
            return marks
        size = _picture(marks.current).size
        return marks._replace(masks={**marks.masks, marks.current: drawn.painted(editor, size)})

    def show(marks: Marks) -> dict[str, Any] | None:
        if not marks.current:
            return None
        shown = _picture(marks.current).shown
        mask = marks.masks.get(marks.current)
        layers = [] if mask is None or not mask.any() else [drawn.layer(mask, shown)]
        return {"background": shown, "layers": layers, "composite": None}

    def chosen(paths: Files, editor: dict[str, Any] | None, marks: Marks) -> list[Any]:
        marks = _only(kept(editor, marks), paths)
        return [*_opened(paths, marks), show(marks), marks]

    def switched(path: str | None, editor: dict[str, Any] | None, marks: Marks) -> list[Any]:
        if not path or path == marks.current:
            return [gr.skip(), gr.skip()]
        marks = kept(editor, marks)._replace(current=path)
        return [show(marks), marks]

    def fill(editor: dict[str, Any] | None, marks: Marks, *numbers: float | None) -> list[Any]:
        marks = kept(editor, marks)
        size = _marked(marks).size
        mask = marks.masks.get(marks.current, np.zeros(size, bool))
        mask = drawn.filled(mask, drawn.box(numbers, size))
        marks = marks._replace(masks={**marks.masks, marks.current: mask})
        return [show(marks), marks]

    def wipe(marks: Marks) -> list[Any]:
        marks = marks._replace(masks={path: mask for path, mask in marks.masks.items() if path != marks.current})
        return [show(marks), marks]

    def of(paths: Sequence[str], editor: dict[str, Any] | None, marks: Marks) -> dict[str, Any]:
        marks, found = kept(editor, marks), []
        for path in paths:
            mask = marks.masks.get(path)
            if mask is None or not mask.any():
                raise InputError(f"{Path(path).name!r}: has no mask; paint over the class in it, or take it out")
            found.append(encode_png(mask.astype(np.uint8)))
        return {"masks": found}

    own = [editor, marks]
    files.change(telling(chosen, 4), [files, *own], [message, panel, which, *own], api_visibility="private")
    which.input(telling(switched, 2), [which, *own], [message, *own], api_visibility="private")
    add.click(telling(fill, 2), [*own, *corners], [message, *own], api_visibility="private")
    clear.click(telling(wipe, 2), [marks], [message, *own], api_visibility="private")
    return Marking(own, of, [panel, which, *own], lambda: [*_opened(None, Marks()), None, Marks()])


def boxes(files: gr.File, message: gr.HTML) -> Marking:
    """Marking by two corners that are clicked, or by their numbers."""
    marks = gr.State(Marks())
    with gr.Column(visible=False) as panel:
        which = _which()
        view = gr.Image(
            label="Boxes: click two opposite corners of each object",
            type="numpy",
            format="png",
            interactive=False,
            buttons=[],
            height=drawn.SIDE,
            elem_id="boxes",
            alt_text="The image with the boxes drawn so far",
        )
        count = gr.HTML(words.NOTHING, elem_id="marked")
        corners, add, clear = _numbers("Add the box")
    own = [view, count, marks]

    def show(marks: Marks) -> list[Any]:
        if not marks.current:
            return [None, words.NOTHING, marks]
        found = marks.boxes.get(marks.current, [])
        return [drawn.boxed(_picture(marks.current), found, marks.corner), words.marked(found), marks]

    def chosen(paths: Files, marks: Marks) -> list[Any]:
        marks = _only(marks, paths)
        return [*_opened(paths, marks), *show(marks)]

    def switched(path: str | None, marks: Marks) -> list[Any]:
        return show(marks._replace(current=path or "", corner=None))

    def added(marks: Marks, numbers: Sequence[float | None]) -> Marks:
        box = drawn.box(numbers, _marked(marks).size)
        before = marks.boxes.get(marks.current, [])
        return marks._replace(boxes={**marks.boxes, marks.current: [*before, box]}, corner=None)

    def clicked(marks: Marks, event: gr.SelectData) -> list[Any]:
        def act() -> list[Any]:
            across, down = _marked(marks).scale
            point = event.index[0] / across, event.index[1] / down
            if marks.corner is None:
                return show(marks._replace(corner=point))
            return show(added(marks, (*marks.corner, *point)))

        return telling(act, 3)()

    def wipe(marks: Marks) -> list[Any]:
        kept = {path: found for path, found in marks.boxes.items() if path != marks.current}
        return show(marks._replace(boxes=kept, corner=None))

    def of(paths: Sequence[str], marks: Marks) -> dict[str, Any]:
        for path in paths:
            if not marks.boxes.get(path):
                raise InputError(f"{Path(path).name!r}: has no box; mark the class in it, or take it out")
        return {"boxes": [marks.boxes[path] for path in paths]}

    files.change(telling(chosen, 5), [files, marks], [message, panel, which, *own], api_visibility="private")
    which.input(telling(switched, 3), [which, marks], [message, *own], api_visibility="private")
    view.select(clicked, [marks], [message, *own], api_visibility="private")
    add.click(
        telling(lambda marks, *numbers: show(added(marks, numbers)), 3),
        [marks, *corners],
        [message, *own],
        api_visibility="private",
    )
    clear.click(telling(wipe, 3), [marks], [message, *own], api_visibility="private")
    return Marking([marks], of, [panel, which, *own], lambda: [*_opened(None, Marks()), *show(Marks())])


def _which() -> gr.Dropdown:
    return gr.Dropdown(label="Image to mark", choices=[], interactive=True, elem_id="which")


def _numbers(what: str) -> tuple[list[gr.Number], gr.Button, gr.Button]:
    """Fields for the corners of a rectangle, what uses them, and what takes all marks of an image away."""
    gr.Markdown("Or by numbers, in pixels of the image:")
    with gr.Row():
        names = ("Left", "Top", "Right", "Bottom")
        corners = [gr.Number(label=name, minimum=0, min_width=80, elem_id=name.lower()) for name in names]
    with gr.Row():
        return corners, gr.Button(what, elem_id="add"), gr.Button("Clear the marks", elem_id="clear")


def _picture(path: str) -> Picture:
    found = read(path)
    return drawn.picture(found.data, found.name)


def _marked(marks: Marks) -> Picture:
    """The picture that is shown."""
    if not marks.current:
        raise InputError("no image is there to be marked; choose images of the class first")
    return _picture(marks.current)


def _only(marks: Marks, paths: Files) -> Marks:
    """The marks of files that are still there; the first of them is shown if the one that was is not."""
    known = paths or []
    current = marks.current if marks.current in known else next(iter(known), "")
    return Marks(
        current,
        {path: mask for path, mask in marks.masks.items() if path in known},
        {path: found for path, found in marks.boxes.items() if path in known},
    )


def _opened(paths: Files, marks: Marks) -> list[Any]:
    """The part of the page for marking, there if there is something to mark, and the images to choose from."""
    known = [(f"{number}: {Path(path).name}", path) for number, path in enumerate(paths or [], 1)]
    return [gr.update(visible=bool(known)), gr.update(choices=known, value=marks.current or None)]
