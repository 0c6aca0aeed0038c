# SPDX-License-Identifier: Apache-2.0
"""Whole experiments over lines that lose, double, swap, flip and hold back bytes, and that break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from sparcl_mcu.generator import pipeline
from sparcl_mcu.generator.config import LinkSection
from sparcl_mcu.generator.pipeline import Project
from sparcl_mcu.host_tools import link, report
from sparcl_mcu.host_tools.emulator import Emulator
from sparcl_mcu.host_tools.link import DeviceError, LinkError
from sparcl_mcu.host_tools.recording import is_complete
from sparcl_mcu.host_tools.stream import RECORDING, StreamResult, stream
from sparcl_mcu.host_tools.validate import ValidationResult, validate
from tests.boards.test_end_to_end import EXPERIMENT, STREAMED
from tests.boards.test_end_to_end_random import EmulatedBoard, cross_build
from tests.firmware.native import Hardware, Process, build
from tests.host_tools.fake_board import FakeBoard
from tests.line import Noise, Proxy

pytestmark = pytest.mark.board


KEY = bytes(range(7, 39))
KEY_NAME = "SPARCL_TEST_KEY"


@dataclass
class Bench:
    """A board that runs an experiment, and the state it has to end in."""

    project: Project
    board: Hardware
    expected: int
    checked: ValidationResult | None = None
    """Of the last session."""

    def learn(self, line: Proxy, *, resume: bool = False) -> StreamResult:
        """A session through the line; whatever has happened on it, the recording agrees with the reference."""
        try:
            return stream(self.project, line.url, resume=resume)
        finally:
            assert self.board.alive(), self.board.errors()
            self.checked, _ = validate(self.project)
            assert self.checked.mismatches == 0, self.checked.first

    def check(self, result: StreamResult) -> None:
        """Everything was learned correctly."""
        assert result.complete
        assert is_complete(self.project.folder / RECORDING)
        assert self.checked is not None
        assert self.checked.bit_exact
        assert result.state_digest == self.expected
        assert sum(epoch.steps for epoch in result.epochs) <= result.steps


@pytest.fixture(autouse=True)
def _quick_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of these boards thinks for long: what does not come soon is lost."""
    monkeypatch.setattr(link, "PROD", 0.05)
    monkeypatch.setattr(link, "SHORTEST_WAIT", 0.2)


