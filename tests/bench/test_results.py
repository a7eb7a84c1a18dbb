"""Figures of the benchmark suite: pairs, medians, targets, the file they are kept in, and the pages made from it."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import table as gpu
from benchmarks.gpu.predict import Sizes, predict
from benchmarks.gpu.shapes import LLAMA_8B
from benchmarks.plot import svg
from benchmarks.publish import newest, pages
from benchmarks.results import (
    Comparison,
    Figure,
    Findings,
    Point,
    Result,
    Turn,
    compare,
    read_earlier,
    read_result,
    write_result,
)
from benchmarks.servers import ROOT
from benchmarks.spreads import paired_ratios, percentile
from benchmarks.table import full, short

GPU_RESULTS = ROOT / "benchmarks" / "gpu" / "results"
TURN = Turn(100.0, 640, 6.4, 30.0, 40.0, 50.0, 10.0, 12.0, 15.0, failures=0)


def turn(rate: float) -> Turn:
    return replace(TURN, rate=rate)


def comparison(name: str = "8 clients", target: float | None = 1.5) -> Comparison:
    pairs = [(turn(300), turn(100)), (turn(200), turn(100)), (turn(1000), turn(400))]
    return compare(name, "waybill", "vllm", pairs, target)


def result() -> Result:
    return Result(
        date="2026-01-02T03:04:05+00:00",
        commit="0123456789ab",
        machine={"cpu": "A Processor", "cores": 2, "flags": ["avx2"], "memory": 8 * 2**30},
        versions={"torch": "2.13.0", "vllm": "0.32.0"},
        options={"model": "a-model"},
        workloads={
            "plain": Findings([comparison()], [Figure("TTFT", 120.0, "ms", 100.0)]),
            "open": Findings(points=[Point("waybill", 5.0, 4.9, TURN)]),
            "adapters": Findings(notes=["not measured: no peer"]),
        },
    )


def test_a_ratio_is_the_median_of_pairs_and_not_of_sides() -> None:
    measured = comparison()
    assert measured.ratio.values == (3.0, 2.0, 2.5)
    assert measured.ratio.median == 2.5  # medians of the sides would give 3.0
    assert (measured.ratio.low, measured.ratio.high) == (2.0, 3.0)


def test_targets_are_held_against_the_median() -> None:
    assert comparison(target=2.5).met is True
    assert comparison(target=2.6).met is False
    assert comparison(target=None).met is None
    assert Figure("x", 1.0, "ms", 1.0).met is True
    assert Figure("x", 1.1, "ms", 1.0).met is False


def test_a_peer_that_did_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        paired_ratios([1.0], [0.0])


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert percentile([1.0, 2.0], 1.0) == 2.0
    assert percentile([], 0.5) == 0.0


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    write_result(result(), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="not a result"):
        read_result(tmp_path / "other.json")


def test_what_is_measured_again_goes_into_a_result_of_the_same_machine_and_is_named(tmp_path: Path) -> None:
    now = result()
    path = tmp_path / "result.json"
    write_result(now, path)
    earlier = read_earlier(path, replace(now, date="2026-01-02T05:00:00+00:00", commit="fedcba987654"))
    earlier.workloads["plain"].again = "2026-01-02T05:00, commit fedcba987654"
    write_result(earlier, path)
    assert "commit 0123456789ab, 2026-01-02. *plain* was measured again: 2026-01-02T05:00, commit fed" in full(
        read_result(path)
    )
    assert "*plain* was measured again" in short(read_result(path))
    for name, other in (
        ("machine", replace(now, machine={"cpu": "Another"})),
        ("version", replace(now, versions={"torch": "3"})),
        ("option", replace(now, options={"model": "a-model", "quick": True})),
    ):
        with pytest.raises(ValueError, match=f"another {name}"):
            read_earlier(path, other)


def test_tables_name_what_was_missed_and_what_was_not_measured() -> None:
    text = full(result())
    assert "| *plain*: 8 clients | waybill 300 | vllm 100 | 2.50 (2.00 to 3.00) | 1.50 | met |" in text
    assert "| plain | TTFT | 120 ms | 100 ms | not met |" in text
    assert "| waybill | 5.0 | 4.9 | 30 / 40 / 50 | 10 / 12 / 15 |" in text
    assert "not measured: no peer" in text
    assert "2 cores of A Processor (AVX2), 8 GiB" in text


def test_the_short_table_holds_what_has_a_target() -> None:
    made = result()
    made.workloads["plain"].comparisons.append(comparison("9 clients", None))
    assert "8 clients" in short(made)
    assert "9 clients" not in short(made)


def test_the_plot_has_a_bar_for_each_side_as_long_as_its_rate() -> None:
    root = ElementTree.fromstring(svg(result()))
    rects = root.iter("{http://www.w3.org/2000/svg}rect")
    bars = {rect.get("class"): float(rect.get("width", 0)) for rect in rects if rect.get("rx")}
    assert bars["ours"] == pytest.approx(3 * bars["theirs"], rel=0.01)


def test_a_plot_of_nothing_is_refused() -> None:
    empty = result()
    empty.workloads.clear()
    with pytest.raises(ValueError, match="vLLM"):
        svg(empty)


@pytest.mark.parametrize("path", [newest(ROOT), gpu.newest(GPU_RESULTS)], ids=["cpu", "gpu"])
def test_pages_show_the_newest_committed_result(path: Path) -> None:
    for page, text in pages(path, ROOT).items():
        assert page.read_text() == text, f"{page.name}: run python -m benchmarks.publish on the newest result"


def test_the_page_has_the_predictions_that_the_command_prints() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.predict"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("| sequences |")
    assert printed in (ROOT / "docs" / "performance.md").read_text()


def test_a_prediction_is_bound_by_the_longer_of_reading_and_multiplying() -> None:
    one, many = (predict(Sizes.of(LLAMA_8B), batch, 1, 1.0, ffn=14_336, tflop_s=100.0) for batch in (1, 1000))
    assert one.weight_bytes == 2 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096)  # all but the embedding and the norms
    assert one.least_ms == pytest.approx(one.weights_ms + one.kv_ms) == pytest.approx(one.memory_ms)
    assert many.least_ms == pytest.approx(many.linears_ms + many.kv_ms)
    assert one.bounds.startswith("weights")
    assert many.bounds.startswith("arithmetic")


def test_peers_of_a_gpu_result_have_their_row() -> None:
    made = gpu.read_gpu_result(gpu.newest(GPU_RESULTS))
    made["parts"]["peers"] = {"generate": {"tok_s": 1234.0}, "generate_batch": {"failed": "no kernel"}, "seconds": 1.0}
    text = gpu.full(made)
    assert "| generate | 1,234 |" in text
    assert "generate_batch" not in text


def test_only_a_run_on_a_card_is_published(tmp_path: Path) -> None:
    made = gpu.read_gpu_result(gpu.newest(GPU_RESULTS))
    made["parts"]["machine"]["card"] = "none"
    path = tmp_path / "dry.json"
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match="not made on a card"):
        gpu.read_gpu_result(path)
    del made["parts"]["steps"]
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"lacks .'steps'"):
        gpu.read_gpu_result(path)
