"""Where the values of shared variables live.

Theano keeps the value of a shared variable in a list of one element, which the variable's Container
and every function that uses it hold together.  `DeviceStorage` is such a list whose value is on the
host, on the device, or on both, and moves when somebody asks for it on the other side:

    variable.set_value ──► storage[0] = array      the device's copy is stale
    device program     ──► storage.tensor()        copies to the device if stale
    device program     ──► storage.changed()       the host's copy is stale
    variable.get_value ──► storage[0]              copies to the host if stale

The buffer on the device stays the same as long as the shape does: a captured CUDA graph reads and
writes it by its address.

All CUDA graphs of a process work in the same memory, and one that is being recorded must not see the
work of another thread.  So whatever runs on the device holds `LOCK`, from the first copy to the
device to the last one back.
"""
import threading

import numpy as np
import torch

from theano.gof import link
from theano.tensor import TensorType

__all__ = ['LOCK', 'DeviceStorage', 'Staging', 'adopt', 'extremes', 'from_numpy', 'pinned',
           'serve_host_programs', 'to_numpy']

LOCK = threading.RLock()


def from_numpy(array):
    """Return a tensor on the host that shares memory with `array` where PyTorch can."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides) or \
            not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder('='))
    return torch.from_numpy(array)


def to_numpy(tensor):
    """Return `tensor` as an array on the host; on PyTorch's CPU device they share memory."""
    return tensor.detach().cpu().numpy()


def pinned(array):
    """Return a copy of `array` in page-locked memory, from which a GPU copies by itself.

    Where there is none (strings, say, which only the iterator's caller understands, or no more memory
    that can be locked) it is `array` itself.
    """
    try:
        tensor = from_numpy(array)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor).numpy()
    except (TypeError, ValueError, RuntimeError):
        return array


class Staging:
    """Page-locked memory for a function's inputs, from which a GPU copies while the host goes on.

    Parameters
    ----------
    size : int
        How many arrays are kept.
    """

    def __init__(self, size):
        self._size, self._places = size, {}

    def __call__(self, tensor, position):
        """Return `tensor`, the input number `position`, in page-locked memory."""
        if tensor.is_pinned():
            return tensor
        key = position, tensor.shape
        if key not in self._places:
            if len(self._places) >= self._size:
                self._places.clear()
            self._places[key] = (torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True),
                                 torch.cuda.Event())
        staging, done = self._places[key]
        done.synchronize()  # the copy of the call before this one
        staging.copy_(tensor)
        return staging

    def mark_copied(self):
        """Note that all copies to the device have been asked for."""
        for _, done in self._places.values():
            done.record()


def extremes(array):
    """Return the smallest and the largest element of an array of integers, None if it is empty."""
    return (int(array.min()), int(array.max())) if array.size else None


class DeviceStorage(list):
    """A list of one array, with a copy of it on the device.

    Parameters
    ----------
    value : ndarray
        The value at the start.
    device : torch.device

    Notes
    -----
    C code of Theano would read the element of the list without asking `__getitem__`; see
    `serve_host_programs`.

    Arrays copied from the device are read-only: in Theano, changing what
    ``get_value(borrow=True)`` returns may or may not change a variable on a GPU.  Here it is an
    error.
    """
    #: Counts new buffers of all storages; programs use it to see that no address has changed.
    epoch = 0

    def __init__(self, value, device):
        super().__init__([value])
        self.device = device
        self._buffer = None
        self._fresh = False  # whether the buffer has the newest value
        self._extremes = ()

    def __getitem__(self, index):
        if index == 0 and self._fresh and super().__getitem__(0) is None:
            with LOCK:
                # From a GPU the way into page-locked memory is several times faster.
                array = torch.empty(
                    self._buffer.shape, dtype=self._buffer.dtype,
                    pin_memory=self.device.type == 'cuda').copy_(self._buffer).numpy()
                array.flags.writeable = False
                super().__setitem__(0, array)
        return super().__getitem__(index)

    def __setitem__(self, index, value):
        super().__setitem__(index, value)
        self._fresh, self._extremes = False, ()

    @property
    def buffer(self):
        """The memory on the device, a tensor, whatever is in it; None before the first use."""
        return self._buffer

    def tensor(self):
        """Return the buffer on the device, with the newest value in it."""
        if not self._fresh:
            with LOCK:
                source = from_numpy(super().__getitem__(0))
                self._fit(source)
                self._buffer.copy_(source)
                self._fresh = True
        return self._buffer

    def write(self, tensor):
        """Make `tensor` the newest value."""
        with LOCK:
            self._fit(tensor)
            self._buffer.copy_(tensor)
            self.changed()

    def _fit(self, tensor):
        """Take a new buffer if `tensor` does not fit into the present one."""
        buffer = self._buffer
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            self._buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            DeviceStorage.epoch += 1

    def changed(self):
        """Say that the buffer has a newer value than the host."""
        self._fresh, self._extremes = True, ()
        super().__setitem__(0, None)

    def extremes(self):
        """Return `extremes` of the value, looked up once for each new value."""
        if self._extremes == ():
            self._extremes = extremes(self[0])
        return self._extremes

    def __reduce__(self):  # pickles and copies hold a list, which any machine can read
        return list, ([self[0]],)


