# SPDX-License-Identifier: Apache-2.0
"""Puts the folders of the checkout below one package: generator/ is `sparcl_mcu.generator`.

Everything else about the package is in pyproject.toml. The folders that hold no
Python are packages too, so that what is installed has the layout of the checkout
and every path is found the same way.
"""

from setuptools import find_namespace_packages, find_packages, setup

PACKAGE = "sparcl_mcu"
CODE = ("benchmarks", "generator", "host_tools")
DATA = ("examples", "firmware", "platforms", "templates")


def within(names: tuple[str, ...]) -> list[str]:
    """Patterns for folders and all that lies in them."""
    return [pattern for name in names for pattern in (name, f"{name}.*")]


folders = find_packages(include=within(CODE)) + find_namespace_packages(include=within(DATA))
setup(
    package_dir={PACKAGE: "."},
    packages=[f"{PACKAGE}.{folder}" for folder in folders],
    package_data={"": ["*"]},
)
