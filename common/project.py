"""The project's root folder, independent of the current folder."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
