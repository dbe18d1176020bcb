"""What compat mends in Theano 1.0.5 itself: scans, and names that Lasagne and nolearn miss."""
import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne_layers import PYTHON


def test_scan_of_compiled_functions():
    """A scan as a user's program runs it, with C code inside, and its gradient."""
    x, w = T.vector(), T.scalar()
    states, _ = theano.scan(lambda x_t, h: T.tanh(w * h + x_t), sequences=x,
                            outputs_info=T.zeros_like(w))
    step = theano.function([x, w], [states] + theano.grad(states[-1], [x, w]))
    values = np.linspace(-1, 1, 6).astype('float32')
    h, by_w, by_x, expected = 0, 0, np.zeros(6), []
    for t, value in enumerate(values):
        by_w, by_x = h + .5 * by_w, .5 * by_x
        by_x[t] = 1
        h = np.tanh(.5 * h + value)
        by_w, by_x = (1 - h ** 2) * by_w, (1 - h ** 2) * by_x
        expected.append(h)
    for ours, numpys in zip(step(values, .5), (expected, by_x, by_w)):
        np.testing.assert_allclose(ours, numpys, rtol=1e-4)


def test_scan_with_condition_and_taps():
    """While loops, several taps and shared updates take paths of their own in Theano's scan."""
    limit, count = T.scalar(), theano.shared(np.float32(0))

    def step(before, last):
        following = before + last
        return following, {count: count + 1}, theano.scan_module.until(following > limit)

    start = theano.shared(np.array([0, 1], 'float32'))
    numbers, updated = theano.scan(step, n_steps=50, outputs_info=[
        {'initial': start, 'taps': [-2, -1]}])
    fibonacci = theano.function([limit], numbers, updates=updated, mode=PYTHON)
    np.testing.assert_array_equal(fibonacci(20), [1, 2, 3, 5, 8, 13, 21])
    assert count.get_value() == 7


# Expressions that become Dot22, Dot22Scalar, Gemm, Gemv and BatchedDot; the same for NumPy.
PRODUCTS = {
    'dot': lambda x, y, z, dot, batched_dot: dot(x, y),
    'transposed': lambda x, y, z, dot, batched_dot: dot(y.T, x.T),
    'scaled': lambda x, y, z, dot, batched_dot: .5 * dot(x, y),
    'added': lambda x, y, z, dot, batched_dot: z + .5 * dot(x, y),
    'vector': lambda x, y, z, dot, batched_dot: z.sum(0) + dot(x.sum(0), y),
    'batched': lambda x, y, z, dot, batched_dot: batched_dot(x, y)}


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('product', list(PRODUCTS))
def test_products_of_empty_matrices(product, dtype):
    """Stock Theano's C code calls BLAS; the engine would take some of them."""
    kind = T.tensor3 if product == 'batched' else T.matrix
    x, y, z = kind(dtype=dtype), kind(dtype=dtype), kind(dtype=dtype)
    mode = theano.compile.mode.get_mode('FAST_RUN').excluding('theano_today_cpu')
    function = theano.function([x, y, z], PRODUCTS[product](x, y, z, T.dot, T.batched_dot),
                               mode=mode, on_unused_input='ignore', allow_input_downcast=True)
    rng = np.random.RandomState(0)
    batch = (2,) if product == 'batched' else ()
    for rows, depth, columns in [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 4), (2, 0, 0), (0, 3, 0),
                                 (0, 0, 0), (1, 0, 4), (1, 0, 1), (2, 3, 4)]:
        a, b, c = (rng.standard_normal(batch + size).astype(dtype)
                   for size in [(rows, depth), (depth, columns), (rows, columns)])
        result = function(a, b, c)
        expected = PRODUCTS[product](a, b, c, np.dot, np.matmul)
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_old_names_of_pooling():
    """theano.tensor.signal.downsample: functions, and Ops that took sizes when they were made."""
    from theano.tensor.signal import downsample
    from theano.tensor.signal.downsample import max_pool_2d_same_size
    values = np.arange(25, dtype='float32').reshape(1, 1, 5, 5)
    x = theano.shared(values)
    op = downsample.DownsampleFactorMax((2, 2), ignore_border=True)
    whole, parts, same, grad, mean_grad = theano.function([], [
        op(x), downsample.DownsampleFactorMax((2, 2), st=(2, 2))(x), max_pool_2d_same_size(x, (2, 2)),
        downsample.DownsampleFactorMaxGrad((2, 2), True)(x, op(x), T.ones_like(op(x))),
        downsample.DownsampleFactorMaxGrad((2, 2), True, mode='average_inc_pad')(
            x, op(x), T.ones_like(op(x)))], mode=PYTHON)()
    np.testing.assert_array_equal(whole, [[[[6, 8], [16, 18]]]])
    np.testing.assert_array_equal(parts, [[[[6, 8, 9], [16, 18, 19], [21, 23, 24]]]])
    np.testing.assert_array_equal(np.unique(same), [0, 6, 8, 16, 18])
    np.testing.assert_array_equal(np.flatnonzero(grad), [6, 8, 16, 18])
    np.testing.assert_array_equal(np.unique(mean_grad), [0, .25])
    assert list(op.out_shape((1, 1, 5, 5), (2, 2), True)) == [1, 1, 2, 2]


