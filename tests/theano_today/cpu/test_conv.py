"""Convolution layers of the CPU engine against NumPy and against Theano's own Ops.

Most tests use small integers as numbers.  All sums are then exact in float32, so results have to be
equal to the last bit, and ties in max-pooling and zeros at the ReLU occur all the time.
"""
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import theano_today  # noqa: F401
import lasagne
import theano
import theano.tensor as T
from lasagne.layers import (Conv2DLayer, DropoutLayer, InputLayer, MaxPool2DLayer,
                            get_all_params, get_output)
from theano.tensor.signal.pool import pool_2d
from theano_today import cpu
from theano_today.cpu import libraries
from theano_today.cpu.conv import RELUS, ConvPool, ConvPoolGrad, Pooling

pytestmark = pytest.mark.usefixtures('few_modules')

HEADERS = os.path.dirname(cpu.__file__)

# ---- what the kernels have to compute, in NumPy ----


def pool_length(n, size, stride, pad, ignore_border):
    n += 2 * pad
    if ignore_border:
        return max(0, (n - size) // stride + 1)
    if stride >= size:
        return (n - 1) // stride + 1
    return max(0, (n - 1 - size) // stride + 1) + 1


class Reference:
    """A layer in NumPy, each step as Theano's Op does it.

    Parameters
    ----------
    pads : ((top, bottom), (left, right))
    stride : (rows, columns)
    pooling : Pooling or None
    relu : one of RELUS
    flip : bool
    """

    def __init__(self, pads, stride, pooling, relu, flip):
        self.pads, self.stride, self.pooling = pads, stride, pooling
        self.relu, self.flip = relu, flip

    def windows(self, x):
        """For each position in a filter's window: the pixels of the padded image it falls on."""
        kh, kw = self.W.shape[2:]
        height, width = x.shape[2] - kh, x.shape[3] - kw
        for i in range(kh):
            for j in range(kw):
                yield i, j, (slice(None), slice(None),
                             slice(i, i + height + 1, self.stride[0]),
                             slice(j, j + width + 1, self.stride[1]))

    def pool_windows(self):
        n, o, height, width = self.z.shape
        size, stride, pad, ignore = self.pooling
        rows = pool_length(height, size[0], stride[0], pad[0], ignore)
        columns = pool_length(width, size[1], stride[1], pad[1], ignore)
        for y in range(rows):
            for x in range(columns):
                top, left = y * stride[0] - pad[0], x * stride[1] - pad[1]
                yield y, x, [(i, j) for i in range(max(0, top), min(height, top + size[0]))
                             for j in range(max(0, left), min(width, left + size[1]))]
        self.out_size = rows, columns

    def forward(self, x, W, b, keep, scale):
        x, W, b = [np.asarray(a, 'float64') for a in (x, W, b)]
        self.W = W[:, :, ::-1, ::-1] if self.flip else W
        (top, bottom), (left, right) = self.pads
        self.x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        with np.errstate(invalid='ignore', over='ignore'):
            self.z = b[:, None, None] + sum(
                np.einsum('nchw,oc->nohw', self.x[at], self.W[:, :, i, j])
                for i, j, at in self.windows(self.x))
            z = self.z
            if self.relu == 'half':
                z = 0.5 * (z + abs(z))
            elif self.relu:
                z = np.maximum(z, 0)
            self.r = z
            if self.pooling:
                pooled = {}
                for y, xx, positions in self.pool_windows():
                    m = z[:, :, positions[0][0], positions[0][1]]
                    for i, j in positions:
                        m = np.where(z[:, :, i, j] > m, z[:, :, i, j], m)
                    pooled[y, xx] = m
                z = np.zeros(z.shape[:2] + self.out_size)
                for (y, xx), m in pooled.items():
                    z[:, :, y, xx] = m
            self.pooled = z
            return z * scale * keep if keep is not None else z

    def backward(self, g, keep, scale):
        g = np.asarray(g, 'float64')
        with np.errstate(invalid='ignore', over='ignore'):
            if keep is not None:
                g = g * scale * keep
            if self.pooling:
                gr = np.zeros_like(self.r)
                for y, x, positions in self.pool_windows():
                    for i, j in positions:
                        gr[:, :, i, j] += np.where(
                            self.r[:, :, i, j] == self.pooled[:, :, y, x], g[:, :, y, x], 0)
            else:
                gr = g
            z = self.z
            slope = {None: lambda: np.ones_like(z),
                     'half': lambda: 0.5 * (1 + np.sign(z)),
                     'maximum': lambda: (self.r == z) * 1.,
                     'maximum_0': lambda: 1. - (self.r == 0)}[self.relu]()
            gz = gr * slope
            dx = np.zeros_like(self.x)
            dW = np.zeros_like(self.W)
            for i, j, at in self.windows(self.x):
                dx[at] += np.einsum('nohw,oc->nchw', gz, self.W[:, :, i, j])
                dW[:, :, i, j] = np.einsum('nohw,nchw->oc', gz, self.x[at])
        (top, bottom), (left, right) = self.pads
        dx = dx[:, :, top:dx.shape[2] - bottom, left:dx.shape[3] - right]
        return dx, dW[:, :, ::-1, ::-1] if self.flip else dW, gz.sum(axis=(0, 2, 3))


# ---- the kernels, compiled for every vector width ----

SHIM = r"""
#include "conv.hpp"
using namespace conv;

static Images first(const float* p, long c, long h, long w) {
    return Images{(float*)p, c * h * w, h * w, w, 1};
}
static Images images(const float* p, long c, long h, long w, bool channels_last) {
    return channels_last ? Images{(float*)p, c * h * w, 1, w * c, c} : first(p, c, h, w);
}

extern "C" int lanes() { return LANES; }

extern "C" int threads(int n) {    // returns how many there were
    const int before = omp_get_max_threads();
    omp_set_num_threads(n);
    return before;
}

extern "C" long run(const long* o, const float* x, const float* W, const float* b, const float* u, float threshold,
                    float scale, const float* g, float* out, float* dx, float* dW, float* db) {
    Layer l = {};
    l.N = o[0], l.C = o[1], l.H = o[2], l.W = o[3], l.O = o[4], l.KH = o[5], l.KW = o[6];
    l.stride_h = o[7], l.stride_w = o[8], l.pad_top = o[9], l.pad_bottom = o[10], l.pad_left = o[11], l.pad_right = o[12];
    l.flip = o[13], l.pool_h = o[14], l.pool_w = o[15], l.pool_stride_h = o[16], l.pool_stride_w = o[17];
    l.pool_pad_h = o[18], l.pool_pad_w = o[19], l.ignore_border = o[20], l.relu = o[21], l.dropout = o[22];
    const bool x_last = o[23], out_last = o[24];
    l.bias = true, l.threshold = threshold, l.scale = scale;
    if (complete(l)) return -1;
    uint8_t* masks = (uint8_t*)malloc(l.N * l.masks_bytes() + 1);
    memset(masks, 0xff, l.N * l.masks_bytes());
    const Images wi = first(W, l.C, l.KH, l.KW), ui = first(u, l.O, l.PH, l.PW), none = {0, 0, 0, 0, 0};
    const Images xi = images(x, l.C, l.H, l.W, x_last), dxi = images(dx, l.C, l.H, l.W, x_last);
    const Images oi = images(out, l.O, l.PH, l.PW, out_last), gi = images(g, l.O, l.PH, l.PW, out_last);
    forward(l, xi, wi, b, 1, ui, oi, masks);
    backward(l, xi, wi, b, 1, masks, gi, dx ? dxi : none, dW, db);
    free(masks);
    if (!dx) {    // once more, as when nobody asks for gradients
        memset(out, 0xff, l.N * l.O * l.PH * l.PW * sizeof(float));
        forward(l, xi, wi, b, 1, ui, oi, NULL);
    }
    return l.PH * 100000 + l.PW;
}
"""


@pytest.fixture(scope='session', params=[0, 1, 4, 8, 16], ids='lanes{}'.format)
def kernels(request, tmp_path_factory):
    """The kernels as a shared library, for the machine's own or for another vector width."""
    folder = tmp_path_factory.mktemp('kernels')
    source, library = str(folder / 'shim.cpp'), str(folder / 'shim.so')
    with open(source, 'w') as file:
        file.write(SHIM)
    width = [f'-DTHEANO_TODAY_LANES={request.param}'] if request.param else []
    # Other widths without -march=native: the portable code.
    native = [] if request.param else ['-march=native']
    # Even small images are cut into bands where there are more threads than images.
    subprocess.check_call([theano.config.cxx, '-O1', '-w', '-shared', '-fPIC', '-fopenmp', '-I', HEADERS,
                           '-DTHEANO_TODAY_BAND=1', source, '-o', library] + width + native)
    loaded = ctypes.CDLL(library)
    assert not request.param or loaded.lanes() == request.param
    return loaded


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p) if array is not None else None


def random_layer(rng, wide=False):
    """A random layer and random inputs for it, of small integers; a wide one is one that conv_few.hpp may take."""
    while True:
        n, c, o = rng.randint(1, 4), rng.choice([1, 2, 3, 5, 8, 16]), rng.choice([1, 3, 7, 8, 16, 17, 33])
        h, w, kh, kw = rng.randint(1, 10), rng.randint(1, 10), rng.randint(1, 5), rng.randint(1, 5)
        pads = ((0, 0), (0, 0)) if rng.rand() < .5 else tuple(map(tuple, rng.randint(0, 3, (2, 2))))
        stride = (1, 1) if rng.rand() < .6 else tuple(rng.randint(1, 4, 2))
        if wide:
            o, w, stride = rng.randint(1, 11), rng.randint(1, 45), (1, 1)
        pooling = None
        if rng.rand() < (.5 if wide else .75):
            ignore = rng.rand() < .7
            size = (2, 2) if rng.rand() < .4 else tuple(rng.randint(1, 4, 2))
            steps = size if rng.rand() < .6 else tuple(rng.randint(1, 4, 2))
            pad = tuple(rng.randint(0, s) for s in size) if ignore and rng.rand() < .3 else (0, 0)
            pooling = Pooling(size, steps, pad, ignore)
            if size == (1, 1):
                continue
        layer = Reference(pads, stride, pooling, RELUS[rng.randint(4)], rng.rand() < .7)
        height = h + sum(pads[0]) - kh
        width = w + sum(pads[1]) - kw
        if height < 0 or width < 0:
            continue
        rows, columns = height // stride[0] + 1, width // stride[1] + 1
        if pooling:
            rows = pool_length(rows, pooling.size[0], pooling.stride[0], pooling.pad[0], pooling.ignore_border)
            columns = pool_length(columns, pooling.size[1], pooling.stride[1], pooling.pad[1],
                                  pooling.ignore_border)
        if not rows or not columns:
            continue

        def integers(*shape):
            return rng.randint(-2, 3, shape).astype('float32')
        u = rng.rand(n, o, rows, columns).astype('float32') if rng.rand() < (.3 if wide else .5) else None
        return layer, integers(n, c, h, w), integers(o, c, kh, kw), integers(o), u, integers(n, o, rows, columns)


def run(kernels, layer, x, W, b, u, g, x_last=False, out_last=False, with_dx=True):
    """Forward and backward pass of a layer: out, dx, dW, db."""
    def stored(array, channels_last):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if channels_last else array)

    def restored(array, channels_last):
        return array.transpose(0, 3, 1, 2) if channels_last else array
    pooling = layer.pooling or Pooling((1, 1), (1, 1), (0, 0), True)
    options = list(x.shape) + [W.shape[0], W.shape[2], W.shape[3]] + list(layer.stride)
    options += list(layer.pads[0]) + list(layer.pads[1]) + [layer.flip]
    options += list(pooling.size) + list(pooling.stride) + list(pooling.pad) + [pooling.ignore_border]
    options += [RELUS.index(layer.relu), u is not None, x_last, out_last]
    options = np.array(options, ctypes.c_long)
    # Results start as NaN: nothing may be left out.
    out = np.full_like(stored(g, out_last), np.nan)
    dx = np.full_like(stored(x, x_last), np.nan) if with_dx else None
    dW, db = np.full_like(W, np.nan), np.full_like(b, np.nan)
    xs, gs = stored(x, x_last), stored(g, out_last)
    size = kernels.run(pointer(options), pointer(xs), pointer(W), pointer(b),
                       pointer(u if u is not None else np.zeros(1, 'float32')),
                       ctypes.c_float(.5), ctypes.c_float(2), pointer(gs), pointer(out), pointer(dx),
                       pointer(dW), pointer(db))
    assert size == g.shape[2] * 100000 + g.shape[3]
    return restored(out, out_last), restored(dx, x_last) if with_dx else None, dW, db


