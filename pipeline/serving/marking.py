"""What marking a class in its images on the page has in common, whether it is painted or boxed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np

from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.client import Box, Image
from pipeline.serving.drawn import Picture

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


def unless_emptied(act: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`act` of files; where these are taken away, as after a class was taught, the message of that stays."""

    def run(paths: Files, *given: Any) -> list[Any]:
        found = act(paths, *given)
        return found if paths else [gr.skip(), *found[1:]]

    return run


def which() -> gr.Dropdown:
    return gr.Dropdown(label="Image to mark", choices=[], interactive=True, elem_id="which")


def numbers(what: str) -> tuple[list[gr.Number], gr.Button, gr.Button]:
    """Fields for the corners of a rectangle, what uses them, and what takes all marks of an image away."""
    gr.Markdown("Or by numbers, in pixels of the image:")
    with gr.Row():
        names = ("Left", "Top", "Right", "Bottom")
        corners = [gr.Number(label=name, minimum=0, min_width=80, elem_id=name.lower()) for name in names]
    with gr.Row():
        return corners, gr.Button(what, elem_id="add"), gr.Button("Clear the marks", elem_id="clear")


def picture(path: str) -> Picture:
    found = read(path)
    return drawn.picture(found.data, found.name)


def marked(marks: Marks) -> Picture:
    """The picture that is shown."""
    if not marks.current:
        raise InputError("no image is there to be marked; choose images of the class first")
    return picture(marks.current)


def only(marks: Marks, paths: Files) -> Marks:
    """The marks of files that are still there; the first of them is shown if the one that was is not."""
    known = paths or []
    current = marks.current if marks.current in known else next(iter(known), "")
    return Marks(
        current,
        {path: mask for path, mask in marks.masks.items() if path in known},
        {path: found for path, found in marks.boxes.items() if path in known},
    )


def opened(paths: Files, marks: Marks) -> list[Any]:
    """The part of the page for marking, there if there is something to mark, and the images to choose from."""
    known = [(f"{number}: {Path(path).name}", path) for number, path in enumerate(paths or [], 1)]
    return [gr.update(visible=bool(known)), gr.update(choices=known, value=marks.current or None)]
