# SPDX-License-Identifier: Apache-2.0
"""What report.json holds (docs/reference/report-schema.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .profile import Profile

Percent = float


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Accuracy(Part):
    """Test accuracy of the initial model, before the board learns, in percent."""

    imported: Percent | None = Field(description="Of the imported Keras model as it came; null if none was imported")
    keras: Percent | None = Field(description="Of the pruned initial model in floating point, over all classes")
    reference: Percent = Field(description="In the fixed-point NumPy reference, over all classes")
    board: Percent = Field(description="On the board, over all classes")
    board_task_il: Percent = Field(description="The same, over the task's own classes")

    def columns(self, imported: bool) -> list[Percent | None]:
        """Side by side for the page: floating point, reference, board."""
        return [*([self.imported] if imported else []), self.keras, self.reference, self.board]


class Ticks(Part):
    """Ticks of the board's counter, by phase, over the whole run."""

    unit: str = Field(description="What one tick is")
    per_instruction: float | None = Field(description="Ticks per instruction, where the board defines it")
    forward: int
    backward: int
    replay_read: int
    mask_update: int
    journal_write: int
    digest: int
    training: int = Field(description="Whole training steps; the phases above are parts of it, digest is not")


class Instructions(Part):
    """Instructions per training sample, by phase."""

    forward: float
    backward: float
    replay_read: float
    mask_update: float
    journal_write: float
    digest: float
    training: float = Field(description="Whole training steps")


class Store(Part):
    """The journal in flash."""

    programs: int
    erases: int
    bytes_written: int
    live_records: int
    sectors: int
    sectors_free: int
    erase_min: int = Field(description="Erase count of the least erased sector")
    erase_max: int = Field(description="Erase count of the most erased sector")
    relocated: int
    checkpoints: int
    retired_sectors: int
    lost_records: int = Field(description="Times a record was damaged or not the one that was meant")


class Wear(Part):
    """What the run cost the journal's flash."""

    tasks: int = Field(description="Tasks the board learned")
    cycles_per_task: float = Field(description="Erases of a sector by one task; wear is even, so any sector")
    spread: int = Field(description="Erases between the most and the least erased sector")
    endurance: int = Field(description="Erase cycles that a sector is counted on to last")
    lifetime_tasks: int | None = Field(description="Tasks until sectors have had that many; null if none was erased")


class Saturation(Part):
    """Values that did not fit their format."""

    activations: int
    errors: int
    guard_shifts: int
    weights_at_clamp: int


class Limits(Part):
    """What the board has of each memory, in bytes."""

    ram: int
    flash: int
    journal: int
    shared: bool = Field(description="Code lies in the same RAM as data")


class EpochReport(Part):
    """One epoch on the board."""

    task: int
    epoch: int
    steps: int
    loss: float = Field(description="Mean cross-entropy of the current samples, in nats")
    training_accuracy: Percent
    removed: int = Field(description="Samples DDR removed at its end")
    seconds: float


class LayerFormat(Part):
    """One layer in fixed point (docs/spec/numerics.md).  Limits are real numbers: what the format can hold."""

    name: str = Field(description="l0 is the first layer that learns, p0 the first frozen one; then its own name")
    kind: str = Field(description="dense, conv, max_pool, ...")
    shape: tuple[int, int, int] = Field(description="Channels, height, width of the output")
    sparse: bool
    weights: int = Field(description="Places for weights; 0 in layers without")
    non_zeros: int = Field(description="Weights that exist")
    weight_fraction: int | None = Field(description="Fractional bits of a weight; null in layers without")
    weight_limit: float | None = Field(description="Largest magnitude of a weight")
    output_fraction: int = Field(description="Fractional bits of an output")
    output_limit: float = Field(description="Largest magnitude of an output")


class LayerOverlap(Part):
    """Overlap of the masks of one layer, or of all sparse layers, at two moments."""

    name: str
    density: Percent = Field(description="Weights that exist, of all places, at the end")
    chance: Percent = Field(description="Overlap of two masks placed by chance, mean over all pairs of moments")
    matrix: list[list[Percent]] = Field(description="[i][j]: intersection over union of the masks at moments i and j")


class MaskOverlap(Part):
    """How far the masks moved, from the NumPy reference that agreed with the board."""

    moments: list[str] = Field(description="start: as shipped; then the end of each task the board learned")
    total: LayerOverlap = Field(description="Over all sparse layers")
    layers: list[LayerOverlap]


class SampleNote(Part):
    """One training sample."""

    id: int = Field(description="Number within the task")
    label: str = Field(description="Name of its class")
    mistakes: int = Field(description="Epochs in which it was misclassified just before it was learned from")
    epochs: int = Field(description="Epochs in which it was learned from")
    loss: float = Field(description="Mean cross-entropy over them, in nats")


class TaskSamples(Part):
    """The training samples of one task by difficulty, from the NumPy reference that agreed with the board."""

    task: int = Field(description="Index in tasks")
    samples: int
    removed: int = Field(description="By DDR")
    never_wrong: int = Field(description="Samples without a mistake")
    easiest: list[SampleNote] = Field(description="Removed first by DDR; empty without it")
    hardest: list[SampleNote] = Field(description="Most mistakes of those that stayed to the end")