def check_layer(kernels, rng, layer, x, W, b, u, g, assert_same):
    keep = None if u is None else u < .5
    expected = [layer.forward(x, W, b, keep, 2.)]
    expected += layer.backward(g, keep, 2.)
    x_last, out_last = rng.rand(2) < .5
    before = kernels.threads(int(rng.choice([1, 2, 3, 7])))
    try:
        results = run(kernels, layer, x, W, b, u, g, x_last, out_last)
        # Without dx, out without masks, and once more: the same bits.
        again = run(kernels, layer, x, W, b, u, g, x_last, out_last, with_dx=False)
    finally:
        kernels.threads(before)
    for result, correct in zip(results, expected):
        assert_same(result, correct)
    for i in (0, 2, 3):
        np.testing.assert_array_equal(results[i], again[i])


@pytest.mark.parametrize('seed', range(10))
def test_kernels_on_integers(kernels, seed):
    rng = np.random.RandomState(seed)
    for _ in range(12):
        check_layer(kernels, rng, *random_layer(rng), assert_same=np.testing.assert_array_equal)


@pytest.mark.parametrize('seed', range(4))
def test_kernels_on_wide_images(kernels, seed):
    rng = np.random.RandomState(400 + seed)
    for _ in range(20):
        arrays = list(random_layer(rng, wide=True))
        if rng.rand() < .2:
            at = tuple(rng.randint(0, n) for n in arrays[1].shape)
            arrays[1][at] = rng.choice([np.nan, np.inf, -np.inf])
        check_layer(kernels, rng, *arrays, assert_same=np.testing.assert_array_equal)


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('seed', range(4))
def test_filters_of_few_products(kernels, size, seed):
    # Layers that conv_winograd.hpp may take: with any pooling, odd and even sizes, the last block of filters short.
    rng = np.random.RandomState(500 + seed)
    for _ in range(4):
        n, c, o = rng.randint(2, 4), rng.choice([16, 19, 32, 45]), rng.choice([16, 17, 32, 33, 50])
        h, w = rng.randint(24, 30, 2)
        pads = ((0, 0), (0, 0)) if rng.rand() < .4 else tuple(map(tuple, rng.randint(0, 3, (2, 2))))
        pooling, relu, dropped = None, RELUS[rng.randint(4)], rng.rand() < .5
        if rng.rand() < .7:
            window = [(2, 2), (2, 2), (3, 3), (3, 2)][rng.randint(4)]
            pooling = Pooling(window, [window, (4, 4)][rng.randint(2)], (0, 0), rng.rand() < .7)
        layer = Reference(pads, (1, 1), pooling, relu, rng.rand() < .7)
        arrays = [rng.randint(-2, 3, shape).astype('float32') for shape in ((n, c, h, w), (o, c, size, size), (o,))]
        if rng.rand() < .2:
            arrays[0][0, 3, 5, 7] = rng.choice([np.nan, np.inf, -np.inf])
        shape = layer.forward(*arrays, None, 1.).shape
        arrays += [rng.rand(*shape).astype('float32') if dropped else None, rng.randint(-2, 3, shape).astype('float32')]
        check_layer(kernels, rng, layer, *arrays, assert_same=np.testing.assert_array_equal)


