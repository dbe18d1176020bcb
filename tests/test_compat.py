"""Theano 1.0.5, Lasagne 0.1 and nolearn 0.6.1 do on today's Python what they were written to do.

Layers are checked in float64: forward against NumPy and SciPy, gradients against finite
differences.
"""
import copy
import os
import pickle
import re
import warnings

import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pytest
import scipy.signal
import theano
import theano.tensor as T
from lasagne import init, layers, nonlinearities, objectives, regularization, updates
from lasagne.layers import (
    ConcatLayer, Conv1DLayer, Conv2DLayer, CustomRecurrentLayer, DenseLayer, DimshuffleLayer,
    DropoutLayer, ElemwiseMergeLayer, ElemwiseSumLayer, EmbeddingLayer, FeaturePoolLayer,
    FeatureWTALayer, FlattenLayer, GaussianNoiseLayer, GlobalPoolLayer, GRULayer, InputLayer,
    LocalResponseNormalization2DLayer, LSTMLayer, MaxPool1DLayer, MaxPool2DLayer, NINLayer,
    NonlinearityLayer, PadLayer, Pool2DLayer, RecurrentLayer, ReshapeLayer, SliceLayer)
from lasagne.theano_extensions import conv as conv1d
from nolearn.lasagne import (
    BatchIterator, NeuralNet, PrintLayerInfo, PrintLog, SaveWeights, TrainSplit)
from nolearn.lasagne.handlers import RememberBestWeights, RestoreBestWeights, WeightLog
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Two modes of Theano that compile fast: without C code, where that is not the point of a test, and
# with C code but few rewrites.
PYTHON = theano.compile.Mode('vm', None)
PYTHON.linker.c_thunks = False
C = theano.compile.Mode('cvm', 'fast_compile')


@pytest.fixture
def float64():
    with theano.configparser.change_flags(floatX='float64'):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ------------------------------------------------------------------------------ layers of Lasagne

def convolve(x, W, pad=0, stride=1):
    """Convolve `x` (batch, channel, ...) with flipped filters `W` (filter, channel, ...)."""
    x = np.pad(x, [(0, 0), (0, 0)] + [(pad, pad)] * (x.ndim - 2))
    out = np.stack([np.stack([
        sum(scipy.signal.convolve(image[c], filt[c], 'valid') for c in range(len(filt)))
        for filt in W]) for image in x])
    return out[(Ellipsis,) + (slice(None, None, stride),) * (x.ndim - 2)]


