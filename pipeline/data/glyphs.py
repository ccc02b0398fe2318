"""Draws the characters of many scripts as labelled pictures, each sample warped in its own way.

The characters come from the fonts that matplotlib installs. A character in a face becomes, once, a field of signed
distances to its outline; a sample reads that field through a random affine and elastic map and moves the outline in or
out. So pictures of any size cost the same few array operations, and the ink mask is known exactly.

Law 1 for pixels: besides FreeType's integer rasteriser only integers and single IEEE operations (+ - * / sqrt) are
used, no sine, no float matrix product, so that the bits are those of the pinned Pillow and matplotlib on any processor.

Units: a picture spans [-1, 1] in x (right) and y (down); a glyph's longer side spans [-1, 1] of its own coordinates.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose

# Code points in hexadecimal, by split and script. Left out: what has the outline of another entry up to shift, scale
# and stroke in any upright or oblique face (Greek A and Cyrillic A are Latin A), marks, and letters plus an accent.
SCRIPTS = {
    "train": {
        "latin": """
            0032-0034 0036-0037 0041-0049 004B-004E 0050-005A 0061-0062 0064-0068 006B 006D-006E 0070-0072 0074 0079
            00C6 00D0 00DF 0126 0141 014B 0166-0167 0181 0187 018A 0193 0197 019B 019D 01A2-01A6 01AA-01AB
            01B5 01B8 01BA-01BB 0221 0223-0224 0234-0236 023A-023B 023D-0242 0244 0246 0248 024D-024F 0255 025A 025D
            0260 0263 026E 0271 0276 0279 027B 027D 027F 0281 0283 0287 028D 0290-0291 0293 0295 029D-029E 02A0-02A1
            02A3-02A4 02A6-02AD 1D12-1D14 1D16-1D17 1D1A 1D1E 1D6B 1D7C 1D84 1D8A 1D8D-1D8E 1EFA 2C60 2C64-2C66
            2C71 2C74 2C7A A722 A727-A728 A72C A72E A733-A734 A736-A739 A73C-A73D A746 A74B A750 A753 A768 A77B
            A787 A790 A7A1-A7A3 A7A5-A7A6 A7A8 A7AA A7FC-A7FD A7FF""",
        "greek": """
            0370 0372 0376 037B-037D 0394 0398 039B 039E 03A3 03A6 03A8 03B1-03B2 03B6-03B7 03B9 03BB-03BE 03C2-03C4
            03C9 03CF 03D7-03D8 03DE-03E1 03F7 03FA-03FB""",
        "cyrillic": """
            0402 0409-040B 040F 0411 0414 0416 041B 0426 042B 042E-042F 044A 0462-0464 0466 0468 046A 046C 046E 0470
            0478-0479 047C 047E 0482 048A 048E-0490 0494 0498 049D 049F-04A0 04A2 04A6 04A8 04AA 04B0 04B2 04B6 04B8
            04BA 04BC 04BF 04C3 04C5 04C7 04CB 04CD 04E0 04FA 04FC 04FE 0500 0502 0504 0506 0509 050B 050E 0510 0514
            0516-0519 0520 0522 0525 A644 A64C A650 A654 A657 A662 A664 A666 A66C A66E""",
        "arabic": """
            0621 0628 062A 062C-0634 0637 063A 0641-0649 066E 067A 067C 0686 0688-068C 0691 0693-0696 069B-069C 069F
            06A2 06A9-06AC 06AE 06B1 06B3 06B8-06BB 06BE-06BF 06C6 06CE 06D0""",
        "old_italic": "10302 1030B-1030E 10314-10316 10319 1031D-1031E 10323",
        "canadian": """
            1406 1409-140F 1412-1413 1416 1418 141A-141B 141F-1420 1425-1426 142B-142E 1433-1435 1437 1439-143D
            1440-1445 1447-1448 144D 1451-1452 1456-145F 1461-1462 1464-1465 1467-146A 146C 1471 1474 1476 1478-147B
            147E-147F 1482 1485 1487-1488 148A 1490 1492 1494-1499 149C-149D 14A0 14A6 14AC-14AD 14AF 14B2-14B3
            14B7 14BA 14C0-14C8 14CA-14CF 14D3-14DB 14DD-14DE 14E0 14E2-14E9 14EC 14EE-14EF 14F2 14F5-14F9 14FB
            14FE 1502-1504 1510-1524 1526-1536 1538-153B 153D 1542-1547 1549-154C 154E-154F 1552-1554 1557-155A 155C
            155F 1562-1567 1569 157E-157F 1581 1583 1585 158E-158F 1591-1593 1595-1596 15A0 15A2-15A5 15A7-15AA 15AC
            1647 166F-1671 1673 1675""",
        "fraktur": """
            1D504-1D505 1D507-1D50A 1D50E-1D514 1D516-1D517 1D51A-1D51C 1D51E-1D520 1D524-1D526 1D528-1D529 1D52B
            1D52D-1D530 1D534-1D537""",
        "script": """
            1D49C 1D49E-1D49F 1D4A2 1D4A5-1D4A6 1D4A9-1D4AC 1D4AE-1D4B9 1D4BB 1D4BD-1D4BF 1D4C1-1D4C3
            1D4C5-1D4CF""",
    },
    "val": {
        "nko": "07C1-07C4 07C6-07C9 07CF 07D1-07D2 07D4-07DF 07E2-07E4 07E6-07E7",
        "tifinagh": """
            2D32 2D34-2D35 2D3A-2D3F 2D41-2D48 2D4B-2D4C 2D4E 2D50 2D52-2D53 2D55 2D58-2D5C 2D5E-2D5F
            2D62-2D65""",
    },
    "test": {
        "armenian": """
            0531 0534-0539 053B 053D-0543 0546-0547 0549-054B 054E 0550 0552 0556 0561 0569 056B 056D-056E 0574 0576
            0579-057B 0580 0583-0584 0586""",
        "georgian": """
            10A0-10A2 10A4-10A5 10A7-10AC 10AE 10B0-10B2 10B5 10B8 10BA-10BC 10BF 10C1-10C5 10D0-10D1 10D3-10D4 10D6
            10D8-10DA 10DD 10DF-10E0 10E2-10E6 10EA 10EF-10F0 10F4-10F6 10F9 2D00-2D02 2D08 2D0B 2D0E-2D0F 2D13
            2D15 2D17-2D18 2D1A 2D1C-2D1F 2D21-2D25""",
        "hebrew": "05D0-05D4 05D6 05DC 05E2 05E4 05E6-05E9",
        "lao": """
            0E81-0E82 0E84 0E87-0E88 0E8A 0E8D 0E94-0E97 0E99 0E9B-0E9E 0EA1 0EA5 0EA7 0EAA 0EAD-0EB0 0EB2 0EBD
            0EC0-0EC3 0ED1-0ED3 0ED5-0ED6 0ED8-0ED9""",
    },
}
# The first words of the Unicode names, where they are not the script's own name; cut from the class names.
PREFIXES = {
    "canadian": "CANADIAN SYLLABICS",
    "fraktur": "MATHEMATICAL FRAKTUR",
    "old_italic": "OLD ITALIC LETTER",
    "script": "MATHEMATICAL SCRIPT",
}
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
)
INK = 1
"""The mask's value on ink; elsewhere it is 0."""

