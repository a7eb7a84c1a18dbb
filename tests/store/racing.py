"""Writers of several servers that move an alias at the same moment."""

from __future__ import annotations

import threading

from server.errors import RevisionConflict
from server.store.store import AdapterStore
from tests.store.writing import TENANT, publish

RACERS = 50


def race_alias_moves(servers: list[AdapterStore], rounds: int) -> None:
    """Let `RACERS` move aliases of one name from the state that all have read; one wins, each time."""
    for turn in range(2):
        publish(servers[0], "raced", fill=bytes([turn]))
    for turn in range(rounds):
        seen = servers[0].describe(TENANT, "raced").pointers.revision
        outcomes: list[str] = []
        start = threading.Barrier(RACERS)

        def move(racer: int, turn: int, seen: int, outcomes: list[str], start: threading.Barrier) -> None:
            start.wait()
            try:
                server = servers[racer % len(servers)]
                server.move_alias(TENANT, "raced", f"a{racer}", 1 + (racer + turn) % 2, seen)
                outcomes.append("won")
            except RevisionConflict:
                outcomes.append("lost")
            except Exception as error:
                outcomes.append(repr(error))

        racers = [threading.Thread(target=move, args=(racer, turn, seen, outcomes, start)) for racer in range(RACERS)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join(60)
        assert sorted(outcomes) == ["lost"] * (RACERS - 1) + ["won"]
        assert servers[-1].describe(TENANT, "raced").pointers.revision == seen + 1
