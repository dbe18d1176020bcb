"""Convolutions, pooling, softmax and cross-entropy.

Theano slides flipped filters over the picture where PyTorch slides them as they are, so filters are
turned on the way in, and their gradients on the way out.  cuDNN does the convolutions on a GPU.
"""
import itertools

import torch
import torch.nn.functional as F
from theano.tensor.nnet import abstract_conv, nnet
from theano.tensor.signal import pool

from .convert import Unsupported, converts, table
from .kernels.run import cannot, precision, with_kernel

# ----------------------------------------------------------------------------------- convolutions


def _paddings(op, kernel):
    """Zeros before and after each axis, for filters of the size `kernel`."""
    dilated = [(k - 1) * d + 1 for k, d in zip(kernel, op.filter_dilation)]
    if op.border_mode == 'valid':
        return [(0, 0)] * op.convdim
    if op.border_mode == 'full':
        return [(k - 1, k - 1) for k in dilated]
    if op.border_mode == 'half':
        return [(k // 2, k // 2) for k in dilated]
    return [mode if isinstance(mode, tuple) else (mode, mode) for mode in op.border_mode]


def _even(paddings):
    """Split paddings into what both sides have in common and the rest (for `F.pad`)."""
    common = [min(pair) for pair in paddings]
    rest = [n for pair, c in reversed(list(zip(paddings, common)))
            for n in (pair[0] - c, pair[1] - c)]
    return common, rest


def _turned(op, filters):
    return filters.flip(list(range(2, filters.dim()))) if op.filter_flip else filters


def _backward(op, gradient, image, filters, padding, mask):
    return torch.ops.aten.convolution_backward(
        gradient, image, filters, None, list(op.subsample), padding, list(op.filter_dilation),
        False, [0] * op.convdim, op.num_groups, mask)


def _three_products(op, name, reference):
    """The function `name` of kernels/dot.py where it is asked for and covers the Op."""
    plain = op.convdim == 2 and tuple(op.subsample) == tuple(op.filter_dilation) == (1, 1) and \
        op.num_groups == 1 and not op.filter_flip

    def kernel(*arguments):
        if not plain or precision() != 'tf32x3':
            return cannot
        from .kernels import dot
        return getattr(dot, name)(*arguments)
    return with_kernel(kernel, reference)


def _checked(node):
    if node.op.unshared:
        raise Unsupported(f'the Op {type(node.op).__name__} with unshared filters')
    return node.op


@converts(abstract_conv.AbstractConv)
def _conv(node):
    op = _checked(node)
    function = {2: F.conv2d, 3: F.conv3d}[op.convdim]

    def reference(image, filters, padding):
        return function(image, _turned(op, filters), None, op.subsample, padding,
                        op.filter_dilation, op.num_groups)

    convolve = _three_products(op, 'convolve', reference)

    def run(image, filters):
        padding, rest = _even(_paddings(op, filters.shape[2:]))
        if any(rest):
            image = F.pad(image, rest)
        return convolve(image, filters, padding)
    return run


@converts(abstract_conv.AbstractConv_gradWeights, host=[2])
def _conv_grad_weights(node):
    op = _checked(node)

    def reference(image, gradient, size, padding):
        shape = [gradient.shape[1], image.shape[1] // op.num_groups] + size
        filters = image.new_empty(1).expand(shape)  # only its shape is looked at
        result = _backward(op, gradient, image, filters, padding, [False, True, False])[1]
        return _turned(op, result)

    either = _three_products(op, 'conv_weight_gradient', reference)

    def run(image, gradient, size):
        size = [int(n) for n in size]
        padding, rest = _even(_paddings(op, size))
        if any(rest):
            image = F.pad(image, rest)
        return either(image, gradient, size, padding)
    return run


@converts(abstract_conv.AbstractConv_gradInputs, host=[2])
def _conv_grad_inputs(node):
    op = _checked(node)

    def reference(gradient, filters, padding, shape):
        image = gradient.new_empty(1).expand(shape)
        return _backward(op, gradient, image, _turned(op, filters), padding,
                         [True, False, False])[0]

    either = _three_products(op, 'conv_input_gradient', reference)

    def run(filters, gradient, size):
        paddings = _paddings(op, filters.shape[2:])
        padding, rest = _even(paddings)
        size = [int(n) for n in size]
        padded = [n + before + after
                  for n, before, after in zip(size, rest[-2::-2], rest[-1::-2])]
        shape = [gradient.shape[0], filters.shape[1] * op.num_groups] + padded
        expected = [gradient.shape[0], filters.shape[0]] + [
            (n + 2 * p - (k - 1) * d - 1) // s + 1 for n, p, k, d, s in zip(
                padded, padding, filters.shape[2:], op.filter_dilation, op.subsample)]
        if list(gradient.shape) != expected:
            raise ValueError('invalid input_shape for gradInputs: the given input_shape would '
                             f'produce an output of shape {tuple(expected)}, but the given topgrad '
                             f'has shape {tuple(gradient.shape)}')
        result = either(gradient, filters, padding, shape)
        for axis, n in enumerate(size):
            before = rest[-2 - 2 * axis]
            result = result.narrow(2 + axis, before, n)
        return result
    return run


# ---------------------------------------------------------------------------------------- pooling

class _Windows:
    """The windows of one pooling Op over inputs of one shape.

    Parameters
    ----------
    op : Pool or PoolGrad
    shape : sequence of int
        Of the input, before padding.
    ws, stride, pad : sequence of int
        Size and distance of the windows and width of the border, for each pooled axis.
    """

    def __init__(self, op, shape, ws, stride, pad):
        self.nd = op.ndim
        self.ws, self.stride, self.pad = (
            [int(n) for n in numbers] for numbers in (ws, stride, pad))
        self.length = list(shape[-self.nd:])
        self.count = [int(n) for n in pool.Pool.out_shape(
            tuple(shape), self.ws, op.ignore_border, self.stride, self.pad, self.nd)[-self.nd:]]
        # What the windows reach over, the border included.
        self.span = [(n - 1) * s + w if n else 0
                     for n, s, w in zip(self.count, self.stride, self.ws)]

    def cover(self, x, value):
        """Pad and cut `x` to what the windows reach over; `value` goes into the border."""
        amounts = []
        for length, before, span in zip(reversed(self.length), reversed(self.pad),
                                        reversed(self.span)):
            amounts += [before, span - before - length]
        return F.pad(x, amounts, value=value) if any(amounts) else x

    def uncover(self, covered):
        """Undo `cover`, with zeros where `cover` has cut."""
        amounts = []
        for length, before, span in zip(reversed(self.length), reversed(self.pad),
                                        reversed(self.span)):
            amounts += [-before, length + before - span]
        return F.pad(covered, amounts) if any(amounts) else covered

    def offsets(self):
        """For each place in a window, the index of that place in all windows of a covered input."""
        for place in itertools.product(*map(range, self.ws)):
            yield (Ellipsis,) + tuple(
                slice(p, p + (n - 1) * s + 1 if n else 0, s)
                for p, n, s in zip(place, self.count, self.stride))

    def tiles(self):
        """Whether the windows lie side by side: each input in one window at most."""
        return self.ws == self.stride

    def split(self, covered):
        """View a covered input with an axis for the windows and one for the places, in turn."""
        pairs = [n for pair in zip(self.count, self.ws) for n in pair]
        return covered.reshape(list(covered.shape[:-self.nd]) + pairs)

    def spread(self, pooled):
        """View an output such that it broadcasts against `split`."""
        return pooled.reshape(list(pooled.shape[:-self.nd]) +
                              [n for count in self.count for n in (count, 1)])

    def sizes(self, with_border, like):
        """The number of inputs in each window, as a tensor that broadcasts against the output."""
        return _sizes(tuple(self.length), tuple(self.ws), tuple(self.stride), tuple(self.pad),
                      tuple(self.count), with_border, like.dtype, like.device)


@table  # a CUDA graph must not copy from the host
def _sizes(length, ws, stride, pad, count, with_border, dtype, device):
    total = torch.ones([1] * len(ws), dtype=dtype, device=device)
    for axis in range(len(ws)):
        low, high = (0, length[axis] + 2 * pad[axis]) if with_border else \
            (pad[axis], pad[axis] + length[axis])
        starts = [i * stride[axis] for i in range(count[axis])]
        sizes = torch.tensor([min(start + ws[axis], high) - max(start, low) for start in starts],
                             dtype=dtype, device=device)
        total = total * sizes.reshape([-1] + [1] * (len(ws) - 1 - axis))
    return total


def _lowest(x):
    return float('-inf') if x.is_floating_point() else \
        0 if x.dtype == torch.bool else torch.iinfo(x.dtype).min


@converts(pool.Pool, host=[1, 2, 3])
def _pool(node):
    op = node.op
    with_border = op.mode == 'average_inc_pad'

    def run(x, ws, stride, pad):
        windows = _Windows(op, x.shape, ws, stride, pad)
        if op.mode == 'max':
            covered = windows.cover(x, _lowest(x))
            if x.is_floating_point() and op.ndim <= 3 and x.dim() >= op.ndim:
                function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[op.ndim]
                flat = covered.reshape([-1, 1] + list(covered.shape[-op.ndim:]))
                result = function(flat, windows.ws, windows.stride)
                return result.reshape(list(x.shape[:-op.ndim]) + windows.count)
            return torch.stack([covered[offset] for offset in windows.offsets()]).amax(0)
        covered = windows.cover(x, 0)
        total = sum(covered[offset] for offset in windows.offsets())
        return total if op.mode == 'sum' else total / windows.sizes(with_border, x)
    return run


@converts(pool.MaxPoolGrad, host=[3, 4, 5])
def _max_pool_grad(node):
    op = node.op

    def run(x, maxima, gradient, ws, stride, pad):
        # Every input that equals the maximum gets the gradient, as in Theano; PyTorch's own
        # gradient would go to one of them.
        windows = _Windows(op, x.shape, ws, stride, pad)
        covered = windows.cover(x, _lowest(x))
        if windows.tiles():
            result = torch.where(windows.split(covered) == windows.spread(maxima),
                                 windows.spread(gradient), 0).reshape(covered.shape)
        else:
            result = torch.zeros_like(covered)
            for offset in windows.offsets():
                result[offset] += torch.where(covered[offset] == maxima, gradient, 0)
        return windows.uncover(result)
    return run


@converts(pool.DownsampleFactorMaxGradGrad, host=[3, 4, 5])
def _max_pool_grad_grad(node):
    op = node.op

    def run(x, maxima, values, ws, stride, pad):
        windows = _Windows(op, x.shape, ws, stride, pad)
        covered, values = windows.cover(x, _lowest(x)), windows.cover(values, 0)
        return sum(torch.where(covered[offset] == maxima, values[offset], 0)
                   for offset in windows.offsets())
    return run


@converts(pool.AveragePoolGrad, host=[2, 3, 4])
def _average_pool_grad(node):
    op = node.op

    def run(x, gradient, ws, stride, pad):
        windows = _Windows(op, x.shape, ws, stride, pad)
        if op.mode == 'average_exc_pad' and any(windows.pad):
            raise ValueError('padding must be zero for average_exc_pad')
        if op.mode != 'sum':
            gradient = gradient / windows.sizes(op.mode == 'average_inc_pad', gradient)
        if windows.tiles():
            shape = list(x.shape[:-op.ndim]) + [
                n for pair in zip(windows.count, windows.ws) for n in pair]
            result = windows.spread(gradient).expand(shape).reshape(
                list(x.shape[:-op.ndim]) + windows.span)
        else:
            result = x.new_zeros(list(x.shape[:-op.ndim]) + windows.span)
            for offset in windows.offsets():
                result[offset] += gradient
        return windows.uncover(result)
    return run


# -------------------------------------------------------------------------- softmax, cross-entropy

@converts(nnet.Softmax)
def _softmax(node):
    return lambda x: torch.softmax(x, -1)


@converts(nnet.LogSoftmax)
def _log_softmax(node):
    return lambda x: torch.log_softmax(x, -1)


@converts(nnet.SoftmaxWithBias)
def _softmax_with_bias(node):
    return lambda x, b: torch.softmax(_biased(x, b), -1)


def _biased(x, b):
    if x.shape[1] != b.shape[0]:
        raise ValueError(
            f'Dimension mismatch: x has {x.shape[1]} columns, b has {b.shape[0]} elements.')
    return x + b


@converts(nnet.SoftmaxGrad)
def _softmax_grad(node):
    return lambda dy, sm: (dy - (dy * sm).sum(1, keepdim=True)) * sm


def _labels(position, rows):
    """Labels are columns of the input `rows`, see `Converter.indices`."""
    return [(position, lambda *arguments: (0, arguments[rows].shape[1]))]


@converts(nnet.CrossentropySoftmaxArgmax1HotWithBias, indices=_labels(2, 0))
def _crossentropy_softmax(node):
    def run(x, b, labels):
        x = _biased(x, b)
        logs = torch.log_softmax(x, 1)
        loss = -_pick(logs, labels)
        return loss, torch.softmax(x, 1), torch.argmax(x, 1).to(labels.dtype)
    return run


def _pick(rows, labels):
    """The element of each row that its label names."""
    if rows.shape[0] != labels.shape[0]:
        raise ValueError(f'Dimension mismatch: {rows.shape[0]} rows and {labels.shape[0]} labels.')
    return rows.gather(1, labels.long().unsqueeze(1)).squeeze(1)


@converts(nnet.CrossentropySoftmax1HotWithBiasDx, indices=_labels(2, 1))
def _crossentropy_softmax_grad(node):
    def run(dy, sm, labels):
        dy = (dy.expand(sm.shape[0]) if dy.dim() == 0 else dy).unsqueeze(1)
        return sm * dy - _scatter(sm, labels, dy)
    return run


def _scatter(rows, labels, values):
    """Zeros but for one value in each row, where its label says."""
    values = values.expand(rows.shape[0], 1).to(rows.dtype)
    return torch.zeros_like(rows).scatter(1, labels.long().unsqueeze(1), values)


@converts(nnet.CrossentropyCategorical1Hot, indices=_labels(1, 0))
def _crossentropy(node):
    return lambda coding, labels: -torch.log(_pick(coding, labels))


@converts(nnet.CrossentropyCategorical1HotGrad, indices=_labels(2, 1))
def _crossentropy_grad(node):
    def run(gradient, coding, labels):
        return _scatter(coding, labels, (-gradient / _pick(coding, labels)).unsqueeze(1))
    return run
