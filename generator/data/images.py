# SPDX-License-Identifier: Apache-2.0
"""Pictures: a folder for each class."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sparcl_mcu.generator import files as user_files
from sparcl_mcu.generator.config import MAX_VALUES, Config
from sparcl_mcu.generator.data.raw import Raw, Samples, check_classes, natural, ungrouped
from sparcl_mcu.generator.data.tasks import held_out
from sparcl_mcu.generator.sizes import (
    LARGEST_ARRAYS,
    LARGEST_FOLDER,
    LARGEST_PICTURE,
    LARGEST_PIXELS,
    MOST_ENTRIES,
    shown,
)
from sparcl_mcu.spec.errors import UserError

Pictures: TypeAlias = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes of pictures; other files are skipped."""


def folder(config: Config) -> Raw:
    """``path``/class/*.png, or ``path``/train/class/*.png and ``path``/test/class/*.png.

    (n, height, width[, 3]) uint8.
    """
    root = cast(Path, config.data.path)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder (data.path)")
    apart = _apart(root)
    train_files = _files(root / "train" if apart else root)
    names = natural(train_files)
    check_classes(str(root), names, config)
    test_files = _files(root / "test") if apart else {}
    known = set(names)
    for name in test_files:
        if name not in known:
            raise UserError(f"{root / 'test' / name}: there is no such class in {root / 'train'}")
    train, test = _samples(config, names, train_files, test_files)
    raw = Raw(root.name, str(root), names, train, test)
    return raw if apart else held_out(config, raw)


def files(root: Path) -> list[Path]:
    """All pictures below a folder except hidden ones, such as thumbnails."""
    named: list[Path] = []
    entries = 0
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        entries += len(folders) + len(names)
        if entries > MOST_ENTRIES:
            raise UserError(f"{root}: has more than {MOST_ENTRIES:,} files and folders: is it the right folder?")
        shown_names = (name for name in names if not name.startswith("."))
        named += [Path(place, name) for name in shown_names if os.path.splitext(name)[1].lower() in SUFFIXES]
    found = sorted(path for path in named if path.is_file())
    size = sum(path.stat().st_size for path in found)
    if size > LARGEST_FOLDER:
        raise UserError(f"{root}: its pictures have {shown(size)}; at most {shown(LARGEST_FOLDER)} are possible")
    return found


