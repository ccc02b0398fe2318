"""The machine that a run is driven from, in a line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch


def described() -> str:
    """System, processor, cores that may be used, memory, and GPUs where torch sees any; no names of hosts or users."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    parts = [platform.platform(), _processor(), f"{cores} cores", f"{memory:.0f} GiB", *_gpus()]
    return ", ".join(filter(None, parts))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
