# SPDX-License-Identifier: Apache-2.0
"""The experiment file: TOML to frozen, checked models.

Every option is a field with a description and a default; the defaults are the
recipe of docs/algorithm.md, so a short file is a good experiment.  Errors name
the file and the line, or the ``--set`` option, that has to change.
"""

from __future__ import annotations

import difflib
import keyword
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from generator.artefacts import DdrScore, Growth, Method, SingleHead
from generator.errors import UserError

ClassName: TypeAlias = int | str
"""A class as the data set names it: its label or its name."""

MAX_CLASSES = 255
"""A label is one byte and 255 means none (docs/algorithm.md, ``class_task``)."""

RESERVED_NAMES = ("current", "emulator")
"""Folders of ``build/`` that are no experiment's (generator/pipeline.py, host_tools/emulator.py)."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Width = Annotated[int, Field(ge=1, le=65535)]


class _Section(BaseModel):
    """Base of all sections: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ExperimentSection(_Section):
    """What the experiment is called and its seed."""

    name: str = Field("experiment", description="Name of the experiment, an identifier; default: the file's name")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of everything random, on the host and on the board")


class DataSection(_Section):
    """The data set."""

    set: Literal["mnist5k", "digits", "watch", "npz"] = Field("mnist5k", description="Data set")
    path: Path | None = Field(
        None,
        strict=False,
        description="npz only: file with x_train, y_train, x_test, y_test; relative to this file",
    )
    size: Literal[16, 28] = Field(16, description="mnist5k only: side of the picture, 16 (2x2 mean) or 28")
    train_per_class: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Training samples of each class; default: 400 for mnist5k, else all there are",
    )
    test_per_class: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Test samples of each class; default: 100 for mnist5k, else all there are",
    )


class TasksSection(_Section):
    """How the classes are cut into tasks."""

    classes_per_task: int = Field(2, ge=1, le=MAX_CLASSES, description="Classes of each task, in the data set's order")
    split: tuple[tuple[ClassName, ...], ...] | None = Field(
        None, description="The classes of each task, written out; replaces classes_per_task"
    )
    first: Literal["board", "host"] = Field(
        "board",
        description="Who learns the first task: the board; or the host, then the board starts with the "
        "second task and gets the replay records of the first",
    )


class ModelSection(_Section):
    """The network: fully connected layers with ReLU."""

    hidden: tuple[Width, ...] = Field((512,), min_length=1, max_length=8, description="Widths of the hidden layers")


class InitialSection(_Section):
    """The initial model, made on the host."""

    train: Literal["first_task", "base", "none"] = Field(
        "first_task", description="What the host trains it on: the first task, the base classes, or nothing"
    )
    epochs: int = Field(5, ge=1, le=1000, description="Epochs on the host")
    lr: float = Field(0.03, gt=0.0, le=10.0, description="Learning rate on the host (SGD)")
    batch: int = Field(8, ge=1, le=4096, description="Batch size on the host")
    base_classes: tuple[ClassName, ...] = Field(
        (), description="base only: classes the model ships with; they are in no task"
    )
    rescale: bool = Field(True, description="Scale kept weights to the variance of a dense initialisation")
    mask: Literal["data", "magnitude"] = Field(
        "data", description="First mask: by |w| times the norm of its input, or by |w| alone"
    )
    mask_samples: int = Field(64, ge=1, le=65535, description="Samples the norm of an input is taken from")


class SparsitySection(_Section):
    """Sparsity of the weights."""

    weights: float = Field(0.92, ge=0.0, le=0.999, description="Share of the weights that are absent in sparse layers")
    block: Literal[1, 2, 4] = Field(1, description="Consecutive outputs that are present or absent together")
    scope: Literal["layer", "global"] = Field("layer", description="The share holds in each layer, or over all of them")
    dense_output: bool = Field(True, description="Keep the output layer dense")


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
    buffer: int = Field(200, ge=0, le=65534, description="Replay slots; finetune does not use them")
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

    @property
    def gradient_sparsity(self) -> float:
        """Share of all weights of a sparse layer that are not updated (``dgm.sparsity`` with its default).

        The default gives the pairs of the paper: 0.80 beside 0.75, 0.92 beside 0.90, 0.96 beside 0.95.
        """
        if self.dgm.sparsity is not None:
            return self.dgm.sparsity
        return round(self.sparsity.weights + 0.2 * (1.0 - self.sparsity.weights), 9)

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
    """Options that do not go together: the keys to blame, the most likely one first, and what to do."""
    name = c.experiment.name
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        yield (
            (("experiment", "name"),),
            (f"experiment.name {name!r} is not an identifier (letters, digits, underscores): set [experiment] name"),
        )
    if name.lower() in RESERVED_NAMES:
        yield (("experiment", "name"),), f"experiment.name {name!r} is taken by a folder of build/: set another name"
    yield from _data_conflicts(c)
    yield from _method_conflicts(c)
    yield from _sparcl_conflicts(c)


