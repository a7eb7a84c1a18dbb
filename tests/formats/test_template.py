"""Templates: what they parse to, and why they are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core import AdapterKind
from server.errors import AdapterRejected
from server.formats.template import Bos, Field, Literal, Rows, Template, parse_template

SOFT, KV = AdapterKind.P_TUNING, AdapterKind.PREFIX_TUNING


def test_the_pieces_stand_as_written() -> None:
    template = parse_template("{bos}{v:0-5}Review: {text}\nSentiment:{v:6}{v:7-9}", 10, SOFT)
    assert template.pieces == (
        Bos(), Rows(0, 5), Literal("Review: "), Field("text"), Literal("\nSentiment:"), Rows(6, 6), Rows(7, 9),
    )  # fmt: skip
    assert template.has_rows
    assert template.source == "{bos}{v:0-5}Review: {text}\nSentiment:{v:6}{v:7-9}"


def test_doubled_braces_are_literal_and_text_stays_whole() -> None:
    template = parse_template('{{"a": {x}}} {{v:0}} {{{y}}}', 4, SOFT)
    assert template.pieces == (
        Literal('{"a": '), Field("x"), Literal("} {v:0} {"), Field("y"), Literal("}"),
    )  # fmt: skip
    assert not template.has_rows


def test_a_field_may_stand_twice() -> None:
    template = parse_template("{text} {other} {text}", 4, SOFT)
    assert template.field_names == ("text", "other")


def test_without_rows_a_prefix_may_have_a_template() -> None:
    assert parse_template("Q: {text}\nA:", 4, KV).field_names == ("text",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{v:0-4}{text}{v:4}", "uses row 4 twice"),
        ("{v:0-4}{v:0-4}{text}", "uses row 0 twice"),
        ("{v:0-3}{text}", "never uses row 4"),
        ("{v:1-3}{text}", "never uses 2 rows, the first of them row 0"),
        ("{v:2-4}{text}{v:0-1}", "row 0 stands after row 4: rows stand in order"),
        ("{v:4-0}{text}", "runs backwards"),
        ("{v:0-5}{text}", "names row 5, but the table has 5 rows, 0 to 4"),
        ("{v:0-999999999}{text}", "names row 999999999"),
        ("{v:0-9999999999}{text}", "names no rows"),
        ("{v}{text}", r"names no rows: write \{v:0\} or \{v:0-9\}"),
        ("{v:}{text}", "names no rows"),
        ("{v:-1}{text}", "names no rows"),
        ("{v:٣}{text}", "names no rows"),
        ("{v:0-4}", "has no field"),
        ("", "has no field"),
        ("{{text}}", "has no field"),
        ("{Text}", "marker 'Text' is not bos, v:rows or a field name"),
        ("{}", "marker '' is not"),
        ("{a b}", "marker 'a b' is not"),
        ("{text\n}", "marker"),
        (f"{{{'x' * 33}}}", "marker"),
        ("{text", r"lone '\{' at character 0: write '\{\{'"),
        ("text} {text}", r"lone '\}' at character 4"),
        ("{a{text}", "lone"),
    ],
)
def test_each_fault_has_its_reason(source: str, reason: str) -> None:
    with pytest.raises(AdapterRejected, match=reason):
        parse_template(source, 5, SOFT)


def test_a_prefix_cannot_be_placed() -> None:
    with pytest.raises(AdapterRejected, match=r"PREFIX_TUNING adapter holds keys and values.*leave \{v:…\} out"):
        parse_template("{v:0-4}{text}", 5, KV)


def test_the_work_does_not_grow_with_what_a_hostile_template_names() -> None:
    with pytest.raises(AdapterRejected, match="uses row 0 twice"):
        parse_template("{v:0-4095}" * 6000 + "{text}", 4096, SOFT)


@given(st.text(alphabet="{}v:0123456789-bostex \n", max_size=40), st.integers(1, 12))
def test_any_source_parses_to_itself_or_is_refused(source: str, count: int) -> None:
    try:
        template = parse_template(source, count, SOFT)
    except AdapterRejected:
        return
    assert parse_template(written(template), count, SOFT).pieces == template.pieces
    placed = [row for piece in template.pieces if isinstance(piece, Rows) for row in range(piece.first, piece.last + 1)]
    assert placed in ([], list(range(count)))


def written(template: Template) -> str:
    parts = []
    for piece in template.pieces:
        match piece:
            case Rows(first, last):
                parts.append(f"{{v:{first}-{last}}}")
            case Literal(text):
                parts.append(text.replace("{", "{{").replace("}", "}}"))
            case Bos():
                parts.append("{bos}")
            case Field(name):
                parts.append(f"{{{name}}}")
    return "".join(parts)
