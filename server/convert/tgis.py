"""`decoder.pt` of TGIS and caikit: one bare tensor [virtual tokens, hidden], a soft prompt for a decoder.

IBM/text-generation-inference, prompt_cache.py; caikit/caikit-nlp, peft_prompt_tuning.py. caikit's config.yml lies
beside it and says how it was trained, which is over. An `encoder.pt` beside it is the part for an encoder.
"""

from __future__ import annotations

from server.convert.adapter import Adapter, soft_prompt
from server.convert.tensors import View
from server.convert.torch_file import TorchFile
from server.formats.strict_json import Malformed, shown


def convert_tgis(saved: TorchFile) -> Adapter:
    """Return the soft prompt. Raises Malformed for anything but one tensor of two dimensions."""
    if isinstance(saved.root, dict):
        has = ", ".join(sorted(saved.root)[:8])
        raise Malformed(f"it holds a dict of {shown(has)}, not one bare tensor [virtual tokens, hidden size]")
    if not isinstance(saved.root, View):
        raise Malformed("it holds no tensor; needed is one bare tensor [virtual tokens, hidden size]")
    return soft_prompt(saved.tensor(saved.root))
