# SPDX-License-Identifier: Apache-2.0
"""The experiment file: TOML to frozen, checked models.

Every option is a field with a description and a default; the defaults are the
recipe of docs/spec/algorithm.md, so a short file is a good experiment.  Errors name
the file and the line, or the ``--set`` option, that has to change.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import itertools
import json
import keyword
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from sparcl_mcu.generator import files, shared_key
from sparcl_mcu.generator.architecture import LAYER_ENTRIES, LayerEntry, layer_conflicts
from sparcl_mcu.generator.sizes import LARGEST_EXPERIMENT
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import DdrScore, Growth, Method, SingleHead


def _name(value: object) -> object:
    """Report an invalid name once, not once for each type it could have been."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("name", "Input should be a name or a whole number")
    return value


ClassName: TypeAlias = Annotated[int | str, BeforeValidator(_name)]
"""A class, by its name in the data set: its label or its name."""

MAX_CLASSES = 255
"""A label is one byte and 255 means none (docs/spec/algorithm.md, ``class_task``)."""

WATCH_RATE = 50
"""Samples per second of the watch recordings."""

MAX_VALUES = 65535
"""Values of a sample: its number is two bytes on the line (docs/spec/protocol.md)."""

DEEPEST = 32
"""Tables and lists inside each other in an experiment file; the options need four."""

MOST_MISTAKES = 20
"""Lines of an error message."""

LONGEST = 100
"""Characters of a wrong word that are compared with the right ones."""

