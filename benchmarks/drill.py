"""Do faults at the broker ever lose, double or make up an order? One drill per seed.

Each drill is `hrm-trader demo --broker fyers-sim --faults all --seed N` in a process of its own.
Its audit compares the books of the simulated exchange, the log and the positions. Exit status 1
unless every one passes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import ROOT, machine_facts

RESULT: Final = ROOT / "benchmarks" / "results" / "drill.json"
_COUNTED: Final = ("lost", "duplicate_orders", "phantom_positions")
_SUMMED: Final = ("orders", "orders_at_broker", "fills_at_broker", "logins")
_LONGEST_S: Final = 300.0
_ENTRY: Final = "from daemon.cli import main; main()"


def drill(seed: int, *, seconds: float | None = None) -> dict[str, Any]:
    """Run one drill in a fresh state folder and return its audit."""
    duration = [] if seconds is None else ["--duration", str(seconds)]
    with tempfile.TemporaryDirectory(prefix="drill-") as state:
        done = subprocess.run(
            [
                sys.executable, "-c", _ENTRY, "demo", "--broker", "fyers-sim", "--faults", "all",
                "--seed", str(seed), "--state", state, "--json", *duration,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST_S,
        )  # fmt: skip
    answer = json.loads(done.stdout or "{}")
    audit = answer.get("audit")
    if not isinstance(audit, dict):
        return {"passed": False, "problems": [answer.get("text") or done.stderr[-500:]]}
    return audit


def report(audits: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Sum up the audits by seed."""
    fired: Counter[str] = Counter()
    for audit in audits.values():
        fired.update(audit.get("faults_fired", {}))
    return {
        "passed": all(audit["passed"] for audit in audits.values()),
        "seeds": len(audits),
        "failed": {
            str(seed): audit["problems"] for seed, audit in audits.items() if not audit["passed"]
        },
        **{name: sum(audit.get(name, 0) for audit in audits.values()) for name in _COUNTED},
        "positions_equal": all(audit.get("positions_equal") for audit in audits.values()),
        **{name: sum(audit.get(name, 0) for audit in audits.values()) for name in _SUMMED},
        "fewest_orders_at_broker": min(
            audit.get("orders_at_broker", 0) for audit in audits.values()
        ),
        "longest_agreement_s": max(audit.get("agreed_after_s", 0.0) for audit in audits.values()),
        "faults_fired": dict(sorted(fired.items())),
    }


def run(seeds: Iterable[int], *, jobs: int, seconds: float | None = None) -> dict[str, Any]:
    """Run a drill per seed, a few side by side."""
    began_s = time.perf_counter()
    machine = machine_facts()  # before we are the load ourselves
    chosen = list(seeds)
    with ThreadPoolExecutor(jobs) as pool:
        audits = dict(zip(chosen, pool.map(partial(drill, seconds=seconds), chosen), strict=True))
    return {
        "machine": machine,
        **report(audits),
        "duration_s": round(time.perf_counter() - began_s, 1),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--seeds", type=int, default=20, help="seeds 1 to this one")
    parser.add_argument("--jobs", type=int, default=2, help="drills side by side")
    parser.add_argument("--quick", action="store_true", help="a few seconds of one seed")
    options = parser.parse_args()
    seeds = range(1, 2 if options.quick else options.seeds + 1)
    found = run(seeds, jobs=options.jobs, seconds=5.0 if options.quick else None)
    if not options.quick:
        Path(RESULT).write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    sys.exit(0 if found["passed"] else 1)


if __name__ == "__main__":
    main()
