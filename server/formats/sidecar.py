"""Read `waybill.json`, the sidecar that says what PEFT's own config cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from server.core import AdapterKind, BaseModel
from server.errors import AdapterIncompatible
from server.formats import typed
from server.formats.spec import FieldRule
from server.formats.strict_json import Malformed, parse_object, shown
from server.formats.template import Template, parse_template

CHAT_PLACES = ("start", "before_last_user", "before_generation")
SCALES = ("as_is", "sqrt_hidden")
SCALED_FAMILIES = ("gemma", "gemma2")
"""Families whose scaling of embeddings moved into the embedding in transformers 5.4: files of both meanings exist."""

_KEYS = ("version", "template", "fields", "chat", "tasks", "embed_scale", "base", "provenance", "probe")
_TASK = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_PROVENANCE = 32
_MAX_PROBE = 256


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What waybill.json says; the defaults are what no file says. See `server.formats.spec.AdapterSpec`."""

    template: Template | None = None
    fields: tuple[FieldRule, ...] = ()
    chat: str = "start"
    tasks: tuple[tuple[str, int], ...] = ()
    embed_scale: str | None = None
    base_digest: str | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    probe: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    warnings: tuple[str, ...] = ()


def parse_sidecar(data: bytes, kind: AdapterKind, num_virtual_tokens: int, num_tasks: int, base: BaseModel) -> Sidecar:
    """Return what waybill.json says of an adapter of this kind and size.

    Raises Malformed or AdapterRejected with the reason, AdapterIncompatible when it was made for another base model.
    """
    source = parse_object(data)
    typed.only_keys(source, _KEYS, "waybill.json")
    if typed.integer(source, "version", 1, 1) is None:
        raise Malformed("it has no version; this server reads version 1")
    digest, warnings = _base(typed.mapping(source, "base"), base)
    template_source = typed.text(source, "template", 64 * 1024)
    template = None if template_source is None else parse_template(template_source, num_virtual_tokens, kind)
    chat = typed.choice(source, "chat", CHAT_PLACES) or "start"
    if kind.holds_kv and chat != "start":
        raise Malformed(f"chat is {chat}, but keys and values stand before everything: only start is possible")
    return Sidecar(
        template=template,
        fields=_fields(typed.mapping(source, "fields"), template, base),
        chat=chat,
        tasks=_tasks(typed.mapping(source, "tasks"), kind, num_tasks),
        embed_scale=typed.choice(source, "embed_scale", SCALES),
        base_digest=digest,
        provenance=_provenance(typed.mapping(source, "provenance")),
        probe=_probe(typed.mapping(source, "probe"), base.vocab_size),
        warnings=warnings,
    )


def scales_by_sqrt_hidden(embed_scale: str | None, kind: AdapterKind, base: BaseModel) -> bool:
    """Return whether the soft prompt is multiplied by sqrt(hidden size) before use.

    transformers < 5.4 scaled Gemma's embeddings after a soft prompt had joined them, later ones scale inside the
    embedding: a file trained before must be multiplied, one trained after must not, and no file tells which it is.
    Raises Malformed where `embed_scale` is missing or means nothing.
    """
    if kind.holds_kv:
        if embed_scale is not None:
            raise Malformed("embed_scale is for embeddings, and this adapter holds keys and values: leave it out")
        return False
    if base.family not in SCALED_FAMILIES:
        if embed_scale == "sqrt_hidden":
            raise Malformed(
                f"embed_scale sqrt_hidden is for {' and '.join(SCALED_FAMILIES)}; a {base.family} model takes as_is"
            )
        return False
    if embed_scale is None:
        raise Malformed(
            f"a soft prompt for a {base.family} model needs embed_scale: sqrt_hidden when it was trained with "
            "transformers before 5.4 (PEFT before 0.19 is a sign of that), as_is when with a later one"
        )
    return embed_scale == "sqrt_hidden"


