# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures for each class."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparcl_mcu.generator import data
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.data import images
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Dataset

RANDOM = np.random.default_rng(0)


def load(root: Path, **options: Any) -> Dataset:
    return data.load(Config.model_validate({"data": {"set": "images", "path": root, **options}}))


def save(
    path: Path, shape: tuple[int, ...] = (6, 4), picture: np.ndarray[Any, Any] | None = None
) -> np.ndarray[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture is None:
        picture = RANDOM.integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return picture


def folder(root: Path, per_class: int = 5, classes: tuple[str, ...] = ("10", "9"), **options: Any) -> Path:
    for name in classes:
        for k in range(per_class):
            save(root / name / f"{k}.png", **options)
    return root


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = folder(tmp_path / "shapes")
    (root / "9" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    first = save(root / "9" / "0.png")
    d = load(root)
    assert (d.name, d.shape, d.signed, d.fraction, d.class_names) == ("shapes", (6, 4), False, 8, ("9", "10"))
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(8, 2)]
    assert d.tasks[0].x_train[0].tolist() == first.ravel().tolist()
    assert [len(t.y_test) for t in load(root, test_share=0.5).tasks] == [4]


def test_train_and_test_folders(tmp_path: Path) -> None:
    folder(tmp_path / "train", classes=("cat", "dog"))
    folder(tmp_path / "test", per_class=3, classes=("dog", "cat"))
    d = load(tmp_path)
    assert [(len(t.y_train), len(t.y_test)) for t in d.tasks] == [(10, 6)]
    folder(tmp_path / "test", classes=("fox",))
    with pytest.raises(UserError, match=r"test/fox: there is no such class in .*train"):
        load(tmp_path)


def test_colour(tmp_path: Path) -> None:
    root = folder(tmp_path, shape=(6, 4, 3))
    save(root / "9" / "0.png", (6, 4))
    assert load(root).shape == (6, 4, 3)
    assert load(root, color=False).shape == (6, 4)
    value = np.repeat(RANDOM.integers(0, 256, (6, 4, 1)).astype(np.uint8), 3, axis=2)
    grey = folder(tmp_path / "grey", picture=value)
    d = load(grey)
    assert d.shape == (6, 4)
    assert np.array_equal(d.tasks[0].x_train[0], value[:, :, 0].ravel())
    assert load(grey, color=True).shape == (6, 4, 3)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "bmp"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    root = folder(tmp_path)
    save(root / "9" / f"0.{suffix}", picture=np.full((6, 4), 77, np.uint8))
    (root / "9" / "0.png").unlink()
    assert load(root).tasks[0].x_train[0].tolist() == [77] * 24


def test_sixteen_bits_a_value(tmp_path: Path) -> None:
    root = folder(tmp_path)
    save(root / "9" / "0.png", picture=np.full((6, 4), 0x4DFF, np.uint16))
    assert load(root).tasks[0].x_train[0].tolist() == [0x4D] * 24


def test_size(tmp_path: Path) -> None:
    root = folder(tmp_path)
    save(root / "10" / "0.png", (12, 8))
    with pytest.raises(UserError, match=r"10/1.png: is 6 x 4 \(height x width\), .*10/0.png is 12 x 8: set data.size"):
        load(root)
    assert load(root, size=(5, 7)).shape == (5, 7)
    assert load(root, size=8).shape == (8, 8)


def test_resize_is_a_mean_over_blocks() -> None:
    pictures = RANDOM.integers(0, 256, (3, 6, 4, 3)).astype(np.uint8)
    small = images.resize(pictures, (3, 2))
    means = pictures.reshape(3, 3, 2, 2, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - means).max() <= 0.5
    assert images.resize(pictures, (6, 4)) is pictures
    grey = np.full((2, 5, 5), 200, np.uint8)
    assert images.resize(grey, (3, 7)).tolist() == [[[200] * 7] * 3] * 2


def broken(root: Path, content: bytes) -> None:
    (root / "9" / "3.png").write_bytes(content)


def truncated() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (64, 64)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()[:2000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"9/3\.png: not a readable PNG, JPEG or BMP \(corrupt, or not a picture\)"),
        (b"GIF89a not allowed", r"9/3\.png: not a readable PNG, JPEG or BMP \(corrupt, or not a picture\)"),
        (truncated(), r"9/3\.png: not a readable PNG, JPEG or BMP \(.*\)"),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    root = folder(tmp_path)
    broken(root, content)
    with pytest.raises(UserError, match=message):
        load(root)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no folders; put the pictures"):
        load(tmp_path)
    root = folder(tmp_path)
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: has no pictures \(\.png"):
        load(root)
    (root / "empty").rmdir()
    save(root / "7" / "only.png")
    with pytest.raises(UserError, match="class 7 has a single sample, too few to hold any out"):
        load(root)


def test_hidden_pictures_are_passed_over(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "9" / "._0.png").write_bytes(b"resource fork")
    save(root / "9" / ".ipynb_checkpoints" / "0.png")
    save(root / ".thumbnails" / "0.png")
    d = load(root)
    assert (d.class_names, len(d.tasks[0].y_train) + len(d.tasks[0].y_test)) == (("9", "10"), 10)


def test_train_without_test(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    with pytest.raises(UserError, match="has train/ with folders in it, but no test/"):
        load(tmp_path)
    folder(tmp_path / "test", classes=("9",))
    with pytest.raises(UserError, match="class 10 has no test samples"):
        load(tmp_path)
    # Vehicles may be trains.
    root = folder(tmp_path / "vehicles", classes=("train", "tram"))
    assert load(root).class_names == ("train", "tram")


def test_fingerprint_follows_the_folders(tmp_path: Path) -> None:
    root = folder(tmp_path)
    config = Config.model_validate({"data": {"set": "images", "path": root}})
    before = data.fingerprint(config)
    assert before == data.fingerprint(config)
    (root / "9").rename(root / "8")
    assert before != data.fingerprint(config)
