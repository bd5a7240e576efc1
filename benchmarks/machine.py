"""What a benchmark ran on, and how fast its memory is.

python benchmarks/machine.py
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers


def best_seconds(function: Callable[[], object], repeats: int, warm: bool = True) -> float:
    """The shortest of `repeats` timed calls, behind one call that is not timed (unless it is warm already)."""
    if warm:
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def read_seconds(num_bytes: int, times: int = 100, repeats: int = 3) -> float:
    """Seconds to read an fp32 array of `num_bytes` (its sum): the mean of `times` reads in a row, the best of
    `repeats` such series. Single reads are too short: some look faster than the memory is."""
    array = torch.ones(num_bytes // 4)

    def series():
        for _ in range(times):
            array.sum()

    return best_seconds(series, repeats) / times


def describe() -> str:
    """CPU, cores, threads, load and versions in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{load}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    size = 1 << 28
    print(describe())
    print(f"memory: {size / read_seconds(size) / 1e9:.1f} GB/s read")
