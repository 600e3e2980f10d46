"""What a prefill took, and each of its two stages."""

from __future__ import annotations

import time
from typing import Any

import torch

from remamba.modeling_remamba import ReMambaForCausalLM


class StageClock:
    """Measures a prefill. Stage 1 ends when the compressor is first asked for keys.

    On a GPU events measure it: waiting between the stages would slow the prefill down.
    """

    def __init__(self, model: ReMambaForCausalLM):
        self._device = model.device
        self._is_gpu = model.device.type == "cuda"
        self._keys = model.compressor.key_proj
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._hook = self._keys.register_forward_pre_hook(self._mark)
        self._mark()
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._stop = time.perf_counter()
        self._hook.remove()

    def _mark(self, *_: object) -> None:
        if self._is_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record(torch.cuda.current_stream(self._device))
        else:
            self._marks.append(time.perf_counter())

    def seconds(self, reading: float) -> dict[str, float]:
        """Seconds of the prefill, and of its two stages if it had two.

        Call it after the prefill's results have been read.

        Args:
            reading: seconds spent on reading the document before.
        """
        whole = self._stop - self._start
        found = {"prefill": reading + whole}
        if len(self._marks) > 1:
            first, last = self._marks[0], self._marks[-1]
            stage1 = first.elapsed_time(last) / 1000 if self._is_gpu else last - first
            found["stage1"] = reading + min(stage1, whole)
            found["stage2"] = whole - min(stage1, whole)
        return found
