# SPDX-License-Identifier: Apache-2.0
"""Files of strangers: they run no code and write nowhere but in the build folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparcl_mcu.generator import config, data, keras_model, pipeline, shared_key
from sparcl_mcu.generator.config import Config
from sparcl_mcu.generator.user_module import CONSENT
from sparcl_mcu.spec import paths
from sparcl_mcu.spec.errors import UserError

RUN: list[str] = []
"""What code of strangers would add to."""


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return RUN.append, ("pickle",)


@pytest.fixture(autouse=True)
def _nothing_ran(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv(CONSENT)
    RUN.clear()
    yield
    assert not RUN


EXPERIMENT = """
[data]
set = "digits"
train_per_class = 4
test_per_class = 2
[tasks]
split = [[0, 1]]
[model]
hidden = [4]
[initial]
train = "none"
[method]
epochs = 1
buffer = 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an experiment file, and a build folder beside what must not be touched."""
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("Dear")
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    return tmp_path


def outside(folder: Path) -> dict[str, str]:
    """Every file that is not in the build folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and folder / "build" not in path.parents]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


# -- code ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["data.function", "model.function"])
def test_code_needs_consent(folder: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Beside the file or installed; the message says how to allow it."""
    section = key.partition(".")[0]
    (folder / "theirs.py").write_text(f"import {__name__} as here\nhere.RUN.append('module')\ndef load(): ...\n")
    for function in ("theirs:load", "os:getcwd"):
        text = (
            f'[data]\nset = "{"function" if section == "data" else "digits"}"\n[{section}]\nfunction = "{function}"\n'
        )
        (folder / "code.toml").write_text(text.replace("[data]\n[data]", "[data]") if section == "model" else "")
        if section == "data":
            (folder / "code.toml").write_text(f'[data]\nset = "function"\nfunction = "{function}"\n')
        settings = config.load(folder / "code.toml")
        for answer in (None, "", "0", "yes"):
            monkeypatch.setenv(CONSENT, answer) if answer is not None else monkeypatch.delenv(CONSENT, raising=False)
            with pytest.raises(UserError, match=rf"{key} = .*runs Python code.*{CONSENT}=1"):
                data.load(settings) if section == "data" else keras_model.load(None, settings)


def test_no_option_gives_consent() -> None:
    """An experiment file cannot allow itself to run code."""
    assert CONSENT.lower() not in config.options_table().lower()
    with pytest.raises(UserError, match=CONSENT):
        data.load(Config.model_validate({"data": {"set": "function", "function": "os:getcwd"}}))


# -- arrays -------------------------------------------------------------------------------------------


def npz(path: Path, **members: bytes) -> Config:
    """An archive with these members, as data."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return Config.model_validate({"data": {"set": "npz", "path": path}, "tasks": {"split": ((0, 1),)}})


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    """A member."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def claims(shape: str, dtype: str = "|u1") -> bytes:
    """A member that is much smaller than it says."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    head += " " * (118 - len(head) - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(64)


GOOD = npy(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize(
    "member",
    [
        npy(np.array([Evil()], dtype=object), allow_pickle=True),
        pickle.dumps(Evil()),
        claims("(1000000000000000,)"),
        claims("(4294967296, 4294967296, 4294967296)"),
        claims("(-5,)"),
        claims("(4,)", "|O"),
        claims("__import__('os').getcwd()"),
        b"",
    ],
)
@pytest.mark.parametrize("key", ["x_train", "y_train"])
def test_array_that_is_none(tmp_path: Path, member: bytes, key: str) -> None:
    members = {"x_train": GOOD, "y_train": npy(np.array([0, 1, 0, 1]))} | {key: member}
    with pytest.raises(UserError, match=key):
        data.load(npz(tmp_path / "theirs.npz", **members))


def test_pickle_in_place_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    for content in (pickle.dumps(Evil()), npy(np.array([Evil()], dtype=object), allow_pickle=True)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"theirs\.npz"):
            data.load(Config.model_validate({"data": {"set": "npz", "path": path}}))


# -- models -------------------------------------------------------------------------------------------

LAMBDA = {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "l", "function": "code"}}
CALLS = {
    "lambda": (LAMBDA, "holds Python code"),
    "lambda deep inside": ({"class_name": "TimeDistributed", "config": {"layer": [LAMBDA]}}, "holds Python code"),
    "other module": ({"class_name": "function", "module": "os", "config": "system"}, "system of os"),
    "module of keras": ({"class_name": "function", "module": "keras.utils", "config": "get_file"}, "get_file of keras"),
    "private one": (
        {"class_name": "function", "module": "keras.src.saving.file", "config": "f"},
        "f of keras.src.saving",
    ),
    "looks like keras": ({"class_name": "Dense", "module": "keras.layersx"}, "Dense of keras.layersx"),
    "starts like keras": ({"class_name": "Dense", "module": "kerasos"}, "Dense of kerasos"),
    "saved model": ({"class_name": "TFSMLayer", "config": {"filepath": "/tmp/x"}}, "names a file"),
    "vocabulary": ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "names a file"),
}


