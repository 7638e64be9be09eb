"""What this machine's processor can do, from /proc/cpuinfo: by its name and instructions and not by
a trial, because a choice of kernels decides the last bits of a run."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch


def cpu_field(name: str) -> str:
    """A field of the first processor; empty where there is none (not Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return ""
    field = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
    return field[1] if field else ""


@cache
def mkl_is_slow() -> bool:
    """Whether this is an AMD processor that multiplies 512 bits at once (Zen 5): MKL has only
    256-bit kernels for AMD."""
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return avx512 and is_amd() and int(cpu_field("cpu family") or 0) >= 26


def is_amd() -> bool:
    return cpu_field("vendor_id") == "AuthenticAMD"


@cache
def bf16_is_fast() -> bool:
    """Whether bf16 is multiplied faster than float32.

    AMX does so, and AVX512-BF16 of AMD (from Zen 4 on); Intel's AVX512-BF16 alone takes 1.5 times
    as long as float32."""
    flags = cpu_field("flags").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and is_amd())


def lacks_instructions(precision: str) -> str:
    """The instructions without which `precision` would be slower than float32; empty where they
    are here, or none are needed."""
    if precision == "bf16" and not (torch._C._has_mkldnn and bf16_is_fast()):
        return "AMX-BF16 or AMD's AVX512-BF16"
    return ""
