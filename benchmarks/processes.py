"""A server's whole family of processes: pausing it, what it burns, what it holds."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def family(pid: int) -> list[int]:
    """Return a process and all its descendants, parents first."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def pause(pid: int) -> None:
    """Stop the family where it stands, so that it takes no processor time from whoever is measured."""
    _signal(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    _signal(pid, signal.SIGCONT)


def cpu_seconds(pid: int, *, with_children: bool = True) -> float:
    """Processor time that the family, or the process alone, has used so far, in user and system mode."""
    total = 0
    for member in family(pid) if with_children else [pid]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def resident_bytes(pid: int) -> int:
    """Memory of the family that lies in RAM; pages that its members share count for each."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE
    return total


def _signal(pid: int, number: signal.Signals) -> None:
    for member in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)
