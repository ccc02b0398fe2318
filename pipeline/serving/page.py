"""The page in front of a server: classes are taught and deleted, images asked about, the adapted model downloaded."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import gradio as gr
from gradio.themes import Default

from pipeline.errors import InputError
from pipeline.serving import drawn, words
from pipeline.serving.boxing import boxes
from pipeline.serving.client import PAGE, Image, Server, Taught
from pipeline.serving.marking import Marking, read, telling
from pipeline.serving.painting import masks

MODEL = "/model"
"""Where the page has the adapted model."""
BARS = 10
"""Classes whose probability is shown, at most."""
NAME = 200
"""Letters of a class's name, at most."""

LABELLED = ("classification", "verification")

# The library's own fonts come from a server of fonts, and its orange under white is hard to read.
THEME = Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_cancel_background_fill="#b91c1c",
    button_cancel_background_fill_hover="#991b1b",
    body_text_color_subdued="*neutral_600",
)
STYLE = """
.told, .refused, .warned { padding: .5em .8em; border-left: .35em solid; overflow-wrap: anywhere; }
.told { border-color: #009e73; } .warned { border-color: #e69f00; }
.refused { border-color: #d55e00; font-weight: 600; }
.verdict { font-size: 1.7em; font-weight: 600; overflow-wrap: anywhere; margin: 0; }
.verdict.unknown { display: inline-block; padding: .1em .5em; border: 2px dashed #d55e00; }
table.classes { border-collapse: collapse; width: 100%; table-layout: fixed; }
table.classes th, table.classes td { text-align: left; padding: .2em .5em; border: 0 !important; }
table.classes tbody tr { border-top: 1px solid #8886; }
table.classes th { overflow-wrap: anywhere; }
table.classes td, table.classes thead th:last-child { width: 6em; text-align: right; }
:focus-visible { outline: 3px solid #0072b2 !important; outline-offset: 2px; }
"""
# A button for files is called alike wherever it is; it should be called as its field is.
NAMED = """() => {
  const name = () => document.querySelectorAll(".block").forEach((block) => {
    const label = block.querySelector("[data-testid=block-label]");
    const button = block.querySelector("button:has(> input[type=file]), button[aria-dropeffect]");
    if (label && button) button.setAttribute("aria-label", label.textContent.trim());
  });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}"""


class Listing(NamedTuple):
    """The part of the page that tells what the server knows."""

    offset: gr.State
    summary: gr.HTML
    table: gr.HTML
    delete: gr.Dropdown
    download: gr.Button
    steps: gr.Row

    @property
    def outputs(self) -> list[Any]:
        return [*self]


