"""Batches that a thread prepares while the training step before them runs.

A GPU is done with a batch in about the time in which NumPy flips the next one.  `ahead` is for any
iterable; with ``device=cuda`` all of nolearn's batch iterators use it (`run_ahead`).
"""
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice

import numpy as np

from ..compat import after_import

__all__ = ['ahead', 'run_ahead']


def ahead(batches, number=1):
    """Let a thread prepare the next few of some batches; errors in it come out here.

    The thread ends with the last batch, or when the generator is closed: at the latest when nobody
    holds it any more.

    Parameters
    ----------
    batches : iterable
    number : int
        How many batches the thread may be ahead.

    Yields
    ------
    The same batches in the same order.
    """
    batches, done = iter(batches), object()
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(next, batches, done) for _ in range(number))
        while True:
            batch = pending.popleft().result()
            if batch is done:
                return
            pending.append(thread.submit(next, batches, done))
            yield batch


def run_ahead(finish):
    """Let the batch iterators of nolearn prepare the next batch while the device works.

    The batches stay the same, bit for bit.  An iterator that draws from NumPy's global random
    stream, or Lasagne's, stays as it was: others could draw from it in between.

    Parameters
    ----------
    finish : callable
        What the thread does with each array of a batch in the end.
    """
    @after_import('nolearn.lasagne.base')
    def _nolearn_batches(base):
        original = base.BatchIterator.__iter__

        def __iter__(self):
            batches = original(self)
            before = _streams()
            first = list(islice(batches, 1))  # shows what the iterator draws from
            if _streams() != before:
                yield from chain(first, batches)
                return
            finished = (_each_array(finish, batch) for batch in chain(first, batches))
            yield from ahead(finished)

        base.BatchIterator.__iter__ = __iter__


def _streams():
    """The state of the random streams that anybody may draw from."""
    import lasagne
    streams = {np.random.mtrand._rand, lasagne.random.get_rng()}
    return [(state[1].tobytes(),) + state[2:] for state in (
        stream.get_state() for stream in streams if hasattr(stream, 'get_state'))]


def _each_array(function, batch):
    """Call a function for the arrays in tuples, lists and dictionaries."""
    if isinstance(batch, np.ndarray):
        return function(batch)
    if type(batch) in (tuple, list):
        return type(batch)(_each_array(function, part) for part in batch)
    if type(batch) is dict:
        return {name: _each_array(function, part) for name, part in batch.items()}
    return batch
