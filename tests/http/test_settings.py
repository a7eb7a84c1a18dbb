"""Settings and the plan that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.formats.base import read_base_model
from server.machine import Machine, read_machine
from server.settings import Settings, make_plan, parse_size

PLAIN = Machine(cores=3, memory=8 * 2**30, bfloat16=False, cuda=False, gpu_memory=0)
NEWER = Machine(cores=3, memory=8 * 2**30, bfloat16=True, cuda=False, gpu_memory=0)
CARD = Machine(cores=3, memory=8 * 2**30, bfloat16=False, cuda=True, gpu_memory=80 * 2**30)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WAYBILL_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "size"),
    [("128MB", 128 * 10**6), ("2GiB", 2 * 2**30), ("1.5 kib", 1536), ("4096", 4096), (4096, 4096), ("10B", 10)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "1TB", "GB", "1 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValidationError, match="kv_memory"):
        Settings(kv_memory=text)  # type: ignore[arg-type]


def test_variables_are_read_and_arguments_outrank_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_PORT", "9001")
    monkeypatch.setenv("WAYBILL_KV_MEMORY", "64MiB")
    monkeypatch.setenv("WAYBILL_QUEUE", "")
    assert Settings().port == 9001
    assert Settings().kv_memory == 64 * 2**20
    assert Settings().queue is None
    assert Settings(port=9002).port == 9002


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_beyond_loopback_keys_are_needed(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="API keys are needed"):
        Settings(host=host)
    assert Settings(host=host, keys=tmp_path / "keys.json").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost", "127.0.0.2"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert Settings(host=host).keys is None


@pytest.mark.parametrize(
    ("machine", "asked", "dtype"),
    [
        (PLAIN, "auto", "float32"),
        (NEWER, "auto", "bfloat16"),
        (CARD, "auto", "bfloat16"),
        (NEWER, "float32", "float32"),
        (PLAIN, "bfloat16", "bfloat16"),
    ],
)
def test_auto_dtype(model: Path, machine: Machine, asked: Any, dtype: str) -> None:
    assert make_plan(Settings(dtype=asked), read_base_model(model), machine).engine.dtype == dtype


def test_defaults_follow_the_machine(model: Path) -> None:
    base = read_base_model(model)
    plan = make_plan(Settings(), base, PLAIN)
    engine = plan.engine
    assert (engine.device, engine.threads, engine.max_seqs, engine.step_tokens) == ("cpu", 3, 64, 128)
    assert (engine.kv_memory, engine.prefix_memory) == (2 * 2**30, 2**30)
    assert (engine.max_model_len, engine.max_virtual_tokens) == (1024, 768)
    assert (plan.queue, plan.max_open) == (256, 320)
    large = make_plan(Settings(), base, CARD).engine
    assert (large.device, large.max_seqs, large.step_tokens) == ("cuda", 256, 8192)
    assert large.kv_memory == 48 * 2**30


def test_the_code_of_the_forward_pass_fits_the_device(model: Path) -> None:
    base = read_base_model(model)
    assert make_plan(Settings(), base, CARD).engine.attention == "auto"
    assert make_plan(Settings(attention="triton"), base, CARD).engine.attention == "triton"
    for attention, machine in (("triton", PLAIN), ("native", CARD), ("cpu", CARD)):
        with pytest.raises(ValueError, match=f"attention {attention} runs on"):
            make_plan(Settings(attention=attention), base, machine)


@pytest.mark.parametrize(("said", "kept"), [("on", True), ("off", False), ("", True)])
def test_the_prompt_cache_can_be_switched_off(
    model: Path, monkeypatch: pytest.MonkeyPatch, said: str, kept: bool
) -> None:
    monkeypatch.setenv("WAYBILL_PROMPT_CACHE", said)
    assert make_plan(Settings(), read_base_model(model), PLAIN).engine.prompt_cache is kept


def test_a_small_pool_shortens_the_longest_sequence(model: Path) -> None:
    base = read_base_model(model)
    token_bytes = base.kv_columns * 4
    plan = make_plan(Settings(kv_memory=2**20), base, PLAIN)
    assert plan.engine.max_model_len == min(1024, 2**20 // token_bytes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kv_memory": 2**20, "prefix_memory": 2**21}, "prefix_memory"),
        ({"max_model_len": 1025}, "context"),
        ({"max_virtual_tokens": 1024}, "max_virtual_tokens"),
        ({"max_seqs": 64, "step_tokens": 63}, "step_tokens"),
    ],
)
def test_contradictions_are_refused(model: Path, settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_plan(Settings(**settings), read_base_model(model), PLAIN)  # type: ignore[arg-type]


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.memory > 2**28
    assert str(machine.cores) in str(machine)
