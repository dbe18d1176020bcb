"""Dense layers, update rules and random numbers of the CPU engine against NumPy and stock Theano.

Products are tested with small integers as numbers where possible: all sums are then exact in
float32, so results have to be equal to the last bit.
"""
import ctypes
import os
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import theano_today  # noqa: F401
import lasagne
import theano
import theano.tensor as T
from lasagne import updates
from lasagne.layers import DenseLayer, DropoutLayer, InputLayer, get_all_params, get_output
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano_today import cpu
from theano_today.cpu.matmul import MatMul, MatMulUpdate
from theano_today.cpu.mrg import MRGBernoulli, MRGUniform

HEADERS = os.path.dirname(cpu.__file__)

# NumPy's about what Theano does.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')

# Theano's own Ops.  Without fusion, NumPy evaluates them fast, and nothing has to be compiled.
STOCK = theano.Mode(linker='py', optimizer=theano.compile.mode.OPT_FAST_RUN).excluding(
    'theano_today_cpu', 'fusion')
# The same in C.
STOCK_C = theano.compile.mode.get_default_mode().excluding('theano_today_cpu')


@pytest.fixture(autouse=True)
def enabled():
    yield
    cpu.enable()


def nodes(function, op_class):
    return [node for node in function.maker.fgraph.toposort() if isinstance(node.op, op_class)]


def integers(random, *shape):
    return random.randint(-4, 5, shape).astype('float32')


# ---- kernels at every vector width, outside of Theano ----

KERNELS = r'''
#include "matmul_update.hpp"
#include "mrg.hpp"

extern "C" int product(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                       long m, long n, long depth, float* c) {
    return matmul::product({a, a_row, a_column}, {b, b_row, b_column}, m, n, depth, c, n);
}
extern "C" int direct_product(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                              long m, long n, long depth, float* c) {
    return matmul::direct_product({a, a_row, a_column}, {b, b_row, b_column}, m, n, depth, c, n);
}
extern "C" int product_of(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                          long m, long n, long depth, float* c) {
    return matmul::product_of({a, a_row, a_column}, {b, b_row, b_column}, m, n, depth, c);
}
extern "C" int sparse_product(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                              long m, long n, long depth, float* c) {
    return matmul::sparse_product({a, a_row, a_column}, {b, b_row, b_column}, m, n, depth, c);
}

// A rule that takes one product as it is.
struct Copy {
    float* c;
    long n;
    void prefetch(matmul::Index, matmul::Index, matmul::Index, matmul::Index) const {}
    void operator()(const float* const* products, matmul::Index ld, matmul::Index i, matmul::Index j,
                    matmul::Index rows, matmul::Index columns) const {
        for (matmul::Index r = 0; r < rows; r++)
            std::copy(products[0] + r * ld, products[0] + r * ld + columns, c + (i + r) * n + j);
    }
};
extern "C" int update(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                      long m, long n, long depth, float* c) {
    const matmul::Factors f = {{a, a_row, a_column}, {b, b_row, b_column}, depth};
    return matmul::update(&f, 1, m, n, depth, Copy{c, n});
}
extern "C" int update_through_memory(const float* a, long a_row, long a_column, const float* b, long b_row,
                                     long b_column, long m, long n, long depth, float* c) {
    const matmul::Factors f = {{a, a_row, a_column}, {b, b_row, b_column}, depth};
    return matmul::update_through_memory(&f, 1, m, n, Copy{c, n});
}
extern "C" int sparse_update(const float* a, long a_row, long a_column, const float* b, long b_row, long b_column,
                             long m, long n, long depth, float* c) {
    return matmul::sparse_update({{a, a_row, a_column}, {b, b_row, b_column}, depth}, m, n, Copy{c, n});
}
extern "C" void uniform(int32_t* state, long streams, long n, float* out) {
    mrg::draw(state, streams, n, mrg::Uniform{out});
}
extern "C" void bernoulli(int32_t* state, long streams, long n, float p, bool* as_bool, float* as_float) {
    int32_t* copy = (int32_t*)malloc(streams * 24);
    memcpy(copy, state, streams * 24);
    mrg::draw(copy, streams, n, mrg::BernoulliBool{as_bool, p});
    free(copy);
    mrg::draw(state, streams, n, mrg::BernoulliFloat{as_float, p});
}
'''


