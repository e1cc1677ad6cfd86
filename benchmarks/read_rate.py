"""Measures how fast memory is read: `python -m benchmarks.read_rate N_THREADS N_BYTES` prints bytes per second."""

from __future__ import annotations

import sys

from dllama_gpu.cpu.bandwidth import read_bandwidth
from launcher.guard import guarded


def main() -> int:
    """Measures as the command line asks."""
    print(read_bandwidth(int(sys.argv[1]), int(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
