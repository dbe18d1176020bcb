"""Slide "Starting Tips": the starter net, and pre-trained VGG-16 as a base line.

    net = starter_net((None, 1, 96, 96), 30)

    net = vgg16_net(num_outputs=30, input_size=96, hidden=256)
    load_vgg16(net, 'vgg16.pkl')          # a file that you have
    freeze(net, VGG16_CONVOLUTIONS)       # train the new layers only
    net.fit(X, y)                         # X (n, 1, 96, 96) in [0, 1], as kfkd.load2d gives it
"""
import pickle
import zipfile

import lasagne
import numpy as np
from lasagne import layers
from lasagne.init import GlorotUniform
from lasagne.nonlinearities import rectify, softmax
from lasagne.updates import adam
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit

from theano_today.nets import safe_pickle


def starter_net(input_shape, num_outputs, num_filters=16, num_convolutions=3, num_units=100,
                nonlinearity=rectify, W=GlorotUniform, dropout=0, **settings):
    """A small net to begin with: "~3 conv layers with ~16 filters each - quickly iterate".

    Parameters
    ----------
    input_shape : tuple
        (None, channels, height, width)
    num_outputs : int
    num_filters, num_convolutions : int
        Filters of 3x3 of each convolution; each is followed by pooling over 2x2.
    num_units : int
        Of the dense layer before the output.
    nonlinearity, W
        Of all layers but the output: a function, and a class of lasagne.init.
    dropout : float
        Share of the dense layer's inputs and outputs that are dropped.
    **settings
        Further arguments of NeuralNet, which win over those here.

    Returns
    -------
    NeuralNet
        For regression, unless ``regression=False``: then for classes, with softmax.  It learns
        faces with Adam, where Nesterov's momentum needs many epochs to leave the mean face.
    """
    regression = settings.setdefault('regression', True)
    stack = [('input', layers.InputLayer)]
    for number in range(1, num_convolutions + 1):
        stack += [(f'conv{number}', layers.Conv2DLayer),
                  (f'pool{number}', layers.MaxPool2DLayer)]
        for name, value in dict(num_filters=num_filters, filter_size=(3, 3), pad='same', W=W(),
                                nonlinearity=nonlinearity).items():
            settings.setdefault(f'conv{number}_{name}', value)
        settings.setdefault(f'pool{number}_pool_size', (2, 2))
    if dropout:
        stack += [('dropout1', layers.DropoutLayer)]
        settings.setdefault('dropout1_p', dropout)
    stack += [('hidden', layers.DenseLayer)]
    if dropout:
        stack += [('dropout2', layers.DropoutLayer)]
        settings.setdefault('dropout2_p', dropout)
    stack += [('output', layers.DenseLayer)]
    return NeuralNet(stack, **dict(dict(
        input_shape=input_shape, hidden_num_units=num_units, hidden_W=W(),
        hidden_nonlinearity=nonlinearity, output_num_units=num_outputs,
        output_nonlinearity=None if regression else softmax,
        batch_iterator_train=BatchIterator(32), batch_iterator_test=BatchIterator(128),
        train_split=TrainSplit(.2), update=adam, update_learning_rate=.001), **settings))


class SeededNet(NeuralNet):
    """A net whose first weights and dropout masks depend on its `seed` alone.

    Lasagne draws them from one stream for all nets, so that a net depends on those before it.  A
    search or a cross-validation compares settings better from the same start, and finds the same in
    several processes as in one.

    Attributes
    ----------
    seed : int
    """
    seed = 0

    def initialize_layers(self, layers=None):
        stream = lasagne.random.get_rng()
        lasagne.random.set_rng(np.random.RandomState(self.seed))
        try:
            return super().initialize_layers(layers)
        finally:
            lasagne.random.set_rng(stream)


# --------------------------------------------------------------------------------------- VGG-16

# K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
# arXiv:1409.1556, configuration D: filters of the convolutions of each block, pooling after each.
VGG16_BLOCKS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
VGG16_CONVOLUTIONS = [f'conv{block}_{number}'
                      for block, filters in enumerate(VGG16_BLOCKS, 1)
                      for number in range(1, len(filters) + 1)]
# Mean of ImageNet's pixels, 0..255, blue, green, red: the order in which Caffe reads images.
VGG_MEAN = 103.939, 116.779, 123.68


class VGGBatchIterator(BatchIterator):
    """Give images as VGG's weights want them: blue, green and red, 0..255, less ImageNet's mean.

    Takes pixels in [0, 1], (n, 1, h, w) grey or (n, 3, h, w) red, green, blue.
    """
    def transform(self, Xb, yb):
        Xb, yb = super().transform(Xb, yb)
        mean = np.array(VGG_MEAN, np.float32)[:, None, None]
        return np.float32(255) * Xb[:, ::-1] - mean, yb


