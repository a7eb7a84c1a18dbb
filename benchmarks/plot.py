"""A result as an SVG: output tokens per second of both servers, a pair of bars for each workload they share."""

from __future__ import annotations

from html import escape

from benchmarks.results import Comparison, Result, median_of

SHOWN = ("plain", "adapters", "long")
PEER = "vllm"

WIDTH = 760
_LABELS, _RATIOS = 190, 70  # columns left and right of the bars
_BAR, _GAP, _GROUP = 14, 2, 14  # heights
_TOP, _BOTTOM = 52, 12
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.head { font-weight: 600; font-size: 15px } .small { font-size: 11px; fill: #59636e }
.ours { fill: #0b7285 } .theirs { fill: #adb5bd } .ratio { font-weight: 600 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .ours { fill: #3bc9db } .theirs { fill: #6c757d }
}
"""


def svg(result: Result) -> str:
    """Return the drawing. Raises ValueError for a result in which no workload was measured against vLLM."""
    shown = [
        (name, item)
        for name in SHOWN
        if name in result.workloads
        for item in result.workloads[name].comparisons
        if item.theirs == PEER
    ]
    if not shown:
        raise ValueError("nothing was measured against vLLM")
    most = max(max(_rates(item)) for _, item in shown)
    group = 2 * _BAR + _GAP + _GROUP
    height = _TOP + len(shown) * group + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Output tokens per second, Waybill and vLLM">',
        f"<style>{_STYLE}</style>",
        _text(0, 18, "Output tokens per second", "head"),
        *_legend(),
    ]
    for row, (name, item) in enumerate(shown):
        parts += _pair(name, item, _TOP + row * group, (WIDTH - _LABELS - _RATIOS - 60) / most)
    return "\n".join([*parts, "</svg>", ""])


def _rates(item: Comparison) -> tuple[float, float]:
    return median_of(item.our_turns, "rate").median, median_of(item.their_turns, "rate").median


def _legend() -> list[str]:
    return [
        f'<rect class="ours" x="{_LABELS}" y="28" width="12" height="12"/>',
        _text(_LABELS + 18, 38, "Waybill", "small"),
        f'<rect class="theirs" x="{_LABELS + 80}" y="28" width="12" height="12"/>',
        _text(_LABELS + 98, 38, "vLLM, CPU", "small"),
        _text(WIDTH, 38, "ratio", "small", "end"),
    ]


def _pair(workload: str, item: Comparison, top: float, scale: float) -> list[str]:
    """One comparison: its name, two bars with their values, and the ratio."""
    name = f"{workload}, {item.name}" if workload == "plain" else item.name
    middle = top + _BAR + _GAP / 2 + 4.5
    parts = [_text(_LABELS - 10, middle, name, "", "end")]
    for number, (rate, side) in enumerate(zip(_rates(item), ("ours", "theirs"), strict=True)):
        y = top + number * (_BAR + _GAP)
        parts.append(f'<rect class="{side}" x="{_LABELS}" y="{y}" width="{rate * scale:.1f}" height="{_BAR}" rx="2"/>')
        parts.append(_text(_LABELS + rate * scale + 6, y + 11, f"{rate:,.0f}", "small"))
    return [*parts, _text(WIDTH, middle, f"{item.ratio.median:.2f}", "ratio", "end")]


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