class Report(Part):
    """A whole run.  Accuracies are in percent, sizes in bytes."""

    format: Literal[1] = 1
    experiment: str
    board: str
    board_title: str
    method: str
    sparsity: float = Field(ge=0, le=1, description="Share of absent weights in sparse layers")
    non_zeros: int = Field(description="Weights that exist")
    seed: int
    tool_version: str
    model_hash: str = Field(pattern="^[0-9a-f]{16}$")
    settings: dict[str, dict[str, Any]] = Field(description="All options of the experiment, by section")
    tasks: list[str]
    scenario: Literal["class", "domain"] = Field(
        description="class: tasks bring classes; domain: all tasks have the same classes, and task-IL equals class-IL"
    )
    class_il: Percent = Field(ge=0, le=100, description="Mean accuracy over tasks at the end, over all classes")
    task_il: Percent = Field(ge=0, le=100, description="The same, each task over its own classes")
    forgetting: Percent = Field(description="Class-incremental; docs/reference/report-schema.md defines it")
    backward_transfer: Percent
    task_forgetting: Percent = Field(description="Task-incremental")
    accuracy_matrix: list[list[Percent | None]] = Field(description="[i][j]: after task i, on task j; over all classes")
    task_accuracy_matrix: list[list[Percent | None]] = Field(description="The same over the task's own classes")
    initial_accuracy: dict[str, Accuracy]
    base_accuracy: list[Percent | None] = Field(description="On the base classes after each task; empty without a base")
    bit_exact: bool = Field(description="The whole run was compared with the reference and nothing differed")
    steps_compared: int
    predictions_compared: int
    digests_compared: int
    mismatches: int
    first_mismatch: str | None
    state_digest: str = Field(pattern="^[0-9a-f]{8}$")
    rolling_digest: str = Field(pattern="^[0-9a-f]{8}$")
    steps: int = Field(description="Training samples the board consumed, all epochs")
    samples_removed: int = Field(description="By DDR, over all tasks")
    ram_bytes: dict[str, int] = Field(description="By region")
    flash_bytes: dict[str, int] = Field(description="By region")
    ram_total: int
    flash_total: int
    journal_bytes: dict[str, int] = Field(description="By region: what the journal needs at least")
    limits: Limits
    stack_used: int
    store: Store
    wear: Wear
    saturation: Saturation
    saturation_of: Saturation = Field(description="How many values there were that could have been counted there")
    layers: list[LayerFormat] = Field(description="Number formats, frozen layers first")
    ticks: Ticks
    instructions: Instructions | None = Field(description="None where the board's counter cannot tell")
    profile: Profile | None = Field(description="By layer and function; None until `sparcl bench` counted this model")
    masks: MaskOverlap | None = Field(description="None without masks, or until `sparcl validate` has agreed")
    ddr: bool = Field(description="Whether dynamic data removal is on")
    samples: list[TaskSamples] | None = Field(description="None until `sparcl validate` has agreed")
    passes_per_sample: float = Field(description="Forward passes per training sample, replay included")
    wall_seconds: float = Field(description="Time of the session on the host's clock")
    samples_per_second: float
    sessions: int = Field(description="1 + resumptions")
    retries: int = Field(description="Requests sent again")
    resets: list[str] = Field(description="Faults after which the board went back to a snapshot; empty: none")
    epochs: list[EpochReport]

    @property
    def imported(self) -> bool:
        """Whether the initial model came from a file or function of the user's."""
        return any(accuracy.imported is not None for accuracy in self.initial_accuracy.values())

    @property
    def proof(self) -> str:
        """Whether the board equals the reference: yes, NO, or not shown."""
        return "yes" if self.bit_exact else "NO" if self.mismatches else "not shown"

    @property
    def stack_aside(self) -> int:
        """Bytes of a stack that is most of the RAM: the operating system's, which would hide the rest; else 0."""
        stack = self.ram_bytes.get("stack", 0)
        return stack if 2 * stack > self.ram_total else 0

    def key_figures(self) -> list[tuple[str, str]]:
        """Names and values a reader wants first."""
        exact = f"{self.proof} ({self.steps_compared} steps)" if self.bit_exact else self.proof
        accuracy = f"{self.class_il:.1f} % class-IL, {self.task_il:.1f} % task-IL"
        if self.scenario == "domain":
            accuracy = f"{self.class_il:.1f} % domain-IL (tasks share classes)"
        stack = ", without the stack the system sets aside" if self.stack_aside else ""
        rows = [
            ("accuracy on the board", accuracy),
            ("forgetting", f"{self.forgetting:.1f} points, backward transfer {self.backward_transfer:+.1f}"),
            ("RAM", f"{(self.ram_total - self.stack_aside) / 1024:.1f} KiB{stack}"),
            ("flash", f"{self.flash_total / 1024:.1f} KiB"),
        ]
        if self.instructions is not None:
            rows.append(("instructions per sample", f"{self.instructions.training:,.0f}"))
        rows.append(("flash wear", self._wear()))
        rows.append(("samples", f"{self.steps} trained, {self.samples_removed} removed by DDR"))
        if self.resets:
            causes = (f"{self.resets.count(cause)} x {cause}" for cause in dict.fromkeys(self.resets))
            rows.append(("faults recovered from", ", ".join(causes)))
        rows.append(("bit-exact with the NumPy reference", exact))
        return rows

    def _wear(self) -> str:
        life = "no end" if self.wear.lifetime_tasks is None else f"{self.wear.lifetime_tasks:,} tasks"
        retired = f", {self.store.retired_sectors} times a sector failed" if self.store.retired_sectors else ""
        lost = f", {self.store.lost_records} times a record was lost" if self.store.lost_records else ""
        return (
            f"{self.store.erases} erases on {self.store.sectors} sectors, spread {self.wear.spread}{retired}{lost}; "
            f"{life} at {self.wear.endurance:,} cycles"
        )
