"""Which implementation of an op runs. Nothing else decides.

By default each op takes the fastest form that its device allows. `use_backend("ref")`, or the
environment variable REMAMBA_BACKEND, asks for one by name; a request that cannot be met raises.
A kernel may say why it cannot take some inputs (`limited`): the next slower form then does, torch
at last, and the log says so once.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch

from remamba.errors import InputError

Given = ParamSpec("Given")
Returned = TypeVar("Returned")
Form = TypeVar("Form", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

BACKENDS = ("ref", "torch", "c", "triton", "cuda")
KERNELS = {"cuda": ("cuda", "triton"), "cpu": ("c",)}
"""A device's kernels, the fastest first: CUDA C++ compiled by torch's NVRTC, and triton; for a CPU
C compiled by the system's compiler, for inference alone."""

# op -> backend -> "module:function", imported when first used: only *_triton.py import triton.
# A triton form is registered by a line here, beside the others:
# "triton": "remamba.ops.scan.triton:selective_scan_triton".
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "selective_scan": {
        "ref": "remamba.ops.scan.reference:reference",
        "torch": "remamba.ops.scan.torch:selective_scan_torch",
        "c": "remamba.ops.scan.c:selective_scan_c",
        "triton": "remamba.ops.scan.triton:selective_scan_triton",
        "cuda": "remamba.ops.scan.cuda:selective_scan_cuda",
    },
    "ssd": {
        "ref": "remamba.ops.ssd_scan.reference:reference",
        "torch": "remamba.ops.ssd_scan.torch:ssd_torch",
        "c": "remamba.ops.ssd_scan.c:ssd_c",
        "triton": "remamba.ops.ssd_scan.triton:ssd_triton",
    },
    "causal_conv": {
        "torch": "remamba.ops.convolution.op:causal_conv_torch",
        "c": "remamba.ops.convolution.c:causal_conv_c",
        "triton": "remamba.ops.convolution.triton:causal_conv_triton",
    },
    "adapt_dt": {
        "torch": "remamba.ops.time_step.op:adapt_dt_torch",
        "triton": "remamba.ops.time_step.triton:adapt_dt_triton",
    },
    "decay_rate": {
        "torch": "remamba.ops.time_step.op:decay_rate_torch",
        "triton": "remamba.ops.time_step.triton:decay_rate_triton",
    },
    "rms_norm": {
        "torch": "remamba.ops.norm.op:rms_norm_torch",
        "c": "remamba.ops.norm.c:rms_norm_c",
        "triton": "remamba.ops.norm.triton:rms_norm_triton",
    },
    "gated_rms_norm": {
        "torch": "remamba.ops.norm.op:gated_rms_norm_torch",
        "c": "remamba.ops.norm.c:gated_rms_norm_c",
        "triton": "remamba.ops.norm.triton:gated_rms_norm_triton",
    },
    "selective_state_update": {
        "torch": "remamba.ops.state_update.op:selective_state_update_torch",
        "c": "remamba.ops.state_update.c:selective_state_update_c",
        "triton": "remamba.ops.state_update.triton:selective_state_update_triton",
    },
    "ssd_state_update": {
        "torch": "remamba.ops.state_update.op:ssd_state_update_torch",
        "c": "remamba.ops.state_update.c:ssd_state_update_c",
        "triton": "remamba.ops.state_update.triton:ssd_state_update_triton",
    },
    "cross_entropy": {
        "torch": "remamba.ops.loss.op:cross_entropy_torch",
        "triton": "remamba.ops.loss.triton:cross_entropy_triton",
    },
    # a whole decode step; where no kernel runs, the model calls its own modules
    "decode_layer": {
        "ref": "",
        "torch": "",
        "c": "remamba.ops.decode_layer.c:decode_logits_c",
        "triton": "remamba.ops.decode_layer.triton:decode_logits",
    },
}

