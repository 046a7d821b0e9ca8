"""All integers of a batch in one buffer, moved to the device in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ragged_batch import Int32Array

# Sections begin at multiples of 16 bytes: kernels are compiled for what they find.
_ALIGNMENT = 4
_MIN_CAPACITY = 1 << 16
# The host fills one while the copy of the other may still be under way.
_NUM_STAGES = 2


@dataclass(frozen=True, slots=True)
class Section:
    """One array of the batch, and the room that it has: what is left is filled."""

    values: Int32Array
    room: int
    fill: int = 0


class InputBuffer:
    """Sections of equal room lie at equal addresses in every batch, until the buffer grows."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turn = 0
        #: how often addresses have changed; graphs of before are void
        self.generation = 0
        self._allocate(_MIN_CAPACITY)

    def write(self, sections: Sequence[Section]) -> list[Tensor]:
        """Move a batch to the device, behind the work queued there.

        Returns:
            int32 `[section.room]` of each section, valid until the next call.
        """
        rooms = [-(-section.room // _ALIGNMENT) * _ALIGNMENT for section in sections]
        total = sum(rooms)
        if total > len(self._on_device):
            self._allocate(1 << (total - 1).bit_length())
            self.generation += 1
        self._turn = (self._turn + 1) % _NUM_STAGES
        stage, copied = self._stages[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        array = stage.numpy()
        views, begin = [], 0
        for section, room in zip(sections, rooms, strict=True):
            end = begin + section.values.size
            array[begin:end] = section.values.reshape(-1)
            array[end : begin + room] = section.fill
            views.append(self._on_device[begin : begin + section.room])
            begin += room
        self._on_device[:total].copy_(stage[:total], non_blocking=True)
        if copied is not None:
            copied.record()
        return views

    def _allocate(self, capacity: int) -> None:
        is_cuda = self._device.type == "cuda"
        self._on_device = torch.zeros(capacity, dtype=torch.int32, device=self._device)
        self._stages = [
            torch.zeros(capacity, dtype=torch.int32, pin_memory=is_cuda) for _ in range(_NUM_STAGES)
        ]
        self._copied = [_make_event() if is_cuda else None for _ in range(_NUM_STAGES)]


def _make_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
