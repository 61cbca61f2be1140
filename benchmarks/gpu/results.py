"""The results of the steps: written after every change, so that a killed run loses nothing, and printed as a table."""

import json
import re
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.files import write_atomically
from common.project import ROOT
from common.strict_json import finite_or_null, to_json

SHOWN_VALUES = 10  # of a step, in the table
WIDTH = 150  # of a line of the table


class Results:
    """The file of a run: ``{"machine": {...}, "steps": {number: {...}}}``."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": {}}

    def save(self) -> None:
        """Write the file."""
        write_atomically(self.path, to_json(finite_or_null(self.values), indent=1) + "\n")

    @property
    def steps(self) -> dict[str, Any]:
        """The steps so far, by number."""
        return dict(self.values["steps"])

    def running(self) -> str | None:
        """Return the number of the step that is running."""
        return next((number for number, step in self.steps.items() if step["status"] == "running"), None)

    def end(self, number: str, status: str, reason: str) -> None:
        """End a step from outside, because its process was killed or died."""
        step = self.values["steps"].setdefault(number, {"title": "", "checks": [], "values": {}, "errors": []})
        step["status"] = status
        step["seconds"] = round(time.time() - step.get("began", time.time()), 1)
        step["errors"].append({"part": "process", "reason": _first_and_last(reason), "trace": reason})
        self.save()


class Report:
    """One step's part of the results.

    Args:
        results: of the run.
        number: of the step.
        title: of the step.
        seconds: the step's time budget; parts that would begin later do not run.
    """

    def __init__(self, results: Results, number: str, title: str, seconds: float):
        self.results = results
        self.deadline = time.monotonic() + seconds
        self.began = time.monotonic()
        self.step: dict[str, Any] = {
            "title": title, "status": "running", "began": time.time(), "budget": seconds, "checks": [], "values": {},
            "errors": [],
        }  # fmt: skip
        results.values["steps"][number] = self.step
        results.save()

    def left(self) -> float:
        """Return the seconds left of the step's budget."""
        return self.deadline - time.monotonic()

    def value(self, name: str, value: Any) -> None:
        """Record a measured value: anything that JSON can hold."""
        self.step["values"][name] = value
        self.results.save()

    def check(self, name: str, measured: Any, limit: Any, passed: bool) -> None:
        """Record a measured value that must satisfy a limit; NaN never does."""
        self.step["checks"].append({"name": name, "measured": measured, "limit": limit, "passed": bool(passed)})
        self.results.save()

    def below(self, name: str, measured: float, limit: float) -> None:
        """Record a value that must be less than ``limit``."""
        self.check(name, measured, f"< {limit:g}", measured < limit)

    def require(self, seconds: float) -> None:
        """Raise TimeoutError, to leave a part out, unless this much is left of the step's budget."""
        if self.left() < seconds:
            raise TimeoutError(f"left out: {self.left():.0f} s left of the step's budget, {seconds:.0f} s needed")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Run a part of the step; if it fails, record this, without this machine's folders, and continue."""
        try:
            yield
        except (Exception, SystemExit) as error:
            text = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s]+/", "", str(error).replace(f"{ROOT}/", ""))
            reason = f"{type(error).__name__}: {' '.join(text.split())[:300]}"
            trace = traceback.format_exc().replace(str(error), text).replace(f"{ROOT}/", "")
            self.step["errors"].append({"part": name, "reason": reason, "trace": trace[-6000:]})
            self.results.save()

    def finish(self) -> None:
        """End the step: ``ok`` if every check passed and no part failed."""
        failed = self.step["errors"] or not all(check["passed"] for check in self.step["checks"])
        self.step["status"] = "failed" if failed else "ok"
        self.step["seconds"] = round(time.monotonic() - self.began, 1)
        self.results.save()


def table(values: dict[str, Any]) -> str:
    """Return a short table of the results: a line per step, and below it failed checks, errors and the first values."""
    lines = [" ".join(f"{key}={value}" for key, value in values.get("machine", {}).items() if value is not None)]
    for number, step in sorted(values["steps"].items(), key=lambda item: int(item[0])):
        checks = step["checks"]
        good = sum(check["passed"] for check in checks)
        passed = f"{good}/{len(checks)} checks"
        lines.append(f"{number:>2} {step['status']:<7} {step.get('seconds', 0):6.1f} s  {passed}  {step['title']}")
        lines += [
            f"      FAIL {c['name']}: {_short(c['measured'])}, limit {c['limit']}" for c in checks if not c["passed"]
        ]
        lines += [f"      ERROR {error['part']}: {error['reason']}" for error in step["errors"]]
        lines += [f"      {name}: {_short(value)}" for name, value in list(step["values"].items())[:SHOWN_VALUES]]
    return "\n".join(line[:WIDTH] for line in lines)


def _first_and_last(text: str) -> str:
    lines = text.splitlines()
    return ": ".join(dict.fromkeys((lines[0], lines[-1])))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(v)}" for key, v in value.items() if not isinstance(v, (list, dict)))
    return str(value)


def final_path(folder: Path, machine: dict[str, Any]) -> Path:
    """Return ``gpu_<card>.json`` in ``folder``."""
    card = machine.get("card") or "cpu_rehearsal"
    return folder / f"gpu_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}.json"


def merge(values: dict[str, Any], path: Path) -> None:
    """Write the results to ``path``; steps that only an earlier run measured, by their dates, are kept."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["steps"] if path.exists() else {}
    steps = {**earlier, **values["steps"]}
    ordered = dict(sorted(steps.items(), key=lambda item: int(item[0])))
    write_atomically(path, to_json({**values, "steps": ordered}, indent=1) + "\n")
