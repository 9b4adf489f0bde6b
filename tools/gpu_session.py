"""Everything that only a GPU can tell, in one session of less than 40 minutes, for when one is at hand.

    python tools/gpu_session.py                    # results in runs/gpu_session/PART.json, a summary at the end
    python tools/gpu_session.py --only plan        # one part
    python tools/gpu_session.py --small            # all parts at tiny size on a CPU: does the script itself work?

Parts: tests (those marked gpu), plan (memory and time of each training step against its plan), profile (one step of the
VAE and of the DiT), peers (tools/bench_vae.py), study (a small one of configs/study). Each has a time limit and a JSON
of its own. The same command runs only what has no complete result of this version of the code; --again runs all.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ldm.arguments import CommandParser
from odvae.running.errors import InputError, readable_errors
from odvae.running.files import make_output_folder, read_json, write_json
from odvae.running.run_folder import code_version

REPOSITORY = Path(__file__).resolve().parents[1]
STUDY_MINUTES = 11


@dataclass(frozen=True)
class Session:
    """What all parts have in common."""

    folder: Path
    device: torch.device
    small: bool

    @property
    def steps(self) -> dict[str, str]:
        """The configs whose training steps are measured, with the beginning of the steps' names."""
        if self.small:
            return {"smallest": "train_"}
        return {"paper/odvae_k400": "train_vae, video", "paper/latte_ucf101": "train_ldm"}


def run_tests(session: Session) -> dict[str, Any]:
    """The tests that need a GPU; at small size they are skipped, each by name."""
    paths = ["tests/ldm/networks/test_dit.py", "tests/ldm/test_train.py"] if session.small else ["tests"]
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", *paths]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout[-3000:] + result.stderr[-1000:])
    return {"summary": result.stdout.strip().splitlines()[-1]}


def compare_with_plan(session: Session) -> dict[str, Any]:
    from ldm.planning.measured import measure_step
    from odvae.training.devices import known_device

    known = known_device(session.device)
    repeats = 2 if session.small else 10
    return {"steps": [measure_step(stage, session.device, known, repeats) for stage in stages(session)]}


def profile_steps(session: Session) -> dict[str, Any]:
    from ldm.planning.measured import profile_step

    return {"steps": [profile_step(stage, session.device) for stage in stages(session)]}


def compare_with_peers(session: Session) -> dict[str, Any]:
    output = session.folder / "bench_vae.json"
    size = ["--smallest"] if session.small else ["--frames", "33", "--size", "256", "--dtypes", "bf16"]
    run_tool("bench_vae.py", *size, "--device", session.device.type, "--json", output)
    return read_json(output)


def run_study(session: Session) -> dict[str, Any]:
    """As much of it as there is time for; the page has what is there."""
    config = REPOSITORY / "configs/study" / ("smallest.yaml" if session.small else "cpu.yaml")
    printed = run_tool("compression_study.py", config, f"run={session.folder / 'study'}", "--minutes", STUDY_MINUTES)
    return {"printed": printed.splitlines()[-20:]}


def run_tool(name: str, *arguments: Any) -> str:
    """What a tool prints. Raises RuntimeError with the end of what it says where it fails."""
    words = [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]
    result = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name} ended with status {result.returncode}:\n{result.stderr[-3000:]}")
    return result.stdout


def stages(session: Session) -> list[Any]:
    from ldm.experiment import CONFIGS, Experiment
    from ldm.planning.rehearsal import stages_of
    from odvae.running.settings import load_settings

    found = []
    for name, beginning in session.steps.items():
        experiment = load_settings(Experiment, CONFIGS / f"{name}.yaml")
        found += [stage for stage in stages_of(experiment) if stage.name.startswith(beginning)]
    return found


@dataclass(frozen=True)
class Part:
    work: Callable[[Session], dict[str, Any]]
    minutes: float
    """Time limit."""


PARTS = {
    "tests": Part(run_tests, 6),
    "plan": Part(compare_with_plan, 6),
    "profile": Part(profile_steps, 4),
    "peers": Part(compare_with_peers, 9),
    "study": Part(run_study, STUDY_MINUTES + 3),
}


@readable_errors()
def main() -> None:
    parser = CommandParser(__doc__)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS), help="default: all parts")
    parser.add_argument("--out", type=Path, help="default: runs/gpu_session, with --small runs/gpu_session_small")
    parser.add_argument("--small", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--again", action="store_true", help="also the parts that have a complete result")
    options = parser.parse()
    if not options.small and not torch.cuda.is_available():
        raise InputError("this machine has no CUDA device that torch can use; --small tries the script on a CPU")
    folder = options.out or Path("runs") / ("gpu_session_small" if options.small else "gpu_session")
    session = Session(
        make_output_folder(folder).resolve(), torch.device("cpu" if options.small else "cuda"), options.small
    )
    results = {name: result_of(session, name, options.again) for name in options.only}
    print(f"\n{'part':<10} {'status':<10} minutes")
    for name, result in results.items():
        print(f"{name:<10} {result['status']:<10} {result['minutes']:.1f}")
    print(f"\noutput: {session.folder}")
    sys.exit(0 if all(result["status"] == "done" for result in results.values()) else 1)


def result_of(session: Session, name: str, again: bool) -> dict[str, Any]:
    """A part's result: the one that is there, if it is complete and of this code; otherwise it is run."""
    path = session.folder / f"{name}.json"
    machine = torch.cuda.get_device_name() if session.device.type == "cuda" else "CPU"
    about = {"part": name, "small": session.small, "machine": machine, "torch": torch.__version__, **code_version()}
    if path.exists() and not again:
        found = read_json(path)
        if found["status"] == "done" and all(found.get(key) == value for key, value in about.items()):
            print(f"{name}: done before", flush=True)
            return found
    print(f"{name}: at most {PARTS[name].minutes:g} minutes", flush=True)
    start = time.monotonic()
    status, result = run_limited(PARTS[name], session)
    minutes = round((time.monotonic() - start) / 60, 2)
    found = {**about, "status": status, "minutes": minutes, "result": result}
    write_json(path, found)
    print(f"{name}: {status} after {minutes:.1f} minutes", flush=True)
    if status != "done":
        print(json.dumps(result, indent=1)[-2000:], file=sys.stderr, flush=True)
    return found


def run_limited(part: Part, session: Session) -> tuple[str, dict[str, Any]]:
    """Run a part in a process of its own, which gives the GPU's memory back and is ended at the time limit."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_work, args=(part, session, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(60 * part.minutes):
            return "timed out", {"minutes": part.minutes}
        return receiver.recv()
    except EOFError:  # it ended without a result
        return "failed", {"error": "the process ended without a result"}
    finally:
        assert process.pid is not None  # it was started
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself, or has no group yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _work(part: Part, session: Session, sender: Connection) -> None:
    os.setsid()  # so that the commands that it starts can be ended with it
    try:
        sender.send(("done", part.work(session)))
    except Exception:  # whatever it is, the part's result says it, and the other parts are run
        sender.send(("failed", {"error": traceback.format_exc()}))


if __name__ == "__main__":
    main()
