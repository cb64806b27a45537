"""What is known of a worker process when it dies: which call it had begun, and what it had finished."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping

import attrs

from polyexec.spi import Stored

_MARK_SIZE = 256 * 1024
_NUMBER = struct.Struct("<Q")
_ENTRY = struct.Struct("<QI")
_BEGUN, _ENDED, _END, _FIRST = 0, 8, 16, 24


class Mark:
    """What a worker has begun and finished, in memory that outlives it.

    It holds the id of the last call that began, whether that has ended, and the outcomes of the calls that were handed
    over together with it, so that they are not lost if the worker dies in a later one.

    Args:
        descriptor: of the memory; None to make some.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        made = os.memfd_create("polyexec-mark") if descriptor is None else descriptor
        if descriptor is None:
            # The kernel makes it open to everybody who finds it in /proc.
            os.fchmod(made, 0o600)
            os.ftruncate(made, _MARK_SIZE)
        self.descriptor = made
        self._memory = mmap.mmap(made, _MARK_SIZE)

    def begin(self, call_id: int) -> None:
        """Note that the body of a call may start from now on."""
        _NUMBER.pack_into(self._memory, _BEGUN, call_id)
        _NUMBER.pack_into(self._memory, _ENDED, 0)

    def end(self) -> None:
        """Note that the body has ended."""
        _NUMBER.pack_into(self._memory, _ENDED, 1)

    def clear(self) -> None:
        """Forget all outcomes."""
        _NUMBER.pack_into(self._memory, _END, _FIRST)

    def record(self, call_id: int, outcome: Stored) -> bool:
        """Keep an outcome; False if it is too large for that."""
        end = _NUMBER.unpack_from(self._memory, _END)[0]
        stop = end + _ENTRY.size + len(outcome.data)
        if outcome.buffers or stop > _MARK_SIZE:
            return False
        _ENTRY.pack_into(self._memory, end, call_id, len(outcome.data))
        self._memory[end + _ENTRY.size : stop] = outcome.data
        # Last, so that a death in the lines above leaves no half of an outcome.
        _NUMBER.pack_into(self._memory, _END, stop)
        return True

    def begun(self) -> int:
        """Give the last call that began, 0 for none."""
        call_id: int = _NUMBER.unpack_from(self._memory, _BEGUN)[0]
        return call_id

    def running(self) -> int:
        """Give the call whose body runs, 0 for none."""
        return 0 if _NUMBER.unpack_from(self._memory, _ENDED)[0] else self.begun()

    def outcomes(self) -> dict[int, bytes]:
        """Give the outcomes that are kept, by call."""
        position, found = _FIRST, {}
        end = _NUMBER.unpack_from(self._memory, _END)[0]
        while position < end:
            call_id, length = _ENTRY.unpack_from(self._memory, position)
            position += _ENTRY.size
            found[call_id] = bytes(self._memory[position : position + length])
            position += length
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self.descriptor)

    @staticmethod
    def of_process(pid: int, descriptor: int) -> Mark:
        """Share the mark of another process of the same user."""
        return Mark(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR))


@attrs.frozen
class Autopsy:
    """How a worker process ended.

    Attributes:
        pid: its process id, None if unknown.
        signal: number of the signal that ended it, None if none or unknown.
        exit_code: its exit status, None if a signal ended it or if unknown.
        begun: the last call that had begun, None if unknown.
        outcomes: of calls that had ended and that the driver may not have got.
        cause: the likely cause in words.
    """

    pid: int | None = None
    signal: int | None = None
    exit_code: int | None = None
    begun: int | None = None
    outcomes: Mapping[int, bytes] = attrs.field(factory=dict)
    cause: str = ""
