"""Small disks that can be filled: a tmpfs of a few megabytes where this process may mount one.

Where it may not, a process's own limit on the size of a file (RLIMIT_FSIZE) stands for the full disk: each write
beyond it fails too, with another error.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

_BLOCK: Final = bytes(65_536)
_BALLAST: Final = ".ballast"
_LIMIT_BYTES: Final = 4_096


class Disk(Protocol):
    """What can be full for a while."""

    def fill(self, pid: int | None) -> None:
        """Let no write of this process succeed."""
        ...

    def clear(self, pid: int | None) -> None:
        """Let them succeed again."""
        ...


class SmallDisk:
    """A mounted tmpfs, filled by a file of ours."""

    def __init__(self, path: Path) -> None:
        self._ballast = path / _BALLAST

    def fill(self, pid: int | None) -> None:
        """Write until not a byte is left."""
        with self._ballast.open("ab", buffering=0) as stream:
            for block in (_BLOCK, b"\x00"):
                try:
                    while True:
                        stream.write(block)
                except OSError:
                    continue

    def clear(self, pid: int | None) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


class FileLimit:
    """No disk of its own: the process may not make a file longer."""

    def fill(self, pid: int | None) -> None:
        """Set the limit; a process that is started later has none."""
        if pid is not None:
            _limit(pid, _LIMIT_BYTES)

    def clear(self, pid: int | None) -> None:
        """Lift it."""
        if pid is not None:
            _limit(pid, resource.RLIM_INFINITY)


def _limit(pid: int, size_bytes: int) -> None:
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    except ProcessLookupError:
        return  # it has ended: the next one starts without a limit


@contextmanager
def mount_small(path: Path, size_bytes: int) -> Iterator[Disk]:
    """Mount a disk of this size at ``path`` while the context lasts, or stand in for it."""
    path.mkdir(parents=True, exist_ok=True)
    if not _mount(path, size_bytes):
        yield FileLimit()
        return
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: a process that is being ended may still hold a file open.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(path: Path, size_bytes: int) -> bool:
    if os.geteuid() != 0:
        return False
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(path)],
            check=False,
            capture_output=True,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0
