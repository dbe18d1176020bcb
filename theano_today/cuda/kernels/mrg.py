"""The random streams of ops_random.py as one kernel: numbers, and the state after them.

The table of powers makes numbers from states by multiplication; stepping is cheaper.  So the steps
are cut into chunks: an instance of the kernel takes a block of streams and one chunk, jumps to the
start of the chunk by a table of powers, and steps from there in 32-bit integers.  Where the last
chunk ends is the new state.
"""

import torch
import triton
import triton.language as tl

from ..convert import table
from .run import launch

STEPS = 32   # a chunk
BLOCK = 128  # streams for one instance


@triton.jit
def _fold1(x):
    """x modulo M1, for x below 2**63, up to one M1."""
    x = (x & 0x7fffffff) + (x >> 31)
    return (x & 0x7fffffff) + (x >> 31)


@triton.jit
def _fold2(x):
    """x modulo M2, for x below 2**63, up to one M2."""
    x = (x & 0x7fffffff) + (x >> 31) * 21069
    x = (x & 0x7fffffff) + (x >> 31) * 21069
    return (x & 0x7fffffff) + (x >> 31) * 21069


@triton.jit
def _dot1(row, a, b, c):
    x = _fold1(tl.load(row) * a) + _fold1(tl.load(row + 1) * b) + _fold1(tl.load(row + 2) * c)
    x = _fold1(x)
    return tl.where(x >= 2147483647, x - 2147483647, x).to(tl.uint32)


@triton.jit
def _dot2(row, a, b, c):
    x = _fold2(tl.load(row) * a) + _fold2(tl.load(row + 1) * b) + _fold2(tl.load(row + 2) * c)
    x = _fold2(x)
    return tl.where(x >= 2147462579, x - 2147462579, x).to(tl.uint32)


@triton.jit
def _wrap(x, modulus):
    return tl.where(x >= modulus, x - modulus, x)


@triton.jit
def kernel(state, jumps, numbers, after, streams, chunks, count, norm, STEPS: tl.constexpr,
           BLOCK: tl.constexpr):
    stream = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(1)
    inside = stream < streams
    old = state + stream * 6
    a = tl.load(old, mask=inside, other=0).to(tl.int64)
    b = tl.load(old + 1, mask=inside, other=0).to(tl.int64)
    c = tl.load(old + 2, mask=inside, other=0).to(tl.int64)
    jump = jumps + chunk * 18
    x11 = _dot1(jump, a, b, c)
    x12 = _dot1(jump + 3, a, b, c)
    x13 = _dot1(jump + 6, a, b, c)
    a = tl.load(old + 3, mask=inside, other=0).to(tl.int64)
    b = tl.load(old + 4, mask=inside, other=0).to(tl.int64)
    c = tl.load(old + 5, mask=inside, other=0).to(tl.int64)
    x21 = _dot2(jump + 9, a, b, c)
    x22 = _dot2(jump + 12, a, b, c)
    x23 = _dot2(jump + 15, a, b, c)
    # 32 bits without a sign hold every sum of two numbers below the moduli.
    M1 = tl.full([1], 2147483647, tl.uint32)
    M2 = tl.full([1], 2147462579, tl.uint32)
    position = (chunk * STEPS).to(tl.int64) * streams + stream
    for _ in range(STEPS):
        y = _wrap(((x12 & 511) << 22) + (x12 >> 9) + ((x13 & 16777215) << 7) + (x13 >> 24), M1)
        y = _wrap(y + x13, M1)
        z = _wrap(((x21 & 65535) << 15) + (x21 >> 16) * 21069, M2)
        w = _wrap(((x23 & 65535) << 15) + (x23 >> 16) * 21069, M2)
        z = _wrap(_wrap(w + x23, M2) + z, M2)
        # Streams that have made all their steps stay where they are.
        goes_on = position < count
        x13 = tl.where(goes_on, x12, x13)
        x12 = tl.where(goes_on, x11, x12)
        x11 = tl.where(goes_on, y, x11)
        x23 = tl.where(goes_on, x22, x23)
        x22 = tl.where(goes_on, x21, x22)
        x21 = tl.where(goes_on, z, x21)
        difference = tl.where(x11 > x21, x11 - x21, x11 - x21 + M1)
        tl.store(numbers + position, difference.to(tl.int32).to(tl.float32) * norm,
                 mask=inside & goes_on)
        position += streams
    last = inside & (stream * 0 + chunk == chunks - 1)
    new = after + stream * 6
    tl.store(new, x11.to(tl.int32), mask=last)
    tl.store(new + 1, x12.to(tl.int32), mask=last)
    tl.store(new + 2, x13.to(tl.int32), mask=last)
    tl.store(new + 3, x21.to(tl.int32), mask=last)
    tl.store(new + 4, x22.to(tl.int32), mask=last)
    tl.store(new + 5, x23.to(tl.int32), mask=last)


def _matrix_power(matrix, n, modulus):
    """``matrix ** n`` modulo `modulus`, in Python's integers."""
    result = [[int(i == j) for j in range(3)] for i in range(3)]
    while n:
        if n & 1:
            result = _times(result, matrix, modulus)
        matrix, n = _times(matrix, matrix, modulus), n >> 1
    return result


def _times(a, b, modulus):
    return [[sum(a[i][k] * b[k][j] for k in range(3)) % modulus for j in range(3)]
            for i in range(3)]


@table
def jumps_for(matrices, moduli, streams, count, device):
    """Powers that lead to the start of each chunk: int64 of shape (chunks, 18).

    Parameters
    ----------
    matrices : pair of 3x3 tuples
        Of the two recurrences.
    moduli : pair of int
    streams, count : int
    device : torch.device
    """
    chunks = -(-count // (streams * STEPS))
    steps = [_matrix_power(matrix, STEPS, modulus) for matrix, modulus in zip(matrices, moduli)]
    current = [_matrix_power(matrix, 0, 1 << 31) for matrix in matrices]
    rows = []
    for _ in range(chunks):
        rows.append([number for matrix in current for row in matrix for number in row])
        current = [_times(matrix, step, modulus)
                   for matrix, step, modulus in zip(current, steps, moduli)]
    return torch.tensor(rows, dtype=torch.int64).to(device)


def draw(state, jumps, count, norm):
    """Draw `count` float32 numbers.

    Parameters
    ----------
    state : int32 tensor, shape (streams, 6), contiguous
    jumps : tensor
        From `jumps_for`.
    count : int
    norm : float
        The factor between integers and numbers.

    Returns
    -------
    new_state : int32 tensor, shape (streams, 6)
    numbers : float32 tensor, shape (count,)
    """
    streams = state.shape[0]
    numbers = torch.empty(count, dtype=torch.float32, device=state.device)
    after = torch.empty_like(state)
    chunks = jumps.shape[0]
    launch(kernel, (-(-streams // BLOCK), chunks), state, jumps, numbers, after, streams, chunks,
           count, norm, STEPS=STEPS, BLOCK=BLOCK, reads=[state, jumps], writes=[after, numbers],
           name='random numbers')
    return after, numbers


# torch.compile sees it as one operation.
@torch.library.custom_op('theano_today::mrg_uniform', mutates_args=())
def uniform(state: torch.Tensor, jumps: torch.Tensor, count: int,
            norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `draw`."""
    return draw(state, jumps, count, norm)


@uniform.register_fake
def _(state, jumps, count, norm):
    return torch.empty_like(state), state.new_empty(count, dtype=torch.float32)