RESERVED_NAMES = ("bench", "coverage", "current", "emulator", "fuzz", "powercut", "sweeps")
"""Folders of ``build/`` that do not belong to an experiment (generator/pipeline.py, host_tools/emulator.py)."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Width = Annotated[int, Field(ge=1, le=65535)]
Pixels = Annotated[int, Field(ge=1, le=4096)]


def _pair(value: object) -> object:
    """Turn one number into both sides of a square."""
    return (value, value) if isinstance(value, int) else value


def _alone(value: object) -> object:
    """Turn a single name into a list."""
    return (value,) if isinstance(value, str) else value


Size = Annotated[tuple[Pixels, Pixels], BeforeValidator(_pair)]
Feature = Literal["raw", "mean", "std", "min", "max", "mean_abs_diff", "bands"]
Features = Annotated[tuple[Feature, ...], Field(min_length=1), BeforeValidator(_alone)]


class _Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ExperimentSection(_Section):
    """What the experiment is called and its seed."""

    name: str = Field(
        "experiment", max_length=100, description="Name of the experiment, an identifier; default: the file's name"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random, on the host and on the board")


class DataSection(_Section):
    """The data set: one that comes with a package, or your own."""

    set: Literal["mnist5k", "digits", "watch", "npz", "csv", "images", "function", "keras"] = Field(
        "mnist5k", description="Data set"
    )
    path: Path | None = Field(
        None,
        strict=False,
        description="npz: file with x_train, y_train, and unless a share is held out x_test, y_test; csv: table with a "
        "header; images: folder with a folder for each class, or with such folders in train/ and test/; function: "
        "folder of the module, default: this file's; relative to this file",
    )
    test_path: Path | None = Field(None, strict=False, description="csv only: table of the test samples")
    function: str | None = Field(
        None, description="function only: module:name of a function that returns what an npz holds"
    )
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"] | None = Field(
        None, description="keras only: which of Keras's sets; downloaded when it is first used"
    )
    label: str = Field("label", description="csv only: column with the class")
    group: str | None = Field(None, description="csv only: column with the group (person, sensor, ...)")
    recording: str | None = Field(
        None, description="csv with window only: column that tells recordings apart; no window spans two"
    )
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="csv only: columns the network sees; default: all others"
    )
    size: Size | None = Field(
        None,
        description="Pictures: [height, width] or the side of a square. mnist5k: 16 (2x2 mean, the default) or 28; "
        "images: needed if they differ; keras: default is the set's",
    )
    color: bool | None = Field(None, description="images only: three channels; default: if any picture has colours")
    test_share: float = Field(
        0.2,
        gt=0.0,
        lt=1.0,
        description="Share of each class (and group) that is held out where a set has no test samples: the last "
        "samples, or the last part of each recording",
    )
    train_per_class: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Training samples of each class (and group); default: 400 for mnist5k, else all there are",
    )
    test_per_class: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Test samples of each class (and group); default: 100 for mnist5k, else all there are",
    )
    evaluate: Literal["test", "validation"] = Field(
        "test",
        description="What accuracy is measured on. validation: a fifth of the training samples, held out for it (of "
        "watch by class, two people); test samples are then not looked at: for choosing settings",
    )
    window: int | None = Field(
        None,
        ge=2,
        le=65535,
        description="Time series: time steps of a window; needed for csv, default: 100 for watch, else all of a sample",
    )
    hop: int | None = Field(
        None, ge=1, le=65535, description="Time series: steps from one window to the next; default: half a window"
    )
    features: Features | None = Field(
        None,
        description='Time series: what the network sees of each channel of a window: "raw" for every value, or a '
        "list of mean, std, min, max, mean_abs_diff, bands (log power in spectral bands); default: raw, all for watch",
    )
    rate: float | None = Field(None, gt=0.0, description="Time series: steps per second, for bands")
    bands: tuple[float, ...] = Field(
        (2.0, 5.0), min_length=1, max_length=32, description="Edges between the spectral bands in Hz"
    )
    standardise: bool | None = Field(
        None,
        description="Each feature or channel to mean 0 and deviation 1 over the samples the host knows; npz, csv and "
        "function only (watch always does); default: csv and time series",
    )


class TasksSection(_Section):
    """How the data set is cut into tasks."""

    by: Literal["class", "group"] = Field(
        "class",
        description="A task brings new classes, or new groups (people, sensors, ...) with the same classes",
    )
    classes_per_task: int = Field(2, ge=1, le=MAX_CLASSES, description="Classes of each task, in the data set's order")
    groups_per_task: int = Field(1, ge=1, le=65535, description="By group: groups of each task, in order")
    split: tuple[tuple[ClassName, ...], ...] | None = Field(
        None, description='The classes (by group: groups) of each task, written out: [["a", "b"], ["c"]]'
    )
    first: Literal["board", "host"] = Field(
        "board",
        description="Who learns the first task: the board; or the host, then the board starts with the "
        "second task and gets the replay records of the first",
    )


class ModelSection(_Section):
    """The network, in one of four ways: `hidden`, `layers`, `path`, `function`.

    The output layer, dense with one output for each class, is implied in `hidden` and `layers`.
    """

    hidden: tuple[Width, ...] = Field(
        (512,), min_length=1, max_length=8, description="Fully connected network: widths of the hidden layers"
    )
    layers: tuple[LayerEntry, ...] | None = Field(
        None, max_length=100, description="List of layers, each a table with a type (see below)"
    )
    path: Path | None = Field(
        None, strict=False, description="Keras model, a .keras or .h5 file; relative to this file"
    )
    function: str | None = Field(
        None,
        description='"module:function" that returns a Keras model; the module may lie beside this file',
    )
    input: Literal["unit", "raw"] | None = Field(
        None,
        description="How an imported model wants pictures of 8 bit: 0..1 (unit) or 0..255 (raw); default: raw if it "
        "begins with Rescaling or Normalization, else unit",
    )
    freeze: int | None = Field(
        None, ge=1, le=1000, description="That many of the first layers with weights never learn on the board"
    )
    train_last: int | None = Field(
        None, ge=1, le=1000, description="Only that many of the last layers with weights learn on the board"
    )
    latent: bool = Field(
        False, description="Records in flash hold what the frozen layers make of a sample, instead of the sample"
    )

    @property
    def imported(self) -> bool:
        """Whether the network comes from Keras."""
        return self.path is not None or self.function is not None


class InitialSection(_Section):
    """The initial model, made on the host."""

    train: Literal["first_task", "base", "none"] | None = Field(
        None,
        description="What the host trains it on: the first task, the base classes, or nothing; default: first_task, "
        "but none for a model from Keras",
    )
    epochs: int = Field(5, ge=1, le=1000, description="Epochs on the host")
    lr: float = Field(0.03, gt=0.0, le=10.0, description="Learning rate on the host (SGD)")
    batch: int = Field(8, ge=1, le=4096, description="Batch size on the host")
    base_classes: tuple[ClassName, ...] = Field(
        (), description="base, or a model from Keras: classes the model ships with; they are in no task"
    )
    rescale: bool | None = Field(
        None,
        description="Scale kept weights to the variance of all weights; default: true, but the sums of a model from "
        "Keras that is not trained keep the mean and deviation they have in each channel",
    )
    mask: Literal["data", "magnitude", "random"] = Field(
        "data", description="First mask: by |w| times the norm of its input, by |w| alone, or at random (the paper's)"
    )
    mask_samples: int = Field(64, ge=1, le=65535, description="Samples the norm of an input is taken from")


class SparsitySection(_Section):
    """Sparsity of the weights."""

    weights: float = Field(0.92, ge=0.0, le=0.999, description="Share of the weights that are absent in sparse layers")
    block: Literal[1, 2, 4] = Field(1, description="Consecutive outputs that are present or absent together")
    scope: Literal["layer", "global"] = Field("layer", description="The share holds in each layer, or over all of them")
    dense_output: bool = Field(True, description="Keep the output layer dense")
    dense_input: bool | None = Field(
        None, description="Keep the first layer with weights dense; default: if it is a convolution"
    )
    dense_depthwise: bool = Field(
        True, description="Keep depthwise convolutions dense: each of their few weights is much of what a channel sees"
    )


class MethodSection(_Section):
    """Continual learning on the board."""

    name: Method = Field(Method.DERPP, strict=False, description="Method: finetune, er or der++")
    lr: float = Field(0.03, gt=0.0, le=1.0, description="Learning rate on the board (SGD)")
    lr_final: float = Field(
        1.0, gt=0.0, le=1.0, description="Learning rate of a task's last epoch as a share of lr; it falls linearly"
    )
    epochs: int = Field(5, ge=1, le=1000, description="Epochs of each task")
    batch: int = Field(1, ge=1, le=256, description="Batch size; 1 updates in place and needs no gradient memory")
    alpha: float = Field(1.0, ge=0.0, le=16.0, description="der++: coefficient of the distillation of stored logits")
    beta: float = Field(0.5, ge=0.0, le=16.0, description="der++: coefficient of the cross-entropy on the buffer")
    shared_draws: int = Field(
        1,
        ge=0,
        le=4,
        description="der++: that many samples of the buffer a step, each learned with distillation and cross-entropy "
        "at once, alpha and beta spread over them; 0: one sample for each of the two, as published",
    )
    buffer: int = Field(200, ge=0, le=65534, description="Replay slots; finetune does not use them")
    refresh: bool = Field(
        True,
        description="Samples enter the buffer in a task's last epoch, and at its end all logits in the buffer are "
        "recomputed; false: in every epoch, with the logits they have then for good, as published",
    )
    single_head: SingleHead = Field(
        SingleHead.SCORE,
        strict=False,
        description="Where logits of other tasks' classes are left out: nowhere (off), in the importance "
        "score, or in the loss too",
    )
    training: Literal["resident", "streamed"] = Field(
        "resident",
        description="The board keeps the task's samples in flash, or the host sends them each epoch",
    )
    rounding: Literal["stochastic", "nearest"] = Field("stochastic", description="Rounding of the weight update")


class TdmSection(_Section):
    """Task-aware dynamic masking: which weights exist."""

    enabled: bool = Field(True, description="Move weights while learning")
    interval: float = Field(0.5, ge=0.001, le=1000.0, description="Epochs between mask updates: a whole number or 1/U")
    p_intra: Share = Field(0.1, description="Share of the weights that a mask update replaces")
    p_inter: Share = Field(0.0, description="Share of all places grown for a while when a task begins")
    growth: Growth = Field(Growth.RANDOM, strict=False, description="Where weights grow: random, or largest gradient")
    alpha: float = Field(0.5, ge=0.0, le=4.0, description="Importance: coefficient of the current task's gradient")
    beta: float = Field(1.0, ge=0.0, le=4.0, description="Importance: coefficient of the replay gradient")
    capture: Literal[1, 2, 4, 8, 16] = Field(2, description="Samples whose gradients are kept for the importance")


class DgmSection(_Section):
    """Dynamic gradient masking: which weights are updated."""

    enabled: bool = Field(False, description="Update only the most important weights")
    sparsity: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Share of all weights that are not updated; default: weights and a fifth of the rest",
    )


class DdrSection(_Section):
    """Dynamic data removal: which samples are still looked at."""

    enabled: bool = Field(False, description="Remove samples that have become easy")
    rho: float = Field(0.3, ge=0.0, lt=1.0, description="Share of a task's samples that is removed in the end")
    until: int | None = Field(None, ge=1, le=1000, description="Epochs after which nothing is removed; default: 3")
    score: DdrScore = Field(
        DdrScore.MISCLASSIFICATION,
        strict=False,
        description="What tells easy from hard: misclassification or loss",
    )


class LinkSection(_Section):
    """The serial line to the board."""

    key: str | None = Field(
        None,
        description="Where the key is that host and board share, so that nobody else changes what the board knows: "
        '"file:PATH", relative to this file, or "env:NAME", an environment variable (docs/spec/protocol.md)',
    )


class Config(_Section):
    """A whole experiment."""

    experiment: ExperimentSection = ExperimentSection()
    data: DataSection = DataSection()
    tasks: TasksSection = TasksSection()
    model: ModelSection = ModelSection()
    initial: InitialSection = InitialSection()
    sparsity: SparsitySection = SparsitySection()
    method: MethodSection = MethodSection()
    tdm: TdmSection = TdmSection()
    dgm: DgmSection = DgmSection()
    ddr: DdrSection = DdrSection()
    link: LinkSection = LinkSection()

    @property
    def gradient_sparsity(self) -> float:
        """Share of all weights of a sparse layer that are not updated (``dgm.sparsity`` with its default).

        The default gives the pairs of the paper: 0.80 beside 0.75, 0.92 beside 0.90, 0.96 beside 0.95.
        """
        if self.dgm.sparsity is not None:
            return self.dgm.sparsity
        return round(self.sparsity.weights + 0.2 * (1.0 - self.sparsity.weights), 9)

    @property
    def initial_train(self) -> Literal["first_task", "base", "none"]:
        """What the host trains the initial model on (``initial.train`` with its default)."""
        return self.initial.train or ("none" if self.model.imported else "first_task")

    @property
    def rescale(self) -> bool:
        """Whether kept weights are scaled (``initial.rescale`` with its default)."""
        if self.initial.rescale is not None:
            return self.initial.rescale
        return not self.model.imported or self.initial_train != "none"

    @property
    def ddr_until(self) -> int:
        """Epochs in which DDR removes samples (``ddr.until`` with its default)."""
        return self.ddr.until if self.ddr.until is not None else min(3, self.method.epochs)

    @property
    def update_interval(self) -> tuple[int, int]:
        """(updates per epoch, update every that many epochs); one of them is 1."""
        interval = self.tdm.interval
        return (1, round(interval)) if interval >= 1.0 else (round(1.0 / interval), 1)

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        for keys, message in _conflicts(self):
            raise PydanticCustomError("conflict", "{message}", {"message": message, "keys": keys})
        return self


_Key: TypeAlias = tuple[str, str]
_Conflict: TypeAlias = tuple[tuple[_Key, ...], str]


def _conflicts(c: Config) -> Iterator[_Conflict]:
    """Find options that do not go together: the keys to blame, the most likely one first, and what to do."""
    name = c.experiment.name
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        yield (
            (("experiment", "name"),),
            (f"experiment.name {name!r} is not an identifier (letters, digits, underscores): set [experiment] name"),
        )
    if name.lower() in RESERVED_NAMES:
        yield (
            (("experiment", "name"),),
            f"experiment.name {name!r} is reserved (a folder of build/): choose another name",
        )
    yield from _data_conflicts(c)
    yield from _model_conflicts(c)
    yield from _method_conflicts(c)
    yield from _sparcl_conflicts(c)
    if c.link.key is not None and not re.fullmatch(shared_key.FORM, c.link.key):
        yield (("link", "key"),), 'link.key names a place, "file:PATH" or "env:NAME"; the key itself stays out of here'


_SET_KEYS: dict[str, tuple[str, ...]] = {
    "path": ("npz", "csv", "images", "function"),
    "test_path": ("csv",),
    "function": ("function",),
    "name": ("keras",),
    "label": ("csv",),
    "group": ("csv",),
    "recording": ("csv",),
    "columns": ("csv",),
    "size": ("mnist5k", "images", "keras"),
    "color": ("images",),
    "test_share": ("digits", "watch", "npz", "csv", "images", "function"),
    "window": ("watch", "npz", "csv", "function"),
    "hop": ("watch", "npz", "csv", "function"),
    "features": ("watch", "npz", "csv", "function"),
    "rate": ("npz", "csv", "function"),
    "bands": ("watch", "npz", "csv", "function"),
    "standardise": ("npz", "csv", "function"),
}
"""Keys of [data] that only some sets take."""

_NEEDED = {"npz": "path", "csv": "path", "images": "path", "function": "function", "keras": "name"}


def _data_conflicts(c: Config) -> Iterator[_Conflict]:
    d = c.data
    if d.set in _NEEDED and getattr(d, _NEEDED[d.set]) is None:
        yield (("data", _NEEDED[d.set]), ("data", "set")), f'data.set = "{d.set}" needs data.{_NEEDED[d.set]}'
    for key, sets in _SET_KEYS.items():
        if getattr(d, key) != DataSection.model_fields[key].default and d.set not in sets:
            names = " or ".join(f'"{name}"' for name in sets)
            yield (("data", key),), f'data.{key} is for data.set = {names}, but the set is "{d.set}"'
    if d.set == "mnist5k" and d.size not in (None, (16, 16), (28, 28)):
        yield (("data", "size"),), 'data.set = "mnist5k" has data.size = 16 or 28'
    if d.size is not None and d.size[0] * d.size[1] > MAX_VALUES:
        size = f"data.size = {list(d.size)} has {d.size[0] * d.size[1]:,} values"
        yield (("data", "size"),), f"{size}; a sample has at most {MAX_VALUES:,}: make pictures smaller"
    if d.function is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", d.function):
        yield (("data", "function"),), f'data.function = "{d.function}": write it as "module:name"'
    series = d.set == "watch" or d.window is not None or d.features is not None
    if d.test_share != 0.2 and (d.test_path is not None or (d.test_per_class is not None and not series)):
        yield (
            (("data", "test_share"),),
            "data.test_share holds out test samples: leave out data.test_path and data.test_per_class",
        )
    if d.set == "watch" and d.test_share != 0.2 and c.tasks.by == "class":
        yield (
            (("data", "test_share"), ("tasks", "by")),
            'data.test_share: "watch" has test people of its own, unless tasks.by = "group"',
        )
    yield from _table_conflicts(d)
    yield from _series_conflicts(d)
    yield from _task_conflicts(c)


def _table_conflicts(d: DataSection) -> Iterator[_Conflict]:
    """Find conflicts between the columns of a table."""
    roles = {"label": d.label, "group": d.group, "recording": d.recording}
    for key in ("group", "recording"):
        if roles[key] == d.label:
            yield (("data", key), ("data", "label")), f"data.{key} and data.label are the same column, {d.label}"
    for name, times in Counter(d.columns or ()).items():
        if times > 1:
            yield (("data", "columns"),), f"data.columns names {name} twice"
        for key, column in roles.items():
            if name == column:
                yield (("data", "columns"), ("data", key)), f"data.columns names {name}, which is data.{key}"


def _series_conflicts(d: DataSection) -> Iterator[_Conflict]:
    """Find conflicts between options of time series and their features."""
    features, own = d.features or (), d.set != "watch"
    for key in ("hop", "recording", "features"):
        # A sample of an npz or a function may be a window already.
        if getattr(d, key) is not None and own and d.window is None and (d.set == "csv" or key == "hop"):
            yield (("data", key),), f"data.{key} needs data.window, the time steps of a window"
    if "raw" in features and len(features) > 1:
        yield (("data", "features"),), 'data.features: "raw" is every value of a window and stands alone'
    if len(set(features)) != len(features):
        yield (("data", "features"),), "data.features names a feature twice"
    if "bands" in features and own and d.rate is None:
        yield (("data", "rate"), ("data", "features")), "data.features: bands needs data.rate, time steps per second"
    rate = d.rate if own else WATCH_RATE
    ascending = all(a < b for a, b in itertools.pairwise((0.0, *d.bands)))
    if not ascending or (rate is not None and d.bands[-1] >= rate / 2):
        yield (("data", "bands"), ("data", "rate")), "data.bands have to rise from above 0 to below half of data.rate"


def _task_conflicts(c: Config) -> Iterator[_Conflict]:
    what = "group" if c.tasks.by == "group" else "class"
    split = c.tasks.split
    if split is not None:
        flat = [str(name) for task in split for name in task]
        if not split or not all(split):
            plural = "groups" if what == "group" else "classes"
            yield (("tasks", "split"),), f"tasks.split has no tasks, or a task without {plural}"
        repeated = sorted(name for name, times in Counter(flat).items() if times > 1)
        if repeated:
            yield (("tasks", "split"),), f"tasks.split names {what} {repeated[0]} more than once"
        both = sorted(set(flat) & {str(n) for n in c.initial.base_classes}) if what == "class" else []
        if both:
            yield (
                (("tasks", "split"), ("initial", "base_classes")),
                f"class {both[0]} is a base class and in a task",
            )
    if what == "group":
        yield from _group_conflicts(c)
    elif c.tasks.groups_per_task != 1:
        yield (("tasks", "groups_per_task"),), 'tasks.groups_per_task needs tasks.by = "group"'
    if c.initial_train == "base" and not c.initial.base_classes and what == "class":
        yield (
            (("initial", "base_classes"), ("initial", "train")),
            'initial.train = "base" needs initial.base_classes',
        )
    if c.initial_train != "base" and c.initial.base_classes and not c.model.imported:
        yield (("initial", "base_classes"),), 'initial.base_classes needs initial.train = "base"'
    if c.tasks.first == "host" and c.initial_train != "first_task" and not c.model.imported:
        yield (
            (("tasks", "first"), ("initial", "train")),
            'tasks.first = "host" needs initial.train = "first_task"',
        )


def _group_conflicts(c: Config) -> Iterator[_Conflict]:
    """Find options that tasks by group cannot have."""
    by = ("tasks", "by")
    if c.data.set not in ("watch", "npz", "csv", "function"):
        yield (by,), f'tasks.by = "group": data.set = "{c.data.set}" has no groups'
    if c.data.set == "csv" and c.data.group is None:
        yield (("data", "group"), by), 'tasks.by = "group" needs data.group, the column with the group'
    if c.tasks.classes_per_task != 2:
        yield (("tasks", "classes_per_task"),), 'tasks.by = "group" has tasks.groups_per_task, not classes_per_task'
    if c.tasks.split is not None and c.tasks.groups_per_task != 1:
        yield (("tasks", "groups_per_task"), ("tasks", "split")), "tasks.split replaces tasks.groups_per_task"
    if c.initial_train == "base" or c.initial.base_classes:
        yield (
            (("initial", "base_classes"), ("initial", "train"), by),
            'classes that the model ships with need tasks.by = "class"; by group, tasks.first = "host" is the way',
        )


def _model_conflicts(c: Config) -> Iterator[_Conflict]:
    m = c.model
    ways = [key for key in ("layers", "path", "function", "hidden") if key in m.model_fields_set]
    if len(ways) > 1:
        yield (
            tuple(("model", key) for key in ways),
            f"model.{ways[0]} and model.{ways[1]} are two ways to give the network: leave one out",
        )
    if m.layers == ():
        yield (("model", "layers"),), "model.layers is empty: name at least one layer before the output layer"
    if m.freeze is not None and m.train_last is not None:
        yield (
            (("model", "train_last"), ("model", "freeze")),
            "model.freeze and model.train_last say the same in two ways: leave one out",
        )
    if m.latent and m.freeze is None and m.train_last is None:
        yield (("model", "latent"),), "model.latent needs frozen layers: set model.freeze or model.train_last"
    if m.input is not None and not m.imported:
        yield (("model", "input"),), "model.input is for a model from Keras (model.path or model.function)"
    if m.path is not None and m.path.suffix not in (".keras", ".h5", ".hdf5"):
        yield (("model", "path"),), f"model.path has to be a .keras or .h5 file, not {m.path.name}"
    if m.function is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", m.function):
        yield (("model", "function"),), f'model.function has to be "module:function", not {m.function!r}'
    for number, message in layer_conflicts(m.layers or ()):
        yield (("model", f"layers.{number}"), ("model", "layers")), f"model.layers: entry {number}: {message}"


def _method_conflicts(c: Config) -> Iterator[_Conflict]:
    m = c.method
    if m.name is not Method.FINETUNE and m.buffer == 0:
        yield (
            (("method", "buffer"),),
            f'method.buffer = 0 leaves {m.name} nothing to replay: use name = "finetune"',
        )
    if m.name is Method.DERPP and m.alpha == 0.0 and m.beta == 0.0:
        yield (
            (("method", "alpha"), ("method", "beta")),
            ('der++ with method.alpha = 0 and method.beta = 0 replays nothing: use name = "finetune"'),
        )


def _sparcl_conflicts(c: Config) -> Iterator[_Conflict]:
    interval, (updates, epochs) = c.tdm.interval, c.update_interval
    if abs(interval - epochs / updates) > 0.01 * interval:
        yield (("tdm", "interval"),), f"tdm.interval = {interval} is neither a whole number of epochs nor 1/U"
    if c.dgm.enabled and c.dgm.sparsity is not None and c.dgm.sparsity < c.sparsity.weights:
        yield (
            (("dgm", "sparsity"), ("sparsity", "weights")),
            (
                f"dgm.sparsity = {c.dgm.sparsity} is less than sparsity.weights = {c.sparsity.weights}: "
                "an absent weight has no gradient"
            ),
        )
    if c.ddr.enabled and c.ddr_until > c.method.epochs:
        yield (
            (("ddr", "until"), ("method", "epochs")),
            (f"ddr.until = {c.ddr_until} is more than method.epochs = {c.method.epochs}"),
        )
    if c.ddr.enabled and c.ddr.rho < 0.001:
        yield (("ddr", "rho"),), "ddr.rho is below 0.001 and removes nothing: set ddr.enabled = false"
    if c.tdm.enabled and c.tdm.p_inter > c.sparsity.weights > 0.0:
        yield (
            (("tdm", "p_inter"), ("sparsity", "weights")),
            (
                f"tdm.p_inter = {c.tdm.p_inter} is more than the share of free places, "
                f"sparsity.weights = {c.sparsity.weights}"
            ),
        )


def load(path: Path, overrides: Sequence[str] = (), seed: int | None = None) -> Config:
    """Read and check an experiment file.

    ``overrides``: ``section.key=value`` in TOML's syntax for values; a bare word
    is taken as a string.  ``seed`` replaces ``experiment.seed``.  Raises
    ``UserError`` with one line for each mistake.
    """
    text, tree = read_toml(path, "no such experiment file")
    places = _places(path, text)
    for option in overrides:
        section, key, value = _override(option)
        target = tree.setdefault(section, {})
        if isinstance(target, dict):
            target[key] = value
        places[section, key] = f"--set {option}"
        places.setdefault((section, ""), f"--set {option}")
    experiment = tree.setdefault("experiment", {})
    if isinstance(experiment, dict):
        experiment.setdefault("name", path.stem)
        if seed is not None:
            experiment["seed"] = seed
            places["experiment", "seed"] = "--seed"
    return _resolve_paths(_validate(tree, path, places), path)


def read_toml(path: Path, missing: str) -> tuple[str, dict[str, Any]]:
    """Read a TOML file: its text and its values; ``missing``: the message if there is no file.

    Raises ``UserError`` unless it is a file of UTF-8 and TOML, not too large or nested too deeply.
    """
    try:
        text = files.read_text(path, LARGEST_EXPERIMENT)
    except FileNotFoundError:
        raise UserError(f"{path}: {missing}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        tree = _parsed(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(_syntax_error(path, text, error)) from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return text, tree


_PIECES = re.compile(r"[=,{}\[\]\n]")
_PART = re.compile(r"""\.[ \t]*[\w"'-]""")
"""A dotted key continues: the parts between the characters that end keys."""


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML; raises ``ValueError`` also for what TOML allows but no option needs."""
    # tomllib's time grows with the square of a key's number of parts.
    if any(len(_PART.findall(piece)) > DEEPEST for piece in _PIECES.split(text)):
        raise ValueError("a key has too many parts")
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("lists or tables are nested too deeply") from None
    except ValueError:  # Python reads no integers of thousands of digits
        raise ValueError("holds a number that is too large") from None
    _check_values(tree)
    return tree


def _check_values(tree: dict[str, Any]) -> None:
    """Raises ``ValueError`` for values that cannot be worked with, or shown."""
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        if any(isinstance(value, int) and abs(value) >= 1 << 63 for value in level):
            raise ValueError("holds an integer of more than 64 bits")
        inner = (
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        )
        level = [value for values in inner for value in values]
    if level:
        raise ValueError("lists or tables are nested too deeply")


def to_json(config: Config) -> str:
    """The options that were set, with absolute paths; any process makes the same configuration from them."""
    return config.model_dump_json(by_alias=True, exclude_unset=True)


def from_json(text: str) -> Config:
    """The inverse of ``to_json``; raises pydantic's ``ValidationError`` for anything else."""
    return Config.model_validate(_tuples(json.loads(text)))