_requested: ContextVar[str | None] = ContextVar("remamba_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the context every op that has a form of this name (one of BACKENDS) runs it.

    Raises:
        InputError: there is no such backend.
    """
    _check_name(name, "use_backend")
    token = _requested.set(name)
    try:
        yield
    finally:
        _requested.reset(token)


def resolve(op: str, device: torch.device | str) -> str:
    """The name of the implementation that op runs on device, one of BACKENDS.

    Raises:
        InputError: the backend asked for, perhaps by REMAMBA_BACKEND, cannot run there.
    """
    return _choose(op, torch.device(device).type, *_request())[0][0]


def limited(fits: Callable[..., str]) -> Callable[[Form], Form]:
    """Decorator of a form that cannot take everything.

    Args:
        fits: called with the form's arguments before it; returns why it cannot take them, a fixed
            text, or "" if it can.
    """

    def mark(form: Form) -> Form:
        form.fits = fits  # type: ignore[attr-defined]
        return form

    return mark


def form_for(op: str, device: torch.device, *args: Any, **kwargs: Any) -> tuple[str, str]:
    """The form that op runs on device for these arguments, and why not those before it.

    What torch.compile makes of a call keeps the forms of the time when it was traced.
    """
    told = ""
    for name in _order(op, device.type).split():
        fits = getattr(_functions[op][name], "fits", None)
        reason = fits(*args, **kwargs) if fits is not None else ""
        if not reason:
            break
        told = f"{told}; not {name}: {reason}" if told else f"not {name}: {reason}"
    if told and not torch.compiler.is_compiling():
        _tell(op, name, told)
    return name, told


def run(op: str, device: torch.device, *args: Any, **kwargs: Any) -> Any:
    """What the op's form for these arguments makes of them."""
    name = _order(op, device.type)
    if name not in _functions[op]:  # several, of which the first may have something against them
        name, _ = form_for(op, device, *args, **kwargs)
    return _functions[op][name](*args, **kwargs)


@functools.cache
def _tell(op: str, name: str, why: str) -> None:
    """Cached, so that the log says it once."""
    logger.info("%s: %s for some inputs (%s)", op, name, why)


def in_form(op: Callable[Given, Returned], name: str) -> Callable[Given, Returned]:
    """A public op as its form of this name computes it, whatever backend is asked for."""

    @functools.wraps(op)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        with use_backend(name):
            return op(*args, **kwargs)

    return call


def explain(device: torch.device | str | None = None) -> list[tuple[str, str | None, str]]:
    """(op, choice, why) of every op, on device (default: the GPU when there is one).

    Where the backend asked for cannot run, the choice is None and the reason is why.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device_type = torch.device(device).type
    found: list[tuple[str, str | None, str]] = []
    for op in IMPLEMENTATIONS:
        try:
            forms, why = _choose(op, device_type, *_request())
            if len(forms) > 1:
                why += f"; what it cannot take goes to {', then '.join(forms[1:])}"
            found.append((op, forms[0], why))
        except InputError as error:
            found.append((op, None, str(error)))
    return found


def requested() -> str | None:
    """The backend asked for by use_backend or REMAMBA_BACKEND; None: the fastest of each op."""
    return _request()[0]


def _request() -> tuple[str | None, str]:
    """The backend asked for, and by what."""
    name = _requested.get()
    if name is not None:
        return name, "use_backend"
    return os.environ.get("REMAMBA_BACKEND") or None, "REMAMBA_BACKEND"


def _check_name(name: str, asked_by: str) -> None:
    if name not in BACKENDS:
        raise InputError(f"{asked_by}: no backend {name!r}; there are {', '.join(BACKENDS)}")
    if not any(name in forms for forms in IMPLEMENTATIONS.values()):
        raise InputError(f"{asked_by}: no op has a {name!r} implementation")


@functools.cache
def _choose(
    op: str, device_type: str, request: str | None, asked_by: str
) -> tuple[tuple[str, ...], str]:
    """The choice and the forms that take what it cannot, and why the choice.

    Cached, so that a decode step does not pay for it and the log says it once.
    """
    chosen, why = _forms(IMPLEMENTATIONS[op], op, device_type, request, asked_by)
    logger.info("%s on %s: %s (%s)", op, device_type, chosen[0], why)
    return chosen, why


def _forms(
    forms: dict[str, str], op: str, device_type: str, request: str | None, asked_by: str
) -> tuple[tuple[str, ...], str]:
    """_choose, without a word to the log."""
    if request is not None:
        _check_name(request, asked_by)
        if request in forms:
            if obstacle := _obstacle(request, device_type):
                raise InputError(
                    f"{asked_by}: {op} cannot run {request!r} on {device_type}: {obstacle}"
                )
            return _and_slower(forms, request, device_type), f"asked for by {asked_by}"
        if device_type == "cpu":
            return ("torch",), f"torch's own; has no {request!r} form"
    obstacles = {
        name: _obstacle(name, device_type) for name in KERNELS.get(device_type, ()) if name in forms
    }
    choice = next((name for name, obstacle in obstacles.items() if not obstacle), "torch")
    told = [f"no {name!r}: {obstacle}" for name, obstacle in obstacles.items() if obstacle]
    if choice != "torch" or not obstacles:
        told = [f"fastest on {device_type}", *told]
    if request is not None:
        told.append(f"has no {request!r} form")
    return _and_slower(forms, choice, device_type), "; ".join(told)


def _and_slower(forms: dict[str, str], choice: str, device_type: str) -> tuple[str, ...]:
    """A choice, and behind a kernel those that take what it cannot."""
    for kernels in KERNELS.values():
        if choice in kernels:
            slower = [name for name in kernels[kernels.index(choice) + 1 :] if name in forms]
            able = [name for name in slower if not _obstacle(name, device_type)]
            return choice, *able, "torch"
    return (choice,)


def _obstacle(kernels: str, device_type: str) -> str:
    """Why these kernels cannot run on this device; empty when they can."""
    if kernels == "cuda":
        from remamba.ops import nvrtc

        return nvrtc.obstacle() if device_type == "cuda" else "it needs a GPU"
    if kernels == "c":
        from remamba.ops import compiled

        return compiled.obstacle() if device_type == "cpu" else "it needs a CPU"
    if kernels != "triton":
        return ""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a GPU, or TRITON_INTERPRET=1"
    return ""


# op -> backend -> function, as far as imported
_functions: dict[str, dict[str, Any]] = {op: {} for op in IMPLEMENTATIONS}


def _order(op: str, device_type: str) -> str:
    """The forms to try in their order; their functions are in _functions from then on."""
    forms = _choose(op, device_type, *_request())[0]
    if not _functions[op].keys() >= set(forms):
        # all at once: within a trace a compiler looks into the table of an op only once
        _functions[op].update({name: _load(op, name) for name in forms})
    return " ".join(forms)


# a compiler cannot trace how a form is chosen: it runs `_order`, and takes the names for constant.
# torch.compiler.assume_constant_result sets the same, and imports all of torch's compiler for it.
_order._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _load(op: str, backend: str) -> Callable | None:
    """None where the form is the caller's own modules."""
    if not IMPLEMENTATIONS[op][backend]:
        return None
    module, function = IMPLEMENTATIONS[op][backend].split(":")
    return getattr(importlib.import_module(module), function)
