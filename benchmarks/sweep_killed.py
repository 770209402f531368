"""A sweep that is killed again and again, and sweeps by two processes: are their rows those of an unbroken one?

    python benchmarks/sweep_killed.py [--model MODEL] [--kills N] [--out FILE.json]

Each start is the command `spikebrain sweep` in a process of its own, which is ended by SIGKILL (kill -9) at a random
moment: while it loads, runs or writes. Four ways, each in a folder of its own:

- unbroken: one process, left alone;
- killed: one process, killed --kills times and started again each time;
- workers: --workers 2, one of both workers killed, the command killed with both, and started again each time;
- commands: two commands on one study, one of them killed twice and started again.

Then: results.csv must be equal to the unbroken one's, byte for byte; the study must hold one complete run of every
point; and no run may have begun of a point that was complete.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from timing import write_json

from spikebrain.jobs.sweep.storage import JOURNAL

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Sweep:
    """One sweep in a folder: starts commands on it, kills them, and looks at what is there.

    Args:
        out: the folder.
        typed: options of the command.
        chance: draws the moments.
        longest_s: a start is killed before that, and after a quarter of it.
    """

    def __init__(self, out: Path, typed: list[str], chance: random.Random, longest_s: float) -> None:
        self.out, self.kills = out, []
        self._typed, self._chance, self._longest_s = typed, chance, longest_s
        self._began = time.monotonic()

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start the command, as the head of a group of processes."""
        command = [sys.executable, "-m", "spikebrain.cli", "sweep", *self._typed, "--out", str(self.out), *more]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, start_new_session=True, **streams)

    def kill(self, process: subprocess.Popen[str], what: str = "command") -> None:
        """End a command, or one worker of it, at a random moment."""
        began, moment = time.monotonic(), self._chance.uniform(0.25, 1.0) * self._longest_s
        while time.monotonic() < began + moment:
            time.sleep(0.05)
            if process.poll() is not None:
                raise SystemExit(f"{self.out.name}: the command was done before it was killed:\n{_said(process)}")
        if what == "worker":
            while not (workers := _workers(process.pid)):
                time.sleep(0.05)
            os.kill(self._chance.choice(workers), signal.SIGKILL)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.kills.append({"what": what, "after_s": time.monotonic() - began, "complete": self._states()["COMPLETE"]})

    def finish(self, process: subprocess.Popen[str], codes: tuple[int, ...] = (0,)) -> None:
        """Wait for a command."""
        said = _said(process)
        if process.returncode not in codes:
            raise SystemExit(f"{self.out.name}: exit code {process.returncode}:\n{said}")

    def row(self, unbroken: Path) -> dict[str, Any]:
        """Return what came of it."""
        complete: dict[int, Any] = {}
        trials = self._trials()
        for trial in trials:
            if trial.state.name == "COMPLETE":
                assert trial.user_attrs["point"] not in complete, "a point is complete twice"
                complete[trial.user_attrs["point"]] = trial.datetime_complete
        after = [t for t in trials if t.datetime_start and t.datetime_start > complete[t.user_attrs["point"]]]
        states = self._states()
        return {
            "way": self.out.name,
            "kills": self.kills,
            "num_points": len(complete),
            "num_complete": states["COMPLETE"],
            "num_lost": states["FAIL"],
            "num_begun_after_complete": len(after),
            "rows_equal": (self.out / "results.csv").read_bytes() == (unbroken / "results.csv").read_bytes(),
            "seconds": time.monotonic() - self._began,
        }

    def _trials(self) -> list[Any]:
        if not (self.out / JOURNAL).exists():
            return []
        # A copy: reading must not be in the way of those that write.
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, JOURNAL)
            content = (self.out / JOURNAL).read_bytes()
            copy.write_bytes(content[: content.rfind(b"\n") + 1])
            backend = JournalFileBackend(str(copy))
            studies = optuna.get_all_study_summaries(storage := optuna.storages.JournalStorage(backend))
            return optuna.load_study(study_name="sweep", storage=storage).trials if studies else []

    def _states(self) -> Counter[str]:
        return Counter(trial.state.name for trial in self._trials())


def _workers(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def _said(process: subprocess.Popen[str]) -> str:
    return process.communicate()[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--k", default="2,2.5,3,3.5")
    parser.add_argument("--encoder", default="binary,ternary,bitwise-bidirectional")
    parser.add_argument("--num-tokens", type=int, default=256)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument(
        "--longest-s", type=float, default=60.0, help="a start is killed before that, and after a quarter of it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="of the sweeps; otherwise one that is deleted")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of floats, such as a norm's, depend on the number of threads
    typed = ["-o", f"k={options.k}", "-o", f"encoder={options.encoder}", "--model", options.model, "--device", "cpu"]
    typed += ["--num-tokens", str(options.num_tokens), "--context", str(options.context)]
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        rows = run(folder, typed, random.Random(options.seed), options)
    faults = [r for r in rows if not r["rows_equal"] or r["num_complete"] != rows[0]["num_complete"]]
    faults += [r for r in rows if r["num_begun_after_complete"]]
    print(f"{'way':10} {'kills':>6} {'complete':>9} {'lost':>5} {'run twice':>10} {'rows':>9} {'seconds':>8}")
    for row in rows:
        equal = "equal" if row["rows_equal"] else "different"
        figures = (len(row["kills"]), row["num_complete"], row["num_lost"], row["num_begun_after_complete"], equal)
        print(f"{row['way']:10} {figures[0]:6} {figures[1]:9} {figures[2]:5} {figures[3]:10} {figures[4]:>9} "
              f"{row['seconds']:8.0f}")  # fmt: skip
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("out", "folder")}
    write_json(options.out, rows, settings=settings)
    if faults:
        raise SystemExit("Something was lost, run twice, or differs.")


def run(folder: Path, typed: list[str], chance: random.Random, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the sweep in each way, and return a row for each."""
    rows = []

    def begun(way: str) -> Sweep:
        return Sweep(folder / way, typed, chance, options.longest_s)

    def done(sweep: Sweep) -> None:
        rows.append(sweep.row(folder / "unbroken"))
        print(json.dumps(rows[-1]), flush=True)

    sweep = begun("unbroken")
    sweep.finish(sweep.start())
    done(sweep)

    sweep = begun("killed")
    for _ in range(options.kills):
        sweep.kill(sweep.start())
    sweep.finish(sweep.start())
    done(sweep)

    sweep = begun("workers")
    sweep.kill(first := sweep.start("--workers", "2"), "worker")
    sweep.kill(first)
    sweep.finish(sweep.start("--workers", "2"))
    done(sweep)

    sweep = begun("commands")
    other = sweep.start()
    for _ in range(2):
        sweep.kill(sweep.start())
    sweep.finish(sweep.start())
    sweep.finish(other)
    done(sweep)
    return rows


if __name__ == "__main__":
    main()