def _validate(tree: Mapping[str, Any], path: Path, places: Mapping[_Key, str]) -> Config:
    try:
        return Config.model_validate(_tuples(tree))
    except ValidationError as error:
        details = error.errors(include_url=False)
        # Leaving out wrong entries makes a list too short as well.
        blamed = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
        real = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in blamed]
        described = (_describe(detail, path, places) for detail in real[: 10 * MOST_MISTAKES])
        lines = list(dict.fromkeys(shortened(line, 2000) for line in described))
        more = [f"{path}: and more mistakes"] if len(lines) > MOST_MISTAKES else []
        raise UserError("\n".join([*lines[:MOST_MISTAKES], *more])) from None


def resolve(path: Path) -> Path:
    """Resolve symbolic links; raises ``UserError`` if the path is invalid."""
    try:
        path = path.resolve()
        str(path).encode("utf-8")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)  # pathlib's own questions hide errors, depending on the version of Python
        return path
    except UnicodeEncodeError:
        raise UserError(f"{str(path)!a}: a name in it is not UTF-8: rename the file or folder") from None
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, links in a circle
        reason = error.strerror if isinstance(error, OSError) else str(error)[:200]
        raise UserError(f"{shortened(str(path))!r} is not a valid path: {reason}") from None


def shortened(text: str, most: int = 200) -> str:
    """Shorten a text from a file for a message."""
    return text if len(text) <= most else f"{text[:most]} ..."


