# SPDX-License-Identifier: Apache-2.0
"""`sparcl sweep`: from a file to jobs, what is kept, the tables; real workers, one of them killed; Ctrl-C."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import fcntl
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO

import pytest

from sparcl_mcu.benchmarks.sweep import cluster as clusters
from sparcl_mcu.benchmarks.sweep import page, plan, results, sweep, work
from sparcl_mcu.benchmarks.sweep.plan import Kind
from sparcl_mcu.benchmarks.sweep.results import Kept, Mean, Result
from sparcl_mcu.host_tools.emulator import EmulatorError, free_port
from sparcl_mcu.host_tools.link import DeviceError
from sparcl_mcu.spec.errors import BoardError, UserError
from sparcl_mcu.spec.paths import ROOT
from tests.holder import other_process

SMALL = """
[data]
set = "digits"

[tasks]
split = [[0, 1], [2, 3]]

[model]
hidden = [16]

[sparsity]
weights = 0.5

[method]
epochs = 2
buffer = 40
"""

SWEEP = """
experiment = "small.toml"
seeds = 2

[[methods]]
name = "SparCL"

[[methods]]
name = "finetune, dense"
set = ["method.name=finetune", "sparsity.weights=0.0", "tdm.enabled=false"]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two methods, two seeds and two arithmetics over a small experiment."""
    monkeypatch.setenv("SPARCL_BUILD", str(tmp_path / "build"))
    (tmp_path / "small.toml").write_text(SMALL)
    path = tmp_path / "small_sweep.toml"
    path.write_text(SWEEP)
    return path


# ---------------------------------------------------------------- from the file to jobs


def test_every_method_with_every_seed_in_every_arithmetic(file: Path) -> None:
    found = plan.load(file)
    assert found.methods == ("SparCL", "finetune, dense")
    assert len(found.jobs) == 2 * (1 + 2 * 2) == len({job.key for job in found.jobs})
    last = next(j for j in found.jobs if (j.method, j.seed, j.kind) == ("finetune, dense", 1, Kind.FLOAT))
    settings = plan.settings(last)
    assert (settings.method.name, settings.sparsity.weights, settings.experiment.seed) == ("finetune", 0.0, 1)
    assert settings.tasks.split == ((0, 1), (2, 3)), "what the experiment file says stays"


def test_seed_by_seed_so_that_an_interrupted_sweep_has_seen_every_method(file: Path) -> None:
    learn = [job for job in plan.load(file).jobs if job.kind is not Kind.COSTS]
    assert [job.seed for job in learn] == [0] * 4 + [1] * 4
    assert {job.method for job in learn[:2]} == {"SparCL", "finetune, dense"}


def test_a_method_has_seeds_of_its_own_unless_the_command_says_how_many(file: Path) -> None:
    file.write_text(SWEEP.replace('name = "SparCL"', 'name = "SparCL"\nseeds = 5'))

    def seeds_of(name: str, given: int | None) -> int:
        return 1 + max(job.seed for job in plan.load(file, seeds=given).jobs if job.method == name)

    names = plan.load(file).methods
    assert [seeds_of(name, None) for name in names] == [5 if name == "SparCL" else 2 for name in names]
    assert {seeds_of(name, 3) for name in names} == {3}


def test_more_seeds_keep_the_keys_of_those_before(file: Path) -> None:
    two, three = ({job.key for job in plan.load(file, seeds=n).jobs} for n in (2, 3))
    assert two < three
    assert len(three - two) == 4


def test_overrides_come_last_and_change_the_keys(file: Path) -> None:
    before, after = plan.load(file), plan.load(file, ("method.buffer=30", "method.name=er"))
    assert {plan.settings(job).method.name.value for job in after.jobs} == {"er"}
    assert {plan.settings(job).method.buffer for job in after.jobs} == {30}
    assert not {job.key for job in before.jobs} & {job.key for job in after.jobs}


def test_a_key_is_that_of_the_settings_the_code_and_the_data(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [job.key for job in plan.load(file).jobs]
    (file.parent / "small.toml").write_text("# a comment changes nothing\n" + SMALL)
    assert [job.key for job in plan.load(file).jobs] == before
    (file.parent / "small.toml").write_text(SMALL.replace("epochs = 2", "epochs = 3"))
    assert not set(before) & {job.key for job in plan.load(file).jobs}
    (file.parent / "small.toml").write_text(SMALL)
    monkeypatch.setattr(plan.sources, "digest", lambda names: b"other code")
    assert not set(before) & {job.key for job in plan.load(file).jobs}


@pytest.mark.parametrize(
    "path",
    ["firmware/boards/native/board.toml", "platformio.ini", "benchmarks/sweep/work.py", "host_tools/metrics.py"],
)
def test_what_is_built_with_and_what_measures_is_part_of_the_key(path: str) -> None:
    assert (ROOT / path).is_file()
    assert any((ROOT / path).is_relative_to(ROOT / name) for name in plan.DEPENDS_ON)
    assert not any(name.startswith("docs") for name in plan.DEPENDS_ON), "a word in a document changes no result"


def test_all_a_key_depends_on_is_there() -> None:
    assert all((ROOT / name).exists() for name in plan.DEPENDS_ON)


def test_another_version_of_a_package_changes_the_keys(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {job.key for job in plan.load(file).jobs}
    monkeypatch.setattr(metadata, "version", lambda package: "0" if package == "keras" else "1")
    assert not before & {job.key for job in plan.load(file).jobs}


def test_only_some_methods(file: Path) -> None:
    assert plan.load(file, only=("dense",)).methods == ("finetune, dense",)
    with pytest.raises(UserError, match=r"--only nothing: .* has the methods SparCL, finetune, dense"):
        plan.load(file, only=("nothing",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment = 3", "experiment: has to be a valid string"),
        (SWEEP.replace("seeds = 2", "seeds = 0"), "seeds: has to be greater than or equal to 1"),
        (SWEEP.replace("seeds = 2", "seed = 2"), "seed: unknown key; there are experiment, seeds, arithmetic"),
        (SWEEP.replace("seeds = 2", 'arithmetic = ["float64"]'), 'arithmetic = "float64": there are "fixed" and'),
        (SWEEP.replace("seeds = 2", 'board = "native"'), "board = 'native': an emulator counts the instructions of"),
        (SWEEP.replace("finetune, dense", "SparCL"), "two methods are called 'SparCL'"),
        (SWEEP.replace('name = "SparCL"', ""), "methods.entry 1.name: is missing"),
        (SWEEP.replace("method.name=finetune", "method.nam=finetune"), "method 'finetune, dense':"),
        (SWEEP.replace("small.toml", "other.toml"), "other.toml: no such experiment file"),
        (SMALL, "unknown key; there are .* \\(is it an experiment file\\? `sparcl run` takes those\\)"),
        ("experiment = ", "TOML syntax"),
    ],
)
def test_errors_name_the_file_and_what_is_wrong(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=rf"(?s)small_sweep\.toml:.*{message}"):
        plan.load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: no such sweep file; examples/sweeps has some"):
        plan.load(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_sweeps(path: Path) -> None:
    """Every configuration they lead to is one."""
    assert len(plan.load(path).methods) > 3


# ---------------------------------------------------------------- what is kept, and the tables


def learned(method: str, kind: Kind, seed: int, accuracy: float) -> Result:
    return Result(
        method=method,
        seed=seed,
        kind=kind,
        key=f"{method}{kind}{seed}",
        class_il=accuracy,
        task_il=accuracy + 5,
        forgetting=2.0,
        backward_transfer=-2.0,
        steps=100 if kind is Kind.FIXED else None,
        removed=3,
    )


def test_results_are_kept_by_key_and_damaged_ones_are_not_there(file: Path, tmp_path: Path) -> None:
    job = next(j for j in plan.load(file).jobs if j.kind is Kind.FIXED)
    kept = Kept(tmp_path / "kept")
    assert kept.get(job) is None
    kept.put(learned("another name of the same", Kind.FIXED, 0, 80.0).model_copy(update={"key": job.key}))
    found = kept.get(job)
    assert found is not None
    assert (found.method, found.class_il) == (job.method, 80.0)
    path = tmp_path / "kept" / f"{job.key}.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert kept.get(job) is None


def test_the_tidy_table_has_a_row_for_each_run(tmp_path: Path) -> None:
    runs = [learned("a", kind, seed, 80.0 + seed) for kind in (Kind.FIXED, Kind.FLOAT) for seed in (0, 1)]
    counted = Result(method="a", seed=0, kind=Kind.COSTS, key="", costs=results.Costs(board="b", ram=1000, step=2000.5))
    results.write_csv(tmp_path / "runs.csv", [counted, *runs])
    with (tmp_path / "runs.csv").open(newline="") as table:
        found = list(csv.DictReader(table))
    assert [(row["arithmetic"], row["seed"], row["class_il"]) for row in found] == [
        ("fixed", "0", "80.000"),
        ("fixed", "1", "81.000"),
        ("float32", "0", "80.000"),
        ("float32", "1", "81.000"),
    ]
    assert {(row["ram_bytes"], row["instructions"], row["flash_bytes"]) for row in found} == {("1000", "2000.500", "")}


def test_means_are_over_seeds_and_the_difference_is_fixed_less_floating_point(file: Path) -> None:
    wanted = plan.load(file)
    runs = [learned("SparCL", Kind.FIXED, seed, value) for seed, value in enumerate((80.0, 82.0, 84.0))]
    runs += [learned("SparCL", Kind.FLOAT, seed, value) for seed, value in enumerate((81.0, 84.0))]
    row, other = results.rows(wanted, runs)
    assert row.fixed == Mean(82.0, 2.0, 3)
    assert row.difference == Mean(-1.5, pytest.approx(0.5**0.5), 2), "of the seeds that both have"
    assert row.cells()[1:5] == ["3 / 2", "82.0 ± 2.0", "82.5 ± 2.1", "-1.5 ± 0.7"]
    assert set(other.cells()[1:]) == {"–"}, "a method without runs yet is a row of nothing"
    assert results.markdown([row]).splitlines()[2].startswith("| SparCL | 3 / 2 | 82.0 ± 2.0 |")
    named = dataclasses.replace(row, method="by |w|")
    assert results.markdown([named]).splitlines()[2].startswith(r"| by \|w\| | 3 / 2 |")
    (row, _) = results.rows(wanted, runs[:1])
    assert row.cells()[1:3] == ["1", "80.0"], "one seed says nothing about the deviation"


def test_the_page_gets_the_table_between_its_marks_and_the_runs_beside_it(file: Path, tmp_path: Path) -> None:
    name, document, runs = file.stem, tmp_path / "results.md", tmp_path / "runs"
    after = "<!-- end -->\nafter\n<!-- sweep b -->\nkept\n<!-- end -->\n"
    document.write_text(f"before\n<!-- sweep {name} -->\nold\n{after}")
    jobs = plan.load(file).jobs
    keep(file, jobs[1:])
    sweep.so_far(plan.load(file, only=("SparCL",))).save()  # what was last run with options is not what is shown
    with pytest.raises(UserError, match=f"1 runs of {file} have not been done .*: `sparcl sweep"):
        page.update(name, file.parent, document, runs)
    keep(file, jobs)
    page.update(name, file.parent, document, runs)
    page.update(name, file.parent, document, runs)
    head, _, rest = document.read_text().partition("| method |")
    assert head == f"before\n<!-- sweep {name} -->\n"
    assert rest.endswith(after)
    assert [line.split(" | ")[0] for line in rest.splitlines() if line.startswith("| ")] == [
        "| SparCL",
        "| finetune, dense",
    ]
    assert (runs / f"{name}.csv").read_text().count("\n") == 1 + 8
    document.write_text("no place for it")
    with pytest.raises(UserError, match=f"has no line <!-- sweep {name} -->"):
        page.update(name, file.parent, document, runs)


def keep(file: Path, jobs: Sequence[plan.Job]) -> None:
    kept = Kept(sweep.folder(plan.load(file)) / "runs")
    for job in jobs:
        kept.put(learned(job.method, job.kind, job.seed, 80.0).model_copy(update={"key": job.key}))


def test_a_sweep_that_is_under_way_is_not_done_by_another_process_too(file: Path) -> None:
    wanted = plan.load(file)
    keep(file, wanted.jobs)
    assert not sweep.run(wanted, None, None, plain=True).todo()
    with other_process(sweep.folder(wanted)), pytest.raises(UserError, match=r"in use by process \d+ "):
        sweep.run(wanted, None, None, plain=True)


def test_where_a_result_cannot_be_kept_the_user_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=r"cannot be written .*; earlier runs are kept"):
        Kept(tmp_path / "runs").put(learned("a", Kind.FIXED, 0, 80.0))


def test_the_tables_say_which_settings_the_runs_have_besides_the_file(file: Path) -> None:
    assert plan.load(file).title == "small_sweep"
    outcome = sweep.Outcome(plan.load(file, ("method.buffer=30",)), file.parent)
    _, table = outcome.save()
    assert table.read_text().startswith("small_sweep, method.buffer=30\n\n| method |")


def test_failures_are_the_user_s_mistake_if_nothing_else_went_wrong(file: Path) -> None:
    wanted = plan.load(file)
    outcome = sweep.Outcome(wanted, file.parent, failed={wanted.jobs[0].key: UserError("no such class")})
    assert str(sweep.failure(outcome)).endswith("costs on ast1030_evb: no such class")
    assert sweep.failure(outcome).exit_code == 2
    outcome.failed[wanted.jobs[-1].key] = BoardError("no answer")
    assert sweep.failure(outcome).exit_code == 1


# ---------------------------------------------------------------- real runs


def environment() -> dict[str, str]:
    """Children find this checkout first."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def cluster(count: int, before: str = "") -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and then workers without nannies, each a program of its own as on other computers.

    ``before``: what each of them does first.
    """
    address = f"tcp://127.0.0.1:{free_port()}"
    port = address.rpartition(":")[2]

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        code = f"{before}\nfrom distributed.cli.dask_{program} import main; main()"
        command = [sys.executable, "-c", code, *arguments, "--no-dashboard"]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd=ROOT
        )

    started = [start("scheduler", "--host", "127.0.0.1", "--port", port)]
    try:
        while not _answers(int(port)):  # its imports take long on a busy machine
            assert started[0].poll() is None, "the scheduler ended"
            time.sleep(0.1)
        started += [start("worker", address, "--nthreads", "1", "--no-nanny") for _ in range(count)]
        yield address, started
    finally:
        for process in started:
            process.kill()
            process.wait()


def sparcl_sweep(file: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, its output line by line."""
    command = [sys.executable, "-m", "sparcl_mcu.host_tools.cli", "sweep", str(file), "--plain", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
        # In a shell's background job SIGINT is ignored, and what it starts would not notice Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def folders_held_by(process: subprocess.Popen[bytes]) -> list[str]:
    """Work folders whose lock the process holds: it is in the middle of a job."""
    held = []
    with suppress(OSError):  # files are closed while one looks
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                held.append(os.readlink(link))
    return [path for path in held if re.search("sparcl-sweep-.*/lock$", path)]


def runs(file: Path) -> dict[str, Result]:
    folder = file.parent / "build" / "sweeps" / "small_sweep" / "runs"
    return {p.stem: Result.model_validate_json(p.read_text()) for p in folder.glob("*.json")}


@pytest.mark.slow
@pytest.mark.board
def test_a_cluster_finishes_the_sweep_when_a_worker_is_killed(file: Path) -> None:
    """Each job is done, that of the killed worker by another one, and nothing is left of it."""
    with cluster(3) as (address, (_, *workers)):
        process = sparcl_sweep(file, "--scheduler", address)
        held: list[str] = []
        while not held and process.poll() is None:
            held = folders_held_by(workers[0])
            time.sleep(0.01)
        workers[0].kill()
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert held, "the worker was in the middle of a job"
    assert not Path(held[0]).exists()
    assert len(re.findall(r"^\[\d+/10\] ", output, re.MULTILINE)) == 10, output
    found = runs(file)
    assert set(found) == {job.key for job in plan.load(file).jobs}
    _check_the_figures(list(found.values()))
    _check_the_table(file, output)


@pytest.mark.slow
def test_a_cluster_without_sparcl_is_the_user_s_mistake(file: Path) -> None:
    with cluster(1, "import sys; sys.modules['sparcl_mcu.benchmarks'] = None") as (address, _):
        process = sparcl_sweep(file, "--scheduler", address)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert re.search("the cluster cannot read the jobs .*: start scheduler and workers in the environment of", output)


@pytest.mark.slow
def test_a_cluster_without_workers_is_said_so(file: Path) -> None:
    with cluster(0) as (address, _):
        process = sparcl_sweep(file, "--scheduler", address)
        assert process.stdout is not None
        try:
            assert process.stdout.readline().endswith(f"start some with `dask worker {address} --nthreads 1`\n")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.board
def test_a_scheduler_that_goes_away_ends_the_sweep_with_what_is_done(file: Path) -> None:
    with cluster(1) as (address, (scheduler, _)):
        process = sparcl_sweep(file, "--scheduler", address)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/"):
                scheduler.kill()
                break
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "the scheduler went away; finished runs are kept" in output
    assert "Traceback" not in output
    assert runs(file)


def listening(process: int) -> set[int]:
    """TCP ports that a process and all it has started listen at (Linux)."""
    found = set()
    opened = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()}
    for name in ("tcp", "tcp6"):
        for row in Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in opened:
                found.add(int(fields[1].rpartition(":")[2], 16))
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= listening(int(child))
    return found


