# SPDX-License-Identifier: Apache-2.0
"""PlatformIO's build of the native board: the program `firmware`."""

import sys
from pathlib import Path

from SCons.Script import Default, DefaultEnvironment

env = DefaultEnvironment()
sys.path.insert(0, str(Path(env.subst("$BUILD_SCRIPT")).parents[2] / "common"))
import builder  # noqa: E402

Default([builder.build(env, "")])
