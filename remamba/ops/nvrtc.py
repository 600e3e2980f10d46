"""CUDA C++ kernels of the package, compiled at run time by the NVRTC that comes with torch."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

FUNCTION_MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES of the driver's interface."""


_Parameters = ctypes.c_char_p * 1
"""A kernel's parameters: where each begins in memory."""


class Kernel:
    """One kernel of a compiled source, on one device.

    Args:
        function: the driver's handle.
        shared: bytes of dynamic shared memory a block.
    """

    def __init__(self, function: ctypes.c_void_p, threads: int, shared: int):
        self._launch = _driver().cuLaunchKernel
        self._function, self._threads, self._shared = function, threads, shared

    def __call__(self, grid: tuple[int, int], arguments: bytes, device: int) -> None:
        """Launch on the device's current stream; `arguments` is the kernel's one parameter.

        The driver has read it when the launch returns.
        """
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(grid, arguments, device)
        _enter_context(device)
        pointers = _Parameters(arguments)
        stream = torch._C._cuda_getCurrentRawStream(device)
        code = self._launch(
            self._function, grid[0], grid[1], 1, self._threads, 1, 1, self._shared,
            ctypes.c_void_p(stream), pointers, None,
        )  # fmt: skip
        _check(code)


@functools.cache
def load(
    source: Path, name: str, defines: tuple[tuple[str, Any], ...], threads: int, shared: int,
    device: int,
) -> Kernel:  # fmt: skip
    """A kernel of `source` compiled with `defines` for the device; compiled once a process.

    Raises:
        RuntimeError: the compiler's or the driver's own message.
    """
    with torch.cuda.device(device):
        _enter_context(device)
        module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), _compile(source, defines, device)))
        function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()))
        if shared > 48 * 1024:
            attribute = FUNCTION_MAX_DYNAMIC_SHARED
            _check(_driver().cuFuncSetAttribute(function, attribute, shared))
    return Kernel(function, threads, shared)


@functools.cache
def _compile(source: Path, defines: tuple[tuple[str, Any], ...], device: int) -> bytes:
    major, minor = torch.cuda.get_device_capability(device)
    options = [f"--gpu-architecture=sm_{major}{minor}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in defines]
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text = source.read_bytes()
    code = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text, source.name.encode(), 0, None, None
    )
    assert code == 0, code
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    if nvrtc.nvrtcCompileProgram(program, len(options), encoded):
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{source.name} does not compile: {log.value.decode()}")
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    binary = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetCUBIN(program, binary)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


def obstacle() -> str:
    """Why nothing can be compiled here; empty when it can."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU"
    if torch.cuda.get_device_capability() < (8, 0):
        return "it needs compute capability 8.0"
    try:
        _nvrtc()
    except OSError:
        return "NVRTC, the run-time compiler that comes with torch, cannot be loaded"
    return ""


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of torch's own CUDA version: the system's, or the one in torch's wheels.

    Raises:
        OSError: there is none.
    """
    assert torch.version.cuda is not None
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError:
        wheels = Path(torch.__file__).parent.parent / "nvidia"
        for found in sorted(wheels.glob(f"*/lib/{name}")):
            return ctypes.CDLL(str(found))
        raise


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _enter_context(device: int) -> None:
    """Give a thread that has none torch's own context: autograd runs in threads of its own."""
    context = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)))
    if not context:
        handle = ctypes.c_int()
        _check(_driver().cuDeviceGet(ctypes.byref(handle), device))
        _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
        _check(_driver().cuCtxSetCurrent(context))


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA: {(text.value or b'unknown error').decode()} ({code})")
