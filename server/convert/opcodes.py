"""Interpret the opcodes that torch.save writes (pickle protocol 2), building inert data only.

This is not an unpickler with a filter: an opcode that is not below does not exist here, and the names a file mentions
are looked up in `server.convert.symbols`, never imported. The opcodes are described in CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.convert.symbols import ORDERED_DICT, PARAMETER_LIST, STORAGES, Parameters, Symbol, call, find_symbol
from server.convert.tensors import Storage
from server.formats.strict_json import Malformed

MAX_BYTES = 1024 * 1024
"""Bytes of one pickle. A cartridge of 80 layers has 0.1 MB, in 12,000 opcodes: values lie outside of it."""

MAX_OPCODES = 100_000
MAX_STACK = 20_000
MAX_MARKS = 64
_MAX_NAME = 128

_STOP = b"."
_STORAGE_KEY = re.compile(r"[0-9]{1,20}")
_FOREIGN = {
    b"\x93": "STACK_GLOBAL", b"i": "INST", b"o": "OBJ", b"\x92": "NEWOBJ_EX", b"P": "PERSID", b"\x82": "EXT1",
    b"\x83": "EXT2", b"\x84": "EXT4", b"\x95": "FRAME", b"\x94": "MEMOIZE", b"\x8c": "SHORT_BINUNICODE",
    b"\x8d": "BINUNICODE8", b"B": "BINBYTES", b"C": "SHORT_BINBYTES", b"\x8e": "BINBYTES8", b"\x96": "BYTEARRAY8",
    b"\x97": "NEXT_BUFFER", b"\x8b": "LONG4", b"I": "INT", b"L": "LONG", b"S": "STRING", b"V": "UNICODE",
    b"T": "BINSTRING", b"U": "SHORT_BINSTRING", b"F": "FLOAT", b"d": "DICT", b"l": "LIST", b"p": "PUT", b"g": "GET",
    b"\x8f": "EMPTY_SET", b"\x90": "ADDITEMS", b"\x91": "FROZENSET", b"0": "POP", b"1": "POP_MARK", b"2": "DUP",
}  # fmt: skip
"""pickle's other opcodes, for the message."""


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle describes, its length in bytes, and the storages that it mentions, by key."""

    root: Any
    length: int
    storages: dict[str, Storage]


def interpret(data: memoryview) -> Pickled:
    """Return what the pickle at the start of `data` describes.

    `root` is made of None, bool, int, float, str, tuple, list, dict, frozenset and the classes of
    `server.convert.tensors` and `.symbols`; containers may hold one another in a circle. Raises Malformed.
    """
    return _Machine(data[:MAX_BYTES]).run()


class _Machine:
    """pickle's stack machine. A mark is a height of the stack, under which nothing is taken while it stands."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def run(self) -> Pickled:
        if bytes(self._take(2)) != b"\x80\x02":
            raise Malformed("its pickle is not of protocol 2, which torch.save writes by default")
        for _ in range(MAX_OPCODES):
            place = self._at
            opcode = bytes(self._take(1))
            if opcode == _STOP:
                return Pickled(self._result(), self._at, self._storages)
            action = _ACTIONS.get(opcode)
            if action is None:
                name = _FOREIGN.get(opcode, f"0x{opcode.hex()}")
                raise Malformed(f"byte {place} of its pickle is the opcode {name}, which torch.save never writes")
            action(self)
            if len(self._stack) > MAX_STACK or len(self._marks) > MAX_MARKS:
                raise Malformed("its pickle is nested deeper than any file of tensors")
        raise Malformed(f"its pickle has more than {MAX_OPCODES:,} opcodes")

    def _result(self) -> Any:
        if self._marks or len(self._stack) != 1:
            raise Malformed("its pickle ends in the middle of something")
        return self._stack[0]

    def _take(self, count: int) -> memoryview:
        end = self._at + count
        if end > len(self._data):
            raise Malformed(
                f"its pickle has more than {MAX_BYTES:,} bytes"
                if len(self._data) == MAX_BYTES
                else "its pickle is cut off"
            )
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Malformed("its pickle takes something off an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        self._push(value := self._pop())
        return value

    def _pop_items(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        if not self._marks:
            raise Malformed("its pickle uses a mark that it has not set")
        height = self._marks.pop()
        items = self._stack[height:]
        del self._stack[height:]
        return items

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def small_tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def long_integer(self) -> None:
        size = self._number("<B")
        if size > 8:
            raise Malformed("its pickle holds an integer over 64 bits")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def text(self) -> None:
        data = self._take(self._number("<I"))
        try:
            self._push(str(data, "utf-8"))
        except UnicodeDecodeError as error:
            raise Malformed("its pickle holds text that is not UTF-8") from error

    def put(self, index: int) -> None:
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Malformed("its pickle refers to something that it has not said")
        self._push(self._memo[index])

    def append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Malformed("its pickle appends to something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise Malformed("its pickle sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):  # also keeps hashing a stranger's keys cheap
                raise Malformed("its pickle has a dict whose keys are not text")
            target[key] = value

    def set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items([key, value])

    def symbol(self) -> None:
        names = []
        for _ in range(2):
            line = bytes(self._data[self._at : self._at + _MAX_NAME])
            name, newline, _rest = line.partition(b"\n")
            if not newline or not name.isascii():
                raise Malformed("its pickle names something that is no name")
            self._at += len(name) + 1
            names.append(name.decode("ascii"))
        self._push(find_symbol(*names))

    def reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        self._push(call(function, arguments))

    def new_object(self) -> None:
        arguments, symbol = self._pop(), self._pop()
        if not isinstance(symbol, Symbol) or symbol.key != PARAMETER_LIST or arguments != ():
            raise Malformed("its pickle makes an object other than a ParameterList")
        self._push(Parameters())

    def build(self) -> None:
        """A state dict's only state is its _metadata, which says nothing of tensors."""
        state, target = self._pop(), self._top()
        if isinstance(target, Parameters):
            target.load(state)
        elif not isinstance(target, dict) or not isinstance(state, dict):
            raise Malformed(f"its pickle gives a state to something else than a ParameterList or {ORDERED_DICT[1]}")

    def persistent(self) -> None:
        """("storage", type, key, device, elements); the form before torch 1.6 adds a view of it, always None since 0.4.

        That form also has ("module", class, file, source) for a module's class. The source is text that nobody reads.
        """
        match self._pop():
            case ("module", Symbol() as symbol, str(), str()):
                self._push(symbol)
            case ("storage", Symbol("torch", name), str(key), str(), int(numel), *rest) if (
                name in STORAGES and _STORAGE_KEY.fullmatch(key) and 0 <= numel < 2**48 and rest in ([], [None])
            ):
                storage = Storage(STORAGES[name], key, numel)
                if self._storages.setdefault(key, storage) != storage:
                    raise Malformed(f"its pickle describes the storage {key!r} in two ways")
                self._push(storage)
            case _:
                raise Malformed("its pickle refers to something outside of it in a form that torch.save does not write")


_ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    b"(": _Machine.mark,
    b")": lambda machine: machine._push(()),
    b"t": lambda machine: machine._push(tuple(machine._pop_items())),
    b"\x85": lambda machine: machine.small_tuple(1),
    b"\x86": lambda machine: machine.small_tuple(2),
    b"\x87": lambda machine: machine.small_tuple(3),
    b"]": lambda machine: machine._push([]),
    b"a": lambda machine: machine.append([machine._pop()]),
    b"e": lambda machine: machine.append(machine._pop_items()),
    b"}": lambda machine: machine._push({}),
    b"s": _Machine.set_item,
    b"u": lambda machine: machine.set_items(machine._pop_items()),
    b"N": lambda machine: machine._push(None),
    b"\x88": lambda machine: machine._push(True),
    b"\x89": lambda machine: machine._push(False),
    b"K": lambda machine: machine._push(machine._number("<B")),
    b"M": lambda machine: machine._push(machine._number("<H")),
    b"J": lambda machine: machine._push(machine._number("<i")),
    b"\x8a": _Machine.long_integer,
    b"G": lambda machine: machine._push(machine._number(">d")),
    b"X": _Machine.text,
    b"q": lambda machine: machine.put(machine._number("<B")),
    b"r": lambda machine: machine.put(machine._number("<I")),
    b"h": lambda machine: machine.get(machine._number("<B")),
    b"j": lambda machine: machine.get(machine._number("<I")),
    b"c": _Machine.symbol,
    b"R": _Machine.reduce,
    b"\x81": _Machine.new_object,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}