def pooled(x, size, reduce, stride=None, pad=0, fill=0):
    """Reduce the windows of the last two axes of `x`."""
    stride = stride or size
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=fill)
    rows, cols = ((n - size) // stride + 1 for n in x.shape[2:])
    return np.stack([np.stack([
        reduce(x[:, :, r * stride:r * stride + size, c * stride:c * stride + size], axis=(2, 3))
        for c in range(cols)], -1) for r in range(rows)], -2)


def response_normalised(x, alpha=.1, k=2, beta=.75, n=5):
    padded = np.pad(x ** 2, [(0, 0), (n // 2, n // 2), (0, 0), (0, 0)])
    return x / (k + alpha * sum(padded[:, i:i + x.shape[1]] for i in range(n))) ** beta


def winner_takes_all(x, size):
    groups = x.reshape(x.shape[0], -1, size, *x.shape[2:])
    return np.where(groups == groups.max(axis=2, keepdims=True), groups, 0).reshape(x.shape)


def bias(b, x):
    return np.reshape(b, (1, -1) + (1,) * (x.ndim - 2))


IMAGE, SEQUENCE = (2, 4, 6, 7), (2, 3, 9)

# name: (input shape, layer for an incoming layer, forward pass for the input and the parameters)
LAYERS = {
    'dense': ((3, 2, 4), lambda x: DenseLayer(x, 5, nonlinearity=nonlinearities.tanh),
              lambda x, W, b: np.tanh(x.reshape(3, 8) @ W + b)),
    'nin': (IMAGE, lambda x: NINLayer(x, 3, nonlinearity=None),
            lambda x, W, b: np.einsum('ncij,cf->nfij', x, W) + bias(b, x)),
    'nin untied': (IMAGE, lambda x: NINLayer(x, 3, untie_biases=True, nonlinearity=None),
                   lambda x, W, b: np.einsum('ncij,cf->nfij', x, W) + b),
    'nonlinearity': ((3, 4), lambda x: NonlinearityLayer(x, nonlinearities.sigmoid), sigmoid),
    'conv1d': (SEQUENCE, lambda x: Conv1DLayer(x, 4, 3, nonlinearity=None),
               lambda x, W, b: convolve(x, W) + bias(b, x)),
    'conv1d full': (SEQUENCE, lambda x: Conv1DLayer(x, 4, 3, pad='full', nonlinearity=None),
                    lambda x, W, b: convolve(x, W, pad=2) + bias(b, x)),
    'conv1d same': (SEQUENCE, lambda x: Conv1DLayer(x, 4, 3, pad='same', nonlinearity=None),
                    lambda x, W, b: convolve(x, W, pad=1) + bias(b, x)),
    'conv1d strided': (SEQUENCE, lambda x: Conv1DLayer(x, 4, 3, 2, 1, nonlinearity=None, b=None),
                       lambda x, W: convolve(x, W, pad=1, stride=2)),
    'conv2d': (IMAGE, lambda x: Conv2DLayer(x, 3, 3),
               lambda x, W, b: np.maximum(convolve(x, W) + bias(b, x), 0)),
    'conv2d full': (IMAGE, lambda x: Conv2DLayer(x, 3, 3, pad='full', nonlinearity=None),
                    lambda x, W, b: convolve(x, W, pad=2) + bias(b, x)),
    'conv2d same': (IMAGE, lambda x: Conv2DLayer(x, 3, 3, pad='same', nonlinearity=None),
                    lambda x, W, b: convolve(x, W, pad=1) + bias(b, x)),
    'conv2d strided': (IMAGE, lambda x: Conv2DLayer(x, 3, 3, 2, 1, nonlinearity=None, b=None),
                       lambda x, W: convolve(x, W, pad=1, stride=2)),
    'maxpool1d': (SEQUENCE, lambda x: MaxPool1DLayer(x, 2),
                  lambda x: x[:, :, :8].reshape(2, 3, 4, 2).max(axis=3)),
    'maxpool2d': (IMAGE, lambda x: MaxPool2DLayer(x, 2), lambda x: pooled(x, 2, np.max)),
    'maxpool2d strided': (IMAGE, lambda x: MaxPool2DLayer(x, 3, stride=2, pad=1),
                          lambda x: pooled(x, 3, np.max, stride=2, pad=1, fill=-np.inf)),
    'maxpool2d border': (IMAGE, lambda x: MaxPool2DLayer(x, 2, ignore_border=False),
                         lambda x: pooled(np.pad(x, [(0, 0)] * 3 + [(0, 1)],
                                                 constant_values=-np.inf), 2, np.max)),
    'pool2d mean': (IMAGE, lambda x: Pool2DLayer(x, 2, pad=1, mode='average_inc_pad'),
                    lambda x: pooled(x, 2, np.mean, pad=1)),
    'pool2d mean, no pad': (IMAGE, lambda x: Pool2DLayer(x, 2, mode='average_exc_pad'),
                            lambda x: pooled(x, 2, np.mean)),
    'feature pool': (IMAGE, lambda x: FeaturePoolLayer(x, 2),
                     lambda x: x.reshape(2, 2, 2, 6, 7).max(axis=2)),
    'feature wta': (IMAGE, lambda x: FeatureWTALayer(x, 2), lambda x: winner_takes_all(x, 2)),
    'global pool': (IMAGE, GlobalPoolLayer, lambda x: x.mean(axis=(2, 3))),
    'lrn': (IMAGE, lambda x: LocalResponseNormalization2DLayer(x, alpha=.1), response_normalised),
    'flatten': (IMAGE, lambda x: FlattenLayer(x, 3), lambda x: x.reshape(2, 4, 42)),
    'reshape': (IMAGE, lambda x: ReshapeLayer(x, ([0], -1, [3], 2)),
                lambda x: x.reshape(2, 12, 7, 2)),
    'dimshuffle': (IMAGE, lambda x: DimshuffleLayer(x, (0, 'x', 3, 1, 2)),
                   lambda x: x.transpose(0, 3, 1, 2)[:, None]),
    'pad': (IMAGE, lambda x: PadLayer(x, [(1, 2), 3], val=7.),
            lambda x: np.pad(x, [(0, 0), (0, 0), (1, 2), (3, 3)], constant_values=7)),
    'slice': (IMAGE, lambda x: SliceLayer(SliceLayer(x, slice(1, 5), axis=2), -1, axis=1),
              lambda x: x[:, -1, 1:5]),
    'concat': ((3, 4), lambda x: ConcatLayer([x, DenseLayer(x, 2, b=None, nonlinearity=None)]),
               lambda x, W: np.hstack([x, x @ W])),
    'merge': ((3, 4), lambda x: ElemwiseMergeLayer([x, DenseLayer(x, 4, b=None)], T.maximum),
              lambda x, W: np.maximum(x, np.maximum(x @ W, 0))),
    'sum': ((3, 4), lambda x: ElemwiseSumLayer([x, DenseLayer(x, 4, b=None)], coeffs=[2, -1]),
            lambda x, W: 2 * x - np.maximum(x @ W, 0)),
    'dropout': ((3, 4), DropoutLayer, lambda x: x),  # deterministic, as all here
    'noise': ((3, 4), GaussianNoiseLayer, lambda x: x),
}


def check_gradient(function, arrays, outputs):
    """Compare gradients with central differences in a random direction, in float64.

    `function` takes `arrays` and returns the output of a layer followed by the gradients of
    ``(output * weights).sum()``, with the same weights as here.
    """
    rng = np.random.RandomState(3)
    step = [1e-4 * rng.standard_normal(array.shape) for array in arrays]
    up = function(*[a + d for a, d in zip(arrays, step)])[0]
    down = function(*[a - d for a, d in zip(arrays, step)])[0]
    slope = ((up - down) / 2 * weights_for(up)).sum()
    expected = sum((g * d).sum() for g, d in zip(outputs[1:], step))
    np.testing.assert_allclose(slope, expected, rtol=1e-3)


def weights_for(output):
    return np.random.RandomState(4).standard_normal(output.shape)


def run_layer(layer, x, mode=PYTHON):
    """Return a layer's output for `x` and its gradients, and its parameters' values, in float64."""
    inputs = layers.get_all_layers(layer)[0]
    params = layers.get_all_params(layer)
    output = layers.get_output(layer, deterministic=True)
    loss = (output * weights_for(np.empty(layer.output_shape))).sum()
    differentiated = params if inputs.input_var.dtype.startswith('int') else (
        [inputs.input_var] + params)
    compiled = theano.function([inputs.input_var], [output] + theano.grad(loss, differentiated),
                               mode=mode)

    def function(*arrays):
        values = arrays if differentiated is params else arrays[1:]
        for param, value in zip(params, values):
            param.set_value(value)
        return compiled(x if differentiated is params else arrays[0])

    rng = np.random.RandomState(2)
    values = [rng.standard_normal(param.get_value().shape) for param in params]
    arrays = values if differentiated is params else [x] + values
    outputs = function(*arrays)
    assert outputs[0].shape == layer.output_shape
    check_gradient(function, arrays, outputs)
    function(*arrays)  # set the parameters back
    return outputs, values


@pytest.mark.parametrize('name', LAYERS)
def test_layer(name, float64):
    shape, build, reference = LAYERS[name]
    x = np.random.RandomState(1).standard_normal(shape)
    mode = C if name.startswith('conv') else PYTHON  # Theano has no Python code for convolution
    outputs, values = run_layer(build(InputLayer(shape)), x, mode)
    # Lasagne's response normalisation squares in float32 whatever floatX is.
    np.testing.assert_allclose(outputs[0], reference(x, *values), rtol=1e-7, atol=1e-7)


def test_embedding(float64):
    words = np.array([[0, 3, 3], [4, 1, 0]], 'int32')
    layer = EmbeddingLayer(InputLayer((2, 3), input_var=T.imatrix()), 5, 4)
    outputs, (W,) = run_layer(layer, words)
    np.testing.assert_array_equal(outputs[0], W[words])


def test_dropout_and_noise_change_training_but_not_the_mean():
    x = InputLayer((100, 200))
    dropped, kept, noisy = theano.function([x.input_var], [
        layers.get_output(layer) for layer in
        (DropoutLayer(x, p=.25), DropoutLayer(x, p=.25, rescale=False), GaussianNoiseLayer(x, .5))],
        mode=PYTHON)(np.ones((100, 200), 'float32'))
    assert set(np.unique(dropped)) == {0, np.float32(1 / .75)}
    assert set(np.unique(kept)) == {0, 1}
    assert abs(dropped.mean() - 1) < .02 and abs((kept == 0).mean() - .25) < .02
    assert abs(noisy.mean() - 1) < .02 and abs(noisy.std() - .5) < .02


@pytest.mark.parametrize('name', ['sc', 'mc0', 'mc1', 'unstrided', 'sd', 'md'])
def test_conv1d_implementations(name, float64):
    rng = np.random.RandomState(1)
    x, W = rng.standard_normal((2, 3, 12)), rng.standard_normal((4, 3, 6))
    convolution = getattr(conv1d, 'conv1d_' + name)
    layer = Conv1DLayer(InputLayer(x.shape), 4, 6, stride=1 if name == 'unstrided' else 3,
                        W=W, b=None, nonlinearity=None, convolution=convolution)
    output = theano.function([], layers.get_output(layer, x), mode=C)()
    np.testing.assert_allclose(output, convolve(x, W, stride=layer.stride[0]))


def test_every_public_layer_is_tested():
    with open(__file__) as f:
        source = f.read()
    names = [name for name in dir(layers) if name.endswith('Layer')]
    assert len(names) >= 30
    abstract = {'Layer', 'MergeLayer'}
    assert [n for n in names if n not in abstract and not re.search(n + r'[(,]', source)] == []


# ---------------------------------------------------------------------------------------- scan

def run_loop(layer, x, mask, step, backwards=False):
    """Run ``state = step(x_t, state)`` through time, where `mask` says so; return all h."""
    state = [np.repeat(init.get_value(), len(x), axis=0) for init in
             ([layer.cell_init, layer.hid_init] if hasattr(layer, 'cell_init')
              else [layer.hid_init])]
    out = np.zeros(x.shape[:2] + state[-1].shape[1:])
    for t in range(x.shape[1])[::-1 if backwards else 1]:
        new = step(x[:, t], *state)
        state = [np.where(mask[:, t, None], n, old) for n, old in zip(new, state)]
        out[:, t] = state[-1]
    return out


def simple_step(layer):
    # input_to_hidden and hidden_to_hidden are dense layers; only in 'custom' do both have biases.
    first, second = layer.input_to_hidden, layer.hidden_to_hidden
    W, b, U = first.W.get_value(), first.b.get_value(), second.W.get_value()
    c = 0 if second.b is None else second.b.get_value()
    return lambda x, h: [np.tanh(x @ W + b + h @ U + c)]


def lstm_step(layer):
    W = {param.name: param.get_value() for param in layer.get_params()}

    def step(x, c, h):
        def gate(name):
            return x @ W['W_in_to_' + name] + h @ W['W_hid_to_' + name] + W['b_' + name]
        new = (sigmoid(gate('forgetgate') + c * W['W_cell_to_forgetgate']) * c
               + sigmoid(gate('ingate') + c * W['W_cell_to_ingate']) * np.tanh(gate('cell')))
        # Lasagne 0.1 adds the third peephole after the sigmoid, against its own documentation.
        return [new, (sigmoid(gate('outgate')) + new * W['W_cell_to_outgate']) * np.tanh(new)]
    return step


def gru_step(layer):
    W = {param.name: param.get_value() for param in layer.get_params()}

    def step(x, h):
        def parts(name):
            return x @ W['W_in_to_' + name] + W['b_' + name], h @ W['W_hid_to_' + name]
        reset, update = sigmoid(sum(parts('resetgate'))), sigmoid(sum(parts('updategate')))
        from_x, from_h = parts('hidden_update')
        return [(1 - update) * h + update * np.tanh(from_x + reset * from_h)]
    return step


RECURRENT = {
    'simple': (lambda x, **kwargs: RecurrentLayer(
        x, 4, nonlinearity=nonlinearities.tanh, **kwargs), simple_step),
    'custom': (lambda x, **kwargs: CustomRecurrentLayer(
        x, DenseLayer(InputLayer((None, 3)), 4, nonlinearity=None),
        DenseLayer(InputLayer((None, 4)), 4, nonlinearity=None),
        nonlinearity=nonlinearities.tanh, **kwargs), simple_step),
    'lstm': (lambda x, **kwargs: LSTMLayer(x, 4, **kwargs), lstm_step),
    'gru': (lambda x, **kwargs: GRULayer(x, 4, **kwargs), gru_step),
}
MASK = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])


@pytest.mark.parametrize('name', RECURRENT)
@pytest.mark.parametrize('kwargs', [
    {}, {'backwards': True}, {'learn_init': True, 'precompute_input': False}, {'mask_input': None},
    {'unroll_scan': True, 'backwards': True}, {'gradient_steps': 5, 'grad_clipping': 1e9}],
    ids=lambda kwargs: ', '.join(kwargs) or 'default')
def test_recurrent_layers(name, kwargs, float64, monkeypatch):
    """A scan gives the output of a loop in NumPy, and the right gradient."""
    build, step = RECURRENT[name]
    x = np.random.RandomState(1).standard_normal((2, 5, 3))
    mask = MASK
    if 'mask_input' in kwargs:
        kwargs = {'mask_input': InputLayer(mask.shape, input_var=theano.shared(mask))}
    else:
        mask = np.ones_like(mask)
    layer = build(InputLayer(x.shape), **kwargs)
    # The mode of functions inside a scan; the flag `mode` is read but once.
    monkeypatch.setattr(theano.compile.mode, 'instantiated_default_mode', PYTHON)
    outputs, _ = run_layer(layer, x)
    expected = run_loop(layer, x, mask, step(layer), kwargs.get('backwards', False))
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-9, atol=1e-9)


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


# ------------------------------------------------------------------------- the rest of Lasagne

def test_initializers():
    lasagne.random.set_rng(np.random.RandomState(1))
    shape = (200, 100)
    bound = np.sqrt(6 / 300)
    for weights, std, low in [
            (init.Normal(.1), .1, None), (init.Uniform(.3), .3 / 3 ** .5, -.3),
            (init.GlorotUniform(), bound / 3 ** .5, -bound), (init.GlorotNormal(), bound / 3 ** .5,
                                                               None),
            (init.HeNormal(), 1 / 200 ** .5, None), (init.HeUniform('relu'), 2 ** .5 / 200 ** .5,
                                                     -6 ** .5 / 200 ** .5)]:
        sample = weights(shape)
        assert sample.dtype == 'float32' and abs(sample.mean()) < std / 20
        np.testing.assert_allclose(sample.std(), std, rtol=.03)
        assert low is None or low <= sample.min() < .98 * low
    assert (init.Constant(3)(shape) == 3).all()
    sparse = init.Sparse(sparsity=.1)(shape)
    assert ((sparse != 0).sum(axis=0) == 20).all()
    orthogonal = init.Orthogonal()(shape)
    np.testing.assert_allclose(orthogonal.T @ orthogonal, np.eye(100), atol=1e-5)


def test_nonlinearities():
    x = np.random.RandomState(1).standard_normal((4, 5)).astype('float32')
    e = np.exp(x)
    for function, expected in [
            (nonlinearities.sigmoid, sigmoid(x)), (nonlinearities.tanh, np.tanh(x)),
            (nonlinearities.softmax, e / e.sum(axis=1, keepdims=True)),
            (nonlinearities.rectify, np.maximum(x, 0)), (nonlinearities.linear, x),
            (nonlinearities.LeakyRectify(.1), np.where(x > 0, x, .1 * x)),
            (nonlinearities.very_leaky_rectify, np.where(x > 0, x, x / 3)),
            (nonlinearities.leaky_rectify, np.where(x > 0, x, .01 * x))]:
        variable = T.matrix()
        output = theano.function([variable], function(variable) * 1, mode=PYTHON)(x)
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-6)


