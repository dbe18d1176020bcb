"""Layers that the field has added since Lasagne 0.1, as layers of Lasagne 0.1.

    ('pool1', MaxPool2DLayer), ('norm1', BatchNormLayer),       # learns faster, larger steps
    ('output', ExpectedPositionLayer), output_num_units=30      # points as means of heat maps

In a YAML experiment they are named like Lasagne's own.
"""
import numpy as np
import theano
import theano.tensor as T
from lasagne.init import Constant, GlorotUniform
from lasagne.layers import Layer
from lasagne.utils import floatX

__all__ = ['BatchNormLayer', 'ExpectedPositionLayer']


class BatchNormLayer(Layer):
    r"""Give each channel mean 0 and deviation 1 over the batch, then a scale and a shift it learns.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training :math:`\mu` and :math:`\sigma^2` are those of the batch; with ``deterministic=True``
    they are running averages over the batches of the training.

    Parameters
    ----------
    incoming : Layer or tuple
        Output of shape (batch, channels, ...): all axes but the second are averaged over.
    epsilon : float
        Added to the variance.
    alpha : float
        Share of the newest batch in the running averages.
    beta, gamma, mean, variance
        Initial values, as Lasagne's layers take them, of shape (channels,).  Beta and gamma are
        trainable; beta is not regularizable, as biases are not.

    Notes
    -----
    It costs least behind a pooling layer, where the array has a fourth of the size, and the
    convolution, its ReLU and the pooling stay one step of the CPU engine.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", arXiv:1502.03167.
    """

    def __init__(self, incoming, epsilon=1e-4, alpha=0.1, beta=Constant(0), gamma=Constant(1),
                 mean=Constant(0), variance=Constant(1), **kwargs):
        super().__init__(incoming, **kwargs)
        channels = self.input_shape[1]
        if channels is None:
            raise ValueError('BatchNormLayer needs to know the number of channels, axis 1 of '
                             f'{self.input_shape}.')
        self.epsilon, self.alpha = epsilon, alpha
        self.beta = self.add_param(beta, (channels,), 'beta', regularizable=False)
        self.gamma = self.add_param(gamma, (channels,), 'gamma')
        self.mean = self.add_param(mean, (channels,), 'mean', trainable=False, regularizable=False)
        self.variance = self.add_param(variance, (channels,), 'variance', trainable=False,
                                       regularizable=False)

    def get_output_for(self, input, deterministic=False, **kwargs):
        axes = [axis for axis in range(input.ndim) if axis != 1]
        along = ['x', 0] + ['x'] * (input.ndim - 2)
        if deterministic:
            mean, variance = self.mean, self.variance
        else:
            mean = input.mean(axes)
            variance = T.sqr(input - mean.dimshuffle(along)).mean(axes)
            # Theano updates a shared variable that has a `default_update` whenever a function uses
            # it: clones of ours, which stay without, so that other functions leave them alone.
            for batch, running in (mean, self.mean), (variance, self.variance):
                clone = theano.clone(running, share_inputs=False)
                clone.default_update = ((1 - floatX(self.alpha)) * clone
                                        + floatX(self.alpha) * batch)
                mean = mean + 0 * clone
        scale = self.gamma / T.sqrt(variance + floatX(self.epsilon))
        shift = self.beta - mean * scale
        return input * scale.dimshuffle(along) + shift.dimshuffle(along)


class ExpectedPositionLayer(Layer):
    r"""Find points: a heat map for each, and the mean position under its softmax.

    .. math:: (x, y) = \sum_{ij} \frac{\exp h_{ij}}{\sum_{kl} \exp h_{kl}} (x_j, y_i)

    Here :math:`h` is a linear map of the incoming channels at each cell, a 1x1 convolution, and
    :math:`(x_j, y_i)` is the middle of the cell, in [-1, 1] from the left and top edges to the others.
    A dense layer must learn the coordinates of each cell, for each point; here they are given, and
    what the convolutions see of a nose counts alike wherever it is.

    Parameters
    ----------
    incoming : Layer or tuple
        Output of shape (batch, channels, height, width).
    num_units : int
        Coordinates: x and y in turn, twice the number of points.
    W, b
        Initial values, as Lasagne's layers take them, of shape (channels, points) and (points,).

    References
    ----------
    X. Sun, B. Xiao, F. Wei, S. Liang, Y. Wei, "Integral Human Pose Regression", arXiv:1711.08229.
    """

    def __init__(self, incoming, num_units, W=GlorotUniform(), **kwargs):
        super().__init__(incoming, **kwargs)
        if len(self.input_shape) != 4 or None in self.input_shape[1:]:
            raise ValueError('ExpectedPositionLayer needs maps, (batch, channels, height, width), '
                             f'not {self.input_shape}.')
        if num_units % 2:
            raise ValueError(f'num_units = {num_units}: x and y in turn are an even number.')
        self.num_units = num_units
        self.W = self.add_param(W, (self.input_shape[1], num_units // 2), 'W')

    def get_output_shape_for(self, input_shape):
        return input_shape[0], self.num_units

    def get_heat_maps_for(self, input):
        """The softmax of each map, (batch * points, height * width)."""
        channels, height, width = self.input_shape[1:]
        cells = input.dimshuffle(0, 2, 3, 1).reshape((-1, channels))
        maps = T.dot(cells, self.W).reshape((-1, height * width, self.num_units // 2))
        return T.nnet.softmax(maps.dimshuffle(0, 2, 1).reshape((-1, height * width)))

    def get_output_for(self, input, **kwargs):
        height, width = self.input_shape[2:]
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        places = np.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], axis=1)
        return T.dot(self.get_heat_maps_for(input), floatX(places)).reshape((-1, self.num_units))
