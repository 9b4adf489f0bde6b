"""Runs mutated inputs in guarded worker processes, and counts what the pipeline did with them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from ldm.fuzzing.kind import Kind, NeighborLost, Valid
from ldm.fuzzing.mutations import mutate
from ldm.fuzzing.settings import FuzzSettings
from odvae.running.errors import InputError, is_out_of_memory
from odvae.running.failures import Failure
from odvae.running.progress import progress_bar
from odvae.running.text import printable
from odvae.running.worker_pool import WorkerPool

# How an input ended. `memory` is a refusal where the pipeline reads in guarded workers, and an escape elsewhere.
Result = Literal["read", "refused", "escape", "hang", "neighbor"]

# A longer message is not readable for a person.
_LONGEST_MESSAGE = 20_000

# Offending inputs that are kept of one place in the code, and lines of them that are printed.
_KEPT = 3


@dataclass(frozen=True)
class Case:
    """A mutated input: of which kind, and its number."""

    kind: str
    number: int


@dataclass(frozen=True)
class Outcome:
    result: Result
    what: str = ""
    """The error and its place in the code, in one line."""
    details: str = ""


@dataclass
class Count:
    """What became of the inputs of a kind."""

    results: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Inputs:
    """The mutated inputs of all kinds. `make` must be called before processes are forked."""

    def __init__(self, kinds: Sequence[Kind], settings: FuzzSettings, context: Path) -> None:
        self.kinds = {kind.name: kind for kind in kinds}
        self.settings, self.context = settings, context
        self.valid: dict[str, Sequence[Valid]] = {}
        for kind in kinds:
            (context / kind.name).mkdir(parents=True)
            self.valid[kind.name] = kind.make(context / kind.name)
        self.foreign = [valid.data for valids in self.valid.values() for valid in valids if len(valid.data) < 1 << 16]

    def mutated(self, case: Case) -> tuple[str, bytes, Random]:
        """A file's name, its mutated bytes, and the random numbers for the way it is read."""
        rng = Random(f"{self.settings.seed} {case.kind} {case.number}")
        siblings = self.valid[case.kind]
        valid = rng.choice(siblings)
        own = rng.random() < 0.8 or not self.foreign  # all files of the chosen kinds may be large
        others = [valid.data for valid in siblings] if own else self.foreign
        data = mutate(valid.data, rng, valid.mutations, others)
        return valid.name, data, Random(f"{self.settings.seed} {case.kind} {case.number} way")

    def run(self, case: Case) -> Outcome:
        """In a worker: have the pipeline read an input."""
        name, data, rng = self.mutated(case)
        return self.read(case, name, data, rng)

    def read(self, case: Case, name: str, data: bytes, rng: Random) -> Outcome:
        kind, folder = self.kinds[case.kind], self.context / f"worker-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            kind.read(self.context / kind.name, name, data, folder, rng)
        except InputError as error:
            message = str(error)
            if not message or len(message) > _LONGEST_MESSAGE:
                return Outcome("escape", f"a message of {len(message)} characters at {_place(error)}", message[:500])
            return Outcome("refused", details=message)
        except NeighborLost as error:
            return Outcome("neighbor", f"{error} at {_place(error)}", traceback.format_exc())
        except BaseException as error:  # also what libraries raise that is no Exception, and SystemExit
            if kind.guarded and is_out_of_memory(error):
                return Outcome("refused", details="needs more memory than it may have")
            first_line = next(iter(str(error).splitlines()), "")
            line = printable(f"{type(error).__name__}: {first_line[:200]} at {_place(error)}")
            return Outcome("escape", line, traceback.format_exc())
        return Outcome("read")


