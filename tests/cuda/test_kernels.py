"""The kernels, in Triton's interpreter (``TRITON_INTERPRET=1``) or on a GPU.

What kernels compute is defined to the last bit, so they are compared with NumPy to the last bit, and
with PyTorch's own calls for what these do in the same order.
"""
import contextlib

import numpy as np
import pytest
import theano
import theano.tensor as tt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lasagne import updates
from reference import C, PYTHON, REWRITTEN, on_device
from test_nets import train
from theano.tensor.signal.pool import pool_2d
from theano_today.cuda import convert, fused, ops_random
from theano_today.cuda.kernels import run

pytestmark = pytest.mark.skipif(
    convert.device().type == 'cpu' and not run.interpreted(), reason='TRITON_INTERPRET=1 only')
MODES = ['graph']
rng = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def no_kernel_fails():
    """What runs instead of a kernel that fails gives the same results."""
    yield
    assert not run._failed


def floats(*shape, dtype='float32'):
    return rng.randn(*shape).astype(dtype)


@contextlib.contextmanager
def launches():
    """The names of the kernels that run meanwhile."""
    names = []

    def note(launch):
        if not isinstance(launch.writes[0], torch._subclasses.FakeTensor):
            names.append(launch.name.split(':')[0])

    run.observers.append(note)
    try:
        yield names
    finally:
        run.observers.remove(note)


def assert_same(inputs, outputs, values, kernels, mode=REWRITTEN):
    """The device and NumPy give the same bits, in so many kernels."""
    device = theano.function(inputs, outputs)
    assert on_device(device)
    host = theano.function(inputs, outputs, mode=mode)
    for _ in range(2):
        with launches() as names:
            results = device(*values)
        assert len(names) == kernels
        for ours, theirs in zip(results, host(*values)):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)


# ---------------------------------------------------------------------------------- elementwise Ops

def test_arithmetic():
    x, y, z = tt.matrix(), tt.matrix(), tt.matrix()
    values = [floats(37, 41), floats(37, 41), np.abs(floats(37, 41)) + 0.1]
    values[0][0, :3] = 0, -0., np.nan
    assert_same([x, y, z], [
        x * y + z - x / z, 0.5 * (x + abs(x)), tt.sqr(x) * tt.sqrt(z) - tt.inv(z),
        tt.sgn(x) * 2 - y, tt.maximum(x, y) - tt.minimum(x, 0.3) * z, tt.clip(x, -0.5, y) * z,
        tt.switch(x > y, x, z) * 3, tt.switch(tt.isnan(x) | (y < 0.1), 7, -y) + z],
        values, kernels=8)


def test_shapes_and_strides():
    x, row, column = tt.tensor3(), tt.vector(), tt.col()
    values = [floats(5, 6, 7), floats(7), floats(6, 1)]
    assert_same([x, row, column], [
        (x + row) * 2 - column, x[::2] * row + 1, x.dimshuffle(2, 0, 1) * 3 + 1,
        (x[:, :, 3] + 1) * x[:, :, 2], x[1, 2, 3] * row - 1, (x[:, ::2, 1:] + x[:, 1::2, :-1]) * 2],
        values, kernels=6)


def test_dtypes():
    x, y = tt.dmatrix(), tt.imatrix()
    assert_same([x, y], [x * 1.1 + tt.sqrt(abs(x)), tt.cast(y, 'float32') * 0.1 + 1,
                         tt.cast(x > 0, 'float32') * tt.cast(y < 3, 'float32')],
                [floats(9, 8, dtype='float64'), rng.randint(0, 6, (9, 8)).astype('int32')], kernels=3)


def test_numbers_that_follow_from_shapes():
    x = tt.matrix()
    rows, columns = [tt.cast(n, 'float32') for n in (x.shape[0], x.shape[1])]
    f = theano.function([x], (x / rows + 1) * columns)
    with launches() as names:
        for rows in 3, 5, 3, 5, 3:
            value = floats(rows, 4)
            np.testing.assert_array_equal(f(value), ((value / np.float32(rows)) + 1) * 4)
    assert len(names) == 5


def test_what_has_no_kernel_stays():
    """The exponential has no last bit that everybody agrees on."""
    x = tt.matrix()
    f = theano.function([x], tt.exp(x * 2 + 1) * 3 - 1)
    with launches() as names:
        f(floats(3, 4))
    assert len(names) == 2
    big = theano.function([x], (x * 2 + 1).sum())
    with launches() as names:
        assert big(np.zeros((0, 4), 'float32')) == 0
    assert names == []  # nothing to do


