"""Every layer of Lasagne with its forward pass in NumPy and SciPy, and a check of gradients."""
import theano_today  # noqa: F401  (before theano)

import numpy as np
import scipy.signal
import theano
import theano.tensor as T
from lasagne import layers, nonlinearities
from lasagne.layers import (
    ConcatLayer, Conv1DLayer, Conv2DLayer, DenseLayer, DimshuffleLayer, DropoutLayer,
    ElemwiseMergeLayer, ElemwiseSumLayer, FeaturePoolLayer, FeatureWTALayer, FlattenLayer,
    GaussianNoiseLayer, GlobalPoolLayer, LocalResponseNormalization2DLayer, MaxPool1DLayer,
    MaxPool2DLayer, NINLayer, NonlinearityLayer, PadLayer, Pool2DLayer, ReshapeLayer, SliceLayer)

# Two modes of Theano that compile fast: without C code, where that is not the point of a test, and
# with C code but few rewrites.
PYTHON = theano.compile.Mode('vm', None)
PYTHON.linker.c_thunks = False
C = theano.compile.Mode('cvm', 'fast_compile')


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


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
