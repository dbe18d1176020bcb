"""Theano gives the same types and numbers on NumPy 2 as on NumPy 1.26.

Expected types are those that NumPy 1.26 gives; numbers are checked against NumPy.
"""
import copy
import pickle

import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
import theano
import theano.tensor as T
from theano.compile.debugmode import DebugMode
from theano.sandbox.rng_mrg import MRG_RandomStreams
from theano.tensor.fft import irfft, rfft

# Python code of Ops, without C code; C code, with few rewrites.
PYTHON = theano.compile.Mode('vm', None)
PYTHON.linker.c_thunks = False
C = theano.compile.Mode('cvm', 'fast_compile')
MODES = pytest.mark.parametrize('mode', [PYTHON, C], ids=['python', 'c'])


# ------------------------------------------------------------------------------- types of numbers

@pytest.mark.parametrize('floatX, number, dtype', [
    ('float64', .1, 'float64'), ('float64', .5, 'float32'), ('float64', 1e300, 'float64'),
    ('float32', .1, 'float32'), ('float64', 3., 'float32'), ('float32', np.float64(.1), 'float64'),
    ('float64', np.float32(.1), 'float32'), ('float64', 127, 'int8'), ('float64', 128, 'int16'),
    ('float64', 300, 'int16'), ('float64', -1, 'int8'), ('float64', -129, 'int16'),
    ('float64', 2 ** 31, 'int64'), ('float64', 2 ** 63, 'uint64'), ('float64', np.int8(3), 'int8'),
    ('float64', [1, 2.5], 'float64'), ('float64', [2 ** 40], 'int64'), ('float64', True, 'int8'),
    ('float64', np.bool_(True), 'bool')])
def test_constants(floatX, number, dtype):
    with theano.configparser.change_flags(floatX=floatX):
        constant = T.constant(number)
    assert constant.dtype == dtype
    np.testing.assert_array_equal(constant.data, np.asarray(number, dtype))


@pytest.mark.parametrize('vector, number, dtype', [
    ('int8', 1, 'int8'), ('int8', 300, 'int16'), ('int8', .1, 'float64'), ('uint8', -1, 'int16'),
    ('uint8', 300, 'int16'), ('float32', .1, 'float64'),
    ('float32', .5, 'float32'), ('float32', 2 ** 40, 'float64'), ('float64', 1, 'float64'),
    ('int64', np.float32(1), 'float64'), ('float32', np.float64(1), 'float64')])
def test_promotion(vector, number, dtype):
    with theano.configparser.change_flags(floatX='float64'):
        assert (T.vector(dtype=vector) + number).dtype == dtype


@pytest.mark.parametrize('dtype, number', [
    ('int8', 300), ('uint8', -1), ('int32', 2 ** 40), ('int8', .5), ('float32', .1)])
def test_numbers_that_a_type_cannot_hold(dtype, number):
    for kind in (T.scalar(dtype=dtype), theano.scalar.Scalar(dtype)()):
        with theano.configparser.change_flags(floatX='float64'):
            with pytest.raises(TypeError):
                kind.type.filter(number)
            assert kind.type.filter(number, allow_downcast=True) == np.asarray(number).astype(dtype)


def test_theano_types_as_dtypes():
    kind = theano.scalar.float32
    assert theano.scalar.upcast(kind, 'int8') == 'float32'
    assert theano._asarray(1, kind).dtype == np.float32
    x = T.fvector()
    gradients = [theano.grad(f(x).sum(), x) for f in (T.deg2rad, T.arccos, T.exp2, T.arctanh)]
    assert [g.dtype for g in gradients] == ['float32'] * 4


# ------------------------------------------------------------------------------------ Ops

@MODES
@pytest.mark.parametrize('dtype, shape, inc_shape', [(dtype, (6, 5), (8, 5)) for dtype in (
    'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float16', 'float32',
    'float64', 'complex64', 'complex128')] + [('float32',) + shapes for shapes in (
        ((6,), (8,)), ((6,), ()), ((6, 5), (5,)), ((6, 5), (8, 1)), ((6, 0), (8, 0)),
        ((6, 2, 3, 4), (8, 2, 3, 4)), ((6, 2, 3, 4), (1, 3, 1)))])
