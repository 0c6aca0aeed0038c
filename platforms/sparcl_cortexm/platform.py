# SPDX-License-Identifier: Apache-2.0
"""PlatformIO platform of the bare-metal boards (see platform.json)."""

import shutil

from platformio.public import PlatformBase


class Sparcl_cortexmPlatform(PlatformBase):
    def is_embedded(self):
        # PlatformIO derives this from an uploader package; ours is
        # host_tools/emulator.py, so there is none.
        return True

    def configure_default_packages(self, options, targets):
        # A compiler on PATH is used as it is, so that no registry is needed;
        # without one, PlatformIO's package is installed.
        if not shutil.which("arm-none-eabi-gcc"):
            self.packages["toolchain-gccarmnoneeabi"]["optional"] = False
        return super().configure_default_packages(options, targets)
