"""`python -m server.engine.native`: compile the kernels ahead, for every processor of this kind of machine.

By default they go into the package, so that they are found wherever it is copied, also where no compiler is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from server.engine.native.build import SHIPPED, BuildFailed, Workshop, variants


def main() -> int:
    """Compile and print the path of each library. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.engine.native", description=__doc__)
    parser.add_argument("--into", type=Path, default=SHIPPED, metavar="FOLDER", help="default: %(default)s")
    folder: Path = parser.parse_args().into
    workshop = Workshop()
    try:
        for variant in variants():
            sys.stdout.write(f"{workshop.build(variant, folder)}\n")
            sys.stdout.flush()
    except BuildFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