async def served(port: int) -> list[str]:
    """What a stranger can do at a port: read web pages, or be a client of Dask's, with or without a certificate."""
    import distributed

    answers = {}
    for path in ("/info/main/workers.html", "/json/counts.json", "/metrics"):
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answers[path] = await reader.readline()
            writer.close()
    if any(answer.startswith(b"HTTP/") for answer in answers.values()):
        return [path for path, answer in answers.items() if b" 200 " in answer]
    found = []
    for protocol, security in (("tcp", distributed.Security()), ("tls", distributed.Security.temporary())):
        with suppress(OSError, ValueError):  # the latter: it speaks before there is encryption
            address = f"{protocol}://127.0.0.1:{port}"
            (await distributed.core.connect(address, timeout=5, **security.get_connection_args("client"))).abort()
            found.append(address)
    return found


def strangers_at(process: int) -> dict[int, list[str]]:
    """What they can do at each of its ports."""

    async def ask() -> dict[int, list[str]]:
        ports = sorted(listening(process))
        return dict(zip(ports, await asyncio.gather(*map(served, ports)), strict=True))

    return asyncio.run(ask())


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")
def test_no_port_of_a_local_sweep_serves_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheduler, nanny, worker and web server listen; only who has the run's certificate is a client."""
    with clusters._client(None, 1) as client:
        assert client.submit(pow, 2, 10).result() == 1024
        found = strangers_at(os.getpid())
    assert len(found) >= 4
    assert not any(found.values()), found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")
