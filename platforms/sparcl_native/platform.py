# SPDX-License-Identifier: Apache-2.0
"""PlatformIO platform of the native board (see platform.json)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from plain_platform import PlainPlatform


class Sparcl_nativePlatform(PlainPlatform):
    pass
