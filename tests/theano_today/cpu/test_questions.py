"""Whatever is asked of a graph, the answer is stock Theano's.

Nets are drawn at random, and questions about them: derivatives of all kinds by parameters, inputs and
intermediate results, replacements of those, scans over them.  Each question is put twice, with the
engine and without, from the building of the graph on.
"""
import contextlib
import os
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

import theano_today  # noqa: F401
import theano
import theano.tensor as T
from theano.tensor.signal.pool import pool_2d
from theano_today import cpu
from theano_today.cpu.conv import ConvPool, ConvPoolGrad

pytestmark = pytest.mark.usefixtures('few_modules')


@contextlib.contextmanager
def engine(on):
    before = cpu.rewrites._enabled
    (cpu.enable if on else cpu.disable)()
    try:
        yield
    finally:
        (cpu.enable if before else cpu.disable)()


class Net:
    """A net whose every variable may be asked for.

    Attributes
    ----------
    x : TensorVariable
        The input, a matrix or a batch of images.
    params : list of SharedVariable
    inner : list of TensorVariable
        Intermediate results, from the input on.
    cost : TensorVariable
    value : ndarray
        A batch for `x`.
    """

    def __init__(self, parts, dtype, end, seed):
        rng = np.random.RandomState(seed)

        def numbers(*shape):  # small integers: most sums are exact, ties and zeros occur
            return rng.randint(-2, 3, shape).astype(dtype)

        images = parts[0] in ('conv', 'old conv')
        self.value = numbers(2, 2, 6, 7) if images else numbers(3, 5)
        self.x = T.TensorType(dtype, (False,) * self.value.ndim)('x')
        self.params, self.inner, h, shape = [], [], self.x, self.value.shape

        def param(value, name):
            self.params.append(theano.shared(value, name=f'{name}{len(self.params)}'))
            return self.params[-1]

        for part in parts:
            if part in ('conv', 'old conv') and len(shape) == 4 and min(shape[2:]) >= 3:
                W = param(numbers(3, shape[1], 2, 3), 'W')
                conv = T.nnet.conv2d if part == 'conv' else theano.tensor.nnet.conv.conv2d
                h = conv(h, W)
                shape = (shape[0], 3, shape[2] - 1, shape[3] - 2)
            elif part == 'pool' and len(shape) == 4:
                h = pool_2d(h, (2, 2), ignore_border=True)
                shape = shape[:2] + (shape[2] // 2, shape[3] // 2)
            elif part == 'dense':
                if len(shape) == 4:
                    h, shape = h.flatten(2), (shape[0], int(np.prod(shape[1:])))
                    self.inner.append(h)
                h = T.dot(h, param(numbers(shape[1], 4), 'W'))
                shape = (shape[0], 4)
            elif part == 'bias':
                b = param(numbers(shape[1]), 'b')
                h = h + (b.dimshuffle('x', 0, 'x', 'x') if len(shape) == 4 else b)
            elif part == 'rectify':
                h = 0.5 * (h + abs(h))
            elif part == 'maximum':
                h = T.maximum(h, 0)
            elif part == 'gate':
                gate = theano.shared(rng.rand(*shape).astype(dtype), name='gate')
                h = h / 0.5 * T.cast(gate < 0.5, dtype)
            elif part == 'tanh':
                h = T.tanh(h / 8)
            else:
                continue
            self.inner.append(h)
        self.out, self.shape = h, shape
        self.cost = {'squares': lambda: (h ** 2).mean(), 'cubes': lambda: (h * h * h / 8).sum(),
                     'sum': h.sum}[end]()
        self.rng, self.numbers = rng, numbers

    def like(self, variable):
        """A constant of small integers of the shape that `variable` has."""
        if isinstance(variable, theano.compile.SharedVariable):
            shape = variable.get_value().shape
        else:
            with engine(False):
                shape = variable.eval({self.x: self.value}).shape
        return T.constant(self.numbers(*shape), name='c')


# ---- questions: each returns expressions, further inputs with their values, and givens ----


def gradient(net, wrt, draw):
    return T.grad(net.cost, wrt, disconnected_inputs='ignore')


def second(net, wrt, draw):
    first = T.grad(net.cost, draw(st.sampled_from(net.params + net.inner + [net.x])))
    return T.grad((first ** 2).sum(), wrt, disconnected_inputs='ignore')


def third(net, wrt, draw):
    first = T.grad(net.cost, draw(st.sampled_from(net.params)))
    again = T.grad((first * T.sqr(first)).sum(), net.params[0], disconnected_inputs='ignore')
    return T.grad(again.sum(), wrt, disconnected_inputs='ignore')


def of_a_gradient_by_its_own(net, wrt, draw):
    h = wrt[0]
    return T.grad(T.grad(net.cost, h).sum(), h, disconnected_inputs='ignore')


def r_op(net, wrt, draw):
    return T.Rop(net.out, wrt[0], net.like(wrt[0]))


def r_op_of_gradient(net, wrt, draw):
    params = net.params
    return T.Rop(T.grad(net.cost, params), params, [net.like(p) for p in params])


def r_op_of_gradient_by_intermediate(net, wrt, draw):
    return T.Rop(T.grad(net.cost, wrt[0]), wrt[0], net.like(wrt[0]))


def l_op(net, wrt, draw):
    return T.Lop(net.out, wrt, net.like(net.out), disconnected_inputs='ignore')


def gauss_newton(net, wrt, draw):
    s, W = net.out, net.params[0]
    product = T.Rop(s, W, net.like(W))
    return T.grad(T.sum(T.grad(net.cost, s) * product), wrt, consider_constant=[product],
                  disconnected_inputs='ignore')


def jacobian(net, wrt, draw):
    return theano.gradient.jacobian(net.out.flatten()[:3], wrt, disconnected_inputs='ignore')


def hessian(net, wrt, draw):
    biases = [p for p in net.params if p.ndim == 1]
    return theano.gradient.hessian(net.cost, biases[0]) if biases else net.cost


def known_grads(net, wrt, draw):
    known = OrderedDict((h, net.like(h)) for h in
                        draw(st.lists(st.sampled_from(net.inner), min_size=1, max_size=2, unique=True)))
    cost = draw(st.sampled_from([None, net.cost]))
    return T.grad(cost, wrt, known_grads=known, disconnected_inputs='ignore')


def consider_constant(net, wrt, draw):
    constant = draw(st.lists(st.sampled_from(net.inner), min_size=1, max_size=2, unique=True))
    return T.grad(net.cost, wrt, consider_constant=constant, disconnected_inputs='ignore')


def disconnected(net, wrt, draw):
    h = draw(st.sampled_from(net.inner))
    cost = theano.clone(net.cost, replace={h: theano.gradient.disconnected_grad(h)})
    return T.grad(cost, wrt, disconnected_inputs='ignore')


def givens(net, wrt, draw):
    h = draw(st.sampled_from(net.inner))
    return T.grad(net.cost, wrt, disconnected_inputs='ignore'), {}, {h: net.like(h)}


def replaced(net, wrt, draw):
    h = draw(st.sampled_from(net.inner))
    return theano.clone(T.grad(net.cost, wrt, disconnected_inputs='ignore'), replace={h: net.like(h)})


def as_input(net, wrt, draw):
    h = draw(st.sampled_from(net.inner))
    return T.grad(net.cost, wrt, disconnected_inputs='ignore'), {h: net.like(h).data}, {}


def scanned(net, wrt, draw):
    """A gradient inside a scan."""
    def step(factor):
        cost = theano.clone(net.cost, replace={net.x: net.x * factor})
        return T.grad(cost, net.params)
    sums, _ = theano.scan(step, sequences=[T.constant(net.numbers(2))])
    return sums


def of_a_scan(net, wrt, draw):
    """The gradient of a scan."""
    def step(factor, total, *params):
        return total + theano.clone(net.cost, replace={net.x: net.x * factor})
    sums, _ = theano.scan(step, sequences=[T.constant(net.numbers(2))], non_sequences=net.params,
                          outputs_info=[T.zeros_like(net.cost)])
    return T.grad(sums[-1], net.params + [net.x], disconnected_inputs='ignore')


def op_from_graph(net, wrt, draw):
    inputs = [net.x] + [p.type() for p in net.params]
    out = theano.clone(net.out, replace=dict(zip(net.params, inputs[1:])))
    op = theano.OpFromGraph(inputs, [out], inline=draw(st.booleans()))
    return T.grad((op(net.x, *net.params) ** 2).sum(), net.params + [net.x])


def together(net, wrt, draw):
    """Values and gradients of everything at once, as a monitor asks for them."""
    everything = net.inner + net.params
    return [net.cost] + net.inner + T.grad(net.cost, everything, disconnected_inputs='ignore')


QUESTIONS = [gradient, second, third, of_a_gradient_by_its_own, r_op, r_op_of_gradient,
             r_op_of_gradient_by_intermediate, l_op, gauss_newton, jacobian, hessian, known_grads,
             consider_constant, disconnected, givens, replaced, as_input, scanned, of_a_scan,
             op_from_graph, together]


class Recorder:
    """Draws of hypothesis, the same again for the second time."""

    def __init__(self, draw):
        self.draw, self.drawn = draw, []

    def again(self, net_variables):
        drawn = iter(self.drawn)

        def draw(strategy):
            return next(drawn)(net_variables)
        return draw

    def first(self, net_variables):
        def draw(strategy):
            value = self.draw(strategy)

            def name(v):
                if isinstance(v, list):
                    return lambda variables, parts=[name(i) for i in v]: [p(variables) for p in parts]
                if isinstance(v, theano.Variable):
                    at = next(i for i, other in enumerate(net_variables) if other is v)
                    return lambda variables: variables[at]
                return lambda variables: v
            self.drawn.append(name(value))
            return value
        return draw


def answer(question, make_net, positions, draw_for, on):
    """The values of the answer, or the type of the exception."""
    with engine(on):
        net = make_net()
        variables = net.params + net.inner + [net.x, net.cost]
        wrt = [variables[i % (len(variables) - 1)] for i in positions]
        try:
            expressions = question(net, wrt, draw_for(variables))
            inputs, replacements = {}, {}
            if isinstance(expressions, tuple) and isinstance(expressions[1], dict):
                expressions, inputs, replacements = expressions
            if not isinstance(expressions, (list, tuple)):
                expressions = [expressions]
            mode = theano.compile.get_default_mode().excluding('inplace', 'fusion')
            function = theano.function(
                [net.x] + list(inputs), list(expressions), givens=list(replacements.items()),
                on_unused_input='ignore', mode=mode)
            return function(net.value, *inputs.values()), function
        except (AssertionError, AttributeError, KeyError):
            raise
        except Exception as error:  # whatever stock Theano raises, the engine has to
            return type(error), None


def fused(function):
    return sum(isinstance(node.op, (ConvPool, ConvPoolGrad)) for node in
               function.maker.fgraph.toposort()) if function else 0


def compare(question, make_net, positions, draw):
    recorder = Recorder(draw)
    theirs, stock = answer(question, make_net, positions, recorder.first, on=False)
    ours, function = answer(question, make_net, positions, recorder.again, on=True)
    assert not fused(stock)
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs
        return
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1, np.abs(b).max() if b.size else 0))
    return function