@pytest.fixture(scope='module', params=[1, 4, 8, 16], ids='{} lanes'.format)
def kernels(request, tmp_path_factory):
    """A library of the kernels with vectors of a given number of floats."""
    folder = tmp_path_factory.mktemp('kernels')
    source, library = str(folder / 'kernels.cpp'), str(folder / 'kernels.so')
    with open(source, 'w') as file:
        file.write(KERNELS)
    subprocess.check_call(
        [theano.config.cxx, '-std=gnu++11', '-O1', '-march=native', '-Wall', '-Wextra', '-Werror',
         '-Wno-psabi', '-Wno-maybe-uninitialized',    # g++ 12 says so of its own avx512fintrin.h
         f'-DTHEANO_TODAY_LANES={request.param}', '-shared', '-fPIC',
         '-I' + HEADERS, source, '-o', library])
    return ctypes.CDLL(library)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def multiply(kernel, a, b):
    """The product of two matrices by a kernel."""
    (m, depth), n = a.shape, b.shape[1]
    c = np.full((m, n), np.nan, 'float32')
    args = [pointer(a)] + [ctypes.c_long(s // 4) for s in a.strides] + \
        [pointer(b)] + [ctypes.c_long(s // 4) for s in b.strides] + \
        [ctypes.c_long(size) for size in (m, n, depth)] + [pointer(c)]
    assert kernel(*args)
    return c


def in_layouts(matrix):
    """A matrix with its rows, its columns and nothing contiguous."""
    return matrix, np.asfortranarray(matrix), np.repeat(matrix, 2, axis=1)[:, ::2]


@pytest.mark.parametrize('name', ['product', 'update', 'update_through_memory'])
def test_product_at_every_width(kernels, name):
    random = np.random.RandomState(0)
    sizes = [(1, 1, 1), (3, 5, 0), (2, 100, 7), (130, 1, 300), (97, 530, 20), (14, 33, 600)]
    sizes += [tuple(random.randint(1, 70, 3)) for _ in range(20)]
    for m, n, depth in sizes:
        a = integers(random, m, depth) if random.rand() < .5 else integers(random, depth, m).T
        b = integers(random, depth, n) if random.rand() < .5 else integers(random, n, depth).T
        np.testing.assert_array_equal(multiply(getattr(kernels, name), a, b), a.dot(b))


def test_products_without_packing_have_the_bits_of_those_with(kernels):
    random = np.random.RandomState(9)
    sizes = [(1, 1, 1), (9, 17, 0), (20, 40, 1), (14, 33, 600), (18, 17, 1000), (97, 130, 20)]
    sizes += [tuple(random.randint(1, 90, 3)) for _ in range(20)]
    for m, n, depth in sizes:
        a, b = random.randn(m, depth).astype('float32'), random.randn(depth, n).astype('float32')
        expected = multiply(kernels.product, a, b)
        np.testing.assert_allclose(expected, a.astype(float).dot(b), atol=1e-5 * max(depth, 1))
        for left in in_layouts(a):
            for right in in_layouts(b):
                np.testing.assert_array_equal(multiply(kernels.direct_product, left, right), expected)


def test_narrow_and_shallow_products_at_every_width(kernels):
    random = np.random.RandomState(7)
    sizes = [0, 1, 2, 7, 8, 9, 16, 17, 65, 130]
    for m in sizes:
        for n in sizes:
            for depth in [0, 1, 2, 3, 8, 9, 40, 70]:
                a, b = integers(random, m, depth), integers(random, depth, n)
                if random.rand() < .5:
                    a = np.asfortranarray(a)
                if random.rand() < .5:
                    b = np.asfortranarray(b)
                if random.rand() < .2:
                    a = np.repeat(a, 2, axis=1)[:, ::2]
                np.testing.assert_array_equal(multiply(kernels.product_of, a, b), a.dot(b))


def test_narrow_products_have_the_same_bits_in_any_layout(kernels):
    random = np.random.RandomState(8)
    for m, depth, n in [(33, 100, 3), (100, 20, 8), (5, 200, 70), (40, 8, 40), (70, 1000, 10), (77, 53, 1),
                        (1, 300, 41), (9, 5, 1), (2, 40000, 1), (40, 7, 9), (3, 1857, 18), (150, 90, 4), (150, 90, 5),
                        (4, 90, 150), (140, 17000, 1), (70, 17000, 3), (1, 5, 300), (1, 17, 257), (1, 42, 600),
                        (1, 64, 256), (1, 65, 5), (1, 400, 513)]:
        a, b = random.randn(m, depth).astype('float32'), random.randn(depth, n).astype('float32')
        expected = multiply(kernels.product_of, a, b)
        for left in in_layouts(a):
            for right in in_layouts(b):
                np.testing.assert_array_equal(multiply(kernels.product_of, left, right), expected)


@pytest.mark.parametrize('depth', [1, 6, 17, 42, 64, 70])
def test_a_row_times_a_matrix_keeps_infinity_in_its_column(kernels, depth):
    random = np.random.RandomState(depth)
    a, b = integers(random, 1, depth) + 5, integers(random, depth, 300)
    b[0, 7] = np.inf
    np.testing.assert_array_equal(multiply(kernels.product_of, a, b), a.dot(b))


@pytest.mark.parametrize('name', ['sparse_product', 'sparse_update'])
def test_sparse_products_at_every_width(kernels, name):
    random = np.random.RandomState(0)
    sizes = [(1, 1, 1), (3, 5, 0), (2, 100, 7), (130, 1, 300), (97, 530, 20), (14, 33, 600)]
    sizes += [tuple(random.randint(1, 200, 3)) for _ in range(20)]
    for m, n, depth in sizes:
        a, b = integers(random, m, depth), integers(random, depth, n)
        sparse = a if name == 'sparse_product' else b
        sparse *= random.rand(*sparse.shape) < random.choice([0, .1, .5, 1])
        if depth and random.rand() < .3:  # zeros do not hide what is not a number
            b[random.randint(depth), random.randint(n)] = random.choice([np.nan, np.inf])
            a[random.randint(m), random.randint(depth)] = random.choice([np.nan, -np.inf])
        if random.rand() < .5:
            a = np.asfortranarray(a)
        if random.rand() < .5:
            b = np.asfortranarray(b)
        with np.errstate(invalid='ignore'):
            np.testing.assert_array_equal(multiply(getattr(kernels, name), a, b), a.dot(b))


def mrg_reference(state, n):
    """MRG31k3p in Python's integers: samples, and the state left behind."""
    m1, m2 = 2 ** 31 - 1, 2 ** 31 - 21069
    state = [[int(v) for v in row] for row in state]
    samples = []
    for i in range(n):
        x1, x2, x3, y1, y2, y3 = row = state[i % len(state)]
        x = (2 ** 22 * x2 + (2 ** 7 + 1) * x3) % m1
        y = (2 ** 15 * y1 + (2 ** 15 + 1) * y3) % m2
        row[:] = [x, x1, x2, y, y1, y2]
        samples.append((x - y + m1) if x <= y else x - y)
    # Theano's constant for 2 ** -31, in float32.
    return np.array(samples).astype('float32') * np.float32(4.6566126e-10), np.array(state, 'int32')


def test_mrg_at_every_width(kernels):
    random = np.random.RandomState(0)
    for streams, n in [(1, 5), (3, 2), (16, 16), (7, 100), (33, 500), (64, 257), (100, 99), (5, 0)]:
        state = random.randint(1, 2147462579, (streams, 6)).astype('int32')
        expected, new_state = mrg_reference(state, n)
        ours, got = state.copy(), np.full(n, np.nan, 'float32')
        kernels.uniform(pointer(ours), ctypes.c_long(streams), ctypes.c_long(n), pointer(got))
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(ours, new_state)
        ours, as_bool, as_float = state.copy(), np.zeros(n, bool), np.zeros(n, 'float32')
        kernels.bernoulli(pointer(ours), ctypes.c_long(streams), ctypes.c_long(n), ctypes.c_float(.3),
                          pointer(as_bool), pointer(as_float))
        np.testing.assert_array_equal(as_bool, expected < np.float32(.3))
        np.testing.assert_array_equal(as_float, (expected < np.float32(.3)).astype('float32'))
        np.testing.assert_array_equal(ours, new_state)


# ---- MatMul ----

a, b = T.fmatrix('a'), T.fmatrix('b')


@pytest.fixture(scope='module')
def dot():
    function = theano.function([a, b], T.dot(a, b))
    assert len(nodes(function, MatMul)) == 1
    return function


def laid_out(array, layout):
    """The same matrix in another layout in memory."""
    if layout == 'columns':
        return np.asfortranarray(array)
    if layout == 'gaps':
        wide = np.full((2 * array.shape[0] + 1, 3 * array.shape[1] + 1), np.nan, 'float32')
        wide[1::2, 1::3] = array
        return wide[1::2, 1::3]
    if layout == 'reversed':
        return array[::-1, ::-1].copy()[::-1, ::-1]
    if layout == 'broadcast' and len(array):
        return np.broadcast_to(array[:1], array.shape)
    return array


layouts = st.sampled_from(['rows', 'columns', 'gaps', 'reversed', 'broadcast'])


@settings(max_examples=150, deadline=None)
@given(m=st.integers(0, 120), n=st.integers(0, 120), depth=st.integers(0, 300), left=layouts,
       right=layouts, seed=st.integers(0, 2 ** 31))
def test_dot(dot, m, n, depth, left, right, seed):
    random = np.random.RandomState(seed)
    A = laid_out(integers(random, m, depth), left)
    B = laid_out(integers(random, depth, n), right)
    np.testing.assert_array_equal(dot(A, B), A.dot(B))


def test_dot_of_large_matrices(dot):
    random = np.random.RandomState(0)
    for m, n, depth in [(128, 1100, 2500), (700, 130, 300), (1, 3000, 700)]:
        A, B = random.randn(m, depth).astype('float32'), random.randn(depth, n).astype('float32')
        exact = A.astype('float64').dot(B)
        np.testing.assert_allclose(dot(A, B), exact, atol=1e-5 * np.sqrt(depth) * 4)


@pytest.mark.parametrize('share', [0, .2, .44, .46, 1])
def test_dot_and_update_of_gradients_with_zeros(dot, share):
    """The gradients of a layer with dropout: sparse enough for the lists, or not."""
    random = np.random.RandomState(0)
    g = integers(random, 40, 1100) * (random.rand(40, 1100) < share).astype('float32')
    W, x = integers(random, 700, 1100), integers(random, 40, 700)
    np.testing.assert_array_equal(dot(g, W.T), g.dot(W.T))
    weights, left, right = theano.shared(W), T.fmatrix(), T.fmatrix()
    step = theano.function([left, right], [],
                           updates=[(weights, weights - 2 * T.dot(left.T, right))])
    assert nodes(step, MatMulUpdate)
    step(x, g)
    np.testing.assert_array_equal(weights.get_value(), W - 2 * x.T.dot(g))


def test_dot_passes_nan_and_inf_on(dot):
    random = np.random.RandomState(0)
    A, B = integers(random, 20, 30), integers(random, 30, 40)
    A[3, 4], A[5, 6], B[7, 8] = np.nan, np.inf, -np.inf
    with np.errstate(invalid='ignore'):
        np.testing.assert_array_equal(dot(A, B), A.dot(B))


def test_dot_wants_shapes_that_agree(dot):
    with pytest.raises(ValueError, match='Shape mismatch'):
        dot(np.zeros((2, 3), 'float32'), np.zeros((4, 5), 'float32'))


def test_results_stay_the_callers(dot):
    random = np.random.RandomState(0)
    A, B = integers(random, 9, 8), integers(random, 8, 7)
    first = dot(A, B)
    expected = first.copy()
    dot(-A, B)
    np.testing.assert_array_equal(first, expected)


def test_same_bits_for_any_number_of_threads(dot):
    try:
        openmp = ctypes.CDLL('libgomp.so.1')
    except OSError:
        pytest.skip('not the OpenMP of GCC')
    random = np.random.RandomState(0)
    A, B = random.randn(150, 700).astype('float32'), random.randn(700, 250).astype('float32')
    before = openmp.omp_get_max_threads()
    results = []
    try:
        for threads in (1, 2, 3, 4, 6):
            openmp.omp_set_num_threads(threads)
            results.append(dot(A, B))
    finally:
        openmp.omp_set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize('left, right', [
    (T.dmatrix(), T.dmatrix()), (T.fmatrix(), T.dmatrix()), (T.fvector(), T.fmatrix()),
    (T.frow(), T.fmatrix()), (T.fmatrix(), T.fcol())])
def test_others_stay_with_stock_ops(left, right):
    mode = theano.Mode(linker='py', optimizer=theano.compile.mode.OPT_FAST_RUN)
    assert not nodes(theano.function([left, right], T.dot(left, right), mode=mode), MatMul)


def test_derivatives_of_the_op():
    weights = theano.shared(integers(np.random.RandomState(0), 4, 3))
    random = np.random.RandomState(1)
    A, B = integers(random, 5, 4), integers(random, 4, 3)
    ours, stock = MatMul()(a, b), T.dot(a, b)
    both = []
    for product in (ours, stock):
        both += theano.grad((product ** 2).sum(), [a, b]) + [T.Rop(product, b, b * 2)]
    results = theano.function([a, b], both, mode=theano.Mode(linker='py'))(A, B)
    for got, expected in zip(results[:3], results[3:]):
        np.testing.assert_array_equal(got, expected)
    del weights


# ---- layers ----

def dense_net(inputs, p=.5, b=lasagne.init.Constant(0.)):
    """Flattening, ReLU, dropout, a layer without bias, a linear one."""
    lasagne.random.set_rng(np.random.RandomState(3))
    layer = InputLayer((None, 3, 4, 5), inputs)
    layer = DropoutLayer(DenseLayer(layer, 50, b=b), p=p)
    layer = DenseLayer(layer, 40, b=None)
    return DenseLayer(layer, 7, nonlinearity=None, b=b)


def test_dense_layers_and_gradients():
    """Values and gradients against float64, with exact zeros at the ReLU and with NaN."""
    x = T.tensor4('x')
    net = dense_net(x, p=0)
    out = get_output(net)
    params = get_all_params(net)
    cost = (out ** 2).sum()
    expressions = [out] + theano.grad(cost, params + [x])
    ours = theano.function([x], expressions)
    assert len(nodes(ours, MatMul)) == 9
    stock = theano.function([x], expressions, mode=STOCK)
    random = np.random.RandomState(0)
    for param in params:
        param.set_value(random.randint(-2, 3, param.get_value().shape).astype('float32'))
    for rows in (1, 6, 33):
        X = random.randint(-1, 2, (rows, 3, 4, 5)).astype('float32')
        X[0] = 0  # with biases of 0 among others, all units of the first layer are exactly 0
        params[1].set_value(random.randint(-1, 2, 50).astype('float32'))
        for got, expected in zip(ours(X), stock(X)):
            np.testing.assert_allclose(got, expected, rtol=1e-5)
        X[0, 0, 0, 0], X[0, 0, 0, 1] = np.nan, np.inf
        for got, expected in zip(ours(X), stock(X)):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))


RULES = {
    'sgd': lambda loss, params: updates.sgd(loss, params, .1),
    'momentum': lambda loss, params: updates.momentum(loss, params, .1),
    'nesterov_momentum': lambda loss, params: updates.nesterov_momentum(
        loss, params, theano.shared(np.float32(.1)), theano.shared(np.float32(.9))),
    'adagrad': lambda loss, params: updates.adagrad(loss, params, .1),
    'rmsprop': lambda loss, params: updates.rmsprop(loss, params, .01),
    'adadelta': updates.adadelta,
    'adam': updates.adam,
}


def train(rule, steps=10, mode=None):
    """Losses and parameters of a few steps, and the function that made them."""
    x, y = T.tensor4('x'), T.matrix('y')
    net = dense_net(x, b=None)  # stock Ops update biases, and take long to compile
    loss = ((get_output(net) - y) ** 2).mean()
    params = get_all_params(net, trainable=True)
    function = theano.function([x, y], loss, updates=rule(loss, params), mode=mode)
    random = np.random.RandomState(0)
    X, Y = random.randn(20, 3, 4, 5).astype('float32'), random.randn(20, 7).astype('float32')
    losses = [float(function(X, Y)) for _ in range(steps)]
    return function, losses, [param.get_value() for param in params]


@pytest.mark.parametrize('name', sorted(RULES))
def test_update_rules(name):
    """Ten steps with dropout: same masks, losses and parameters as stock Theano."""
    function, losses, params = train(RULES[name])
    products = nodes(function, MatMulUpdate)
    assert len(products) == 3
    for node in products:
        assert len(node.op.inplace) == len(node.outputs)
    assert len(nodes(function, MRGBernoulli)) == 1
    cpu.disable()
    function, stock_losses, stock_params = train(RULES[name], mode=STOCK)
    assert not nodes(function, (MatMul, MatMulUpdate, MRGBernoulli, MRGUniform))
    np.testing.assert_allclose(losses, stock_losses, rtol=1e-5)
    for got, expected in zip(params, stock_params):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-5)


class Step:
    """One update of a matrix by a gradient ``dot(a.T, g)`` whose parts are given."""

    def __init__(self, mode=None, shape=(30, 20), and_return=None, seed=0):
        self.A, self.G = T.fmatrix('A'), T.fmatrix('G')
        self.random = np.random.RandomState(seed)
        self.W = theano.shared(integers(self.random, *shape))
        self.v = theano.shared(integers(self.random, *shape))
        self.gradient = T.dot(self.A.T, self.G)
        velocity = np.float32(.5) * self.v - self.gradient
        new = self.W + velocity
        outputs = {None: [], 'gradient': [self.gradient], 'W': [self.W * 1], 'new': [new]}[and_return]
        self.function = theano.function([self.A, self.G], outputs, mode=mode,
                                        updates=[(self.v, velocity), (self.W, new)])

    def __call__(self, A, G):
        return self.function(A, G)

    def check(self, depth):
        W, v = self.W.get_value(), self.v.get_value()
        A, G = integers(self.random, depth, len(W)), integers(self.random, depth, W.shape[1])
        results = self(A, G)
        new_v = np.float32(.5) * v - A.T.dot(G)
        np.testing.assert_array_equal(self.v.get_value(), new_v)
        np.testing.assert_array_equal(self.W.get_value(), W + new_v)
        return W, A.T.dot(G), results


def test_updates_of_any_size_and_depth():
    step = Step()
    assert len(nodes(step.function, MatMulUpdate)) == 1
    for m, n, depth in [(1, 1, 1), (30, 20, 7), (6, 16, 128), (13, 35, 0), (201, 530, 130), (20, 9, 2500)]:
        step.W.set_value(integers(step.random, m, n))
        step.v.set_value(integers(step.random, m, n))
        step.check(depth)


def test_updates_in_place_and_in_any_layout():
    step = Step()
    W = np.asfortranarray(integers(step.random, 30, 20))
    wide = integers(step.random, 30, 40)
    step.W.set_value(W, borrow=True)
    step.v.set_value(wide[:, ::2], borrow=True)
    gaps = wide[:, 1::2].copy()
    step.check(9)
    assert step.W.get_value(borrow=True) is W
    np.testing.assert_array_equal(wide[:, ::2], step.v.get_value())
    np.testing.assert_array_equal(wide[:, 1::2], gaps)


def test_others_who_need_the_gradient_or_the_old_values():
    step = Step(and_return='gradient')
    assert not nodes(step.function, MatMulUpdate)
    _, gradient, (got,) = step.check(5)
    np.testing.assert_array_equal(got, gradient)

    step = Step(and_return='W')
    old, _, (got,) = step.check(5)
    np.testing.assert_array_equal(got, old)

    step = Step(and_return='new')
    _, _, (got,) = step.check(5)
    np.testing.assert_array_equal(got, step.W.get_value())
    new = got.copy()
    step.check(5)
    np.testing.assert_array_equal(got, new)


@pytest.mark.parametrize('transpose', [False, True])
def test_a_factor_of_the_product_is_not_overwritten(transpose):
    """W + dot(W, A): tiles written early must not change W for tiles computed late."""
    A = T.fmatrix('A')
    random = np.random.RandomState(0)
    value, factor = integers(random, 120, 120), integers(random, 120, 120)
    W = theano.shared(value)
    function = theano.function([A], [], updates=[(W, W + T.dot(W.T if transpose else W, A))])
    node, = nodes(function, MatMulUpdate)
    assert not node.op.inplace
    function(factor)
    np.testing.assert_array_equal(W.get_value(), value + (value.T if transpose else value).dot(factor))


@pytest.mark.parametrize('count', [2, 3, 11])
def test_gradients_that_are_sums_of_products(count):
    """Weights used in several places: one Op takes up to eight products, whatever stands between them."""
    random = np.random.RandomState(0)
    As, Gs = [[T.fmatrix() for _ in range(count)] for _ in range(2)]
    products = [T.dot(A.T, G) for A, G in zip(As, Gs)]
    gradient = products[0] - 2 * sum(products[1:])
    W, v = [theano.shared(np.zeros((1, 1), 'float32')) for _ in range(2)]
    new_v = np.float32(.5) * v - gradient
    function = theano.function(As + Gs, [], updates=[(v, new_v), (W, W + new_v)])
    node, = nodes(function, MatMulUpdate)
    assert node.op.products == min(count, 8)
    assert len(nodes(function, MatMul)) == count - node.op.products

    depths = np.arange(count)
    for m, n, depth, zeros in [(30, 20, 7, 0), (6, 16, 128, 0), (130, 530, 20, 0), (20, 5, 3, 0), (20, 9, 2500, 0),
                               (300, 70, 40, .9)]:
        values = [integers(random, depth + k, size) for size in (m, n) for k in depths]
        for G in values[count:]:
            G *= random.rand(*G.shape) >= zeros
        old_W, old_v = integers(random, m, n), integers(random, m, n)
        W.set_value(old_W)
        v.set_value(old_v)
        function(*values)
        expected = [A.T.dot(G) for A, G in zip(values, values[count:])]
        expected = np.float32(.5) * old_v - (expected[0] - 2 * sum(expected[1:]))
        np.testing.assert_array_equal(v.get_value(), expected)
        np.testing.assert_array_equal(W.get_value(), old_W + expected)

    values[-1] = values[-1][:, 1:]
    with pytest.raises(ValueError, match='mis-match'):
        function(*values)


@pytest.mark.parametrize('engine', [None, theano.Mode(linker='py', optimizer=theano.compile.mode.OPT_FAST_RUN)])
def test_tied_weights(engine):
    """W is a factor of its own update, and its gradient a sum of two products."""
    x = T.fmatrix()
    results = []
    for mode, count in (engine, 1), (STOCK, 0):
        random = np.random.RandomState(0)
        W = theano.shared(random.randn(30, 20).astype('float32'))
        loss = ((T.dot(T.tanh(T.dot(x, W)), W.T) - x) ** 2).mean()
        function = theano.function([x], loss, updates=updates.sgd(loss, [W], .1), mode=mode)
        assert [node.op.products for node in nodes(function, MatMulUpdate)] == [2] * count
        results.append([function(random.randn(8, 30).astype('float32')) for _ in range(5)] + [W.get_value()])
    for got, expected in zip(*results):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_update_wants_shapes_that_agree():
    step = Step()
    with pytest.raises(ValueError, match='mis-match'):
        step(np.zeros((2, 30), 'float32'), np.zeros((2, 21), 'float32'))


def test_update_by_the_python_linker():
    mode = theano.Mode(linker='py', optimizer=theano.compile.mode.OPT_FAST_RUN)
    step = Step(mode=mode)
    assert nodes(step.function, MatMulUpdate)[0].op.inplace
    step.check(4)


def test_l2_and_scaled_gradients():
    """Terms that nolearn adds to losses and gradients become part of the rule."""
    A, G = T.fmatrix(), T.fmatrix()
    random = np.random.RandomState(0)
    values = []
    for mode in (None, STOCK):
        W = theano.shared(np.random.RandomState(0).randn(10, 8).astype('float32'))
        loss = (T.dot(A, W) * G).sum() + .01 * (W ** 2).sum()
        gradient = 2 * theano.grad(loss, W)
        function = theano.function([A, G], loss, updates=updates.nesterov_momentum([gradient], [W], .01),
                                   mode=mode)
        random = np.random.RandomState(1)
        for _ in range(3):
            function(random.randn(5, 10).astype('float32'), random.randn(5, 8).astype('float32'))
        values.append(W.get_value())
        assert len(nodes(function, MatMulUpdate)) == (mode is None)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-6)


