"""The engine as a process of its own: it answers, survives aborts, is restarted when killed, and never outlives us."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from server.core import NO_TOKEN, AdapterKind, BaseModel, EngineConfig, SamplingParams, Scoring, TokenEvent
from server.engine.client import ProcessEngine, SequenceStream
from server.engine.loading import build_engine
from server.engine.messages import StepReport, Submit
from server.errors import AdapterRejected, EngineRestarting, WaybillError
from tests.parity.oracle import SavedAdapter, ask_peft, ask_plain, save_adapter
from tests.tiny_models import VOCAB_SIZE, tiny_model


def config_for(folder: Path) -> EngineConfig:
    base = BaseModel(
        name="tiny",
        family="llama",
        digest="sha256:tiny",
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_kv_heads=2,
        head_dim=8,
        context_length=512,
        eos_token_ids=(),
    )
    return EngineConfig(
        model_path=str(folder),
        base=base,
        dtype="float32",
        device="cpu",
        attention="reference",
        kv_memory=4 * 2**20,
        prefix_memory=2 * 2**20,
        max_model_len=512,
        max_virtual_tokens=128,
        max_seqs=16,
        step_tokens=64,
        threads=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(folder: Path) -> SavedAdapter:
    return save_adapter(tiny_model("llama"), AdapterKind.PROMPT_TUNING, folder / "adapter", 6)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(config_for(folder))
    await engine.start()
    yield engine
    await engine.close()


async def tokens_of(stream: SequenceStream) -> tuple[int, ...]:
    return tuple([event.token async for event in stream])


PROMPT = [5, 17, 200, 42, 8]
GREEDY = SamplingParams(max_tokens=24)
ENDLESS = SamplingParams(max_tokens=500)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_it_answers_as_the_oracle_does(engine: ProcessEngine, adapter: SavedAdapter) -> None:
    source = adapter.source(VOCAB_SIZE)
    streams = [engine.submit(tuple(PROMPT), GREEDY), engine.submit(tuple(PROMPT), GREEDY, source)]
    plain, adapted = await asyncio.gather(*map(tokens_of, streams))
    assert plain == ask_plain(tiny_model("llama"), PROMPT).tokens
    assert adapted == ask_peft(lambda: tiny_model("llama"), adapter, PROMPT).tokens
    assert streams[1].started is not None
    assert streams[1].started.queue_ms >= streams[1].started.load_ms > 0


async def test_a_prompt_is_scored_and_nothing_is_drawn(engine: ProcessEngine) -> None:
    stream = engine.submit(tuple(PROMPT), SamplingParams(max_tokens=0), scoring=Scoring(top=1, after=(7,)))
    assert await tokens_of(stream) == (NO_TOKEN,)
    expected = ask_plain(tiny_model("llama"), PROMPT).logits.double().log_softmax(dim=-1)
    (scores,) = stream.scores
    assert scores.start == 1
    assert scores.logprobs == pytest.approx([float(expected[i, t]) for i, t in enumerate(PROMPT[1:])], abs=1e-4)
    assert [top[0][0] for top in scores.tops] == expected[: len(PROMPT) - 1].argmax(dim=-1).tolist()
    assert scores.after == pytest.approx((float(expected[len(PROMPT) - 1, 7]),), abs=1e-4)
    assert stream.started is not None
    assert stream.started.cached_tokens == 0


async def test_prompts_that_start_alike_share_where_their_salts_are_the_same(engine: ProcessEngine) -> None:
    reports: list[StepReport] = []
    engine.on_report(reports.append)
    prompt = tuple(1 + i * 7 % 250 for i in range(150))
    answers = []
    found = []
    for salt in ("a", "a", "b", None):
        answers.append(await tokens_of(engine.submit(prompt, GREEDY, salt=salt)))
        stats = reports[-1].stats
        assert stats is not None
        found.append((stats.asked_tokens, stats.cached_tokens))
    assert len(set(answers)) == 1
    assert found == [(150, 0), (300, 149), (450, 149), (450, 149)]


@pytest.mark.parametrize(("prompt_cache", "cached"), [(True, 149), (False, 0)])
async def test_without_a_prompt_cache_nothing_is_shared(folder: Path, prompt_cache: bool, cached: int) -> None:
    engine, _ = build_engine(replace(config_for(folder), prompt_cache=prompt_cache))
    for number in range(2):
        engine.handle(Submit(number, tuple(range(1, 151)), GREEDY, salt="a"))
        while not engine.waits:
            report = engine.step()[-1]
    assert isinstance(report, StepReport)
    assert report.stats is not None
    assert report.stats.cached_tokens == cached


async def test_an_abort_frees_the_memory_within_a_second(engine: ProcessEngine) -> None:
    reports: list[StepReport] = []
    engine.on_report(reports.append)
    stream = engine.submit(tuple(PROMPT), ENDLESS)
    async for _ in stream:
        break
    assert reports[-1].stats is not None
    assert reports[-1].stats.blocks_used > 0
    stream.abort()
    deadline = time.monotonic() + 1.0
    while reports[-1].stats is None or reports[-1].stats.running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_reader_may_let_go_on_the_last_event(engine: ProcessEngine) -> None:
    """As the service does: it aborts whatever is finished, and the next request is answered all the same."""
    for _ in range(2):
        stream = engine.submit((1, 2, 3), SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True))
        tokens: list[int] = []
        ended: asyncio.Future[WaybillError | None] = asyncio.get_running_loop().create_future()

        def take(event: TokenEvent, stream: SequenceStream = stream, tokens: list[int] = tokens) -> None:
            tokens.append(event.token)
            if event.finish is not None:
                stream.abort()

        stream.listen(take, ended.set_result)
        assert await asyncio.wait_for(ended, 10) is None
        assert len(tokens) == 2


async def test_a_bad_adapter_fails_its_own_request(engine: ProcessEngine, adapter: SavedAdapter) -> None:
    broken = replace(adapter.source(VOCAB_SIZE), sha256="0" * 64)
    good = engine.submit(tuple(PROMPT), GREEDY)
    with pytest.raises(AdapterRejected, match="sha256"):
        await tokens_of(engine.submit(tuple(PROMPT), GREEDY, replace(broken, key=replace(broken.key, adapter="x"))))
    assert len(await tokens_of(good)) == 24


async def test_check_judges_values(engine: ProcessEngine, adapter: SavedAdapter, tmp_path: Path) -> None:
    await engine.check(adapter.source(VOCAB_SIZE))
    tall = SavedAdapter(AdapterKind.PROMPT_TUNING, tmp_path, 6)
    table = torch.randn(6, 32)
    table[2] *= 1e9
    save_file({"prompt_embeddings": table}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterRejected, match="row 2"):
        await engine.check(tall.source(VOCAB_SIZE))


async def test_a_killed_engine_fails_what_is_open_and_comes_back(
    engine: ProcessEngine, caplog: pytest.LogCaptureFixture
) -> None:
    deaths: list[float] = []
    engine.on_death(lambda: deaths.append(time.monotonic()))
    stream = engine.submit(tuple(PROMPT), ENDLESS)
    async for _ in stream:
        break
    killed = time.monotonic()
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineRestarting):
        await tokens_of(stream)
    assert time.monotonic() - killed < 2.0
    with pytest.raises(EngineRestarting):
        engine.submit(tuple(PROMPT), GREEDY)
    await engine.wait_ready(60)
    assert len(deaths) == 1
    died = next(record for record in caplog.records if record.levelname == "ERROR")
    assert "the engine process died (Killed)" in died.getMessage()
    assert await tokens_of(engine.submit(tuple(PROMPT), GREEDY)) == ask_plain(tiny_model("llama"), PROMPT).tokens


async def test_a_model_that_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    tiny_model("bloom").save_pretrained(tmp_path)
    engine = ProcessEngine(config_for(tmp_path))
    with pytest.raises(RuntimeError, match="bloom"):
        await engine.start()


async def test_the_engine_ends_with_its_parent(folder: Path) -> None:
    script = textwrap.dedent("""
        import asyncio, json, sys
        from server.core import BaseModel, EngineConfig
        from server.engine.client import ProcessEngine

        async def main():
            settings = json.loads(sys.argv[1])
            settings["base"] = BaseModel(**settings["base"] | {"eos_token_ids": ()})
            engine = ProcessEngine(EngineConfig(**settings))
            await engine.start()
            print(engine.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """)
    settings = json.dumps(asdict(config_for(folder)))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, settings, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    deadline = time.monotonic() + 5.0
    while runs(child):
        assert time.monotonic() < deadline, "the engine outlived its parent"
        await asyncio.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether the process is there and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