def test_strangers_are_noticed() -> None:
    """The test before can fail: they are served by a cluster of Dask's own settings."""
    import distributed

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"):
        found = strangers_at(os.getpid())
    assert [f"tcp://127.0.0.1:{port}" for port in found if f"tcp://127.0.0.1:{port}" in found[port]]
    assert any("/json/counts.json" in pages for pages in found.values())


@pytest.mark.slow
def test_two_sweeps_at_once_do_not_meet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with clusters._client(None, 1) as one, clusters._client(None, 1) as other:
            for client in (one, other):
                assert client.cluster.scheduler.http_server.address == "127.0.0.1"
                assert client.submit(pow, 2, 10).result() == 1024


@pytest.mark.parametrize(
    "address", ["tls://10.0.0.1:8786", "wss://dask.example:443", "tcp://127.0.0.1:1", "localhost:1", "tcp://[::1]:1"]
)
def test_schedulers_that_are_trusted(address: str) -> None:
    clusters.require_trust(address, network=False)


@pytest.mark.parametrize(
    "address",
    [
        "tcp://10.0.0.1:8786",
        "10.0.0.1:8786",
        "ws://10.0.0.1:1",
        "ucx://10.0.0.1:1",
        "tcp://dask.example:1",
        "tcp://[::1",
    ],
)
def test_schedulers_elsewhere_have_to_be_asked_for(file: Path, address: str) -> None:
    process = sparcl_sweep(file, "--scheduler", address) if address.startswith("tcp://10.") else None
    with pytest.raises(UserError, match=r"without encryption.*use tls://.*or add --trust-network"):
        clusters.require_trust(address, network=False)
    clusters.require_trust(address, network=True)
    if process is not None:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "or add --trust-network" in output


