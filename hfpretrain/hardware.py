"""The machine: which arithmetic it is good at, and settings that make PyTorch fast on it."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_precision(setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """bf16 where the accelerator has units for it, else fp32. fp16 only when asked for: it needs loss scaling."""
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "xpu" else "fp32"


def keep_freed_memory() -> bool:
    """Has glibc keep the memory of freed tensors instead of asking the kernel for fresh pages at every step.

    Returns whether it took effect: on Linux with glibc only.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held so far, in bytes: on the accelerator, or resident on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def device_name(device: torch.device) -> str:
    """The chip's name, e.g. `NVIDIA H100` or the processor's model and core count."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's numbers."""
    names = ["hfpretrain", "torch", "transformers", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors"]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
