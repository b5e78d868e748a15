"""The machine: which arithmetic it is good at, and settings that make PyTorch fast on it."""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from hfpretrain.chips import chip_of

Precision = Literal["fp32", "bf16", "fp16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")
"""What Linux calls units for bfloat16 matrix products, on x86 and on Arm."""
WORTH_HALF_PRECISION = 5_000_000
"""Parameters from which on a CPU with such units is faster in bf16; below, conversions cost what the products save."""


def has_bf16_units(device: torch.device) -> bool:
    """Whether the chip multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and sys.platform == "linux":
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return bool(set(flags.split()) & set(BF16_UNITS))
    return device.type == "xpu"


def choose_precision(setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """bf16 where an accelerator has units for it, else fp32. fp16 only when asked for: it needs loss scaling.

    On a CPU fp32, whatever its units: small models, which is what a CPU trains, gain nothing from bf16 and lose a bit.
    """
    if setting != "auto":
        return setting
    return "bf16" if device.type != "cpu" and has_bf16_units(device) else "fp32"


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    return torch.bfloat16 if has_bf16_units(device) else torch.float32


def keep_freed_memory(keep: bool = True) -> bool:
    """Has glibc keep the memory of freed tensors instead of asking the kernel for fresh pages at every step.

    Otherwise it gives back each large one at once, which is slower: left alone it keeps some, and more and more where
    their sizes vary, as those of layers that are gathered do. Returns whether it took effect: on Linux with glibc only.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    large = 1 << 30 if keep else 1 << 20
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, large) and libc.mallopt(_M_TRIM_THRESHOLD, large))


def matrix_rate(device: torch.device, precision: Precision) -> float:
    """Floating point operations per second of matrix products: of a known chip by its data sheet, else measured."""
    if device.type == "cuda":
        chip = chip_of(torch.cuda.get_device_name(device))
        if chip is not None:
            exact = torch.get_float32_matmul_precision() == "highest"
            return 1e12 * (chip.bf16 if precision != "fp32" else chip.fp32 if exact else chip.tf32)
    return measured_matrix_rate(device, precision)


def measured_matrix_rate(device: torch.device, precision: Precision, *, seconds: float = 0.15) -> float:
    """The fastest of as many products of two square matrices as fit into `seconds`, in operations per second."""
    # On a GPU large enough for starting it to be no part of it.
    size, products = (1024, 1) if device.type == "cpu" else (8192, 8)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        began = time.perf_counter()
        for _ in range(products):
            product = one @ other
        product[0, 0].item()  # waits for the device
        best = min(best, (time.perf_counter() - began) / products)
    return 2 * size**3 / best


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the device has: the accelerator's, or the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
