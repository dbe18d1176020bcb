"""Lasagne 0.1 does on today's Python what it was written to do.

Layers are checked in float64: forward against NumPy and SciPy, gradients against finite
differences.
"""
import re
import warnings

import theano_today  # noqa: F401  (before theano)

import lasagne
import lasagne_layers
import numpy as np
import pytest
import theano
import theano.tensor as T
from lasagne import init, layers, nonlinearities, objectives, regularization, updates
from lasagne.layers import (
    Conv1DLayer, Conv2DLayer, CustomRecurrentLayer, DenseLayer, DropoutLayer, EmbeddingLayer,
    GaussianNoiseLayer, GRULayer, InputLayer, LSTMLayer, RecurrentLayer)
from lasagne.theano_extensions import conv as conv1d
from lasagne_layers import C, LAYERS, PYTHON, convolve, run_layer, sigmoid


@pytest.fixture
def float64():
    with theano.configparser.change_flags(floatX='float64'):
        yield


# ---------------------------------------------------------------------------------------- layers

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
    source = ''
    for file in (__file__, lasagne_layers.__file__):
        with open(file) as f:
            source += f.read()
    names = [name for name in dir(layers) if name.endswith('Layer')]
    assert len(names) >= 30
    abstract = {'Layer', 'MergeLayer'}
    assert [n for n in names if n not in abstract and not re.search(n + r'[(,]', source)] == []


# ----------------------------------------------------------------------------------- recurrence

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


# ----------------------------------------------------------------------------- the rest of Lasagne

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
