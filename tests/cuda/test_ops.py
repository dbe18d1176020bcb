"""Every Op that has a converter: value and gradient against Theano's own, on random shapes.

The reference is Theano's C code.  Ops of which there are hundreds of kinds are first compared with
its Python code (NumPy, SciPy), graph by graph as they are written, and in the end with C code, Op by
Op.
"""
import numpy as np
import pytest
import theano
import theano.tensor as tt
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import C, check, check_against_c, check_all, collect_samples
from theano import scalar
from theano.tensor import elemwise, extra_ops, nnet
from theano.tensor.blas import batched_dot
from theano.tensor.nnet import abstract_conv
from theano.tensor.signal import pool

MODES = ['eager']
rng = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def collected():
    with collect_samples():
        yield


def floats(*shape):
    return rng.randn(*shape).astype('float32')


# ------------------------------------------------------------------------------------ elementwise

ANY = lambda shape: rng.uniform(-3, 3, shape)  # noqa: E731
POSITIVE = lambda shape: rng.uniform(0.1, 3, shape)  # noqa: E731
SMALL = lambda shape: rng.uniform(-0.9, 0.9, shape)  # noqa: E731

UNARY = [
    ('abs_', ANY), ('sgn', ANY), ('ceil', ANY), ('floor', ANY), ('trunc', ANY),
    ('round_half_to_even', ANY), ('round_half_away_from_zero', ANY), ('neg', ANY),
    ('inv', POSITIVE),
    ('log', POSITIVE), ('log2', POSITIVE), ('log10', POSITIVE), ('log1p', POSITIVE), ('exp', ANY),
    ('exp2', ANY), ('expm1', ANY), ('sqr', ANY), ('sqrt', POSITIVE), ('deg2rad', ANY),
    ('rad2deg', ANY), ('cos', ANY), ('arccos', SMALL), ('sin', ANY), ('arcsin', SMALL),
    ('tan', SMALL),
    ('arctan', ANY), ('cosh', ANY), ('arccosh', lambda shape: rng.uniform(1.1, 3, shape)),
    ('sinh', ANY), ('arcsinh', ANY), ('tanh', ANY), ('arctanh', SMALL), ('erf', ANY), ('erfc', ANY),
    ('erfinv', SMALL), ('gammaln', POSITIVE), ('psi', POSITIVE), ('j0', ANY), ('j1', ANY),
    ('i0', ANY), ('i1', ANY), ('nnet.sigmoid', ANY), ('nnet.softplus', ANY),
    ('nnet.nnet.softsign', ANY), ('nnet.relu', ANY), ('nnet.elu', ANY), ('nnet.hard_sigmoid', ANY),
    ('identity_like', ANY)]


# Some of Theano's gradients have no C code or are zero by definition.
WITHOUT_GRADIENT = 'psi', 'j1', 'i0', 'i1'


def some_at_a_time(cases, size=12):
    """Parts of a list, for one function each."""
    return [cases[i:i + size] for i in range(0, len(cases), size)]


@pytest.mark.parametrize('cases', [
    *some_at_a_time([case for case in UNARY if case[0] not in WITHOUT_GRADIENT]),
    [case for case in UNARY if case[0] in WITHOUT_GRADIENT]],
    ids=lambda cases: ' '.join(name for name, _ in cases))
def test_unary(cases):
    graphs = {}
    for name, sample in cases:
        function = tt
        if name == 'identity_like':
            function = lambda x: tt.tensor_copy(x)  # noqa: E731
        else:
            for part in name.split('.'):
                function = getattr(function, part)
        x = tt.matrix()
        graphs[name] = [x], function(x), [sample((3, 4)).astype('float32')]
    check_all(graphs, rtol=1e-4, gradients=cases[0][0] not in WITHOUT_GRADIENT)


BINARY = [
    ('add', ANY), ('sub', ANY), ('mul', ANY), ('true_div', POSITIVE), ('int_div', POSITIVE),
    ('mod', POSITIVE), ('pow', POSITIVE), ('arctan2', ANY), ('maximum', ANY), ('minimum', ANY),
    ('lt', ANY), ('gt', ANY), ('le', ANY), ('ge', ANY), ('eq', ANY), ('neq', ANY), ('second', ANY)]
SHAPES = [((3, 4), (3, 4)), ((3, 4), (1, 4)), ((3, 1), (1, 4)), ((1, 4), (3, 4)), ((3, 4), ())]


