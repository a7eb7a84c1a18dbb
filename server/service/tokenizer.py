"""The base model's tokenizer: text to token ids, with a hold on which text may mean special tokens."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from server.errors import InvalidRequest
from server.service.token_bytes import token_bytes

Part = tuple[str, bool]
"""A stretch of text, and whether it is a request's data: then nothing in it means a special token."""


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """The ids of one run of text. `specials` lists (index in `ids`, index of the part) of each special token."""

    ids: tuple[int, ...]
    specials: tuple[tuple[int, int], ...] = ()


class SpecialShown:
    """A tokenizer's way to text that shows special tokens by their names; a `Decoder` for `Detokenizer`."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ones: dict[int, str] = {}  # at most one for each id of the vocabulary

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def decode_one(self, token: int) -> str:
        """Return the text of one id; asked again, it is remembered."""
        text = self._ones.get(token)
        if text is None:
            text = self._ones[token] = self.decode((token,))
        return text


class Tokenizer:
    """Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a model folder.

    Safe to use from several threads: nothing changes after construction. Two tokenizers stand behind it. One does as
    `transformers.AutoTokenizer` does. The other reads no special token at all; in its place every special token has a
    random twin, a string that nobody can guess, which is put into the text where the token itself is meant.

    Raises FileNotFoundError without a `tokenizer.json`, ValueError for one that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        source = (folder / "tokenizer.json").read_text(encoding="utf-8")
        config = _read_json(folder / "tokenizer_config.json")
        self.names = _special_names(_read_json(folder / "special_tokens_map.json") | config)
        """Special tokens by their role, `bos_token` and the like, as chat templates know them."""
        self.chat_template = _chat_template(folder, config)
        self._usual = _load(source, config, self.names)
        added = self._usual.get_added_tokens_decoder()
        self._special_ids = {token.content: number for number, token in added.items() if token.special}
        self.special_ids = frozenset(self._special_ids.values())
        self.special_tokens = tuple(sorted(self._special_ids, key=len, reverse=True))
        """The strings that mean special tokens, longest first."""
        self._specials = re.compile("(" + ("|".join(map(re.escape, self.special_tokens)) or "(?!)") + ")")
        self.bos_token = self.names.get("bos_token")
        self.class_name = str(config.get("tokenizer_class") or "PreTrainedTokenizerFast")
        """The class that `transformers` would make of it."""
        self.vocab_size = self._usual.get_vocab_size(with_added_tokens=True)
        self.max_token_chars = max(map(len, self._usual.get_vocab(with_added_tokens=True)), default=1)
        """Characters of the longest token: no text is encoded to fewer than its length over this many tokens."""
        self._added = _added(self._usual)
        self._literal = _load(source, config, self.names)
        self._literal.encode_special_tokens = True
        self._twins = _add_twins(self._literal, [token for token in added.values() if token.special])
        self._originals = {self._literal.token_to_id(t): self._special_ids[s] for s, t in self._twins.items()}
        # A tokenizer's own "unknown" is special too, but ordinary text may come to it.
        self._ones: dict[int, str] = {}  # at most one for each id of the vocabulary
        self._bytes: dict[int, bytes] = {}  # here too
        self.special_shown = SpecialShown(self._usual)
        """Decodes as this does, but shows special tokens."""
        self._never_text = self.special_ids - {self._special_ids.get(self.names.get("unk_token", ""))}

    def encode(self, text: str, *, add_special_tokens: bool = True, last: int | None = None) -> tuple[int, ...]:
        """Return the ids of a prompt as `transformers` gives them: special-token strings mean tokens, BOS as usual.

        `add_special_tokens` False leaves out what the tokenizer adds by itself. `last` keeps that many tokens at most,
        by cutting the text's beginning: what the tokenizer adds stays where there is room beside it.
        """
        if last is None:
            return _ids(self._usual, text, add_special_tokens)
        kept = _ids(self._usual, text, add_special_tokens=False)[-last:]
        before, after = self._added if add_special_tokens else ((), ())
        room = last - len(before) - len(after)
        return kept if room <= 0 else (*before, *kept[-room:], *after)

    def locate(self, text: str, *, add_special_tokens: bool = True) -> list[tuple[int, int, int]]:
        """Return the ids that `encode` returns, each with the characters (from, to) of the text that it stands for.

        A token that the tokenizer adds by itself stands for none.
        """
        (encoding,) = self._usual.encode_batch([text], add_special_tokens=add_special_tokens)
        return [(token, start, end) for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def encode_run(self, parts: Sequence[Part]) -> EncodedRun:
        """Return the ids of the parts as one string, so that merges cross their borders, without automatic tokens.

        A special-token string means its token where it lies within one part that is not data; elsewhere it is plain
        text. Raises InvalidRequest where the tokenizer cannot write data without a special token.
        """
        owners: list[int] = []
        pieces: list[str] = []
        for number, (text, is_data) in enumerate(parts):
            if is_data:
                pieces.append(text)
                continue
            for piece in self._specials.split(text):
                if (twin := self._twins.get(piece)) is not None:
                    owners.append(number)
                pieces.append(piece if twin is None else twin)
        ids: list[int] = []
        places: list[int] = []
        for token in _ids(self._literal, "".join(pieces), add_special_tokens=False):
            original = self._originals.get(token)
            if original is not None:
                places.append(len(ids))
            elif token in self._never_text:
                raise InvalidRequest("the text spells a special token, which this tokenizer cannot write as plain text")
            ids.append(token if original is None else original)
        return EncodedRun(tuple(ids), tuple(zip(places, owners, strict=True)))

    def cut(self, text: str, max_tokens: int, keep: str) -> str:
        """Return the start (`keep="start"`) or end (`"end"`) of a plain text that is at most `max_tokens` long."""
        while len(offsets := self._offsets(text)) > max_tokens:
            # A character may take several tokens, which then share its offsets: it goes as a whole.
            if keep == "start":
                text = text[: min(offsets[max_tokens][0], len(text) - 1)]
            else:
                text = text[max(offsets[-max_tokens - 1][1], 1) :]
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        text: str = self._usual.decode(list(ids), skip_special_tokens=True)
        return text

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens by their names. Other threads run meanwhile."""
        (text,) = self._usual.decode_batch([list(ids)], skip_special_tokens=False)
        return str(text)

    def decode_one(self, token: int) -> str:
        """Return what `decode` returns for one id; asked again, it is remembered."""
        text = self._ones.get(token)
        if text is None:
            text = self._ones[token] = self.decode((token,))
        return text

    def token_text(self, token: int) -> str:
        """Return one token as text, special tokens by their name; part of a character shows as U+FFFD."""
        return self.special_shown.decode_one(token)

    def piece(self, token: int) -> str:
        """Return one token as the vocabulary writes it."""
        return self._usual.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """Return one token's bytes, special tokens by their name; they may begin or end within a character."""
        data = self._bytes.get(token)
        if data is None:
            data = self._bytes[token] = token_bytes(self._usual.id_to_token(token), self.token_text(token))
        return data

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where in a plain text each of its tokens begins and ends."""
        (encoding,) = self._literal.encode_batch([text], add_special_tokens=False)
        return list(encoding.offsets)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    source = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(source, dict):
        raise ValueError(f"{path.name} does not hold a JSON object")
    return source


def _content(token: object) -> str | None:
    """A special token stands in the files as a string or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _special_names(config: dict[str, Any]) -> dict[str, str]:
    roles = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return {role: content for role in roles if (content := _content(config.get(role))) is not None}


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _load(source: str, config: dict[str, Any], names: dict[str, str]) -> Any:
    """Return a tokenizer set up as `transformers` sets it up: automatic tokens are those of `tokenizer.json`."""
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_str(source)
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    wanted = list(names.values()) + [
        content
        for token in config.get("added_tokens_decoder", {}).values()
        if isinstance(token, dict) and token.get("special") and (content := _content(token)) is not None
    ]
    tokenizer.add_special_tokens([content for content in dict.fromkeys(wanted) if content not in special])
    return tokenizer


def _ids(tokenizer: Any, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    """Encode as a batch of one: that lets other threads run meanwhile, and a long text takes a second."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return tuple(encoding.ids)


def _added(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer adds by itself before and behind any text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    own = own or [len(encoding.ids)]  # the text may have no token of its own
    return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])


def _add_twins(tokenizer: Any, special: Sequence[Any]) -> dict[str, str]:
    """Add a twin of every special token, and return the twins by the tokens' strings."""
    nonce = secrets.token_hex(8)
    twins = {token.content: f"\ue000{nonce}{number}\ue001" for number, token in enumerate(special)}
    tokenizer.add_tokens(
        [
            AddedToken(twins[token.content], lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
            for token in special
        ]
    )
    return twins
