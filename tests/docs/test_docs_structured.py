"""The section on structured output names every keyword, every form and every bound."""

from __future__ import annotations

import re

from server.api.structure import ResponseFormat, StructuredOutputs
from server.service import grammar_text, json_schema, structure
from tests.docs.markdown import DOCS, code, rows, section

TEXT = section(DOCS / "api.md", "Structured output")


def test_schema_keywords() -> None:
    keywords = json_schema.ENFORCED | json_schema.ANNOTATIONS
    listed = TEXT[TEXT.index("**Schemas**") : TEXT.index("- Properties")]
    assert keywords <= set(code(listed))


def test_forms() -> None:
    fields = {field.alias or name for name, field in StructuredOutputs.model_fields.items()}
    names = {name for row in rows(TEXT) for name in code(row[0])}
    assert fields <= names
    types = ResponseFormat.model_json_schema()["properties"]["type"]["enum"]
    assert {kind for kind in types if any(f'"type": "{kind}"' in name for name in names)} == set(types)


def test_bounds() -> None:
    numbers = {int(number) for number in re.findall(r"\d+", TEXT)}
    assert numbers >= {
        structure.MAX_REGEX,
        structure.MAX_CHOICES,
        structure.MAX_CHOICE,
        grammar_text.MAX_CHARS,
        grammar_text.MAX_RULES,
        grammar_text.MAX_NESTING,
        json_schema.MAX_BYTES // 1024,
        json_schema.MAX_DEPTH,
        json_schema.MAX_PROPERTIES,
        json_schema.MAX_VALUES,
        json_schema.MAX_REFS,
        json_schema.MAX_COUNT,
    }