def _resolve_paths(config: Config, path: Path) -> Config:
    """Make paths independent of the current directory; a module of data lies beside the experiment file by default."""
    given = {"path": config.data.path, "test_path": config.data.test_path}
    if config.data.set == "function" and config.data.path is None:
        given["path"] = Path()
    resolved = {key: resolve(path.parent / value) for key, value in given.items() if value is not None}
    data = config.data.model_copy(update=resolved)
    sections = {"data": data, "model": _resolve_model(config.model, path), "link": _resolve_link(config.link, path)}
    return config.model_copy(update=sections)


def _resolve_link(link: LinkSection, path: Path) -> LinkSection:
    kind, _, name = (link.key or "").partition(":")
    return link.model_copy(update={"key": f"file:{resolve(path.parent / name)}"}) if kind == "file" else link


def _resolve_model(model: ModelSection, path: Path) -> ModelSection:
    """A module beside the experiment file becomes ``/its/path.py:function``."""
    if model.path is not None:
        return model.model_copy(update={"path": resolve(path.parent / model.path)})
    if model.function is not None:
        module, _, function = model.function.partition(":")
        beside = resolve(path.parent / (module.replace(".", "/") + ".py"))
        if beside.is_file():
            return model.model_copy(update={"function": f"{beside}:{function}"})
    return model


