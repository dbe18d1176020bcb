"""Every input of every rewrite with every type that stock Theano accepts there: same answers, same types."""
import itertools

import numpy as np
import pytest

import theano_today  # noqa: F401
import theano
import theano.tensor as T
from theano.tensor.signal.pool import pool_2d
from theano_today import cpu
from theano_today.cpu.conv import ConvPool, ConvPoolGrad
from theano_today.cpu.matmul import MatMul, MatMulUpdate

pytestmark = pytest.mark.usefixtures('few_modules')


def count(function, *ops):
    return sum(isinstance(node.op, ops) for node in function.maker.fgraph.toposort())


def answers(build, arrays, types):
    """What both say, stock's last: function and values, or None and the exception's type."""
    result = []
    for switch in (cpu.enable, cpu.disable):
        switch()
        try:
            inputs = [t() for t in types]
            mode = theano.compile.get_default_mode().excluding('inplace', 'fusion')
            function = theano.function(inputs, build(*inputs), mode=mode, on_unused_input='ignore')
            result.append((function, function(*arrays)))
        except Exception as error:
            result.append((None, type(error)))
        finally:
            cpu.enable()
    return result


def agree(build, arrays, types):
    """Compare with stock; return the engine's function (None where stock refuses)."""
    (function, ours), (stock, theirs) = answers(build, arrays, types)
    assert (function is None) == (stock is None), (ours, theirs)
    if stock is None:
        return None
    for o, s in zip(function.maker.fgraph.outputs, stock.maker.fgraph.outputs):
        assert o.type == s.type
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a, b)
    return function


def numbers(shape, dtype='float32', seed=0):
    return np.random.RandomState(seed).randint(-2, 3, shape).astype(dtype)


def typed(array, broadcastable=None):
    return T.TensorType(array.dtype, broadcastable or (False,) * array.ndim)


def layer(x, W, b, u, threshold=.5):
    h = T.nnet.conv2d(x, W) + b.dimshuffle('x', 0, 'x', 'x')
    h = pool_2d(0.5 * (h + abs(h)), (2, 2), ignore_border=True)
    h = h / 0.5 * T.cast(u < threshold, 'float32')
    wrt = [v for v in (x, W, b) if v.dtype.startswith('float')]
    return [h] + T.grad((h ** 2).sum(), wrt, disconnected_inputs='ignore')


def arrays(x=(2, 2, 6, 5), W=(3, 2, 2, 3), b=(3,), u=(2, 3, 2, 1)):
    return [numbers(x), numbers(W, seed=1), numbers(b, seed=2),
            np.random.RandomState(3).rand(*u).astype('float32')]


PATTERNS = list(itertools.product([False, True], repeat=4))


@pytest.mark.parametrize('pattern', PATTERNS, ids=str)
@pytest.mark.parametrize('which', ['x', 'W', 'u'])
def test_broadcastable_dimensions_of_a_layer(which, pattern):
    sizes = dict(x=[2, 2, 6, 5], W=[3, 2, 2, 3], b=[3], u=[2, 3, 2, 1])
    if which == 'u':
        sizes['u'] = [1 if one else n for one, n in zip(pattern, sizes['u'])]
    elif which == 'x':
        for axis, one in enumerate(pattern):
            if one:
                sizes['x'][axis] = 1
        if pattern[1]:
            sizes['W'][1] = 1
        if pattern[2]:
            sizes['W'][2] = 1
        if pattern[3]:
            sizes['W'][3] = 1
    else:
        for axis, one in enumerate(pattern):
            if one:
                sizes['W'][axis] = 1
        sizes['x'][1], sizes['b'][0] = sizes['W'][1], sizes['W'][0]
    rows = (sizes['x'][2] - sizes['W'][2] + 1) // 2
    columns = (sizes['x'][3] - sizes['W'][3] + 1) // 2
    if which != 'u':
        sizes['u'] = [sizes['x'][0], sizes['W'][0], rows, columns]
    values = arrays(**{name: tuple(size) for name, size in sizes.items()})
    types = [typed(a) for a in values]
    types['xWbu'.index(which)] = typed(values['xWbu'.index(which)], pattern)
    function = agree(layer, values, types)
    if not any(pattern) or (which == 'x' and pattern == (True, False, False, False)):
        assert count(function, ConvPool) == 1 and count(function, ConvPoolGrad) == 1


@pytest.mark.parametrize('filters, broadcastable', [(1, True), (3, True), (1, False), (3, False)])
def test_a_bias_of_one_number(filters, broadcastable):
    values = arrays(W=(filters, 2, 2, 3), b=(1 if broadcastable else filters,), u=(2, filters, 2, 1))
    types = [typed(a) for a in values]
    types[2] = typed(values[2], (broadcastable,))
    function = agree(layer, values, types)
    assert count(function, ConvPool) == count(function, ConvPoolGrad) == 1
    assert count(function, theano.tensor.signal.pool.Pool) == 0


@pytest.mark.parametrize('dtype', ['float64', 'int8', 'int32', 'uint8', 'float32'])
@pytest.mark.parametrize('which', ['x', 'W', 'b', 'u'])
def test_dtypes_of_a_layer(which, dtype):
    values = arrays()
    at = 'xWbu'.index(which)
    values[at] = abs(values[at]).astype(dtype)
    agree(layer, values, [typed(a) for a in values])


