"""Measures how fast memory is read: `python -m benchmarks.read_rate N_THREADS N_BYTES N_PASSES` prints bytes/s.

That is of all passes together, slow ones too, as a program's rate is of all its tokens.
"""

from __future__ import annotations

import statistics
import sys

from dllama_gpu.cpu.bandwidth import read_rates
from launcher.guard import guarded


def main() -> int:
    """Measures as the command line asks."""
    n_threads, n_bytes, n_passes = map(int, sys.argv[1:])
    print(statistics.harmonic_mean(read_rates(n_threads, n_bytes, n_passes)))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