def _tuples(value: Any) -> Any:
    """Turn TOML arrays into tuples, the only sequence the strict, frozen models take."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _override(option: str) -> tuple[str, str, Any]:
    """Split ``section.key=value``; the value is TOML, or else a plain string."""
    name, equals, raw = option.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot or not section or not key:
        raise UserError(f"--set {option}: write it as section.key=value, for example sparsity.weights=0.9")
    raw = raw.strip()
    try:
        return section, key, _parsed(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[^\s\[\]{}\"',=#]+", raw):
            return section, key, raw
        raise UserError(f"--set {shortened(option)}: {shortened(raw)!r} is not a TOML value") from None
    except ValueError as error:
        raise UserError(f"--set {shortened(option)}: {error}") from None


_HEADER = re.compile(r"\s*\[+([^\[\]#]+)\]+\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _places(path: Path, text: str) -> dict[_Key, str]:
    """``file:line`` of each (section, key), of a section under the key ``""``, of entry n of a list as ``key.n``."""
    places: dict[_Key, str] = {}
    section: list[str] = []
    keys: list[str] = []
    entries = 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = [_unquote(part) for part in header[1].split(".")]
            places.setdefault((section[0], ""), f"{path}:{number}")
            if len(section) > 1:
                # Another entry of [[section.key]].
                entries = entries + 1 if section == keys[:-1] else 1
                places.setdefault((section[0], section[1]), f"{path}:{number}")
                places[section[0], f"{section[1]}.{entries}"] = f"{path}:{number}"
        elif assignment := _ASSIGNMENT.match(line):
            parts = [_unquote(part) for part in assignment[1].split(".")]
            keys = [*section, *parts]
            places.setdefault((keys[0], ""), f"{path}:{number}")
            if len(keys) > 1:
                places.setdefault((keys[0], keys[1]), f"{path}:{number}")
            if len(section) < 2:
                entries = 0
        elif len(keys) == 2 and line.lstrip().startswith("{"):
            for _ in range(line.count("{")):
                entries += 1
                places[keys[0], f"{keys[1]}.{entries}"] = f"{path}:{number}"
    return places


def _unquote(name: str) -> str:
    return name.strip().strip("\"'")


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """TOML's own message with ``file:line`` in front."""
    message = str(error)
    match = re.search(r"\s*\(at line (\d+), column (\d+)\)", message)
    if match:
        return f"{path}:{match[1]}: TOML syntax: {message.replace(match[0], '')} (column {match[2]})"
    return f"{path}:{len(text.splitlines())}: TOML syntax: {message}"


