"""Boxes that a person marks on the page, by clicking two corners or writing their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.marking import (
    Files,
    Marking,
    Marks,
    marked,
    numbers,
    only,
    opened,
    picture,
    telling,
    unless_emptied,
    which,
)


def boxes(files: gr.File, message: gr.HTML) -> Marking:
    """Marking by two corners that are clicked, or by their numbers."""
    marks = gr.State(Marks())
    with gr.Column(visible=False) as panel:
        chooser = which()
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
        corners, add, clear = numbers("Add the box")
    own = [view, count, marks]

    files.change(
        unless_emptied(telling(_chosen, 5)), [files, marks], [message, panel, chooser, *own], api_visibility="private"
    )
    chooser.input(telling(_switched, 3), [chooser, marks], [message, *own], api_visibility="private")
    view.select(_clicked, [marks], [message, *own], api_visibility="private")
    add.click(
        telling(lambda marks, *values: _show(_added(marks, values)), 3),
        [marks, *corners],
        [message, *own],
        api_visibility="private",
    )
    clear.click(telling(_wipe, 3), [marks], [message, *own], api_visibility="private")
    return Marking([marks], _of, [panel, chooser, *own], lambda: [*opened(None, Marks()), *_show(Marks())])


def _show(marks: Marks) -> list[Any]:
    if not marks.current:
        return [None, words.NOTHING, marks]
    found = marks.boxes.get(marks.current, [])
    return [drawn.boxed(picture(marks.current), found, marks.corner), words.marked(found), marks]


def _chosen(paths: Files, marks: Marks) -> list[Any]:
    marks = only(marks, paths)
    return [*opened(paths, marks), *_show(marks)]


def _switched(path: str | None, marks: Marks) -> list[Any]:
    return _show(marks._replace(current=path or "", corner=None))


def _added(marks: Marks, corners: Sequence[float | None]) -> Marks:
    box = drawn.box(corners, marked(marks).size)
    before = marks.boxes.get(marks.current, [])
    return marks._replace(boxes={**marks.boxes, marks.current: [*before, box]}, corner=None)


def _clicked(marks: Marks, event: gr.SelectData) -> list[Any]:
    def act() -> list[Any]:
        across, down = marked(marks).scale
        point = event.index[0] / across, event.index[1] / down
        if marks.corner is None:
            return _show(marks._replace(corner=point))
        return _show(_added(marks, (*marks.corner, *point)))

    return telling(act, 3)()


def _wipe(marks: Marks) -> list[Any]:
    kept = {path: found for path, found in marks.boxes.items() if path != marks.current}
    return _show(marks._replace(boxes=kept, corner=None))


def _of(paths: Sequence[str], marks: Marks) -> dict[str, Any]:
    for path in paths:
        if not marks.boxes.get(path):
            raise InputError(f"{Path(path).name!r}: has no box; mark the class in it, or take it out")
    return {"boxes": [marks.boxes[path] for path in paths]}
