"""The second door to the core, and what all tests behind it need.

Structures are driven one at a time through cffi, most of them by a Hypothesis state machine
beside a Python model. A machine takes its model from the attribute `Model`, so that
test_model_can_fail.py can put in a broken one.

Not here: threads and sockets (storm.c).
"""

import ctypes
import mmap
import weakref
from typing import Any

from hypothesis import HealthCheck, settings
from imserver._core_ffi import ffi, lib

NONE = 2**32 - 1

_rooms: Any = weakref.WeakKeyDictionary()  # memory that lives as long as its structure

#: Without time-outs of its own: machines that run tests are slow at times.
PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
MACHINE = settings(PROPERTY, max_examples=60, stateful_step_count=40)


class Span:
    """A struct im_span over a copy of `data`, alive as long as this object."""

    def __init__(self, data: bytes) -> None:
        # Of its exact size, so that a sanitizer sees the first byte behind it.
        self._bytes = ffi.new("uint8_t[]", data) if data else ffi.NULL
        self.value = ffi.new("struct im_span *", (self._bytes, len(data)))[0]


def text(span: Any) -> bytes:
    """What a struct im_span holds."""
    return bytes(ffi.buffer(span.at, span.len)) if span.len else b""


def new_aligned(type: str) -> Any:
    """A zeroed structure on a cache line, where the compiler expects some of ours to be."""
    room = ffi.new("uint8_t[]", ffi.sizeof(type) + 63)
    at = (int(ffi.cast("uintptr_t", room)) + 63) & ~63
    structure = ffi.cast(f"{type} *", at)
    _rooms[structure] = room
    return structure


def address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


class GuardedPage:
    """Memory with an end: reading the byte behind it kills the process."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self._map = mmap.mmap(-1, self.size + page)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self._at = ctypes.addressof(self._anchor)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self._at + self.size), page, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def span(self, data: bytes) -> Any:
        """A struct im_span of `data`, which stands right before the end."""
        self._map[self.size - len(data) : self.size] = data
        at = ffi.cast("const uint8_t *", self._at + self.size - len(data))
        return ffi.new("struct im_span *", (at, len(data)))[0]


class Pool:
    """A pool of messages with its bounds, and what tests do with it."""

    PAGES = 16  # the least a pool has
    PAGE = 256 << 10

    def __init__(self, owner: int = 0, len_max: int = 100_000, pages: int = PAGES) -> None:
        self.it = new_aligned("struct im_pool")
        assert lib.im_pool_init(self.it, owner, pages * self.PAGE, len_max) == lib.IM_OK
        assert self.it.page_count == self.it.spare == pages
        assert self.it.page_len == self.PAGE

    def take(self, len: int, purpose: int = lib.IM_FOR_MESSAGE) -> Any:
        """A message, or None when the pool is dry."""
        msg = lib.im_pool_take(self.it, len, purpose)
        return msg if msg != ffi.NULL else None

    def message(self, data: bytes) -> Any:
        msg = self.take(len(data))
        assert msg is not None
        ffi.memmove(msg.bytes, data, len(data))
        return msg

    def drop(self, msg: Any) -> None:
        lib.im_msg_drop(self.it, msg)

    def free(self) -> None:
        lib.im_pool_free(self.it)


def content(msg: Any) -> bytes:
    return bytes(ffi.buffer(ffi.cast("uint8_t *", msg.bytes), msg.len))
