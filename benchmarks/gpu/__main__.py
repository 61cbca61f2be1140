"""Checks and measures the whole GPU path on one card: eleven steps, each caught, in at most nine minutes.

python -m benchmarks.gpu                       # results in benchmarks/results/gpu_<card>.json
python -m benchmarks.gpu --steps 7,9           # some steps; those measured earlier stay in the file
python -m benchmarks.gpu --cpu-rehearsal       # the same code at toy sizes on a CPU: its numbers mean nothing
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.gpu.results import Results, final_path, merge, table
from benchmarks.gpu.worker import STEPS
from common.exit_codes import USER_ERROR
from common.program import print_anything
from common.project import ROOT

GRACE_SECONDS = 15.0  # after a step's budget, before its process is killed
START_SECONDS = 120.0  # for imports, until the first step begins
TAIL = 3000  # characters of a dead process's output that are kept


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS), help="numbers of steps, such as 1,2,7 (default: all)")
    parser.add_argument("--data", type=Path, default=ROOT / "runs" / "data" / "wikipedia", help="prepared data set")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--minutes", type=float, help="time for all steps (default 8.5; in the rehearsal 60)")
    parser.add_argument("--traces", action="store_true", help="also write profiler traces of step 7 to --out")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="toy sizes, on a CPU")
    options = parser.parse_args()
    options.minutes = options.minutes or (60.0 if options.cpu_rehearsal else 8.5)
    unknown = [number for number in options.steps.split(",") if number not in STEPS]
    if unknown:
        parser.error(f"--steps {options.steps}: no step {unknown[0]}; there are {', '.join(STEPS)}")
    return options


class Worker:
    """The process that runs steps, with the processes that it starts.

    Args:
        command: of the process.
        log: file that takes its output.
        environment: on top of this process's.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(  # noqa: S603
                command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | environment, start_new_session=True
            )

    def kill(self) -> None:
        """End the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        """Return the end of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-TAIL:].strip()


def watch(worker: Worker, results_file: Path, until: float) -> tuple[str, str] | None:
    """Wait until the worker has ended, or kill it when a step has overrun its budget.

    Returns:
        Status and reason of the step that it was in; None if it ended as it should.
    """
    began = time.time()
    while worker.process.poll() is None:
        time.sleep(0.2)
        results, now = Results(results_file), time.time()
        number = results.running()
        if number is not None:
            step = results.steps[number]
            limit = min(step["began"] + step["budget"], until) + GRACE_SECONDS
        else:
            limit = (until if results.steps else min(began + START_SECONDS, until)) + GRACE_SECONDS
        if now > limit:
            worker.kill()
            return "killed", f"over its time budget\n{worker.tail()}"
    if worker.process.returncode == 0:
        return None
    return "died", f"process ended with code {worker.process.returncode}\n{worker.tail()}"


def run(options: argparse.Namespace, partial: Path, scratch: Path) -> None:
    """Run all steps, in as many processes as it takes."""
    until = time.time() + 60 * options.minutes
    left, environment = options.steps.split(","), {"DS_BUILD_OPS": "0"}
    if options.cpu_rehearsal:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    while left:
        command = [sys.executable, "-m", "benchmarks.gpu.worker", "--results", str(partial), "--scratch", str(scratch)]
        command += ["--data", str(options.data.absolute()), "--steps", ",".join(left), "--until", str(until)]
        command += ["--toy"] * options.cpu_rehearsal
        command += ["--traces", str(options.out.absolute())] if options.traces else []
        worker = Worker(command, scratch / "log", environment)
        try:
            failure = watch(worker, partial, until)
        finally:
            worker.kill()
        results = Results(partial)
        number = results.running()
        if failure is not None and number is not None:
            results.end(number, *failure)
        ended = [number for number in left if number in results.steps]
        if failure is not None and not ended:  # it did not come to a step: neither would the next
            results.end(left[0], *failure)
            return
        left = [number for number in left if number not in results.steps]


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """End as on an error, so that the worker is killed and the table printed."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the steps, write the results and print them as a table; exit with 1 if a step is not ok."""
    print_anything()
    options = parse_arguments()
    if "6" in options.steps.split(",") and not (options.data / "vocabulary").is_dir():
        print(
            f"error: --data {options.data}: no prepared data set; make one with python -m data.prepare", file=sys.stderr
        )
        sys.exit(USER_ERROR)
    signal.signal(signal.SIGTERM, stop)
    options.out.mkdir(parents=True, exist_ok=True)
    partial = options.out / "gpu_partial.json"
    partial.unlink(missing_ok=True)
    Results(partial).save()
    scratch = Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        run(options, partial, scratch)
    except KeyboardInterrupt:
        print("interrupted: the results so far", file=sys.stderr)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        values = Results(partial).values
        path = final_path(options.out, values.get("machine", {}))
        merge(values, path)
        partial.unlink()
        print(table(values))
        print(path)
    done = [step["status"] for step in values["steps"].values()]
    sys.exit(len(done) < len(options.steps.split(",")) or any(status != "ok" for status in done))


if __name__ == "__main__":
    main()