@pytest.mark.parametrize('name, sample', BINARY, ids=[name for name, _ in BINARY])
def test_binary(name, sample):
    graphs = {}
    for shapes in SHAPES:
        x, y = (tt.TensorType('float32', [n == 1 for n in shape])() for shape in shapes)
        values = [np.asarray(sample(shape), 'float32') for shape in shapes]
        graphs[str(shapes)] = [x, y], getattr(tt, name)(x, y), values
    check_all(graphs, rtol=1e-4,
              gradients=name not in ('int_div', 'lt', 'gt', 'le', 'ge', 'eq', 'neq'))


@pytest.mark.parametrize('names, gradients', [
    (['add', 'sub', 'mul', 'true_div', 'maximum', 'minimum', 'pow', 'mod'], True),
    (['lt', 'ge', 'eq'], False)])
def test_with_a_constant(names, gradients):
    graphs = {}
    for name in names:
        x, y = tt.matrix(), tt.matrix()
        for text, variable, args in (f'{name}(x, 2)', x, (x, 2)), (f'{name}(2, x)', y, (2, y)):
            graphs[text] = ([variable], getattr(tt, name)(*args),
                            [POSITIVE((3, 4)).astype('float32')])
    check_all(graphs, gradients)


@pytest.mark.parametrize('name', ['add', 'sub', 'mul', 'int_div', 'mod', 'maximum', 'lt', 'eq',
                                  'and_', 'or_', 'xor', 'true_div'])
def test_dtypes(name):
    graphs = {}
    for dtypes in [('int64', 'int64'), ('int32', 'int8'), ('uint8', 'int64'), ('float32', 'int32'),
                   ('float64', 'float32')]:
        if name in ('and_', 'or_', 'xor') and 'float32' in dtypes:
            continue
        x, y = (tt.TensorType(dtype, (False, False))() for dtype in dtypes)
        values = [rng.randint(1, 50, (3, 4)).astype(dtype) for dtype in dtypes]
        if dtypes[0] == 'int64':
            values[0] -= 25  # floors towards minus infinity
        graphs[str(dtypes)] = [x, y], getattr(tt, name)(x, y), values
    check_all(graphs, gradients=False)


DTYPES = ['bool', 'uint8', 'int8', 'int32', 'int64', 'float32', 'float64']


@pytest.mark.parametrize('source', DTYPES)
def test_cast(source):
    x = tt.TensorType(source, (False, False))()
    value = rng.uniform(0, 4, (3, 4)).astype(source)
    check([x], [tt.cast(x, target) for target in DTYPES], [value], gradients=False)


def test_logic():
    x, y, c = tt.matrix(), tt.matrix(), tt.matrix()
    check([x, y, c], [tt.switch(c > 0, x, y), tt.switch(c > 0, x, 2), tt.switch(c > 0, 0, y),
                      tt.switch(c, x, y), tt.clip(x, -0.5, 0.5), tt.clip(x, y, c),
                      tt.clip(x, 0.3, c)], [floats(3, 4) for _ in range(3)])
    b = tt.TensorType('bool', (False, False))()
    bools = rng.rand(3, 4) > 0.5
    check([x, b], [tt.invert(b), tt.and_(b, x > 0), tt.or_(b, x > 0), tt.isnan(x), tt.isinf(x),
                   tt.all(b), tt.any(b, axis=0), tt.all(b, axis=1)], [floats(3, 4), bools],
          gradients=False)


def test_nan_and_infinity_stay():
    x, y = tt.vectors('xy')
    value = np.array([np.nan, np.inf, -np.inf, 0, 1], 'float32')
    check([x, y], [tt.maximum(x, y), tt.maximum(x, 0), tt.minimum(1, x), tt.sgn(x), tt.nnet.relu(x),
                   tt.clip(x, -1, 1), tt.exp(x), tt.nnet.sigmoid(x), tt.max(x), tt.argmax(x),
                   tt.nnet.softplus(x)],
          [value, value[::-1].copy()], gradients=False)


def test_composite():
    # Fusion is left out of the device's mode, but a graph may hold a Composite of its own.
    a, b = scalar.float32('a'), scalar.float32('b')
    composite = scalar.Composite([a, b], [scalar.exp(a) * b + scalar.constant(np.float32(2)) - b])
    x, y = tt.matrix(), tt.matrix()
    check([x, y], elemwise.Elemwise(composite)(x, y), [floats(3, 4), floats(3, 4)], gradients=False)