@pytest.mark.slow
def test_a_job_that_kills_every_worker_fails_and_the_others_are_done(file: Path) -> None:
    before = """
import os
from sparcl_mcu.benchmarks.sweep import results, work
work.execute.__globals__["_done"] = lambda job: (
    os._exit(1) if job.kind == "costs" else results.Result(method="", seed=0, kind=job.kind, key=job.key, class_il=80.0)
)
"""
    wanted = plan.load(file, seeds=1, only=("SparCL",))
    with cluster(5, before) as (address, _):
        outcome = sweep.run(wanted, address, None, plain=True)
    assert [job.kind for job in wanted.jobs if job.key in outcome.failed] == [Kind.COSTS]
    assert "every worker that ran this job died" in str(sweep.failure(outcome))
    assert {job.kind for job in wanted.jobs if job.key in outcome.done} == {Kind.FIXED, Kind.FLOAT}


def _check_the_figures(found: list[Result]) -> None:
    by = {(r.method, r.kind, r.seed): r for r in found}
    for seed in (0, 1):
        sparcl = by["SparCL", Kind.FIXED, seed]
        assert sparcl.class_il is not None
        assert sparcl.class_il > 75.0
        assert sparcl.wear is not None
        assert sparcl.wear.erases > 0
        for kind in (Kind.FIXED, Kind.FLOAT):
            finetune = by["finetune, dense", kind, seed]
            assert finetune.forgetting is not None
            assert finetune.forgetting > 60.0, "without replay the first task is forgotten"
    sparse, dense = by["SparCL", Kind.COSTS, 0].costs, by["finetune, dense", Kind.COSTS, 0].costs
    assert sparse is not None
    assert dense is not None
    assert dense.macs is not None
    assert sparse.step is not None
    assert dense.step is not None
    assert 0.25 * (64 * 16 + 16 * 4) < dense.macs < 64 * 16 + 16 * 4, "one pass; inputs that are 0 are skipped"
    assert (dense.mask_update, dense.non_zeros, sparse.non_zeros) == (0.0, 64 * 16 + 16 * 4, 32 * 16 + 16 * 4)
    assert 1.5 * dense.step < sparse.step, "two passes instead of one"