def _place(keys: Sequence[_Key], path: Path, places: Mapping[_Key, str]) -> str:
    """The most precise place known of any of the keys."""
    for key in keys:
        if key in places:
            return places[key]
    for section, _ in keys:
        if (section, "") in places:
            return places[section, ""]
    return str(path)


def _describe(detail: ErrorDetails, path: Path, places: Mapping[_Key, str]) -> str:
    """One of pydantic's errors as a line of text for the user."""
    context = detail.get("ctx", {})
    if detail["type"] == "conflict":
        return f"{_place(context['keys'], path, places)}: {context['message']}"
    section = str(detail["loc"][0])
    key = str(detail["loc"][1]) if len(detail["loc"]) > 1 else ""
    place = _place([(section, key)], path, places)
    if (section, key) == ("model", "layers") and len(detail["loc"]) > 2:
        number = int(detail["loc"][2]) + 1
        place = places.get((section, f"{key}.{number}"), place)
        return f"{place}: model.layers: entry {number}: {_entry_error(detail)}"
    if detail["type"] == "extra_forbidden":
        return f"{place}: {_unknown(section, key)}"
    if not key:
        return f"{place}: [{section}] has to be a section"
    return f"{place}: {section}.{key}: {_expected(detail, section, key)}"


def _unknown(section: str, key: str) -> str:
    """Unknown section or key, with the nearest known name; sections count as well as keys."""
    if not key:
        known = list(Config.model_fields)
        near = difflib.get_close_matches(section[:LONGEST], known, 1)
        hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(known)}"
        return f"unknown section [{section}]; {hint}"
    known = list(_fields(section))
    word = key[:LONGEST]
    near = difflib.get_close_matches(word, known, 1) or difflib.get_close_matches(word, [*known, section], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"unknown key {key!r} in [{section}]; {hint}"


def _entry_error(detail: ErrorDetails) -> str:
    """Describe a mistake in an entry of ``model.layers``."""
    types = {kind: entry for entry in LAYER_ENTRIES for kind in get_args(entry.model_fields["type"].annotation)}
    _, _, _, *inner = detail["loc"]
    if detail["type"] == "union_tag_not_found":
        return f"a layer needs a type: {', '.join(types)}"
    if detail["type"] == "union_tag_invalid":
        kind = str(detail.get("ctx", {}).get("tag", ""))
        near = difflib.get_close_matches(kind[:LONGEST], types, 1)
        return f"unknown type {kind!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(types)}")
    if len(inner) < 2:
        return f'has to be a table such as {{ type = "dense", units = 64 }}, not {detail["input"]!r}'
    kind, key = str(inner[0]), str(inner[1])
    fields = {info.alias or name: info for name, info in types[kind].model_fields.items()}
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key[:LONGEST], fields, 1)
        return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(fields)}")
    if detail["type"] == "missing":
        return f"{kind} needs {key!r} ({fields[key].description})"
    return f"{key}: {_sentence(detail)} ({fields[key].description})"