def test_objectives(float64):
    rng = np.random.RandomState(1)
    p, t = rng.uniform(.1, .9, (4, 3)), rng.uniform(size=(4, 3))
    w, labels = rng.uniform(size=(4, 3)), np.array([0, 2, 1, 1])
    binary = -t * np.log(p) - (1 - t) * np.log(1 - p)
    for ours, expected in [
            (objectives.squared_error(T.constant(p), t), (p - t) ** 2),
            (objectives.binary_crossentropy(T.constant(p), t), binary),
            (objectives.categorical_crossentropy(T.constant(p), T.constant(t)),
             -(t * np.log(p)).sum(axis=1)),
            (objectives.categorical_crossentropy(T.constant(p), T.constant(labels)),
             -np.log(p[np.arange(4), labels])),
            (objectives.aggregate(T.constant(p), w), (p * w).mean()),
            (objectives.aggregate(T.constant(p), w, 'sum'), (p * w).sum()),
            (objectives.aggregate(T.constant(p), T.constant(w), 'normalized_sum'),
             (p * w).sum() / w.sum())]:
        np.testing.assert_allclose(theano.function([], ours, mode=PYTHON)(), expected)


def test_regularization(float64):
    first = DenseLayer(InputLayer((None, 3)), 4)
    net = DenseLayer(first, 2)
    W1, W2 = first.W.get_value(), net.W.get_value()
    for penalty, expected in [
            (regularization.regularize_layer_params(net, regularization.l1), abs(W2).sum()),
            (regularization.regularize_network_params(net, regularization.l2),
             (W1 ** 2).sum() + (W2 ** 2).sum()),
            (regularization.regularize_layer_params_weighted(
                {first: .5, net: 2}, regularization.l2),
             .5 * (W1 ** 2).sum() + 2 * (W2 ** 2).sum())]:
        np.testing.assert_allclose(theano.function([], penalty, mode=PYTHON)(), expected)