def test_a_scalar_that_depends_on_the_device():
    x, a = tt.matrix(), tt.scalar()
    check([x, a], [x * a, a / x.sum(), (x / x.size).sum(), x.mean(0), x.std()],
          [floats(3, 4), np.float32(3)])


# ------------------------------------------------------------------------------------- reductions

@pytest.mark.parametrize('name', ['sum', 'prod', 'max', 'min', 'mean', 'var', 'argmax'])
def test_reductions(name):
    graphs = {}
    for axis in None, 0, 1, 2, (0, 1), (0, 2), (1, 2), (0, 1, 2):
        x = tt.tensor3()
        graphs[str(axis)] = ([x], getattr(tt, name)(x, axis=axis),
                             [POSITIVE((2, 3, 4)).astype('float32')])
    check_all(graphs, gradients=name != 'argmax')


def test_more_reductions():
    x, i = tt.tensor3(), tt.imatrix()
    value = floats(2, 3, 4)
    value[0, 1, 2] = 0
    check([x], [tt.prod(x, axis=1), tt.sum(x, keepdims=True), tt.max(x, axis=1, keepdims=True),
                tt.max_and_argmax(x, axis=1)[0], x.norm(2)], [value])
    check([x], tt.max_and_argmax(x, axis=(0, 2)), [value], gradients=False)
    check([x], [elemwise.ProdWithoutZeros(axis=axis)(x) for axis in (None, 0, (1, 2))],
          [np.round(value)], gradients=False)
    check([x], elemwise.ProdWithoutZeros()(x), [value * 0], gradients=False)
    check([i], [i.sum(), i.prod(axis=0), i.max(), i.min(axis=1), i.mean()],
          [rng.randint(1, 5, (3, 4)).astype('int32')], gradients=False)


# ------------------------------------------------------------------------------- shapes, indexing

def test_shapes():
    x = tt.tensor4()
    check([x], [x.dimshuffle(2, 0, 'x', 1, 3), x.reshape((x.shape[0], -1)), x.flatten(2),
                x.flatten(), x.reshape((4, 6, 5)), x.T, tt.shape_padleft(x), x.swapaxes(1, 3),
                tt.alloc(x.sum(), x.shape[0], 3), tt.zeros_like(x), tt.fill(x, 2.) + x,
                tt.ones((x.shape[1], 2)) * x.sum(), tt.tile(x, (1, 2, 1, 1)),
                tt.patternbroadcast(x, (False,) * 4),
                tt.addbroadcast(x.sum(0, keepdims=True), 0)], [floats(2, 3, 4, 5)])
    check([x], [x.shape, x.shape[1], x.size, x.shape[0] * 2.5, tt.arange(x.shape[2]) * 2,
                x.ndim + tt.zeros(3)], [floats(2, 3, 4, 5)], gradients=False)


def test_join_and_split():
    x, y = tt.matrix(), tt.matrix()
    parts = tt.split(x, [1, 2, 1], 3, axis=1)
    check([x, y], [tt.concatenate([x, y]), tt.concatenate([x, y, x], axis=1), tt.stack([x, y]),
                   parts[0], parts[1] * 2, parts[2], tt.stack([x.sum(), y.sum()])],
          [floats(3, 4), floats(3, 4)])


SLICES = [np.s_[1], np.s_[-1], np.s_[1:], np.s_[:, 1:3], np.s_[::2, ::3], np.s_[::-1],
          np.s_[:, ::-2], np.s_[4:0:-1, 1], np.s_[5:2], np.s_[..., 0], np.s_[:, None, 1:, ::2],
          np.s_[:100], np.s_[-3:-1, ::2]]


@pytest.mark.parametrize('indices', some_at_a_time(SLICES, 5), ids=str)
def test_subtensor(indices):
    graphs = {}
    for index in indices:
        x, y = tt.tensor3(), tt.TensorType('float32', (True,))()
        part = x[index]
        outputs = [part]
        if not any(i is None for i in (index if isinstance(index, tuple) else (index,))):
            outputs += [tt.set_subtensor(part, 2), tt.inc_subtensor(part, y),
                        tt.inc_subtensor(part, part ** 2)]
        graphs[str(index)] = [x, y], outputs, [floats(6, 5, 4), floats(1)]
    check_all(graphs)


def test_index_given_in_the_call():
    x, i, j = tt.matrix(), tt.iscalar(), tt.lscalar()
    f = check([x, i, j], [x[i], x[i:j], x[:, j], tt.set_subtensor(x[i], 0), x[i * 2:j * 2].sum(0)],
              [floats(6, 5), np.int32(1), np.int64(3)], gradients=False)
    value = floats(6, 5)
    for i in range(4):
        assert (f(value, i, i + 1)[1] == value[i:i + 1]).all()
        assert (f(value, i, i + 1)[0] == value[i]).all()
    with pytest.raises(IndexError):
        f(value, 6, 1)


