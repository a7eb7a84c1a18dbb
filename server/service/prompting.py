"""What a request sends to token ids: prompt, template fields or messages, and the adapter's virtual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.core import AdapterKind, BaseModel
from server.errors import AdapterIncompatible, ContextTooLong, InvalidRequest
from server.formats.spec import AdapterSpec, FieldRule
from server.formats.template import Bos, Field, Literal, Piece, Rows, Template
from server.service.chat import ChatTemplate
from server.service.tokenizer import Part, Tokenizer

_LABEL = ""
"""Stands as a field of this name behind a template's pieces; no field of a template has it."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as the engine takes it: `prefix_ids` are compiled once per adapter, `tokens` come after.

    Ids of `vocab_size + r` name row r of the adapter's table. The prefix of KV kinds is in their file, so theirs is
    empty here. `num_text_tokens` counts what is no virtual token, in both.
    """

    tokens: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    num_text_tokens: int
    task_index: int
    needs_table: bool


class Prompter:
    """Renders requests. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, base: BaseModel) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = base.vocab_size
        self._max_chars = base.context_length * tokenizer.max_token_chars
        self._chat = (
            None
            if tokenizer.chat_template is None
            else ChatTemplate(tokenizer.chat_template, tokenizer.names, tokenizer.special_tokens)
        )

    def render(
        self,
        spec: AdapterSpec | None,
        *,
        prompt: str | Sequence[int] | None = None,
        messages: Sequence[Mapping[str, object]] | None = None,
        fields: Mapping[str, str] | None = None,
        task: int | str | None = None,
        label: str = "",
        last: int | None = None,
        add_special_tokens: bool = True,
        add_generation_prompt: bool = True,
    ) -> RenderedPrompt:
        """Render exactly one of `prompt`, `messages` and `fields` for an adapter, or for the base model alone.

        `label` is text that follows, tokenised with the text that it touches; behind ids and virtual tokens it stands
        alone. A special token's name means that token in it where it would in the prompt. `last` keeps that many text
        tokens at most, those at the end, and every virtual token. `add_special_tokens` is for a prompt's text,
        `add_generation_prompt` for messages: whether the assistant's turn is begun.

        Raises InvalidRequest naming the field at fault, ContextTooLong for text that cannot fit whatever it says,
        AdapterIncompatible where the template needs a BOS token that the base model lacks.
        """
        task_index = _task_index(spec, task)
        self.admit(label, "labels")
        given = {"prompt": prompt, "messages": messages, "fields": fields}
        if sum(value is not None for value in given.values()) != 1:
            raise InvalidRequest("send exactly one of prompt, messages and fields", param="prompt")
        template = None if spec is None else spec.template
        if spec is not None and template is not None:
            if last is not None:
                raise InvalidRequest(
                    "this adapter has a template: cutting its beginning would leave nothing that it was trained on",
                    param="truncate_prompt_tokens",
                )
            prefix, tokens = self._fill(spec, template, prompt, messages, fields, label)
        elif fields is not None:
            whose = "the base model" if spec is None else "this adapter"
            raise InvalidRequest(f"{whose} has no template with fields: send prompt or messages", param="fields")
        elif messages is not None:
            prefix, tokens = self._converse(spec, messages, label, add_generation_prompt)
            tokens = tokens if last is None else self._last(tokens, last)
        else:
            assert prompt is not None, "one of the three is given"
            prefix, tokens = self._rows(spec), self._plain(prompt, label, last, add_special_tokens)
        return self._rendered(prefix, tokens, task_index)

    def admit(self, text: str, param: str) -> None:
        """Refuse, before the work of tokenising, text that is far too long or is no text.

        Raises ContextTooLong, InvalidRequest.
        """
        if len(text) > self._max_chars:
            raise ContextTooLong(
                f"the text has {len(text)} characters; the context cannot hold more than {self._max_chars}", param=param
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidRequest("the text holds half of a surrogate pair", param=param) from None

    def _rendered(self, prefix: tuple[int, ...], tokens: tuple[int, ...], task_index: int) -> RenderedPrompt:
        if not tokens:
            if not prefix:
                raise InvalidRequest("the prompt is empty: it holds no token", param="prompt")
            # The first token is drawn from the logits of the last one before it, so one has to be computed.
            prefix, tokens = prefix[:-1], prefix[-1:]
        text_tokens = sum(token < self._vocab_size for token in (*prefix, *tokens))
        return RenderedPrompt(tokens, prefix, text_tokens, task_index, max(tokens) >= self._vocab_size)

    def _rows(self, spec: AdapterSpec | None) -> tuple[int, ...]:
        """The ids of all virtual tokens that have embeddings."""
        if spec is None or spec.kind.holds_kv:
            return ()
        return tuple(range(self._vocab_size, self._vocab_size + spec.num_virtual_tokens))

    def _last(self, tokens: tuple[int, ...], last: int) -> tuple[int, ...]:
        """Return all virtual tokens, and of the others those at the end, `last` at most."""
        spare = sum(token < self._vocab_size for token in tokens) - last
        kept = []
        for token in tokens:
            if token < self._vocab_size and spare > 0:
                spare -= 1
            else:
                kept.append(token)
        return tuple(kept)

    def _plain(
        self, prompt: str | Sequence[int], label: str, last: int | None, add_special_tokens: bool
    ) -> tuple[int, ...]:
        if isinstance(prompt, str):
            self.admit(prompt + label, "prompt")
            ids = self._tokenizer.encode(prompt + label, add_special_tokens=add_special_tokens, last=last)
            return self._known(ids, "prompt")
        for token in prompt:
            if not 0 <= token < self._vocab_size:
                beyond = ": ids from there on name virtual tokens, which only an adapter places"
                raise InvalidRequest(
                    f"the prompt holds token id {token}; the vocabulary ends at {self._vocab_size - 1}"
                    + (beyond if token >= self._vocab_size else ""),
                    param="prompt",
                )
        ids = (*prompt, *self._run([(label, True)], "labels")) if label else tuple(prompt)
        return ids if last is None else ids[-last:]

    def _converse(
        self,
        spec: AdapterSpec | None,
        messages: Sequence[Mapping[str, object]],
        label: str,
        add_generation_prompt: bool,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self._chat is None:
            raise InvalidRequest("this base model has no chat template: send prompt", param="messages")
        # Before the work of the template too: what it would make of so much text does not matter.
        contents = (message.get("content") for message in messages)
        self.admit("".join(content for content in contents if isinstance(content, str)), "messages")
        place = "start" if spec is None else spec.chat
        before, after = self._chat.render(messages, place, add_generation_prompt=add_generation_prompt)
        if label:
            after = (*after, (label, True))
        self.admit("".join(text for text, _ in (*before, *after)), "messages")
        rows, head, tail = self._rows(spec), self._run(before, "messages"), self._run(after, "messages")
        return (rows, tail) if place == "start" else ((), head + rows + tail)

    def _fill(
        self,
        spec: AdapterSpec,
        template: Template,
        prompt: str | Sequence[int] | None,
        messages: object,
        fields: Mapping[str, str] | None,
        label: str,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the prefix and the tokens of a filled template, and of a label behind it."""
        names = template.field_names
        told = f"this adapter's template has the field{'s' * (len(names) > 1)} {', '.join(names)}"
        if messages is not None:
            raise InvalidRequest(f"{told}: send {_how(names)}, not messages", param="messages")
        if prompt is not None:
            if len(names) != 1:
                raise InvalidRequest(f"{told}: send fields", param="prompt")
            if not isinstance(prompt, str):
                raise InvalidRequest(f"{told}, which is filled with text: send {_how(names)}", param="prompt")
            fields = {names[0]: prompt}
        texts = self._texts(spec, names, fields or {}, "prompt" if prompt is not None else "fields")
        pieces = template.pieces
        if label:
            pieces, texts[_LABEL] = (*pieces, Field(_LABEL)), label
        # A template may repeat a field; what counts is the text that is tokenised.
        length = sum(len(texts[piece.name]) for piece in pieces if isinstance(piece, Field))
        if length > self._max_chars:
            raise ContextTooLong(
                f"the filled template has {length} characters; the context cannot hold more than {self._max_chars}",
                param="fields",
            )
        if template.has_rows:
            ids, stable = self._place(pieces, texts)
            return ids[:stable], ids[stable:]
        parts, _ = self._parts(pieces, texts)
        return self._rows(spec), self._run(parts, "fields")

    def _texts(self, spec: AdapterSpec, names: Sequence[str], fields: Mapping[str, str], param: str) -> dict[str, str]:
        """Return the text of every field, held to its rule."""
        for name in fields:
            if name not in names:
                raise InvalidRequest(
                    f"there is no field {name[:64]!r}; this adapter's template has {', '.join(names)}", param="fields"
                )
        rules = {rule.name: rule for rule in spec.fields}
        texts: dict[str, str] = {}
        for name in names:
            rule = rules.get(name, FieldRule(name))
            text = fields.get(name)
            if text is None and rule.required:
                raise InvalidRequest(f"the field {name} is missing", param="fields")
            texts[name] = self._ruled(text or "", rule, param)
        return texts

    def _ruled(self, text: str, rule: FieldRule, param: str) -> str:
        self.admit(text, param)
        if rule.max_tokens is None:
            return text
        length = len(self._tokenizer.encode_run([(text, True)]).ids)
        if length <= rule.max_tokens:
            return text
        if rule.truncate is None:
            raise InvalidRequest(
                f"the field {rule.name} has {length} tokens; this adapter takes at most {rule.max_tokens}", param=param
            )
        # "left" names the side that is cut away.
        return self._tokenizer.cut(text, rule.max_tokens, keep="end" if rule.truncate == "left" else "start")

    def _place(self, pieces: Sequence[Piece], texts: Mapping[str, str]) -> tuple[tuple[int, ...], int]:
        """Return the ids of pieces with rows among them, and how many of the first of them no request can change.

        Text that touches a field is tokenised with it, so what is stable ends with the last virtual or special token
        before the first field; without a virtual token there, nothing is worth compiling.
        """
        ids: tuple[int, ...] = ()
        stable, rows_seen, fields_seen = 0, False, False
        for group in _groups(pieces):
            if isinstance(group, Rows):
                ids += tuple(range(self._vocab_size + group.first, self._vocab_size + group.last + 1))
                rows_seen = True
                stable = stable if fields_seen else len(ids)
                continue
            parts, first_field = self._parts(group, texts)
            run = self._tokenizer.encode_run(parts)
            constant = [place + 1 for place, part in run.specials if part < first_field]
            if rows_seen and not fields_seen and constant:
                stable = len(ids) + constant[-1]
            fields_seen = fields_seen or first_field < len(parts)
            ids += self._known(run.ids, "fields")
        return ids, stable

    def _parts(self, pieces: Sequence[Piece], texts: Mapping[str, str]) -> tuple[list[Part], int]:
        """Return the parts of one run of text, and the number of the first field among them."""
        parts: list[Part] = []
        first_field = len(pieces)
        for number, piece in enumerate(pieces):
            match piece:
                case Literal(text):
                    parts.append((text, False))
                case Bos():
                    parts.append((self._bos(), False))
                case Field(name):
                    first_field = min(first_field, number)
                    parts.append((texts[name], True))
        return parts, first_field

    def _bos(self) -> str:
        if self._tokenizer.bos_token is None:
            raise AdapterIncompatible("the adapter's template has {bos}, but this base model has no BOS token")
        return self._tokenizer.bos_token

    def _run(self, parts: Sequence[Part], param: str) -> tuple[int, ...]:
        return self._known(self._tokenizer.encode_run(parts).ids, param)

    def _known(self, ids: tuple[int, ...], param: str) -> tuple[int, ...]:
        """A tokenizer may know more tokens than the model has embeddings for; such an id would name a virtual row."""
        if ids and max(ids) >= self._vocab_size:
            text = self._tokenizer.token_text(max(ids))
            raise InvalidRequest(f"the base model has no embedding for {text!r}", param=param)
        return ids


def _task_index(spec: AdapterSpec | None, task: int | str | None) -> int:
    """Return the row of a multitask adapter's task matrices; 0 for other kinds, which take no task."""
    if spec is None or spec.kind is not AdapterKind.MULTITASK_PROMPT_TUNING:
        if task is not None:
            raise InvalidRequest("task is for multitask_prompt_tuning adapters only", param="task")
        return 0
    names = dict(spec.tasks)
    known = f"0 to {spec.num_tasks - 1}" + (f", or {', '.join(names)}" if names else "")
    if task is None:
        if spec.num_tasks > 1:
            raise InvalidRequest(f"this adapter has {spec.num_tasks} tasks: send task, {known}", param="task")
        return 0
    index = names.get(task, -1) if isinstance(task, str) else task
    if isinstance(task, bool) or not 0 <= index < spec.num_tasks:
        raise InvalidRequest(f"this adapter has no such task; its tasks are {known}", param="task")
    return index


def _how(names: Sequence[str]) -> str:
    return "prompt as a string, or fields" if len(names) == 1 else "fields"


def _groups(pieces: Sequence[Piece]) -> list[Rows | list[Piece]]:
    """Return the pieces with each maximal run of text between virtual tokens as one list."""
    groups: list[Rows | list[Piece]] = []
    for piece in pieces:
        if isinstance(piece, Rows):
            groups.append(piece)
        elif groups and isinstance(groups[-1], list):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