def model_file(path: Path, description: object) -> Path:
    """A model file with this description and nothing else."""
    text = json.dumps({"class_name": "Sequential", "config": {"layers": [description]}})
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", text)
            archive.writestr("metadata.json", "{}")
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = text
    return path


class NeverCalled:
    """Keras, which must not see such a file."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("name", CALLS)
def test_model_with_code(tmp_path: Path, ending: str, name: str) -> None:
    """Refused before Keras looks at it, whatever the version of Keras would do."""
    description, message = CALLS[name]
    path = model_file(tmp_path / f"theirs{ending}", description)
    with pytest.raises(UserError, match=message):
        keras_model.load(NeverCalled(), Config.model_validate({"model": {"path": path}}))


def test_model_with_an_endless_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_model, "LARGEST_DESCRIPTION", 1000)
    path = model_file(tmp_path / "theirs.keras", "x" * 2000)
    with pytest.raises(UserError, match=r"config\.json does not describe a network"):
        keras_model.load(NeverCalled(), Config.model_validate({"model": {"path": path}}))


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    """A description that is none, and an archive that is encrypted or packed in an unknown way."""
    h5py = pytest.importorskip("h5py")
    number = tmp_path / "number.h5"
    with h5py.File(number, "w") as file:
        file.attrs["model_config"] = 5
    archive = model_file(tmp_path / "theirs.keras", "{}").read_bytes()
    local, central = archive.index(b"PK\x03\x04"), archive.index(b"PK\x01\x02")
    odd = []
    for name, offset, value in (("encrypted", 6, 1), ("packed", 8, 99)):
        changed = bytearray(archive)
        changed[local + offset] = changed[central + offset + 2] = value
        odd.append(tmp_path / f"{name}.keras")
        odd[-1].write_bytes(changed)
    for path in (number, *odd):
        with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
            keras_model.load(NeverCalled(), Config.model_validate({"model": {"path": path}}))


# -- paths --------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.text(max_size=30),
    st.text("./\\~$ab0_- \n\0", max_size=20),
    st.lists(st.sampled_from(["..", ".", "a", "", "/", "build", "current", "CON", "~", "$HOME"]), max_size=5).map(
        "/".join
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(NAMES)
def test_name_of_an_experiment_is_one_folder_in_the_build_folder(tmp_path: Path, name: str) -> None:
    """Or an error; in the file or as the file's name."""
    path = tmp_path / "e.toml"
    path.write_text(EXPERIMENT + "[experiment]\nname = " + json.dumps(name) + "\n", encoding="utf-8")
    try:
        found = config.load(path).experiment.name
    except UserError:
        return
    target = paths.build_folder() / found
    assert target.resolve().parent == paths.build_folder().resolve()
    assert found.isidentifier()


@pytest.mark.parametrize("name", ["../precious", "/tmp/x", "..", "a/b", "", "current", "a\0b", "a\nb"])
def test_names_that_lead_elsewhere(folder: Path, name: str) -> None:
    before = outside(folder)
    with pytest.raises(UserError):
        pipeline.generate(folder / "tiny.toml", "native", [f"experiment.name={json.dumps(name)}"])
    assert outside(folder) == before


