"""The mechanism: rewrites act when a function is compiled, and can be switched off.

A toy rewrite stands for the real ones: it makes one Op, `Relu`, of ``0.5 * (x + abs(x))`` and of its
gradient another, in the way of conv_rewrites.py.  Functions are compiled with the Python linker, so
nothing here waits for a C++ compiler.
"""
import os
import subprocess
import sys

import numpy as np
import pytest

import theano_today  # noqa: F401
import theano
import theano.tensor as T
from theano import gof
from theano_today.cpu import rewrites
from theano_today.cpu.backward import find_gradients


class Relu(gof.Op):
    __props__ = ()

    def make_node(self, x):
        return gof.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.float32(.5) * (inputs[0] + abs(inputs[0]))


class ReluGrad(gof.Op):
    __props__ = ()

    def make_node(self, x, g):
        return gof.Apply(self, [x, g], [x.type()])

    def perform(self, node, inputs, output_storage):
        x, g = inputs
        output_storage[0][0] = g * np.float32(.5) * (np.sign(x) + 1)


def relu(x):
    return 0.5 * (x + abs(x))


class FuseRelu(gof.Optimizer):
    def add_requirements(self, fgraph):
        fgraph.attach_feature(gof.toolbox.ReplaceValidate())

    def apply(self, fgraph):
        for node in fgraph.toposort():
            total = node.inputs[-1].owner
            if node.op == T.mul and total and total.op == T.add:
                x, absolute = total.inputs
                if absolute.owner and absolute.owner.op == T.abs_ and absolute.owner.inputs[0] is x:
                    self.fuse(fgraph, x, {node, total, absolute.owner}, node.outputs[0])

    def fuse(self, fgraph, x, nodes, out):
        gradients = find_gradients([x], [x], out)
        together = nodes.union(*(g.nodes for g in gradients))
        inner = {n.outputs[0] for n in nodes}.union(*(g.inner for g in gradients)) - {out}
        if all(user in together for v in inner for user, _ in rewrites.consumers(v)):
            fgraph.replace_all_validate([(out, Relu()(x))] + [
                (g.wanted[x], ReluGrad()(x, g.given)) for g in gradients], reason='toy')


@pytest.fixture(autouse=True)
def toy_rewrite(monkeypatch):
    """A copy of optdb with the toy rewrite in the place of the real ones."""
    stock = theano.compile.optdb.query('+fast_run', '-' + rewrites.TAG)
    toy = rewrites._WhileEnabled(FuseRelu())
    position = next(i for i, o in enumerate(stock) if type(o).__name__ == 'ShapeOptimizer')
    monkeypatch.setattr(sys.modules[__name__], 'OPTIMIZER', gof.opt.SeqOptimizer(
        *(list(stock)[:position] + [toy] + list(stock)[position:]),
        failure_callback=gof.opt.SeqOptimizer.warn))
    yield
    rewrites.enable()


OPTIMIZER = None


def compiled(inputs, outputs, **kwargs):
    return theano.function(inputs, outputs, mode=theano.Mode('py', OPTIMIZER), **kwargs)


def count(function, op_class):
    return sum(isinstance(node.op, op_class) for node in function.maker.fgraph.toposort())


def stock(*args, **kwargs):
    rewrites.disable()
    try:
        return compiled(*args, **kwargs)
    finally:
        rewrites.enable()


x = T.fmatrix('x')
W = theano.shared(np.random.RandomState(0).randn(4, 3).astype('float32'), name='W')
z = T.dot(x, W)
h = relu(z)
cost = (h ** 2).sum()
X = np.random.RandomState(1).randn(5, 4).astype('float32')