def nesterov(w, g, s, lr=.1, mu=.9):
    s['v'] = mu * s.get('v', 0) - lr * g
    return w + mu * s['v'] - lr * g


def with_momentum(w, g, s, lr=.1, mu=.9):
    s['v'] = mu * s.get('v', 0) - lr * g
    return w + s['v']


def adagrad(w, g, s, lr=.1, eps=1e-6):
    s['a'] = s.get('a', 0) + g ** 2
    return w - lr * g / np.sqrt(s['a'] + eps)


def rmsprop(w, g, s, lr=.1, rho=.9, eps=1e-6):
    s['a'] = rho * s.get('a', 0) + (1 - rho) * g ** 2
    return w - lr * g / np.sqrt(s['a'] + eps)


def adadelta(w, g, s, lr=.1, rho=.95, eps=1e-6):
    s['a'] = rho * s.get('a', 0) + (1 - rho) * g ** 2
    step = g * np.sqrt(s.get('d', 0) + eps) / np.sqrt(s['a'] + eps)
    s['d'] = rho * s.get('d', 0) + (1 - rho) * step ** 2
    return w - lr * step


def adam(w, g, s, lr=.1, b1=.9, b2=.999, eps=1e-8):
    s['t'] = s.get('t', 0) + 1
    s['m'] = b1 * s.get('m', 0) + (1 - b1) * g
    s['v'] = b2 * s.get('v', 0) + (1 - b2) * g ** 2
    rate = lr * np.sqrt(1 - b2 ** s['t']) / (1 - b1 ** s['t'])
    return w - rate * s['m'] / (np.sqrt(s['v']) + eps)


