"""How the CPU engine gets into graphs: fusions before theano.grad and in compiled functions.

A toy fusion stands for the real ones.  It makes one Op, `Relu`, of ``0.5 * (x + abs(x))``.  Functions
are compiled with the Python linker, so nothing here waits for a C++ compiler.
"""
import os
import subprocess
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest

import theano_today  # noqa: F401
import theano
import theano.tensor as T
from theano import gof
from theano.gradient import DisconnectedInputError
from theano.sandbox.rng_mrg import MRG_RandomStreams, mrg_uniform_base
from theano_today.cpu import rewrites


class Relu(gof.Op):
    __props__ = ()

    def make_node(self, x):
        return gof.Apply(self, [x], [x.type()])

    def perform(self, node, inputs, output_storage):
        output_storage[0][0] = np.float32(.5) * (inputs[0] + abs(inputs[0]))

    def infer_shape(self, node, shapes):
        return shapes

    def L_op(self, inputs, outputs, output_grads):
        return [output_grads[0] * (T.sgn(inputs[0]) + 1) / 2]


def relu(x):
    return 0.5 * (x + abs(x))


def local_relu(node):
    for total in node.inputs:
        if total.owner and total.owner.op == T.add and rewrites.only_consumer(total) is node:
            x, absolute = total.owner.inputs
            if absolute.owner and absolute.owner.op == T.abs_ and \
                    rewrites.only_consumer(absolute) is total.owner:
                return [Relu()(x)]
    return False


@pytest.fixture(autouse=True)
def toy_fusion(monkeypatch):
    """Put the toy fusion in the place of the real ones."""
    monkeypatch.setattr(rewrites, '_fusions', [])
    rewrites.register_fusion([T.mul])(local_relu)
    yield
    rewrites.enable()


def compiled(inputs, outputs, exclude=(), **kwargs):
    mode = theano.Mode(linker='py', optimizer=theano.compile.mode.OPT_FAST_RUN)
    if exclude:
        mode = mode.excluding(*exclude)
    return theano.function(inputs, outputs, mode=mode, **kwargs)


def ops(function):
    return [node.op for node in function.maker.fgraph.toposort()]


def count(function, op_class):
    return sum(isinstance(op, op_class) for op in ops(function))


def ancestors(variables, op_class):
    return {node for node in gof.graph.ops(gof.graph.inputs(variables), variables)
            if isinstance(node.op, op_class)}


def stock(*args, **kwargs):
    rewrites.disable()
    try:
        return theano.grad(*args, **kwargs)
    finally:
        rewrites.enable()


x = T.fmatrix('x')
W = theano.shared(np.random.RandomState(0).randn(4, 3).astype('float32'), name='W')
z = T.dot(x, W)
z.name = 'z'
h = relu(z)
h.name = 'h'
cost = (h ** 2).sum()
cost.name = 'cost'
X = np.random.RandomState(1).randn(5, 4).astype('float32')


