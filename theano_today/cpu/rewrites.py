"""How the engine's Ops get into the graphs of unchanged programs.

Two kinds of rewrites replace stock nodes by the engine's:

Fusions (`register_fusion`)
    make one Op of several layers of the forward graph and bring a gradient of their own.  They
    therefore have to act *before* `theano.grad` differentiates the graph, and again when a function
    is compiled, so that the loss that the function returns becomes the very nodes that its gradient
    uses::

        cost ──► theano.grad ──► clone, fuse, differentiate ──► gradients of fused nodes ──┐
          └────► theano.function ──► optdb at 0.05: fuse ──► merge ◄── updates ◄───────────┘

    `theano.grad` never changes the caller's graph: it works on a clone, whose leaves (inputs, shared
    variables) are the caller's own variables.

Rewrites (`register_rewrite`)
    replace nodes by faster ones of the same meaning.  They run at a position of one's choice in
    Theano's `optdb`, in the compiled function only.

Everything carries the tag `theano_today_cpu`, hence ``optimizer_excluding=theano_today_cpu`` in
THEANO_FLAGS switches all of it off, as does `disable()` for graphs built and compiled from then on.
``optimizer_verbose=True`` prints each replacement; `theano.printing.debugprint(function)` shows the
result.
"""
import logging
from collections import OrderedDict

import theano
import theano.tensor as tt
from theano import gof
from theano.compile import optdb
from theano.tensor.opt import Shape_i

__all__ = ['TAG', 'active', 'consumers', 'disable', 'enable', 'fuse', 'install', 'only_consumer',
           'register_fusion', 'register_rewrite', 'stock_grad']

TAG = 'theano_today_cpu'

# Before ShapeOpt (0.1), which then never sees the nodes that fusions take away, and before
# canonicalize (1), which would tear the patterns apart.
FUSION_POSITION = 0.05

# Theano's own function, for use by the Ops of the engine and by the fall-back.
stock_grad = theano.gradient.grad

_log = logging.getLogger('theano_today.cpu')
_enabled = True
_fusions = []  # local optimizers, in the order of their registration


def enable():
    """Let the engine rewrite graphs (the state after import)."""
    global _enabled
    _enabled = True


def disable():
    """Leave graphs that are differentiated or compiled from now on to stock Theano."""
    global _enabled
    _enabled = False


def active():
    """Whether graphs compiled in Theano's default mode are rewritten.

    Returns
    -------
    bool
        False after `disable()`, with ``optimizer_excluding=theano_today_cpu``, without a C++
        compiler, for another device, and for modes that ask for few or no optimizations.
    """
    if not _enabled or not theano.config.cxx or theano.config.device != 'cpu':
        return False
    # A mode that was given as an optimizer of its own, not as a query of optdb, cannot be asked.
    query = theano.compile.mode.get_default_mode().provided_optimizer
    return isinstance(query, gof.Query) and 'fast_run' in query.include and \
        TAG not in (query.exclude or ())


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


def only_consumer(variable):
    """The node that alone uses `variable`, or None: two or more uses, none, or a graph output.

    A node that takes `variable` twice, as ``x * x`` does, counts as one.
    """
    nodes = {node for node, _ in consumers(variable)}
    if len(nodes) == 1 and 'output' not in nodes:
        return nodes.pop()
    return None


def register_fusion(tracks, name=None):
    """Register a local optimizer of the forward graph, run before differentiation.

    Parameters
    ----------
    tracks : list of Op or Op subclasses
        The nodes the optimizer wants to see, as in `theano.gof.local_optimizer`.
    name : str, optional
        By default the name of the function.

    Returns
    -------
    callable
        A decorator for a function ``local_x(node)`` that returns a list of variables to put in the
        place of the outputs of `node`, or False.

    Notes
    -----
    Nodes are visited once, from the inputs to the outputs.  A fusion may therefore build on an
    earlier one: first conv + bias, then that with pooling, and so on.  The graph has seen no other
    optimization.

    A node that is to disappear must not be needed by anyone else: see `only_consumer`.  Variables
    that the caller of `theano.grad` refers to (in `wrt`, `known_grads`, `consider_constant`) count
    as outputs of the graph, thus as consumers.
    """
    def decorate(function):
        function.__name__ = name or function.__name__
        _fusions.append(gof.local_optimizer(tracks)(function))
        return function
    return decorate


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