def test_advanced_indexing():
    x, i, j = tt.matrix(), tt.ivector(), tt.lvector()
    y = tt.matrix()
    values = [floats(6, 5), np.array([0, 5, 5, -1], 'int32'), np.array([1, 0, 0, 2]), floats(4, 5)]
    check([x, i, j, y], [x[i], x[i, j], x[:, j], x[tt.arange(4), j], tt.inc_subtensor(x[i], y),
                         tt.inc_subtensor(x[i, j], 2.), tt.inc_subtensor(x[:, j], 2.),
                         x[j, j]], values)
    check([x, i], [tt.set_subtensor(x[i], 3), x.take(i, axis=1)],
          [floats(6, 5), np.array([0, 3, 2], 'int32')])
    check([x, i], [x[i, ::-1], x[::-2, i], x[i, 3:0:-1].sum(0), tt.inc_subtensor(x[i, ::-2], 2.),
                   tt.set_subtensor(x[::-1, i], 7)], [floats(6, 5), np.array([0, 3, 2], 'int32')])
    k = tt.imatrix()
    check([x, k], [x[k], x[k].sum(1), x[None, k]],
          [floats(6, 5), rng.randint(0, 6, (2, 3)).astype('int32')])


def test_one_hot_and_diagonals():
    labels, x = tt.ivector(), tt.matrix()
    check([labels, x], [extra_ops.to_one_hot(labels, 5), tt.eye(3, 4, 1), tt.eye(x.shape[0]) * 2,
                        tt.diag(x), tt.diag(x[0]), tt.tri(4), tt.identity_like(x)],
          [np.array([1, 4, 0], 'int32'), floats(4, 4)], gradients=False)


def test_repeat_sort_cumulate():
    x = tt.matrix()
    check([x], [extra_ops.repeat(x, 2, axis=1), extra_ops.repeat(x, 3, axis=0),
                extra_ops.cumsum(x, axis=1), extra_ops.cumsum(x)], [floats(3, 4)])
    check([x], [extra_ops.repeat(x, [1, 0, 2], axis=0), tt.sort(x), tt.sort(x, axis=0),
                tt.argsort(x), extra_ops.cumprod(x, axis=0)],
          [floats(3, 4)], gradients=False)


def test_wrong_shapes_are_refused():
    x, y = tt.matrix(), tt.matrix()
    f = theano.function([x, y], x + y)
    with pytest.raises(ValueError, match='mis-match'):
        f(floats(3, 4), floats(3, 1))  # PyTorch would broadcast
    f = theano.function([x, y], tt.dot(x, y))
    with pytest.raises(ValueError, match='(?s)Shape mismatch.*Dot22'):
        f(floats(3, 4), floats(3, 4))


# --------------------------------------------------------------------------------- matrix products

def test_dot():
    a, b, u, v, s = tt.matrix(), tt.matrix(), tt.vector(), tt.vector(), tt.scalar()
    values = [floats(3, 4), floats(4, 5), floats(3), floats(4), np.float32(0.7)]
    check([a, b, u, v, s],
          [tt.dot(a, b), tt.dot(u, a), tt.dot(a, v), tt.dot(u, u), tt.outer(u, v),
           0.5 * tt.dot(a, b), s * tt.dot(a, b), a + tt.outer(u, v), a - 0.3 * tt.outer(u, v),
           u + tt.dot(a, v), s * u - 2 * tt.dot(a, v), tt.dot(a, b).T,
           a - s * tt.dot(tt.dot(a, b), b.T),
           2 * a - 0.1 * tt.dot(tt.dot(a, b), b.T), tt.dot(a, a.T).sum()], values, atol=1e-4)


def test_batched_dot():
    x, y = tt.tensor3(), tt.tensor3()
    check([x, y], [batched_dot(x, y), batched_dot(x[:, 0], y), batched_dot(x, y[:, :, 0]),
                   tt.tensordot(x, y, [[2], [1]])], [floats(2, 3, 4), floats(2, 4, 5)])


# --------------------------------------------------------------------------------- neural networks

