# SPDX-License-Identifier: Apache-2.0
"""Dump regions as named arrays, and the first difference between two dumps.

Docs: protocol.md ("Dump regions").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generator.artefacts import Model, Region, regions

Array = NDArray[Any]

_SCALARS = (
    *(("prng", "<u4"), ("step", "<u4"), ("seen", "<u4"), ("rolling", "<u4")),
    *(("task", "u1"), ("phase", "u1"), ("mode", "u1"), ("grown", "u1")),
    *(("epoch", "<u2"), ("pos", "<u2"), ("n_start", "<u2"), ("n", "<u2")),
    *(("filled", "<u2"), ("received", "<u2")),
    *(("captured_d", "u1"), ("captured_m", "u1"), ("shuffled", "u1"), ("zero", "u1")),
    *(("saturated_activations", "<u4"), ("saturated_errors", "<u4"), ("guard_shifts", "<u4")),
)
SCALARS = np.dtype(list(_SCALARS))
"""The scalars of region 0, before class_task."""

REPLAY_SLOT = np.dtype([("id", "<u2"), ("task", "u1"), ("label", "u1"), ("sample_crc", "<u4"), ("logits_crc", "<u4")])
"""One slot of region 3."""


@dataclass(frozen=True)
class Difference:
    """The first value two dumps disagree on.

    ``index``: position of the value in its array (-1: the sizes differ, and the
    values are the sizes); ``where``: the same in words.
    """

    region: str
    index: int
    where: str
    device: int
    reference: int

    def __str__(self) -> str:
        """One line for a report."""
        return f"{self.region}[{self.index}] ({self.where}): device {self.device}, reference {self.reference}"


def arrays(model: Model, dump: Mapping[int, bytes]) -> dict[str, Array]:
    """Named arrays of a dump; ``dump``: bytes by region number, regions may be missing.

    Scalars become ``scalars.<field>`` and ``scalars.class_task``, replay slots
    ``replay.<field>``; the rest keeps the region's name.
    """
    result: dict[str, Array] = {}
    for region in regions(model):
        if region.number in dump:
            result.update(_parse(region, dump[region.number]))
    return result


def first_difference(model: Model, device: Mapping[int, bytes], reference: Mapping[int, bytes]) -> Difference | None:
    """Compare the regions both dumps hold, in order; None if they agree."""
    ours, theirs = arrays(model, reference), arrays(model, device)
    for name, expected in ours.items():
        actual = theirs.get(name)
        if actual is None or np.array_equal(actual, expected):
            continue
        if actual.size != expected.size:
            return Difference(name, -1, "number of values", actual.size, expected.size)
        at = int(np.flatnonzero(actual != expected)[0])
        return Difference(name, at, _where(model, name, at, ours), int(actual[at]), int(expected[at]))
    return None


def _parse(region: Region, data: bytes) -> dict[str, Array]:
    if region.name == "scalars":
        fields = np.frombuffer(data[: SCALARS.itemsize], dtype=SCALARS)
        named = {f"scalars.{name}": fields[name] for name, _ in _SCALARS}
        return named | {"scalars.class_task": np.frombuffer(data[SCALARS.itemsize :], dtype=np.uint8)}
    if region.name == "replay":
        slots = np.frombuffer(data, dtype=REPLAY_SLOT)
        return {f"replay.{name}": slots[name] for name in REPLAY_SLOT.names or ()}
    kind = "i" if region.signed else "u"
    return {region.name: np.frombuffer(data, dtype=f"<{kind}{region.itemsize}")}


def _where(model: Model, name: str, at: int, reference: Mapping[str, Array]) -> str:
    """Say in words what value ``at`` of an array is."""
    head, *rest = name.split(".")
    if not head.startswith("layer"):
        return {"replay": f"slot {at}", "table": f"table entry {at}"}.get(head, f"value {at}")
    number = int(head.removeprefix("layer"))
    layer = model.layers[number]
    if rest == ["bias"]:
        return f"layer {number}, output {at}"
    if rest == ["weight"]:
        return f"layer {number}, input {at // layer.n_pad}, output {at % layer.n_pad}"
    panel = int(rest[0].removeprefix("panel"))
    place = f"layer {number}, panel {panel}"
    if rest[1] in ("start", "split"):
        return f"{place}, input {at}"
    entry, lane = divmod(at, layer.block) if rest[1] == "weight" else (at, 0)
    start, index = (reference.get(f"{head}.{rest[0]}.{part}") for part in ("start", "index"))
    if start is None or index is None:
        return f"{place}, entry {entry}"
    source = int(np.searchsorted(start, entry, side="right")) - 1
    output = (layer.panels[panel].first + int(index[entry])) * layer.block + lane
    return f"{place}, entry {entry}: input {source}, output {output}"
