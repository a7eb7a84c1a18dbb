"""What turns embedded tokens into logits: transformers' own module, or something that is proved to compute the same."""

from __future__ import annotations

import inspect
from typing import Protocol

from torch import Tensor

from server.engine.model.load import LoadedModel


class Forward(Protocol):
    """One packed forward over the KV memory of the backend whose `begin` described it."""

    def __call__(self, embeddings: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """Return logits [num_kept, vocab_size], in the head's format, of rows `keep` [num_kept] int64, in its order.

        `embeddings` [num_tokens, hidden_size], `positions` [num_tokens] int64, absolute. Where nothing is kept the head
        does not run.
        """
        ...


class PlainForward:
    """The model that transformers loaded, with the backend behind its attention (`attention.hook.attach`)."""

    def __init__(self, model: LoadedModel) -> None:
        self._module = model.module
        self._vocab_size = model.vocab_size
        self._slices = "logits_to_keep" in inspect.signature(model.module.forward).parameters

    def __call__(self, embeddings: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
        """See `Forward`."""
        inputs = {"inputs_embeds": embeddings[None], "position_ids": positions[None], "use_cache": False}
        if not len(keep):
            self._module.base_model(**inputs)
            return embeddings.new_zeros((0, self._vocab_size))
        if self._slices:
            logits: Tensor = self._module(**inputs, logits_to_keep=keep).logits[0]
        else:
            logits = self._module(**inputs).logits[0, keep]
        return logits