def vgg16_net(num_outputs=1000, input_size=224, hidden=4096, width=1, **settings):
    """VGG-16 (configuration D) with the layer names of the published weights.

    Parameters
    ----------
    num_outputs : int
        Of the last layer: 1000 for ImageNet's classes, or those of your task.
    input_size : int
        Height and width of the images.  The published fc6 fits 224 only; the convolutions fit any.
    hidden : int
        Units of fc6 and fc7: 4096 in the paper.
    width : float
        Factor of all numbers of filters; other than 1 only to try things out.
    **settings
        Further arguments of NeuralNet, which win over those here.

    Returns
    -------
    NeuralNet
        Of 138,357,544 parameters as it is by default, a classifier; for regression, linear at the
        end, with ``regression=True``, as it must be for points in faces.
    """
    regression = settings.get('regression', False)
    stack = [(layers.InputLayer, dict(name='input', shape=(None, 3, input_size, input_size)))]
    for block, filters in enumerate(VGG16_BLOCKS, 1):
        for number, num_filters in enumerate(filters, 1):
            stack.append((layers.Conv2DLayer, dict(
                name=f'conv{block}_{number}',
                num_filters=max(int(num_filters * width), 1), filter_size=3, pad=1)))
        stack.append((layers.MaxPool2DLayer, dict(name=f'pool{block}', pool_size=2)))
    for name in 'fc6', 'fc7':
        stack.append((layers.DenseLayer, dict(name=name, num_units=hidden)))
        stack.append((layers.DropoutLayer, dict(name=name + '_dropout', p=.5)))
    stack.append((layers.DenseLayer, dict(name='fc8', num_units=num_outputs,
                                          nonlinearity=None if regression else softmax)))
    return NeuralNet(stack, **dict(dict(
        batch_iterator_train=VGGBatchIterator(32), batch_iterator_test=VGGBatchIterator(32),
        update_learning_rate=.001, update_momentum=.9), **settings))


def load_vgg16(net, fname):
    """Give a net the weights of a file, as far as their shapes are its own.

    Parameters
    ----------
    net : NeuralNet
        As `vgg16_net` returns it.
    fname : str
        What Lasagne's collection of recipes publishes as vgg16.pkl: a pickled dictionary with a
        list 'param values', W and b of the 13 convolutions and fc6 to fc8 in turn.  Or an .npz
        file with these arrays as arr_0, arr_1, ... (`numpy.savez(fname, *values)`).

    Returns
    -------
    list of str
        Names of the layers that have got their weights, filters turned by 180 degrees.  The dense
        layers keep their own where they have another shape: another size of the images, other
        units, another task.

    Raises
    ------
    ValueError
        If the file is not of this kind, or its convolutions do not fit.
    """
    values = _read_weights(fname)
    net.initialize_layers()
    names = VGG16_CONVOLUTIONS + ['fc6', 'fc7', 'fc8']
    if len(values) != 2 * len(names):
        raise ValueError(f'{fname} has {len(values)} arrays; VGG-16 has {2 * len(names)}, W and b '
                         'of 16 layers.')
    loaded = []
    for name, W, b in zip(names, values[::2], values[1::2]):
        layer = net.layers_[name]
        own = layer.W.get_value().shape, layer.b.get_value().shape
        if (W.shape, b.shape) == own:
            if W.ndim == 4:
                W = W[:, :, ::-1, ::-1]  # Caffe correlates with its filters, Lasagne 0.1 convolves
            layer.W.set_value(np.ascontiguousarray(W, layer.W.dtype))
            layer.b.set_value(np.asarray(b, layer.b.dtype))
            loaded.append(name)
        elif name in VGG16_CONVOLUTIONS:
            raise ValueError(
                f'{fname}: {name} has weights of shape {W.shape}, the net has {own[0]}.')
    return loaded


def freeze(net, names):
    """Leave layers as they are in training: before the net's first `fit`."""
    if getattr(net, '_initialized', False):
        raise ValueError('The net has its training function already: freeze layers before that.')
    if not hasattr(net, 'layers_'):
        net.initialize_layers()
    for name in names:
        for tags in net.layers_[name].params.values():
            tags.discard('trainable')


def _read_weights(fname):
    try:
        with open(fname, 'rb') as f:
            start = f.read(2)
            f.seek(0)
            if start == b'PK':  # a zip file, as NumPy writes
                arrays = np.load(f, allow_pickle=False)
                return [arrays[f'arr_{number}'] for number in range(len(arrays.files))]
            pickled = safe_pickle.load_arrays(f)
            return list(pickled['param values'] if isinstance(pickled, dict) else pickled)
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError,
            zipfile.BadZipFile) as error:
        raise ValueError(
            f'{fname} is not a file of VGG weights, a pickle or .npz of arrays: {error}.')
