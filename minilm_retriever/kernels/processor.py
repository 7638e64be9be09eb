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


@cache
def int8_is_fast() -> bool:
    """Whether int8 is multiplied faster than float32, and exactly: with AMX, or VNNI of either
    width, unless oneDNN is kept from using it (ONEDNN_MAX_CPU_ISA)."""
    instructions = {"amx_int8", "avx512_vnni", "avx_vnni"}
    return not instructions.isdisjoint(cpu_field("flags").split()) and int8_is_exact()


def int8_is_exact() -> bool:
    """Whether the largest products are summed exactly: without VNNI two of them overflow 16 bits,
    and oneDNN clips the sum."""
    row = torch.full((1, 64), 255, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
    scales, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    out = torch.ops.onednn.qlinear_pointwise(
        row, 1.0, 0, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((out == 64 * 255 * 127).all())


def lacks_instructions(precision: str) -> str:
    """The instructions without which `precision` would be slower than float32; empty where they
    are here, or none are needed."""
    onednn = torch._C._has_mkldnn
    if precision == "bf16" and not (onednn and bf16_is_fast()):
        return "AMX-BF16 or AMD's AVX512-BF16"
    if precision == "int8" and not (onednn and int8_is_fast()):
        return "AMX-INT8, AVX512-VNNI or AVX-VNNI"
    return ""
