"""The starter net and VGG-16: their shapes, and weights from a file in the published format."""
import pickle

import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
from beyond import nets
from beyond.nets import (
    VGG16_CONVOLUTIONS, VGGBatchIterator, freeze, load_vgg16, starter_net, vgg16_net)
from nolearn.lasagne import TrainSplit

WIDTH = 1 / 16


def weights(width=WIDTH, size=32, hidden=20, outputs=1000, seed=0):
    """Small random weights in the order of the published file."""
    random = np.random.RandomState(seed)
    values, channels = [], 3
    for filters in sum(nets.VGG16_BLOCKS, ()):
        n = int(filters * width)
        values += [random.normal(0, .7 * (2 / 9 / channels) ** .5, (n, channels, 3, 3)),
                   random.normal(0, .1, n)]
        channels = n
    inputs = channels * (size // 32) ** 2
    for n in hidden, hidden, outputs:
        values += [random.normal(0, inputs ** -.5, (inputs, n)), random.normal(0, .1, n)]
        inputs = n
    return [value.astype(np.float32) for value in values]


def write_pickle(path, values):
    with open(str(path), 'wb') as f:
        pickle.dump({'param values': values, 'mean value': np.array(nets.VGG_MEAN)}, f, 2)
    return str(path)


def vgg_in_numpy(values, X):
    """The net's output for images as `VGGBatchIterator` gives them; filters correlate."""
    values = [value.astype(float) for value in values]
    position = 0
    for filters in nets.VGG16_BLOCKS:
        for _ in filters:
            W, b = values[position:position + 2]
            padded = np.pad(X, [(0, 0), (0, 0), (1, 1), (1, 1)])
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
            X = np.maximum(np.einsum('ncijkl,fckl->nfij', windows, W, optimize=True)
                           + b[:, None, None], 0)
            position += 2
        n, channels, height, width = X.shape
        X = X.reshape(n, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    X = X.reshape(len(X), -1)
    for last in False, False, True:
        X = X @ values[position] + values[position + 1]
        X = X if last else np.maximum(X, 0)
        position += 2
    exponents = np.exp(X - X.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def faces(n, size):
    return np.random.RandomState(1).rand(n, 1, size, size).astype(np.float32)


def test_pretrained_net_is_the_one_of_the_file(tmp_path):
    """Forward through the whole net with weights from a file, against NumPy."""
    values = weights()
    net = vgg16_net(input_size=32, hidden=20, width=WIDTH)
    loaded = load_vgg16(net, write_pickle(tmp_path / 'vgg16.pkl', values))
    assert loaded == VGG16_CONVOLUTIONS + ['fc6', 'fc7', 'fc8']
    net.initialize()
    X = faces(3, 32)
    expected = vgg_in_numpy(values, VGGBatchIterator(3).transform(X, None)[0].astype(float))
    np.testing.assert_allclose(net.predict_proba(X), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path, protocol):
    """Python 3.14 writes protocol 5 where nobody says which."""
    net = vgg16_net(input_size=32, hidden=20, width=WIDTH)
    values = weights()
    content = pickle.dumps({'param values': values}, protocol)
    contents = [content]
    if protocol < 4:  # names are lines, so that another NumPy's can be put in their place
        contents += [content.replace(b'numpy._core.', b'numpy.core.'),
                     content.replace(b'numpy.core.', b'numpy._core.')]
    for content in contents:
        path = tmp_path / 'vgg16.pkl'
        path.write_bytes(content)
        load_vgg16(net, str(path))
        np.testing.assert_array_equal(net.layers_['conv5_3'].b.get_value(), values[25])
        np.testing.assert_array_equal(net.layers_['fc8'].W.get_value(), values[30])


def test_fine_tuning_on_faces(tmp_path):
    """New dense layers learn, frozen convolutions stay as they were in the file."""
    values = weights(size=224, hidden=24)
    path = str(tmp_path / 'vgg16.npz')
    np.savez(path, *values)
    net = vgg16_net(num_outputs=2, input_size=32, hidden=24, width=WIDTH, regression=True,
                    train_split=TrainSplit(0), update_learning_rate=1e-3, max_epochs=6)
    loaded = load_vgg16(net, path)
    assert loaded == VGG16_CONVOLUTIONS + ['fc7']  # fc6 sees another size, fc8 has other outputs
    freeze(net, VGG16_CONVOLUTIONS)
    X = faces(32, 32)
    y = np.stack([X[:, 0, :16].mean(axis=(1, 2)), X[:, 0, 16:].mean(axis=(1, 2))], axis=1)
    net.fit(X, y)
    losses = [row['train_loss'] for row in net.train_history_]
    assert losses[-1] < losses[0]
    assert len(net.get_all_params(trainable=True)) == 6
    for name, W in zip(VGG16_CONVOLUTIONS, values[::2]):
        np.testing.assert_array_equal(net.layers_[name].W.get_value(), W[:, :, ::-1, ::-1])
    with pytest.raises(ValueError, match='training function already'):
        freeze(net, ['fc6'])


def test_default_is_the_papers_size():
    net = vgg16_net()
    shapes, channels = [], 3  # read from the settings: 138 million weights need not be drawn
    for _factory, settings in net.layers:
        if 'num_filters' in settings:
            shapes.append((settings['num_filters'], channels, 3, 3))
            channels = settings['num_filters']
        if 'num_units' in settings:
            inputs = shapes[-1][1] if len(shapes[-1]) == 2 else channels * 7 * 7
            shapes.append((inputs, settings['num_units']))
    parameters = sum(np.prod(shape) + (shape[0] if len(shape) == 4 else shape[1])
                     for shape in shapes)
    assert parameters == 138357544 and len(shapes) == 16


def test_pixels_are_caffes():
    X = np.zeros((1, 3, 2, 2), np.float32)
    X[:, 0] = 1  # red
    Xb, _ = VGGBatchIterator(1).transform(X, None)
    np.testing.assert_allclose(Xb[0, :, 0, 0], [-103.939, -116.779, 255 - 123.68], rtol=1e-5)
    assert VGGBatchIterator(1).transform(faces(2, 4), None)[0].shape == (2, 3, 4, 4)


class Evil:
    def __reduce__(self):
        return eval, ('1/0',)


@pytest.mark.parametrize('content, words', [
    (b'not a pickle', 'not a file of VGG weights'),
    (pickle.dumps({'param values': Evil()}), 'asks for builtins.eval'),
    (pickle.dumps({'weights': []}), 'not a file of VGG weights'),
    (pickle.dumps({'param values': [np.zeros(3)]}), 'has 1 arrays; VGG-16 has 32'),
    (pickle.dumps({'param values': [np.array([Evil()])]}, 5), "an array of type 'O8'"),
    (b'PK\x03\x04', 'not a file of VGG weights'),
], ids=['text', 'code', 'other pickle', 'too few', 'code in an array', 'half a zip file'])
def test_files_that_are_something_else(tmp_path, content, words):
    path = tmp_path / 'vgg16.pkl'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_vgg16(vgg16_net(input_size=32, hidden=4, width=WIDTH), str(path))


def test_weights_of_another_width(tmp_path):
    path = write_pickle(tmp_path / 'vgg16.pkl', weights(width=1 / 32))
    with pytest.raises(ValueError, match='conv1_1 has weights of shape .2, 3, 3, 3., the net'):
        load_vgg16(vgg16_net(input_size=32, hidden=4, width=WIDTH), path)


def test_starter_net():
    net = starter_net((None, 1, 96, 96), 30, dropout=.5, hidden_num_units=50)
    net.initialize_layers()
    shapes = [param.get_value().shape for param in net.get_all_params() if param.ndim > 1]
    assert shapes == [(16, 1, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (16 * 12 * 12, 50), (50, 30)]
    assert [name for name in net.layers_ if 'dropout' in name] == ['dropout1', 'dropout2']
