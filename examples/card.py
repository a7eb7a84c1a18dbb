"""The card of a trained adapter: the text in `cards/` with what was measured."""

from __future__ import annotations

from pathlib import Path

from recipes import Recipe

_CARDS = Path(__file__).parent / "cards"


def write_card(path: Path, recipe: Recipe, scores: dict[str, dict[str, float]], losses: list[float]) -> None:
    """Write the card to `path`. `scores` maps who was asked to what came out."""
    text = (_CARDS / f"{recipe.name}.md").read_text(encoding="utf-8")
    text = text.replace("{training}", _training(recipe, losses)).replace("{quality}", _quality(recipe, scores))
    path.write_text(text, encoding="utf-8")


def _training(recipe: Recipe, losses: list[float]) -> str:
    last = losses[-10:]
    return (
        f"Trained for {len(losses)} steps of {recipe.batch_size} examples with AdamW, learning rate "
        f"{recipe.learning_rate:g} (a short warm-up, then a cosine), in float32,\nstarting {recipe.start}.\n"
        f"Loss {losses[0]:.2f} at the first step, {sum(last) / len(last):.3f} over the last ten."
    )


def _quality(recipe: Recipe, scores: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(scores.values())))
    table = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    table += [f"| {who} | {' | '.join(f'{got[name]:.1%}' for name in columns)} |" for who, got in scores.items()]
    return f"""{len(recipe.test)} held-out examples, greedy, float32, on the base model of `waybill model fetch`:

{chr(10).join(table)}

The bare model that is told what to do gets this instruction: “{recipe.instruction}”

One run, one seed. To repeat it, after `make install`:

```bash
.venv/bin/python examples/train.py {recipe.name}
```

Other numbers of threads and versions of torch change the last digits of sums, and with them an example or two."""
