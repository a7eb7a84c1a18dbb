"""Some hundred requests made from the OpenAPI document; ten thousand are in tests/long."""

from __future__ import annotations

from pathlib import Path

from tests.fuzzing.fuzzing import fake_server, fuzz


def test_what_is_documented_is_what_is_answered(tmp_path: Path) -> None:
    with fake_server(tmp_path) as (url, key):
        with_key = fuzz(url, tmp_path, key=key, examples=10, phases="fuzzing")
        without = fuzz(url, tmp_path, key=None, examples=3, phases="fuzzing")
    assert with_key["operations"]["tested"] == with_key["operations"]["total"] > 20
    assert with_key["test_cases"]["generated"] >= 200
    assert without["test_cases"]["generated"] >= 50