def _check_the_table(file: Path, output: str) -> None:
    folder = file.parent / "build" / "sweeps" / "small_sweep"
    assert (folder / "runs.csv").read_text().count("\n") == 1 + 8
    assert "| finetune, dense |" in (folder / "table.md").read_text()
    shown = output.rpartition("[10/10]")[2]
    assert "finetune, dense" in shown
    assert "erases/task" in shown
    assert "…" not in shown, "each cell is whole, in a log too"


@pytest.mark.slow
@pytest.mark.board
def test_after_ctrl_c_no_run_is_done_twice(file: Path, temporary: Path) -> None:
    process = sparcl_sweep(file)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[2/"):
            os.killpg(process.pid, signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted. Finished runs are kept" in rest
    assert "Traceback" not in rest
    before = {path: path.stat().st_mtime_ns for path in (file.parent / "build").rglob("runs/*.json")}
    assert 2 <= len(before) < 10
    assert not boards_below(temporary)
    assert not list(temporary.glob("sparcl-sweep-*"))

    process = sparcl_sweep(file)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f"{len(before)} of 10 runs are done already" in output
    assert len(re.findall(r"^\[\d+/10\] ", output, re.MULTILINE)) == 10 - len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(runs(file)) == {job.key for job in plan.load(file).jobs}

    process = sparcl_sweep(file)
    output, _ = process.communicate(timeout=60)
    assert "10 of 10 runs are done already" in output
    assert "[10/10]" not in output


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that only this test's sweeps use; its path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def boards_below(folder: Path) -> list[str]:
    """Boards that still run there."""
    listed = subprocess.run(["ps", "axww", "-o", "command"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if f"{folder}/sparcl-sweep-" in line and "flash.elf" in line]


@pytest.mark.slow
@pytest.mark.board
def test_a_job_learns_what_the_command_run_learns(file: Path) -> None:
    """In a process with other jobs before it, and bit for bit."""
    job = next(j for j in plan.load(file).jobs if (j.method, j.seed, j.kind) == ("SparCL", 1, Kind.FIXED))
    experiment = file.parent / "small.toml"
    command = [sys.executable, "-m", "sparcl_mcu.host_tools.cli", "run", str(experiment), "--seed", "1", "--plain"]
    subprocess.run(command, check=True, env=environment(), cwd=ROOT, capture_output=True)
    report = json.loads((file.parent / "build" / "small" / "native" / "report.json").read_text())
    for _ in range(2):
        found = work.execute(job)
        assert found.state_digest == report["state_digest"]
        assert found.class_il == report["class_il"]
    assert found.wear is not None
    assert found.wear.erases == report["store"]["erases"]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (DeviceError(3, 8), BoardError),
        (EmulatorError("no emulator"), BoardError),
        (OSError(28, "No space left on device", "/tmp/x"), BoardError),
        (UserError("a mistake"), UserError),
    ],
)
def test_errors_of_a_job_survive_the_way_to_another_process(
    file: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception]
) -> None:
    def fail(_: plan.Job) -> Result:
        raise raised

    monkeypatch.setattr(work, "_fixed", fail)
    with pytest.raises(kind, match=re.escape(str(raised))) as caught:
        work.execute(next(job for job in plan.load(file).jobs if job.kind is Kind.FIXED))
    found = pickle.loads(pickle.dumps(caught.value))
    assert (type(found), str(found)) == (kind, str(caught.value))
    assert caught.value.__context__ is None, "Dask would send it along"


