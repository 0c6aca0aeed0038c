# SPDX-License-Identifier: Apache-2.0
"""QEMU's plugins under each version of its plugin interface; the other tests know the one that is installed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sparcl_mcu.spec.paths import ROOT

PLUGIN = ROOT / "platforms" / "sparcl_cortexm" / "plugin" / "count.c"
HOST = Path(__file__).with_name("plugin_host.c")
BYTES = 8 // 2 * 8  # a count for every two bytes of the host's range

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


def run(folder: Path, version: int, told: str | None = None) -> subprocess.CompletedProcess[str]:
    """The plugin under a QEMU of one version."""
    library, host, image = folder / "count.so", folder / "host", folder / "counts"
    flags = ["-std=c11", "-D_DEFAULT_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-o", library, PLUGIN], check=True)
    subprocess.run(["gcc", *flags, f"-DAPI={version}", "-rdynamic", "-o", host, HOST, "-ldl"], check=True)
    image.write_bytes(bytes(BYTES))
    environment = {name: value for name, value in os.environ.items() if name != "SCL_PLUGIN_API"}
    if told is not None:
        environment["SCL_PLUGIN_API"] = told
    return subprocess.run(
        [host, library, f"image={image}"], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize(("version", "told"), [(1, None), (2, None), (6, None), (7, "7"), (1, "7")])
def test_counts_with_each_version(tmp_path: Path, version: int, told: str | None) -> None:
    done = run(tmp_path, version, told)
    assert done.returncode == 0, done.stderr
    assert struct.unpack("4Q", (tmp_path / "counts").read_bytes()) == (3, 0, 3, 0)


def test_a_version_that_takes_no_less_has_to_be_told(tmp_path: Path) -> None:
    """The emulator tells it when QEMU has refused the plugin's own choice."""
    assert "requires API version 2" in run(tmp_path, 7).stderr