@pytest.fixture(params=["resident", "streamed"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Both ways of training, unless a test is about one."""
    return STREAMED[1:] if request.param == "streamed" else ()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, tuple[str, ...]], tuple[Project, Path, int]]:
    """Project, program and final state of a board, made once."""

    @cache
    def made(name: str, options: tuple[str, ...]) -> tuple[Project, Path, int]:
        folder = tmp_path_factory.mktemp(name)
        (folder / "tiny.toml").write_text(EXPERIMENT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARCL_BUILD", str(folder / "build"))
            patch.setenv(KEY_NAME, KEY.hex())
            project = pipeline.generate(folder / "tiny.toml", name, options)
        key = KEY if project.config.link.key else None
        plain = project.config.model_copy(update={"link": LinkSection()})
        with FakeBoard(project.model, name) as fake:
            expected = stream(replace(project, config=plain), fake.url).state_digest
        if name == "native":
            return project, build(project.model, folder, key=key), expected
        return project, cross_build(project.model, name, folder, key=key), expected

    return made


@pytest.fixture
def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make: Callable[[str, tuple[str, ...]], tuple[Project, Path, int]],
    options: tuple[str, ...],
) -> Iterator[Bench]:
    """The board that the test is parametrised with, else the native one."""
    name = getattr(request, "param", "native")
    project, image, expected = make(name, options)
    board: Hardware
    if name == "native":
        board = Process(image, tmp_path)
        board.start()
    else:
        board = EmulatedBoard(Emulator(tmp_path / "board", name), image)
    try:
        yield Bench(replace(project, folder=tmp_path), board, expected)
    finally:
        board.kill()


def tell(bench: Bench, noise: Noise, result: StreamResult) -> None:
    """The figures of docs/evidence/reliability.md: ``pytest tests/boards/test_bad_line.py -rP | grep bytes``."""
    kinds = ", ".join(f"{noise.done[kind]} {kind}" for kind in Noise.KINDS)
    print(
        f"{bench.project.board.name} at {noise.rate:g}: {noise.bytes} bytes, {sum(noise.done.values())} errors "
        f"({kinds}), {result.retries} retries, {result.sessions} sessions, digest {result.state_digest:08x}"
    )


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_byte_in_a_thousand(bench: Bench, seed: int) -> None:
    """The run continues to its end; only the retries show that anything happened."""
    noise = Noise(seed, 1e-3)
    with Proxy(bench.board.url, noise=noise, pty=seed == 2) as line:
        result = bench.learn(line)
    bench.check(result)
    tell(bench, noise, result)
    assert sum(noise.done.values()) > 10
    assert result.retries > 5


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_byte_in_a_hundred(bench: Bench, seed: int) -> None:
    """Large requests hardly ever get through, so they become small; the run ends rightly or says what is wrong."""
    noise = Noise(seed, 1e-2)
    with Proxy(bench.board.url, noise=noise) as line:
        result = _until_it_ends(bench, line)
    bench.check(result)
    tell(bench, noise, result)
    assert sum(noise.done.values()) > 200


def _until_it_ends(bench: Bench, line: Proxy) -> StreamResult:
    for attempt in range(20):
        try:
            return bench.learn(line, resume=attempt > 0)
        except LinkError as error:
            if "--resume" not in str(error):
                raise
    raise AssertionError("it never ends")


@pytest.mark.parametrize(
    ("bench", "options", "rate"),
    [
        ("microbit", (), 1e-3),
        ("emcraft_sf2", (), 1e-3),
        pytest.param("microbit", (), 1e-2, marks=pytest.mark.slow),
        ("emcraft_sf2", (), 1e-2),
    ],
    indirect=["bench"],
)
def test_on_emulated_boards(bench: Bench, rate: float) -> None:
    """With a UART that is polled, and with one that rings."""
    noise = Noise(1, rate)
    with Proxy(bench.board.url, noise=noise) as line:
        result = _until_it_ends(bench, line)
    bench.check(result)
    tell(bench, noise, result)
    assert sum(noise.done.values()) > 5


@pytest.mark.parametrize("requests", [4, 11, pytest.param(25, marks=pytest.mark.slow), 60])
@pytest.mark.parametrize("power", [False, True])
def test_unplugged(bench: Bench, requests: int, power: bool) -> None:
    """The line breaks, on top of the noise, and the board may lose power: `--resume` continues to the same end."""
    with Proxy(bench.board.url, noise=Noise(requests, 1e-3)) as line:
        line.cut_after = requests
        with pytest.raises(LinkError, match="--resume"):
            bench.learn(line)
        if power:
            bench.board.kill()
            line.lead_to(bench.board.start())
        line.mend()
        bench.check(bench.learn(line, resume=True))


@pytest.mark.parametrize(("bench", "options"), [("microbit", ())], indirect=["bench"])
def test_emulator_killed(bench: Bench) -> None:
    """As a board that is unplugged."""
    with Proxy(bench.board.url) as line:
        line.cut_after = 30
        with pytest.raises(LinkError, match="--resume"):
            bench.learn(line)
        bench.board.kill()
        line.lead_to(bench.board.start())
        line.mend()
        bench.check(bench.learn(line, resume=True))


KEYED = (f'link.key="env:{KEY_NAME}"',)


@pytest.mark.parametrize(("bench", "options"), [("native", KEYED), ("microbit", KEYED)], indirect=["bench"])
def test_with_a_shared_key(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed requests end in the same state, also on a bad line; what is kept of the session holds no key."""
    monkeypatch.setenv(KEY_NAME, KEY.hex())
    with Proxy(bench.board.url, noise=Noise(5, 1e-3)) as line:
        line.cut_after = 20
        with pytest.raises(LinkError, match="--resume"):
            bench.learn(line)
        line.mend()
        bench.check(bench.learn(line, resume=True))
    report.write(report.build(bench.project), bench.project)
    kept = [path for path in bench.project.folder.iterdir() if path.is_file() and path.suffix != ".img"]
    assert {"recording.sclr", "report.json", "report.html", "stream.json"} <= {path.name for path in kept}
    for path in kept:
        assert KEY not in path.read_bytes()
        assert KEY.hex().encode() not in path.read_bytes()
    monkeypatch.setenv(KEY_NAME, KEY[::-1].hex())
    with pytest.raises(DeviceError, match="another shared key"):
        stream(bench.project, bench.board.url, fresh=True)