def test_a_value_with_many_users_is_written_once():
    x, y, z = tt.matrix(), tt.matrix(), tt.matrix()
    total = x * y - z * z + x / z
    values = [floats(3, 3), floats(3, 3), floats(3, 3)]
    outputs = [tt.dot(total * n + 1, x) for n in range(2, 6)]
    device = theano.function([x, y, z], outputs)
    host = theano.function([x, y, z], outputs, mode=PYTHON)
    with launches() as names:
        results = device(*values)
    assert len(names) == 5
    for ours, theirs in zip(results, host(*values)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


# ----------------------------------------------------------------------------------------- updates

@pytest.mark.parametrize('rule', ['sgd', 'momentum', 'nesterov_momentum'])
def test_updates_in_place(rule):
    """One kernel for a parameter, which writes where the old values are."""
    weights = []
    for mode in None, PYTHON:
        w, x, rate = theano.shared(floats(6, 5) * 0 + 1), tt.matrix(), theano.shared(np.float32(.1))
        cost = (tt.dot(x, w) ** 2).sum()
        step = theano.function([x], cost, updates=getattr(updates, rule)(cost, [w], rate), mode=mode)
        values = np.random.RandomState(1)
        step(values.randn(4, 6).astype('f') / 9)
        buffers = [s.buffer for s in step.fn.input_storage[1:]] if mode is None else []
        for _ in range(6):
            with launches() as names:
                step(values.randn(4, 6).astype('f') / 9)
        weights.append(w.get_value())
        if mode is None:
            line, = step.fn.lines.values()
            written = 1 if rule == 'sgd' else 2
            assert len(line.in_place) == written
            assert all(s.buffer is buffer for s, buffer in zip(step.fn.input_storage[1:], buffers))
            # The square, the gradient of the square, and the update; a replay on a GPU launches none.
            assert len(names) <= 3
    np.testing.assert_allclose(*weights, rtol=1e-6)


def test_updates_that_others_read():
    """New values go to the old places only when nobody needs the old values any more."""
    a, b, x = theano.shared(floats(3, 3)), theano.shared(floats(3, 3)), tt.matrix()
    expected = [a.get_value(), b.get_value()]
    step = theano.function([x], [a.sum(), (a * x).T, a], updates=[
        (a, a * 0.5 + b), (b, b - a * x)])
    for _ in range(5):
        value = floats(3, 3)
        total, product, old = step(value)
        first, second = expected
        np.testing.assert_allclose(total, first.sum(), rtol=1e-5)
        np.testing.assert_array_equal(product, (first * value).T)
        np.testing.assert_array_equal(old, first)
        expected = [first * np.float32(0.5) + second, second - first * value]
        np.testing.assert_array_equal(a.get_value(), expected[0])
        np.testing.assert_array_equal(b.get_value(), expected[1])


def test_a_view_of_the_variable_itself():
    w = theano.shared(floats(4, 4))
    expected = w.get_value()
    step = theano.function([], [], updates=[(w, w * 0.5 + w.T * 0.25)])
    turn = theano.function([], [], updates=[(w, w[::-1] - w * 0.5)])
    for _ in range(5):
        step()
        expected = expected * np.float32(0.5) + expected.T * np.float32(0.25)
        np.testing.assert_array_equal(w.get_value(), expected)
        turn()
        expected = expected[::-1] - expected * np.float32(0.5)
        np.testing.assert_array_equal(w.get_value(), expected)


def test_an_update_after_the_last_reader():
    """The gradient of the layer below reads the weights after their own gradient is there."""
    w, v, x = theano.shared(floats(5, 4)), theano.shared(floats(3, 5)), tt.matrix()
    cost = (tt.dot(tt.dot(x, v), w) ** 2).sum()
    results = []
    for mode in None, PYTHON:
        w.set_value(np.linspace(-1, 1, 20).reshape(5, 4).astype('f'))
        v.set_value(np.linspace(1, -1, 15).reshape(3, 5).astype('f'))
        step = theano.function([x], cost, updates=[
            (p, p - 0.01 * g) for p, g in zip([w, v], theano.grad(cost, [w, v]))], mode=mode)
        results.append([step(np.eye(2, 3, dtype='f') * n) for n in range(6)] +
                       [w.get_value(), v.get_value()])
        if mode is None:
            assert sorted(list(step.fn.lines.values())[0].in_place) == [1, 2]
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------- pooling

def layer(x, b, u, window):
    h = pool_2d(tt.nnet.relu(x + b.dimshuffle('x', 0, 'x', 'x')), window, ignore_border=True)
    return h * tt.cast(u < 0.8, 'float32') / 0.8


@settings(max_examples=12, deadline=None, derandomize=True)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(3, 9)),
       window=st.sampled_from([(2, 2), (1, 3), (2, 3), (1, 1)]))
