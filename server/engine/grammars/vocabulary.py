"""The tokens of the model's folder as llguidance wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.errors import InvalidRequest
from server.grammar import load_llguidance

if TYPE_CHECKING:
    import llguidance


def read_vocabulary(folder: Path | None, vocab_size: int, eos_token_ids: Sequence[int]) -> llguidance.LLTokenizer:
    """Return the tokenizer of a model's folder, filled up to the model's `vocab_size` ids. It takes half a second.

    Ids that the tokenizer does not know are never allowed; special tokens are no text, so that no grammar allows them
    either, but for those that end a sequence. Raises InvalidRequest where structured output cannot be had: also where
    the tokenizer has more ids than the model.
    """
    library = load_llguidance()
    if folder is None:
        raise InvalidRequest("structured output needs the model's tokenizer, which this engine has not")
    if not eos_token_ids:
        raise InvalidRequest("structured output needs a model with an end of sequence, which this one has not")
    try:
        source = (folder / "tokenizer.json").read_text(encoding="utf-8")
        made: llguidance.LLTokenizer = library.LLTokenizer(source, n_vocab=vocab_size, eos_token=list(eos_token_ids))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"structured output cannot be had with this model's tokenizer: {error}") from error
    return made
