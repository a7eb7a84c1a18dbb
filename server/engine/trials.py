"""Sequences that answer a question about their adapter instead of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from server.core import SamplingParams
from server.engine.messages import Check, CheckResult, FromEngine, Submit, Verify, VerifyResult
from server.engine.model.load import LoadedModel
from server.engine.model.parity import ADAPTER_TOLERANCE, compare, logits_alone
from server.engine.prefixes.read import AdapterTensors
from server.errors import EngineFault, WaybillError

CANARY_TOKENS = 8
"""Text tokens that follow an adapter's virtual tokens in the forward that judges it."""

MAX_POSITIONS = 64
"""Positions of a prompt that a verification compares, its last ones: a row of logits is large."""


RowListener = Callable[[int, Tensor], None]
"""Takes a position in the sequence's own tokens and that row's logits [vocab_size], float32."""


class Trial(Protocol):
    """What the loop runs, and does with such a sequence instead of telling of its tokens."""

    submit: Submit
    rows: frozenset[int]
    """Positions of the prompt whose logits `on_row` takes, beside those that tokens are drawn from."""

    on_row: RowListener | None

    def drew(self, token: int) -> None:
        """Take in the next token."""
        ...

    def end(self, error: WaybillError | None) -> FromEngine:
        """Return the verdict; `error` is what the sequence ended with, None where it went well."""
        ...


class Canary:
    """Judges an upload: reading judges the values, one drawn token shows that the logits are finite."""

    def __init__(self, message: Check, vocab_size: int) -> None:
        adapter, self._check = message.adapter, message.check
        compiled = set(adapter.prefix_ids)
        rest: tuple[int, ...] = ()
        if adapter.needs_table:
            rest = tuple(i for i in range(vocab_size, vocab_size + adapter.num_virtual_tokens) if i not in compiled)
        canary = tuple(vocab_size * i // (CANARY_TOKENS + 1) for i in range(1, CANARY_TOKENS + 1))
        self.submit = Submit(message.check, rest + canary, SamplingParams(max_tokens=1), adapter)
        self.rows: frozenset[int] = frozenset()
        self.on_row: RowListener | None = None

    def drew(self, token: int) -> None:
        """See `Trial`."""

    def end(self, error: WaybillError | None) -> CheckResult:
        """See `Trial`."""
        return CheckResult(self._check) if error is None else CheckResult(self._check, error.code, error.message)


class Verification:
    """Compares the logits that are served, of prompt and greedy tokens, with the model's own alone."""

    def __init__(self, message: Verify, model: LoadedModel, tensors: AdapterTensors) -> None:
        self._message = message
        self._model = model
        self._tensors = tensors
        self._first = max(0, len(message.tokens) - MAX_POSITIONS)
        self._rows: dict[int, Tensor] = {}
        self._drawn: list[int] = []
        params = SamplingParams(max_tokens=message.max_tokens, ignore_eos=True)
        self.submit = Submit(message.verify, message.tokens, params, message.adapter)
        self.rows = frozenset(range(self._first, len(message.tokens)))
        self.on_row: RowListener | None = self._note

    def drew(self, token: int) -> None:
        """See `Trial`."""
        self._drawn.append(token)

    def end(self, error: WaybillError | None) -> VerifyResult:
        """See `Trial`. Runs the model: the step that this belongs to takes that much longer."""
        number = self._message.verify
        if error is None:
            tokens = (*self._message.tokens, *self._drawn[:-1])
            positions = range(self._first, len(tokens))
            try:
                whole = (*self._message.adapter.prefix_ids, *tokens)
                expected = logits_alone(self._model, whole, len(positions), self._tensors)
                if not bool(expected.isfinite().all()):
                    raise ValueError("its logits are not finite")
                found = torch.stack([self._rows[position] for position in positions])
                return VerifyResult(number, compare(found, expected, self._model.dtype, ADAPTER_TOLERANCE))
            except (RuntimeError, ValueError, TypeError, LookupError) as failure:  # a question must not end the engine
                error = EngineFault(f"the base model alone could not be run: {failure}")
        return VerifyResult(number, None, error.code, error.message)

    def _note(self, position: int, logits: Tensor) -> None:
        """Keep a row of the served logits; one that is computed twice counts as it was last."""
        self._rows[position] = logits.clone()