def test_increments(mode, dtype, shape, inc_shape):
    """Rows that are there several times, and negative ones, in memory in any order."""
    random = np.random.RandomState(0)
    index = np.array([0, 3, 3, -1, 5, 2, 0, 3])

    def numbers(shape):
        real = random.randint(0, 7, shape)
        imag = random.randint(0, 7, shape) if 'complex' in dtype else 0
        return (real + 1j * imag if 'complex' in dtype else real).astype(dtype)

    x, inc = numbers(shape[::-1]).T, numbers(inc_shape[::-1]).T  # columns one after the other
    a = T.TensorType(dtype, (False,) * x.ndim)()
    b = T.TensorType(dtype, tuple(n == 1 for n in inc.shape))()
    i = T.lvector()
    both = theano.function([a, b, i], [T.inc_subtensor(a[i], b), T.set_subtensor(a[i], b)],
                           mode=mode)
    for xs, incs in ((x, inc), (np.ascontiguousarray(x), np.array(inc, order='C'))):
        added, put = both(xs, incs, index)
        expected = xs.copy()
        np.add.at(expected, index, incs)
        np.testing.assert_array_equal(added, expected)
        expected = xs.copy()
        expected[index] = incs
        np.testing.assert_array_equal(put, expected)


def test_increments_out_of_bounds():
    a, b, i = T.fmatrix(), T.fmatrix(), T.lvector()
    add = theano.function([theano.In(a, borrow=True, mutable=True), b, i],
                          T.inc_subtensor(a[i], b), mode=C, accept_inplace=True)
    x, ones = np.zeros((3, 2), 'float32'), np.ones((2, 2), 'float32')
    for wrong in (3, -4):
        with pytest.raises(IndexError, match='out of bounds for axis 0 with size 3'):
            add(x, ones, [0, wrong])
    with pytest.raises(ValueError, match='broadcast'):
        add(x, np.ones((3, 2), 'float32'), [0, 1])
    np.testing.assert_array_equal(x, 0)


@MODES
def test_inverse_of_unique(mode):
    x = T.lmatrix()
    values = np.array([[3, 1], [1, 2]])
    out = theano.function([x], T.extra_ops.Unique(True, True, True)(x), mode=mode)(values)
    for ours, expected in zip(out, ([1, 2, 3], [1, 3, 0], [2, 0, 0, 1], [2, 1, 1])):
        assert ours.ndim == 1
        np.testing.assert_array_equal(ours, expected)


@MODES
def test_small_integers_do_not_wrap(mode):
    x = T.fmatrix()
    ones = np.ones((250, 130), 'float32')
    offset = T.constant(-100, dtype='int8')
    filled = theano.function([x], T.extra_ops.fill_diagonal_offset(x, 0, offset), mode=mode)(ones)
    np.testing.assert_array_equal(filled, 1 - np.eye(250, 130, -100))
    sizes = T.constant(np.int8([100, 100, 50]))
    parts = theano.function([x], T.split(x, sizes, 3), mode=mode)(ones)
    assert [len(part) for part in parts] == [100, 100, 50]
    v = T.lvector()
    step = np.int8(100)
    picked = theano.function([v], v[::T.constant(step)][::3])(np.arange(1000))
    np.testing.assert_array_equal(picked, np.arange(1000)[::100][::3])


@MODES
def test_numbers_in_python_code_are_as_precise(mode):
    x = T.dvector()
    values = np.array([3., .1])
    for ours, numpys in ((T.inv, np.reciprocal), (T.cosh, np.cosh), (T.exp2, np.exp2),
                         (T.expm1, np.expm1)):
        out = theano.function([x], ours(x), mode=mode)(values)
        np.testing.assert_allclose(out, numpys(values), rtol=1e-14)


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'uint16', 'int64'])
def test_minus_one_of_any_type(dtype):
    x = T.vector(dtype=dtype)
    values = np.arange(3).astype(dtype)
    np.testing.assert_array_equal(theano.function([x], -x)(values), -values)
    product = theano.function([x], x * T.constant(-1, dtype='int8') * x)(values)
    np.testing.assert_array_equal(product, -np.square(values.astype(product.dtype)))