def _fields(section: str) -> dict[str, Any]:
    model = cast(type[BaseModel], Config.model_fields[section].annotation)
    return dict(model.model_fields)


def _expected(detail: ErrorDetails, section: str, key: str) -> str:
    """Describe the expected value: pydantic's sentence, with the value found."""
    entry = f"entry {detail['loc'][2] + 1}: " if len(detail["loc"]) > 2 and isinstance(detail["loc"][2], int) else ""
    return f"{entry}{_sentence(detail)} ({_fields(section)[key].description})"


def _sentence(detail: ErrorDetails) -> str:
    """Pydantic's sentence with the value found."""
    value = detail["input"]
    shown = f"{value!r}" if not isinstance(value, tuple) else str(list(value)).replace("(", "[").replace(")", "]")
    message = (
        detail["msg"]
        .replace("Input should be", "has to be")
        .replace("valid tuple", "list")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    return f"{message}, not {shown}"


def options_table() -> str:
    """All options as a Markdown document: the source of docs/reference/experiment.md."""
    lines: list[str] = []
    for section, info in Config.model_fields.items():
        model = cast(type[BaseModel], info.annotation)
        lines += [
            f"## [{section}]",
            "",
            inspect.cleandoc(model.__doc__ or ""),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in model.model_fields.items():
            default = "" if field.default is None else f"`{_toml(field.default)}`"
            lines.append(f"| `{key}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
        lines += ["", *(_entries_table() if section == "model" else [])]
    return "\n".join(lines)


def _entries_table() -> list[str]:
    """Table of the possible entries of ``model.layers``."""
    lines = ["Types of `layers`:", "", "| type | keys | meaning |", "|---|---|---|"]
    for entry in LAYER_ENTRIES:
        keys = [
            f"`{info.alias or name}`" + (f" = `{_toml(info.default)}`" if info.default not in (None, ...) else "")
            for name, info in entry.model_fields.items()
            if name != "type" and not info.is_required()
        ]
        needed = [f"**`{info.alias or name}`**" for name, info in entry.model_fields.items() if info.is_required()]
        kinds = ", ".join(f"`{kind}`" for kind in get_args(entry.model_fields["type"].annotation))
        lines.append(f"| {kinds} | {', '.join([*needed[1:], *keys])} | {(entry.__doc__ or '').strip()} |")
    return [*lines, ""]


def _toml(value: object) -> str:
    """Write a default as in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def write_options_page() -> Path:
    """Rewrites the table in docs/reference/experiment.md; its introduction stays."""
    page = Path(__file__).resolve().parents[1] / "docs" / "reference" / "experiment.md"
    introduction, _, _ = page.read_text(encoding="utf-8").partition("## [experiment]")
    page.write_text(introduction + options_table(), encoding="utf-8")
    return page


if __name__ == "__main__":
    print(write_options_page())