def resize(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    """(n, height, width[, 3]) -> (n, *size[, 3]): means of whole blocks where possible (28 to 16 too, after padding
    to 32), else bilinear.
    """
    if pictures.shape[1:3] == size:
        return pictures
    if pictures.shape[1:3] == (28, 28) and size == (16, 16):
        pictures = np.pad(pictures, ((0, 0), (2, 2), (2, 2), *((0, 0),) * (pictures.ndim - 3)))
    n, height, width, *channels = pictures.shape
    if height % size[0] == 0 and width % size[1] == 0:
        rows, columns = height // size[0], width // size[1]
        sums = pictures.reshape(n, size[0], rows, size[1], columns, *channels).sum(axis=(2, 4), dtype=np.int64)
        means: Pictures = ((sums + rows * columns // 2) // (rows * columns)).astype(np.uint8)
        return means
    scaled = [Image.fromarray(p).resize(size[::-1], Image.Resampling.BILINEAR) for p in pictures]
    return np.stack([np.asarray(p) for p in scaled])


def _apart(root: Path) -> bool:
    """Whether there are train/ and test/; a class may have one of these names, but no folders in it."""
    parts = {name for name in ("train", "test") if any(path.is_dir() for path in _entries(root / name))}
    if len(parts) == 1:
        other = "test" if "train" in parts else "train"
        raise UserError(
            f"{root}: has {parts.pop()}/ with folders in it, but no {other}/ with folders: add it, or let data.path "
            "name the folder in which the classes are"
        )
    return len(parts) == 2


def _entries(root: Path) -> list[Path]:
    """Entries of a folder that are not hidden; none if the folder does not exist."""
    try:
        return sorted(path for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else []
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from None


def _files(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class."""
    classes = [path for path in _entries(root) if path.is_dir()]
    if not classes:
        raise UserError(f"{root}: has no folders; put the pictures of each class into a folder of its own")
    result = {path.name: files(path) for path in classes}
    for name, found in result.items():
        if not found:
            raise UserError(f"{root / name}: has no pictures ({', '.join(SUFFIXES)})")
    return result


def _samples(config: Config, names: tuple[str, ...], *parts: dict[str, list[Path]]) -> tuple[Samples, Samples]:
    """Training and test samples with the same size and number of channels."""
    size, first = config.data.size, None
    # Without data.size they have to be small enough already.
    most = MAX_VALUES if size is None else LARGEST_PIXELS
    count = sum(len(paths) for part in parts for paths in part.values())
    loaded: list[list[Pictures]] = []
    for part in parts:
        pictures: list[Pictures] = []
        for paths in part.values():
            for path in paths:
                picture = _read(path, most)
                if size is None:
                    size, first = (picture.shape[0], picture.shape[1]), path
                if not pictures:
                    _check_total(count, size)
                if first is not None and picture.shape[:2] != size:
                    raise UserError(
                        f"{path}: is {picture.shape[0]} x {picture.shape[1]} (height x width), {first} is "
                        f"{size[0]} x {size[1]}: set data.size to the size all pictures are brought to"
                    )
                pictures.append(resize(picture[np.newaxis], size)[0])
        loaded.append(pictures)
    color = config.data.color
    if color is None:
        color = any(_colored(picture) for pictures in loaded for picture in pictures)
    channels = (3,) if color else ()
    result = []
    number = {name: k for k, name in enumerate(names)}
    for part, pictures in zip(parts, loaded, strict=True):
        y = np.repeat([number[name] for name in part], [len(paths) for paths in part.values()]).astype(np.int64)
        x = np.zeros((len(pictures), *(size or (1, 1)), *channels), dtype=np.uint8)
        for k, picture in enumerate(pictures):
            x[k] = np.asarray(Image.fromarray(picture).convert("RGB" if color else "L"))
        result.append(ungrouped(x, y))
    return result[0], result[1]


def _check_total(count: int, size: tuple[int, int]) -> None:
    """Check that all pictures together, with three channels, fit into memory."""
    total = count * size[0] * size[1] * 3
    if total > LARGEST_ARRAYS:
        raise UserError(
            f"data.path: {count} pictures of {size[0]} x {size[1]} have {shown(total)}; at most "
            f"{shown(LARGEST_ARRAYS)} are possible: set a smaller data.size"
        )


def _read(path: Path, most: int) -> Pictures:
    """(height, width) if the file is grey, else (height, width, 3); ``most``: pixels it may have."""
    try:
        user_files.check(path, LARGEST_PICTURE)
        with _opened(path) as file:
            _check_pixels(path, file.size, most)
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):
                # 16 bits a value.
                high: Pictures = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return high
            grey = picture.mode in ("1", "L", "LA", "La")
            return np.asarray(picture.convert("L" if grey else "RGB"))
    except UserError:
        raise
    except user_files.Refused as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception as error:  # Pillow's readers have many for a broken file
        reason = "corrupt, or not a picture" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{path}: not a readable PNG, JPEG or BMP ({reason})") from None


def _opened(path: Path) -> Image.Image:
    """Open a picture; only its header is read, and the caller checks the size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=("PNG", "JPEG", "BMP"))


def _check_pixels(path: Path, size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        smaller = "make it smaller" if most == LARGEST_PIXELS else "data.size makes pictures smaller"
        raise UserError(
            f"{path}: is {height} x {width} (height x width), at most {most:,} pixels are possible: {smaller}"
        )


def _colored(picture: Pictures) -> bool:
    return picture.ndim == 3 and bool((picture != picture[:, :, :1]).any())
