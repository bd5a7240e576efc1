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


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` timed calls, behind one call that is not timed."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def read_seconds(num_bytes: int, repeats: int = 20) -> float:
    """Seconds to read an fp32 array of `num_bytes` once (its sum), the best of `repeats`."""
    array = torch.ones(num_bytes // 4)
    return best_seconds(array.sum, repeats)


def copy_bandwidth(num_bytes: int = 1 << 28, repeats: int = 20) -> float:
    """Bytes per second of copying an array of `num_bytes`; each byte counts as read and as written."""
    source, target = torch.ones(num_bytes // 4), torch.empty(num_bytes // 4)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source), repeats)


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
    print(f"memory: read {size / read_seconds(size) / 1e9:.1f} GB/s, copy {copy_bandwidth(size) / 1e9:.1f} GB/s")