def _data_conflicts(c: Config) -> Iterator[_Conflict]:
    if c.data.set == "npz" and c.data.path is None:
        yield (("data", "path"), ("data", "set")), 'data.set = "npz" needs data.path'
    if c.data.set != "npz" and c.data.path is not None:
        yield (("data", "path"),), f'data.path is for data.set = "npz", but the set is "{c.data.set}"'
    if c.data.size != 16 and c.data.set != "mnist5k":
        yield (("data", "size"),), f'data.size is for data.set = "mnist5k", but the set is "{c.data.set}"'
    split = c.tasks.split
    if split is not None:
        flat = [str(name) for task in split for name in task]
        if not split or not all(split):
            yield (("tasks", "split"),), "tasks.split has no tasks, or a task without classes"
        repeated = sorted({n for n in flat if flat.count(n) > 1})
        if repeated:
            yield (("tasks", "split"),), f"tasks.split names class {repeated[0]} more than once"
        both = sorted(set(flat) & {str(n) for n in c.initial.base_classes})
        if both:
            yield (
                (("tasks", "split"), ("initial", "base_classes")),
                f"class {both[0]} is a base class and in a task",
            )
    if c.initial.train == "base" and not c.initial.base_classes:
        yield (
            (("initial", "base_classes"), ("initial", "train")),
            'initial.train = "base" needs initial.base_classes',
        )
    if c.initial.train != "base" and c.initial.base_classes:
        yield (("initial", "base_classes"),), 'initial.base_classes needs initial.train = "base"'
    if c.tasks.first == "host" and c.initial.train != "first_task":
        yield (
            (("tasks", "first"), ("initial", "train")),
            'tasks.first = "host" needs initial.train = "first_task"',
        )


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such experiment file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(_syntax_error(path, text, error)) from None
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


def _validate(tree: Mapping[str, Any], path: Path, places: Mapping[_Key, str]) -> Config:
    try:
        return Config.model_validate(_tuples(tree))
    except ValidationError as error:
        lines = dict.fromkeys(_describe(detail, path, places) for detail in error.errors(include_url=False))
        raise UserError("\n".join(lines)) from None


def _resolve_paths(config: Config, path: Path) -> Config:
    """Make ``data.path`` independent of the current directory."""
    if config.data.path is None:
        return config
    resolved = (path.parent / config.data.path).resolve()
    return config.model_copy(update={"data": config.data.model_copy(update={"path": resolved})})


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, the only sequence the strict, frozen models take."""
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
        return section, key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[^\s\[\]{}\"',=#]+", raw):
            return section, key, raw
        raise UserError(f"--set {option}: {raw!r} is not a TOML value") from None


_HEADER = re.compile(r"\s*\[+\s*([^\[\]#]+?)\s*\]+\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _places(path: Path, text: str) -> dict[_Key, str]:
    """``file:line`` of each (section, key), and of each section under the key ``""``."""
    places: dict[_Key, str] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _unquote(header[1])
            places.setdefault((section, ""), f"{path}:{number}")
        elif assignment := _ASSIGNMENT.match(line):
            parts = [_unquote(part) for part in assignment[1].split(".")]
            keys = [section, *parts] if section else parts
            places.setdefault((keys[0], ""), f"{path}:{number}")
            if len(keys) > 1:
                places.setdefault((keys[0], keys[1]), f"{path}:{number}")
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
    """One of pydantic's errors as a line for the user."""
    context = detail.get("ctx", {})
    if detail["type"] == "conflict":
        return f"{_place(context['keys'], path, places)}: {context['message']}"
    section = str(detail["loc"][0])
    key = str(detail["loc"][1]) if len(detail["loc"]) > 1 else ""
    place = _place([(section, key)], path, places)
    if detail["type"] == "extra_forbidden":
        return f"{place}: {_unknown(section, key)}"
    if not key:
        return f"{place}: [{section}] has to be a section"
    return f"{place}: {section}.{key}: {_expected(detail, section, key)}"


def _unknown(section: str, key: str) -> str:
    """Unknown section or key, with the nearest known name; sections count as well as keys."""
    if not key:
        known = list(Config.model_fields)
        near = difflib.get_close_matches(section, known, 1)
        hint = f"did you mean [{near[0]}]?" if near else f"there are {', '.join(known)}"
        return f"unknown section [{section}]; {hint}"
    known = list(_fields(section))
    near = difflib.get_close_matches(key, known, 1) or difflib.get_close_matches(key, [*known, section], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"unknown key {key!r} in [{section}]; {hint}"


def _fields(section: str) -> dict[str, Any]:
    model = cast(type[BaseModel], Config.model_fields[section].annotation)
    return dict(model.model_fields)


def _expected(detail: ErrorDetails, section: str, key: str) -> str:
    """What the value should have been; pydantic's sentences with the value found."""
    value = detail["input"]
    shown = f"{value!r}" if not isinstance(value, tuple) else str(list(value)).replace("(", "[").replace(")", "]")
    message = detail["msg"]
    message = (
        message.replace("Input should be", "has to be")
        .replace("valid tuple", "list")
        .replace("a valid ", "a ")
        .replace("a integer", "an integer")
    )
    if len(detail["loc"]) > 2 and isinstance(detail["loc"][2], int):
        message = f"entry {detail['loc'][2] + 1}: {message}"
    return f"{message}, not {shown} ({_fields(section)[key].description})"


def options_table() -> str:
    """All options as a Markdown document: the source of docs/experiment.md."""
    lines: list[str] = []
    for section, info in Config.model_fields.items():
        model = cast(type[BaseModel], info.annotation)
        lines += [
            f"## [{section}]",
            "",
            (model.__doc__ or "").strip(),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for key, field in model.model_fields.items():
            default = "" if field.default is None else f"`{_toml(field.default)}`"
            lines.append(f"| `{key}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    """A default as one would write it in the file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def write_options_page() -> Path:
    """Rewrites the table in docs/experiment.md; its introduction stays."""
    page = Path(__file__).resolve().parents[1] / "docs" / "experiment.md"
    introduction, _, _ = page.read_text(encoding="utf-8").partition("## [experiment]")
    page.write_text(introduction + options_table(), encoding="utf-8")
    return page


if __name__ == "__main__":
    print(write_options_page())