def _base(source: dict[str, Any], base: BaseModel) -> tuple[str | None, tuple[str, ...]]:
    """A digest is held to; a name alone is a hint, for anybody can name a folder."""
    typed.only_keys(source, ("digest", "name"), "base")
    digest, name = typed.text(source, "digest", 71), typed.text(source, "name", 256)
    if digest is None:
        return None, () if name in (None, base.name) else (other_base(name, base),)
    if not _DIGEST.fullmatch(digest):
        raise Malformed(f"base.digest is {shown(digest)}, not sha256: and 64 hex digits")
    if digest != base.digest:
        trained = f"{shown(name)} ({digest})" if name else digest
        raise AdapterIncompatible(
            f"the adapter was made for the base model {trained}; this server has {base.name} ({base.digest})"
        )
    return digest, ()


def other_base(name: str | None, base: BaseModel) -> str:
    """Return the warning for an adapter that names a base model of another name."""
    return f"the adapter names its base model {shown(name)}; this server has {shown(base.name)}"


def _fields(source: dict[str, Any], template: Template | None, base: BaseModel) -> tuple[FieldRule, ...]:
    """One rule for each field of the template, in its order."""
    names = template.field_names if template else ()
    for name in source:
        if name not in names:
            raise Malformed(f"fields has {shown(name)}, which the template does not use")
    return tuple(_field(name, typed.mapping(source, name), base.context_length) for name in names)


def _field(name: str, source: dict[str, Any], context_length: int) -> FieldRule:
    typed.only_keys(source, ("required", "max_tokens", "truncate"), f"fields.{name}")
    required = source.get("required")
    if required is not None and not isinstance(required, bool):
        raise Malformed(f"fields.{name}.required is {shown(required)}, not true or false")
    max_tokens = typed.integer(source, "max_tokens", 1, context_length)
    truncate = typed.choice(source, "truncate", ("left", "right"))
    if truncate is not None and max_tokens is None:
        raise Malformed(f"fields.{name}.truncate needs max_tokens")
    return FieldRule(name, required is not False, max_tokens, truncate)


def _tasks(source: dict[str, Any], kind: AdapterKind, num_tasks: int) -> tuple[tuple[str, int], ...]:
    if source and kind is not AdapterKind.MULTITASK_PROMPT_TUNING:
        raise Malformed(f"tasks is for MULTITASK_PROMPT_TUNING, and this adapter is {kind.upper()}")
    tasks: list[tuple[str, int]] = []
    for name in source:
        if not _TASK.fullmatch(name):
            raise Malformed(f"tasks has the name {shown(name)}: 1 to 64 letters, digits, '.', '_', '-', a letter first")
        index = typed.integer(source, name, 0, num_tasks - 1)
        if index is None or index in dict(tasks).values():
            raise Malformed(f"tasks.{name} is {shown(index)}: every name has an index of its own")
        tasks.append((name, index))
    return tuple(tasks)


def _provenance(source: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    if len(source) > _MAX_PROVENANCE:
        raise Malformed(f"provenance has {len(source)} keys, more than {_MAX_PROVENANCE}")
    for key in source:
        if len(key) > 64 or typed.text(source, key, 1024) is None:
            raise Malformed(f"provenance maps names to text, and {shown(key)} is not such a pair")
    return tuple(source.items())


def _probe(source: dict[str, Any], vocab_size: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    if not source:
        return None
    typed.only_keys(source, ("input_ids", "greedy"), "probe")
    return _ids(source, "input_ids", vocab_size), _ids(source, "greedy", vocab_size)


def _ids(source: dict[str, Any], key: str, vocab_size: int) -> tuple[int, ...]:
    ids = source.get(key)
    if not isinstance(ids, list) or not 1 <= len(ids) <= _MAX_PROBE:
        raise Malformed(f"probe.{key} is not a list of 1 to {_MAX_PROBE} token ids")
    if not all(type(item) is int and 0 <= item < vocab_size for item in ids):
        raise Malformed(f"probe.{key} holds something else than token ids, 0 to {vocab_size - 1}")
    return tuple(ids)