def page(server: Server, told: Taught) -> gr.Blocks:
    """The page for a server, which told what it is for."""
    with gr.Blocks(title="Metashard", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        height, width, _ = told.size
        gr.Markdown(f"# Metashard: {told.task}\nImages are seen as {height} × {width} pixels.")
        with gr.Row():
            with gr.Column():
                gr.Markdown("## Teach a class")
                name, files, button, message, marking = _teaching(told.task)
                gr.Markdown("## Classes")
                listing = _listing(server, blocks)
            with gr.Column():
                gr.Markdown("## Ask")
                _asking(server, told.task)
                if told.task == "verification":
                    gr.Markdown("## Compare")
                    _comparing(server)
        extra = [] if marking is None else marking.inputs
        emptied = [name, files, *([] if marking is None else marking.outputs)]
        gr.on(
            [button.click, name.submit],
            partial(_teach, server, marking),
            [name, files, *extra],
            [message, *emptied, *listing.outputs],
            api_visibility="private",
        )
    return blocks


def _teaching(task: str) -> tuple[gr.Textbox, gr.File, gr.Button, gr.HTML, Marking | None]:
    name = gr.Textbox(label="Name of the class", max_lines=1, max_length=NAME, elem_id="name")
    files = gr.File(label="Images of the class", file_count="multiple", elem_id="images")
    message = gr.HTML(words.NOTHING, elem_id="taught", render=False)
    marking = None
    if task == "segmentation":
        marking = masks(files, message)
    elif task == "detection":
        marking = boxes(files, message)
    button = gr.Button("Teach", variant="primary", elem_id="teach")
    message.render()
    return name, files, button, message, marking


def _teach(server: Server, marking: Marking | None, name: str, paths: list[str] | None, *marked: Any) -> list[Any]:
    def act() -> list[Any]:
        if not name.strip():
            raise InputError("the class has no name; give one")
        if not paths:
            raise InputError(f"{name.strip()!r} has no images; give one or more")
        extra = {} if marking is None else marking.of(paths, *marked)
        done = server.teach(name.strip(), [read(path) for path in paths], **extra)
        return [words.learned(done), "", None, *([] if marking is None else marking.empty()), *_listed(server, 0)]

    empty = 2 + (0 if marking is None else len(marking.outputs))
    try:
        return act()
    except InputError as error:
        return [words.refused(error), *[gr.skip()] * (empty + len(Listing._fields))]


def _asking(server: Server, task: str) -> None:
    file = gr.File(label="Image to ask about", elem_id="query")
    threshold = gr.Textbox(
        label="Threshold (empty: the model's own)",
        info="Detections of a lower score are left out"
        if task == "detection"
        else "Images of a lower likeness are unknown",
        visible=task != "segmentation",
        max_lines=1,
        elem_id="threshold",
    )
    button = gr.Button("Ask", variant="primary", elem_id="ask")
    answer = gr.HTML(words.NOTHING, elem_id="answer")
    with gr.Column(visible=False) as more:
        outputs = _answer(task)

    def asked(path: str | None, least: str | None) -> list[Any]:
        try:
            if not path:
                raise InputError("no image to ask about; choose one")
            return [*_ask(server, task, read(path), _number(least)), gr.update(visible=True)]
        except InputError as error:
            # An answer to another image must not stand beside this.
            return [words.refused(error), *[None] * len(outputs), gr.update(visible=False)]

    given, told = [file, threshold], [answer, *outputs, more]
    gr.on([button.click, threshold.submit], asked, given, told, api_visibility="private")


def _answer(task: str) -> list[Any]:
    """What an answer is shown by, beside its words."""
    if task in LABELLED:
        bars = gr.Label(label="Probabilities", num_top_classes=BARS, show_heading=False, elem_id="probabilities")
        with gr.Row():
            shown = _image("The image", "asked", "The image that was asked about")
            nearest = _image("Nearest image of the support", "nearest", "The image of the support that it is most like")
        return [bars, shown, nearest]
    label = "What was found"
    return [gr.AnnotatedImage(label=label, format="png", buttons=[], elem_id="found")]


def _ask(server: Server, task: str, image: Image, threshold: float | None) -> list[Any]:
    """What the server says of an image: in words, and for `_answer`."""
    found = server.predict(image, threshold=threshold)
    picture = drawn.picture(image.data, image.name)
    if task in LABELLED:
        near = found["nearest"]
        label = f"Nearest image of the support: {near['name']}, of {near['class']}"
        support = drawn.picture(server.sample(near["id"]), near["name"]).shown
        return [words.verdict(found), found["probabilities"], picture.shown, gr.update(value=support, label=label)]
    over = (drawn.masks_over if task == "segmentation" else drawn.boxes_over)(picture, found)
    return [words.found(len(over[1])), over]


def _number(given: str | None) -> float | None:
    """What was typed; None where nothing was, or nothing could be."""
    if not given or not given.strip():
        return None
    try:
        return float(given)
    except ValueError:
        raise InputError(f"threshold {given!r}: is no number; give one, or leave it empty") from None


def _comparing(server: Server) -> None:
    with gr.Row():
        files = [gr.File(label=f"{which} image", elem_id=which.lower()) for which in ("First", "Second")]
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    answer = gr.HTML(words.NOTHING, elem_id="compared")
    with gr.Row(visible=False) as more:
        shown = [
            _image(f"{which} image, seen", f"{which.lower()}-seen", f"The {which.lower()} image")
            for which in ("First", "Second")
        ]

    def compare(one: str | None, other: str | None) -> list[Any]:
        try:
            if not one or not other:
                raise InputError("two images are compared; choose both")
            images = read(one), read(other)
            said = server.compare(*images)
            return [
                words.compared(said),
                *(drawn.picture(image.data, image.name).shown for image in images),
                gr.update(visible=True),
            ]
        except InputError as error:
            return [words.refused(error), None, None, gr.update(visible=False)]

    button.click(compare, files, [answer, *shown, more], api_visibility="private")


def _listing(server: Server, blocks: gr.Blocks) -> Listing:
    """The classes, `PAGE` at a time, what deletes one of them, and the model."""
    offset = gr.State(0)
    summary = gr.HTML(words.NOTHING, elem_id="known")
    table = gr.HTML(words.NOTHING, elem_id="classes")
    with gr.Row(visible=False) as steps:
        earlier = gr.Button("Earlier classes", elem_id="earlier")
        later = gr.Button("Later classes", elem_id="later")
    refresh = gr.Button("Refresh", size="sm", elem_id="refresh")
    delete = gr.Dropdown(label="Class to delete", choices=[], allow_custom_value=True, elem_id="which-class")
    button = gr.Button("Delete the class", variant="stop", elem_id="delete")
    message = gr.HTML(words.NOTHING, elem_id="deleted")
    download = gr.Button("Download the adapted model", link=MODEL, interactive=False, elem_id="download")
    listing = Listing(offset, summary, table, delete, download, steps)

    def forget(name: str | None, at: int) -> list[Any]:
        if not name:
            raise InputError("no class to delete; choose one")
        server.forget(name)
        return [words.told(f"{name!r} is deleted."), *_listed(server, at)]

    def forgotten(name: str | None, at: int) -> list[Any]:
        try:
            return forget(name, at)
        except InputError as error:
            return [words.refused(error), *[gr.skip()] * len(Listing._fields)]

    button.click(forgotten, [delete, offset], [message, *listing.outputs], api_visibility="private")
    for event, by in ((blocks.load, 0), (refresh.click, 0), (earlier.click, -PAGE), (later.click, PAGE)):
        act = telling(lambda at, by=by: _listed(server, at + by), len(Listing._fields))
        event(act, [offset], [message, *listing.outputs], api_visibility="private")
    return listing


def _listed(server: Server, offset: int) -> list[Any]:
    """The values of a `Listing`, of the classes from one on; the last ones if there are not so many."""
    found = server.taught(offset=max(0, offset))
    at = min(max(0, offset), max(0, found.total - 1) // PAGE * PAGE)
    if at != max(0, offset):
        found = server.taught(offset=at)
    names = [name for name, _ in found.classes]
    return [
        at,
        words.summary(found),
        words.table(found, offset=at),
        gr.update(choices=names, value=None),
        gr.update(interactive=not found.lacks),
        gr.update(visible=found.total > PAGE),
    ]


def _image(label: str, name: str, alt: str) -> gr.Image:
    return gr.Image(
        label=label, type="numpy", format="png", interactive=False, buttons=[], height=260, alt_text=alt, elem_id=name
    )