def as_link(path: Path, target: Path) -> None:
    """In place of what is there."""
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name(path.name + ".old"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS = {
    "folder of the experiment": "tiny",
    "folder of the board": "tiny/native",
    "sources": "tiny/native/generated",
    "current": "current",
    "artefact": "tiny/01-config.json",
    "to a file that is not there": "tiny/02-data.json",
    "source": "tiny/native/generated/scl_config.h",
    "recording": "tiny/native/recording.sclr",
    "stray": "tiny/native/generated/stray",
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("relative", [False, True])
def test_links_out_of_the_build_folder(folder: Path, name: str, relative: bool) -> None:
    """A build folder that came with an experiment leads nowhere."""
    pipeline.generate(folder / "tiny.toml", "native")
    before = outside(folder)
    place = folder / "build" / LINKS[name]
    target = folder / "precious" / ("new.txt" if "not there" in name else "" if not place.suffix else "letter.txt")
    as_link(place, Path(os.path.relpath(target, place.parent)) if relative else target)
    with pytest.raises(UserError, match=r"is a link out of .*delete it"):
        pipeline.generate(folder / "tiny.toml", "native")
    assert outside(folder) == before
    place.unlink()
    pipeline.generate(folder / "tiny.toml", "native")
    assert outside(folder) == before


@pytest.mark.parametrize(
    "section",
    [
        '[data]\nset = "npz"\npath = "a\\u0000b"',
        '[data]\nset = "npz"\npath = "circle"',
        '[model]\npath = "a\\u0000b.keras"',
        '[link]\nkey = "file:circle"',
        f'[model]\nfunction = "{"a" * 5000}:f"',
    ],
    ids=["zero", "circle", "model", "key", "long"],
)
def test_paths_that_are_none(folder: Path, section: str) -> None:
    (folder / "circle").symlink_to("circle")
    (folder / "odd.toml").write_text(section + "\n")
    with pytest.raises(UserError):
        pipeline.generate(folder / "odd.toml", "native")


def test_links_inside_are_ours(folder: Path) -> None:
    """``build/current/<board>`` is one."""
    for _ in range(2):
        pipeline.generate(folder / "tiny.toml", "native")
    assert (folder / "build" / "current" / "native").is_symlink()
    assert (folder / "build" / "current" / "native" / "scl_config.h").is_file()


# -- the shared key -----------------------------------------------------------------------------------

KEY = "00112233445566778899aabbccddeeff" * 2


@pytest.mark.parametrize("place", ["env:TEST_KEY", "file:board.key"])
def test_key_is_in_the_firmware_and_nowhere_else(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("TEST_KEY", KEY + "\n")
    (folder / "board.key").write_text(KEY + "\n")
    theirs = folder / "build" / "tiny" / "native" / "generated" / "scl_key.h"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    theirs.chmod(0o666)  # in a build folder that came with the experiment
    project = pipeline.generate(folder / "tiny.toml", "native", [f'link.key="{place}"'])
    assert shared_key.load(project.config.link.key) == bytes.fromhex(KEY)
    in_c = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(KEY))
    holders = [
        path.name
        for path in (folder / "build").rglob("*")
        if path.is_file()
        and any(form in path.read_bytes() for form in (KEY.encode(), bytes.fromhex(KEY), in_c.encode()))
    ]
    assert holders == ["scl_key.h"]
    assert (project.generated / "scl_key.h").stat().st_mode & 0o077 == 0
    assert "#define SCL_KEYED 1" in (project.generated / "scl_config.h").read_text()
    keyed_ram = sum(row.size for row in project.plan.ram)
    plain = pipeline.generate(folder / "tiny.toml", "native")
    assert not (plain.generated / "scl_key.h").exists()
    assert plain.model.model_hash == project.model.model_hash
    assert sum(row.size for row in plain.plan.ram) < keyed_ram


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (KEY, "the key itself stays out of here"),
        ("env:", "the key itself stays out"),
        ("env:NOT_SET", "NOT_SET is not set"),
        ("file:gone.key", "gone.key cannot be read"),
        ("file:short.key", "a key is 64 hexadecimal digits"),
        ("file:long.key", "a key is 64 hexadecimal digits"),
        ("file:binary.key", "a key is 64 hexadecimal digits"),
    ],
    ids=lambda text: text[:8],
)
def test_bad_keys(folder: Path, place: str, message: str) -> None:
    """No message shows what was found."""
    (folder / "short.key").write_text(KEY[:-2])
    (folder / "long.key").write_text(KEY + "00")
    (folder / "binary.key").write_bytes(bytes(range(200, 232)))
    (folder / "keyed.toml").write_text(f'{EXPERIMENT}[link]\nkey = "{place}"\n')
    with pytest.raises(UserError, match=message) as caught:
        pipeline.generate(folder / "keyed.toml", "native")
    assert KEY[8:24] not in str(caught.value)
