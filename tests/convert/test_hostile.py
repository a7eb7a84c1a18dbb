"""Files made to do harm are refused in words, at once, and leave nothing; nothing in them runs."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from random import Random

import pytest
import torch

from server.convert.isolation import convert_file
from server.errors import AdapterRejected
from server.formats.strict_json import Malformed
from tests.convert.hostile import BOMBS, CODE, KINDS, MALFORMED, MARKER, RUNS_EVAL, RUNS_SYSTEM, saved, written
from tests.convert.tools import SAVES, TrainableCache, kv, read

SECONDS = 2


@pytest.mark.parametrize("name", [*CODE, *BOMBS])
def test_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attack = {**CODE, **BOMBS}[name]
    path = written(attack, tmp_path)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(AdapterRejected, match=attack[2]) as refused:
        convert_file(path, tmp_path / "out")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert refused.value.message.startswith(f"{path.name}: ")
    assert list(tmp_path.iterdir()) == [path]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS


@pytest.mark.parametrize("value", [RUNS_SYSTEM, RUNS_EVAL], ids=["os.system", "eval"])
def test_what_does_run_it(value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These files do what they are said to do: torch.load runs their code unless it is told not to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decoder.pt").write_bytes(saved(value))
    torch.load(tmp_path / "decoder.pt", weights_only=False)
    assert (tmp_path / MARKER).exists()


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str, tmp_path: Path) -> None:
    attack = MALFORMED[name]
    path = written(attack, tmp_path)
    start = time.process_time()
    with pytest.raises(Malformed, match=attack[2]):
        read(KINDS[path.name], path)
    assert time.process_time() - start < SECONDS


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """A file that ends early is refused wherever it ends."""
    for whole in (saved(torch.ones(2, 2)), saved(torch.ones(2, 2), old=True)):
        for end in range(0, len(whole), max(1, len(whole) // 150)):
            (tmp_path / "decoder.pt").write_bytes(whole[:end])
            with pytest.raises(Malformed):
                read(KINDS["decoder.pt"], tmp_path / "decoder.pt")


@pytest.mark.parametrize("form", SAVES)
def test_changed_bytes_are_refused_or_harmless(form: str, tmp_path: Path) -> None:
    """Whatever byte of the descriptions changes, the reader refuses in words or returns a whole table."""
    path = tmp_path / "cache_last.pt"
    whole = TrainableCache(*kv(), 1).save(path, SAVES[form]).read_bytes()
    random = Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(data)
        try:
            table = read(KINDS[path.name], path).tensors["prompt_embeddings"]
        except Malformed:
            continue
        assert sum(map(len, table.rows())) == table.num_bytes