def test_bits_do_not_depend_on_threads(kernels):
    rng = np.random.RandomState(7)
    for pooling, size in ((None, 3), (Pooling((3, 3), (3, 3), (0, 0), True), 2)):
        x, W, b = (rng.randn(*shape).astype('float32') for shape in ((1, 16, 60, 61), (32, 16, size, size), (32,)))
        layer = Reference(((0, 0), (0, 0)), (1, 1), pooling, RELUS[1], False)
        shape = layer.forward(x, W, b, None, 1.).shape
        results = []
        for threads in (1, 2, 3, 7):
            before = kernels.threads(threads)
            try:
                results.append(run(kernels, layer, x, W, b, None, np.zeros(shape, 'float32'))[0])
            finally:
                kernels.threads(before)
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])
        np.testing.assert_allclose(results[0], layer.forward(x, W, b, None, 1.), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape', [(1, 3, 2, 60), (2, 20, 13, 17), (3, 67, 40, 41), (1, 200, 37, 36), (2, 5, 3, 3)])
@pytest.mark.parametrize('filters', [1, 4, 5, 10, 18, 21])
def test_filters_of_one_pixel(kernels, shape, filters):
    # Rows that are one, in strips; the channels and filters of several tiles of dw.
    rng = np.random.RandomState(filters)
    x = rng.randint(-2, 3, shape).astype('float32')
    W = rng.randint(-2, 3, (filters, shape[1], 1, 1)).astype('float32')
    b, g = rng.randint(-2, 3, filters).astype('float32'), np.resize(x[:, :1], (shape[0], filters) + shape[2:])
    layer = Reference(((0, 0), (0, 0)), (1, 1), None, RELUS[filters % 4], False)
    expected = layer.forward(x, W, b, None, 2.), *layer.backward(g, None, 2.)
    for x_last, out_last in itertools.product((False, True), repeat=2):
        for result, correct in zip(run(kernels, layer, x, W, b, None, g, x_last, out_last), expected):
            np.testing.assert_array_equal(result, correct)


@pytest.mark.parametrize('channels', [1, 2, 3, 7, 8, 9, 16, 21])
def test_layouts_of_images(kernels, channels):
    # A filter that picks one channel: what comes out is the image again, from either layout to either layout.
    rng = np.random.RandomState(channels)
    for h, w, pad in ((1, 1, 0), (3, 7, 1), (5, 8, 0), (4, 17, 2), (2, 70, 0), (9, 9, 0)):
        x = rng.randint(-9, 9, (2, channels, h, w)).astype('float32')
        W = np.eye(channels, dtype='float32')[:, :, None, None]
        layer = Reference(((pad, 0), (0, pad)), (1, 1), None, None, False)
        for x_last, out_last in itertools.product((False, True), repeat=2):
            out = np.pad(x, ((0, 0), (0, 0), (pad, 0), (0, pad)))
            g = rng.randint(-9, 9, out.shape).astype('float32')
            results = run(kernels, layer, x, W, np.zeros(channels, 'float32'), None, g, x_last, out_last)
            np.testing.assert_array_equal(results[0], out)
            np.testing.assert_array_equal(results[1], g[:, :, pad:, :w])


@pytest.mark.parametrize('seed', range(3))
def test_kernels_on_reals(kernels, seed):
    rng = np.random.RandomState(100 + seed)

    def assert_same(result, correct):
        np.testing.assert_allclose(result, correct, rtol=1e-4, atol=1e-4)
    for _ in range(8):
        layer, x, W, b, u, g = random_layer(rng)
        x, W, b, g = [(a + rng.randn(*a.shape)).astype('float32') for a in (x, W, b, g)]
        check_layer(kernels, rng, layer, x, W, b, u, g, assert_same)


@pytest.mark.parametrize('seed', range(6))
def test_kernels_on_nan_and_infinity(kernels, seed):
    rng = np.random.RandomState(200 + seed)
    for _ in range(10):
        arrays = list(random_layer(rng))
        for i in (1, 2, 3, 5):    # x, W, b, g
            if rng.rand() < .4:
                at = tuple(rng.randint(0, n) for n in arrays[i].shape)
                arrays[i][at] = rng.choice([np.nan, np.inf, -np.inf])
        check_layer(kernels, rng, *arrays, assert_same=np.testing.assert_array_equal)


@pytest.mark.parametrize('value', [0, 1, -1])
def test_kernels_on_flat_images(kernels, value):
    rng = np.random.RandomState(300)
    for _ in range(10):
        layer, x, W, b, u, g = random_layer(rng)
        x[:] = value
        check_layer(kernels, rng, layer, x, W, b, u, g, np.testing.assert_array_equal)


# ---- the Ops in Theano's graphs ----


def compiled(outputs, inputs, wrt=(), cost=None, fused=True):
    """A function of `outputs` and the gradients of `cost`, with or without the engine."""
    (cpu.enable if fused else cpu.disable)()
    try:
        outputs = list(outputs) + (T.grad(cost, list(wrt)) if cost is not None else [])
        # Fewer kinds of nodes to compile, and no difference otherwise.
        mode = theano.compile.get_default_mode().excluding('inplace', 'fusion')
        return theano.function(inputs, outputs, mode=mode)
    finally:
        cpu.enable()


def count(function, *ops):
    return sum(isinstance(node.op, ops) for node in function.maker.fgraph.toposort())


def stock_convolutions(function):
    return count(function, theano.tensor.nnet.corr.BaseCorrMM, theano.tensor.signal.pool.Pool,
                 theano.tensor.signal.pool.MaxPoolGrad, theano.tensor.nnet.abstract_conv.BaseAbstractConv)


def assert_same_results(fused, stock, *arguments):
    """Call both with dropout's random streams in the same state."""
    streams = [v for v in fused.get_shared() if v.get_value(borrow=True).dtype == 'int32']
    start = [v.get_value() for v in streams]
    results = fused(*arguments)
    for stream, value in zip(streams, start):
        stream.set_value(value)
    for a, b in zip(results, stock(*arguments)):
        np.testing.assert_array_equal(a, b)
    return results


def rounded(rng, *shape):
    """Numbers whose products and sums are exact in float32."""
    return rng.randint(-2, 3, shape).astype('float32')


def biases(rng):
    return lambda shape: rounded(rng, *shape)


def conv_net(rng, shape, layers):
    """A net of convolution, pooling and dropout layers; every parameter a small integer."""
    lasagne.random.set_rng(np.random.RandomState(1))
    x = T.tensor4('x')
    net = InputLayer((None,) + shape, x)
    for kind, options in layers:
        if kind == 'conv':
            options = dict(options)
            number, size = options.pop('number'), options.pop('size')
            options.setdefault('b', biases(rng))
            net = Conv2DLayer(net, number, size, W=biases(rng), **options)
        elif kind == 'pool':
            net = MaxPool2DLayer(net, **options)
        else:
            net = DropoutLayer(net, **options)
    return x, net


NETS = {
    'deck': [('conv', dict(number=4, size=3)), ('pool', dict(pool_size=2)), ('dropout', dict(p=.5)),
             ('conv', dict(number=5, size=2)), ('pool', dict(pool_size=2)), ('dropout', dict(p=.5))],
    'same': [('conv', dict(number=3, size=(3, 2), pad='same')),
             ('pool', dict(pool_size=3, stride=2, ignore_border=False))],
    'strided': [('conv', dict(number=3, size=3, pad='same', stride=2)),
                ('conv', dict(number=2, size=2, pad=(1, 0), b=None))],
    'full': [('conv', dict(number=3, size=2, pad='full', nonlinearity=T.nnet.relu)),
             ('pool', dict(pool_size=(3, 2), stride=(2, 3), pad=(1, 0)))],
    'maximum': [('conv', dict(number=3, size=2, nonlinearity=lambda z: T.maximum(z, 0))),
                ('conv', dict(number=3, size=2, nonlinearity=lambda z: T.maximum(0, z)))],
    'linear': [('conv', dict(number=3, size=2, nonlinearity=None)), ('pool', dict(pool_size=2)),
               ('dropout', dict(p=.5, rescale=False))],
}
FUSED = {'deck': 2, 'same': 1, 'strided': 2, 'full': 1, 'maximum': 2, 'linear': 1}


@pytest.mark.parametrize('name', sorted(NETS))
def test_nets_agree_with_stock_theano(name):
    x, net = conv_net(np.random.RandomState(5), (2, 13, 12), NETS[name])
    out = get_output(net)
    cost, wrt = (out * out).sum(), [x] + get_all_params(net)
    fused = compiled([out], [x], wrt, cost)
    stock = compiled([out], [x], wrt, cost, fused=False)
    assert (count(fused, ConvPool), count(fused, ConvPoolGrad)) == (FUSED[name],) * 2
    assert stock_convolutions(fused) == 0 and count(stock, ConvPool) == 0
    rng = np.random.RandomState(6)
    for batch in (3, 1):
        image = rounded(rng, batch, 2, 13, 12)
        assert_same_results(fused, stock, image)
    image[0, 0, 4, 5], image[0, 1, 0, 0] = np.nan, np.inf
    assert_same_results(fused, stock, image)


def random_net(rng):
    """An image shape and layers for `conv_net`, anything that Lasagne can express."""
    height, width = rng.randint(6, 15, 2)
    shape, layers = (rng.randint(1, 4), height, width), []
    for _ in range(rng.randint(1, 3)):
        size = tuple(int(n) for n in rng.randint(1, 4, 2))
        pads = ['valid', 'full', 'same', int(rng.randint(0, 2)), (int(rng.randint(0, 2)), 0)]
        pad = pads[rng.randint(len(pads))]
        layers.append(('conv', dict(
            number=int(rng.randint(1, 6)), size=size, pad=pad,
            stride=tuple(int(n) for n in rng.randint(1, 3, 2)) if rng.rand() < .3 else 1,
            convolution=functools.partial(T.nnet.conv2d, filter_flip=bool(rng.rand() < .8)),
            **({'b': None} if rng.rand() < .2 else {}),
            nonlinearity=[lasagne.nonlinearities.rectify, T.nnet.relu, lambda z: T.maximum(z, 0),
                          None][rng.choice(4, p=[.6, .15, .1, .15])])))
        if rng.rand() < .6:
            pool = tuple(int(n) for n in rng.randint(1, 4, 2))
            ignore_border = bool(rng.rand() < .7)
            layers.append(('pool', dict(
                pool_size=pool, stride=tuple(int(n) for n in rng.randint(1, 4, 2))
                if rng.rand() < .4 else None, ignore_border=ignore_border,
                pad=tuple(int(rng.randint(n)) for n in pool) if ignore_border else 0)))
        if rng.rand() < .4:
            layers.append(('dropout', dict(p=.5, rescale=bool(rng.rand() < .8))))
    return shape, layers


# A few in each run of the tests; RANDOM_NETS=200 in the environment tries more.
@pytest.mark.parametrize('seed', range(int(os.environ.get('RANDOM_NETS', 40))))
def test_random_nets_agree_with_stock_theano(seed):
    rng = np.random.RandomState(seed)
    while True:
        shape, layers = random_net(rng)
        try:
            x, net = conv_net(np.random.RandomState(seed), shape, layers)
        except ValueError:  # Lasagne: an image shrank to nothing
            continue
        # A convolution alone stays with the stock Ops.
        if min(net.output_shape[1:]) >= 1 and any(options.get('nonlinearity') for _, options in layers):
            break
    out = get_output(net)
    cost, wrt = (out * out).sum(), [x] + get_all_params(net)
    fused = compiled([out], [x], wrt, cost)
    stock = compiled([out], [x], wrt, cost, fused=False)
    assert count(fused, ConvPool) >= 1 and count(stock, ConvPool) == 0
    for batch in (rng.randint(2, 5), 1):
        assert_same_results(fused, stock, rounded(rng, batch, *shape))
    assert_same_results(fused, stock, np.zeros((2,) + shape, 'float32'))


@pytest.mark.parametrize('layers', [NETS['deck'], [('conv', dict(number=4, size=1))]])
def test_any_memory_layout(layers):
    x, net = conv_net(np.random.RandomState(5), (2, 13, 12), layers)
    out = get_output(net, deterministic=True)
    function = compiled([out], [x], get_all_params(net), (out * out).sum())
    image = rounded(np.random.RandomState(6), 4, 2, 13, 12)
    expected = function(image)
    flipped = np.ascontiguousarray(image[:, :, ::-1, ::-1])[:, :, ::-1, ::-1]
    last = np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    every_second = np.repeat(image, 2, axis=3)[..., ::2]
    cut_out = np.pad(image, ((0, 0), (0, 0), (0, 1), (0, 5)))[:, :, :-1, :-5]
    for other in (flipped, last, every_second, cut_out):
        for a, b in zip(function(theano._asarray(other, 'float32')), expected):
            np.testing.assert_array_equal(a, b)


def test_second_derivative():
    x, net = conv_net(np.random.RandomState(5), (1, 7, 6), NETS['linear'][:2])
    out = get_output(net)
    values = []
    for fused in (True, False):
        (cpu.enable if fused else cpu.disable)()
        try:
            slope = T.grad((out ** 2).sum(), x)
            second = T.grad((slope ** 2).sum(), get_all_params(net))
            values.append(compiled(second, [x], fused=fused)(rounded(np.random.RandomState(1), 2, 1, 7, 6)))
        finally:
            cpu.enable()
    for a, b in zip(*values):
        np.testing.assert_array_equal(a, b)


def test_what_is_needed_elsewhere_is_not_fused():
    x, W = T.tensor4('x'), T.tensor4('W')
    h = T.nnet.conv2d(x, W)
    r = 0.5 * (h + abs(h))
    p = pool_2d(r, (2, 2), ignore_border=True)
    fused = compiled([r], [x, W], [x, W, h], (p ** 2).sum() + r.sum())
    stock = compiled([r], [x, W], [x, W, h], (p ** 2).sum() + r.sum(), fused=False)
    rng = np.random.RandomState(3)
    image, filters = rounded(rng, 2, 3, 9, 8), rounded(rng, 4, 3, 2, 3)
    assert_same_results(fused, stock, image, filters)


def test_float64_stays_with_stock_theano():
    x, W = T.dtensor4('x'), T.dtensor4('W')
    function = compiled([T.nnet.conv2d(x, W)], [x, W])
    assert count(function, ConvPool) == 0


def test_wrong_shapes_are_errors():
    x, W, b = T.tensor4('x'), T.tensor4('W'), T.vector('b')
    function = compiled([T.nnet.conv2d(x, W) + b.dimshuffle('x', 0, 'x', 'x')], [x, W, b])
    image, filters, bias = [np.ones(s, 'float32') for s in ((1, 2, 5, 5), (3, 2, 2, 2), (3,))]
    assert function(image, filters, bias)[0].shape == (1, 3, 4, 4)
    for wrong in ((image[:, :1], filters, bias), (image[:, :, :1], filters, bias), (image, filters, bias[:2])):
        with pytest.raises(ValueError):
            function(*wrong)


def test_layers_next_to_each_other_keep_channels_last_and_skip_what_is_unused():
    x, net = conv_net(np.random.RandomState(5), (2, 13, 12), NETS['deck'])
    out = get_output(net)
    function = compiled([out], [x], get_all_params(net), (out * out).sum())
    ops = [node.op for node in function.maker.fgraph.toposort()]
    first, second = [op for op in ops if isinstance(op, ConvPool)]
    assert first.channels_last and not second.channels_last
    assert sorted(op.compute_dx for op in ops if isinstance(op, ConvPoolGrad)) == [False, True]
    predict = compiled([get_output(net, deterministic=True)], [x])
    assert not any(op.save_masks for op in [node.op for node in predict.maker.fgraph.toposort()]
                   if isinstance(op, ConvPool))


def test_dropout_drops_what_stock_theano_drops():
    x, net = conv_net(np.random.RandomState(5), (2, 13, 12), NETS['deck'][:3])
    out = get_output(net)
    fused, stock = [compiled([out], [x], fused=fused) for fused in (True, False)]
    assert count(fused, ConvPool) == 1 and stock_convolutions(fused) == 0
    image = rounded(np.random.RandomState(6), 3, 2, 13, 12)
    first, second = [assert_same_results(fused, stock, image)[0] for _ in range(2)]
    assert (first != second).any()


def test_short_memory_is_an_error():
    resource = pytest.importorskip('resource')
    program = textwrap.dedent('''
        import resource, theano_today, numpy as np, theano, theano.tensor as T
        from theano.tensor.signal.pool import pool_2d
        x, W = T.ftensor4(), T.ftensor4()
        h = pool_2d(T.nnet.relu(T.nnet.conv2d(x, W, border_mode='full')), (2, 2), ignore_border=True)
        function = theano.function([x, W], [h.sum()] + T.grad(h.sum(), [x, W]))
        names = [type(node.op).__name__ for node in function.maker.fgraph.toposort()]
        assert 'ConvPool' in names and 'ConvPoolGrad' in names
        X, F = np.ones((1, 1, 200, 200), 'f'), np.ones((2, 1, 3, 3), 'f')
        before = function(X, F)[0]  # it is large enough to start the threads, which take memory, too
        image, filters = np.ones((1, 4, 1500, 1500), 'f'), np.ones((2, 4, 3, 3), 'f')
        with open('/proc/self/statm') as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        for more in range(5, 150, 10):  # MB: too few at one place after the other
            resource.setrlimit(resource.RLIMIT_AS, (size + (more << 20), resource.RLIM_INFINITY))
            try:
                function(image, filters)
            except MemoryError:
                print('MemoryError')
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert function(X, F)[0] == before
        function(image, filters)
        print('goes on')
    ''')
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            env=dict(os.environ, OMP_NUM_THREADS='2'))
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert resource and lines.count('MemoryError') >= 2 and lines[-1] == 'goes on'


