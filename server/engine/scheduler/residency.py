"""The residency book: which adapters' prefixes are in memory, for whom, and which may go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from server.core import AdapterSource, PrefixKey
from server.engine.scheduler.blocks import BlockAllocator
from server.engine.scheduler.plan import Prefix
from server.engine.scheduler.waiting import NOBODY, Line, Turns, Waiting


class State(Enum):
    """How far a prefix is. Each state leads to the next; memory is only held from COMPILING on."""

    ABSENT = auto()  # sequences wait for it, the file is not being read
    LOADING = auto()  # the engine reads the file
    LOADED = auto()  # in host memory, waits for blocks (and, of embedding kinds, for its turn to compile)
    COMPILING = auto()  # holds its blocks; some of its virtual tokens are computed
    READY = auto()  # a plan that fills its blocks was made


@dataclass(slots=True, eq=False)
class Entry:
    """One prefix in the book. It exists while it is wanted, loading or held."""

    source: AdapterSource
    num_blocks: int  # of the pool
    charge: int  # blocks that count against the budget for prefixes: `num_blocks` and the table's share
    state: State = State.ABSENT
    blocks: tuple[int, ...] = ()
    computed: int = 0  # virtual tokens that planned steps have compiled
    references: int = 0  # running sequences
    doomed: bool = False  # goes when no sequence uses it
    prefix: Prefix | None = None  # segment A of the sequences that use it, once READY

    @property
    def key(self) -> PrefixKey:
        """What it is the entry of."""
        return self.source.key

    @property
    def compiles(self) -> bool:
        """Whether its virtual tokens are run through the model (else the file's KV is copied, or there is none)."""
        return not self.source.kind.holds_kv and self.source.prefix_len > 0


class Residency:
    """Every prefix's state, references and blocks.

    Only running sequences hold a reference. What is referenced stays; what is idle is evicted, least recently used
    first and those of pinned adapters last, when its room is needed. Room is taken by age alone: on behalf of a
    sequence, nothing goes that an older waiting sequence has a claim on. What is loaded or half compiled when its last
    waiting sequence leaves is dropped.
    """

    def __init__(
        self,
        blocks: BlockAllocator,
        waiting: Waiting,
        *,
        prefix_blocks: int,
        max_loads: int,
        table_blocks: Callable[[AdapterSource], int],
    ) -> None:
        self.loads = 0  # files asked for since the start
        self.resident = 0  # READY prefixes
        self.charge_used = 0  # of `prefix_blocks`
        self.compiling: Entry | None = None
        self._blocks = blocks
        self._waiting = waiting
        self._prefix_blocks = prefix_blocks
        self._max_loads = max_loads
        self._table_blocks = table_blocks
        self._entries: dict[PrefixKey, Entry] = {}
        self._idle: OrderedDict[PrefixKey, Entry] = OrderedDict()  # READY without references, oldest use first
        self._fresh: set[PrefixKey] = set()  # filled by the plan being made
        self._loaded: dict[PrefixKey, Entry] = {}
        self._num_loading = 0
        self._evicted: list[PrefixKey] = []
        self._pinned: set[str] = set()
        self._moved: dict[PrefixKey, bool] = {}  # whether it is READY, for those that came or went
        self._wanted = Turns(waiting, self._is_absent)

    # What the scheduler asks

    @property
    def has_evictions(self) -> bool:
        """Whether the next plan has something to evict."""
        return bool(self._evicted)

    def charge(self, source: AdapterSource) -> int:
        """Blocks that a prefix counts for against the budget for prefixes."""
        return self._blocks.blocks_for(source.prefix_len) + self._table_blocks(source)

    def is_ready(self, key: Line) -> bool:
        """Whether a sequence with this prefix could run; without one it always could."""
        return key is None or ((entry := self._entries.get(key)) is not None and entry.state is State.READY)

    @property
    def to_compile(self) -> int:
        """Virtual tokens of the compile in progress and of what waits in host memory."""
        unfinished = self._loaded.values() if self.compiling is None else [self.compiling, *self._loaded.values()]
        return sum(entry.source.prefix_len - entry.computed for entry in unfinished if entry.compiles)

    def first_loaded(self, *, may_compile: bool) -> Entry | None:
        """Return the entry that waits for room on behalf of the oldest sequence."""
        startable = [entry for entry in self._loaded.values() if may_compile or not entry.compiles]
        return min(startable, key=lambda entry: self._waiting.claim(entry.key), default=None)

    def has_room_for(self, entry: Entry) -> bool:
        """Whether its blocks and its charge fit now, with what may go for it gone."""
        claim = self._waiting.claim(entry.key)
        return self._find_room(entry.num_blocks, entry.charge, claim) is not None

    # What sequences do

    def want(self, source: AdapterSource) -> None:
        """Note that the head of this prefix's line has come to stand there."""
        entry = self._entries.get(source.key)
        if entry is None:
            entry = Entry(source, self._blocks.blocks_for(source.prefix_len), self.charge(source))
            self._entries[source.key] = entry
        self._wanted.push(source.key)

    def acquire(self, key: PrefixKey) -> Prefix:
        """A sequence starts to use a READY prefix; return its segment A."""
        entry = self._entries[key]
        assert entry.prefix is not None, "only what is READY is used"
        entry.references += 1
        self._idle.pop(key, None)
        return entry.prefix

    def release(self, key: PrefixKey) -> None:
        """A sequence ceases to use it."""
        entry = self._entries[key]
        entry.references -= 1
        if not entry.references:
            self._idle[key] = entry
            self.settle(key)

    def settle(self, key: PrefixKey) -> None:
        """Let go of what nobody waits for or uses any more. Called when a sequence left."""
        entry = self._entries[key]
        if entry.references or self._waiting.claim(key) != NOBODY:
            return
        if entry.state is State.ABSENT:
            del self._entries[key]
        elif entry.state in (State.LOADED, State.COMPILING) or (entry.state is State.READY and entry.doomed):
            self._drop(entry)

    # What the engine tells

    def loaded(self, key: PrefixKey) -> None:
        """The file is in host memory. Raises ValueError unless it was being read."""
        entry = self._loading(key)
        self._num_loading -= 1
        entry.state = State.LOADED
        self._loaded[key] = entry
        self.settle(key)

    def failed(self, key: PrefixKey) -> None:
        """The file cannot be used; the next sequence that wants it tries again. Raises ValueError as `loaded` does."""
        self._loading(key)
        self._num_loading -= 1
        del self._entries[key]

    def forget(self, adapter: str) -> None:
        """Evict every prefix of this adapter digest as soon as no sequence uses it or waits for it."""
        for entry in [entry for entry in self._entries.values() if entry.key.adapter == adapter]:
            entry.doomed = True
            self.settle(entry.key)

    def pin(self, adapter: str, pinned: bool) -> None:
        """Let every prefix of this adapter digest be evicted only where nothing else makes room; or no longer."""
        if pinned:
            self._pinned.add(adapter)
        else:
            self._pinned.discard(adapter)

    # What a plan does

    def begin_plan(self) -> None:
        """From now on, what becomes READY belongs to a new plan."""
        self._fresh.clear()

    def make_room(self, blocks: int, charge: int, arrival: int) -> bool:
        """Evict idle prefixes until so much is free; False, and nothing evicted, if that cannot be reached.

        On behalf of a sequence of this arrival: prefixes that older sequences wait with stay.
        """
        victims = self._find_room(blocks, charge, arrival)
        if victims is None:
            return False
        for entry in victims:
            self._drop(entry)
        return True

    def start(self, entry: Entry) -> bool:
        """Give a LOADED entry its blocks, so that it is READY, or COMPILING; False if they do not fit."""
        if not self.make_room(entry.num_blocks, entry.charge, self._waiting.claim(entry.key)):
            return False
        blocks = self._blocks.allocate(entry.num_blocks)
        assert blocks is not None, "room was made"
        del self._loaded[entry.key]
        entry.blocks = blocks
        self.charge_used += entry.charge
        if entry.compiles:
            entry.state, self.compiling = State.COMPILING, entry
        else:
            self._ready(entry)
        return True

    def compiled(self, count: int) -> bool:
        """Count `count` more virtual tokens as compiled; True when the prefix is READY."""
        entry = self.compiling
        assert entry is not None, "something is being compiled"
        entry.computed += count
        if entry.computed < entry.source.prefix_len:
            return False
        self.compiling = None
        self._ready(entry)
        return True

    def cancel_compile(self, arrival: int) -> bool:
        """Take the blocks of the compile in progress back, unless an older sequence than `arrival` waits for it."""
        entry = self.compiling
        if entry is None or self._waiting.claim(entry.key) < arrival:
            return False
        self._free(entry)
        entry.state, entry.computed = State.LOADED, 0
        self._loaded[entry.key] = entry
        return True

    def take_loads(self) -> tuple[AdapterSource, ...]:
        """Return the files to read from now on, those first that the oldest sequences wait for.

        What is read or waits in host memory for room is at most `max_loads`. An older sequence's file takes the place
        of a younger one's that is LOADED.
        """
        taken = []
        while (head := self._wanted.first()) is not None:
            key = head.key
            assert key is not None, "the base model alone is never absent"
            if self._num_loading + len(self._loaded) >= self._max_loads:
                last = max(self._loaded.values(), key=lambda entry: self._waiting.claim(entry.key), default=None)
                if last is None or self._waiting.claim(last.key) < head.arrival:
                    break
                self._drop(last)
            self._entries[key].state = State.LOADING
            self._num_loading += 1
            taken.append(self._entries[key].source)
        self.loads += len(taken)
        return tuple(taken)

    def take_evicted(self) -> tuple[PrefixKey, ...]:
        """Return what was dropped since this was last asked."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    def take_moved(self) -> dict[PrefixKey, bool]:
        """Return which prefixes came or went since this was last asked, and whether they are READY now."""
        moved, self._moved = self._moved, {}
        return moved

    def held_blocks(self) -> Iterator[int]:
        """Yield every block of every prefix. Raises RuntimeError where the book contradicts itself."""
        if self.charge_used != sum(
            entry.charge for entry in self._entries.values() if entry.state in (State.COMPILING, State.READY)
        ):
            raise RuntimeError("the charge for prefixes is miscounted")
        for entry in self._entries.values():
            if (entry.key in self._idle) != (entry.state is State.READY and not entry.references):
                raise RuntimeError(f"{entry.key} is idle and in use, or neither")
            yield from entry.blocks

    def references(self, key: PrefixKey) -> int:
        """Running sequences that use this prefix."""
        return self._entries[key].references if key in self._entries else 0

    def _is_absent(self, key: Line) -> bool:
        return key is not None and key in self._entries and self._entries[key].state is State.ABSENT

    def _loading(self, key: PrefixKey) -> Entry:
        entry = self._entries.get(key)
        if entry is None or entry.state is not State.LOADING:
            raise ValueError(f"{key} was not being loaded")
        return entry

    def _find_room(self, blocks: int, charge: int, arrival: int) -> list[Entry] | None:
        """Return what has to go for so much to be free, None if all that may go is not enough."""
        short = blocks - self._blocks.free
        over = self.charge_used + charge - self._prefix_blocks if charge else 0
        victims = []
        for key, entry in self._by_age():
            if short <= 0 and over <= 0:
                break
            helps = over > 0 or entry.num_blocks > 0
            if helps and key not in self._fresh and self._waiting.claim(key) > arrival:
                victims.append(entry)
                short -= entry.num_blocks
                over -= entry.charge
        return victims if short <= 0 and over <= 0 else None

    def _by_age(self) -> Iterator[tuple[PrefixKey, Entry]]:
        """Yield idle prefixes, the one used longest ago first.

        What is pinned goes last, but it goes: or it could keep a sequence waiting for ever.
        """
        if not self._pinned:
            yield from self._idle.items()
            return
        for late in (False, True):
            yield from (item for item in self._idle.items() if (item[0].adapter in self._pinned) is late)

    def _ready(self, entry: Entry) -> None:
        entry.state = State.READY
        entry.prefix = Prefix(entry.key, entry.source.prefix_len, entry.blocks)
        self.resident += 1
        self._moved[entry.key] = True
        self._idle[entry.key] = entry
        self._fresh.add(entry.key)

    def _free(self, entry: Entry) -> None:
        """Take the memory of a COMPILING or READY entry back."""
        self._blocks.release(entry.blocks)
        self.charge_used -= entry.charge
        entry.blocks, entry.prefix = (), None
        if self.compiling is entry:
            self.compiling = None

    def _drop(self, entry: Entry) -> None:
        """Forget what is held for it; it is ABSENT again, and out of the book unless sequences wait for it."""
        if entry.state in (State.COMPILING, State.READY):
            if entry.state is State.READY:
                self.resident -= 1
                self._moved[entry.key] = False
            self._free(entry)
        self._loaded.pop(entry.key, None)
        self._idle.pop(entry.key, None)
        self._evicted.append(entry.key)
        entry.state, entry.computed = State.ABSENT, 0
        if self._waiting.claim(entry.key) == NOBODY:
            del self._entries[entry.key]
        else:
            self._wanted.push(entry.key)