@pytest.mark.parametrize('threshold', [0, 1, .5, np.float32(.3), np.float64(.3), np.int8(1), np.nan])
def test_dtypes_of_the_threshold(threshold):
    values = arrays()
    agree(lambda *inputs: layer(*inputs, threshold=threshold), values, [typed(a) for a in values])


def test_a_gate_that_is_no_random_number():
    def gated(x, W, b, u):
        h = T.nnet.conv2d(x, W)
        h = h * T.cast(u < .5, 'float32')
        return [h] + T.grad((h ** 2).sum(), [x, W, u], disconnected_inputs='ignore')
    values = arrays(u=(2, 3, 5, 3))
    agree(gated, values, [typed(a) for a in values])

    def by_itself(x, W, b, u):
        h = T.nnet.conv2d(x, W)
        h = h * T.cast(h < .5, 'float32')
        return [h] + T.grad((h ** 2).sum(), [x, W])
    agree(by_itself, values, [typed(a) for a in values])


@pytest.mark.parametrize('x, W', [
    ((2, 0, 5, 5), (3, 0, 2, 2)), ((2, 2, 5, 5), (0, 2, 2, 2)), ((0, 2, 5, 5), (3, 2, 2, 2)),
    ((0, 0, 5, 5), (0, 0, 2, 2)), ((2, 2, 5, 5), (3, 2, 0, 0)), ((2, 2, 0, 5), (3, 2, 1, 1)),
    ((2, 2, 2, 2), (3, 2, 3, 3)), ((2, 2, 2, 2), (3, 1, 2, 2))], ids=str)
def test_sizes_of_zero_and_sizes_that_do_not_fit(x, W):
    values = [numbers(x), numbers(W, seed=1), numbers(W[:1], seed=2)]

    def build(x, W, b):
        h = T.nnet.relu(T.nnet.conv2d(x, W) + b.dimshuffle('x', 0, 'x', 'x'))
        return [h] + T.grad(h.sum(), [x, W, b])
    agree(build, values, [typed(a) for a in values])


@pytest.mark.parametrize('wrong', [(2, 2, 6, 5), (3, 2, 7, 5)])
def test_sizes_that_were_promised_otherwise(wrong):
    def old(x, W):
        return [theano.tensor.nnet.conv.conv2d(x, W, (3, 2, 6, 5), (3, 2, 2, 3))]
    x, W = T.ftensor4(), T.ftensor4()
    function = theano.function([x, W], old(x, W))
    assert count(function, ConvPool) == 1
    assert function(numbers((3, 2, 6, 5)), numbers((3, 2, 2, 3)))[0].shape == (3, 3, 5, 3)
    with pytest.raises(ValueError):
        function(numbers(wrong), numbers((3, 2, 2, 3)))


@pytest.mark.parametrize('left', [(False, False), (True, False), (False, True), (True, True), (False,)], ids=str)
@pytest.mark.parametrize('right', [(False, False), (True, False), (False, True), (True, True), (False,)], ids=str)
@pytest.mark.parametrize('dtypes', [('float32', 'float32'), ('float64', 'float32'), ('int8', 'float32'),
                                    ('float32', 'int32')], ids=str)
def test_types_of_a_product(left, right, dtypes):
    depth = 1 if left[-1] or right[0] else 4
    a = numbers(tuple(1 if one else n for one, n in zip(left, (3, depth))) if len(left) == 2 else (depth,),
                dtypes[0])
    b = numbers(tuple(1 if one else n for one, n in zip(right, (depth, 5)[-len(right):]))
                if len(right) == 2 else (depth,), dtypes[1], seed=1)

    def build(a, b):
        product = T.dot(a, b)
        wrt = [v for v in (a, b) if v.dtype.startswith('float')]
        return [product] + T.grad((product ** 2).sum(), wrt)
    agree(build, [a, b], [typed(a, left), typed(b, right)])


@pytest.mark.parametrize('rule', [
    lambda w, g: w - T.erfinv(T.tanh(g)), lambda w, g: w - g * T.psi(T.sqr(g) + 1),
    lambda w, g: w - T.cast(g, 'int8'), lambda w, g: T.switch(g > 0, w, -w),
    lambda w, g: w - g * T.cast(0.1, 'float64'), lambda w, g: w - g * T.arange(5, dtype='float32'),
    lambda w, g: w - g.clip(-1, 1)], ids=range(7))
def test_update_rules_of_all_kinds(rule):
    values = []
    for switch in (cpu.enable, cpu.disable):
        switch()
        w = theano.shared(numbers((4, 5)))
        x = T.fmatrix()
        g = T.grad((T.dot(x, w) ** 2).sum() / 64, w)
        step = theano.function([x], [], updates=[(w, T.cast(rule(w, g), 'float32'))])
        step(numbers((3, 4)))
        values.append(w.get_value())
        cpu.enable()
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-6)


def test_what_the_engine_takes():
    function = agree(lambda a, b: [T.dot(a, b)], [numbers((3, 4)), numbers((4, 5))],
                     [T.fmatrix, T.fmatrix])
    assert count(function, MatMul) == 1 and count(function, MatMulUpdate) == 0