_FONT_PX = 96
_BAND_PX = 10  # distances are measured this far: strokes are moved, and edges smoothed, by less
_FAR_PX = 100.0  # stands for all that is farther
_FILL = 0.68  # half the longer side of an average glyph, in picture units
_LIMIT = 0.94  # a warped glyph's bounding box stays within this
_SHIFT = 0.2  # the warps leave 42 % to nearest pixels, 5-way 1-shot on the test scripts, and every letter legible
_HALF_TURN = 0.11  # tangent of half the largest rotation: 12.6 degrees
_SHEAR = 0.22
_SCALE = (0.86, 1.12)
_ELASTIC = 0.22  # how far a control point moves; the spline between them moves about half as far
_CONTROLS = 6
_STROKE = (0.0, 0.035)  # how far the outline moves outwards over the whole glyph, and …
_PRESSURE = 0.03  # … locally, in picture units
_ONE = 1 << 12  # fixed-point one of the spline's weights


class Character(NamedTuple):
    """A class of the data set: `name` is `script/rest_of_its_unicode_name`."""

    name: str
    split: str
    script: str
    text: str


class Glyph(NamedTuple):
    """One drawing: `image` (size, size, 1) uint8, white ink on black; `mask` (size, size) uint8, INK where the
    image is at least half white; `box` (left, top, right, bottom) of the mask in pixels, right and bottom excluded."""

    image: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]


class _Outline(NamedTuple):
    """A character in a face: signed distance to its outline (rows, columns) in font pixels, positive inside;
    the glyph's centre and half its longer side in pixels of that field; its half width and height in glyph units."""

    distance: np.ndarray
    centre: tuple[float, float]
    unit: float
    extent: tuple[float, float]


