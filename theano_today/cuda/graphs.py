"""Lines of PyTorch calls, recorded into CUDA graphs.

A graph knows addresses and nothing else.  Hence the rule of this file: **what a graph refers to must
outlive it, and must still be the current thing when it is replayed.**  `Recording` therefore holds

- copies of the arguments of a call, at addresses of their own, into which each call copies;
- the buffers of shared variables, which it compares with the current ones before each replay;
- the tables of constants that converters made (see `convert.table`);
- of the results, those that the caller gets.  New values of shared variables stay in their buffers.

All graphs allocate from one pool, so that each of them may overwrite what another one has computed;
`storage.LOCK` keeps the calls apart.
"""
import collections
import os

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from .convert import holding
from .kernels.run import references
from .storage import DeviceStorage

__all__ = ['CudaGraph', 'Recording', 'Rerun', 'compiled', 'copy_all', 'mode']

# Calls of a line before a CUDA graph is captured: libraries choose and allocate in these.
WARM_UP = 3
# A line whose graph has become invalid so often runs without one.
MAX_CAPTURES = 8


def mode(device):
    """How lines run: 'graph', 'compile' or 'eager', from the environment."""
    # Without a GPU there is nothing to gain; the tests ask for it.
    asked = os.environ.get('THEANO_TODAY_CUDA', 'graph' if device.type == 'cuda' else 'eager')
    if asked not in ('graph', 'compile', 'eager'):
        raise ValueError(f'THEANO_TODAY_CUDA={asked}: choose graph, compile or eager.')
    return asked


class Recording:
    """One line, recorded for given shapes and buffers.

    Parameters
    ----------
    function : callable
        The line: from the values of the inputs to a list of results.
    values : list
        The inputs now; those that are no tensors are constants of the line.
    storages : list of list
        Where the inputs come from.
    targets : list of int or None
        For each result the position of the shared variable that it updates.
    in_place : set of int
        Results that the line itself writes into the buffer of their variable; it returns None.
    late : set of int
        Results to be written after each replay: their variable changes its buffer from call to call.
    shapes : list of tuple or None
        Of the results that are tensors.

    Attributes
    ----------
    moved : set of int
        After `current` has returned False: results whose variable has another buffer now.
    """

    def __init__(self, function, values, storages, targets, in_place, late, shapes, device):
        self._arguments = [
            value.clone() if isinstance(value, torch.Tensor) and not isinstance(
                storage, DeviceStorage) else value
            for value, storage in zip(values, storages)]
        self._reads = [(storage, storage.buffer) for value, storage in zip(values, storages)
                       if isinstance(storage, DeviceStorage) and isinstance(value, torch.Tensor)]
        self._targets = {i: storages[target] for i, target in enumerate(targets)
                         if target is not None}
        self._writes = {
            i: storage.buffer for i, storage in self._targets.items()
            if i not in in_place and i not in late and
            storage.buffer is not None and storage.buffer.shape == shapes[i]}
        self._late = set(self._targets) - set(in_place) - set(self._writes)
        self._tables = []
        self._epoch = DeviceStorage.epoch
        self.moved = set()

        def step():
            with holding() as self._tables:
                results = function(*self._arguments)
            copy_all([(buffer, results[i]) for i, buffer in self._writes.items()])
            return [result if i not in self._targets or i in self._late else None
                    for i, result in enumerate(results)]

        self.graph = (CudaGraph if device.type == 'cuda' else Rerun)(step)

    def current(self):
        """Whether the buffers that the graph reads and writes are still those of the variables."""
        if self._epoch == DeviceStorage.epoch:
            return True
        self.moved = {i for i, buffer in self._writes.items()
                      if self._targets[i].buffer is not buffer}
        if self.moved or any(storage.buffer is not buffer for storage, buffer in self._reads):
            return False
        self._epoch = DeviceStorage.epoch
        return True

    def replay(self, values, to_tensor):
        """Run the graph on new arguments; return the results, None for new values of variables.

        Parameters
        ----------
        values : list
            Tensors; or arrays on the host, of which ``to_tensor(value, i)`` makes tensors.
        """
        for i, (value, fixed) in enumerate(zip(values, self._arguments)):
            if value is not fixed and isinstance(fixed, torch.Tensor):
                fixed.copy_(to_tensor(value, i), non_blocking=True)
        self.graph.replay()
        for i, storage in self._targets.items():
            if i in self._late:
                storage.write(self.graph.results[i])
            else:
                storage.changed()
        return self.graph.results


class CudaGraph:
    """The kernels of one call of `step`, to be launched again all at once.

    Attributes
    ----------
    results : list
        What `step` returned; `replay` computes the tensors in it anew.

    Notes
    -----
    A capture that fails leaves nothing behind: the thread gets back the stream that it worked on, and
    later graphs a pool that no capture has ended badly in.
    """

    #: The memory in which all graphs work, and the stream on which they are recorded.
    pool = stream = None

    def __init__(self, step):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        cls = CudaGraph
        if cls.stream is None:
            cls.stream = torch.cuda.Stream()
        if cls.pool is None:
            cls.pool = torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(cls.stream):
            try:
                # thread_local: the thread that prepares batches may lock memory meanwhile.
                self._graph.capture_begin(pool=cls.pool, capture_error_mode='thread_local')
                self.results = step()
                self._graph.capture_end()
            except BaseException:
                self._abandon()
                raise
        self.replay = self._graph.replay

    def _abandon(self):
        """End the capture whatever state it is in, and leave its pool to the graphs that have it."""
        pool, CudaGraph.pool = CudaGraph.pool, None
        end_pool = getattr(torch._C, '_cuda_endAllocateToPool', lambda device, pool: None)
        for end in (self._graph.capture_end,
                    # Where capture_end stumbles before it comes to this.
                    lambda: end_pool(torch.cuda.current_device(), pool)):
            try:
                end()
            except RuntimeError:
                pass


class Rerun:
    """What stands in for `CudaGraph` on PyTorch's CPU device, for tests: the same addresses."""

    def __init__(self, step):
        self._step, self.results = step, None

    def replay(self):
        results = self._step()
        if self.results is None:
            self.results = results
        for fixed, result in zip(self.results, results):
            if isinstance(fixed, torch.Tensor):
                fixed.copy_(result)


def copy_all(pairs):
    """Copy tensors into others, ``[(target, source), ...]``, with one kernel for each dtype."""
    groups = collections.defaultdict(list)
    for target, source in pairs:
        groups[target.dtype, source.dtype].append((target, source))
    for group in groups.values():
        torch._foreach_copy_(*map(list, zip(*group)))


def compiled(function, values):
    """Let torch.compile fuse the calls of a line.

    The line is traced first, so that torch.compile sees PyTorch's own operations and nothing of the
    Python around them.
    """
    places = [i for i, value in enumerate(values) if isinstance(value, torch.Tensor)]
    constants = []

    def of_tensors(*tensors):
        arguments = [None] * len(values)
        for i, tensor in zip(places, tensors):
            arguments[i] = tensor
        results = function(*arguments)
        constants[:] = [None if isinstance(r, torch.Tensor) else r for r in results]
        return [r for r in results if isinstance(r, torch.Tensor)]

    with references():
        traced = make_fx(of_tensors)(*[values[i] for i in places])
    optimized = torch.compile(traced, fullgraph=True, dynamic=False)

    def run(*arguments):
        tensors = iter(optimized(*[arguments[i] for i in places]))
        return [next(tensors) if constant is None else constant for constant in constants]
    return run
