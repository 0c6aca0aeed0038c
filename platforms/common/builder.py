# SPDX-License-Identifier: Apache-2.0
"""The part of the SCons build that both platforms share.

Called by their builder/main.py inside PlatformIO.  Environment variables:
SCL_GENERATED, SCL_PYTHON (see board_build.generated_folder), SCL_EXTRA_CFLAGS,
SCL_CORE (a folder to take instead of firmware/core, to try a port without the
engine).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import board_build


def _stop(env, message):
    sys.stderr.write(f"Error: {message}\n")
    env.Exit(1)


def build(env, suffix):
    """firmware<suffix>, size, upload, stop for the board named like the environment."""
    name = env["PIOENV"]
    build_dir = env.subst("$BUILD_DIR")
    try:
        board = board_build.load_board(name)
        generated = board_build.generated_folder(name, env["PYTHONEXE"], project=Path(env["PROJECT_DIR"]))
    except ValueError as error:
        _stop(env, str(error))

    os.makedirs(build_dir, exist_ok=True)
    if board["core"] != "host":
        memory = Path(build_dir) / "memory.ld"
        text = board_build.memory_ld(board)
        if not memory.is_file() or memory.read_text() != text:
            memory.write_text(text)

    env.Replace(
        CC=board_build.tool(board, "gcc"),
        LINK=board_build.tool(board, "gcc"),
        PROGNAME="firmware",
        PROGSUFFIX=suffix,
        LIBS=[],
        SRC_FILTER=["-<*>", *(f"+<{source}>" for source in board_build.board_sources(board))],
    )
    env.Append(
        CCFLAGS=board_build.compile_flags(board),
        LINKFLAGS=board_build.link_flags(board, build_dir),
        CPPPATH=[str(p) for p in board_build.include_folders(generated)],
    )
    core = os.environ.get("SCL_CORE") or os.path.join("$PROJECT_SRC_DIR", "core")
    env.BuildSources(os.path.join("$BUILD_DIR", "core"), core, ["+<*.c>"])
    env.BuildSources(os.path.join("$BUILD_DIR", "generated"), str(generated), ["+<*.c>"])

    program = env.BuildProgram()
    if board["core"] != "host":
        script = board_build.ROOT / "firmware" / board["build"]["ldscript"]
        env.Depends(program, [env.File(str(script)), env.File(str(memory))])

    def check(target, source, env):
        elf = str(target[0])
        problem = board_build.check_image(board, elf)
        if problem:
            sys.stderr.write(f"Error: {problem}\n")
            os.remove(elf)  # nobody should flash it
            return 1
        print(board_build.size_report(board, elf))
        if board["core"] != "host":
            report, too_deep = board_build.stack_report(board, Path(build_dir))
            if too_deep:
                sys.stderr.write(f"Error: {report}\n")
                os.remove(elf)
                return 1
            print(report)
        return 0

    env.AddPostAction(program, env.VerboseAction(check, "Checking $TARGET"))

    def show_size(target, source, env):
        print(board_build.size_report(board, str(source[0])))

    env.AddPlatformTarget("size", program, env.VerboseAction(show_size, "Size of $SOURCE"), "Size")
    _upload_targets(env, board, program)
    return program


def _no_drive(board, port):
    """Copying to anything else would fail in silence: a serial port swallows the file."""
    drive = board["silicon"]["drive"]
    sys.stderr.write(
        f"Error: {port} is not a folder: {board['name']} is written by copying to its drive. "
        f"Name where {drive} is mounted as the port of `sparcl flash`, then the serial port of `sparcl stream`\n"
    )
    return 1


def _upload_targets(env, board, program):
    port = env.subst("$UPLOAD_PORT") or f"socket://localhost:{board['emulator']['port']}"
    tool = f'"$PYTHONEXE" -m sparcl_mcu.host_tools.emulator --board {board["name"]}'
    if "://" not in port and board["silicon"].get("drive"):
        # a board people own: a drive that takes a .hex file
        image = os.path.join("$BUILD_DIR", "${PROGNAME}.hex")
        if os.path.isdir(port):
            action = env.VerboseAction(f'cp "{image}" "{port}"', f"Copying {image} to {port}")
        else:
            action = env.VerboseAction(lambda **_: _no_drive(board, port), f"Looking for the drive {port}")
    else:
        action = env.VerboseAction(f'{tool} upload --port "{port}" $SOURCE', f"Uploading $SOURCE to {port}")
    env.AddPlatformTarget("upload", program, [action], "Upload (boot the emulated board)")
    env.AddPlatformTarget("stop", None, [env.VerboseAction(f"{tool} stop", "Stopping the board")], "Stop the board")
