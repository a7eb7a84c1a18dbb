"""A result of the GPU benchmark as Markdown: what the README shows, and predictions beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.predict import predictions
from benchmarks.markdown import table

MODEL = "llama-3.1-8b"
NAMES = {"llama-3.1-8b": "Llama-3.1-8B", "qwen3-0.6b": "Qwen3-0.6B"}


def is_gpu_result(path: Path) -> bool:
    """Whether the file is one that `python -m benchmarks.gpu` wrote."""
    return "parts" in json.loads(path.read_text())


def newest(folder: Path) -> Path:
    """Return the newest committed result."""
    return max(folder.glob("*.json"), key=lambda path: str(json.loads(path.read_text())["date"]))


def read_gpu_result(path: Path) -> dict[str, Any]:
    """Return a run on a card. Raises ValueError for any other, or one without the parts that pages are made from."""
    result: dict[str, Any] = json.loads(path.read_text())
    parts = result["parts"]
    missing = {"machine", "steps", "throughput"} - set(parts)
    failed = [name for name, found in parts.items() if "failed" in found]
    if missing or failed:
        raise ValueError(f"{path} lacks {sorted(missing)}, and {failed} failed")
    if parts["machine"]["card"] == "none" or MODEL not in parts["steps"]:
        raise ValueError(f"{path} was not made on a card")
    return result


def short(result: dict[str, Any]) -> str:
    """Return the README's table, a column for each number of sequences, and the line that says what it is."""
    decode = {row["batch"]: row["tok_s"] for row in result["parts"]["throughput"]["decode"]}
    bound = {row["batch"]: row["of_bound"] for row in _steps(result, MODEL) if row["forward"] == "fused"}
    heads = ("sequences of Llama-3.1-8B at once", *(str(batch) for batch in decode))
    rates = table(heads, [("output tokens per second", *(f"{rate:,.0f}" for rate in decode.values()))])
    shares = ", ".join(_percent(bound[batch]) for batch in decode if batch in bound)
    card = result["parts"]["machine"]["card"]
    return (
        f"{rates}\n\nOn one {card}, bfloat16, random weights, 1,024 tokens of context: {shares} of what its memory "
        f"bandwidth allows; see [performance](docs/performance.md#on-a-gpu)."
    )


def full(result: dict[str, Any]) -> str:
    """Return predicted and measured steps, the other models, and what adapters cost."""
    parts = result["parts"]
    machine, throughput = parts["machine"], parts["throughput"]
    found = [
        f"One {machine['card']} (driver {machine['driver']}), torch {machine['torch']}, Triton {machine['triton']}, "
        f"transformers {machine['transformers']}; commit {result['commit']}, {result['date'][:10]}. In the same run it "
        f"copied {machine['copy_tb_s']:.2f} TB/s, read and written, and multiplied {machine['matmul_tflop_s']:.0f} "
        f"TFLOP/s.",
        _against(result),
        _models(result),
        table(
            ("adapters", "tokens/s", "without, tokens/s", "ratio"),
            [
                (name, f"{row['tok_s']:,.0f}", f"{row['none_tok_s']:,.0f}", f"{row['ratio']:.3f}")
                for name, row in throughput["adapters"].items()
            ],
        ),
        f"A compiled prefix of 128 tokens comes in from host memory in {throughput['swap_in']['install_ms']:.2f} ms. "
        f"The card was busy {_percent(throughput['card']['busy'])} of the time at 64 sequences, under a profiler whose "
        f"own start is in that figure.",
    ]
    if "peers" in parts:
        peers = {name: row for name, row in parts["peers"].items() if isinstance(row, dict) and "tok_s" in row}
        rows = [(name, f"{row['tok_s']:,.0f}") for name, row in peers.items()]
        found.append(table(("transformers, 64 prompts, prefill included", "tokens/s"), rows))
    return "\n\n".join(found)


def _against(result: dict[str, Any]) -> str:
    """Predicted steps of the largest model, and what was measured."""
    steps = {row["batch"]: row for row in _steps(result, MODEL) if row["forward"] == "fused"}
    engine = {row["batch"]: row for row in result["parts"]["throughput"]["decode"]}
    heads = (
        "sequences",
        "step predicted, ms",
        "measured, ms",
        "of the bound",
        "launches predicted",
        "counted",
        "Python, ms",
        "tokens/s predicted",
        "whole engine",
    )
    rows = [
        (
            str(batch),
            f"{expected.least_ms:.2f}",
            f"{steps[batch]['ms']:.2f}",
            _percent(expected.least_ms / steps[batch]["ms"]),
            str(expected.launches),
            _launches(result, batch),
            f"{steps[batch]['host_ms']:.2f}",
            f"{batch / expected.least_ms * 1e3:,.0f}",
            f"{engine[batch]['tok_s']:,.0f}",
        )
        for batch, expected in predictions().items()
        if batch in steps and batch in engine
    ]
    return table(heads, rows)


def _models(result: dict[str, Any]) -> str:
    """Every step that was measured, fused and as transformers has the layers."""
    heads = ("model", "layers", "sequences", "step, ms", "tokens/s", "read at the run's copy bandwidth, ms", "share")
    rows = [
        (
            NAMES.get(model, model),
            row["forward"],
            str(row["batch"]),
            f"{row['ms']:.2f}",
            f"{row['tok_s']:,.0f}",
            f"{row['bound_ms']:.2f}",
            _percent(row["of_bound"]),
        )
        for model, found in result["parts"]["steps"].items()
        if isinstance(found, dict)
        for row in found["steps"]
    ]
    return table(heads, rows)


def _launches(result: dict[str, Any], batch: int) -> str:
    """How many kernels the trace of a step holds among its sixteen longest entries, copies left out."""
    kernels = result["parts"]["steps"][MODEL]["kernels"].get(f"fused batch {batch}")
    if kernels is None:
        return "not counted"
    return f"{sum(row['launches'] for row in kernels if not row['name'].startswith(('aten::', 'Memcpy'))):.0f}"


def _steps(result: dict[str, Any], model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = result["parts"]["steps"][model]["steps"]
    return found


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