def same(ours, theirs, inputs=(x,), values=(X,)):
    """Whether two lists of expressions have the same values in stock Theano's eyes."""
    n = len(ours)
    function = compiled(list(inputs), list(ours) + list(theirs), on_unused_input='ignore')
    results = function(*values)
    for a, b in zip(results[:n], results[n:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_of_a_fused_graph():
    before = theano.printing.debugprint(cost, file='str')
    gradient = theano.grad(cost, W)
    assert ancestors([gradient], Relu)
    assert theano.printing.debugprint(cost, file='str') == before, 'the graph of the caller changed'
    same([gradient], [stock(cost, W)])
    assert gradient.name == '(dcost/dW)'
    assert set(gof.graph.inputs([gradient])) & {x, W} == {x, W}


def test_loss_and_gradient_share_the_fused_node():
    gradient = theano.grad(cost, W)
    function = compiled([x], cost, updates=[(W, W - .1 * gradient)])
    assert count(function, Relu) == 1


def test_names_by_which_theano_grad_is_known():
    assert theano.grad is theano.tensor.grad is theano.gradient.grad is rewrites.grad
    assert theano.grad.__doc__ == rewrites.stock_grad.__doc__
    before = theano.grad
    rewrites.install()
    assert theano.grad is before


@pytest.mark.parametrize('wrt', [[z], [h], [z, h, W], (W, z), h])
def test_wrt_intermediate(wrt):
    ours, theirs = theano.grad(cost, wrt), stock(cost, wrt)
    assert type(ours) is type(theirs)
    if isinstance(wrt, (list, tuple)):
        same(ours, theirs)
    else:
        same([ours], [theirs])


def test_wrt_inside_a_pattern_keeps_it_apart():
    inner = z + abs(z)
    loss = (0.5 * inner).sum()
    ours, theirs = theano.grad(loss, [inner, W]), stock(loss, [inner, W])
    assert not ancestors(ours, Relu)
    same(ours, theirs)


@pytest.mark.parametrize('constant', [[z], [h], [W]])
def test_consider_constant(constant):
    loss = cost + (W ** 2).sum()
    options = dict(consider_constant=constant, disconnected_inputs='ignore')
    same([theano.grad(loss, W, **options)], [stock(loss, W, **options)])


@pytest.mark.parametrize('known, with_cost', [(h, False), (z, False), (h, True)])
def test_known_grads(known, with_cost):
    gradients = OrderedDict([(known, T.ones_like(known) * 3)])
    start = cost if with_cost else None
    same([theano.grad(start, W, known_grads=gradients)], [stock(start, W, known_grads=gradients)])


def test_known_grads_of_the_cost():
    gradients = OrderedDict([(cost, T.constant(np.float32(2)))])
    same([theano.grad(cost, W, known_grads=gradients)], [2 * stock(cost, W)])


def test_disconnected_inputs():
    other = theano.shared(np.float32(1), name='other')
    with pytest.raises(DisconnectedInputError):
        theano.grad(cost, other)
    with pytest.raises(DisconnectedInputError):
        theano.grad(cost, relu(z) + 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        theano.grad(cost, other, disconnected_inputs='warn')
    assert any('not part of' in str(w.message) for w in caught)
    gradient = theano.grad(cost, [W, other], disconnected_inputs='ignore')
    assert gradient[1].eval() == 0
    gradient = theano.grad(cost, [W, other], disconnected_inputs='ignore', return_disconnected='None')
    assert gradient[1] is None


@pytest.mark.parametrize('arguments', [(h, W), (cost, {W}), (cost, 3), (None, W)])
def test_wrong_arguments_raise_what_theano_raises(arguments):
    with pytest.raises(Exception) as theirs:
        stock(*arguments)
    with pytest.raises(Exception) as ours:
        theano.grad(*arguments)
    assert ours.type is theirs.type and str(ours.value) == str(theirs.value)


def test_constant_and_input_as_wrt():
    two = T.constant(np.float32(2))
    loss = (relu(x * two)).sum()
    same(theano.grad(loss, [x, two]), stock(loss, [x, two]))


def test_subgraph_grad():
    ours = theano.subgraph_grad(wrt=[W], end=[z], cost=cost)
    rewrites.disable()
    theirs = theano.subgraph_grad(wrt=[W], end=[z], cost=cost)
    rewrites.enable()
    same(ours[0] + ours[1], theirs[0] + theirs[1])


def test_second_derivative_of_fused_graph():
    gradient = theano.grad(cost, x)
    same([theano.grad(gradient.sum(), W)], [stock(stock(cost, x).sum(), W)])


def test_somebody_else_needs_the_intermediate():
    total = z + abs(z)
    function = compiled([x], [0.5 * total, total])
    assert count(function, Relu) == 0
    assert count(compiled([x], [0.5 * (z + abs(z))]), Relu) == 1


def test_shapes_do_not_count_as_uses():
    total = z + abs(z)
    loss = (0.5 * total * T.ones(total.shape)).sum()
    gradient = theano.grad(loss, W)
    assert ancestors([gradient], Relu)
    function = compiled([x], [loss, gradient])
    assert count(function, Relu) == 1 and not any(op == T.abs_ for op in ops(function))


def dropout_steps():
    """Ten steps of a net whose dropout reads the shape of what becomes one Op."""
    streams = MRG_RandomStreams(7)
    weights = theano.shared(W.get_value())
    total = T.dot(x, weights)
    out = relu(total) * 2
    out = out * streams.binomial(out.shape, p=.5, dtype='float32')
    loss = (out ** 2).sum()
    gradient = theano.grad(loss, weights)
    function = compiled([x], loss, updates=[(weights, weights - np.float32(.01) * gradient)])
    state, = [old for old, _, _, _ in streams.state_updates]
    losses = [float(function(X)) for _ in range(10)]
    return function, losses, state.get_value()


def test_one_draw_a_step():
    function, losses, state = dropout_steps()
    draws = [op for op in ops(function) if isinstance(op, mrg_uniform_base) or 'MRG' in type(op).__name__]
    assert len(draws) == 1 and count(function, Relu) == 1
    rewrites.disable()
    function, stock_losses, stock_state = dropout_steps()
    assert count(function, Relu) == 0
    np.testing.assert_allclose(losses, stock_losses, rtol=1e-5)
    assert (state == stock_state).all()


def test_switches():
    assert rewrites.active()
    assert count(compiled([x], h), Relu) == 1
    assert count(compiled([x], h, exclude=[rewrites.TAG]), Relu) == 0
    rewrites.disable()
    assert not rewrites.active()
    assert not ancestors([theano.grad(cost, W)], Relu)
    assert count(compiled([x], h), Relu) == 0
    rewrites.enable()
    assert ancestors([theano.grad(cost, W)], Relu)


@pytest.mark.parametrize('flags, active', [
    ('', True), ('optimizer_excluding=theano_today_cpu', False), ('mode=FAST_COMPILE', False),
    ('cxx=', False), ('optimizer_excluding=local_fill_sink', True)])
def test_theano_flags(flags, active):
    code = 'import theano_today, theano_today.cpu.rewrites as r; print(r.active())'
    answer = subprocess.check_output([sys.executable, '-c', code],
                                     env=dict(os.environ, THEANO_FLAGS=flags), universal_newlines=True)
    assert answer.split()[-1] == str(active)


def test_a_fusion_that_fails_costs_speed_only(monkeypatch, caplog):
    def broken(node):
        raise RuntimeError('a bug')
    monkeypatch.setattr(rewrites, '_fusions', [])
    rewrites.register_fusion([T.mul])(broken)
    monkeypatch.setattr(theano.config, 'on_opt_error', 'raise')
    gradient = theano.grad(cost, W)
    assert 'could not rewrite' in caplog.text
    monkeypatch.setattr(rewrites, '_fusions', [])
    same([gradient], [stock(cost, W)])


def test_test_values_leave_the_graph_alone(monkeypatch):
    with theano.change_flags(compute_test_value='warn'):
        v = T.fmatrix()
        v.tag.test_value = X
        loss = relu(v).sum()
        gradient = theano.grad(loss, v)
    assert not ancestors([gradient], Relu)