def test_norm_constraint_reads_the_new_weights():
    A, G = T.fmatrix(), T.fmatrix()
    values = []
    for mode in (None, STOCK):
        W = theano.shared(np.random.RandomState(0).randn(10, 8).astype('float32'))
        rule = updates.sgd([T.dot(A.T, G)], [W], .1)
        rule[W] = updates.norm_constraint(rule[W], 1.)
        function = theano.function([A, G], [], updates=rule, mode=mode)
        random = np.random.RandomState(1)
        function(random.randn(5, 10).astype('float32'), random.randn(5, 8).astype('float32'))
        values.append(W.get_value())
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4, atol=1e-6)


# ---- random numbers ----

def sampler(kind, mode):
    """A function of a size that draws samples of two dimensions, and its state."""
    streams = MRG_RandomStreams(1)
    size = T.lvector()
    shape = (size[0], size[1])
    sample = {'uniform': lambda: streams.uniform(shape),
              'bool': lambda: streams.uniform(shape) < np.float32(.3),
              'float': lambda: streams.binomial(shape, p=.3, dtype='float32')}[kind]()
    function = theano.function([size], sample, mode=mode)
    (state, _, _, _), = streams.state_updates
    return function, state


@pytest.fixture(scope='module', params=['uniform', 'bool', 'float'])
def samplers(request):
    ours, stock = sampler(request.param, None), sampler(request.param, STOCK_C)
    assert len(nodes(ours[0], MRGUniform if request.param == 'uniform' else MRGBernoulli)) == 1
    return ours, stock


