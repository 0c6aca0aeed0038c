# SPDX-License-Identifier: Apache-2.0
"""PlatformIO platform of the bare-metal boards (see platform.json)."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
from plain_platform import PlainPlatform


class Sparcl_cortexmPlatform(PlainPlatform):
    def configure_default_packages(self, options, targets):
        # A compiler on PATH is used as it is, so that no registry is needed;
        # without one, PlatformIO's package is installed.
        if not shutil.which("arm-none-eabi-gcc"):
            self.packages["toolchain-gccarmnoneeabi"]["optional"] = False
        return super().configure_default_packages(options, targets)
