"""The output on the page of planning is what the command above it prints."""

import re
import shlex
import sys

import pytest

import plan
from common.project import ROOT
from training.planning.display.table import text

BLOCKS = re.compile(r"```bash\npython (plan\.py .*)\n(?:.*\n)*?```\n[^`]*```text\n(.*?)\n```", re.DOTALL)


def test_the_table_is_that_of_the_first_command(monkeypatch: pytest.MonkeyPatch):
    found = BLOCKS.search((ROOT / "docs" / "planning.md").read_text(encoding="utf-8"))
    assert found
    monkeypatch.setattr(sys, "argv", shlex.split(found[1].partition("\n")[0]))
    monkeypatch.chdir(ROOT)
    planned, _ = plan.plan_of(plan.parse_arguments())
    assert text(planned) == found[2]
