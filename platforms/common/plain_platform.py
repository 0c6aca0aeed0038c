# SPDX-License-Identifier: Apache-2.0
"""What the PlatformIO platforms share: they run SCons where all names are plain (see plain_paths.py)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

from plain_paths import ROOT, NotPlainError, plain_project
from platformio import fs
from platformio.exception import UserSideException
from platformio.package.manager.platform import PlatformPackageManager
from platformio.package.meta import PackageSpec
from platformio.project.config import ProjectConfig
from platformio.public import PlatformBase

DIRECTORIES = (
    *("core_dir", "packages_dir", "workspace_dir", "libdeps_dir", "include_dir", "src_dir", "test_dir", "data_dir"),
    *("build_dir", "build_cache_dir", "lib_dir", "globallib_dir"),
)
"""Options of PlatformIO that become variables of SCons."""


class PlainPlatform(PlatformBase):
    """A platform whose projects may lie in any folder."""

    def is_embedded(self):
        # PlatformIO derives this from an uploader package; ours is
        # host_tools/emulator.py, so there is none.
        return True

    def run(self, variables, *arguments):
        """Run SCons; called by PlatformIO in the project's folder."""
        try:
            return self._run_plain(variables, *arguments)
        except NotPlainError as error:
            raise UserSideException(str(error)) from None

    def _run_plain(self, variables, *arguments):
        config = ProjectConfig(variables["project_config"])
        values = {f"PLATFORMIO_{name.upper()}": config.get("platformio", name) for name in DIRECTORIES}
        folders = {name: value for name, value in values.items() if value}
        root = Path(self.get_dir()).parents[1]
        with plain_project(Path.cwd(), root, folders) as (place, changed):
            if not changed:
                return super().run(variables, *arguments)
            platforms = place / "sparcl-platforms"
            platforms.mkdir()
            with _environment({**changed, "PLATFORMIO_PLATFORMS_DIR": str(platforms)}), fs.cd(place):
                # To PlatformIO the platform under its plain name is a different one.
                name = ProjectConfig(variables["project_config"]).get(f"env:{variables['pioenv']}", "platform")
                PlatformPackageManager(str(platforms)).install_symlink(PackageSpec(name))
                script = place / ROOT / os.path.relpath(self.get_build_script(), root)
                return super().run({**variables, "build_script": str(script)}, *arguments)


@contextmanager
def _environment(changed):
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
