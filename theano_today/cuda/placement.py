"""Which variables of a graph live on the device, and which on the host.

Theano's graphs compute shapes as they compute values: with integers that are variables.  Every variable
is either *on the device* (a tensor) or *on the host* (a NumPy value that follows from the shapes of the
inputs, from constants, and from integer inputs that are used as indices or shapes).  For given shapes
the values on the host are constants, so that only the nodes on the device are left to run.
"""
import numpy as np
from theano.compile.ops import Shape, Shape_i
from theano.gof import graph
from theano.tensor import TensorType

from .convert import Unsupported, convert

__all__ = ['HostNode', 'known_from_shapes', 'place']


def known_from_shapes(order):
    """Variables that follow from shapes and constants alone and have few elements: a set.

    Parameters
    ----------
    order : list of Apply
        All nodes of a graph, each behind those that it needs.
    """
    known = set()

    def small(variable):
        return not isinstance(variable.type, TensorType) or variable.type.ndim <= 1 or \
            all(variable.type.broadcastable)

    for node in order:
        if isinstance(node.op, (Shape, Shape_i)) or (
                all(isinstance(v, graph.Constant) or v in known for v in node.inputs) and
                all(map(small, node.outputs))):
            known.update(node.outputs)
    return known


def place(fgraph, order):
    """Decide which variables live on the host.

    Returns
    -------
    host : set of Variable
    converters : dict of Apply to Converter
        For the nodes on the device.

    Raises
    ------
    Unsupported
        If a node has no counterpart on the device, or its shape depends on values computed there.
    """
    host = known_from_shapes(order)

    def on_host(variable):
        return isinstance(variable, graph.Constant) or variable in host

    def fetch(variable, node):
        """Move a variable that `node` needs on the host there, with all it is computed from."""
        if on_host(variable):
            return
        if variable.owner is None:
            if not isinstance(variable.type, TensorType) or variable.type.ndim > 1 or \
                    variable.type.dtype.startswith(('float', 'complex')):
                raise Unsupported(f'the Op {node.op}, whose shape depends on {variable}')
        else:
            for v in variable.owner.inputs:
                fetch(v, node)
            host.update(variable.owner.outputs)
            return
        host.add(variable)

    converters = {}
    for node in order:
        if node.outputs[0] not in host:
            converter = convert(node)
            for i in sorted(converter.host):
                fetch(node.inputs[i], node)
    for node in order:  # once it is known what else went to the host
        if node.outputs[0] not in host:
            converter = convert(node)
            syncs = converter.syncs and not (
                len(node.inputs) > 1 and all(map(on_host, node.inputs[1:])))
            converters[node] = converter._replace(function=converter.function(node), syncs=syncs)
    return host, converters


class HostNode:
    """A node on the host, run by Theano's own Python code."""

    def __init__(self, node):
        self.node = node
        if not isinstance(node.op, (Shape, Shape_i)):
            self.cells = {v: [None] for v in node.inputs + node.outputs}
            computed = {v: [True] for v in self.cells}
            self.thunk = node.op.make_thunk(node, self.cells, computed, [], impl='py')

    def __call__(self, values):
        op = self.node.op
        if isinstance(op, (Shape, Shape_i)):
            shape = np.array(values[0].shape, dtype='int64')
            return [shape if isinstance(op, Shape) else np.array(shape[op.i])]  # not a NumPy scalar
        for variable, value in zip(self.node.inputs, values):
            self.cells[variable][0] = value
        for output in self.node.outputs:
            self.cells[output][0] = None
        self.thunk()
        return [self.cells[output][0] for output in self.node.outputs]
