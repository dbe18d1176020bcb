"""From Theano's Ops to functions of PyTorch tensors: the registry.

A converter takes an Apply node and returns a function from the values of its inputs to the value of
its output (a tuple for several outputs)::

    @converts(Reshape, host=[1])
    def reshape(node):
        return lambda x, shape: x.reshape(tuple(shape))

Inputs named in `host` arrive as NumPy values: shapes, axes, indices.  The others arrive as tensors
on the device, or, for converters with ``numbers=True``, as Python numbers where the value has one
element and depends on shapes and constants alone.

No converter changes a tensor that it was given, so that all programs are functional; the result may
share memory with an input.  (The one exception writes where it is told to: see `Converter.into`.)

Tensors that a converter makes once and uses again (tables of constants) come from a function
decorated with `table`: a CUDA graph knows them by their address alone, so whoever captures one holds
all tables that were used meanwhile (`holding`).
"""
import collections
import contextlib
import functools

import torch

__all__ = ['Unsupported', 'convert', 'converts', 'device', 'holding', 'table', 'torch_dtype',
           'use_device']


class Unsupported(NotImplementedError):
    """A graph that the device cannot run; the message names the Op."""


Converter = collections.namedtuple('Converter', 'function host numbers syncs indices into',
                                   defaults=(False, False, (), False))
Converter.__doc__ = """How an Op is converted.

Attributes
----------
function : callable
    From an Apply node to a function of values.
host : list of int or callable
    Inputs that must be known on the host; or a function from the node to that list.
numbers : bool
    Whether Python numbers may stand in for tensors of one element.
syncs : bool
    Whether it looks at those of its inputs that are on the device, so that it cannot be part of a
    CUDA graph.  The first input does not count where there are others: it is handed through.
indices : callable or sequence
    A function from the node to pairs: the position of an input that holds indices, and a function
    from the values of all inputs to their range (lowest, highest + 1).  An index out of its range
    would end all work on a GPU for good, so `indices.py` keeps them away from there.
into : bool
    Whether ``function(*arguments, into=tensors)`` writes the results into those tensors, which may
    be among the arguments.
"""

_converters = {}


def converts(*ops, host=(), numbers=False, syncs=False, indices=(), into=False):
    """Register a converter for these classes of Ops."""
    def decorate(function):
        for op in ops:
            _converters[op] = Converter(function, host, numbers, syncs, indices, into)
        return function
    return decorate


def convert(node):
    """Return the converter of a node: a `Converter` whose `host` is a set of positions.

    Raises
    ------
    Unsupported
        If there is none.
    """
    for cls in type(node.op).__mro__:
        if cls in _converters:
            found = _converters[cls]
            host = found.host(node) if callable(found.host) else found.host
            indices = found.indices(node) if callable(found.indices) else found.indices
            return found._replace(host={i % len(node.inputs) for i in host}, indices=indices)
    raise Unsupported(f'the Op {node.op}')


_holders = []  # lists that keep each table used meanwhile


def table(function):
    """Remember the tensors that a function of hashable arguments makes, and let `holding` see them.

    The newest 64 stay for others to use; those of captured graphs live as long as the graphs do.
    """
    cached = functools.lru_cache(maxsize=64)(function)

    @functools.wraps(function)
    def get(*args):
        value = cached(*args)
        for holder in _holders:
            holder.append(value)
        return value
    return get


@contextlib.contextmanager
def holding():
    """A context whose value is a list of all tables used in it."""
    holder = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders[:] = [other for other in _holders if other is not holder]


_DTYPES = {name: getattr(torch, name) for name in
           ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')}


def torch_dtype(name):
    """Return PyTorch's dtype of that name.

    Raises
    ------
    Unsupported
        For complex numbers and unsigned integers above 8 bits.
    """
    try:
        return _DTYPES[name]
    except KeyError:
        raise Unsupported(f'the dtype {name}') from None


_device = None


def use_device(name):
    """Set the device of all programs, ``'cpu'`` or ``'cuda:0'``."""
    global _device
    _device = torch.device(name)


def device():
    """Return the torch.device of all programs."""
    return _device
