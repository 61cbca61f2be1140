"""The output on the page of planning is what the command above it prints."""

import re
import shlex
import sys

import pytest

import plan
from common.project import ROOT
from training.planning.display.table import text

FENCE = re.compile(r"```(bash|text)\n([^`]*)\n```")


def test_the_table_is_that_of_the_first_command(monkeypatch: pytest.MonkeyPatch):
    blocks = FENCE.findall((ROOT / "docs" / "planning.md").read_text(encoding="utf-8"))
    (kind, commands), (_, output) = blocks[:2]
    program, *arguments = shlex.split(commands.partition("\n")[0])[1:]
    assert (kind, program) == ("bash", "plan.py")
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.chdir(ROOT)
    assert text(plan.plan_of(plan.parse_arguments())) == output