def test_random_numbers_are_the_same_in_python_and_c():
    draws = [theano.function([], MRG_RandomStreams(5).uniform((20,), nstreams=4), mode=mode)()
             for mode in (PYTHON, C)]
    np.testing.assert_allclose(*draws, rtol=2e-7)


@MODES
def test_complex_numbers(mode):
    x, y = T.zvector(), T.cvector()
    a, b = np.array([1 + 2j, -3j]), np.array([2 - 1j, 4 + 1j], 'complex64')
    out = theano.function([x, y], [x * y, x - y, y + 1, T.real(x), x.sum(), abs(y)],
                          mode=mode)(a, b)
    for ours, expected in zip(out, (a * b, a - b, b + 1, a.real, a.sum(), abs(b))):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_fourier_transforms_are_computed_in_double_precision():
    x = T.fmatrix()
    values = np.random.RandomState(0).rand(4, 32).astype('float32')
    there, back = theano.function([x], [rfft(x), irfft(rfft(x))], mode=PYTHON)(values)
    assert there.dtype == back.dtype == 'float32'
    expected = np.fft.rfft(values.astype('float64'))
    np.testing.assert_array_equal(there[..., 0], expected.real.astype('float32'))
    np.testing.assert_allclose(back, values, atol=1e-6)


def test_reductions_over_all_axes_in_c():
    x = T.fmatrix()
    values = np.arange(6, dtype='float32').reshape(2, 3)
    out = theano.function([x], [T.argmax(x), T.max(x), T.cumsum(x), T.cumprod(x + 1)],
                          mode=C)(values)
    for ours, expected in zip(out, (5, 5, values.cumsum(), (values + 1).cumprod())):
        np.testing.assert_array_equal(ours, expected)


def test_debug_mode():
    x = T.fvector()
    f = theano.function([x], T.inc_subtensor(x[[0, 0]], 1).sum() * 2, mode=DebugMode(
        check_py_code=True, check_c_code=True))
    assert f(np.ones(3, 'float32')) == 10


def test_random_states_in_pickles():
    """As NumPy 1 wrote them: with the state once, and names that safe_pickle knows."""
    random = np.random.RandomState(3)
    random.normal(size=3)  # one number of a pair is kept
    data = pickle.dumps(random, -1)
    assert len(data) < 3000 and b'_mt19937' not in data
    expected = copy.deepcopy(random).normal(size=5)
    np.testing.assert_array_equal(pickle.loads(data).normal(size=5), expected)
    np.testing.assert_array_equal(random.normal(size=5), expected)


def test_asscalar():
    assert np.asscalar(np.array([3.5])) == 3.5


@pytest.mark.parametrize('name', ['vstack', 'hstack', 'dstack', 'column_stack', 'stack'])
def test_stacks_of_iterators(name):
    """As scripts of Python 2, whose map was a list, and of early NumPy have them."""
    stack, arrays = getattr(np, name), [np.arange(3), np.ones(3)]
    expected = stack(arrays)
    np.testing.assert_array_equal(stack(array for array in arrays), expected)
    np.testing.assert_array_equal(stack(map(np.copy, arrays)), expected)
    if name in ('vstack', 'hstack', 'stack'):
        assert stack(tuple(arrays), dtype='float32').dtype == 'float32'
    assert pickle.loads(pickle.dumps(stack)) is stack
    with pytest.raises(ValueError):
        stack(iter([]))


def test_other_peoples_arrays_are_stacked_by_themselves():
    da = pytest.importorskip('dask.array')
    assert isinstance(np.vstack([da.ones(3), da.ones(3)]), da.Array)


@pytest.mark.parametrize('name', ['linspace', 'logspace', 'geomspace'])
def test_points_counted_in_floats(name):
    """As early NumPy counted them: what is not whole is cut off."""
    points = getattr(np, name)
    for num in (np.sqrt(16), 4., np.float32(4.5)):
        np.testing.assert_array_equal(points(1, 10, num), points(1, 10, 4))
    assert len(points(1, 10)) == 50
    np.testing.assert_array_equal(points(1, 10, num=4., endpoint=False),
                                  points(1, 10, 4, endpoint=False))
    assert pickle.loads(pickle.dumps(points)) is points
    with pytest.raises(TypeError):
        points(1, 10, '4')