def test_old_modules():
    import six
    import theano.compat.six
    from theano.compat.python2x import Counter, DictMixin, OrderedDict, maxsize, partial, product
    from theano.compat.six.moves import xrange
    assert theano.compat.six is six and xrange is range
    assert list(OrderedDict([(1, 2)])) == [1] and Counter('aa')['a'] == 2 and maxsize > 2**31
    assert partial(int, '11', base=2)() == 3 and len(list(product('ab', 'cd'))) == 4 and DictMixin


@pytest.fixture
def floatx(request, monkeypatch):
    """Whether floatX is our default or set by the user."""
    from theano_today.compat import theano as mends
    monkeypatch.setattr(mends, 'FLOATX_IS_OURS', [request.param])


@pytest.mark.parametrize('floatx', [True], indirect=True)
def test_double_precision_where_nobody_has_set_floatx(floatx):
    x, rate, w = T.matrix(), T.scalar(), theano.shared(np.zeros(2, 'float32'))
    double = theano.function([x, rate], x * rate, mode=PYTHON)
    for given in np.array([[.1, .2]]), [[.1, .2]], np.array([[1, 2]]):
        result = double(given, np.float64(.5))
        assert result.dtype == 'float32'
        np.testing.assert_allclose(result, np.multiply(given, .5), rtol=1e-6)
    w.set_value(np.ones(2))
    assert w.get_value().dtype == 'float32'
    with pytest.raises(TypeError):
        double(np.ones((1, 2), 'complex64'), 1)
    with pytest.raises(TypeError, match='theano_today has set floatX=float32.*floatX=float64'):
        theano.function([], [], updates=[(w, w + theano.shared(np.ones(2)))])


@pytest.mark.parametrize('floatx', [False], indirect=True)
def test_double_precision_where_the_user_has_set_floatx(floatx):
    x = T.matrix()
    with pytest.raises(TypeError, match='allow_input_downcast'):
        theano.function([x], x * 2, mode=PYTHON)(np.ones((1, 2)))
    w = theano.shared(np.zeros(2, 'float32'))
    with pytest.raises(TypeError, match='An update must have the same type') as error:
        theano.function([], [], updates=[(w, w + theano.shared(np.ones(2)))])
    assert 'theano_today' not in str(error.value)


def test_flags_that_come_too_late_are_named(monkeypatch):
    import os
    x, flags = T.vector(), os.environ['THEANO_FLAGS']
    monkeypatch.setenv('THEANO_FLAGS', flags + ',device=gpu,openmp=' + str(theano.config.openmp))
    with pytest.warns(UserWarning, match='THEANO_FLAGS: device=gpu was set after') as warned:
        theano.function([x], x + 1, mode=PYTHON)
        theano.function([x], x + 2, mode=PYTHON)
    assert len(warned) == 1 and warned[0].filename == __file__
