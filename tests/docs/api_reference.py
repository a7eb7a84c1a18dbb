"""Writes what docs/api.md says of routes, fields, replies and errors, from the code: `make docs`.

A part begins with a line like `<!-- fields GenerateRequest -->` and ends with `<!-- end -->`; what stands around it is
written by hand. The server needs none of this to run, so it stands here, beside the test that holds the page to it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from server.api.adapters.cards import AdapterCard, AliasMove, ParityCard, ResidencyCard, VersionCard
from server.api.adapters.changing import AliasTarget, Description
from server.api.adapters.residency import ResidencyChange
from server.api.fields import GenerationFields
from server.api.generate import GenerateReply, GenerateRequest
from server.api.openai.chat import ChatRequest
from server.api.openai.chat_replies import ChatReply
from server.api.openai.completion_replies import CompletionReply
from server.api.openai.completions import CompletionRequest
from server.api.openai.fields import OpenAIFields
from server.api.openai.models import ModelCard
from server.api.tgi.info import TgiInfo
from server.api.tgi.replies import TgiEvent, TgiReply
from server.api.tgi.schemas import TgiParameters, TgiRequest
from server.api.tokenize import (
    DetokenizeReply,
    DetokenizeRequest,
    LocatedToken,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
)
from server.app import create_app
from server.errors import all_errors
from server.formats.base import read_base_model
from server.settings import Settings, make_plan
from tests.docs.markdown import DOCS
from tests.fakes import FakeEngine
from tests.http import folders
from tests.http.conftest import MACHINE

Row = tuple[str, ...]

PAGE = DOCS / "api.md"
MODELS: dict[str, type[BaseModel]] = {
    model.__name__: model
    for model in (
        GenerationFields, GenerateRequest, GenerateReply, OpenAIFields, CompletionRequest, CompletionReply, ChatRequest,
        ChatReply, ModelCard, TokenizeRequest, TokenizeReply, LocatedToken, DetokenizeRequest, DetokenizeReply,
        TokenizerInfo, TgiRequest, TgiParameters, TgiReply, TgiEvent, TgiInfo, AdapterCard,
        VersionCard, AliasMove, AliasTarget, Description, ParityCard, ResidencyCard, ResidencyChange,
    )
}  # fmt: skip

_PART = re.compile(r"(<!-- (routes|fields|reply|form|errors)((?: [\w/]+)*) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text()))


def written(page: str) -> str:
    """Return the page with each part as the code has it now."""
    document = document_of_the_api()

    def part(match: re.Match[str]) -> str:
        start, kind, arguments, end = match.groups()
        return f"{start}{_part(document, kind, arguments.split())}{end}"

    return _PART.sub(part, page)


def document_of_the_api() -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    with tempfile.TemporaryDirectory() as folder:
        model = folders.make_model(Path(folder) / "model")
        settings = Settings(model=model, store=Path(folder) / "store")
        app: FastAPI = create_app(settings, make_plan(settings, read_base_model(model), MACHINE), FakeEngine())
        return app.openapi()


def _part(document: dict[str, Any], kind: str, arguments: list[str]) -> str:
    match kind, arguments:
        case "routes", []:
            return _table(("route", "what", "statuses"), _routes(document))
        case "errors", []:
            return _table(("status", "code", "when"), _errors())
        case "form", [path]:
            body = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
            return _table(("part", "type", "meaning"), _form(body))
        case "fields", [name]:
            return _table(("field", "type and bounds", "default", "meaning"), _fields(MODELS[name]))
        case "fields", [name, "beside", base]:
            known = set(_fields(MODELS[base]))
            rows = [row for row in _fields(MODELS[name]) if row not in known]
            return _table(("field", "type and bounds", "default", "meaning"), rows)
        case "reply", [name]:
            schema = MODELS[name].model_json_schema(mode="serialization")
            return _table(("field", "type", "meaning"), _reply(schema, schema.get("$defs", {}), "", ()))
    raise AssertionError(f"no such part: {kind} {arguments}")


def _table(head: Row, rows: Iterable[Row]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def _routes(document: dict[str, Any]) -> Iterator[Row]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            what = _paragraph(operation["description"])
            yield f"`{method.upper()} {path}`", what, ", ".join(sorted(operation["responses"]))


def _errors() -> Iterator[Row]:
    for error in sorted(all_errors(), key=lambda error: error.status):
        yield str(error.status), f"`{error.code}`", _paragraph(error.__doc__ or "")


def _form(schema: dict[str, Any]) -> Iterator[Row]:
    for name, part in schema["properties"].items():
        yield f"`{name}`", _shape(part, {}), part["description"]


def _fields(model: type[BaseModel]) -> list[Row]:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    required = schema.get("required", [])
    return [
        (
            f"`{name}`",
            _shape(field, definitions),
            "needed" if name in required else _default(field),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    ]


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if default in (None, [], {}) or isinstance(default, dict):
        return ""
    return f"`{json.dumps(default).removesuffix('.0')}`"


def _reply(schema: dict[str, Any], definitions: dict[str, Any], prefix: str, seen: tuple[str, ...]) -> Iterator[Row]:
    """Yield a row for each field, those of nested objects by their path."""
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        nested, items = _nested(field, definitions)
        known = nested is not None and nested not in seen
        inner = definitions[nested] if nested is not None and known else {}
        meaning = field.get("description") or (_paragraph(inner["description"]) if "description" in inner else "")
        absent = "; may be absent" if field.get("default", 0) in (None, [], {}) else ""
        shape = _shape(field, definitions) if nested is None else f"{'list of ' * items}object{'s' * bool(items)}"
        yield f"`{path}`", shape + absent, meaning
        if nested is not None and known:
            yield from _reply(inner, definitions, f"{path}{'[]' * items}.", (*seen, nested))


def _nested(field: dict[str, Any], definitions: dict[str, Any]) -> tuple[str | None, int]:
    """The definition that the field's value is or holds, and in how many lists it stands."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return (name, 0) if "properties" in definitions[name] else (None, 0)
    for option in field.get("anyOf", field.get("oneOf", [])):
        name, depth = _nested(option, definitions)
        if name is not None:
            return name, depth
    if field.get("type") == "array":
        name, depth = _nested(field.get("items", {}), definitions)
        return name, depth + 1
    return None, 0