@settings(max_examples=60, deadline=None)
@given(streams=st.integers(1, 300), rows=st.integers(1, 40), columns=st.integers(1, 60),
       seed=st.integers(1, 2147462578), calls=st.integers(1, 3))
def test_the_stream_of_theano(samplers, streams, rows, columns, seed, calls):
    (ours, our_state), (stock, stock_state) = samplers
    state = np.random.RandomState(seed).randint(1, 2147462579, (streams, 6)).astype('int32')
    our_state.set_value(state)
    stock_state.set_value(state)
    for _ in range(calls):
        np.testing.assert_array_equal(ours([rows, columns]), stock([rows, columns]))
        np.testing.assert_array_equal(our_state.get_value(), stock_state.get_value())


def test_many_samples_of_the_usual_number_of_streams(samplers):
    (ours, our_state), (stock, stock_state) = samplers
    state = np.random.RandomState(0).randint(1, 2147462579, (60 * 256, 6)).astype('int32')
    our_state.set_value(state)
    stock_state.set_value(state)
    np.testing.assert_array_equal(ours([1001, 1003]), stock([1001, 1003]))
    np.testing.assert_array_equal(our_state.get_value(), stock_state.get_value())


def test_a_sample_that_somebody_else_reads():
    """Comparing and reading the same sample stays one draw."""
    streams = MRG_RandomStreams(5)
    sample = streams.uniform((3, 4))
    function = theano.function([], [sample, sample < np.float32(.5)])
    assert len(nodes(function, MRGUniform)) == 1 and not nodes(function, MRGBernoulli)
    uniform, less = function()
    np.testing.assert_array_equal(less, uniform < .5)