@pytest.mark.parametrize('update, reference', [
    (updates.sgd, lambda w, g, s: w - .1 * g), (updates.momentum, with_momentum),
    (updates.nesterov_momentum, nesterov), (updates.adagrad, adagrad), (updates.rmsprop, rmsprop),
    (updates.adadelta, adadelta), (updates.adam, adam)],
    ids=['sgd', 'momentum', 'nesterov', 'adagrad', 'rmsprop', 'adadelta', 'adam'])
def test_updates(update, reference, float64):
    value = np.random.RandomState(1).standard_normal((3, 2))
    w, state = theano.shared(value), {}
    step = theano.function([], updates=update((w ** 4).sum(), [w], learning_rate=.1), mode=PYTHON)
    for _ in range(4):
        step()
        value = reference(value, 4 * value ** 3, state)
        np.testing.assert_allclose(w.get_value(), value, rtol=1e-9)


def test_norm_constraints(float64):
    value = np.random.RandomState(1).standard_normal((3, 4))
    norms = np.sqrt((value ** 2).sum(axis=0))
    limited = updates.norm_constraint(T.constant(value), 1)
    np.testing.assert_allclose(limited.eval(), value * np.minimum(norms, 1) / norms, rtol=1e-5)
    total, norm = updates.total_norm_constraint([T.constant(value)], 1, return_norm=True)
    np.testing.assert_allclose(norm.eval(), np.sqrt((value ** 2).sum()))
    np.testing.assert_allclose(total[0].eval(), value / norm.eval(), rtol=1e-5)


