"""What is typed: ``mpiens SPEC.toml``, and the commands around it."""

from __future__ import annotations

import os

# one thread per rank, unless the user says otherwise; before numpy is imported
for _name in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", "1")

import argparse  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from mpiens.spec import SpecError  # noqa: E402

def main(arguments: list[str] | None = None) -> int:
    from mpiens import mpi, ensemble
    comm = mpi.start()
    try:
        code = ensemble.run(comm, ensemble.Request(Path(sys.argv[1])))
    except SpecError as error:
        if comm.rank == 0:
            print("\n".join(error.lines()), file=sys.stderr)
        code = 2
    mpi.finish()
    return code

if __name__ == "__main__":
    sys.exit(main())
