"""What the C library does with memory that is freed, while compiled functions run and otherwise.

Theano frees and takes hundreds of MB in each training step.  glibc gives such memory back to the kernel
at once, and faulting the pages in again was half of stock Theano's time in our measurements.  So while
a compiled function runs, all memory comes from the heap, and what the function frees stays there for
the next call.  Everybody else's large arrays keep coming from the kernel and go back to it::

                        arrays above 32 MB      free memory at the end of the heap
    in a function       from the heap           stays
    elsewhere           from the kernel         stays up to what functions have needed, and 32 MB

When a function is deleted, so is what it kept.
"""
import ctypes
import functools
import sys
import threading
import time
import weakref

__all__ = ['install']

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MMAP_MAX = 65536  # glibc's default
_LARGEST_INT = 2 ** 31 - 1
_MB = 1 << 20

# A function that takes less time has no use for it: one page is faulted in in a quarter of a
# microsecond, and the calls below take a few of them.
_WORTH_IT = .0005  # seconds


def install(function_class):
    """Let the C library keep memory while functions of a class run.  Does nothing without glibc.

    Parameters
    ----------
    function_class : type
        `theano.compile.Function`.
    """
    if not sys.platform.startswith('linux'):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, 'mallopt'):  # musl and others
        return
    heap = _Heap(libc)
    original = function_class.__call__

    @functools.wraps(original)
    def __call__(self, *args, **kwargs):
        begin = time.perf_counter()
        if vars(self).get('_last_seconds', 1) < _WORTH_IT:
            try:
                return original(self, *args, **kwargs)
            finally:
                self._last_seconds = time.perf_counter() - begin
        if '_last_seconds' not in vars(self):
            weakref.finalize(self, heap.trim).atexit = False
        heap.keep()
        try:
            return original(self, *args, **kwargs)
        finally:
            heap.let_go()
            self._last_seconds = time.perf_counter() - begin

    function_class.__call__ = __call__


class _Heap:
    """glibc's settings, and how much of its heap functions have needed."""

    def __init__(self, libc):
        self._mallopt, self._malloc_trim, self._sbrk = libc.mallopt, libc.malloc_trim, libc.sbrk
        self._malloc_trim.argtypes = [ctypes.c_size_t]
        self._sbrk.argtypes, self._sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
        self._lock = threading.Lock()
        self._running = 0  # functions, in all threads
        self._end = 0  # of the heap, when the first of them began
        self._needed = 0  # the most bytes by which functions have made the heap grow
        # What glibc would come to by itself, by and by; more it takes only from 2.35 on.
        self._mallopt(_M_MMAP_THRESHOLD, 32 * _MB)
        self._set_trim_threshold()

    def _set_trim_threshold(self):
        self._mallopt(_M_TRIM_THRESHOLD, min(self._needed + 32 * _MB, _LARGEST_INT))

    def keep(self):
        """A function begins."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._end = self._sbrk(0)
                self._mallopt(_M_MMAP_MAX, 0)
                self._mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)

    def let_go(self):
        """A function ends."""
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._needed = max(self._needed, self._sbrk(0) - self._end)
                self._mallopt(_M_MMAP_MAX, _MMAP_MAX)
                self._set_trim_threshold()

    def trim(self):
        """Give all free memory back to the kernel."""
        with self._lock:
            self._needed = 0
            if not self._running:
                self._set_trim_threshold()
        self._malloc_trim(0)