def test_no_warning_for_what_the_user_cannot_change():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        theano_today.compat.before_theano()
        layers.get_output(Conv2DLayer(InputLayer((None, 1, 8, 8)), 2, 3))
        theano.tensor.nnet.conv2d(T.tensor4(), T.tensor4(), image_shape=(None,) * 4)
    assert [str(w.message)[:17] for w in caught] == ['The `image_shape`']  # ours, not Lasagne's


# --------------------------------------------------------------------------------------- nolearn

def classifier(**kwargs):
    """A tiny net for `digits`, with settings in nolearn's legacy format."""
    settings = dict(
        layers=[('input', InputLayer), ('conv', Conv2DLayer), ('pool', MaxPool2DLayer),
                ('output', DenseLayer)],
        input_shape=(None, 1, 6, 6), conv_num_filters=2, conv_filter_size=(3, 3),
        pool_pool_size=(2, 2), output_num_units=3, output_nonlinearity=nonlinearities.softmax,
        update_learning_rate=.05, max_epochs=2,
        batch_iterator_train=BatchIterator(10), batch_iterator_test=BatchIterator(10))
    settings.update(kwargs)
    return NeuralNet(**settings)


def regressor(**kwargs):
    settings = dict(
        layers=[(InputLayer, {'shape': (None, 4)}), (DenseLayer, {'num_units': 1,
                                                                  'nonlinearity': None})],
        regression=True, update_learning_rate=.05, max_epochs=2)
    settings.update(kwargs)
    return NeuralNet(**settings)


@pytest.fixture(scope='module')
def digits():
    rng = np.random.RandomState(0)
    y = np.tile([0, 1, 2], 12).astype('int32')
    x = rng.standard_normal((36, 1, 6, 6)).astype('float32')
    x[np.arange(36), 0, y * 2] += 3
    return x, y


@pytest.fixture(scope='module')
def line():
    rng = np.random.RandomState(0)
    x = rng.standard_normal((40, 4)).astype('float32')
    return x, (x @ [[1], [2], [-1], [0]]).astype('float32')


@pytest.fixture(scope='module')
def fitted(digits, tmp_path_factory):
    """A net fitted with every handler of nolearn, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp('fitted')
    net = classifier(
        max_epochs=4, verbose=3, use_label_encoder=True,
        on_epoch_finished=[SaveWeights(str(folder / 'w-{epoch}.pickle'), every_n_epochs=2),
                           SaveWeights(str(folder / 'net.pickle'), pickle=True, only_best=True),
                           RememberBestWeights(verbose=1)],
        on_batch_finished=[WeightLog(str(folder / 'log.csv'), write_every=1)],
        on_training_finished=[RestoreBestWeights()])
    return net.fit(digits[0], np.array(['a', 'b', 'c'])[digits[1]]), folder


def compiled(net):
    """Names of the net's functions that have been compiled."""
    return {name for name in ('train_iter_', 'eval_iter_', 'predict_iter_')
            if getattr(vars(net).get(name), 'compiled', None) is not None}


