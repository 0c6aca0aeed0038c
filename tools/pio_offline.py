#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gives PlatformIO its build tool where its registry cannot be reached.

    .venv/bin/python tools/pio_offline.py

Setup and `sparcl build` do this by themselves. Run it by hand before `pio run` when
PLATFORMIO_CORE_DIR points somewhere else. The code is in host_tools/platformio.py.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    runpy.run_module("sparcl_mcu.host_tools.platformio", run_name="__main__")
