"""Put attention of ours behind an unmodified transformers model, through its attention interface."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Attends(Protocol):
    """The part of an `AttentionBackend` that transformers calls; `name` is unique to the instance."""

    name: str

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """See `AttentionBackend.attend`."""
        ...


def attach(module: PreTrainedModel, backend: Attends) -> None:
    """Make every attention layer of `module` call `backend.attend`.

    A name that transformers knows no mask function for makes it build no mask at all: `attention_mask` is None.
    """
    ALL_ATTENTION_FUNCTIONS[backend.name] = backend.attend
    module.set_attn_implementation(backend.name)


def detach(module: PreTrainedModel, backend: Attends) -> None:
    """Undo `attach`: the model's own `eager` attention again, and the backend forgotten."""
    module.set_attn_implementation("eager")
    ALL_ATTENTION_FUNCTIONS.pop(backend.name, None)
