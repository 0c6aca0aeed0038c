# SPDX-License-Identifier: Apache-2.0
"""Results of a bench: build/bench/bench.json (docs/reference/bench-schema.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Phases(_Part):
    """Instructions per training step by the board's own meter."""

    forward: float
    backward: float
    replay_read: float = Field(description="Reading records from flash: the sample itself, and replayed ones")
    mask_update: float = Field(description="Spread over all steps")
    journal_write: float
    training: float = Field(description="Whole steps")


class Cycles(_Part):
    """Estimated from the instruction mix (benchmarks/cycles.py); no measurement."""

    step: float
    prediction: float | None
    step_microjoule: float | None = Field(description="Null where board.toml names no clock, voltage and current")
    prediction_microjoule: float | None


class Instructions(_Part):
    """Counted instructions; null where the mode of the case does not measure it."""

    steps: int = Field(description="Training steps that were counted")
    cross_entropy_step: float | None = Field(
        description="One pass forward and back with its bookkeeping, without reading the sample from flash"
    )
    step: float = Field(description="One whole training step, mask updates left out")
    prediction: float | None
    mask_update: float | None = Field(description="One mask update")
    task: float | None = Field(description="A whole task, mask updates included")
    mask_share: float | None = Field(description="Share of mask updates in a whole task")
    phases: Phases
    meter_difference: float = Field(description="(meter - counted) / counted, of whole training steps")
    layers: dict[str, dict[str, float]] = Field(description="Per step: layer, then forward, backward or error")
    prediction_layers: dict[str, float] = Field(description="Per prediction, by layer")
    functions: dict[str, float] = Field(description="Per step, of the functions that take more than a thousandth")
    inputs: float | None = Field(description="Share of the inputs of the first layer that are not 0")
    macs: float | None = Field(description="Multiply-accumulates of one forward pass that are not skipped")
    inner_loop: float | None = Field(description="Instructions per multiply-accumulate in the inner loops, forward")
    forward_per_mac: float | None = Field(description="Instructions of the whole forward pass per multiply-accumulate")


class CaseResult(_Part):
    """One case: a network on a board."""

    name: str
    board: str
    network: str
    mode: str
    fits: bool
    why: str | None = Field(description="Why it does not fit; all that follows is null then")
    non_zeros: int | None
    class_il: float | None = Field(description="Accuracy over all classes after the last task, in percent")
    instructions: Instructions | None
    cycles: Cycles | None
    ram: dict[str, int] | None = Field(description="Bytes by region; stack: what is set aside")
    flash: dict[str, int] | None = Field(description="Bytes by section of the image")
    stack_used: int | None = Field(description="High-water mark of the stack, in bytes")

    @property
    def ram_used(self) -> int | None:
        """RAM in use, counting the stack by its high-water mark."""
        if self.ram is None or self.stack_used is None:
            return None
        return sum(self.ram.values()) - self.ram["stack"] + self.stack_used


class Row(_Part):
    """One row of the table of targets."""

    target: str
    goal: str
    figure: str = Field(description="'not measured' when its cases were not run")
    verdict: Literal["met", "missed", "not measured"]


class Fit(_Part):
    """Instructions of a cross-entropy step = fixed + slope * non-zeros that are not skipped; least squares."""

    fixed: float
    slope: float
    r_squared: float
    points: int


class Bench(_Part):
    """A whole run."""

    format: Literal[1] = 1
    tool_version: str
    compiler: str
    emulator: str
    seed: int
    quick: bool
    cases: list[CaseResult]
    targets: list[Row]
    growth: Fit | None


if __name__ == "__main__":
    import json
    from pathlib import Path

    schema = json.dumps(Bench.model_json_schema(), indent=1)
    (Path(__file__).parent / "bench_schema.json").write_text(schema + "\n", encoding="utf-8")
