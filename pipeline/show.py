"""The verb `show`: an episode of a data set, or the pictures of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from pipeline import conclude, spool
from pipeline.data.index import FOLDER as INDEX_FOLDER
from pipeline.data.index import Index
from pipeline.data.root import Root, Url
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.noise import Noise, Purpose
from pipeline.pictures.episodes import sample_picture
from pipeline.pictures.grid import Part

WAYS, SAMPLES = 5, 10


def show(target: Root, out: Path, *, redraw: bool = False) -> list[Path]:
    """Draw an episode of a data set into the PNG file `out`; or list a run's pictures, copied with the numbers beside them if
    `out` is no PNG but a folder. With `redraw` those of a run are drawn anew before.

    Raises:
        InputError: the target is neither, or has nothing to show.
    """
    if isinstance(target, Url) or (target / INDEX_FOLDER).is_dir():
        if redraw:
            raise InputError(f"--redraw: {target} is a data set, which is drawn each time; leave it out")
        return [_draw_episode(Index.open(target), out)]
    if not (target / spool.FILE).exists():
        raise InputError(f"{target} is neither a packed data set nor a run; pack images first, or see `metashard runs`")
    if redraw:
        conclude.redraw(target)
    found = sorted((target / "pictures").glob("*.png"))
    if not found:
        raise InputError(f"{target} has no pictures yet; they are drawn when its training ends")
    if out.suffix == ".png":
        return found
    out.mkdir(parents=True, exist_ok=True)
    beside = [file for file in sorted((target / "pictures").iterdir()) if file.suffix in (".csv", ".json")]
    for file in beside:
        shutil.copy(file, out)
    return [Path(shutil.copy(file, out)) for file in found]


def _draw_episode(index: Index, out: Path) -> Path:
    """Up to five classes of the test split, or of the first, with up to five support and five query samples each."""
    if index.encoder:
        raise InputError(f"{index.root} holds features, which are no pictures; show the images that they were made of")
    split = "test" if "test" in index.splits else next(iter(index.splits))
    classes = index.splits[split]
    classes = classes[index.counts[classes] >= 2]
    if len(classes) < 2:
        raise InputError(f"split {split!r} of {index.root} has fewer than 2 classes of 2 samples; there is no episode")
    noise, shards = Noise(0, Purpose.EPISODE), Shards(index)
    chosen = [int(classes[number]) for number in noise.subset(len(classes), min(WAYS, len(classes)))]
    sides: tuple[list, list, list, list] = ([], [], [], [])
    for label, class_id in enumerate(chosen):
        rows = index.postings(class_id)
        picked = noise.subset(len(rows), min(SAMPLES, len(rows)))
        for number, position in enumerate(picked):
            side = 2 if number >= len(picked) // 2 else 0
            sides[side].append(_side_by_side(shards, int(rows[position])))
            sides[side + 1].append(label)
    names = [index.class_names[class_id] for class_id in chosen]
    title = f"{index.name}: {len(chosen)} of the {len(index.splits[split])} classes of split {split}"
    return sample_picture(out, Part(*sides[:2]), Part(*sides[2:]), names, title=title)


def _side_by_side(shards: Shards, row: int) -> np.ndarray:
    """All modalities of a sample in a row; black where it has none of them."""
    index = shards.index
    planes = [_unit(shards.plane(row, name)) if index.has(row, name) else None for name in index.modalities]
    if len(planes) == 1 and planes[0] is not None:
        return planes[0]
    height, width, _ = index.shape(row)
    coloured = [np.zeros((height, width, 3)) if plane is None else _in_colour(plane) for plane in planes]
    return np.concatenate(coloured, axis=1)


def _in_colour(plane: np.ndarray) -> np.ndarray:
    """(height, width, 3), whatever its channels."""
    return plane[..., :3] if plane.shape[2] >= 3 else np.repeat(plane[..., :1], 3, axis=2)


def _unit(image: np.ndarray) -> np.ndarray:
    """The image with values in 0…1."""
    if np.issubdtype(image.dtype, np.integer):
        return image / np.iinfo(image.dtype).max
    low, high = float(image.min()), float(image.max())
    return image if 0 <= low and high <= 1 else (image - low) / max(high - low, 1e-12)