@pytest.mark.parametrize('keep', [0., 1.], ids=['dropped', 'kept'])
def test_a_gradient_beyond_all_bounds_stays_where_it_is(keep):
    x, W, u, g = T.ftensor4(), T.ftensor4(), T.ftensor4(), T.ftensor4()
    h = T.nnet.relu(T.nnet.conv2d(x, W))
    h = h / .25 * T.cast(u < .5, 'float32')
    rng = np.random.RandomState(0)
    values = [abs(rng.randn(*shape)).astype('float32') for shape in ((2, 3, 6, 6), (3, 3, 2, 2))]
    samples, gradient = np.zeros((2, 3, 5, 5), 'float32'), np.ones((2, 3, 5, 5), 'float32')
    samples[0, 1, 2, 2], gradient[0, 1, 2, 2] = 1 - keep, 3e38
    fused, stock = [compiled([], [x, W, u, g], [x, W], (h * g).sum(), fused=f) for f in (True, False)]
    assert count(fused, ConvPoolGrad) == 1
    for a, b in zip(fused(*values, samples, gradient), stock(*values, samples, gradient)):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a[np.isfinite(a)], b[np.isfinite(b)], rtol=1e-5)


def test_c_code_in_python_files_counts_for_the_cache(monkeypatch, tmp_path):
    before = ConvPool().c_code_cache_version()
    assert before == ConvPool(relu='half').c_code_cache_version() and before
    changed = tmp_path / 'cpu'
    shutil.copytree(HEADERS, str(changed))
    with open(str(changed / 'conv.py'), 'a') as file:
        file.write('# changed\n')
    monkeypatch.setattr(libraries, 'HERE', str(changed))
    libraries.digest.cache_clear()
    try:
        assert ConvPool().c_code_cache_version() != before
    finally:
        libraries.digest.cache_clear()


