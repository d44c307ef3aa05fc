"""``python -m benchmarks``: see ``python -m benchmarks --help``."""

import sys

from benchmarks.measure import limit_blas


def main() -> None:
    """Set what must be set before NumPy is first imported, then run."""
    limit_blas()
    from benchmarks.run import main as run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
