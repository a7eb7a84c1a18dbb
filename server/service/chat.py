"""Conversations to text: the base model's chat template, and which of the text is whose."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import InvalidRequest
from server.service.tokenizer import Part

ROLES = ("system", "user", "assistant")


class ChatTemplate:
    """A Jinja chat template, rendered as `transformers` renders it, in a sandbox.

    What messages contain is data. Special-token strings in it are marked before rendering, so that they come out as
    plain text; all else reaches the template untouched, because templates trim and compare it.
    """

    def __init__(self, source: str, names: Mapping[str, str], special_tokens: Sequence[str]) -> None:
        """`names` are the special tokens by role. Raises ValueError for a template that Jinja cannot read."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"the base model's chat template cannot be read: {error}") from error
        self._names = dict(names)
        self._marks = _Marks(special_tokens)

    def render(
        self, messages: Sequence[Mapping[str, object]], place: str = "start", *, add_generation_prompt: bool = True
    ) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """Return the conversation's text before and after `place`, with the assistant's turn begun where asked for.

        `start` is before everything, `before_last_user` before the text of the last user message, inside its turn,
        `before_generation` before the assistant's turn begins. Raises InvalidRequest for messages that the template
        does not take, or that have no such place.
        """
        turns = [_turn(message, number) for number, message in enumerate(messages)]
        if not turns:
            raise InvalidRequest("messages is empty", param="messages")
        marked = [turn | {"content": self._marks.protect(turn["content"])} for turn in turns]
        if place == "start":
            before, after = "", self._text(marked, begin=add_generation_prompt)
        elif place == "before_last_user":
            before, after = self._at_last_user(marked, begin=add_generation_prompt)
        else:
            before, after = self._at_generation(marked, begin=add_generation_prompt)
        return self._marks.parts(before), self._marks.parts(after)

    def _at_last_user(self, turns: list[dict[str, str]], *, begin: bool) -> tuple[str, str]:
        users = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
        if not users:
            raise InvalidRequest(
                "this adapter's virtual tokens stand before a user message; send one", param="messages"
            )
        content = turns[users[-1]]["content"]
        # After leading blanks: a template that trims them would keep them in front of a marker.
        text = content.lstrip()
        marked = content[: len(content) - len(text)] + self._marks.place + text
        turns[users[-1]] = turns[users[-1]] | {"content": marked}
        before, mark, after = self._text(turns, begin=begin).partition(self._marks.place)
        if not mark or self._marks.place in after:
            raise InvalidRequest(
                "the base model's chat template does not show the last user message once", param="messages"
            )
        return before, after

    def _at_generation(self, turns: list[dict[str, str]], *, begin: bool) -> tuple[str, str]:
        before = self._text(turns, begin=False)
        whole = self._text(turns, begin=True) if begin else before
        if not whole.startswith(before):
            raise InvalidRequest(
                "the base model's chat template has no place before the assistant's turn", param="messages"
            )
        return before, whole[len(before) :]

    def _text(self, turns: list[dict[str, str]], *, begin: bool) -> str:
        try:
            return self._template.render(messages=turns, add_generation_prompt=begin, **self._names)
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error


class _Marks:
    """Marks around stretches of a message that would else read as special tokens. Nobody can guess the marks."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        nonce = secrets.token_hex(8)
        self.place = f"\ue002{nonce}\ue003"
        self._open, self._close = f"\ue004{nonce}\ue005", f"\ue006{nonce}\ue007"
        self._special = special_tokens
        # A look-ahead, so that overlapping ones are found too.
        self._starts = re.compile("(?=(" + ("|".join(map(re.escape, special_tokens)) or "(?!)") + "))")
        self._marked = re.compile(f"{self._open}((?:(?!{self._open}).)*?){self._close}", re.DOTALL)
        self._orphans = re.compile(f"{self._open}|{self._close}")
        self._heads = {token[:n] for token in special_tokens for n in range(1, len(token))}
        self._tails = {token[n:] for token in special_tokens for n in range(1, len(token))}
        self._longest = max(map(len, special_tokens), default=0)

    def protect(self, text: str) -> str:
        """Mark every special-token string, and what could be part of one that the template's own text completes."""
        pieces: list[str] = []
        done = 0
        for start, end in _merge([*self._edges(text), *((m.start(), m.end(1)) for m in self._starts.finditer(text))]):
            pieces += [text[done:start], self._open, text[start:end], self._close]
            done = end
        return "".join((*pieces, text[done:]))

    def parts(self, text: str) -> tuple[Part, ...]:
        """Return the rendered text as parts, marks taken out."""
        parts: list[Part] = []
        for number, piece in enumerate(self._marked.split(text)):
            if number % 2:
                parts.append((piece, True))
            else:
                # Marks that lost their partner, because a template split the message there, are borders still.
                parts += [(rest, False) for rest in self._orphans.split(piece)]
        return tuple(part for part in parts if part[0])

    def _edges(self, text: str) -> list[tuple[int, int]]:
        """Where the text, blanks aside, begins with the end of a special token or ends with the beginning of one."""
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        lengths = range(1, min(self._longest, end - start + 1))
        spans = [(start, start + n) for n in lengths if text[start : start + n] in self._tails]
        return spans + [(end - n, end) for n in lengths if text[end - n : end] in self._heads]


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` marks what to train on; here it is only its contents."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _turn(message: Mapping[str, object], number: int) -> dict[str, str]:
    """Return a message with its text parts joined."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"messages[{number}].role must be one of {', '.join(ROLES)}", param="messages")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(text, str) for text in texts):
            content = "".join(map(str, texts))
    if not isinstance(content, str):
        raise InvalidRequest(f"messages[{number}].content must be text, or a list of text parts", param="messages")
    return {"role": role, "content": content}


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter of this name escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
