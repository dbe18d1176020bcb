"""Whole nets on the device: layers, update rules, random numbers, and training step by step."""
import numpy as np
import pytest
import theano
import theano.tensor as tt
from lasagne import layers, nonlinearities, objectives, random, regularization, updates
from lasagne_layers import LAYERS
from reference import C, PYTHON, assert_close, on_device
from theano.sandbox.rng_mrg import MRG_RandomStreams

MODES = ['graph']


@pytest.mark.parametrize('name', LAYERS)
def test_layer(name):
    """Forward against NumPy; gradients run on the device and agree with Theano's Python code."""
    shape, build, reference = LAYERS[name]
    init_seed()
    layer = build(layers.InputLayer(shape))
    params = layers.get_all_params(layer)
    x = np.random.RandomState(1).standard_normal(shape).astype('float32')
    output = layers.get_output(layer, deterministic=True)
    input_var = layers.get_all_layers(layer)[0].input_var
    wrt = [input_var] + params
    # Theano's own optimizer does not come to an end with the gradient of the square of this one.
    gradients = [] if name == 'pad' else theano.grad((output ** 2).sum(), wrt)
    f = theano.function([input_var], [output] + gradients)
    assert on_device(f)
    expected = reference(x, *[p.get_value() for p in params])
    for _ in range(3):
        results = f(x)
        np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-5)
    if gradients and 'conv' not in name:  # Theano has no Python code for convolution; see test_ops
        host = theano.function([input_var], gradients, mode=PYTHON)
        for ours, theirs in zip(results[1:], host(x)):
            assert_close(ours, theirs, rtol=1e-4)


def test_layers_of_the_old_backends():
    """cuDNN's and cuda-convnet's by their names, against Theano's Python code, which SciPy runs."""
    from lasagne.layers.cuda_convnet import Conv2DCCLayer, MaxPool2DCCLayer
    from lasagne.layers.dnn import Conv2DDNNLayer, MaxPool2DDNNLayer
    init_seed()
    inputs = layers.InputLayer((4, 3, 12, 12))
    hidden = MaxPool2DDNNLayer(Conv2DDNNLayer(inputs, 16, 3, pad=1), 2)
    hidden = MaxPool2DCCLayer(Conv2DCCLayer(hidden, 16, 3, pad=1), 2)
    output = layers.get_output(layers.DenseLayer(hidden, 3, nonlinearity=None))
    wrt = [inputs.input_var] + layers.get_all_params(hidden)
    outputs = [output] + theano.grad((output ** 2).sum(), wrt)
    device = theano.function([inputs.input_var], outputs)
    assert on_device(device)
    x = np.random.RandomState(1).standard_normal((4, 3, 12, 12)).astype('float32')
    python = theano.Mode(PYTHON.linker, None)
    for ours, theirs in zip(device(x), theano.function([inputs.input_var], outputs, mode=python)(x)):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def init_seed(seed=1):
    random.set_rng(np.random.RandomState(seed))


def test_embedding():
    words = np.array([[0, 3, 3], [4, 1, 0]], 'int32')
    layer = layers.EmbeddingLayer(layers.InputLayer((2, 3), input_var=tt.imatrix()), 5, 4)
    W, = layer.get_params()
    before = W.get_value()
    output = layers.get_output(layer)
    f = theano.function([layer.input_layer.input_var], output,
                        updates=updates.sgd(output.sum(), [W], 0.5))
    assert on_device(f)
    for n in range(1, 4):
        f(words)
        counts = np.bincount(words.ravel(), minlength=5)[:, None]
        np.testing.assert_allclose(W.get_value(), before - 0.5 * n * counts, rtol=1e-6)