def test_handlers(fitted, capsys):
    net, folder = fitted
    assert sorted(os.listdir(folder)) == [
        'log.csv', 'net.pickle', 'w-0002.pickle', 'w-0004.pickle']
    with open(folder / 'log.csv') as f:
        assert len(f.readlines()) == 1 + 4 * 3  # a header; 4 epochs of 27 faces in tens
    assert [row['epoch'] for row in net.train_history_] == [1, 2, 3, 4]
    best, = [handler for handler in net.on_epoch_finished if hasattr(handler, 'best_weights')]
    for layer, values in best.best_weights.items():
        for ours, theirs in zip(net.get_all_params_values()[layer], values):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('verbose, words', [
    (1, ['learnable parameters', 'conv', '2x4x4']), (2, ['cap.Y', 'magenta']),
    (3, ['filter Y', 'field X'])])
def test_layer_info(verbose, words, capsys):
    net = classifier(verbose=verbose)
    net.initialize()
    PrintLayerInfo()(net)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)
    assert compiled(net) == set()


def test_classification(fitted, digits):
    net, _ = fitted
    x, y = digits
    names = np.array(['a', 'b', 'c'])[y]
    assert net.score(x, names) > .8 and set(net.predict(x)) <= set('abc')
    probabilities = net.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(net.get_output('output', x), probabilities, rtol=1e-5)
    assert net.get_output('conv', x).shape == (36, 2, 4, 4)


def test_visualize(fitted, digits):
    from nolearn.lasagne import visualize
    plt = visualize.plt
    net, _ = fitted
    x, y = digits
    try:
        visualize.plot_loss(net)
        lines = plt.gca().get_lines()
        assert [len(line.get_xdata()) for line in lines] == [4, 4]
        visualize.plot_conv_weights(net.layers_['conv'])
        assert len(plt.gcf().axes) == 4
        visualize.plot_conv_activity(net.layers_['conv'], x[:1])
        assert len(plt.gcf().axes) == 6
        visualize.plot_occlusion(net, x[:1], [y[0]], square_length=3)
        assert len(plt.gcf().axes) == 3
        visualize.plot_saliency(net, x[:2])
        assert len(plt.gcf().axes) == 6
    finally:
        plt.close('all')


def test_train_split(line, digits):
    """The fifth that nolearn held out with the KFold classes of 2015."""
    x, y = line
    _, x_valid, _, y_valid = TrainSplit(.2)(x, y, regressor())
    np.testing.assert_array_equal(x_valid, x[:8])
    np.testing.assert_array_equal(y_valid, y[:8])
    x, y = digits
    x_train, x_valid, _, y_valid = TrainSplit(.25)(x, y, classifier())
    assert len(x_train) == 27 and sorted(y_valid) == [0] * 3 + [1] * 3 + [2] * 3
    assert len(TrainSplit(0)(x, y, classifier())[1]) == 0
    _, x_valid, _, _ = TrainSplit(.25, stratify=False)(x, y, classifier())
    np.testing.assert_array_equal(x_valid, x[:9])


def test_save_and_load_params(fitted, digits, tmp_path):
    net, folder = fitted
    path = str(tmp_path / 'weights.pickle')
    net.save_params_to(path)
    for source in (path, net, net.get_all_params_values(), str(folder / 'net.pickle')):
        other = classifier()
        other.load_params_from(source)
        if source != str(folder / 'net.pickle'):
            np.testing.assert_allclose(other.predict_proba(digits[0]), net.predict_proba(digits[0]),
                                       rtol=1e-5)
        assert 'train_iter_' not in compiled(other)


# ------------------------------------------------------------------------ nolearn: pickles, clones

@pytest.mark.parametrize('copied', [
    lambda net: pickle.loads(pickle.dumps(net, -1)), copy.deepcopy,
    lambda net: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net, -1))))],
    ids=['pickle', 'deepcopy', 'pickle twice'])
def test_copies_compile_only_what_is_asked_of_them(copied, fitted, digits):
    net, _ = fitted
    other = copied(net)
    assert 'layers_' not in vars(other) and compiled(other) == set()
    assert other.train_history_ == net.train_history_
    assert other.update_learning_rate == net.update_learning_rate
    np.testing.assert_allclose(other.predict_proba(digits[0]), net.predict_proba(digits[0]),
                               rtol=1e-5)
    assert compiled(other) == {'predict_iter_'}


