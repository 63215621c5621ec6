"""Batches of numpy arrays as tensors on their device: views where they are there already, a side stream to a GPU.

A copy to a GPU starts when a batch is given out and the consumer's stream waits for it, not the consumer; the pinned
memory it comes from is held until the copy has ended.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from mmbuild.stream.buffers import Allocate, plain_memory


def memory_for(device: torch.device | str | None) -> Allocate:
    """How memory for batches on their way to a device is made: pinned for a GPU that is there."""
    if device is None or torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return plain_memory
    return lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


class Uploads:
    """Makes tensors of batches; dtype: that of continuous values, ``torch.float32`` as they are computed."""

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype) -> None:
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._stream: Any = None
        self._flying: deque[tuple[Any, list[torch.Tensor]]] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None, "_flying": deque()}

    def send(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with tensors for arrays; everything else stays as it is."""
        # from_numpy shares memory with an array that only this batch owns.
        tensors = {key: torch.from_numpy(value) for key, value in batch.items() if isinstance(value, np.ndarray)}
        if self._device is not None and self._device.type == "cuda":
            return batch | self._through_side_stream(tensors)
        return batch | {
            key: tensor.to(device=self._device, dtype=self._kind(tensor)) for key, tensor in tensors.items()
        }

    def _kind(self, tensor: torch.Tensor) -> torch.dtype:
        return self._dtype if tensor.dtype == torch.float32 else tensor.dtype

    def _through_side_stream(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        consumer = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            sent = {key: tensor.to(self._device, non_blocking=True) for key, tensor in tensors.items()}
            sent = {key: tensor.to(self._kind(tensor)) for key, tensor in sent.items()}
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        consumer.wait_event(event)
        for tensor in sent.values():
            tensor.record_stream(consumer)
        self._flying.append((event, list(tensors.values())))
        while self._flying and self._flying[0][0].query():
            self._flying.popleft()
        return sent
