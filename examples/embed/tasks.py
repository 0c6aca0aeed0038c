# SPDX-License-Identifier: Apache-2.0
"""Write an experiment's tasks as C arrays, which stand for what a sensor would deliver.

python tasks.py EXP.toml FOLDER     brings the project up to date; writes FOLDER/tasks.h, prints its C sources
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sparcl_mcu.generator.pipeline import generate
from sparcl_mcu.spec.types import Dataset

ARRAYS = ("x", "y", "x_test", "y_test", "classes")


def header(data: Dataset) -> Iterator[str]:
    """Lines of tasks.h."""
    yield f"#include <stdint.h>\n\n#define TASKS {len(data.tasks)}u\n#define N_IN {data.n_in}u\n"
    for number, task in enumerate(data.tasks):
        values = (task.x_train, task.y_train, task.x_test, task.y_test, np.array(task.classes))
        for name, array in zip(ARRAYS, values, strict=True):
            text = ",".join(map(str, array.reshape(-1).astype(np.uint8)))  # of a signed input the same bits
            yield f"static const uint8_t {name}{number}[] = {{{text}}};"
    yield f"\ntypedef struct {{\n  const uint8_t *{', *'.join(ARRAYS)};\n  unsigned n, n_test, n_classes;\n}} task_t;\n"
    yield "static const task_t task[] = {"
    for number, task in enumerate(data.tasks):
        counts = f"{len(task.y_train)}, {len(task.y_test)}, {len(task.classes)}"
        yield f"    {{{', '.join(f'{name}{number}' for name in ARRAYS)}, {counts}}},"
    yield "};"


def main(experiment: Path, folder: Path) -> None:
    """Command line."""
    project = generate(experiment, "native")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tasks.h").write_text("\n".join(header(project.dataset)) + "\n", encoding="utf-8")
    print(project.folder.resolve() / "generated")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