@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_conv2d(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))
    groups = draw(1, 2)
    batch, channels, filters = draw(1, 3), groups * draw(1, 2), groups * draw(1, 3)
    kernel, stride, dilation = [(draw(1, 3), draw(1, 3)) for _ in range(3)]
    size = [draw(8, 11), draw(8, 11)]
    border = data.draw(st.sampled_from(['valid', 'full', 'half', 1, (2, 1), ((1, 2), (0, 1))]))
    x, w = tt.tensor4(), tt.tensor4()
    out = nnet.conv2d(x, w, border_mode=border, subsample=stride, filter_dilation=dilation,
                      filter_flip=data.draw(st.booleans()), num_groups=groups)
    check([x, w], out,
          [floats(batch, channels, *size), floats(filters, channels // groups, *kernel)],
          mode=C, atol=1e-3, rtol=1e-3)


def test_conv3d():
    x, w = tt.TensorType('float32', (False,) * 5)(), tt.TensorType('float32', (False,) * 5)()
    check([x, w], nnet.conv3d(x, w, border_mode=(1, 0, 1), subsample=(1, 2, 1)),
          [floats(2, 2, 5, 6, 5), floats(3, 2, 3, 2, 2)], mode=C, atol=1e-3, rtol=1e-3)


def test_transposed_convolution():
    x, w = tt.tensor4(), tt.tensor4()
    out = abstract_conv.conv2d_grad_wrt_inputs(x, w, input_shape=(None, None, 9, 9),
                                               border_mode=1, subsample=(2, 2))
    check([x, w], out, [floats(2, 3, 5, 5), floats(3, 2, 3, 3)], mode=C, atol=1e-3, rtol=1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_pooling(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))
    mode = data.draw(st.sampled_from(['max', 'sum', 'average_inc_pad', 'average_exc_pad']))
    nd = draw(1, 3)
    ws = tuple(draw(1, 3) for _ in range(nd))
    stride = data.draw(st.one_of(st.none(), st.tuples(*[st.integers(1, 4)] * nd)))
    ignore_border = data.draw(st.booleans())
    pad = (0,) * nd
    if ignore_border and mode != 'average_exc_pad':  # whose gradient Theano has not with padding
        pad = tuple(draw(0, w - 1) for w in ws)
    x = tt.TensorType('float32', (False,) * (nd + 1))()
    # Few different values: ties, in which all maxima get the gradient.
    value = rng.randint(-2, 3, [2] + [draw(4, 7) for _ in range(nd)]).astype('float32')
    out = pool.Pool(ignore_border, mode, nd)(x, ws, stride, pad)
    check([x], out, [value], mode=C)


def test_second_derivative_of_max_pooling():
    x = tt.tensor4()
    out = pool.pool_2d(x ** 2, (2, 2), ignore_border=True)
    gradient = theano.grad((out ** 2).sum(), x)
    check([x], gradient, [floats(2, 1, 5, 4)], mode=C)


def test_softmax():
    x, b, labels, y = tt.matrix(), tt.vector(), tt.ivector(), tt.matrix()
    values = [floats(4, 5), floats(5), np.array([0, 4, 1, 1], 'int32'),
              np.abs(floats(4, 5)) + 0.1]
    check([x, b, labels, y],
          [nnet.softmax(x), nnet.softmax(x + b), nnet.logsoftmax(x),
           nnet.categorical_crossentropy(nnet.softmax(x + b), labels),
           nnet.categorical_crossentropy(nnet.softmax(x), y),
           nnet.categorical_crossentropy(y / y.sum(1, keepdims=True), labels).mean(),
           nnet.binary_crossentropy(nnet.sigmoid(x), nnet.sigmoid(y))], values)
    check([x, labels], tt.neq(tt.argmax(nnet.softmax(x), 1), labels).mean(),
          [values[0], values[2]], gradients=False)
    check([x, labels], [nnet.crossentropy_softmax_1hot(x, labels)[0],
                        nnet.softmax(x)[tt.arange(4), labels]], [values[0], values[2]])


def test_batch_normalization():
    x, gamma, beta = tt.matrix(), tt.vector(), tt.vector()
    out, mean, inv = nnet.bn.batch_normalization_train(
        x, gamma.dimshuffle('x', 0), beta.dimshuffle('x', 0))
    check([x, gamma, beta], [out, mean, inv], [floats(6, 3), floats(3), floats(3)], atol=1e-4)


def test_c_code_gives_the_same():
    """Each Op that has been run above, of values and of gradients, on the numbers it has had."""
    compared = check_against_c()
    assert compared['Elemwise'] > 100 and compared['Sum'] > 5
