"""Slides "Forward - Backward Path" and "Monitor Layers' Training": look into a net of nolearn.

    from beyond.pictures import plot_paths, plot_point_saliency
    plot_paths(net, X[:32], y[:32]).savefig('paths.png')

For weights and activity, nolearn's own pictures work on any net with convolutions:

    from nolearn.lasagne.visualize import plot_conv_activity, plot_conv_weights, plot_occlusion
    plot_conv_weights(net.layers_['conv1']).savefig('weights.png')
    plot_conv_activity(net.layers_['conv1'], X[:1]).savefig('activity.png')
    plot_occlusion(net, X[:2], [0, 0]).savefig('occlusion.png')

nolearn's `plot_saliency` takes the logarithm of a probability: it is for classifiers only.
`plot_point_saliency` is for nets that find points.
"""
import numpy as np
import theano
import theano.tensor as T
from lasagne.layers import InputLayer, get_output
from matplotlib import pyplot

from .figures import SKY
from .monitors import inputs_of, outputs_and_loss


def paths(net, X, y):
    """Send one batch forward through a net and its loss backward.

    Parameters
    ----------
    net : NeuralNet
    X, y : ndarray
        A batch as the net's functions take it.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        By the layer's name: its output, and the gradient of the loss with respect to it, of the
        same shape.  Layers that change nothing in this mode (dropout) are left out.
    """
    target = net.y_tensor_type('y')
    names = [name for name, layer in net.layers_.items() if not hasattr(layer, 'p')]
    outputs, loss = outputs_and_loss(net, names, target, deterministic=True)
    function = theano.function(inputs_of(net) + [theano.In(target, name='y')],
                               outputs + theano.grad(loss, outputs), allow_input_downcast=True)
    values = net.apply_batch_func(function, X, y)
    return dict(zip(names, zip(values[:len(names)], values[len(names):])))


def plot_paths(net, X, y, row=0, maps=4):
    """Draw the forward path (top) and the backward path (bottom) of one image.

    A convolution shows the feature maps with the largest outputs; a dense layer shows all its units
    as one strip.  Grey is 0 in the backward path; each layer has its own scale, written below it.

    Parameters
    ----------
    net, X, y
        As in `paths`.
    row : int
        The image of the batch to show.
    maps : int
        Feature maps of each convolution.

    Returns
    -------
    matplotlib Figure
    """
    values = paths(net, X, y)
    shown = [name for name in values if 'pool' not in type(net.layers_[name]).__name__.lower()]
    height = maps
    fig = pyplot.figure(figsize=(1.6 * len(shown), 1.1 * 2 * height + 1.2), layout='constrained')
    top, bottom = fig.subfigures(2, 1)
    for part, half in enumerate((top, bottom)):
        half.suptitle(('Forward: outputs', 'Backward: gradient of the loss by the outputs')[part])
        axes = half.subplots(height, len(shown), squeeze=False)
        for column, name in enumerate(shown):
            output, value = values[name][0][row], values[name][part][row]
            limit = float(np.abs(value).max()) or 1.
            scale = dict(cmap='gray', vmin=0 if value.min() >= 0 else -limit, vmax=limit)
            images, order = [value[:, None]], [0]  # a strip: one unit, one line
            if value.ndim == 3:
                images = value
                order = np.argsort(-np.abs(output).mean(axis=(1, 2)), kind='stable')[:height]
            for axis in axes[:, column]:
                axis.set(xticks=[], yticks=[], visible=False)
            for axis, index in zip(axes[:, column], order):
                axis.set_visible(True)
                axis.imshow(images[index], aspect='auto' if value.ndim == 1 else 'equal',
                            interpolation='nearest', **scale)
            shape = 'x'.join(map(str, value.shape))
            axes[0, column].set_title(f'{name}\n{shape}', fontsize=8)
            axes[len(order) - 1, column].set_xlabel(
                f'{value.min():+.1e} to\n{value.max():+.1e}', fontsize=7)
    return fig


def point_saliency(net, X, columns):
    """How far each pixel moves the points that a net finds.

    Parameters
    ----------
    net : NeuralNet
        For regression.
    X : ndarray, shape (n, channels, height, width)
        A batch as the net's functions take it.
    columns : sequence of int
        Outputs: the two of a point, for example.

    Returns
    -------
    ndarray, shape (n, height, width)
        Euclidean norm of the gradient of the outputs by the pixel, over `columns` and channels.
    """
    [input_layer] = [layer for layer in net.layers_.values() if isinstance(layer, InputLayer)]
    column = T.iscalar()
    output = get_output(net.layers_[-1], deterministic=True)
    function = theano.function([input_layer.input_var, column],
                               theano.grad(output[:, column].sum(), input_layer.input_var),
                               allow_input_downcast=True)
    return np.sqrt(sum((function(X, index) ** 2).sum(axis=1) for index in columns))


def plot_point_saliency(net, X, points):
    """Draw images, the points found in them, and the pixels that these hang on.

    Parameters
    ----------
    net : NeuralNet
        For regression, with outputs x and y of each point in [-1, 1].
    X : ndarray, shape (n, 1, height, width)
        A batch as the net's functions take it.
    points : dict of str to int
        Names of points, and the column of each one's x; y is the next one.

    Returns
    -------
    matplotlib Figure
    """
    found = net.predict_iter_(X)[0]
    half = np.array(X.shape[:1:-1]) / 2
    fig, axes = pyplot.subplots(len(X), 1 + len(points), squeeze=False, layout='constrained',
                                figsize=(2 * (1 + len(points)), 2.1 * len(X) + .3))
    for axis, image in zip(axes[:, 0], X):
        axis.imshow(image[0], cmap='gray')
    axes[0, 0].set_title('image')
    for number, (name, column) in enumerate(points.items(), 1):
        axes[0, number].set_title(name.replace('_', ' '), fontsize=9)
        for axis, heat, outputs in zip(axes[:, number],
                                       point_saliency(net, X, (column, column + 1)), found):
            axis.imshow(heat, cmap='inferno')
            x, y = outputs[column:column + 2] * half + half
            axis.plot(x, y, '+', color=SKY, markersize=12, markeredgewidth=2)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], xlim=(-.5, X.shape[3] - .5), ylim=(X.shape[2] - .5, -.5))
    return fig
