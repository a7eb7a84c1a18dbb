"""The shapes in which clients of several APIs ask for structured text, and what each means to the service."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.strict import Strict
from server.service.exchange import Structure

SchemaObject = dict[str, Any]
SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(Strict):
    """A JSON schema under a name, as OpenAI's clients send it. Name and description never reach the model."""

    name: SchemaName
    schema_: SchemaObject = Field(alias="schema")
    strict: bool | None = Field(None, description="The schema is enforced whatever this says.")
    description: Annotated[str, Field(max_length=1024)] | None = None


class ResponseFormat(Strict):
    """OpenAI's `response_format`; clients of TGI and LoRAX give a `json_object` the schema beside it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    value: SchemaObject | None = Field(None, description="The schema of a json_object, as TGI names it.")
    schema_: SchemaObject | None = Field(None, alias="schema", description="The same, as LoRAX names it.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.type == "json_schema") is not (self.json_schema is not None):
            raise ValueError("json_schema is needed for the type json_schema, and for no other")
        if None not in (self.value, self.schema_):
            raise ValueError("value and schema are two names of one field; send one of them")
        if self.type != "json_object" and (self.value, self.schema_) != (None, None):
            raise ValueError("value and schema are for the type json_object")
        return self

    def structure(self, param: str = "response_format") -> Structure | None:
        """Return what the text must match, None for any text."""
        if self.json_schema is not None:
            return Structure("json_schema", _written(self.json_schema.schema_), f"{param}.json_schema.schema")
        for name, schema in (("value", self.value), ("schema", self.schema_)):
            if schema is not None:
                return Structure("json_schema", _written(schema), f"{param}.{name}")
        return None if self.type == "text" else Structure("json_object", "", param)


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: exactly one of these."""

    json_: SchemaObject | str | None = Field(None, alias="json", description="A JSON schema, or its text.")
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = Field(None, description="GBNF, EBNF in that notation, or Lark.")
    json_object: Literal[True] | None = Field(None, description="Any JSON object.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(given := self._given()) != 1:
            raise ValueError(
                "exactly one of json, regex, choice, grammar and json_object is needed;"
                f" got {' and '.join(given) or 'none'}"
            )
        return self

    def structure(self, param: str = "structured_outputs") -> Structure:
        """Return what the text must match."""
        (kind,) = self._given()
        where = f"{param}.{kind}"
        if self.json_ is not None:
            return Structure("json_schema", _text(self.json_), where)
        if self.regex is not None:
            return Structure("regex", self.regex, where)
        if self.choice is not None:
            return Structure("choice", _written(self.choice), where)
        if self.grammar is not None:
            return Structure("grammar", self.grammar, where)
        return Structure("json_object", "", where)

    def _given(self) -> list[str]:
        values = {
            "json": self.json_,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
            "json_object": self.json_object,
        }
        return [name for name, value in values.items() if value is not None]


class TgiGrammar(Strict):
    """TGI's `grammar`. Its examples leave out that a schema with `properties` is meant for an object; here too."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: SchemaObject | str

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.type == "regex" and not isinstance(self.value, str):
            raise ValueError("the value of a regex is a string")
        if self.type == "json_schema":
            schema = self.value.get("schema") if isinstance(self.value, dict) else None
            if not isinstance(schema, dict) or not set(self.value) <= {"name", "schema"}:
                raise ValueError("the value of a json_schema is an object with a schema, and perhaps a name")
        return self

    def structure(self, param: str = "grammar") -> Structure:
        """Return what the text must match."""
        where = f"{param}.value"
        value = self.value
        if self.type == "json_schema" and isinstance(value, dict):
            value = value["schema"]
        if isinstance(value, dict) and "properties" in value:
            value = {"type": "object", **value}
        return Structure("regex" if self.type == "regex" else "json_schema", _text(value), where)


def wanted_structure(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Structure | None:
    """Return what a body with both fields asks for. Raises ValueError where both ask for something."""
    asked = None if response_format is None else response_format.structure()
    if structured_outputs is None:
        return asked
    if asked is not None:
        raise ValueError("response_format and structured_outputs exclude each other")
    return structured_outputs.structure()


def _text(schema: SchemaObject | str) -> str:
    return schema if isinstance(schema, str) else _written(schema)


def _written(value: SchemaObject | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