def adopt(variables, storages, device):
    """Replace the storage of shared tensors by `DeviceStorage`.

    Parameters
    ----------
    variables : list of Variable
        The inputs of a FunctionGraph.
    storages : list of list
        Their storage; changed in place.
    device : torch.device
    """
    for i, variable in enumerate(variables):
        container = getattr(variable, 'container', None)
        if container is None or not isinstance(variable.type, TensorType):
            continue
        # Equal lists are not the same list: compare identities.
        if container.storage is storages[i] and not isinstance(storages[i], DeviceStorage) and \
                isinstance(storages[i][0], np.ndarray):
            container.storage = DeviceStorage(storages[i][0], device)
        if isinstance(container.storage, DeviceStorage):
            storages[i] = container.storage


class _HostProgram:
    """A function compiled for the CPU that shares variables with functions on the device.

    Theano's C code wants plain lists, so the program has lists of its own; values go to and fro
    around each call.
    """

    def __init__(self, program, shared):
        vars(self).update(_program=program, _shared=shared)

    def __call__(self, *args, **kwargs):
        for storage, cell, destroyed in self._shared:
            array = storage[0]
            cell[0] = array.copy() if destroyed and not array.flags.writeable else array
        try:
            return self._program(*args, **kwargs)
        finally:
            for storage, cell, destroyed in self._shared:
                if destroyed or cell[0] is not storage[0]:
                    storage[0] = cell[0]
                cell[0] = None

    def __getattr__(self, name):
        return getattr(self._program, name)

    def __setattr__(self, name, value):
        setattr(self._program, name, value)


def serve_host_programs(device):
    """Let functions that Theano compiles for the CPU share variables with those on the device.

    They are what an explicit ``mode=`` gives, and what `theano.function` falls back to.  Every
    linker of Theano that runs nodes one by one builds its program in `LocalLinker.make_thunk`.
    """
    original = link.LocalLinker.make_thunk

    def make_thunk(self, input_storage=None, output_storage=None, storage_map=None):
        variables = self.fgraph.inputs
        cells = storages = list(input_storage or ())
        if storages:
            adopt(variables, storages, device)
            cells = [[None] if isinstance(storage, DeviceStorage) else storage
                     for storage in storages]
        program, inputs, outputs = original(self, input_storage=cells or None,
                                            output_storage=output_storage, storage_map=storage_map)
        has_destroyers = getattr(self.fgraph, 'has_destroyers', lambda variables: False)
        shared = [i for i, storage in enumerate(storages) if isinstance(storage, DeviceStorage)]
        if shared:
            program = _HostProgram(program, [
                (storages[i], cells[i], has_destroyers([variables[i]])) for i in shared])
            for i in shared:
                inputs[i] = link.Container(variables[i], storages[i])
        return program, inputs, outputs

    link.LocalLinker.make_thunk = make_thunk