class _Fuse(gof.Optimizer):
    """Apply all registered fusions, from the inputs of the graph to its outputs."""

    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())

    def apply(self, fgraph):
        if _fusions:
            walk = gof.opt.TopoOptimizer(
                gof.opt.LocalOptGroup(*_fusions), order='in_to_out',
                failure_callback=gof.opt.NavigatorOptimizer.warn_inplace)
            return walk.optimize(fgraph)


def fuse(variables):
    """Rewrite a clone of the graph of `variables` with all registered fusions.

    Parameters
    ----------
    variables : list of Variable
        Each of them survives: a fusion may compute it in another way, but not drop it.

    Returns
    -------
    list of Variable
        The counterparts of `variables`.  Inputs of the graph (including shared variables and
        constants) are shared with the original; they are their own counterparts.
    """
    leaves = gof.graph.inputs(variables)
    # FunctionGraph marks its variables as its own, so the leaves are cloned too, and put back after.
    clone = gof.FunctionGraph(leaves, variables, clone=True)
    optimizer = _Fuse()
    optimizer.optimize(clone)
    originals = dict(zip(clone.inputs, leaves))
    equivalents = gof.graph.clone_get_equiv(clone.inputs, clone.outputs, memo=originals)
    fused = [equivalents[output] for output in clone.outputs]
    for old, new in zip(variables, fused):
        new.name = new.name or old.name
    return fused


def _fused_arguments(cost, wrt, consider_constant, known_grads):
    """The arguments of `theano.grad`, with the graph behind them replaced by a fused clone."""
    wrt_list = list(wrt) if isinstance(wrt, (list, tuple)) else [wrt]
    keys = list(known_grads) if known_grads is not None else []
    constant = list(consider_constant) if consider_constant is not None else []
    named = ([cost] if cost is not None else []) + wrt_list + constant + keys
    counterpart = dict(zip(named, fuse(named)))

    new_wrt = [counterpart[v] for v in wrt_list]
    if isinstance(wrt, (list, tuple)):
        new_wrt = type(wrt)(new_wrt)
    else:
        new_wrt, = new_wrt
    return dict(
        cost=None if cost is None else counterpart[cost],
        wrt=new_wrt,
        consider_constant=None if consider_constant is None else [counterpart[v] for v in constant],
        known_grads=None if known_grads is None else OrderedDict(
            (counterpart[v], gradient) for v, gradient in known_grads.items()))


def grad(cost, wrt, consider_constant=None, disconnected_inputs='raise', add_names=True,
         known_grads=None, return_disconnected='zero', null_gradients='raise'):
    # The docstring is Theano's, see install().
    graph = dict(cost=cost, wrt=wrt, consider_constant=consider_constant, known_grads=known_grads)
    options = dict(disconnected_inputs=disconnected_inputs, add_names=add_names,
                   return_disconnected=return_disconnected, null_gradients=null_gradients)
    # With test values, Theano would run each new node as soon as it is made.
    if not _fusions or not active() or theano.config.compute_test_value != 'off':
        return stock_grad(**graph, **options)
    try:
        fused = _fused_arguments(**graph)
    except Exception:
        result = stock_grad(**graph, **options)  # complains about wrong arguments itself
        _log.warning('theano.grad: could not rewrite this graph, it will be slow', exc_info=True)
        return result
    return stock_grad(**fused, **options)


def install():
    """Put the fusions in front of `theano.grad` and into Theano's `optdb`.  Does nothing twice."""
    if theano.grad is grad:
        return
    grad.__doc__ = stock_grad.__doc__
    for module in (theano, theano.gradient, theano.tensor):
        module.grad = grad
    register_rewrite(_Fuse(), 'theano_today_fusions', FUSION_POSITION)
