"""Where the project's own files are, whichever folder a command is started from."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