def _shape(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What values there may be, in words. `null` is not told apart: in a body it is the same as no value."""
    if "$ref" in schema:
        return _shape(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    options = schema.get("anyOf", schema.get("oneOf"))
    if options is not None:
        shapes = dict.fromkeys(_shape(option, definitions) for option in options)
        shapes.pop("only `null`", None)
        return ("; or " if any(" of: " in shape for shape in shapes) else " or ").join(shapes)
    if "const" in schema:
        return f"only `{json.dumps(schema['const'])}`".replace('"', "")
    if "enum" in schema:
        words = [f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`" for value in schema["enum"]]
        return f"only {words[0]}" if len(words) == 1 else ", ".join(words)
    match schema.get("type"):
        case "integer" | "number" as kind:
            return _number(kind, schema)
        case "string":
            return _text(schema)
        case "boolean":
            return "boolean"
        case "null":
            return "only `null`"
        case "array":
            return _list(schema, definitions)
        case "object" if "properties" in schema:
            return "`{" + ", ".join(schema["properties"]) + "}`"
        case "object":
            values = schema.get("additionalProperties", {})
            named = f"{_shape(values, definitions)} by name" if isinstance(values, dict) and values else "object"
            return f"up to {schema['maxProperties']}: {named}" if schema.get("maxProperties") else named
    return "any"


def _number(kind: str, schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    begin = f"above {_figure(above)}" if above is not None else None if low is None else _figure(low)
    if high is None or high == 2**31 - 1:
        bounds = "" if begin is None else f" from {begin}"
    else:
        bounds = f", {begin} to {_figure(high)}" if begin is not None else f" up to {_figure(high)}"
    return f"{kind}{bounds}"


def _figure(value: float) -> str:
    return "2^63 - 1" if value == 2**63 - 1 else f"{value:g}" if value < 10**6 else str(int(value))


def _text(schema: dict[str, Any]) -> str:
    if "pattern" in schema:
        return f"text like `{schema['pattern']}`".replace("|", "\\|")
    if schema.get("format") == "binary":
        return "file"
    low, high = schema.get("minLength"), schema.get("maxLength")
    if high is None:
        return "text"
    return f"text, {low or 0} to {high} characters" if low else f"text, up to {high} characters"


def _list(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    items = _shape(schema.get("items", {}), definitions)
    low, high = schema.get("minItems"), schema.get("maxItems")
    if high == 0:
        return "only `[]`"
    if high is None:
        return f"list of: {items}" if items != "any" else "list"
    return f"{low} to {high} of: {items}" if low else f"up to {high} of: {items}"


def _paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