def test_fit_goes_on_after_loading(line):
    """Without momentum in the update rule, a net that was pickled half-way ends where others do."""
    straight = regressor(update=updates.sgd).fit(*line, epochs=2)
    paused = pickle.loads(pickle.dumps(straight))
    straight.fit(*line, epochs=2)
    paused.fit(*line, epochs=2)
    assert [row['epoch'] for row in paused.train_history_] == [1, 2, 3, 4]
    np.testing.assert_allclose([row['train_loss'] for row in paused.train_history_],
                               [row['train_loss'] for row in straight.train_history_], rtol=1e-5)
    assert compiled(paused) == {'train_iter_', 'eval_iter_'}


def test_pickle_has_the_weights_and_little_else(line):
    net = regressor(layers=[(InputLayer, {'shape': (None, 4)}), (DenseLayer, {'num_units': 5000}),
                            (DenseLayer, {'num_units': 1})])
    assert len(pickle.dumps(net, -1)) < 10000
    net.fit(*line, epochs=1)
    assert len(pickle.dumps(net, -1)) < 4 * 30001 + 10000
    restored = pickle.loads(pickle.dumps(net, -1))
    restored.initialize_layers()  # anew, as nolearn has it: other weights
    assert not np.array_equal(restored.layers_[1].W.get_value(), net.layers_[1].W.get_value())


def test_net_of_layer_objects_survives(line):
    net = regressor(layers=DenseLayer(InputLayer((None, 4)), 1, nonlinearity=None))
    net.fit(*line)
    for other in (pickle.loads(pickle.dumps(net, -1)), copy.deepcopy(net)):
        np.testing.assert_allclose(other.predict(line[0]), net.predict(line[0]), rtol=1e-5)
        other.layers_[1].W.set_value(np.zeros((4, 1), 'float32'))
    assert net.layers_[1].W.get_value().any()


def test_pickles_of_plain_nolearn_load(line):
    """They carry graph and functions: the state that nolearn 0.6.1 without mends pickles."""
    net = regressor().fit(*line)
    net.predict(line[0])
    state = dict(vars(net))
    for name in ('train_iter_', 'eval_iter_', 'predict_iter_'):
        state[name] = state[name].compiled
    old = NeuralNet.__new__(NeuralNet)
    old.__setstate__(pickle.loads(pickle.dumps(state, -1)))
    np.testing.assert_allclose(old.predict(line[0]), net.predict(line[0]), rtol=1e-5)


def test_a_net_that_was_not_fitted_says_so():
    with pytest.raises(AttributeError, match='layers_'):
        regressor().layers_
    with pytest.raises(AttributeError, match='predict_iter_'):
        regressor().predict_iter_


def test_lists_and_iterators_of_the_caller_stay_untouched():
    mine = []
    nets = [regressor(on_epoch_finished=mine, on_training_started=mine, verbose=1)
            for _ in range(2)]
    assert mine == []
    assert [type(handler) for handler in nets[0].on_epoch_finished] == [PrintLog]
    assert nets[0].batch_iterator_train is not nets[1].batch_iterator_train
    assert nets[0].train_split is not nets[1].train_split


class Shared:
    """Two handlers of one net that share this must do so in a clone."""

    def __call__(self, net, history):
        pass


def test_clone(line, capsys):
    shared = Shared()
    net = regressor(verbose=1, on_epoch_finished=[shared], on_training_finished=[shared],
                    train_split=TrainSplit(.5), update_momentum=.5)
    net.fit(*line)
    capsys.readouterr()
    other = clone(clone(net))
    assert other.train_history_ == [] and 'layers_' not in vars(other)
    assert other.update_momentum == .5 and other.train_split.eval_size == .5
    assert other.on_epoch_finished[0] is other.on_training_finished[0]
    assert other.on_epoch_finished[0] is not shared
    other.fit(*line)
    printed = capsys.readouterr().out
    assert printed.count('## Layer information') == 1
    assert len(re.findall(r'\d\.\d\ds$', printed, re.M)) == 2  # one line for each epoch


def test_estimator_of_scikit_learn(line):
    net = regressor()
    assert set(net.get_params()) >= {'layers', 'max_epochs', 'update_learning_rate', 'verbose'}
    net.set_params(max_epochs=7, update_learning_rate=.01)
    assert (net.max_epochs, net.update_learning_rate) == (7, .01)
    assert 'NeuralNet' in repr(net)
    assert 'NeuralNet' in net._repr_html_()
    x, y = line
    scores = cross_val_score(regressor(max_epochs=40), x, y, cv=2)
    assert scores.min() > .9
    search = GridSearchCV(regressor(max_epochs=30), {'update_learning_rate': [1e-5, .05]}, cv=2)
    assert search.fit(x, y).best_params_ == {'update_learning_rate': .05}
    assert search.best_estimator_.update_learning_rate == .05
    pipeline = make_pipeline(StandardScaler(), regressor(max_epochs=40)).fit(x, y)
    assert pipeline.score(x, y) > .9