@cache
def characters() -> tuple[Character, ...]:
    """All classes, ordered by split, script and code point.

    Some are others turned or mirrored (Canadian syllabics): rotations-as-classes is not for this data set.
    """
    found = []
    for split, scripts in SCRIPTS.items():
        for script, ranges in scripts.items():
            prefix = PREFIXES.get(script, script.upper()) + " "
            for part in ranges.split():
                first, _, last = part.partition("-")
                for code in range(int(first, 16), int(last or first, 16) + 1):
                    text = chr(code)
                    name = unicodedata.name(text).removeprefix(prefix).lower().replace(" ", "_")
                    found.append(Character(f"{script}/{name}", split, script, text))
    return tuple(found)


@cache
def _font_path(face: str) -> str:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    if not path.is_file():
        raise InputError(f"font {path} is missing: glyphs are drawn with matplotlib's own fonts; reinstall matplotlib")
    return str(path)


@cache
def _covered(face: str) -> frozenset[int]:
    return frozenset(FT2Font(_font_path(face)).get_charmap())


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # The basic layout: the other one depends on a library that may or may not be there.
    return ImageFont.truetype(_font_path(face), _FONT_PX, layout_engine=ImageFont.Layout.BASIC)


@cache
def faces(text: str) -> tuple[str, ...]:
    """The faces that hold a character (one without it would draw an empty box)."""
    found = tuple(face for face in FACES if ord(text) in _covered(face))
    if not found:
        version = matplotlib.__version__
        raise InputError(f"no font of matplotlib {version} has U+{ord(text):04X}; install matplotlib 3.10 or 3.11")
    return found


def _stream(character: Character, seed: int, number: int) -> Noise:
    """Words of one sample: number 0 is the class itself. Keyed by name, so that other classes don't matter."""
    key = int.from_bytes(hashlib.sha256(character.name.encode()).digest()[:8])
    return Noise(seed, Purpose.GLYPH, key, number)


@lru_cache(maxsize=256)
def _dealt_faces(character: Character, seed: int) -> tuple[str, ...]:
    return tuple(_stream(character, seed, 0).shuffled(list(faces(character.text))))


def face_of(character: Character, *, seed: int, number: int) -> str:
    """The face of a sample: a class's faces take turns in an order of its own."""
    dealt = _dealt_faces(character, seed)
    return dealt[number % len(dealt)]


def distance_squared(feature: np.ndarray) -> np.ndarray:
    """Squared distance in pixels to the nearest pixel of `feature` (rows, columns) bool, cut off at the band."""
    rows, columns = feature.shape
    along = np.where(feature, 0, _BAND_PX).astype(np.int16)
    for _ in range(_BAND_PX - 1):
        spread = along.copy()
        np.minimum(spread[:, 1:], along[:, :-1] + 1, out=spread[:, 1:])
        np.minimum(spread[:, :-1], along[:, 1:] + 1, out=spread[:, :-1])
        along = spread
    squared = along * along
    nearest = squared.copy()
    for step in range(1, min(_BAND_PX, rows)):
        np.minimum(nearest[step:], squared[:-step] + step * step, out=nearest[step:])
        np.minimum(nearest[:-step], squared[step:] + step * step, out=nearest[:-step])
    return np.minimum(nearest, _BAND_PX * _BAND_PX)


