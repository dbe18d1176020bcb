"""Indices and labels, looked at before they reach the GPU.

An index beyond the end of its axis makes a kernel stop with an assertion, and after that nothing of
the process can use the GPU any more: not even the weights can be saved.  So:

- An input of the function (labels, mostly) is checked on the host, where it arrives, against limits
  that are known once the shapes are.
- What is computed from such an input by moving its elements needs no check of its own.
- Any other index is looked at before it is used, which makes the host wait for the device.
"""
import numpy as np
import torch
from theano.compile.ops import DeepCopyOp, Rebroadcast, SpecifyShape, ViewOp
from theano.gof import graph
from theano.scalar import Cast
from theano.tensor import basic, elemwise, subtensor

from .storage import DeviceStorage, extremes

__all__ = ['Indices', 'within']

_MOVES = (elemwise.DimShuffle, basic.Reshape, basic.Flatten, Rebroadcast, SpecifyShape, ViewOp,
          DeepCopyOp, subtensor.Subtensor)


def _source(variable):
    """The variable whose elements are those of `variable`, moved about."""
    while variable.owner is not None:
        op = variable.owner.op
        cast = isinstance(op, elemwise.Elemwise) and isinstance(op.scalar_op, Cast) and \
            variable.owner.inputs[0].dtype in ('int8', 'int16', 'int32', 'int64', 'uint8')
        if not cast and not isinstance(op, _MOVES):
            break
        variable = variable.owner.inputs[0]
    return variable


def within(limits, storages):
    """Whether all inputs that hold indices keep to their limits.

    Parameters
    ----------
    limits : dict of int to (int, int)
        From `Indices.limits`.
    storages : list of list
        Where the inputs are.
    """
    for i, (low, high) in limits.items():
        storage = storages[i]
        found = storage.extremes() if isinstance(storage, DeviceStorage) else extremes(storage[0])
        if found is not None and (found[0] < low or found[1] >= high):
            return False
    return True


class Indices:
    """The nodes of a program that use indices.

    Attributes
    ----------
    syncs : bool
        Whether some indices cannot be known before they are used.
    """

    def __init__(self, fgraph, converters, host):
        self._inputs = {v: i for i, v in enumerate(fgraph.inputs)}
        self._uses = {}
        self._unknown = set()
        for node, converter in converters.items():
            self._uses[node] = converter.indices
            for position, _ in converter.indices:
                variable = node.inputs[position]
                source = _source(variable)
                known = source in self._inputs or source in host or variable in host or \
                    isinstance(source, graph.Constant)
                if not known:
                    self._unknown.add(node)
        self.syncs = bool(self._unknown)

    def check(self, node, arguments):
        """Raise IndexError if a node is about to use an index that does not exist."""
        for position, limits in self._uses[node]:
            value = arguments[position]
            if isinstance(value, torch.Tensor):
                found = torch.stack(torch.aminmax(value)).tolist() if value.numel() else None
            else:
                found = extremes(np.asarray(value))
            low, high = limits(*arguments)
            if found is not None and (found[0] < low or found[1] >= high):
                wrong = found[0] if found[0] < low else found[1]
                variable = node.inputs[position]
                raise IndexError(
                    f'{_source(variable)}: {wrong} is out of range; it must be at least {low} and '
                    f'at most {high - 1}.')

    def checked(self, node, function):
        """The function of a node, with a check before it if nothing else makes sure of its indices."""
        if node not in self._unknown:
            return function

        def check_first(*arguments, **kwargs):
            self.check(node, arguments)
            return function(*arguments, **kwargs)
        return check_first

    def limits(self, record):
        """The limits of the inputs that hold indices, for the shapes of one line.

        Parameters
        ----------
        record : list of (node, arguments)

        Returns
        -------
        dict of int to (int, int)
            From positions of inputs to the lowest index and the highest, plus one.
        """
        result = {}
        for node, arguments in record:
            for position, limits in self._uses[node]:
                i = self._inputs.get(_source(node.inputs[position]))
                if i is not None:
                    low, high = limits(*arguments)
                    before = result.get(i, (low, high))
                    result[i] = max(low, before[0]), min(high, before[1])
        return result
