# SPDX-License-Identifier: Apache-2.0
"""PlatformIO platform of the native board (see platform.json)."""

from platformio.public import PlatformBase


class Sparcl_nativePlatform(PlatformBase):
    def is_embedded(self):
        return True  # it has an upload target
