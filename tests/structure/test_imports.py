# SPDX-License-Identifier: Apache-2.0
"""Dependencies run one way (ARCHITECTURE.md): who imports whom, and no circle between files or packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from sparcl_mcu.spec.paths import ROOT

ORDER = ("spec", "reference", "generator", "host_tools", "benchmarks")
"""Each may import those before it."""
PACKAGE = "sparcl_mcu."


def _names(path: Path, module: str) -> Iterator[str]:
    """Dotted names, without ``sparcl_mcu.``, that a file imports anywhere in it; ``from a import b`` is ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix(PACKAGE) for a in node.names if a.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if node.level or (source + ".").startswith(PACKAGE):
                source = source.removeprefix(PACKAGE.rstrip(".")).removeprefix(".")
                yield from (f"{source}.{a.name}".removeprefix(".") for a in node.names)


def imports(root: Path) -> dict[str, set[str]]:
    """For each module those of the project that it imports: the longest part of each name that is a module."""
    files = {path: path.relative_to(root) for top in ORDER for path in sorted((root / top).rglob("*.py"))}
    modules = {path: ".".join(name.with_suffix("").parts).removesuffix(".__init__") for path, name in files.items()}
    known = set(modules.values())
    found: dict[str, set[str]] = {}
    for path, module in modules.items():
        found[module] = set()
        for name in _names(path, module):
            parts = name.split(".")
            heads = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
            found[module] |= {next((head for head in heads if head in known), module)} - {module}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle, empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_run_one_way() -> None:
    """No package imports one that builds on it."""
    wrong = [
        f"{module} imports {name}"
        for module, names in imports(ROOT).items()
        for name in sorted(names)
        if ORDER.index(name.split(".")[0]) > ORDER.index(module.split(".")[0])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other() -> None:
    """Not even through others, or inside of functions."""
    found = circle(imports(ROOT))
    assert not found, " <- ".join(found)


def test_a_breach_is_found(tmp_path: Path) -> None:
    """Absolute and relative imports, of modules and of names in them, anywhere in a file."""
    for top in ORDER:
        (tmp_path / top).mkdir()
        (tmp_path / top / "__init__.py").touch()
    (tmp_path / "spec" / "a.py").write_text("def f():\n    from sparcl_mcu.generator.b import g\n")
    (tmp_path / "generator" / "b.py").write_text("from . import c\n")
    (tmp_path / "generator" / "c.py").write_text("from .d.e import x\nimport sparcl_mcu.spec.a\n")
    (tmp_path / "generator" / "d").mkdir()
    (tmp_path / "generator" / "d" / "e.py").write_text("from ..b import g\n")
    found = imports(tmp_path)
    assert found["spec.a"] == {"generator.b"}
    assert found["generator.b"] == {"generator.c"}
    assert found["generator.c"] == {"generator.d.e", "spec.a"}
    assert found["generator.d.e"] == {"generator.b"}
    assert set(circle(found)) <= {"spec.a", "generator.b", "generator.c", "generator.d.e"}
    assert circle(found)
