# SPDX-License-Identifier: Apache-2.0
"""PlatformIO's build of the native board: the program `firmware`."""

import os
import sys

from SCons.Script import Default, DefaultEnvironment

env = DefaultEnvironment()
sys.path.insert(0, os.path.join(env.subst("$PROJECT_DIR"), "platforms", "common"))
import builder  # noqa: E402

Default([builder.build(env, "")])
