# SPDX-License-Identifier: Apache-2.0
"""Gives `sparcl` files that nobody should have made, one after the other, in a process with 1 GiB to spare.

Prints what came of each as a line of JSON.  Apart from the tests, for the limit holds for the whole process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = 1 << 30
"""Bytes of address space beyond what the process has when it starts."""

PATIENCE = 120
"""Seconds after which a case counts as hung; all of them together take a few, unless the machine is busy."""

Make = Callable[[Path], object]
CASES: dict[str, tuple[tuple[str, ...], Make]] = {}
"""By name: the arguments, in which ``{}`` stands for the folder, and what makes the files in it."""


def case(name: str, make: Make, *arguments: str) -> None:
    """Register a case; by default `sparcl generate` of ``exp.toml``."""
    assert name not in CASES
    CASES[name] = (arguments or ("generate", "{}/exp.toml"), make)


def experiment(folder: Path, text: str) -> None:
    """An experiment file; nothing is trained on the host, so that TensorFlow stays out of it."""
    (folder / "exp.toml").write_text(text + '\n[initial]\ntrain = "none"\nmask_samples = 60000\n', encoding="utf-8")


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file of that size that takes no room."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


# ---------------------------------------------------------------- what is no file, or far too large

KINDS: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path),
    "a folder": lambda path: path.mkdir(),
    "empty": lambda path: path.touch(),
    "6 GiB": lambda path: sparse(path, 6 << 30, b"PK\x03\x04"),
}

USES = {
    "npz": ("it", '[data]\nset = "npz"\npath = "it"'),
    "csv": ("it", '[data]\nset = "csv"\npath = "it"'),
    "images": ("it", '[data]\nset = "images"\npath = "it"'),
    "keras": ("it.keras", '[data]\nset = "digits"\n[model]\npath = "it.keras"'),
    "h5": ("it.h5", '[data]\nset = "digits"\n[model]\npath = "it.h5"'),
    "key": ("it", '[link]\nkey = "file:it"'),
    "module": ("it.py", '[data]\nset = "function"\nfunction = "it:load"'),
}


def _used(kind: str, use: str) -> None:
    name, text = USES[use]
    case(f"{use} is {kind}", lambda folder: (KINDS[kind](folder / name), experiment(folder, text)))


def _named(kind: str, what: str, name: str, *arguments: str) -> None:
    case(f"{what} is {kind}", lambda folder: KINDS[kind](folder / name), *arguments)


def _recording(folder: Path) -> None:
    experiment(folder, "")
    (folder / "build" / "exp" / "native").mkdir(parents=True)
    os.mkfifo(folder / "build" / "exp" / "native" / "session.rec")


for _kind in KINDS:
    for _use in ("npz", "csv", "keras", "key"):
        _used(_kind, _use)
for _kind in ("a pipe", "empty"):
    _used(_kind, "images")
    _used(_kind, "h5")
for _kind in ("a pipe", "6 GiB"):
    _used(_kind, "module")
for _kind in ("a pipe", "endless", "a loop", "a folder", "6 GiB"):
    _named(_kind, "experiment", "it", "generate", "{}/it")
for _kind in ("a pipe", "endless", "empty", "6 GiB"):
    _named(_kind, "sweep", "it", "sweep", "{}/it")
    _named(_kind, "report", "it.json", "report", "--compare", "{}/it.json", "{}/it.json")
case("recording is a pipe", _recording, "validate", "{}/exp.toml")

# ---------------------------------------------------------------- text


def toml(name: str, text: str | bytes) -> None:
    """A whole experiment file."""
    content = text if isinstance(text, bytes) else text.encode()
    case(name, lambda folder: (folder / "exp.toml").write_bytes(content))


LONG = "a" * 200_000

toml("100,000 lists deep", "a = " + "[" * 100_000 + "]" * 100_000)
toml("80,000 tables deep", "a = " + "{a=" * 80_000)
toml("100,000 dots", "a" + ".a" * 100_000 + " = 1")
toml("100,000 dots in a header", "[a" + ".a" * 100_000 + "]")
toml("40 lists deep", "[data]\ncolumns = " + "[" * 40 + "]" * 40)
toml("20,000 digits", "[experiment]\nseed = " + "1" * 20_000)
toml("hexadecimal digits", "[experiment]\nseed = 0x" + "f" * 100_000)
toml("NUL", b"[data]\x00")
toml("NUL in a path", '[data]\nset = "npz"\npath = "a\\u0000b"')
toml("not UTF-8", b"[data]\nset = '\xff'")
toml("UTF-16", "[data]".encode("utf-16"))
toml("long path", f'[data]\nset = "npz"\npath = "{LONG}"')
toml("long name", f'[experiment]\nname = "{LONG}"')
toml("long class", f'[tasks]\nsplit = [["{LONG}"]]')
toml("long key", f"[experiment]\n{LONG} = 1")
toml("infinite", "[method]\nlr = inf")
toml("not a number", "[method]\nlr = nan")
toml("blanks in brackets", '[experiment]\nname = """\n[' + " " * 200_000 + '"""')
toml("10,000 wrong entries", "[tasks]\nsplit = [[" + "1.5," * 10_000 + "]]")
toml("10,000 classes", "[tasks]\nsplit = [[" + ",".join(map(str, range(10_000))) + "]]")
toml("5,000 unknown keys", "[tasks]\n" + "".join(f"k{k} = 1\n" for k in range(5_000)))
case("sweep of lists", lambda folder: (folder / "it").write_text("a = " + "[" * 100_000), "sweep", "{}/it")
case(
    "report of lists",
    lambda folder: (folder / "it.json").write_text("[" * 100_000),
    *("report", "--compare", "{}/it.json", "{}/it.json"),
)
for _name, _value in (("digits", "experiment.seed=" + "1" * 20_000), ("lists", "tasks.split=" + "[" * 50_000)):
    case(f"--set with {_name}", lambda folder: experiment(folder, ""), "generate", "{}/exp.toml", "--set", _value)
case("long argument", lambda _: None, "generate", "a" * 5000)

# ---------------------------------------------------------------- networks


def network(name: str, text: str) -> None:
    """A network that looks at the digits, 8 x 8."""
    case(name, lambda folder: experiment(folder, '[data]\nset = "digits"\n[model]\n' + text))


network("hidden", "hidden = [65535, 65535]")
network("hidden, for many samples", "hidden = [65535]\n[tasks]\nclasses_per_task = 10")
network("filters", 'layers = [{type = "conv2d", filters = 65535, kernel = 1}]')
network("filters twice", "layers = [" + '{type = "conv2d", filters = 9000, kernel = 1},' * 2 + "]")
network("kernel", 'layers = [{type = "conv2d", filters = 4, kernel = 255}]')
network("multiplier", "layers = [" + '{type = "depthwise_conv2d", kernel = 3, multiplier = 255},' * 4 + "]")
network("many layers", "layers = [" + '{type = "dense", units = 1000},' * 100 + "]")

# ---------------------------------------------------------------- arrays

MIB = 1 << 20


def member(array: NDArray[Any]) -> bytes:
    """An array as it stands in an archive."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def head(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    """The head of an array without the array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def npz(name: str, member_name: str, content: bytes, more: str = "") -> None:
    """An archive in which one array is not what it should be."""

    def make(folder: Path) -> None:
        good = {"x_train.npy": member(np.zeros((8, 4))), "y_train.npy": member(np.arange(8) % 2)}
        with zipfile.ZipFile(folder / "it.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, value in (good | {member_name: content}).items():
                archive.writestr(key, value)
        experiment(folder, '[data]\nset = "npz"\npath = "it.npz"\n' + more)

    case(name, make)


def packed(begin: bytes, size: int) -> bytes:
    """What unpacks to ``begin`` and ``size`` zero bytes, in no time: the same part again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    part = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + part * (size // (16 * MIB)) + packer.flush()


def bomb(path: Path, name: str, data: bytes, declared: int) -> None:
    """A zip with one packed member that says it has ``declared`` bytes."""
    middle = struct.pack("<HHHHHIII", 20, 0, 8, 0, 0x21, 0, len(data), declared)
    local = b"PK\x03\x04" + middle + struct.pack("<HH", len(name), 0) + name.encode() + data
    entry = b"PK\x01\x02\x14\x00" + middle + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name.encode()
    path.write_bytes(local + entry + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0))


def bombed(name: str, begin: bytes, declared: int) -> None:
    """An ``.npz`` of one array that unpacks to 3 GiB."""

    def make(folder: Path) -> None:
        bomb(folder / "it.npz", "x_train.npy", packed(begin, 3072 * MIB), declared)
        experiment(folder, '[data]\nset = "npz"\npath = "it.npz"')

    case(name, make)


def _contents(folder: Path) -> None:
    with zipfile.ZipFile(folder / "it.npz", "w") as archive:
        for k in range(7000):
            archive.writestr(f"{'a' * 200}{k}", b"")
    experiment(folder, '[data]\nset = "npz"\npath = "it.npz"')


npz("array of 6 GB that is not there", "x_train.npy", head((800_000_000,)))
npz("array of 10^60 values", "x_train.npy", head((10**30, 10**30)))
npz("array of -5 values", "x_train.npy", head((-1, 5)))
npz("10^15 samples of nothing", "x_train.npy", head((10**15, 0)))
npz("10^12 labels of nothing", "y_train.npy", head((10**12,), "<U0"))
npz("labels of 100,000 letters", "y_train.npy", member(np.array(["a" * 100_000] * 8)))
npz("array with an endless head", "x_train.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(16 * MIB))
npz("array with a deep head", "x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000)
npz("windows", "x_train.npy", member(np.zeros((8, 70_000))), "window = 65535\nhop = 1\n")
bombed("array of 3 GiB", head((3 << 27,)), 3072 * MIB + 128)
bombed("array of 3 GiB that says it has 256 bytes", head((4, 4)), 256)
case("table of contents", _contents)

# ---------------------------------------------------------------- models


def _keras_bomb(folder: Path) -> None:
    bomb(folder / "it.keras", "model.weights.h5", packed(b"", 3072 * MIB), 256)
    experiment(folder, USES["keras"][1])


def _h5(write: Callable[[Any], object]) -> Make:
    def make(folder: Path) -> None:
        import h5py

        with h5py.File(folder / "it.h5", "w") as file:
            write(file)
        experiment(folder, USES["h5"][1])

    return make


def _in_another_file(file: Any) -> None:
    file.create_dataset("w", (4,), "f4", external=[("/dev/zero", 0, 16)])


case("keras of 3 GiB", _keras_bomb)
case("h5 of 40 TB", _h5(lambda f: f.create_dataset("w", (10**7, 10**6), "f4", chunks=(100, 100))))
case("h5 in another file", _h5(_in_another_file))

# ---------------------------------------------------------------- tables


def table(name: str, content: bytes) -> None:
    """A CSV file."""
    text = '[data]\nset = "csv"\npath = "it.csv"'
    case(name, lambda folder: ((folder / "it.csv").write_bytes(content), experiment(folder, text)))


table("one line", b"1," * (4 * MIB))
table("300,000 columns", ",".join(f"c{k}" for k in range(300_000)).encode() + b"\n")
table("one quote", b'a,label\n1,"' + b"x\n" * MIB)
table("one field", b"a,label\n1," + b"x" * MIB)
table("colours", b"a,\x1b[31mname\n1,x\n")
table("blank lines", b"\n" * 100_000)

# ---------------------------------------------------------------- pictures


def png(width: int, height: int, says: tuple[int, int] | None = None) -> bytes:
    """A black picture of 8 bits, grey; ``says``: the width and height in its head."""
    data = zlib.compress(bytes((1 + width) * height))
    size = struct.pack(">IIBBBBB", *(says or (width, height)), 8, 0, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", data), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def picture(name: str, make: Make, options: str = "") -> None:
    """A folder of good pictures and one that is none."""

    def build(folder: Path) -> None:
        for label in ("a", "b"):
            (folder / "it" / label).mkdir(parents=True)
            (folder / "it" / label / "1.png").write_bytes(png(8, 8))
        make(folder / "it" / "b" / "2.png")
        experiment(folder, f'[data]\nset = "images"\npath = "it"\n{options}')

    case(name, build)


picture("13000 x 13000", lambda path: path.write_bytes(png(8, 8, (13_000, 13_000))), "size = 8")
picture("2^31 x 2^31", lambda path: path.write_bytes(png(8, 8, (2**31 - 1, 2**31 - 1))), "size = 8")
picture("9000 x 9000 without size", lambda path: path.write_bytes(png(8, 8, (9_000, 9_000))))
picture("size of 4096 x 4096", lambda path: path.write_bytes(png(8, 8)), "size = [4096, 4096]")
picture("picture of 1 GiB", lambda path: sparse(path, 1 << 30, png(8, 8)), "size = 8")

# ---------------------------------------------------------------- running


class Hung(BaseException):
    """Nothing in the tool may catch it."""


def run(name: str, folder: Path) -> dict[str, object]:
    """What comes of a case."""
    from sparcl_mcu.host_tools import cli

    arguments, make = CASES[name]
    folder.mkdir(parents=True)
    make(folder)
    os.environ["SPARCL_BUILD"] = str(folder / "build")
    said, started = io.StringIO(), time.process_time()
    status: object = None
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            cli.main([argument.replace("{}", str(folder)) for argument in arguments])
    except SystemExit as error:
        status = error.code
    except Hung:
        status = "hung"
    finally:
        signal.alarm(0)
    return {"name": name, "status": status, "said": said.getvalue(), "seconds": round(time.process_time() - started, 2)}


def _late(*_: object) -> None:
    raise Hung


def main(base: Path, names: list[str]) -> None:
    """All cases, or those named."""
    import h5py  # noqa: F401  (what is loaded now does not count)

    import sparcl_mcu.generator.pipeline  # noqa: F401

    signal.signal(signal.SIGALRM, _late)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    for number, name in enumerate(names or CASES):
        print(json.dumps(run(name, base / str(number))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
