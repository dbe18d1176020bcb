"""Theano's random streams (MRG31k3p), bit for bit.

L'Ecuyer and Touzin, "Fast combined multiple recursive generators with multipliers of the form
a = ±2^d ±2^e", Winter Simulation Conference 2000.  Two linear recurrences of order three, modulo
M1 and M2; Theano runs thousands of such streams side by side and takes number i from stream
``i % streams``.  Element ``k`` of a stream is ``A**k`` times its state, so instead of running step
after step all numbers are computed at once from a table of powers.  Products of two 31-bit numbers
fit into int64, and both moduli lie just below 2**31, so that they need no division.

On a GPU a kernel (kernels/mrg.py) does less work and keeps no int64 in memory.
"""

import numpy as np
import torch
from theano.sandbox import rng_mrg

from .convert import converts, table, torch_dtype
from .kernels.run import cannot, with_kernel

M1, M2 = int(rng_mrg.M1), int(rng_mrg.M2)
_A1 = (0, 4194304, 129), (1, 0, 0), (0, 1, 0)
_A2 = (32768, 0, 32769), (1, 0, 0), (0, 1, 0)
# The factors of Theano's C code: about 2**-31.
_NORMS = {'float32': float(np.float32(4.6566126e-10)), 'float64': 4.656612873077392578125e-10}


@table
def _powers(first, last, device):
    """First rows of ``A**first`` to ``A**last``, modulo M1 and M2: two int64 tensors (n, 3)."""
    tables = []
    for matrix, modulus in ((_A1, M1), (_A2, M2)):
        # Row k+1 is row k times A; Python's integers do not overflow.
        a, row, rows = matrix[0], (1, 0, 0), []
        for k in range(1, last + 1):
            row = [(row[0] * a[j] + (row[j + 1] if j < 2 else 0)) % modulus for j in range(3)]
            if k >= first:
                rows.append(row)
        tables.append(torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).to(device))
    return tables


def _modulo(x, modulus):
    """``x % modulus`` of non-negative int64 below 2**63, without division.

    2**31 is congruent to ``2**31 - modulus``, so the high bits fold onto the low ones.
    """
    excess = 2 ** 31 - modulus  # 1 or 21069
    for _ in range(2 if excess == 1 else 3):
        x = (x & 0x7fffffff) + (x >> 31) * excess
    return torch.where(x >= modulus, x - modulus, x)


def _sequence(table, state, modulus):
    """The next ``len(table)`` numbers of each stream: int64 of shape (steps, streams)."""
    return _modulo(sum(_modulo(table[:, i:i + 1] * state[:, i], modulus) for i in range(3)),
                   modulus)


def by_table(state, count, dtype):
    """Draw numbers from (0, 1), and return the state after them.

    Parameters
    ----------
    state : int32 tensor, shape (streams, 6)
    count : int
        How many numbers; number i comes from stream ``i % streams``.
    dtype : str
        'float32' or 'float64'.

    Returns
    -------
    new_state : int32 tensor, shape (streams, 6)
    numbers : tensor of `dtype`, shape (count,)
    """
    streams = state.shape[0]
    steps = -(-count // streams)
    full = count - (steps - 1) * streams  # streams that make the last step
    wide = state.long()
    sequences, states = [], []
    for powers, modulus, old in zip(_powers(1, steps, state.device), (M1, M2),
                                    (wide[:, :3], wide[:, 3:])):
        new = _sequence(powers, old, modulus)
        sequences.append(new)
        # The state is the last three numbers, the newest first.
        tail = torch.cat([old.flip(1).t(), new[-4:]])[-4:].flip(0).t()
        states.append(torch.cat([tail[:full, :3], tail[full:, 1:]]))
    new_state = torch.cat(states, 1).to(torch.int32)
    difference = sequences[0] - sequences[1]
    # The C code takes the difference as an int32, rounds that to the dtype, and multiplies.
    numbers = torch.where(difference <= 0, difference + M1, difference).to(torch_dtype(dtype))
    return new_state, (numbers * _NORMS[dtype]).reshape(-1)[:count]


def by_kernel(state, count, dtype):
    """The same as `by_table`, for float32."""
    if dtype != 'float32':
        return cannot
    from .kernels import mrg
    jumps = mrg.jumps_for((_A1, _A2), (M1, M2), state.shape[0], count, state.device)
    return mrg.uniform(state.contiguous(), jumps, count, _NORMS[dtype])


mrg_uniform = with_kernel(by_kernel, by_table, traceable=True)


@converts(rng_mrg.mrg_uniform, host=[1])
def _mrg_uniform(node):
    dtype = node.outputs[1].type.dtype

    def run(state, size):
        shape = tuple(int(n) for n in size)
        count = int(np.prod(shape, dtype='int64'))
        if count > M1:
            raise ValueError('rng_mrg does not support more than (2**31 - 1) samples')
        if count == 0:
            return state, torch.empty(shape, dtype=torch_dtype(dtype), device=state.device)
        new_state, numbers = mrg_uniform(state, count, dtype)
        return new_state, numbers.reshape(shape)
    return run
