# SPDX-License-Identifier: Apache-2.0
"""`make mutants`: puts faults into engine and host tools, one at a time, and counts those that no test notices.

    python -m tests.mutation.harness                     a sample, and the table
    python -m tests.mutation.harness ID                  one mutant as a diff, and what became of it
    python -m tests.mutation.harness --table             the table of what is known

subjects.toml says which files get faults and which tests have to notice them,
living.toml why a mutant may live.  What was found stays in build/mutation/, so
that an interrupted run continues.  Exit status 1: a mutant lives without a reason.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from types import CodeType

from tests.mutation import c_operators, python_operators
from tests.mutation.mutants import Mutant, from_edits, sample
from tests.mutation.trees import PRELOAD, Tree, digest, files, preload
from tests.mutation.watch import Killer, Survey

ROOT = Path(__file__).resolve().parents[2]
NICE = 15
SURVEY_LIMIT = 3600.0
"""Seconds of CPU time for all tests without a fault."""
KILLED, LIVES, SAME, INVALID = "killed", "lives", "same code", "no program"
OPEN = "open"
"""The quick tests let it live; the thorough ones were not run."""


@dataclass(frozen=True)
class Subject:
    """Files that get faults, and the tests that have to notice them, in the order in which they are run."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    thorough: tuple[str, ...] = ()
    """Run when those let a mutant live."""
    few: tuple[str, ...] = ()
    """Python: tests of which the first and the last set of parameters are enough."""
    named_only: bool = False
    """No mutants but those that are named."""


@dataclass(frozen=True)
class Named:
    """A mutant that lived once: it is tried always."""

    name: str
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant; ``known_for``: the digest of all it depends on."""

    id: str
    status: str
    killer: str
    seconds: float
    known_for: str


@dataclass
class Plan:
    """What to try, where, and what is known."""

    root: Path
    folder: Path
    subjects: list[Subject]
    named: list[Named]
    reasons: dict[str, str]
    quick: bool = False
    patience: float = 20.0
    """Seconds of CPU time that a mutant may take beyond what is expected."""
    survey: dict[str, dict[str, float]] = field(default_factory=dict)
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path, folder: Path) -> Plan:
        """From the files beside this one in ``root``."""
        here = root / "tests" / "mutation"
        data = tomllib.loads((here / "subjects.toml").read_text())
        living = here / "living.toml"
        reasons = tomllib.loads(living.read_text())["mutant"] if living.exists() else []
        return cls(
            root,
            folder,
            [Subject(**{k: tuple(v) if isinstance(v, list) else v for k, v in s.items()}) for s in data["subject"]],
            [Named(**n) for n in data.get("named", [])],
            {r["id"]: r["why"] for r in reasons},
        )

    def text(self, file: str) -> str:
        """A source as it is."""
        return (self.root / file).read_text(encoding="utf-8")

    def subject(self, file: str) -> Subject:
        """The one that a file belongs to."""
        return next(s for s in self.subjects if file in s.files)

    def all_mutants(self) -> list[Mutant]:
        """Every mutant of every file."""
        result = []
        for file in (f for s in self.subjects if not s.named_only for f in s.files):
            text = self.text(file)
            found = c_operators.edits(text) if file.endswith(".c") else python_operators.edits(text)
            result += from_edits(file, text, found)
        return result

    def named_mutants(self) -> list[Mutant]:
        """Those that lived once."""
        result = []
        for n in self.named:
            text = self.text(n.file)
            if text.count(n.old) != 1:
                raise SystemExit(f"mutants: error: {n.file} has not once: {n.old!r} ({n.name}, subjects.toml)")
            line = text.count("\n", 0, text.index(n.old)) + 1
            name = "named-" + n.name.replace(" ", "-")
            result.append(Mutant(name, n.file, line, "named", n.old, n.new, text.replace(n.old, n.new)))
        return result


def take_survey(plan: Plan, mutants: list[Mutant], *, keep: bool) -> None:
    """Run the tests of these mutants without a fault: they have to pass, and say what they execute."""
    tree: Tree | None = None
    tested = [f for f in files(plan.root) if f.startswith("tests/") and f.endswith((".py", ".c", ".toml"))]
    for subject in plan.subjects:
        if not any(m.file in subject.files for m in mutants):
            continue
        if plan.quick:
            subject = replace(subject, thorough=())
        path = plan.folder / f"survey-{Path(subject.files[0]).name}{'-quick' * plan.quick}.json"
        key = digest(plan.root, sorted({*tested, *subject.files}))
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("key") != key and not (keep and known):
            print(
                f"mutants: running the tests without a fault: {' '.join(subject.tests + subject.thorough)}", flush=True
            )
            tree = tree or Tree(plan.root, plan.folder / "worker0")
            known = {"key": key, "seconds": {}, "lines": {}}
            _survey(tree, subject, known)
            path.write_text(json.dumps(known))
        plan.survey |= known["seconds"]
        plan.lines |= known["lines"]


def _survey(tree: Tree, subject: Subject, known: dict[str, dict[str, object]]) -> None:
    found = tree.folder / "survey.json"
    # A module of the package has the path of the package.
    folders = (tree.path, tree.path / "sparcl_mcu")
    sources = {str(folder / f): f for folder in folders for f in subject.files if f.endswith(".py")}
    ended = tree.pytest([*subject.tests, *subject.thorough], Survey(found, sources, subject.few), SURVEY_LIMIT)
    if ended.status != 0:
        print(tree.log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit("mutants: error: the tests fail without a fault")
    said = json.loads(found.read_text())
    known["seconds"] |= said["seconds"]
    for test, lines in said["lines"].items():
        known["lines"][test] = {sources[path]: numbers for path, numbers in lines.items()}


def chosen_tests(plan: Plan, mutant: Mutant) -> list[str]:
    """Python: the tests that execute its line, the shortest first; no test at all when none does.  C: the subject's."""
    subject = plan.subject(mutant.file)
    if not mutant.file.endswith(".py"):
        return list(subject.tests)
    own = [t for t in plan.lines if _given(t, subject.tests)]
    executing = [t for t in own if mutant.line in plan.lines[t].get(mutant.file, ())]
    if not executing and mutant.line in _lines_of_functions(plan.text(mutant.file)):
        return []
    return sorted(executing or own, key=lambda t: plan.survey[t])


