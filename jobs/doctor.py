"""What this machine can run, and why something cannot: the findings behind `spikebrain doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..backends import BACKENDS
from ..coding.kernels import why_plain
from ..errors import InputError
from ..models.io import smollm2
from ..neuro.checks import asking
from ..paths import cache_dir
from ..plugins import GROUPS, PREFIX, announced
from ..version import __version__

PACKAGES = ("spikebrain", "torch", "numba", "triton", "transformers")
# Flags of /proc/cpuinfo for each instruction set; one of them is enough.
INSTRUCTIONS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX INT8": ("amx_int8",),
    "NEON dot product": ("asimddp",),
}
# Numbers of tokens for which the choice of "auto" is shown.
FEW, MANY = 1, 512
# Number of weights in a layer of a large model.
LAYER = 4096 * 4096


def examine() -> dict[str, Any]:
    """Return what this machine has, as JSON values; `advice` says what could be faster, and how."""
    findings: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "cpu": examine_cpu(_cpu_info()),
        "gpus": _gpus(),
        "devices": {str(device): examine_device(device) for device in _devices()},
        "names": {group.removeprefix(PREFIX): plugins.own() for group, plugins in GROUPS.items()},
        "plug_ins": _plug_ins(),
        "model_cache": _model_cache(),
        "extras": _extras(),
    }
    findings["advice"] = advise(findings)
    return findings


def examine_cpu(info: str) -> dict[str, Any]:
    """Return model, threads and instruction sets. `info` is the text of /proc/cpuinfo, empty where there is none."""
    fields = dict(re.findall(r"^([^\t:]+?)\s*:[ \t]*(.*)$", info, re.MULTILINE))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine() or "unknown",
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "instructions": {name: any(flag in flags for flag in needed) for name, needed in INSTRUCTIONS.items()}
        if flags
        else None,
    }


def examine_device(device: torch.device) -> dict[str, Any]:
    """Return why each backend cannot run on a device (None if it can), and which one "auto" picks there."""
    return {
        "backends": {name: _why_unavailable(name, device) for name in BACKENDS},
        "auto": {str(n): BACKENDS.name_of(backends.auto(device, n, LAYER)) for n in (FEW, MANY)},
        "packing_without_kernels": why_plain(device),
    }


def _why_unavailable(name: str, device: torch.device) -> str | None:
    try:
        backend = BACKENDS.create(name)
        with asking(backend, "why_unavailable"):
            return backend.why_unavailable(device)
    except InputError as error:
        return str(error)


def _plug_ins() -> list[dict[str, Any]]:
    """Return what other packages bring, and why it cannot be used (None if it can); imports all of it."""
    found, damaged = announced()
    rows = []
    for plugin in found:
        group = GROUPS.get(plugin.group)
        unknown = f"expected an entry point of one of the groups {', '.join(GROUPS)}; got {plugin.group}."
        row = {"kind": plugin.group.removeprefix(PREFIX), "name": plugin.name, "package": plugin.package}
        fault = unknown if group is None else group.fault(plugin.name)
        rows.append({**row, "object": plugin.entry.value, "fault": fault})
    return rows + [{"kind": "", "name": "", "package": p, "object": "", "fault": fault} for p, fault in damaged]


def advise(findings: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that runs slower than it could, and what to do about it."""
    advice = []
    if not findings["gpus"]:
        built = "has no CUDA in it" if torch.version.cuda is None else "finds no GPU"
        advice.append(
            f"No GPU: this PyTorch {built}. Everything runs on the CPU. If the machine has an NVIDIA GPU, install a "
            "CUDA build of PyTorch and check the driver with nvidia-smi."
        )
    cpu = findings["cpu"]
    if cpu["num_cpus"] and cpu["num_threads"] < cpu["num_cpus"]:
        advice.append(
            f"PyTorch uses {cpu['num_threads']} of {cpu['num_cpus']} processors. torch.set_num_threads or "
            "OMP_NUM_THREADS changes it; hyper-threads add little."
        )
    for device, found in findings["devices"].items():
        if "reference" in found["auto"].values():
            reasons = [f"{name}: {why}" for name, why in found["backends"].items() if why is not None]
            advice.append(f"{device}: auto takes the slow reference backend. {' '.join(reasons)}")
        if found["packing_without_kernels"] is not None:
            advice.append(
                f"{device}: trains are packed by plain PyTorch, more slowly: {found['packing_without_kernels']}"
            )
    cache = findings["model_cache"]
    if cache["fault"] is not None:
        advice.append(cache["fault"])
    elif not cache["present"]:
        advice.append(f"The default model is not in the cache: the first run fetches it ({smollm2.REQUIREMENT}).")
    return advice


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [torch.device("cpu"), *gpus]


def _gpus() -> list[dict[str, Any]]:
    properties = [torch.cuda.get_device_properties(device) for device in _devices() if device.type == "cuda"]
    return [
        {"name": gpu.name, "compute_capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory}
        for gpu in properties
    ]


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _version(package: str) -> str | None:
    if package == "spikebrain":
        return __version__  # of the code that runs
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _model_cache() -> dict[str, Any]:
    try:
        path = cache_dir() / smollm2.GGUF_NAME
    except InputError as error:
        return {"path": None, "present": False, "fault": str(error)}
    try:
        present = path.is_file() and path.stat().st_size == smollm2.GGUF_BYTES
        if not present:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        fault = f"cache folder: {path.parent} cannot be used: {error.strerror}. Set SPIKEBRAIN_CACHE to another."
        return {"path": str(path), "present": False, "fault": fault}
    return {"path": str(path), "present": present, "fault": None}


def _extras() -> dict[str, dict[str, str | None]]:
    """Return the version of each package of each optional extra, None where it is not installed."""
    try:
        requirements = importlib.metadata.requires("spikebrain") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source
        return {}
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in requirements:
        optional = re.match(r"""([\w.-]+).*extra\s*==\s*["']([\w-]+)["']""", requirement)
        if optional:
            extras.setdefault(optional[2], {})[optional[1]] = _version(optional[1])
    return extras
