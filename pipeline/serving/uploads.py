"""Forms with files out of requests: in memory, as far as the limits go, and whole or not at all."""

from __future__ import annotations

from typing import NamedTuple, final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from pipeline.serving.limits import Limits, Refused, file_name

KIND = b"multipart/form-data"
MOST_PARTS = 16
"""Fields of a form that are no files."""


class File(NamedTuple):
    """A file as it was sent: what it is called, which is not to be trusted, and its bytes."""

    name: str
    data: bytes


class Form(NamedTuple):
    """The texts and the files of a form, by field; of a text that came more than once the last counts."""

    texts: dict[str, str]
    files: dict[str, list[File]]


async def received(request: Request, limits: Limits) -> Form:
    """The form that a request carries.

    Raises:
        Refused: it is none, ends too early, or holds too much.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != KIND or not options.get(b"boundary"):
        raise Refused(400, "the body is no form with files; send multipart/form-data")
    try:
        parts = _Parts(options[b"boundary"], limits)
        async for chunk in request.stream():
            parts.write(chunk)
    except FormParserError as error:
        raise Refused(400, f"the form cannot be read ({error}); send multipart/form-data") from error
    return parts.form()


@final
class _Parts:
    """What has come of a form so far."""

    def __init__(self, boundary: bytes, limits: Limits):
        self._limits, self._texts, self._files = limits, dict[str, str](), dict[str, list[File]]()
        self._count, self._is_whole = 0, False
        self._header, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._field, self._name = "", None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def form(self) -> Form:
        if not self._is_whole:
            raise Refused(400, "the form is cut off; send it again")
        return Form(self._texts, self._files)

    def _begin(self) -> None:
        self._header, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._field, self._name = "", None

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            self._field = options.get(b"name", b"").decode(errors="replace")
            if b"filename" in options:
                self._name = file_name(options[b"filename"].decode(errors="replace"))
        self._header, self._value = bytearray(), bytearray()

    def _headers_end(self) -> None:
        self._count += 1
        # Segmentation sends two files for each image.
        most = 2 * self._limits.files + MOST_PARTS
        if self._count > most:
            raise Refused(413, f"the form has more than {most} parts; send at most {self._limits.files} images at once")

    def _end(self) -> None:
        if self._name is None:
            self._texts[self._field] = self._data.decode(errors="replace")
            return
        own = self._files.setdefault(self._field, [])
        own.append(File(self._name, bytes(self._data)))
        if len(own) > self._limits.files:
            raise Refused(413, f"{self._field}: more than {self._limits.files} files; send fewer at once")

    def _whole(self) -> None:
        self._is_whole = True