def _given(test: str, tests: Collection[str]) -> bool:
    """Whether a test is one of these, of one of these files, or one of these with parameters."""
    return test in tests or test.split("::")[0] in tests or test.split("[")[0] in tests


def _lines_of_functions(text: str) -> set[int]:
    """Lines that run when a function is called, not when the module is imported."""

    def walk(code: CodeType, *, inside: bool) -> Iterator[int]:
        if inside:
            yield from (line for _, _, line in code.co_lines() if line is not None)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from walk(constant, inside=inside or bool(constant.co_flags & inspect.CO_NEWLOCALS))

    return set(walk(compile(text, "", "exec"), inside=False))


class Worker:
    """Tries mutants in one copy of the checkout."""

    def __init__(self, plan: Plan, tree: Tree) -> None:
        self.plan = plan
        self.tree = tree
        self._commands: list[list[str]] = []
        self._objects: dict[tuple[str, int], bytes | None] = {}

    def attempt(self, mutant: Mutant, known_for: str) -> Outcome:
        """What becomes of it; the copy is whole again afterwards."""
        place = self.tree.path / mutant.file
        place.write_text(mutant.text, encoding="utf-8")
        try:
            return self._attempt(mutant, known_for)
        finally:
            place.write_text(self.plan.text(mutant.file), encoding="utf-8")
            shutil.rmtree(self.tree.path / "build", ignore_errors=True)  # programs with the fault

    def _attempt(self, mutant: Mutant, known_for: str) -> Outcome:
        if mutant.file.endswith(".c"):
            status = self._compiled(mutant)
            if status:
                return Outcome(mutant.id, status, "", 0.0, known_for)
        tests = chosen_tests(self.plan, mutant)
        if not tests:
            return Outcome(mutant.id, LIVES, "no test executes it", 0.0, known_for)
        killer, seconds = self._killer(mutant, tests)
        thorough = self.plan.subject(mutant.file).thorough
        if not killer and thorough and not self.plan.quick:
            killer, more = self._killer(mutant, thorough)
            seconds += more
        alive = OPEN if thorough and self.plan.quick else LIVES
        return Outcome(mutant.id, KILLED if killer else alive, killer, round(seconds, 1), known_for)

    def _killer(self, mutant: Mutant, tests: Sequence[str]) -> tuple[str, float]:
        """The test that notices it, empty if none does; seconds of CPU time that it took."""
        expected = sum(s for t, s in self.plan.survey.items() if _given(t, tests))
        noted = self.tree.folder / "killer.txt"
        ended = self.tree.pytest(tests, Killer(noted), self.plan.patience + 2.0 * expected, mutant.file)
        if ended.status == 0:
            return "", ended.seconds
        return ended.why or (noted.read_text() if noted.exists() else "it cannot be imported"), ended.seconds

    def _compiled(self, mutant: Mutant) -> str:
        """Whether gcc refuses it, or makes the same code of it as before, for each of some models."""
        if not self._commands:
            self._commands = self._prepare()
        for k, command in enumerate(self._commands):
            if (mutant.file, k) not in self._objects:
                original = self.tree.folder / Path(mutant.file).name
                original.write_text(self.plan.text(mutant.file))
                self._objects[mutant.file, k] = self._object(command, original)
            made = self._object(command, self.tree.path / mutant.file)
            if made is None:
                return INVALID
            if made != self._objects[mutant.file, k]:
                return ""
        return SAME

    def _object(self, command: list[str], source: Path) -> bytes | None:
        made = self.tree.folder / "mutant.o"
        done = subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, check=False)
        return made.read_bytes() if done.returncode == 0 else None

    def _prepare(self) -> list[list[str]]:
        path, folder = self.tree.folder / "commands.json", self.tree.folder / "models"

        def work() -> int:
            from tests.mutation.variants import commands

            path.write_text(json.dumps(commands(folder)))
            return 0

        if self.tree.run(work, 300.0).status != 0:
            raise SystemExit(f"mutants: error: {self.tree.log.read_text()[-3000:]}")
        result: list[list[str]] = json.loads(path.read_text())
        return result