def test_layer_and_gradient(shape, window):
    """Ties everywhere: a window of zeros, as of a dark picture, gives the gradient to all of it."""
    x, b, u = tt.tensor4(), tt.vector(), tt.tensor4()
    out = layer(x, b, u, window)
    gradients = theano.grad((out * tt.arange(1, out.shape[3] + 1)).sum(), [x, b])
    outputs = [out] + gradients
    values = [np.round(floats(*shape)), np.round(floats(shape[1])),
              rng.rand(*shape[:2], shape[2] // window[0], shape[3] // window[1]).astype('f')]
    device = theano.function([x, b, u], outputs)
    host = theano.function([x, b, u], outputs, mode=PYTHON)
    with launches() as names:
        results = device(*values)
    assert names.count('pool') == names.count('gradient of pool') == 1
    for ours, theirs in zip(results, host(*values)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_pooling_alone_and_what_others_read():
    x = tt.tensor4()
    h = x * 2 + 1
    p = pool_2d(h, (2, 2), ignore_border=True)
    g = theano.grad(p.sum(), x)
    # The picture and the maxima are outputs, too, so that neither disappears into the kernel.
    assert_same([x], [p, h, p * 2 + 1, g], [np.round(floats(2, 3, 5, 6) * 2)], kernels=4)
    assert_same([x], [pool_2d(x, (3, 2), ignore_border=True)], [floats(2, 3, 7, 6)], kernels=1)
    value = floats(1, 1, 4, 4)
    value[0, 0, 0, 0] = np.nan
    assert_same([x], [pool_2d(x, (2, 2), ignore_border=True)], [value], kernels=1, mode=C)


def test_pooling_without_windows():
    x = tt.tensor4()
    f = theano.function([x], [pool_2d(x * 2, (2, 2), ignore_border=True),
                              theano.grad(pool_2d(x * 2, (2, 2), ignore_border=True).sum(), x)])
    for shape in ((2, 3, 1, 5), (0, 3, 4, 4)):
        out, gradient = f(np.ones(shape, 'float32'))
        assert out.shape == (shape[0], 3, shape[2] // 2, shape[3] // 2)
        assert gradient.shape == shape and not gradient.any()


def test_pooling_checks_shapes():
    x, y, u = tt.tensor4(), tt.tensor4(), tt.tensor4()
    f = theano.function([x, y, u], pool_2d(x + y, (2, 2), ignore_border=True) * u)
    with pytest.raises(ValueError, match='(?s)mis-match.*MaxPool'):
        f(floats(1, 2, 4, 4), floats(1, 2, 4, 1), floats(1, 2, 2, 2))
    with pytest.raises(ValueError, match='(?s)gives the shape.*MaxPool'):
        f(floats(1, 2, 4, 4), floats(1, 2, 4, 4), floats(1, 2, 2, 1))


def test_filters_are_turned_while_they_are_read():
    x, w = tt.tensor4(), theano.shared(floats(3, 2, 3, 2))
    cost = (tt.nnet.conv2d(x, w) ** 2).sum()
    results = []
    for mode in None, C:
        w.set_value(np.linspace(-1, 1, 36).reshape(3, 2, 3, 2).astype('f'))
        step = theano.function([x], theano.grad(cost, x), mode=mode,
                               updates=[(w, w - 0.01 * theano.grad(cost, w))])
        results.append([step(np.linspace(0, 1, 100).reshape(1, 2, 10, 5).astype('f'))
                        for _ in range(4)] + [w.get_value()])
        if mode is None:
            ops = [str(node.op) for node in step.maker.fgraph.apply_nodes]
            assert sum(op.startswith('Turn') for op in ops) == 1
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------- products of TensorFloat-32

@pytest.fixture
def three_products(monkeypatch):
    from theano_today.cuda.kernels import dot
    monkeypatch.setenv('THEANO_TODAY_TF32', 'x3')
    monkeypatch.setattr(dot, 'WORTH', 0)


def assert_near(ours, theirs):
    """To float32's digits: TensorFloat-32 alone would be wrong in the fourth."""
    theirs = np.asarray(theirs, 'float64')
    assert ours.dtype == 'float32' and ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 2e-6 * np.linalg.norm(theirs)


@pytest.mark.parametrize('m, k, n', [(5, 700, 9), (70, 40, 130), (64, 64, 64), (1, 1, 1)])
def test_products(three_products, m, k, n):
    x, y = tt.matrix(), tt.matrix()
    f = theano.function([x, y], [tt.dot(x, y), tt.dot(y.T, x.T)])
    a, b = floats(m, k), floats(k, n)
    exact = a.astype('float64') @ b.astype('float64')
    with launches() as names:
        results = f(a, b)
    assert names == ['product'] * 2
    assert_near(results[0], exact)
    assert_near(results[1], exact.T)


@pytest.mark.parametrize('shape, filters, pad', [
    ((2, 9, 7, 6), (10, 2, 2), 0), ((3, 8, 5, 9), (70, 3, 2), (1, 0)), ((2, 33, 6, 6), (8, 3, 3), 2)])
def test_convolutions(three_products, shape, filters, pad):
    x, w = tt.tensor4(), tt.tensor4()
    out = tt.nnet.conv2d(x, w, border_mode=pad)
    outputs = [out] + theano.grad((out ** 2).sum(), [x, w])
    a, b = floats(*shape), floats(filters[0], shape[1], *filters[1:])
    device = theano.function([x, w], outputs)
    with launches() as names:
        results = device(a, b)
    assert names.count('convolution') == 2
    assert names.count('gradient of filters') == (not pad)
    x, w = tt.dtensor4(), tt.dtensor4()
    out = tt.nnet.conv2d(x, w, border_mode=pad)
    exact = theano.function([x, w], [out] + theano.grad((out ** 2).sum(), [x, w]), mode=C)
    for ours, theirs in zip(results, exact(a.astype('float64'), b.astype('float64'))):
        assert_near(ours, theirs)


# -------------------------------------------------------------------------------- streams, whole nets

@pytest.mark.parametrize('streams, count', [
    (7, 493), (130, 8450), (300, 299), (1, 100), (64, 2113), (5, 160), (5, 161), (3, 2), (40, 41)])
def test_random_streams(streams, count):
    state = np.hstack([rng.randint(0, ops_random.M1, (streams, 3)),
                       rng.randint(0, ops_random.M2, (streams, 3))])
    state[0] = [ops_random.M1 - 1] * 3 + [ops_random.M2 - 1] * 3
    state = torch.from_numpy(state.astype('int32')).to(convert.device())
    for ours, theirs in zip(ops_random.by_kernel(state, count, 'float32'),
                            ops_random.by_table(state, count, 'float32')):
        np.testing.assert_array_equal(ours.cpu().numpy(), theirs.cpu().numpy())


def test_a_net_trains_the_same(monkeypatch):
    """Kernels against PyTorch's own calls, bit for bit."""
    if run.interpreted():  # Lasagne's 15360 streams would take minutes
        monkeypatch.setattr(ops_random, 'mrg_uniform', ops_random.by_table)
    with launches() as names:
        losses, weights = train('faces', None, steps=3)
    assert {'elementwise', 'pool', 'gradient of pool'} <= set(names)
    with run.references():
        their_losses, their_weights = train('faces', None, steps=3)
    np.testing.assert_array_equal(losses, their_losses)
    for ours, theirs in zip(weights, their_weights):
        np.testing.assert_array_equal(ours, theirs)


def test_the_rewrites_can_be_left_out():
    x = tt.tensor4()
    out = pool_2d(tt.nnet.relu(x), (2, 2), ignore_border=True)
    mode = theano.compile.get_default_mode().excluding(fused.TAG)
    f = theano.function([x], out, mode=mode)
    assert on_device(f)
    with launches() as names:
        f(floats(1, 1, 4, 4))
    assert names == []
