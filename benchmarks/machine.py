"""What the figures depend on: processor, libraries, threads."""

import platform
from pathlib import Path
from typing import Any, Final

import torch
from threadpoolctl import threadpool_info

import pydfm
from benchmarks.report import Table

_FLAGS: Final = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"),
    *("asimd", "sve"),
)


def facts() -> dict[str, Any]:
    """Return the facts by name, for tables and for pytest-benchmark's machine info."""
    config = pydfm.show_config("dicts") or {}
    cpu = _cpuinfo()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    packages = {name: v for name, v in config["packages"].items() if v}
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "flags": " ".join(flag for flag in _FLAGS if flag in flags),
        "cores": config["n_threads"],
        "gpu": config["gpu"] or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": config["python"],
        "pydfm": f"{config['pydfm']}, built for {config['core']['instruction_set']} "
        f"with {config['core']['compiler']}, Eigen {config['core']['eigen']}",
        "BLAS": "; ".join(sorted({_describe(pool) for pool in blas})),
        "torch's own": torch.__config__.show().split("BLAS_INFO=")[-1].split(",")[0],
        "packages": ", ".join(f"{name} {v}" for name, v in packages.items()),
    }


def table() -> Table:
    """Return the facts as a table."""
    return Table(("what", "found"), [[name, str(value)] for name, value in facts().items()])


def _describe(pool: dict[str, Any]) -> str:
    return " ".join(
        str(pool[key]) for key in ("internal_api", "version", "architecture") if pool.get(key)
    )


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