def check(outputs, fused, inputs=(x,), values=(X,)):
    """Compile with and without the rewrite: same values, and this many Ops `Relu` and `ReluGrad`."""
    ours, theirs = compiled(list(inputs), outputs), stock(list(inputs), outputs)
    assert (count(ours, Relu), count(ours, ReluGrad)) == fused
    assert count(theirs, Relu) == 0
    for a, b in zip(ours(*values), theirs(*values)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_theano_grad_is_theanos_own():
    assert theano.grad is theano.gradient.grad is theano.tensor.grad
    assert theano.grad.__module__ == 'theano.gradient'
    before = theano.printing.debugprint(cost, file='str')
    gradient = theano.grad(cost, W)
    compiled([x], [cost, gradient])
    assert theano.printing.debugprint(cost, file='str') == before, 'the graph of the caller changed'
    assert {type(node.op).__module__.split('.')[0]
            for node in gof.graph.ops([x, W], [gradient])} == {'theano'}


def test_forward_and_backward_become_one_each():
    check([cost], (1, 0))
    check([cost, theano.grad(cost, W)], (1, 1))
    check([theano.grad(cost, W)], (1, 1))


def test_two_gradients_of_one_layer():
    check([theano.grad(h.sum(), x), theano.grad(cost, x)], (1, 2))


@pytest.mark.parametrize('others, fused', [
    ([abs(z)], (0, 0)), ([z + abs(z)], (0, 0)),  # after Theano's merge, parts of the layer
    ([T.sgn(z)], (1, 1)),  # what the gradient reads besides, but no intermediate result
    ([theano.grad(cost, h)], (1, 1))], ids=str)
def test_a_result_that_somebody_else_needs(others, fused):
    check([cost, theano.grad(cost, W)] + others, fused)


def test_gradients_inside_the_pattern():
    total = z + abs(z)
    loss = (0.5 * total).sum()
    check(theano.grad(loss, [total, W]), (0, 0))


def test_another_spelling_of_the_gradient_stays():
    other = T.switch(z > 0, 2 * h, 0)  # what theano.grad does not write
    check([cost, T.dot(x.T, other)], (1, 0))


def test_second_derivative():
    # Twice the same layer's gradient, for two gradients of its output.
    check([theano.grad((theano.grad(cost, x) ** 2).sum(), W)], (1, 2))


def test_shapes_do_not_count_as_uses():
    total = z + abs(z)
    loss = (0.5 * total * T.ones(total.shape)).sum()
    check([loss, theano.grad(loss, W)], (1, 1))


def test_switches():
    assert count(compiled([x], h), Relu) == 1
    rewrites.disable()
    assert count(compiled([x], h), Relu) == 0
    rewrites.enable()
    assert count(compiled([x], h), Relu) == 1


@pytest.mark.parametrize('flags, active', [
    ('', True), ('optimizer_excluding=theano_today_cpu', False), ('mode=FAST_COMPILE', False),
    ('cxx=', False), ('optimizer_excluding=local_fill_sink', True)])
def test_theano_flags(flags, active):
    code = ('import theano_today, theano, theano.tensor as T; x, W = T.ftensor4(), T.ftensor4();'
            'f = theano.function([x, W], T.nnet.relu(T.nnet.conv2d(x, W)));'
            'print([type(node.op).__name__ for node in f.maker.fgraph.toposort()])')
    flags = ','.join(filter(None, [os.environ.get('THEANO_FLAGS'), flags, 'linker=py']))
    answer = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, THEANO_FLAGS=flags),
                            stdout=subprocess.PIPE, text=True, check=True).stdout
    assert ('ConvPool' in answer) == active


def test_a_rewrite_that_fails_costs_speed_only(monkeypatch):
    def broken(*args):
        raise RuntimeError('a bug')
    monkeypatch.setattr(FuseRelu, 'fuse', broken)
    with theano.change_flags(on_opt_error='warn'):
        function = compiled([x], [cost, theano.grad(cost, W)])
    assert count(function, Relu) == 0
    np.testing.assert_allclose(function(X)[0], (np.maximum(X.dot(W.get_value()), 0) ** 2).sum(), rtol=1e-5)


def test_test_values():
    with theano.change_flags(compute_test_value='raise'):
        v = T.fmatrix()
        v.tag.test_value = X
        loss = relu(v).sum()
        gradient = theano.grad(loss, v)
        check([loss, gradient], (1, 1), inputs=[v])
    np.testing.assert_array_equal(gradient.tag.test_value, X > 0)
