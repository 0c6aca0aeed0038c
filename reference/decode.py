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

from sparcl_mcu.spec import wire
from sparcl_mcu.spec.types import Layer, Model, Op, Region, regions

Array = NDArray[Any]

SCALARS = wire.SCALARS.dtype
"""The scalars of region 0, before class_task."""
REPLAY_SLOT = wire.REPLAY_SLOT.dtype
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
        named = {f"scalars.{name}": fields[name] for name in SCALARS.names or ()}
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
    layer, at_layer = model.layers[number], f"layer {number}"
    if rest == ["bias"]:
        return f"{at_layer}, {_output(layer)} {at}"
    if rest == ["weight"]:
        line, place = divmod(at, layer.n_pad if layer.op is Op.DENSE else layer.n_in)
        return f"{at_layer}, {_weight(layer, line, place, 0, 1)}"
    panel = int(rest[0].removeprefix("panel"))
    where = f"{at_layer}, panel {panel}"
    if rest[1] in ("start", "split"):
        return f"{where}, {'input' if layer.op is Op.DENSE else 'block of output channels'} {at}"
    entry, lane = divmod(at, layer.block) if rest[1] == "weight" else (at, 0)
    start, index = (reference.get(f"{head}.{rest[0]}.{part}") for part in ("start", "index"))
    if start is None or index is None:
        return f"{where}, entry {entry}"
    line = int(np.searchsorted(start, entry, side="right")) - 1
    place = layer.panels[panel].first + int(index[entry])
    return f"{where}, entry {entry}: {_weight(layer, line, place, lane, layer.block)}"


def _output(layer: Layer) -> str:
    return "output" if layer.op is Op.DENSE else "output channel"


def _weight(layer: Layer, line: int, place: int, lane: int, block: int) -> str:
    """Which weight ``lane`` of an entry is (docs/spec/numerics.md, "Sparse layers: panels")."""
    if layer.op is Op.DENSE:
        return f"input {line}, output {place * block + lane}"
    assert layer.window is not None
    output = line * block + lane
    channel, position = divmod(place, layer.window.area)
    if layer.multiplier:
        channel = output // layer.multiplier
    row, column = divmod(position, layer.window.kernel_w)
    return f"output channel {output}, input channel {channel}, kernel row {row}, column {column}"
