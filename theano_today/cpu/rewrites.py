"""How the engine's Ops get into the graphs of unchanged programs.

The caller's graph stays the caller's: `theano.grad` and all who ask something of a graph are Theano's
own and see stock Ops.  The engine acts when a function is compiled, on its FunctionGraph, at positions
of Theano's `optdb`::

    cost ──► theano.grad, Rop, clone, scan ... ──► theano.function ──► optdb
                     all stock                        0.05   layers with their gradients  conv_rewrites.py
                                                      1.65   dropout's draws              mrg.py
                                                      1.69   matrix products              matmul.py
                                                      49.3   memory layout of images      conv_rewrites.py
                                                      49.4   update rules                 matmul.py

A rewrite replaces a piece of the graph only if nobody else needs what is computed inside the piece.
What a rewrite does not cover runs on the stock Ops.

Everything carries the tag `theano_today_cpu`, hence ``optimizer_excluding=theano_today_cpu`` in
THEANO_FLAGS switches all of it off, as does `disable()` for functions compiled from then on.
``optimizer_verbose=True`` prints each replacement; `theano.printing.debugprint(function)` shows the
result.
"""
import theano
import theano.tensor as tt
from theano import gof
from theano.compile import optdb
from theano.tensor.opt import Shape_i

__all__ = ['TAG', 'consumers', 'disable', 'enable', 'register_rewrite']

TAG = 'theano_today_cpu'

_enabled = True


def enable():
    """Let the engine rewrite graphs (the state after import)."""
    global _enabled
    _enabled = True


def disable():
    """Leave functions that are compiled from now on to stock Theano."""
    global _enabled
    _enabled = False


def consumers(variable):
    """Uses of `variable` in its FunctionGraph, leaving out those that only ask for its shape.

    Lasagne's dropout reads the shape of its input.  Theano's ShapeOpt computes such shapes from the
    inputs of the graph, so they do not keep a node alive.

    Returns
    -------
    list of (Apply or 'output', int)
        The nodes that use `variable`, with the position in their inputs.
    """
    return [(node, i) for node, i in variable.clients
            if node == 'output' or not isinstance(node.op, (tt.Shape, Shape_i))]


def register_rewrite(optimizer, name, position, *tags):
    """Register an optimizer of compiled functions.

    Parameters
    ----------
    optimizer : theano.gof.Optimizer
    name : str
        Unique in Theano's `optdb`.
    position : float
        Where in `optdb` to run: canonicalize is 1, BLAS 1.7, elementwise fusion 49, inplace 75.
    tags : str
        Further tags, for instance 'inplace'.
    """
    if name not in optdb.__db__:
        optdb.register(name, _WhileEnabled(optimizer), position, 'fast_run', TAG, *tags)


class _WhileEnabled(gof.Optimizer):
    """Apply another optimizer unless the engine is disabled."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def add_requirements(self, fgraph):
        self.optimizer.add_requirements(fgraph)

    def apply(self, fgraph):
        if _enabled and theano.config.cxx and theano.config.device == 'cpu':
            return self.optimizer.apply(fgraph)

    def print_summary(self, stream, level=0, depth=-1):
        self.optimizer.print_summary(stream, level, depth)
