"""`remamba doctor`: what runs here, and why."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

from remamba.errors import InputError
from remamba.provenance import device_name, package_version

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "triton",
    "peft",
    "accelerate",
    "datasets",
)

LAYER_RULES = {
    "filter": "reads without CUDA graphs; answers by every fast path, as plain Mamba",
    "scale": "reads without CUDA graphs; answers by the model's modules, token by token: no CUDA "
    "graphs, no states in place, no decode_layer",
    "decimate": "reads whole rows without CUDA graphs, whatever --piece-length says; answers by "
    "every fast path, as plain Mamba",
}
"""Methods that leave fast paths, which know no layer rule -> which ones they leave."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Show versions, devices, and which implementation each operation uses and why."""

    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> int:
    """Prints the report as text, or as exactly one JSON object."""
    found = report()
    print(json.dumps(found) if args.json else as_text(found))
    return 0


def report() -> dict[str, Any]:
    """Versions, devices, threads, the choice of each op with its reason, and the embedded model."""
    import torch

    from remamba.ops import backend, compiled

    return {
        "remamba": package_version("remamba"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "devices": _devices(),
        "threads": {"torch": torch.get_num_threads(), "cores": os.cpu_count()},
        "backend_requested": os.environ.get("REMAMBA_BACKEND"),
        "ops": [
            {"op": op, "implementation": choice, "why": why}
            for op, choice, why in backend.explain()
        ],
        "c_kernels": {"library": compiled.where() or None, "why": compiled.obstacle()},
        "layer_rules": LAYER_RULES,
        "embedded_model": _embedded_model(),
    }


def as_text(found: dict[str, Any]) -> str:
    """The report for a person: one fact a line, the mend beside what is missing."""
    versions = {"remamba": found["remamba"], "python": found["python"], **found["packages"]}
    lines = [f"{name:<14}{version or 'not installed'}" for name, version in versions.items()]
    lines += ["", "devices"]
    for device in found["devices"]:
        lines.append(
            f"  {device['device']:<12}{device['name']}, {device['memory_gib']:.1f} GiB"
            + (f", {device['free_gib']:.1f} GiB free" if device["free_gib"] is not None else "")
        )
    threads = found["threads"]
    lines.append(f"  threads     {threads['torch']} used by torch, {threads['cores']} cores")
    lines += ["", "operations"]
    width = max((len(row["op"]) for row in found["ops"]), default=0)
    for row in found["ops"]:
        lines.append(f"  {row['op']:<{width}}  {row['implementation'] or '-':<7} {row['why']}")
    kernels = found["c_kernels"]
    lines += ["", f"C kernels       {kernels['library'] or 'none: ' + kernels['why']}"]
    lines += ["", "methods whose layers read by a rule of their own"]
    lines += [f"  {method:<{width}}  {told}" for method, told in found["layer_rules"].items()]
    model = found["embedded_model"]
    state = f"{model['path']}, {model['megabytes']:.1f} MB" if model["present"] else model["mend"]
    lines += ["", f"embedded model  {state}"]
    return "\n".join(lines)


def _devices() -> list[dict[str, Any]]:
    import torch

    gib = 2.0**30
    devices = [
        {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib,
            "free_gib": None,
        }
    ]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": device_name(torch.device("cuda", index)),
                "memory_gib": total / gib,
                "free_gib": free / gib,
            }
        )
    return devices


def _embedded_model() -> dict[str, Any]:
    """Whether the embedded model lies in the installed package, and how large it is."""
    from remamba.pretrained import EMBEDDED, locate

    try:
        folder = Path(locate(EMBEDDED))
    except InputError as error:
        return {"present": False, "path": None, "mend": str(error)}
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        mend = f"{folder} holds no weights; install again from a full checkout"
        return {"present": False, "path": None, "mend": mend}
    size = sum(file.stat().st_size for file in weights) / 1e6
    return {"present": True, "path": str(folder), "megabytes": size}
