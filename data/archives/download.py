"""Downloads pinned archives of packages with pip or apt-get, without root, and checks their hashes."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

ADVICE = {
    "pip": "check the network and pip's index",
    "pip-source": "check the network and pip's index",
    "apt": "check the network and the machine's package sources (/etc/apt)",
}


class Archive(NamedTuple):
    """A package archive of which every copy has the same bytes.

    Args:
        client: that downloads it: ``pip`` a wheel, ``pip-source`` a source archive, ``apt`` a Debian package.
        package: name and version as the client writes them: ``name==version`` for pip, ``name=version`` for apt.
        sha256: hash of the archive, 64 hexadecimal digits.
        megabytes: size of the download, for messages.
    """

    client: Literal["pip", "pip-source", "apt"]
    package: str
    sha256: str
    megabytes: float

    @property
    def file_name(self) -> str:
        """Name under which ``fetch_archive`` keeps the archive."""
        ending = {"pip": ".whl", "pip-source": ".archive", "apt": ".deb"}[self.client]
        return self.package.replace("==", "_").replace("=", "_") + ending

    @property
    def origin(self) -> str:
        """The package and where it comes from, for people."""
        return f"{'Debian' if self.client == 'apt' else 'PyPI'} package {self.package}"


def fetch_archive(archive: Archive, folder: Path) -> Path:
    """Return the archive in ``folder``; download it unless it is there.

    An interrupted download leaves no file of the archive's name. What a package contains is not run, with one
    exception: pip asks a source archive for its metadata, which runs its setup.py, after pip has checked the hash.

    Args:
        archive: to fetch.
        folder: created if missing.

    Raises:
        ValueError: the client is missing or fails, holding its own words; or the hash is another.
        OSError: the folder cannot be written.
    """
    folder = folder.absolute()  # the clients run in another folder
    path = folder / archive.file_name
    if path.exists() and _sha256(path) == archive.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        if archive.client == "pip-source":
            found = _pip_download_source(archive, Path(temporary))
        else:
            download = {"pip": _pip_download, "apt": _apt_download}[archive.client]
            found = download(archive.package, Path(temporary))
        sha256 = _sha256(found)
        if sha256 != archive.sha256:
            raise ValueError(
                f"{archive.origin} has the sha256 {sha256}, not {archive.sha256}: it is not the published archive; "
                f"{ADVICE[archive.client]}, or a proxy between"
            )
        found.replace(path)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), package]
    error = _run(command, folder)
    wheels = list(folder.glob("*.whl"))
    if error is not None or len(wheels) != 1:
        raise ValueError(f"cannot download {package}: {error or 'pip gave no wheel'}: {ADVICE['pip']}")
    return wheels[0]


def _pip_download_source(archive: Archive, folder: Path) -> Path:
    requirements, found = folder / "requirements.txt", folder / "found"
    requirements.write_text(f"{archive.package} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--quiet", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(found), "--requirement", str(requirements)]
    error = _run(command, folder)
    archives = list(found.glob("*")) if found.is_dir() else []
    if error is not None or len(archives) != 1:
        raise ValueError(
            f"cannot download {archive.package}: {error or 'pip gave no archive'}: {ADVICE[archive.client]}"
        )
    return archives[0]


def _apt_download(package: str, folder: Path) -> Path:
    """Download with the machine's package lists; where they are missing or old, with fresh ones in a folder of ours."""
    if shutil.which("apt-get") is None:
        raise ValueError(
            f"cannot download the Debian package {package}: this machine has no apt-get: prepare the text on Debian or "
            "Ubuntu and copy the folder, or name --domains that come from PyPI"
        )
    download = ["apt-get", "-qq", "download", package]
    if _run(download, folder) is not None:
        own = private_apt(folder / "apt")
        error = _run([*own, "-qq", "update"], folder) or _run([*own, "-qq", "download", package], folder)
        if error is not None:
            raise ValueError(f"cannot download the Debian package {package}: {error}: {ADVICE['apt']}")
    (found,) = folder.glob("*.deb")
    return found


def private_apt(folder: Path, languages: Sequence[str] = ("none",)) -> list[str]:
    """Return the beginning of an apt-get command that keeps its lists and cache in ``folder``: it needs no root.

    Args:
        folder: for lists and cache; made ready.
        languages: of the package descriptions that ``update`` fetches, such as ``en``.
    """
    folder = folder.absolute()  # apt looks for the others in its own folder, and _run changes the current one
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = folder / "apt.conf"
    names = " ".join(f'"{language}";' for language in languages)
    config.write_text(f"#clear Acquire::Languages;\nAcquire::Languages {{ {names} }};\n", encoding="utf-8")
    options = [f"Dir::State::lists={folder / 'lists'}", f"Dir::Cache={folder / 'cache'}"]
    options.append("APT::Update::Error-Mode=any")  # otherwise update succeeds without a network
    return ["apt-get", "-c", str(config), *(word for option in options for word in ("-o", option))]


def _run(command: list[str], folder: Path) -> str | None:
    """Run a client in a folder; return its error as one line, or None if it succeeded."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    # S603: no shell, and no word of the command is a user's.
    result = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    # apt names the cause first and a hint last; pip names the cause last.
    errors = [line for line in lines if line.startswith("E: ")]
    return (errors or lines[-1:] or [f"exit status {result.returncode}"])[0]