def known_for(mutant: Mutant, state: str) -> str:
    """What an outcome holds for: killed, as long as its line stays as it is; alive, until any file changes."""
    return f"{mutant.id}-{hashlib.sha256(mutant.after.encode()).hexdigest()[:8]} {state}"


class Results:
    """One JSON line for each mutant tried; the last one counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Outcome] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            outcome = Outcome(**json.loads(line))
            self._known[outcome.id] = outcome

    def of(self, mutant: Mutant, key: str) -> Outcome | None:
        """What is known, if it still holds; one that was killed is killed whatever tests came since."""
        known = self._known.get(mutant.id)
        if known is None or known.known_for.split()[0] != key.split()[0]:
            return None
        return known if known.status not in (LIVES, OPEN) or known.known_for == key else None

    def add(self, outcome: Outcome) -> None:
        """Keep it at once."""
        self._known[outcome.id] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def try_all(plan: Plan, mutants: list[Mutant], state: str, jobs: int) -> None:
    """Try those that are not known, each of ``jobs`` processes its share."""
    results = Results(plan.folder / "results.jsonl")
    done = {KILLED, LIVES, SAME, INVALID} | ({OPEN} if plan.quick else set())
    known = {m.id: results.of(m, known_for(m, state)) for m in mutants}
    left = [m for m in mutants if (outcome := known[m.id]) is None or outcome.status not in done]
    children = []
    for number in range(min(jobs, len(left))):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _try_share(plan, left[number::jobs], state, number, results)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
        raise SystemExit("mutants: error: a worker failed")


def _try_share(plan: Plan, mutants: list[Mutant], state: str, number: int, results: Results) -> None:
    worker = Worker(plan, Tree(plan.root, plan.folder / f"worker{number}"))
    for k, mutant in enumerate(mutants, 1):
        outcome = worker.attempt(mutant, known_for(mutant, state))
        results.add(outcome)
        told = f"{k}/{len(mutants)} {outcome.status:10} {mutant.id:20} {mutant.file}:{mutant.line} {mutant.operator}"
        print(f"{told}  {outcome.killer}  ({outcome.seconds} s)", flush=True)


def table(plan: Plan, mutants: list[Mutant], state: str) -> int:
    """Print totals by file, then each mutant that lives; 1 when one has no reason."""
    results = Results(plan.folder / "results.jsonl")
    known = {m.id: results.of(m, known_for(m, state)) for m in mutants}
    print(f"\n{'file':32} {'tried':>6} {KILLED:>7} {LIVES:>6} {'left':>5}   without effect: {SAME}, {INVALID}")
    total: Counter[str] = Counter()
    for file in sorted({m.file for m in mutants}):
        counts = Counter(o.status if (o := known[m.id]) else "left" for m in mutants if m.file == file)
        total += counts
        print(_row(file, counts))
    print(_row("in all", total))
    unexplained = 0
    for m in sorted(mutants, key=lambda m: (m.file, m.line, m.id)):
        outcome = known[m.id]
        if outcome is not None and outcome.status in (LIVES, OPEN):
            why = plan.reasons.get(m.id)
            unexplained += why is None
            print(f"\n{m.id}  {m.file}:{m.line}  {m.operator}\n  - {m.before}\n  + {m.after}")
            print(f"  {why or 'WITHOUT A REASON ' + outcome.killer}")
    gone = plan.reasons.keys() - {m.id for m in plan.all_mutants()}
    if gone:
        print("\nliving.toml has reasons for mutants that are gone:", *sorted(gone))
    print(f"\nmutants: {total[KILLED]} killed, {total[LIVES]} live, {unexplained} of them without a reason")
    return int(unexplained > 0)


def write_csv(plan: Plan, mutants: list[Mutant], state: str, path: Path) -> None:
    """Every mutant that was tried, with the test that noticed it or the reason why it may live."""
    results = Results(plan.folder / "results.jsonl")
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["id", "file", "operator", "before", "after", "outcome", "noticed by, or why it may live"])
        for m in sorted(mutants, key=lambda m: (m.file, m.line, m.id)):
            outcome = results.of(m, known_for(m, state))
            if outcome is not None:
                why = plan.reasons.get(m.id, "") if outcome.status in (LIVES, OPEN) else outcome.killer
                one_line = (" ".join(text.split()) for text in (m.before, m.after))
                out.writerow([m.id, m.file, m.operator, *one_line, outcome.status, why])


def _row(name: str, counts: Counter[str]) -> str:
    tried = counts[KILLED] + counts[LIVES]
    rest = f"{counts['left'] + counts[OPEN]:5}   {counts[SAME]} {counts[INVALID]}"
    return f"{name:32} {tried:6} {counts[KILLED]:7} {counts[LIVES]:6} {rest}"


def show(plan: Plan, name: str, state: str) -> int:
    """One mutant as a diff, and what is known of it."""
    for mutant in [*plan.all_mutants(), *plan.named_mutants()]:
        if mutant.id == name:
            print(mutant.diff(plan.text(mutant.file)), end="")
            outcome = Results(plan.folder / "results.jsonl").of(mutant, known_for(mutant, state))
            print(f"{outcome.status} {outcome.killer}" if outcome else "not tried")
            print(plan.reasons.get(name, ""))
            return 0
    print(f"mutants: error: there is no mutant {name}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``make mutants``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("id", nargs="?", help="one mutant to show")
    parser.add_argument("--table", action="store_true", help="try none, only print what is known")
    parser.add_argument("--each", type=int, default=130, help="mutants of each language (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default %(default)s)")
    parser.add_argument("--only", default="", help="mutants of files with this in their name")
    parser.add_argument("--try", dest="again", action="store_true", help="try the mutant ID alone")
    parser.add_argument("--keep-survey", action="store_true", help="trust the survey although tests have changed")
    parser.add_argument("--quick", action="store_true", help="only the quick tests; what they let live stays open")
    parser.add_argument("--patience", type=float, default=20.0, help="CPU seconds more than expected, until it hangs")
    parser.add_argument("--csv", type=Path, help="write what is known to this file, too")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    given = parser.parse_args(arguments)
    plan = Plan.load(given.root.resolve(), given.root.resolve() / "build" / "mutation")
    plan.patience, plan.quick = given.patience, given.quick
    state = digest(plan.root, [f for f in files(plan.root) if not f.endswith(".md") and not f.endswith("living.toml")])
    if given.id and not given.again:
        return show(plan, given.id, state)
    mutants = plan.all_mutants()
    languages = [[m for m in mutants if m.file.endswith(end)] for end in (".c", ".py")]
    samples = [sample(language, given.each, given.seed) for language in languages]
    drawn = plan.named_mutants() + [m for row in zip_longest(*samples) for m in row if m is not None]
    if given.again:
        drawn = [m for m in [*mutants, *plan.named_mutants()] if m.id == given.id]
    drawn = [m for m in drawn if given.only in m.file]
    if not given.table:
        os.nice(NICE - os.nice(0) if os.nice(0) < NICE else 0)
        preload(PRELOAD if plan.root == ROOT else ())
        plan.folder.mkdir(parents=True, exist_ok=True)
        take_survey(plan, drawn, keep=given.keep_survey)
        try_all(plan, drawn, state, given.jobs)
    if given.csv:
        write_csv(plan, drawn, state, given.csv)
    return table(plan, drawn, state)


if __name__ == "__main__":
    sys.exit(main())
