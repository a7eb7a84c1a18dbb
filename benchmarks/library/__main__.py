"""`python -m benchmarks.library KIND MODEL [ADAPTERS]`: a JSON line in, a JSON line out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.library.peers import load


def main() -> None:
    kind, model, *adapters = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)  # what the libraries print goes to the log
        answer = load(kind, Path(model), Path(adapters[0]) if adapters else None)
        replies.write("{}\n")
        for line in sys.stdin:
            batch = json.loads(line)
            began = perf_counter()
            tokens = answer([(name, prompt) for name, prompt in batch["requests"]], batch["new_tokens"])
            replies.write(json.dumps({"tokens": tokens, "seconds": perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
