"""What requests and answers look like, for /openapi.json; tests compare answers with it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "an image or a field is not what it should be"},
    401: {"description": "no valid token"},
    403: {"description": "asked by a page of another place, or by another name of this machine"},
    409: {"description": "does not go with what is taught"},
    413: {"description": "too large, or too many"},
    503: {"description": "too busy"},
}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(_Said):
    status: str
    task: str
    classes: int


class Class(_Said):
    name: str
    samples: int


class Classes(_Said):
    """size: height, width, channels. lacks: what is missing before anything can be asked, if something is. accuracy: how right it
    was of `samples` left out of the support, 0…1, by `measure` (accuracy, mean IoU or AP50); copies: these were turned and moved
    copies of it."""

    task: str
    total: int
    most: int | None
    size: tuple[int, int, int]
    lacks: str
    measure: str
    accuracy: float | None
    samples: int
    copies: bool
    threshold: float | None
    classes: list[Class]


class Learned(_Said):
    name: str
    samples: int
    accuracy: float | None
    warnings: list[str]


class Nearest(_Said):
    """The sample of the support that an image is most like; `id` for /samples/{id}."""

    id: int
    name: str
    of: str = Field(alias="class")


class Object(_Said):
    """An object in an image: left, top, right, bottom in its pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Prediction(_Said):
    """Either an error, or what the task has: label …, areas and mask (base64 PNG: 0, or 1 + the place in classes), or boxes."""

    name: str
    error: str | None = None
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    likeness: float | None = None
    nearest: Nearest | None = None
    areas: dict[str, float] | None = None
    mask: str | None = None
    classes: list[str] | None = None
    boxes: list[Object] | None = None


class Predictions(_Said):
    predictions: list[Prediction]
    version: int


class Compared(_Said):
    same: bool
    likeness: float
    threshold: float


def _form(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    form = {"type": "object", "properties": fields, "required": required}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
IMAGES = _form({"images": _FILES}, ["images"])
LESSON = _form(
    {
        "name": {"type": "string"},
        "images": _FILES,
        "masks": {**_FILES, "description": "segmentation: a PNG for each image; >0 is the class, 255 is not looked at"},
        "boxes": {
            "type": "string",
            "description": "detection: JSON, for each image a list of [left, top, right, bottom]",
        },
    },
    ["name", "images"],
)
