# SPDX-License-Identifier: Apache-2.0
"""Experiment files: defaults, and errors that name the line to change."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sparcl_mcu.generator import config
from sparcl_mcu.generator.config import Config
from sparcl_mcu.spec.errors import UserError
from sparcl_mcu.spec.types import Method

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(text, encoding="utf-8")
    return path


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    return str(caught.value).replace(str(path), "exp.toml")


def test_an_empty_file_is_the_recipe(tmp_path: Path) -> None:
    c = config.load(write(tmp_path, ""))
    assert c.experiment.name == "exp"
    assert (c.method.name, c.method.alpha, c.method.beta, c.method.lr) == (Method.DERPP, 1.0, 0.5, 0.03)
    assert (c.sparsity.weights, c.tdm.p_intra, c.update_interval) == (0.92, 0.1, (2, 1))
    assert c.gradient_sparsity == pytest.approx(0.936)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_load(path: Path) -> None:
    assert config.load(path).experiment.name == path.stem


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[sparsity]\n# more\nsparcity = 0.9",
            "exp.toml:3: unknown key 'sparcity' in [sparsity]; did you mean 'sparsity'?",
        ),
        (
            "[sparsity]\nweigths = 0.9",
            "exp.toml:2: unknown key 'weigths' in [sparsity]; did you mean 'weights'?",
        ),
        ("\n[sparsty]\nweights = 0.9", "exp.toml:2: unknown section [sparsty]; did you mean [sparsity]?"),
        ("[method]\nlr = 'fast'", "exp.toml:2: method.lr: has to be a number, not 'fast'"),
        ("[method]\nlr = true", "exp.toml:2: method.lr: has to be a number, not True"),
        ("[method]\nepochs = 2.5", "exp.toml:2: method.epochs: has to be an integer, not 2.5"),
        ("[method]\nlr = nan", "exp.toml:2: method.lr: has to be a finite number"),
        ("method.lr = -1", "exp.toml:1: method.lr: has to be greater than 0, not -1"),
        ("[sparsity]\nblock = 3", "exp.toml:2: sparsity.block: has to be 1, 2 or 4, not 3"),
        ("[sparsity]\nweights = 1.0", "exp.toml:2: sparsity.weights: has to be less than or equal to 0.999"),
        (
            "[method]\nname = 'derpp'",
            "exp.toml:2: method.name: has to be 'finetune', 'er' or 'der++', not 'derpp'",
        ),
        ("[model]\nhidden = [10, 'a']", "exp.toml:2: model.hidden: entry 2: has to be an integer, not 'a'"),
        ("[model]\nhidden = []", "exp.toml:2: model.hidden:"),
        ("sparsity = 3", "exp.toml:1: [sparsity] has to be a section"),
        ("[data]\n\nset == 'a'", "exp.toml:3: TOML syntax: Invalid value (column 6)"),
        ("[experiment]\nname = 'a-b'", "exp.toml:2: experiment.name 'a-b' is not an identifier"),
        ("[experiment]\nname = 'current'", "exp.toml:2: experiment.name 'current' is reserved"),
        ("[experiment]\nname = 'emulator'", "exp.toml:2: experiment.name 'emulator' is reserved"),
        ("[tdm]\ninterval = 0.0005", "exp.toml:2: tdm.interval: has to be greater than or equal to 0.001"),
        (
            "[sparsity]\nweights = 0.9\n[dgm]\nenabled = true\nsparsity = 0.8",
            "exp.toml:5: dgm.sparsity = 0.8 is less than sparsity.weights = 0.9",
        ),
        ("[ddr]\nenabled = true\nuntil = 9", "exp.toml:3: ddr.until = 9 is more than method.epochs = 5"),
        ("[ddr]\nenabled = true\nrho = 0.0", "exp.toml:3: ddr.rho"),
        ("[method]\nbuffer = 0", "exp.toml:2: method.buffer = 0 leaves der++ nothing to replay"),
        ("[method]\nalpha = 0\nbeta = 0", "exp.toml:2: der++ with method.alpha = 0"),
        ("[tdm]\ninterval = 1.5", "exp.toml:2: tdm.interval = 1.5 is neither"),
        ("[tdm]\np_inter = 0.95", "exp.toml:2: tdm.p_inter = 0.95 is more than the share of free places"),
        ("[data]\nset = 'npz'", 'exp.toml:2: data.set = "npz" needs data.path'),
        ("[data]\nset = 'digits'\nsize = 28", "exp.toml:3: data.size is for"),
        ("[data]\npath = 'x.npz'", "exp.toml:2: data.path is for"),
        ("[tasks]\nsplit = [[0, 1], [1, 2]]", "exp.toml:2: tasks.split names class 1 more than once"),
        ("[tasks]\nsplit = [[0, 1], []]", "exp.toml:2: tasks.split has no tasks"),
        ("[initial]\ntrain = 'base'", 'exp.toml:2: initial.train = "base" needs initial.base_classes'),
        ("[initial]\nbase_classes = [1]", "exp.toml:2: initial.base_classes needs"),
        ("[tasks]\nfirst = 'host'\n[initial]\ntrain = 'none'", "exp.toml:2: tasks.first"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    assert error_of(tmp_path, text).startswith(message)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    lines = error_of(tmp_path, "[method]\nlr = 0\nepochs = 0\n[tdm]\ncapture = 3").splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "3", "5"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sparsity.weights=2", "--set sparsity.weights=2: sparsity.weights: has to be less than"),
        ("sparsity.weigths=0.5", "--set sparsity.weigths=0.5: unknown key 'weigths'"),
        ("nothing.x=1", "--set nothing.x=1: unknown section [nothing]"),
        ("sparsity", "--set sparsity: write it as section.key=value"),
        ("a=1", "--set a=1: write it as section.key=value"),
        ("model.hidden=[1", "--set model.hidden=[1: '[1' is not a TOML value"),
    ],
)
def test_errors_name_the_override(tmp_path: Path, option: str, message: str) -> None:
    assert error_of(tmp_path, "[sparsity]\nweights = 0.9", option).startswith(message)


def test_overrides_win_and_take_toml_values_or_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, "[method]\nname = 'er'\n[experiment]\nseed = 3")
    c = config.load(path, ["method.name=der++", "model.hidden=[32, 16]", "tdm.enabled=false"], seed=7)
    assert (c.method.name, c.model.hidden, c.tdm.enabled, c.experiment.seed) == (
        Method.DERPP,
        (32, 16),
        False,
        7,
    )


def test_bad_seed_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--seed: experiment.seed"):
        config.load(write(tmp_path, ""), seed=-1)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.toml: no such experiment file"):
        config.load(tmp_path / "gone.toml")


def test_data_path_is_relative_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[data]\nset = 'npz'\npath = 'sub/x.npz'")
    assert config.load(path).data.path == (tmp_path / "sub" / "x.npz").resolve()


@pytest.mark.parametrize(
    ("weights", "gradients"), [(0.75, 0.80), (0.90, 0.92), (0.95, 0.96)], ids=["0.75", "0.90", "0.95"]
)
def test_default_gradient_sparsity_is_the_papers(weights: float, gradients: float) -> None:
    assert Config.model_validate({"sparsity": {"weights": weights}}).gradient_sparsity == pytest.approx(gradients)


@pytest.mark.parametrize(("interval", "expected"), [(0.1, (10, 1)), (0.333, (3, 1)), (1.0, (1, 1)), (3.0, (1, 3))])
def test_update_interval(interval: float, expected: tuple[int, int]) -> None:
    assert Config.model_validate({"tdm": {"interval": interval}}).update_interval == expected


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().method.lr = 0.5  # type: ignore[misc]


def test_every_option_is_described() -> None:
    table = config.options_table()
    for section, info in Config.model_fields.items():
        assert f"## [{section}]" in table
        for key, field in info.annotation.model_fields.items():  # type: ignore[union-attr]
            assert field.description, f"{section}.{key}"


def test_the_page_of_options_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "experiment.md"
    assert page.read_text(encoding="utf-8").endswith(config.options_table()), (
        "run: python -m sparcl_mcu.generator.config, which rewrites the table in docs/reference/experiment.md"
    )