RULES = {
    'sgd': lambda cost, params: updates.sgd(cost, params, 0.1),
    'momentum': lambda cost, params: updates.momentum(cost, params, 0.1, 0.9),
    'nesterov_momentum': lambda cost, params: updates.nesterov_momentum(cost, params, 0.1, 0.9),
    'adagrad': lambda cost, params: updates.adagrad(cost, params, 0.1),
    'rmsprop': lambda cost, params: updates.rmsprop(cost, params, 0.01),
    'adadelta': lambda cost, params: updates.adadelta(cost, params),
    'adam': lambda cost, params: updates.adam(cost, params),
    'norm constraint': lambda cost, params: constrained(updates.sgd(cost, params, 0.1)),
    'total norm': lambda cost, params: updates.sgd(
        updates.total_norm_constraint(theano.grad(cost, params), 0.1), params, 0.1),
}


def constrained(rule):
    for param, value in rule.items():
        if param.ndim == 2:
            rule[param] = updates.norm_constraint(value, 0.5)
    return rule


@pytest.mark.parametrize('rule', RULES)
def test_update_rules(rule):
    losses, weights = [], []
    for mode in (None, PYTHON):
        init_seed()
        net = layers.DenseLayer(layers.DenseLayer(layers.InputLayer((None, 6)), 5), 3,
                                nonlinearity=nonlinearities.tanh)
        y = tt.matrix()
        cost = objectives.squared_error(layers.get_output(net), y).mean()
        cost += 0.01 * regularization.regularize_network_params(net, regularization.l2) + \
            0.01 * regularization.regularize_network_params(net, regularization.l1)
        params = layers.get_all_params(net, trainable=True)
        step = theano.function([layers.get_all_layers(net)[0].input_var, y], cost,
                               updates=RULES[rule](cost, params), mode=mode)
        assert on_device(step) == (mode is None)
        rng = np.random.RandomState(0)
        losses.append([step(rng.randn(8, 6).astype('f'), rng.randn(8, 3).astype('f'))
                       for _ in range(8)])
        weights.append(layers.get_all_param_values(net))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for ours, theirs in zip(*weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- random numbers

@pytest.mark.parametrize('shape, streams', [
    ((3, 5), 7), ((4, 7), 7), ((1000,), 1), ((2, 3), 50), ((7,), 7), ((8,), 7), ((15,), 7),
    ((100, 100), 60)], ids=str)
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_streams_bit_for_bit(shape, streams, dtype):
    numbers, states = [], []
    for mode in (None, C):
        rng = MRG_RandomStreams(31)
        draw = rng.uniform(shape, nstreams=streams, dtype=dtype)
        state = rng.state_updates[0][0]
        f = theano.function([], draw, mode=mode)
        assert on_device(f) == (mode is None)
        numbers.append([f() for _ in range(4)])
        states.append(state.get_value())
    np.testing.assert_array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(states[0], states[1])


def test_states_at_the_edges():
    """States next to the moduli, where the recurrences wrap around."""
    m1, m2 = 2147483647, 2147462579
    states = np.array([[m1 - 1] * 3 + [m2 - 1] * 3, [0, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0],
                       [m1 - 1, 0, m1 - 1, m2 - 1, 0, m2 - 1], [0, m1 - 1, 0, 0, m2 - 1, 0],
                       [12345] * 6, [2 ** 31 - 21070] * 6], 'int32')
    results = []
    for mode in (None, C):
        rng = MRG_RandomStreams(1)
        draw = rng.uniform((7 * 500,), nstreams=7)
        state = rng.state_updates[0][0]
        state.set_value(states)
        results.append((theano.function([], draw, mode=mode)(), state.get_value()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_distributions():
    draws = []
    for mode in (None, PYTHON):
        rng = MRG_RandomStreams(5)
        size = tt.ivector()
        f = theano.function([size], [
            rng.binomial((6, 7), p=0.3, dtype='float32'), rng.normal((5, 4), avg=2, std=0.5),
            rng.uniform(size, ndim=2, low=-1, high=3, nstreams=11)], mode=mode)
        assert on_device(f) == (mode is None)
        draws.append([f(np.array(shape, 'int32')) for shape in ([3, 4], [3, 4], [0, 2], [5, 3])])
    for ours, theirs in zip(*draws):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
        np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-6)


# ---------------------------------------------------------------------------------------- training

def faces():
    """The deck's net, smaller: convolutions, pooling, dropout, dense layers, regression."""
    net = layers.InputLayer((None, 1, 24, 24))
    for filters, size, p in ((6, 3, 0.1), (8, 2, 0.2), (10, 2, 0.3)):
        net = layers.Conv2DLayer(net, filters, size)
        net = layers.MaxPool2DLayer(net, 2)
        net = layers.DropoutLayer(net, p)
    net = layers.DropoutLayer(layers.DenseLayer(net, 40), 0.5)
    net = layers.DenseLayer(layers.DenseLayer(net, 40), 6, nonlinearity=None)
    return net, tt.matrix(), objectives.squared_error


def digits():
    """A classifier: softmax and cross-entropy, mean pooling, response normalisation, noise."""
    net = layers.InputLayer((None, 1, 14, 14))
    net = layers.GaussianNoiseLayer(net, 0.1)
    net = layers.Conv2DLayer(net, 8, 3, pad='same')
    net = layers.LocalResponseNormalization2DLayer(net, alpha=0.1)
    net = layers.Pool2DLayer(net, 2, mode='average_exc_pad')
    net = layers.Conv2DLayer(net, 8, 3, stride=2, nonlinearity=nonlinearities.leaky_rectify)
    net = layers.DropoutLayer(layers.DenseLayer(net, 30, nonlinearity=nonlinearities.tanh), 0.5)
    net = layers.DenseLayer(net, 10, nonlinearity=nonlinearities.softmax)
    return net, tt.ivector(), objectives.categorical_crossentropy


def autoencoder():
    """Merge layers: two branches concatenated, summed with a third, and decoded."""
    x = layers.InputLayer((None, 20))
    left = layers.DenseLayer(layers.DropoutLayer(x, 0.2), 12, nonlinearity=nonlinearities.sigmoid)
    right = layers.DenseLayer(x, 4, nonlinearity=nonlinearities.tanh)
    code = layers.ConcatLayer([left, right])
    code = layers.ElemwiseSumLayer([code, layers.DenseLayer(x, 16)], coeffs=[1, -0.5])
    code = layers.ElemwiseMergeLayer([code, layers.DenseLayer(code, 16)], tt.maximum)
    return layers.DenseLayer(code, 20, nonlinearity=None), tt.matrix(), objectives.squared_error


# One update rule, the deck's: the reference has to be compiled.  The others: test_update_rules.
NETS = {'faces': (faces, (1, 24, 24), (6,)),
        'digits': (digits, (1, 14, 14), None),
        'autoencoder': (autoencoder, (20,), (20,))}


def train(name, mode, steps=20):
    """Losses of some steps, and the weights after them."""
    build, shape, target_shape = NETS[name]
    init_seed(3)  # of the weights, and of the dropout layers' streams
    net, target, loss = build()
    x = layers.get_all_layers(net)[0].input_var
    cost = loss(layers.get_output(net), target).mean()
    rate = theano.shared(np.float32(0.01))
    step = theano.function(
        [x, target], cost, mode=mode,
        updates=updates.nesterov_momentum(
            cost, layers.get_all_params(net, trainable=True), learning_rate=rate))
    assert on_device(step) == (mode is None)
    data = np.random.RandomState(0)
    losses = []
    for n in range(steps):
        rate.set_value(np.float32(0.02 - 0.0005 * n))  # as AdjustVariable does
        rows = 16 if n % 5 != 4 else 7  # the last batch of an epoch is smaller
        batch = data.rand(rows, *shape).astype('float32')
        labels = data.randn(rows, *target_shape).astype('float32') if target_shape else \
            data.randint(0, 10, rows).astype('int32')
        losses.append(float(step(batch, labels)))
    return np.array(losses), layers.get_all_param_values(net)


@pytest.mark.parametrize('name', NETS)
def test_twenty_steps(name):
    ours, our_weights = train(name, None)
    theirs, their_weights = train(name, C)
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    for a, b in zip(our_weights, their_weights):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_same_seed_same_weights():
    first, second = train('faces', None), train('faces', None)
    np.testing.assert_array_equal(first[0], second[0])
    for a, b in zip(first[1], second[1]):
        np.testing.assert_array_equal(a, b)
