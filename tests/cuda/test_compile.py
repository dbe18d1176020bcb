"""THEANO_TODAY_CUDA=compile: lines that torch.compile has fused, the updates of which happen once."""
import lasagne
import numpy as np
import theano
import theano.tensor as tt
from lasagne import layers, updates

MODES = ['compile']


def steps(monkeypatch, mode):
    """Losses of a few steps of a small net, its weights, and the function."""
    monkeypatch.setenv('THEANO_TODAY_CUDA', mode)
    lasagne.random.set_rng(np.random.RandomState(1))
    net = layers.InputLayer((None, 1, 8, 8))
    net = layers.MaxPool2DLayer(layers.Conv2DLayer(net, 3, 3), 2)
    net = layers.DenseLayer(layers.DropoutLayer(net, 0.5), 2, nonlinearity=None)
    x, y = layers.get_all_layers(net)[0].input_var, tt.matrix()
    cost = lasagne.objectives.squared_error(layers.get_output(net), y).mean()
    step = theano.function([x, y], cost, updates=updates.nesterov_momentum(
        cost, layers.get_all_params(net), 0.1))
    data = np.random.RandomState(0)
    losses = [float(step(data.rand(4, 1, 8, 8).astype('f'), data.rand(4, 2).astype('f')))
              for _ in range(6)]
    return losses, layers.get_all_param_values(net), step


def test_a_compiled_step(monkeypatch, caplog):
    losses, weights, step = steps(monkeypatch, 'compile')
    line, = step.fn.lines.values()
    assert line.captures and 'could not be captured' not in caplog.text
    expected, their_weights, step = steps(monkeypatch, 'eager')
    assert not list(step.fn.lines.values())[0].captures
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for ours, theirs in zip(weights, their_weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
