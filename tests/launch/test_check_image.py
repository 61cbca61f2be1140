"""launch/check_image.sh says in one line what it lacks, before it does anything; the suite builds no image."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from common.project import ROOT

PROGRAMS = ("buildah", "mmdebstrap", "unshare", "ip")


def check_image(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, with nothing on its path but the programs of a folder."""
    bash = shutil.which("bash")
    assert bash is not None
    environment = {"PATH": str(folder), "TMPDIR": str(folder)}
    return subprocess.run(
        [bash, str(ROOT / "launch" / "check_image.sh"), *arguments], env=environment, capture_output=True, text=True
    )


def stand_in(folder: Path, *programs: str) -> None:
    for name in programs:
        (folder / name).write_text("#!/bin/sh\necho ran >&2\nexit 1\n")
        (folder / name).chmod(0o755)


def test_missing_programs_are_named_with_the_command_that_installs_them(tmp_path: Path):
    result = check_image(tmp_path)
    fix = "apt-get install buildah mmdebstrap util-linux iproute2"
    assert (result.returncode, result.stderr) == (2, f"error: {' '.join(PROGRAMS)} missing here: {fix}\n")
    stand_in(tmp_path, *PROGRAMS[1:])
    assert check_image(tmp_path).stderr == f"error: buildah missing here: {fix}\n"


def test_what_it_cannot_run_on_is_refused_before_a_folder_is_made(tmp_path: Path):
    stand_in(tmp_path, *PROGRAMS)
    result = check_image(tmp_path)
    if os.geteuid() != 0:
        expected = "error: a chroot needs root: sudo bash launch/check_image.sh\n"
    elif platform.freedesktop_os_release()["ID"] == "debian":
        expected = "error: python3 is missing: apt-get install python3 python3-pip\n"
    else:
        expected = "error: this is not Debian, of which the stand-in for the base image is made\n"
    assert (result.returncode, result.stderr) == (2, expected)
    assert sorted(os.listdir(tmp_path)) == sorted(PROGRAMS)


def test_arguments_are_none_or_help(tmp_path: Path):
    result = check_image(tmp_path, "--keep")
    assert result.returncode == 2
    assert result.stderr == "error: unknown argument --keep; see bash launch/check_image.sh --help\n"
    sed = shutil.which("sed")
    assert sed is not None
    (tmp_path / "sed").symlink_to(sed)
    result = check_image(tmp_path, "--help")
    assert result.returncode == 0
    assert "KEEP=1 bash launch/check_image.sh" in result.stdout
    assert "set -euo" not in result.stdout
