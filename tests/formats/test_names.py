"""References to adapters, and the names that can be one."""

from __future__ import annotations

import pytest

from server.errors import InvalidRequest
from server.formats.names import AdapterRef, check_alias, check_name, check_tenant, is_name, parse_reference

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("spam", AdapterRef("spam")),
        ("a", AdapterRef("a")),
        ("0.x_y-z", AdapterRef("0.x_y-z")),
        ("acme/spam", AdapterRef("spam", tenant="acme")),
        ("public/spam", AdapterRef("spam", tenant="public")),
        ("spam@v3", AdapterRef("spam", number=3)),
        ("acme/spam@v12", AdapterRef("spam", tenant="acme", number=12)),
        (f"spam@{DIGEST}", AdapterRef("spam", digest=DIGEST)),
        (f"acme/spam@{DIGEST}", AdapterRef("spam", tenant="acme", digest=DIGEST)),
        ("spam@prod", AdapterRef("spam", alias="prod")),
        ("acme/spam@a-1", AdapterRef("spam", tenant="acme", alias="a-1")),
    ],
)
def test_a_reference_is_read_and_written_alike(text: str, parsed: AdapterRef) -> None:
    assert parse_reference(text) == parsed
    assert str(parsed) == text


BAD_NAMES = [
    "", ".", "..", ".hidden", "-x", "_x", "Spam", "späm", "a b", "a\n", "\na", "a\x00", "a,b", "a:b", "a\\b", "a%2fb",
    "../etc", "x" * 65, "ａ", "a\u200b", "a#b", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", [*BAD_NAMES, "a/b", "a@b"])
def test_other_names_are_refused(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InvalidRequest, match=r"is not an adapter's name: 1 to 64 of a-z") as caught:
        check_name(name)
    assert caught.value.param == "name"
    with pytest.raises(InvalidRequest, match="is not a tenant's name"):
        check_tenant(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_makes_a_bad_reference(name: str) -> None:
    for text in (name, f"acme/{name}", f"{name}/spam", f"{name}@v1", f"/{name}", f"a/b/{name}"):
        with pytest.raises(InvalidRequest, match="1 to 64 of") as caught:
            parse_reference(text)
        assert caught.value.param == "adapter"
        assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "selector",
    ["", "Prod", "prod!", "-a", "a_b", "3", "v0", "v01", "v1\n", "v1,v2", "v9999999", "x" * 33, DIGEST[:-1]],
)
def test_after_the_at_only_versions_aliases_and_digests_stand(selector: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is no version: after '@' comes a version \(v3\), an alias, or a digest"):
        parse_reference(f"spam@{selector}")


def test_latest_is_what_the_bare_name_means() -> None:
    assert parse_reference("spam@latest") == parse_reference("spam")
    assert not parse_reference("spam@latest").chooses


@pytest.mark.parametrize("alias", ["a", "v", "v1a", "prod-2", "a" * 32])
def test_an_alias_is_a_plain_word(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["", "v1", "A", "1a", "a.b", "a" * 33, "a\n", "ä"])
def test_other_words_are_no_aliases(alias: str) -> None:
    with pytest.raises(InvalidRequest, match="is no alias: 1 to 32 of a-z"):
        check_alias(alias)


def test_a_long_name_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_name("x" * 1_000_000)
    assert len(caught.value.message) < 250


def test_public_is_reserved() -> None:
    with pytest.raises(InvalidRequest, match="'public' is reserved"):
        check_tenant("public")
    assert check_tenant("public", allow_public=True) == "public"
    assert check_tenant("acme") == "acme"
