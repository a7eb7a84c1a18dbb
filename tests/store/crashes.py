"""Kill writers of a store at random moments, or at each of their steps, and look at what they leave.

python -m tests.store.crashes ROOT [--every N]     dies at every Nth step of each scenario
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.errors import AdapterNotFound
from server.formats.judge import judge_folder
from server.store.backend import Home
from server.store.digest import files_digest
from server.store.opening import local_store
from server.store.pointers import read_pointers
from server.store.store import AdapterStore
from server.store.version import Version
from tests.formats.folders import BASE
from tests.store.writing import TENANT, publish

NAME = "spam"
_WORKER = """
import sys
from pathlib import Path
from server.store.opening import local_store
from tests.store.writing import TENANT, publish

store, turn = local_store(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
while True:
    turn += 1
    if turn % 4 == 0:
        print("deleting", flush=True)
        store.delete(TENANT, "spam")
        print("deleted", flush=True)
        store.purge(TENANT, "spam")
    else:
        print("publishing", flush=True)
        version, _ = publish(store, "spam", fill=turn.to_bytes(3, "big"))
        print("published", version.number, flush=True)
        print("moving", version.number, flush=True)
        store.move_alias(TENANT, "spam", "prod", version.number)
        print("moved", version.number, flush=True)
"""


def kill_at_random_moments(root: Path, rounds: int, seed: int) -> int:
    """Let a process publish, move an alias and delete until it is killed, again and again; return the rounds survived.

    What it said it had done must hold; what it was doing may have happened or not, but not by halves.
    """
    chance = random.Random(seed)
    highest = 0
    for turn in range(rounds):
        before = live(local_store(root))
        said = _run_and_kill(root, turn * 1000, chance.uniform(0.0, 0.12))
        found = [version.number for version in require_whole(root)]
        possible = _possible(said, before, highest)
        assert found in possible, (said, found, possible)
        require_aliases(root, said)
        highest = require_swept(root, max([highest, *found]))
    return rounds


def _run_and_kill(root: Path, turn: int, seconds: float) -> list[str]:
    """Return what the process said from its start until it was killed, `seconds` after it was ready."""
    command = [sys.executable, "-c", _WORKER, str(root), str(turn)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        time.sleep(seconds)
        worker.send_signal(signal.SIGKILL)
        return worker.stdout.read().splitlines()


def _possible(said: list[str], before: list[int], highest: int) -> list[list[int]]:
    """Return the live versions, the newest first, that what was said allows."""
    state = before
    for line in said:
        if line.startswith("published"):
            number = int(line.split()[1])
            assert number > highest, "a number was used again"
            highest = number
            state = [number, *state]
        elif line == "deleted":
            state = []
    last = said[-1] if said else ""
    if last == "publishing":
        return [state, [highest + 1, *state]]
    return [state, []] if last == "deleting" else [state]


def require_aliases(root: Path, said: list[str]) -> None:
    """Every alias means a version that is there, and the one that was moved means what was said."""
    store = local_store(root)
    pointers = read_pointers(store.backend, Home(TENANT, NAME))
    for alias, number in pointers.aliases:
        assert (
            files_digest(store.resolve(TENANT, NAME, number=number).folder)
            == store.resolve(TENANT, NAME, alias=alias).digest
        )
    if said and said[-1].startswith("moved"):
        assert pointers.alias("prod") == int(said[-1].split()[1])
    if said and said[-1].startswith(("publishing", "deleting")) and len(said) > 1 and said[-2].startswith("moved"):
        assert pointers.alias("prod") in (int(said[-2].split()[1]), None)


def live(store: AdapterStore) -> list[int]:
    """Return the numbers of the live versions, the newest first."""
    try:
        return [version.number for version in store.versions(TENANT, NAME)]
    except AdapterNotFound:
        return []


def require_whole(root: Path) -> list[Version]:
    """Return the live versions, each of them checked to be all there and judged as its manifest says."""
    store = local_store(root)
    found = [store.resolve(TENANT, NAME, number=number) for number in live(store)]
    for version in found:
        assert files_digest(version.folder) == version.digest, version.folder
        assert judge_folder(version.folder, BASE, published=True) == version.spec
    assert store.list(TENANT) == found[:1]
    return found


def require_swept(root: Path, highest: int) -> int:
    """Sweep, look at every folder, publish once more; return the number that this got, above `highest`."""
    store = local_store(root)
    before = live(store)
    store.sweep()
    found = require_whole(root)
    numbers = [version.number for version in found]
    assert numbers[len(numbers) - len(before) :] == before, "sweeping took a version"
    versions = root / TENANT / NAME / "versions"
    assert sorted(versions.iterdir() if versions.is_dir() else ()) == sorted(version.folder for version in found)
    staging = root / ".staging"
    assert not list(staging.iterdir() if staging.is_dir() else ())
    version, created = publish(store, NAME, fill=os.urandom(8))
    assert created
    assert version.number > max([highest, *numbers])
    return version.number


def _replace(store: AdapterStore) -> None:
    publish(store, NAME, fill=b"new")


def _move(store: AdapterStore) -> None:
    store.move_alias(TENANT, NAME, "prod", 1)


def _delete_one(store: AdapterStore) -> None:
    store.delete_version(TENANT, NAME, 1)
    store.purge(TENANT, NAME, [1])


def _delete(store: AdapterStore) -> None:
    store.delete(TENANT, NAME)
    store.purge(TENANT, NAME)


def _delete_and_publish(store: AdapterStore) -> None:
    store.delete(TENANT, NAME)
    publish(store, NAME, fill=b"new")


SCENARIOS: dict[str, tuple[int, Callable[[AdapterStore], None], list[list[int]]]] = {
    "the first version": (0, _replace, [[], [1]]),
    "another version": (2, _replace, [[2, 1], [3, 2, 1]]),
    "the same bytes": (2, lambda store: publish(store, NAME, fill=b"\0") and None, [[2, 1]]),
    "an alias move": (2, _move, [[2, 1]]),
    "a deletion of one": (2, _delete_one, [[2, 1], [2]]),
    "a deletion": (2, _delete, [[2, 1], []]),
    "a new start": (1, _delete_and_publish, [[1], [], [2]]),
    "a sweep": (2, lambda store: store.sweep(), [[2, 1]]),
}
"""Versions there before, what is done, and the live versions that may be found afterwards."""


def die_at_each_step(root: Path, every: int) -> int:
    """Run every scenario in processes that die at one step each; return how many died."""
    died = 0
    for scenario, (versions, action, allowed) in SCENARIOS.items():
        step = 0
        while True:
            step += every
            folder = root / f"{scenario}-{step}"
            store = local_store(folder)
            for turn in range(versions):
                publish(store, NAME, fill=bytes([turn]))
            if not _die_at(step, folder, action):
                break
            found = [version.number for version in require_whole(folder)]
            assert found in allowed, (scenario, step, found)
            require_swept(folder, versions)
            died += 1
            sys.stdout.write(f"{scenario}: died at step {step} and left {found}\n")
    return died


def _die_at(step: int, root: Path, action: Callable[[AdapterStore], None]) -> bool:
    """Do it in a child that kills itself before its `step`-th call on the disk; return whether it came to that."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    taken = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal taken
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)

    store = local_store(root)
    sys.addaudithook(watch)
    try:
        action(store)
    except BaseException:
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--every", type=int, default=1)
    chosen = parser.parse_args()
    sys.exit(0 if die_at_each_step(chosen.root, chosen.every) else 1)