def _place(error: BaseException) -> str:
    """Where in the pipeline's code an error passed last, as file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if re.search(r"/(odvae|ldm)/", one.filename) and "/fuzzing/" not in one.filename]
    last = (ours or frames)[-1]
    file = re.sub(r"^.*/(odvae|ldm|site-packages)/", r"\1/", last.filename)
    return f"{file}:{last.lineno}"


def plan_cases(kinds: Sequence[Kind], settings: FuzzSettings) -> Iterator[Case]:
    """`settings.count` inputs, the kinds mixed by their shares; at least one of each."""
    total = sum(kind.share for kind in kinds)
    given: Counter[str] = Counter()
    for number in range(settings.count):
        if number < len(kinds):
            kind = kinds[number]
        else:
            kind = max(kinds, key=lambda kind: kind.share / total * (number + 1) - given[kind.name])
        yield Case(kind.name, settings.first + given[kind.name])
        given[kind.name] += 1


def fuzz(kinds: Sequence[Kind], settings: FuzzSettings) -> dict[str, Count]:
    """Run all inputs; what offends is printed, and its file kept in `settings.out`. Returns counts by kind."""
    counts: dict[str, Count] = defaultdict(Count)
    with tempfile.TemporaryDirectory(prefix="fuzz") as context:
        inputs = Inputs(kinds, settings, Path(context))
        keeper, late = _Keeper(inputs, Path(settings.out)), []
        cases = _until(plan_cases(kinds, settings), settings.minutes)
        with progress_bar("fuzzing", 0, settings.count, unit="input") as bar:
            for case, outcome, seconds in _outcomes(inputs, cases, settings, settings.workers):
                bar.update()
                counts[case.kind].seconds += seconds
                if outcome.result == "hang":  # perhaps the machine was busy with something else
                    late.append(case)
                else:
                    counts[case.kind].results[outcome.result] += 1
                    keeper.look_at(case, outcome)
        for case, outcome, _ in _outcomes(inputs, iter(late), settings, 1):
            counts[case.kind].results[outcome.result] += 1
            keeper.look_at(case, outcome)
    return dict(counts)


def _until(cases: Iterator[Case], minutes: float | None) -> Iterator[Case]:
    end = None if minutes is None else time.monotonic() + 60 * minutes
    for case in cases:
        if end is not None and time.monotonic() > end:
            return
        yield case


def _outcomes(
    inputs: Inputs, cases: Iterator[Case], settings: FuzzSettings, workers: int
) -> Iterator[tuple[Case, Outcome, float]]:
    """Each case, what became of it, and the seconds it took."""
    handed: list[Case] = []

    def remembered() -> Iterator[Case]:
        for case in cases:
            handed.append(case)
            yield case

    def run(case: Case) -> tuple[Outcome, float]:
        _be_silent()
        begin = time.perf_counter()
        return inputs.run(case), time.perf_counter() - begin

    limits = settings.seconds_per_input, settings.memory_gib
    with WorkerPool(run, workers, *limits, name_of=lambda case: f"{case.kind} {case.number}") as pool:
        for result in pool.map(remembered(), ahead=8 * workers):
            case = handed.pop(0)
            if isinstance(result, Failure):
                yield case, _of_failure(result, inputs.kinds[case.kind]), 0.0
            else:
                yield case, *result


def _of_failure(failure: Failure, kind: Kind) -> Outcome:
    """What it means that a worker ended, or gave nothing."""
    if failure.cause == "limit" and "took longer" in failure.reason:
        return Outcome("hang", failure.reason)
    if failure.cause == "limit" and kind.guarded:
        return Outcome("refused", details=failure.reason)
    return Outcome("escape", failure.reason)


def _be_silent() -> None:
    """In a worker: what the pipeline and its libraries print of broken files is not for whoever fuzzes."""
    if os.environ.get("FUZZ_SILENT") == str(os.getpid()):
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ["FUZZ_SILENT"] = str(os.getpid())


class _Keeper:
    """Prints what offends, once for each place in the code, and keeps a few inputs of each."""

    def __init__(self, inputs: Inputs, out: Path) -> None:
        self.inputs, self.out = inputs, out
        self.seen: Counter[tuple[str, str]] = Counter()

    def look_at(self, case: Case, outcome: Outcome) -> None:
        if outcome.result in ("read", "refused"):
            return
        place = case.kind, re.sub(r"\d+", "", outcome.what.partition(":")[0] + outcome.what.rpartition(" at ")[2])
        self.seen[place] += 1
        if self.seen[place] > _KEPT:
            return
        name, data, _ = self.inputs.mutated(case)
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{case.kind}-{self.inputs.settings.seed}-{case.number}-{name.replace('/', '_')}"
        path.write_bytes(data)
        print(f"{outcome.result}: {case.kind} {case.number}: {outcome.what}\n  replay={path}", file=sys.stderr)


def replay(kinds: Sequence[Kind], settings: FuzzSettings) -> Outcome:
    """Read a kept input again, in this process. Raises InputError where the file is none that a run kept."""
    path = Path(settings.replay or "")
    found = re.match(r"([a-z_]+)-(-?\d+)-(\d+)-", path.name)
    chosen = [kind for kind in kinds if found and kind.name == found[1]]
    if not found or not chosen or not path.is_file():
        raise InputError(f"replay={path}: expected a file KIND-SEED-NUMBER-NAME that a run put into its `out`")
    settings = settings.model_copy(update={"seed": int(found[2])})
    with tempfile.TemporaryDirectory(prefix="fuzz") as context:
        inputs = Inputs(chosen, settings, Path(context))
        case = Case(found[1], int(found[3]))
        name, _, rng = inputs.mutated(case)
        return inputs.read(case, name, path.read_bytes(), rng)


def table(counts: Mapping[str, Count]) -> str:
    """The counts by kind, and their sums."""
    columns = ("read", "refused", "escape", "hang", "neighbor")
    rows: list[tuple[str, ...]] = [
        ("kind", "inputs", "read", "refused", "escapes", "hangs", "neighbors lost", "seconds")
    ]
    for name, count in counts.items():
        results = [count.results[column] for column in columns]
        rows.append((name, str(sum(results)), *map(str, results), f"{count.seconds:.0f}"))
    sums = [sum(int(row[i]) for row in rows[1:]) for i in range(1, len(rows[0]))]
    rows.append(("all", *map(str, sums)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
