# SPDX-License-Identifier: Apache-2.0
"""PlatformIO's build of a Cortex-M board: firmware.elf, .bin and .hex."""

import os
import sys
from pathlib import Path

from SCons.Script import Default, DefaultEnvironment

env = DefaultEnvironment()
sys.path.insert(0, str(Path(env.subst("$BUILD_SCRIPT")).parents[2] / "common"))
import builder  # noqa: E402

env.Replace(
    AR="arm-none-eabi-gcc-ar",
    AS="arm-none-eabi-as",
    GDB="gdb-multiarch",
    OBJCOPY="arm-none-eabi-objcopy",
    RANLIB="arm-none-eabi-gcc-ranlib",
    ARFLAGS=["rc"],
)
program = builder.build(env, ".elf")


def converted(kind, suffix):
    """The image in another format of objcopy."""
    action = env.VerboseAction(f"$OBJCOPY -O {kind} $SOURCE $TARGET", "Building $TARGET")
    return env.Command(os.path.join("$BUILD_DIR", "${PROGNAME}" + suffix), program, action)


images = [converted("binary", ".bin"), converted("ihex", ".hex")]
env.Depends("upload", images)
env.Alias("buildprog", images)
Default([program, *images])
