"""Finding the gradient that Theano has written down for a piece of a graph.

`theano.grad` is Theano's own, and what it returns is made of stock Ops.  When a function is compiled,
forward and backward pass of a layer lie side by side in the FunctionGraph::

    x, W, b ──► conv ──► + b ──► ReLU ──► pool ──► out ──► ...  the rest of the net
                 │        │        │        │                     │
    dW, dx, db ◄─┴────────┴────────┴────────┴──────────── G ◄─────┘

The engine may replace the layer by one Op only if it also replaces the backward pass, which reads the
intermediate results.  What that looks like depends on how the user has spelled the layer and on what
Theano's `grad` methods return.  Nothing of it is written down here: a copy of the layer is differentiated
by Theano itself, with a placeholder for G, and the result, the *template*, is looked up in the graph
node by node.  What is not found, stays.
"""
import theano
from theano import gof
from theano.gof.graph import clone_get_equiv, io_toposort

__all__ = ['Gradient', 'find_gradients']


class Gradient:
    """The backward pass of a layer for one gradient of its output, as found in a FunctionGraph.

    Attributes
    ----------
    given : Variable
        The gradient of the layer's output, G.
    wanted : dict of Variable to Variable
        For those of the layer's inputs whose gradient is in the graph: that gradient.
    nodes : set of Apply
        The nodes that compute them.
    inner : set of Variable
        Their results on the way, which depend on G or on the layer's intermediate results: all must be
        replaced together.
    """

    def __init__(self, given, wanted, nodes, inner):
        self.given, self.wanted, self.nodes, self.inner = given, wanted, nodes, inner


def find_gradients(inputs, wrt, output):
    """Find the backward passes of a layer.

    Parameters
    ----------
    inputs : list of Variable
        Where the layer begins: variables of a FunctionGraph, none computed from another's uses within
        the layer.
    wrt : list of Variable
        Those of `inputs` by which the layer may be differentiated.
    output : Variable
        What the layer computes from them.

    Returns
    -------
    list of Gradient
        One for each gradient of `output` for which at least one of the results is in the graph.
    """
    template = _Template(inputs, wrt, output)
    found = (template.gradient(given) for given in template.candidates())
    return [gradient for gradient in found if gradient is not None]


class _Template:
    """The gradient of a copy of the layer, and how its variables correspond to those of the graph."""

    def __init__(self, inputs, wrt, output):
        copies = {variable: variable.type() for variable in inputs}
        clone_get_equiv(inputs, [output], memo=copies)
        copy = copies[output]
        self.given = copy.type()
        gradients = theano.gradient.grad(
            None, [copies[variable] for variable in wrt], known_grads={copy: self.given},
            disconnected_inputs='ignore', return_disconnected='None')
        self.results = {variable: gradient for variable, gradient in zip(wrt, gradients)
                        if gradient is not None}
        # What the layer itself computes is known from the start; constants are compared by value.
        self.known = {copied: variable for variable, copied in copies.items()
                      if isinstance(variable, gof.Variable) and not isinstance(variable, gof.Constant)}
        self.nodes = [node for node in io_toposort([self.given], list(self.results.values()))
                      if not any(output in self.known for output in node.outputs)]

        intermediate = [copied for copied, variable in self.known.items()
                        if variable not in inputs and variable is not output]
        self.after_given = _descendants([self.given], self.nodes)
        self.must_go = _descendants([self.given] + intermediate, self.nodes)
        self.of_constants = set()
        for node in self.nodes:
            if all(self._is_constant(variable) for variable in node.inputs):
                self.of_constants.update(node.outputs)

    def _is_constant(self, variable):
        return isinstance(variable, gof.Constant) or variable in self.of_constants

    def candidates(self):
        """The variables of the graph that may stand for G: found next to what is known already."""
        known, result = dict(self.known), []
        for node in self.nodes:
            if self.after_given.isdisjoint(node.inputs):
                continue
            others = [v for v in node.inputs if v not in self.after_given and not self._is_constant(v)]
            counterpart = self._find(others[0], known) if others else None
            for client, _ in counterpart.clients if counterpart is not None else ():
                if client == 'output' or client.op != node.op or len(client.inputs) != len(node.inputs):
                    continue
                for variable, there in zip(node.inputs, client.inputs):
                    if variable in self.after_given:
                        given = self._walk_back(variable, there)
                        if given is not None and given.type == self.given.type and given not in result:
                            result.append(given)
        return result

    def _walk_back(self, variable, there):
        """What stands in the graph in the place of G, if `there` is the counterpart of `variable`."""
        while variable is not self.given:
            node, other = variable.owner, there.owner
            if other is None or other.op != node.op or len(other.inputs) != len(node.inputs):
                return None
            position = next(i for i, v in enumerate(node.inputs) if v in self.after_given)
            variable, there = node.inputs[position], other.inputs[position]
        return there

    def gradient(self, given):
        """The `Gradient` for a candidate, or None if nothing is computed from it as in the template."""
        found = dict(self.known)
        found[self.given] = given
        wanted = {}
        for variable, result in self.results.items():
            there = self._find(result, found)
            if there is not None and there.type == result.type:
                wanted[variable] = there
        if not wanted:
            return None
        # Only what leads to a result that is there: the template may have more.
        needed = [result for variable, result in self.results.items() if variable in wanted]
        nodes, inner = set(), set()
        for node in io_toposort([self.given] + list(self.known), needed):
            for variable in node.outputs:
                if variable in self.must_go and found.get(variable) is not None:
                    nodes.add(found[variable].owner)
                    inner.add(found[variable])
        return Gradient(given, wanted, nodes, inner - set(wanted.values()))

    def _find(self, variable, found):
        """The counterpart of a variable of the template in the graph, or None; `found` is added to."""
        if variable not in found:
            found[variable] = self._look_up(variable, found)
        return found[variable]

    def _look_up(self, variable, found):
        node = variable.owner
        if node is None:
            return None
        inputs = [None if self._is_constant(v) else self._find(v, found) for v in node.inputs]
        for v, there in zip(node.inputs, inputs):
            if there is None and not self._is_constant(v):
                return None
        counterpart = next((there for there in inputs if there is not None), None)
        for client, _ in counterpart.clients if counterpart is not None else ():
            if client != 'output' and client.op == node.op and \
                    len(client.inputs) == len(node.inputs) and \
                    all(actual is there if there is not None else _same_constant(v, actual)
                        for v, there, actual in zip(node.inputs, inputs, client.inputs)):
                return client.outputs[node.outputs.index(variable)]
        return None


def _descendants(variables, nodes):
    """`variables` and what `nodes`, in the order of computation, compute from them."""
    result = set(variables)
    for node in nodes:
        if not result.isdisjoint(node.inputs):
            result.update(node.outputs)
    return result


def _same_constant(a, b):
    """Whether two expressions of constants are spelled alike."""
    if isinstance(a, gof.Constant) or isinstance(b, gof.Constant):
        return isinstance(a, gof.Constant) and isinstance(b, gof.Constant) and a.equals(b)
    if a.owner is None or b.owner is None or a.owner.op != b.owner.op or \
            len(a.owner.inputs) != len(b.owner.inputs) or \
            a.owner.outputs.index(a) != b.owner.outputs.index(b):
        return False
    return all(_same_constant(*pair) for pair in zip(a.owner.inputs, b.owner.inputs))