@lru_cache(maxsize=64)
def _outline(text: str, face: str) -> _Outline:
    font = _font(face)
    left, top, right, bottom = font.getbbox(text)
    margin = _BAND_PX + 2
    canvas = Image.new("L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin))
    ImageDraw.Draw(canvas).text((margin - left, margin - top), text, font=font, fill=255)
    coverage = np.asarray(canvas) / 255
    ink = coverage >= 0.5
    # Half a pixel either way: the outline runs between the pixel centres; a pixel that it cuts knows better.
    inside, outside = (np.sqrt(distance_squared(part).astype(np.float64)) for part in (~ink, ink))
    distance = np.where(ink, inside - 0.5, 0.5 - outside)
    cut = (coverage > 0) & (coverage < 1)
    distance[cut] = coverage[cut] - 0.5
    distance[np.maximum(inside, outside) == _BAND_PX] *= _FAR_PX / _BAND_PX
    left, top, right, bottom = box_of(ink)
    unit = max(right - left, bottom - top) / 2
    centre = ((left + right - 1) / 2, (top + bottom - 1) / 2)
    return _Outline(distance, centre, unit, ((right - left) / (2 * unit), (bottom - top) / (2 * unit)))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is not zero in a mask (rows, columns), right and bottom excluded."""
    across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def _affine(noise: Noise, extent: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A map from glyph to picture coordinates, as (matrix, shift), that keeps the glyph within the picture."""
    half = noise.uniform(-_HALF_TURN, _HALF_TURN)
    # Rational in the half tangent: sines differ in their last bit from one C library to the next.
    cos, sin = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    shear = noise.uniform(-_SHEAR, _SHEAR)
    wide, high = (_FILL * noise.uniform(*_SCALE) for _ in range(2))
    a, b = cos * wide, (cos * shear - sin) * high
    c, d = sin * wide, (sin * shear + cos) * high
    reach = [abs(a) * extent[0] + abs(b) * extent[1], abs(c) * extent[0] + abs(d) * extent[1]]
    shrink = min(1.0, _LIMIT / max(reach))
    shift = [noise.uniform(-1, 1) * min(_SHIFT, _LIMIT - r * shrink) for r in reach]
    return np.array([[a, b], [c, d]]) * shrink, np.array(shift)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (size,) in picture units, and cubic B-spline weights (size, controls) times `_ONE`, as integers."""
    centres = (np.arange(size) * 2 + 1 - size) / size
    place = (centres + 1) / 2 * (_CONTROLS - 3) + 1
    away = np.abs(place[:, None] - np.arange(_CONTROLS))
    near = (4 - 6 * away * away + 3 * away * away * away) / 6
    rest = 2 - away
    weights = np.where(away < 1, near, np.where(away < 2, rest * rest * rest / 6, 0.0))
    return centres, np.floor(weights * _ONE + 0.5).astype(np.int64)


def _smooth(noise: Noise, size: int) -> np.ndarray:
    """Three smooth random fields (3, size, size) in about [-1, 1]: splines through random control points."""
    _, weights = _grid(size)
    words = (noise.words(3 * _CONTROLS * _CONTROLS) >> np.uint64(48)).astype(np.int64) - (1 << 15)
    # Integer products are exact in any order of summation.
    fields = weights @ words.reshape(3, _CONTROLS, _CONTROLS) @ weights.T
    return fields / float(_ONE * _ONE << 15)


def _sampled(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of a field at pixel coordinates; beyond its border, its border."""
    rows, columns = field.shape
    x, y = np.clip(x, 0, columns - 1.001), np.clip(y, 0, rows - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, down = x - column, y - row
    first, flat = row * columns + column, field.ravel()
    upper = flat[first] * (1 - right) + flat[first + 1] * right
    lower = flat[first + columns] * (1 - right) + flat[first + columns + 1] * right
    return upper * (1 - down) + lower * down


@lru_cache(maxsize=8)
def draw(character: Character, *, seed: int, number: int, size: int = 28) -> Glyph:
    """Sample `number` of a class: a pure function of its arguments. The arrays are shared: copy before writing."""
    outline = _outline(character.text, face_of(character, seed=seed, number=number))
    noise = _stream(character, seed, number + 1)
    matrix, shift = _affine(noise, outline.extent)
    (a, b), (c, d) = matrix.tolist()
    determinant = a * d - b * c
    stroke = noise.uniform(*_STROKE)
    centres, _ = _grid(size)
    bend_x, bend_y, pressure = _smooth(noise, size)
    x = centres[None, :] - shift[0] + _ELASTIC * bend_x
    y = centres[:, None] - shift[1] + _ELASTIC * bend_y
    unit = outline.unit
    inside = _sampled(
        outline.distance,
        (d * x - b * y) * (unit / determinant) + outline.centre[0],
        (a * y - c * x) * (unit / determinant) + outline.centre[1],
    )
    # From font pixels to picture units to the picture's pixels, whose ink covers half at the outline itself.
    scale = math.sqrt(abs(determinant)) / unit
    cover = (inside * scale + stroke + _PRESSURE * pressure) * (size / 2) + 0.5
    cover += max(0.0, 0.5 - cover.max())  # in tiny pictures hairlines can fall between the pixels; one shall show
    image = np.floor(np.clip(cover, 0, 1) * 255 + 0.5).astype(np.uint8)
    mask = (image >= 128).astype(np.uint8) * INK
    box = box_of(mask)
    image.flags.writeable = mask.flags.writeable = False
    return Glyph(image[:, :, None], mask, box)
