"""A service's process with a clock that can be set wrong: ``python -m chaos.child``, told by ``CHAOS_*`` variables.

``CHAOS_MODULE`` is what really runs. ``CHAOS_CLOCK`` names a file of eight bytes, a signed number of nanoseconds
that the wall clock is ahead; it is read at each look at the clock, so whoever holds the file sets it at any time. The
monotonic clock stays as it is, as with a real clock that was set.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import time
from pathlib import Path

_OFFSET = struct.Struct("<q")


def write_clock(file: Path, offset_s: float) -> None:
    """Set the clock of who reads this file, seconds ahead."""
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.write(_OFFSET.pack(round(offset_s * 1e9)))


def install_clock(file: Path) -> None:
    """Have this process's wall clock follow the file."""
    with file.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    read_ns, read_s = time.time_ns, time.time

    def time_ns() -> int:
        return read_ns() + int(_OFFSET.unpack(view[:8])[0])

    def time_s() -> float:
        return read_s() + float(_OFFSET.unpack(view[:8])[0]) / 1e9

    time.time_ns = time_ns
    time.time = time_s


def main() -> None:
    """Run the service."""
    install_clock(Path(os.environ["CHAOS_CLOCK"]))
    runpy.run_module(os.environ["CHAOS_MODULE"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