def test_long_sums_of_gradients_are_as_good_as_stock():
    """Positive gradients of many pixels: one float32 accumulator would lose four digits."""
    x, W, b, g = T.ftensor4(), T.ftensor4(), T.fvector(), T.ftensor4()
    rng = np.random.RandomState(0)
    for shape, filters in (((2, 1, 500, 500), (3, 1, 3, 3)), ((2, 8, 250, 250), (5, 8, 3, 3))):
        h = T.nnet.relu(T.nnet.conv2d(x, W) + b.dimshuffle('x', 0, 'x', 'x'))
        fused, stock = [compiled([], [x, W, b, g], [W, b], (h * g).sum(), fused=f) for f in (True, False)]
        assert count(fused, ConvPoolGrad) == 1
        image, weights = rng.rand(*shape).astype('float32'), rng.rand(*filters).astype('float32')
        bias = np.zeros(filters[0], 'float32')
        gradient = rng.rand(shape[0], filters[0], shape[2] - 2, shape[3] - 2).astype('float32')
        exact = np.zeros(filters)
        for i in range(3):
            for j in range(3):
                exact[:, :, 2 - i, 2 - j] = np.einsum(
                    'nohw,nchw->oc', gradient.astype('float64'),
                    image[:, :, i:i + shape[2] - 2, j:j + shape[3] - 2].astype('float64'))
        exact = exact, gradient.sum(axis=(0, 2, 3), dtype='float64')
        for a, s, e in zip(fused(image, weights, bias, gradient), stock(image, weights, bias, gradient), exact):
            error, stocks = [abs(v - e).max() / abs(e).max() for v in (a, s)]
            assert error < max(3 * stocks, 2e-6)


