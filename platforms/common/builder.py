# SPDX-License-Identifier: Apache-2.0
"""The part of the SCons build that both platforms share.

Called by their builder/main.py inside PlatformIO.  Environment variables:
SCL_GENERATED, SCL_PYTHON (see board_build.generated_folder), SCL_EXTRA_CFLAGS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import board_build
from plain_paths import before, require_plain

# board_build knows where the project is.
from spec.boards import load_board
from spec.errors import UserError


def _stop(env, message):
    sys.stderr.write(f"Error: {message}\n")
    env.Exit(1)


def build(env, suffix):
    """firmware<suffix>, size, upload, stop for the board named like the environment."""
    name = env["PIOENV"]
    build_dir = env.subst("$BUILD_DIR")
    try:
        board = load_board(name, board_build.ROOT)
        if board.on_host and sys.platform == "win32":
            raise ValueError(f"the board {name} is a program for Linux")
        generated = board_build.generated_folder(name, sys.executable, project=Path(env["PROJECT_DIR"]))
        require_plain(os.getcwd(), board_build.ROOT, build_dir, generated)
    except (ValueError, UserError) as error:
        _stop(env, str(error))

    build_dir = _from_here(build_dir)
    os.makedirs(build_dir, exist_ok=True)
    if (generated / "scl_key.h").exists():
        os.chmod(build_dir, 0o700)  # objects and image hold the key
    if not board.on_host:
        memory = Path(build_dir) / "memory.ld"
        text = board_build.memory_ld(board)
        if not memory.is_file() or memory.read_text(encoding="utf-8") != text:
            memory.write_text(text, encoding="utf-8")

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
        LINKFLAGS=board_build.link_flags(board, build_dir, Path(_from_here(board_build.ROOT))),
        CPPPATH=[str(p) for p in board_build.include_folders(generated)],
    )
    for part in board_build.PARTS:
        env.BuildSources(os.path.join("$BUILD_DIR", part), str(board_build.ROOT / "firmware" / part), ["+<*.c>"])
    env.BuildSources(os.path.join("$BUILD_DIR", "generated"), str(generated), ["+<*.c>"])

    program = env.BuildProgram()
    if not board.on_host:
        script = board_build.ROOT / board_build.ldscript(board)
        env.Depends(program, [env.File(os.path.abspath(path)) for path in (script, memory)])

    # SCons reruns an action when an object it refers to changes, so these refer to it by name.
    def check(target, source, env):
        board = load_board(name, board_build.ROOT)
        elf = str(target[0])
        problem = board_build.check_image(board, elf)
        if problem:
            sys.stderr.write(f"Error: {problem}\n")
            os.remove(elf)  # nobody should flash it
            return 1
        print(board_build.size_report(board, elf))
        if not board.on_host:
            report, too_deep = board_build.stack_report(board, Path(build_dir))
            if too_deep:
                sys.stderr.write(f"Error: {report}\n")
                os.remove(elf)
                return 1
            print(report)
        return 0

    env.AddPostAction(program, env.VerboseAction(check, "Checking $TARGET"))

    def show_size(target, source, env):
        print(board_build.size_report(load_board(name, board_build.ROOT), str(source[0])))

    env.AddPlatformTarget("size", program, env.VerboseAction(show_size, "Size of $SOURCE"), "Size")
    _upload_targets(env, board, program)
    return program


def _upload_targets(env, board, program):
    port = env.get("UPLOAD_PORT") or f"socket://localhost:{board.emulator.port}"

    # Functions, not command lines: a port is a path, and may have any name.
    def upload(target, source, env):
        if "://" not in port and board.silicon.drive:
            return _copy_to_drive(board, Path(str(source[0])).with_suffix(".hex"), port)
        print(f"Uploading {source[0]} to {port}", flush=True)
        return _emulator(board, "upload", "--port", port, str(source[0]))

    def stop(target, source, env):
        return _emulator(board, "stop")

    env.AddPlatformTarget(
        "upload", program, [env.VerboseAction(upload, "Uploading $SOURCE")], "Upload (boot the emulated board)"
    )
    env.AddPlatformTarget("stop", None, [env.VerboseAction(stop, "Stopping the board")], "Stop the board")


def _emulator(board, *arguments):
    """Run a command of the emulated board; the exit status."""
    command = [sys.executable, "-m", "sparcl_mcu.host_tools.emulator", "--board", board.name, *arguments]
    _, environment = before()
    return subprocess.run(command, env=environment, check=False).returncode


def _copy_to_drive(board, image, port):
    """A board people own: a drive that takes a .hex file.

    Copying to anything else would fail in silence: a serial port swallows the file.
    """
    if os.path.isdir(port):
        print(f"Copying {image} to {port}", flush=True)
        shutil.copyfile(image, os.path.join(port, image.name))
        return 0
    drive = board.silicon.drive
    sys.stderr.write(
        f"Error: {port} is not a folder: {board.name} is written by copying to its drive. "
        f"Name where {drive} is mounted as the port of `sparcl flash`, then the serial port of `sparcl stream`\n"
    )
    return 1


def _from_here(path):
    """Relative where SCons runs, so that the name of a folder of links (plain_paths.py) is not part of a command."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative
