"""A small vocabulary of bytes and pieces of text, and the shapes in which grammars of it are asked for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import llguidance
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.engine.grammars.masks import Mask, Masks, Start
from server.engine.grammars.vocabulary import read_vocabulary
from server.errors import WaybillError
from server.service.exchange import Structure
from server.service.structure import engine_grammar
from tests.http.folders import byte_alphabet

PIECES = ['{"', '":', '": ', '"}', '",', "true", "null", "ab", "abc", "ba", "aa", "12", "00", "  ", "\n  ", "né", "é\n"]
SPECIALS = {"<end>": 256, "<pad>": 257, "<stop>": 258}
EOS = (256, 258)
"""Two ids end a sequence; 257 is special and ends nothing."""

VOCABULARY = 320
"""More ids than the tokenizer knows, as base models have them, and a whole number of words of 32 bits."""


def write_tokenizer(folder: Path) -> Path:
    """Write `tokenizer.json`: ids 0 to 255 are bytes, three are special, then come the pieces."""
    alphabet = byte_alphabet()
    vocabulary = {character: byte for byte, character in alphabet.items()} | SPECIALS
    merges: list[tuple[str, str]] = []
    for piece in PIECES:
        spelled = [alphabet[byte] for byte in piece.encode()]
        for end in range(1, len(spelled)):
            left, right = "".join(spelled[:end]), spelled[end]
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@cache
def vocabulary() -> llguidance.LLTokenizer:
    with TemporaryDirectory() as folder:
        return read_vocabulary(write_tokenizer(Path(folder)), VOCABULARY, EOS)


@cache
def words() -> dict[int, bytes]:
    """The text of each id that has one, the special ones left out."""
    known = vocabulary()
    found = {token: known.decode_bytes([token]) for token in range(VOCABULARY) if not known.is_special_token(token)}
    return {token: text for token, text in found.items() if text}


def masks() -> Masks:
    return Masks(vocabulary, threads=2)


def grammar(kind: str, source: object) -> str:
    """Return the engine's grammar of a structure; a schema may be given as an object, choices as a list."""
    text = source if isinstance(source, str) else json.dumps(source)
    return engine_grammar(Structure(kind, text, "field"))  # type: ignore[arg-type]


def start(kept: Masks, sequence: int, written: str) -> WaybillError | None:
    """Prepare a grammar and begin with it; return why it was refused."""
    outcomes: SimpleQueue[Start | WaybillError] = SimpleQueue()
    kept.prepare(written, outcomes.put)
    outcome = outcomes.get(timeout=60)
    if isinstance(outcome, WaybillError):
        return outcome
    kept.begin(sequence, outcome)
    return None


def allowed(mask: Mask | WaybillError) -> set[int]:
    """The ids that a mask allows."""
    assert not isinstance(mask, WaybillError), mask
    return {token for token in range(len(mask) * 8) if mask[token // 8] >> token % 8 & 1}


def accepts(written: str, text: str) -> bool:
    """Whether a text can be spelled, byte by byte, and may end there."""
    kept = masks()
    assert start(kept, 1, written) is None
    for byte in text.encode():
        if byte not in allowed(kept.take([1])[1]):
            return False
        kept.advance({1: byte})
    return set(EOS) <= allowed(kept.take([1])[1])