@pytest.mark.parametrize('pool', [False, True])
def test_gradients_of_both_signs_are_as_good_as_stock(pool):
    """Sums that nearly cancel show every rounding: dx over many filters and positions, dW over many
    pixels, of one channel too, and db over a wide image."""
    def built(dtype, fused):
        x, W = [T.TensorType(dtype, (False,) * 4)() for _ in 'xW']
        b, g = T.TensorType(dtype, (False,))(), T.TensorType(dtype, (False,) * 4)()
        h = T.nnet.relu(T.nnet.conv2d(x, W) + b.dimshuffle('x', 0, 'x', 'x'))
        h = pool_2d(h, (2, 2), ignore_border=True) if pool else h
        return compiled([], [x, W, b, g], [x, W, b], (h * g).sum(), fused=fused)
    ours, stock, float64 = built('float32', True), built('float32', False), built('float64', False)
    assert count(ours, ConvPoolGrad) == 1
    rng = np.random.RandomState(0)
    for shape, filters in (((1, 64, 14, 14), (512, 64, 5, 5)), ((1, 16, 32, 32), (32, 16, 11, 11)),
                           ((1, 1, 8, 2000), (3, 1, 3, 3)), ((4, 1, 40, 40), (5, 1, 3, 3)),
                           ((2, 24, 40, 40), (1, 24, 3, 3))):
        # The convolution's outputs are exact and never zero: the gradients flow alike in all three.
        image, weights = [np.float32(rng.randint(-8, 9, s) / 8) for s in (shape, filters)]
        bias = np.full(filters[0], 1 / 128, 'float32')
        size = [(n - k + 1) // (2 if pool else 1) for n, k in zip(shape[2:], filters[2:])]
        gradient = rng.randn(shape[0], filters[0], *size).astype('float32')
        exact = float64(*[a.astype('float64') for a in (image, weights, bias, gradient)])
        for name, o, s, e in zip(('dx', 'dW', 'db'), ours(image, weights, bias, gradient),
                                 stock(image, weights, bias, gradient), exact):
            error, stocks = [abs(v - e).max() / abs(e).max() for v in (o, s)]
            assert error <= 3 * max(stocks, 8e-8), (name, shape, filters)
