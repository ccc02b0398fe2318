"""Masks that a person paints on the page, or fills by the numbers of rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from pipeline.data.images import encode_png
from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.drawn import LINE, SHADE
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

BRUSH = 24
"""Width of a stroke, in pixels shown."""
PAINT = f"{LINE}{SHADE:02x}"


def masks(files: gr.File, message: gr.HTML) -> Marking:
    """Marking by a brush, or by rectangles that are filled."""
    marks = gr.State(Marks())
    with gr.Column(visible=False) as panel:
        chooser = which()
        editor = gr.ImageEditor(
            label="Mask: paint over the class",
            type="numpy",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            canvas_size=(drawn.SIDE, drawn.SIDE),
            brush=gr.Brush(default_size=BRUSH, colors=[PAINT], default_color=PAINT, color_mode="fixed"),
            eraser=gr.Eraser(default_size=BRUSH),
            height=drawn.SIDE + 80,
            interactive=True,
            buttons=[],
            elem_id="mask",
        )
        count = gr.HTML(words.NOTHING, elem_id="marked")
        corners, add, clear = numbers("Fill the rectangle")
    given, own = [editor, marks], [editor, count, marks]
    files.change(
        unless_emptied(telling(_chosen, 5)), [files, *given], [message, panel, chooser, *own], api_visibility="private"
    )
    chooser.input(telling(_switched, 3), [chooser, *given], [message, *own], api_visibility="private")
    add.click(telling(_fill, 3), [*given, *corners], [message, *own], api_visibility="private")
    clear.click(telling(_wipe, 3), [marks], [message, *own], api_visibility="private")
    return Marking(given, _of, [panel, chooser, *own], lambda: [*opened(None, Marks()), *_show(Marks())])


def _kept(editor: dict[str, Any] | None, marks: Marks) -> Marks:
    """The marks with what was painted last."""
    if not marks.current or editor is None:
        return marks
    return marks._replace(masks={**marks.masks, marks.current: drawn.painted(editor, picture(marks.current))})


def _show(marks: Marks) -> list[Any]:
    if not marks.current:
        return [None, words.NOTHING, marks]
    of = picture(marks.current)
    mask = marks.masks.get(marks.current, np.zeros(of.size, bool))
    said = words.painted(Path(marks.current).name, int(mask.sum()), mask.size)
    return [drawn.canvas(of, mask), said, marks]


def _chosen(paths: Files, editor: dict[str, Any] | None, marks: Marks) -> list[Any]:
    marks = only(_kept(editor, marks), paths)
    return [*opened(paths, marks), *_show(marks)]


def _switched(path: str | None, editor: dict[str, Any] | None, marks: Marks) -> list[Any]:
    if not path or path == marks.current:
        return [gr.skip()] * 3
    return _show(_kept(editor, marks)._replace(current=path))


def _fill(editor: dict[str, Any] | None, marks: Marks, *corners: float | None) -> list[Any]:
    marks = _kept(editor, marks)
    size = marked(marks).size
    mask = marks.masks.get(marks.current, np.zeros(size, bool))
    mask = drawn.filled(mask, drawn.box(corners, size))
    return _show(marks._replace(masks={**marks.masks, marks.current: mask}))


def _wipe(marks: Marks) -> list[Any]:
    return _show(marks._replace(masks={p: mask for p, mask in marks.masks.items() if p != marks.current}))


def _of(paths: Sequence[str], editor: dict[str, Any] | None, marks: Marks) -> dict[str, Any]:
    marks, found = _kept(editor, marks), []
    for path in paths:
        mask = marks.masks.get(path)
        if mask is None or not mask.any():
            raise InputError(f"{Path(path).name!r}: has no mask; paint over the class in it, or take it out")
        found.append(encode_png(mask.astype(np.uint8)))
    return {"masks": found}
