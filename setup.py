# SPDX-License-Identifier: Apache-2.0
"""Puts the folders of the checkout below one package: generator/ is `sparcl_mcu.generator`.

Everything else about the package is in pyproject.toml. The folders that hold no
Python are packages too, so that what is installed has the layout of the checkout
and every path is found the same way.
"""

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

PACKAGE = "sparcl_mcu"
FOLDERS = (
    "benchmarks",
    "docs",
    "examples",
    "firmware",
    "generator",
    "host_tools",
    "platforms",
    "reference",
    "spec",
    "templates",
)


class BuildPy(build_py):
    """Leaves out this file, which lies where the package begins."""

    def find_package_modules(self, package, package_dir):
        return [] if package == PACKAGE else super().find_package_modules(package, package_dir)


folders = find_namespace_packages(include=[pattern for name in FOLDERS for pattern in (name, f"{name}.*")])
setup(
    package_dir={PACKAGE: "."},
    packages=[PACKAGE, *(f"{PACKAGE}.{folder}" for folder in folders)],
    package_data={PACKAGE: ["platformio.ini"], **{f"{PACKAGE}.{folder}": ["*"] for folder in folders}},
    cmdclass={"build_py": BuildPy},
    options={"build": {"build_base": "build/wheel"}},
)