def test_a_job_is_not_done_with_other_code_or_data_than_its_key_was_made_from(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code.py"
    code.write_text("a = 1")
    monkeypatch.setattr(plan, "DEPENDS_ON", (str(code),))
    monkeypatch.setattr(plan.sources, "ROOT", tmp_path)
    monkeypatch.setattr(work, "_fixed", lambda job: learned(job.method, job.kind, job.seed, 80.0))
    job = next(job for job in plan.load(file).jobs if job.kind is Kind.FIXED)
    assert work.execute(job).class_il == 80.0
    code.write_text("a = 2")
    with pytest.raises(UserError, match="not what it was where the sweep began"):
        work.execute(job)


def test_what_a_dead_process_left_is_cleared_away_and_what_a_living_one_works_in_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / "sparcl-sweep-a"
    dead.mkdir()
    (dead / "lock").touch()
    with work._folder():
        held = [path for path in tmp_path.glob("sparcl-sweep-*") if path != dead]
        work.clear_away()
        assert not dead.exists()
        assert [path.exists() for path in held] == [True]
    assert not list(tmp_path.glob("sparcl-sweep-*"))


def wait_until_started(process: subprocess.Popen[bytes]) -> None:
    """``Popen`` returns a little before the system shows what the process was started with."""
    while b"SPARCL_BUILD=" not in Path(f"/proc/{process.pid}/environ").read_bytes():
        assert process.poll() is None
        time.sleep(0.001)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_build_of_a_dead_process_is_ended_before_its_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, other = tmp_path / "sparcl-sweep-a", tmp_path / "sparcl-sweep-ab"
    dead.mkdir()
    (dead / "lock").touch()
    builds = [
        subprocess.Popen(["sleep", "600"], env={**os.environ, "SPARCL_BUILD": str(folder / "build")})
        for folder in (dead, other)
    ]
    try:
        for build in builds:
            wait_until_started(build)
        work.clear_away()
        assert builds[0].wait(timeout=60) == -signal.SIGKILL
        assert builds[1].poll() is None
        assert not dead.exists()
    finally:
        for build in builds:
            build.kill()
            build.wait()


def test_what_belongs_to_another_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / "sparcl-sweep-a"
    dead.mkdir()
    (dead / "lock").touch()
    with monkeypatch.context() as other:
        other.setattr(os, "getuid", lambda: dead.stat().st_uid + 1)
        work.clear_away()
    assert dead.exists()
    work.clear_away()
    assert not dead.exists()


def test_a_folder_that_is_cleared_away_before_it_is_locked_is_not_worked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock, taken = fcntl.flock, []

    def late(file: IO[str], operation: int) -> None:
        if not taken:
            taken.append(Path(file.name).parent)
            shutil.rmtree(taken[0])
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with work._held() as path:
        assert path.exists()
        assert path not in taken


def test_nothing_is_written_where_others_can_put_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PLATFORMIO_CORE_DIR", str(tmp_path / "core"))
    prepared: list[str] = []
    monkeypatch.setattr(work.session, "prepare", prepared.extend)
    work._prepare.__wrapped__("native")
    assert prepared == ["native"]
    assert [path.name for path in tmp_path.iterdir()] == ["core"]


def test_the_number_of_runs_at_a_time_is_the_cluster_s_own(file: Path) -> None:
    process = sparcl_sweep(file, "--scheduler", "tcp://127.0.0.1:1", "--jobs", "1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--jobs only applies to local runs" in output


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_no_scheduler_there(file: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 1)
    address = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"--scheduler {address}: no Dask scheduler answers .*`dask scheduler`"):
        sweep.run(plan.load(file), address, None, plain=True)