AFTER = ['bias', 'rectify', 'maximum', 'pool', 'gate', 'tanh', 'conv', 'old conv', 'dense']


# RANDOM_QUESTIONS=1000 in the environment asks more of them.
@settings(max_examples=int(os.environ.get('RANDOM_QUESTIONS', 40)), deadline=None, database=None,
          derandomize='RANDOM_QUESTIONS' not in os.environ,
          suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(first=st.sampled_from(['conv', 'conv', 'old conv', 'dense']),
       rest=st.lists(st.sampled_from(AFTER), max_size=6),
       dtype=st.sampled_from(['float32', 'float32', 'float64']),
       end=st.sampled_from(['squares', 'cubes', 'sum']),
       question=st.sampled_from(QUESTIONS), positions=st.lists(st.integers(0, 9), min_size=1, max_size=3),
       seed=st.integers(0, 99), data=st.data())
def test_random_questions_about_random_nets(first, rest, dtype, end, question, positions, seed, data):
    # What deep nets make of small integers is large; each further product multiplies by some ten.
    rest = [part for i, part in enumerate(rest) if part not in rest[:i] or part == 'conv'][:5]
    compare(question, lambda: Net([first] + rest, dtype, end, seed), positions, data.draw)


PARTS = {'conv': ['conv', 'bias', 'rectify', 'pool', 'gate', 'dense', 'bias'],
         'dense': ['dense', 'bias', 'rectify', 'dense', 'tanh']}


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('parts', sorted(PARTS))
@pytest.mark.parametrize('wrt', [0, 3, 6], ids='wrt{}'.format)
@pytest.mark.parametrize('question', [of_a_gradient_by_its_own, r_op_of_gradient, gauss_newton, together],
                         ids=lambda f: f.__name__)
def test_questions_that_once_went_wrong(question, parts, wrt, dtype):
    compare(question, lambda: Net(PARTS[parts], dtype, 'cubes', 3), [wrt], None)


def test_layers_are_fused_where_nobody_asks_for_more():
    function = compare(gradient, lambda: Net(PARTS['conv'], 'float32', 'cubes', 3), [0, 1], None)
    assert fused(function) == 2


def cubes():
    x = T.matrix('x')
    h = T.tanh(T.dot(x, T.constant(np.eye(3, dtype=x.dtype))))
    return x, h, T.grad((h ** 3).sum(), h)


def test_the_gradient_is_an_expression_of_the_callers_variables():
    x, h, g = cubes()
    v = np.arange(6, dtype=x.dtype).reshape(2, 3)
    np.testing.assert_allclose(T.grad(g.sum(), h).eval({h: v}), 6 * v)
    np.testing.assert_allclose(T.Rop(g, h, T.ones_like(h)).eval({h: v}), 6 * v)
    np.testing.assert_allclose(theano.function([], g, givens={h: T.constant(v)})(), 3 * v ** 2)
    np.testing.assert_allclose(theano.clone(g, replace={h: T.constant(v)}).eval(), 3 * v ** 2)
    np.testing.assert_allclose(theano.function([h], g)(v), 3 * v ** 2)
