"""Convolution with bias, ReLU, max-pooling and dropout as one Op, and its gradients as another.

    h = conv2d(x, W, ...) + b              AbstractConv2d, Elemwise
    h = 0.5 * (h + abs(h))                 Elemwise                ──►  out = ConvPool(x, W, b, u)
    h = pool_2d(h, ...)                    Pool
    out = h / retain * (u < retain)        Elemwise

Every part but the convolution may be missing.  The fusions grow the Op step by step from the
convolution on: first it takes in the zero padding or cropping by which Lasagne expresses its
``pad``, then the bias, the ReLU, the pooling and the dropout, each only when nothing else needs
what goes in.

Besides the output, `ConvPool` returns bit masks: through which positions of each pooling window the
gradient flows.  `ConvPoolGrad` needs neither the output nor any activation in between.

The kernels and how they work: conv.hpp.

What stays with stock Ops: float64, dilated, grouped and unshared convolutions, average pooling,
ReLUs with a slope for negative numbers, biases that differ from pixel to pixel, dropout with a
symbolic probability.  But for the first four, the convolution itself is replaced even so.
"""
from collections import OrderedDict, namedtuple

import numpy as np
import theano
import theano.tensor as tt
from theano import gof, scalar
from theano.gof.params_type import ParamsType
from theano.gradient import DisconnectedType, UndefinedGrad
from theano.tensor.elemwise import DimShuffle, Elemwise
from theano.tensor.nnet.abstract_conv import AbstractConv2d
from theano.tensor.opt import Shape_i
from theano.tensor.signal.pool import Pool
from theano.tensor.subtensor import IncSubtensor, Subtensor

from .native import NativeOp
from .rewrites import consumers, only_consumer, register_fusion, register_rewrite, stock_grad

__all__ = ['ConvPool', 'ConvPoolGrad', 'Dropout', 'Pooling', 'install']

# When all rewrites that add or drop uses of variables are done, before those that work in place.
LEAN_POSITION = 49.3

# The spellings of ReLU, in the order of `enum Relu` in conv.hpp.  They differ at 0 and at NaN.
RELUS = (None,
         'half',         # 0.5 * (z + abs(z)), as in Lasagne and in theano.tensor.nnet.relu
         'maximum',      # maximum(z, 0)
         'maximum_0')    # maximum(0, z)

# Max-pooling: pairs (rows, columns), and whether windows cut by the border are left out.
Pooling = namedtuple('Pooling', 'size stride pad ignore_border')

# Keep where a uniform sample is less than `threshold`, and multiply by `scale`.
Dropout = namedtuple('Dropout', 'threshold scale')


def _nothing(ndim):
    """The input of an Op that has no bias or no dropout: the C code is the same for all."""
    return tt.TensorConstant(tt.TensorType('float32', (False,) * ndim),
                             np.zeros((0,) * ndim, 'float32'))


_masks_type = tt.TensorType('uint8', (False, False))


class _Conv(NativeOp):
    """The layer that `ConvPool` and `ConvPoolGrad` have in common.

    Parameters
    ----------
    border_mode : 'full', 'half' or pair of pairs of int
        Zeros around the image: ((top, bottom), (left, right)).
    subsample : pair of int
        The stride of the convolution, (rows, columns).
    filter_flip : bool
        Convolution proper (True) or correlation.
    bias : bool
        Whether the third input is a bias, one number per filter.
    relu : {None, 'half', 'maximum', 'maximum_0'}
        See `RELUS`.
    pooling : Pooling or None
    dropout : Dropout or None
        With dropout, the fourth input has uniform samples of the shape of the output.
    kernel_shape : pair of int or None
        The filters' rows and columns where the graph knows them: needed to understand cropping.
    """

    headers = ('conv_op.hpp', 'conv.hpp', 'conv_layer.hpp', 'conv_forward.hpp', 'conv_backward.hpp',
               'simd.hpp')
    _layer_props = ('border_mode', 'subsample', 'filter_flip', 'bias', 'relu', 'pooling', 'dropout',
                    'kernel_shape')
    # One set of run-time parameters for both Ops, so that one compiled module serves all layers.
    params_type = ParamsType(
        pad_top=scalar.int64, pad_bottom=scalar.int64, pad_left=scalar.int64,
        pad_right=scalar.int64, stride_h=scalar.int64, stride_w=scalar.int64,
        pool_h=scalar.int64, pool_w=scalar.int64, pool_stride_h=scalar.int64,
        pool_stride_w=scalar.int64, pool_pad_h=scalar.int64, pool_pad_w=scalar.int64,
        ignore_border=scalar.int64, flip=scalar.int64, bias=scalar.int64, relu=scalar.int64,
        dropout=scalar.int64, threshold=scalar.float32, scale=scalar.float32,
        save_masks=scalar.int64, channels_last=scalar.int64, compute_dx=scalar.int64,
        compute_dw=scalar.int64)

    # What only one of the two Ops has as a prop.
    save_masks = channels_last = compute_dx = compute_dw = True

    def __init__(self, border_mode=((0, 0), (0, 0)), subsample=(1, 1), filter_flip=True, bias=False,
                 relu=None, pooling=None, dropout=None, kernel_shape=None):
        assert relu in RELUS
        self.border_mode = border_mode
        self.subsample = subsample
        self.filter_flip = filter_flip
        self.bias = bias
        self.relu = relu
        self.pooling = pooling
        self.dropout = dropout
        self.kernel_shape = kernel_shape

    def _with(self, cls=None, **changes):
        """An Op of class `cls` (by default the same) with some props changed."""
        cls = cls or type(self)
        props = {name: getattr(self, name) for name in cls.__props__ if hasattr(self, name)}
        props.update(changes)
        return cls(**props)

    def get_params(self, node):
        # Paddings that depend on the filters' size are resolved in C: -1 is 'half', -2 is 'full'.
        borders = {'half': ((-1, -1), (-1, -1)), 'full': ((-2, -2), (-2, -2))}
        (top, bottom), (left, right) = borders.get(self.border_mode, self.border_mode)
        pooling = self.pooling or Pooling((1, 1), (1, 1), (0, 0), True)
        dropout = self.dropout or Dropout(0., 1.)
        return self.params_type.get_params(
            pad_top=top, pad_bottom=bottom, pad_left=left, pad_right=right,
            stride_h=self.subsample[0], stride_w=self.subsample[1],
            pool_h=pooling.size[0], pool_w=pooling.size[1],
            pool_stride_h=pooling.stride[0], pool_stride_w=pooling.stride[1],
            pool_pad_h=pooling.pad[0], pool_pad_w=pooling.pad[1],
            ignore_border=int(pooling.ignore_border), flip=int(self.filter_flip),
            bias=int(self.bias), relu=RELUS.index(self.relu), dropout=int(self.dropout is not None),
            threshold=np.float32(dropout.threshold), scale=np.float32(dropout.scale),
            save_masks=int(self.save_masks), channels_last=int(self.channels_last),
            compute_dx=int(self.compute_dx), compute_dw=int(self.compute_dw))

    def _inputs(self, x, W, b=None, u=None):
        b = _nothing(1) if b is None else tt.as_tensor_variable(b)
        u = _nothing(4) if u is None else tt.as_tensor_variable(u)
        inputs = [tt.as_tensor_variable(x), tt.as_tensor_variable(W), b, u]
        for variable, ndim in zip(inputs, (4, 4, 1, 4)):
            if variable.dtype != 'float32' or variable.ndim != ndim:
                raise TypeError(
                    '{} needs float32 tensors of 4, 4, 1 and 4 dimensions, not {}'.format(
                        type(self).__name__, [i.type for i in inputs]))
        return inputs

    def _out_type(self, x, W):
        return tt.TensorType('float32', (x.broadcastable[0], W.broadcastable[0], False, False))

    def _out_shape(self, x_shape, W_shape):
        """The shape of the layer's output, from (symbolic) shapes of image and filters."""
        spatial = []
        for axis in (0, 1):
            size, kernel = x_shape[2 + axis], W_shape[2 + axis]
            if self.border_mode == 'full':
                size = size + 2 * (kernel - 1)
            elif self.border_mode == 'half':
                size = size + 2 * (kernel // 2)
            else:
                size = size + sum(self.border_mode[axis])
            spatial.append((size - kernel) // self.subsample[axis] + 1)
        if self.pooling:
            spatial = Pool.out_shape(spatial, self.pooling.size, self.pooling.ignore_border,
                                     self.pooling.stride, self.pooling.pad)
        return (x_shape[0], W_shape[0]) + tuple(spatial)

    def stock(self, x, W, b, u):
        """The layer's output by Theano's own Ops.

        Parameters
        ----------
        x, W, b, u : TensorVariable
            The inputs of `ConvPool`.

        Returns
        -------
        TensorVariable
        """
        h = tt.nnet.conv2d(x, W, border_mode=self.border_mode, subsample=self.subsample,
                           filter_flip=self.filter_flip)
        if self.bias:
            h = h + b.dimshuffle('x', 0, 'x', 'x')
        if self.relu:
            h = {'half': lambda z: 0.5 * (z + abs(z)),
                 'maximum': lambda z: tt.maximum(z, 0),
                 'maximum_0': lambda z: tt.maximum(0, z)}[self.relu](h)
        if self.pooling:
            h = Pool(ignore_border=self.pooling.ignore_border)(
                h, self.pooling.size, self.pooling.stride, self.pooling.pad)
        if self.dropout:
            h = h * np.float32(self.dropout.scale) * tt.cast(
                u < np.float32(self.dropout.threshold), 'float32')
        return h


class ConvPool(_Conv):
    """Convolution, bias, ReLU, max-pooling and dropout, each but the first optional.

    Parameters
    ----------
    save_masks : bool
        Whether the second output is wanted.
    channels_last : bool
        Whether the output lies in memory with its channels last.  Its shape and meaning are the
        same; the next `ConvPool` need not rearrange it.

    Notes
    -----
    Inputs are images (batch, channels, rows, columns), filters (filters, channels, rows, columns),
    a bias and uniform samples; see `_Conv` for when the last two are needed.

    Outputs are the result and the bit masks for `ConvPoolGrad`, one row of bytes for each image.
    """

    __props__ = _Conv._layer_props + ('save_masks', 'channels_last')

    def __init__(self, save_masks=True, channels_last=False, **layer):
        super(ConvPool, self).__init__(**layer)
        self.save_masks = save_masks
        self.channels_last = channels_last

    def __str__(self):
        k = self.kernel_shape
        parts = ['conv{}'.format('{}x{}'.format(*k) if k else '')]
        parts += ['bias'] if self.bias else []
        parts += ['relu'] if self.relu else []
        parts += ['pool{}x{}'.format(*self.pooling.size)] if self.pooling else []
        parts += ['dropout'] if self.dropout else []
        return '{}{{{}}}'.format(type(self).__name__, ' '.join(parts))

    def make_node(self, x, W, b=None, u=None):
        inputs = self._inputs(x, W, b, u)
        return gof.Apply(self, inputs, [self._out_type(*inputs[:2])(), _masks_type()])

    def infer_shape(self, node, shapes):
        n, filters, rows, columns = self._out_shape(shapes[0], shapes[1])
        planes = 0
        if self.save_masks:
            positions = int(np.prod(self.pooling.size)) if self.pooling else 1
            planes = positions if positions > 1 or self.relu or self.dropout else 0
            planes += bool(self.relu) + bool(self.dropout)
        plane_bytes = (filters + 31) // 32 * 4
        return [(n, filters, rows, columns), (n, rows * columns * planes * plane_bytes)]

    def connection_pattern(self, node):
        return [[True, False], [True, False], [self.bias, False], [False, False]]

    def L_op(self, inputs, outputs, output_gradients):
        gradient = output_gradients[0]
        if isinstance(gradient.type, DisconnectedType):
            return [DisconnectedType()() for _ in inputs]
        op = self._with(save_masks=True)
        masks = op(*inputs)[1]
        dx, dw, db = op._with(ConvPoolGrad)(*(list(inputs) + [masks, tt.cast(gradient, 'float32')]))
        return [dx, dw, db if self.bias else DisconnectedType()(), DisconnectedType()()]

    def c_code(self, node, name, inputs, outputs, sub):
        return """
        {{
            conv::Layer l;
            if (!layer_of({params}, {x}, {W}, {b}, &l) ||
                (l.dropout && !has_shape({u}, "dropout samples", l.N, l.O, l.PH, l.PW)) ||
                !allocate(&{out}, l.N, l.O, l.PH, l.PW, {params}->channels_last) ||
                !allocate_masks(&{masks}, l.N, {params}->save_masks ? l.masks_bytes() : 0)) {fail}
            conv::forward(l, images_of({x}), images_of({W}), (const float*)PyArray_DATA({b}),
                          PyArray_STRIDE({b}, 0) / (npy_intp)sizeof(float), images_of({u}),
                          images_of({out}),
                          {params}->save_masks ? (uint8_t*)PyArray_DATA({masks}) : NULL);
        }}
        """.format(x=inputs[0], W=inputs[1], b=inputs[2], u=inputs[3], out=outputs[0],
                   masks=outputs[1], params=sub['params'], fail=sub['fail'])


class ConvPoolGrad(_Conv):
    """Gradients of `ConvPool` with respect to images, filters and bias.

    Parameters
    ----------
    compute_dx, compute_dw : bool
        Which of the outputs are wanted: the first; the second and third.  Others are empty arrays.

    Notes
    -----
    Inputs are those of `ConvPool`, its masks, and the gradient of its output.
    """

    __props__ = _Conv._layer_props + ('compute_dx', 'compute_dw')

    def __init__(self, compute_dx=True, compute_dw=True, **layer):
        super(ConvPoolGrad, self).__init__(**layer)
        self.compute_dx = compute_dx
        self.compute_dw = compute_dw

    def __str__(self):
        return '{}{{{}}}'.format(type(self).__name__, ' '.join(
            ['dx'] * self.compute_dx + ['dW db'] * self.compute_dw))

    def make_node(self, x, W, b, u, masks, gradient):
        inputs = self._inputs(x, W, b, u) + [tt.as_tensor_variable(masks),
                                             tt.as_tensor_variable(gradient)]
        return gof.Apply(self, inputs, [inputs[0].type(), inputs[1].type(), tt.fvector()])

    def infer_shape(self, node, shapes):
        nothing = (0, 0, 0, 0)
        return [shapes[0] if self.compute_dx else nothing,
                shapes[1] if self.compute_dw else nothing, (shapes[1][0] if self.compute_dw else 0,)]

    def connection_pattern(self, node):
        return [[True] * 3, [True] * 3, [self.bias] * 3, [False] * 3, [False] * 3, [True] * 3]

    def L_op(self, inputs, outputs, output_gradients):
        # Second derivatives: those of Theano's own first ones, in variables of their own.  The real
        # inputs depend on each other (the gradient on the image, say), which must not count here.
        connected = [k for k, g in enumerate(output_gradients)
                     if not isinstance(g.type, DisconnectedType)]
        given = [output_gradients[k] for k in connected]
        x, W, b, u, _, gradient = own = [i.type() for i in inputs]
        wrt = [x, W] + [b] * self.bias + [gradient]
        first = stock_grad(None, wrt[:-1], known_grads={self.stock(x, W, b, u): gradient})
        own_given = [g.type() for g in given]
        second = stock_grad(None, wrt, disconnected_inputs='ignore', known_grads=OrderedDict(
            (first[k], g) for k, g in zip(connected, own_given)))
        second = theano.clone(second, replace=OrderedDict(
            zip(own + own_given, list(inputs) + given)))
        if not self.bias:
            second.insert(2, DisconnectedType()())
        return second[:3] + [DisconnectedType()(), DisconnectedType()(), second[3]]

    def c_code(self, node, name, inputs, outputs, sub):
        return """
        {{
            conv::Layer l;
            const bool compute_dx = {params}->compute_dx, compute_dw = {params}->compute_dw;
            if (!layer_of({params}, {x}, {W}, {b}, &l) ||
                !has_shape({g}, "gradient", l.N, l.O, l.PH, l.PW)) {fail}
            if (PyArray_DIM({masks}, 0) != l.N || PyArray_DIM({masks}, 1) != l.masks_bytes() ||
                !PyArray_IS_C_CONTIGUOUS({masks})) {{
                PyErr_SetString(PyExc_ValueError, "masks of another convolution layer");
                {fail}
            }}
            // The gradient of the image lies in memory as the image does.
            const conv::Images x = images_of({x});
            const bool channels_last = l.C > 1 && conv::is_channels_last(x[0], l.C, l.H, l.W);
            if (!(compute_dx ? allocate(&{dx}, l.N, l.C, l.H, l.W, channels_last)
                             : allocate(&{dx}, 0, 0, 0, 0, false)) ||
                !(compute_dw ? allocate(&{dw}, l.O, l.C, l.KH, l.KW, false)
                             : allocate(&{dw}, 0, 0, 0, 0, false))) {fail}
            npy_intp filters = compute_dw ? l.O : 0;
            if (!{db} || PyArray_DIM({db}, 0) != filters ||
                PyArray_STRIDE({db}, 0) != sizeof(float)) {{
                Py_XDECREF({db});
                {db} = (PyArrayObject*)PyArray_SimpleNew(1, &filters, NPY_FLOAT32);
                if (!{db}) {fail}
            }}
            const conv::Images none = {{NULL, 0, 0, 0, 0}};
            conv::backward(l, x, images_of({W}), (const float*)PyArray_DATA({b}),
                           PyArray_STRIDE({b}, 0) / (npy_intp)sizeof(float),
                           (const uint8_t*)PyArray_DATA({masks}), images_of({g}),
                           compute_dx ? images_of({dx}) : none,
                           compute_dw ? (float*)PyArray_DATA({dw}) : NULL,
                           compute_dw ? (float*)PyArray_DATA({db}) : NULL);
        }}
        """.format(x=inputs[0], W=inputs[1], b=inputs[2], masks=inputs[4], g=inputs[5],
                   dx=outputs[0], dw=outputs[1], db=outputs[2], params=sub['params'], fail=sub['fail'])


# ---- reading graphs ----


def _constant(variable):
    """The Python number that a scalar (or a broadcast one) stands for, or None."""
    while variable.owner and isinstance(variable.owner.op, (DimShuffle, UndefinedGrad)):
        variable = variable.owner.inputs[0]
    if isinstance(variable, gof.Constant) and np.size(variable.data) == 1:
        return np.asarray(variable.data).item()


def _constant_pair(variable):
    """Two integers from a constant vector, or None."""
    if isinstance(variable, gof.Constant) and np.shape(variable.data) == (2,):
        return tuple(int(i) for i in variable.data)


def _is_elemwise(variable, operation):
    return bool(variable.owner and isinstance(variable.owner.op, Elemwise) and
                variable.owner.op.scalar_op == operation)


def _offset_from_size(variable, x, axis):
    """The integer c with ``variable == x.shape[axis] + c``, or None where there is no such."""
    node = variable.owner
    if node is None:
        return None
    if isinstance(node.op, (tt.ScalarFromTensor, tt.TensorFromScalar)):
        return _offset_from_size(node.inputs[0], x, axis)
    if isinstance(node.op, Shape_i):
        return 0 if node.inputs[0] is x and node.op.i == axis else None
    if isinstance(node.op, Subtensor):
        shape = node.inputs[0].owner
        if shape and isinstance(shape.op, tt.Shape) and shape.inputs[0] is x and \
                tt.subtensor.get_idx_list(node.inputs, node.op.idx_list) and \
                len(node.inputs) == 2 and _constant(node.inputs[1]) == axis:
            return 0
        return None
    if _is_elemwise(variable, scalar.add):
        total, found = 0, False
        for term in node.inputs:
            number = _constant(term)
            if number is None:
                number = None if found else _offset_from_size(term, x, axis)
                if number is None:
                    return None
                found = True
            total += number
        return total if found else None
    return None


def _window(node, first_index, x):
    """The rectangle ``[:, :, top:height + top + c, ...]`` that a (Inc)Subtensor addresses.

    Parameters
    ----------
    node : Apply
        Of a `Subtensor` or an `IncSubtensor`.
    first_index : int
        Where the indices begin in the inputs of `node`.
    x : TensorVariable
        The image whose height and width the indices refer to.

    Returns
    -------
    list of (int, int) or None
        For rows and columns, the start and what ``stop - x.shape[axis]`` is.
    """
    indices = node.op.idx_list
    everything = slice(None, None, None)
    if len(indices) != 4 or indices[0] != everything or indices[1] != everything:
        return None
    rest = list(node.inputs[first_index:])
    window = []
    for axis, index in ((2, indices[2]), (3, indices[3])):
        if not isinstance(index, slice) or index.step is not None or index.start is None or \
                index.stop is None or len(rest) < 2:
            return None
        start, stop = _constant(rest.pop(0)), _offset_from_size(rest.pop(0), x, axis)
        if start is None or stop is None or start < 0:
            return None
        window.append((start, stop))
    return None if rest else window


def _grown(variable, into, without, **changes):
    """A `ConvPool` that does what variable's does and one thing more.

    Parameters
    ----------
    variable : TensorVariable
        What the next part of the layer is applied to.
    into : Apply
        The last node of that next part.  Nothing else may use `variable`.
    without : tuple of str
        Props (parts of the layer) that must be absent so far, because they come later.
    changes
        Props of the new Op.

    Returns
    -------
    Op, list of TensorVariable
        The new Op and the inputs of the old one; (None, None) if `variable` does not fit.
    """
    node = variable.owner
    if node and isinstance(node.op, ConvPool) and variable is node.outputs[0] and \
            only_consumer(variable) is into and not any(getattr(node.op, part) for part in without):
        return node.op._with(**changes), list(node.inputs)
    return None, None


def _replace(node, op, inputs):
    """What a local optimizer returns to put the output of `op` in the place of node's."""
    new = op(*inputs)[0]
    return [new] if new.type == node.outputs[0].type else False


# ---- fusions ----


def _border_mode(mode):
    """The padding of an `AbstractConv2d` as `_Conv` has it."""
    if mode in ('full', 'half'):
        return mode
    if mode == 'valid':
        mode = 0
    if not isinstance(mode, (tuple, list)):
        mode = (mode, mode)
    return tuple(tuple(int(i) for i in side) if isinstance(side, (tuple, list))
                 else (int(side), int(side)) for side in mode)


def _padding(padded):
    """The image in the middle of zeros, and their widths as a border_mode.

    This is how Lasagne pads::

        padded = T.zeros((n, c, height + top + bottom, ...))
        padded = T.set_subtensor(padded[:, :, top:top + height, ...], x)

    Returns
    -------
    TensorVariable, border_mode
        (`padded`, no padding) where the graph is another.
    """
    none = padded, ((0, 0), (0, 0))
    node = padded.owner
    if not (node and isinstance(node.op, IncSubtensor) and node.op.set_instead_of_inc):
        return none
    zeros, x = node.inputs[:2]
    if not (zeros.owner and isinstance(zeros.owner.op, tt.Alloc) and x.ndim == zeros.ndim == 4 and
            x.type == padded.type and _constant(zeros.owner.inputs[0]) == 0):
        return none
    window = _window(node, 2, x)
    growth = [_offset_from_size(size, x, axis) for axis, size in enumerate(zeros.owner.inputs[1:])]
    if window is None or growth[:2] != [0, 0] or None in growth:
        return none
    (top, shift_down), (left, shift_right) = window
    bottom, right = growth[2] - top, growth[3] - left
    if (top, left) != (shift_down, shift_right) or min(bottom, right) < 0:
        return none
    return x, ((top, bottom), (left, right))


@register_fusion([AbstractConv2d])
def local_conv(node):
    """``conv2d(x, W)``, with the padding of ``x``, becomes a `ConvPool` that does nothing else."""
    op = node.op
    x, W = node.inputs
    if type(op) is not AbstractConv2d or x.dtype != 'float32' or W.dtype != 'float32' or \
            W.ndim != 4 or op.unshared or op.num_groups != 1 or tuple(op.filter_dilation) != (1, 1):
        return False
    kernel_shape = tuple(op.kshp[-2:]) if op.kshp else (None, None)
    if not all(isinstance(size, (int, np.integer)) for size in kernel_shape):
        kernel_shape = None
    border_mode = _border_mode(op.border_mode)
    if border_mode == ((0, 0), (0, 0)):
        x, border_mode = _padding(x)
    return _replace(node, ConvPool(
        border_mode=border_mode, subsample=tuple(int(s) for s in op.subsample),
        filter_flip=bool(op.filter_flip), kernel_shape=kernel_shape), [x, W])


@register_fusion([Subtensor])
def local_conv_crop(node):
    """``conv2d(x, W, border_mode='full')[:, :, i:height + i, ...]``: Lasagne's pad='same'."""
    op, inputs = _grown(node.inputs[0], node, ('bias', 'relu', 'pooling', 'dropout'))
    if op is None or op.border_mode != 'full' or op.subsample != (1, 1) or not op.kernel_shape:
        return False
    window = _window(node, 1, inputs[0])
    if window is None or any(start != shift or start >= size
                             for (start, shift), size in zip(window, op.kernel_shape)):
        return False
    # The full convolution has size - 1 rows of zeros above the image; the first `start` rows of
    # its result are cut off.
    border_mode = tuple((size - 1 - start, start)
                        for (start, _), size in zip(window, op.kernel_shape))
    return _replace(node, op._with(border_mode=border_mode), inputs)


@register_fusion([tt.add])
def local_conv_bias(node):
    """``conv + b.dimshuffle('x', 0, 'x', 'x')``"""
    if len(node.inputs) != 2:
        return False
    for conv, bias in (node.inputs, node.inputs[::-1]):
        op, inputs = _grown(conv, node, ('bias', 'relu', 'pooling', 'dropout'), bias=True)
        if op is not None and bias.owner and isinstance(bias.owner.op, DimShuffle) and \
                bias.owner.op.new_order == ('x', 0, 'x', 'x') and bias.dtype == 'float32':
            return _replace(node, op, inputs[:2] + [bias.owner.inputs[0]])
    return False


@register_fusion([tt.mul])
def local_conv_relu(node):
    """``0.5 * (conv + abs(conv))``"""
    if len(node.inputs) != 2:
        return False
    for half, total in (node.inputs, node.inputs[::-1]):
        if _constant(half) != 0.5 or not _is_elemwise(total, scalar.add) or \
                len(total.owner.inputs) != 2 or only_consumer(total) is not node:
            continue
        for conv, absolute in (total.owner.inputs, total.owner.inputs[::-1]):
            if not _is_elemwise(absolute, scalar.abs_) or absolute.owner.inputs[0] is not conv or \
                    only_consumer(absolute) is not total.owner:
                continue
            # `conv` has two uses, this sum and its absolute value.
            if {user for user, _ in consumers(conv)} != {total.owner, absolute.owner}:
                continue
            producer = conv.owner
            if producer and isinstance(producer.op, ConvPool) and conv is producer.outputs[0] and \
                    not (producer.op.relu or producer.op.pooling or producer.op.dropout):
                return _replace(node, producer.op._with(relu='half'), producer.inputs)
    return False


@register_fusion([tt.maximum])
def local_conv_maximum(node):
    """``maximum(conv, 0)`` and ``maximum(0, conv)``"""
    later = ('relu', 'pooling', 'dropout')
    left, right = node.inputs
    if _constant(right) == 0:
        op, inputs = _grown(left, node, later, relu='maximum')
    elif _constant(left) == 0:
        op, inputs = _grown(right, node, later, relu='maximum_0')
    else:
        return False
    return op is not None and _replace(node, op, inputs)


@register_fusion([Pool])
def local_conv_pool(node):
    """``pool_2d(conv, ..., mode='max')``"""
    size, stride, pad = [_constant_pair(i) for i in node.inputs[1:]]
    if node.op.mode != 'max' or node.op.ndim != 2 or None in (size, stride, pad) or \
            size == (1, 1) or min(size) < 1 or min(stride) < 1 or min(pad) < 0 or \
            any(p >= s for p, s in zip(pad, size)) or \
            (not node.op.ignore_border and pad != (0, 0)):
        return False
    op, inputs = _grown(node.inputs[0], node, ('pooling', 'dropout'), pooling=Pooling(
        size, stride, pad, bool(node.op.ignore_border)))
    return op is not None and _replace(node, op, inputs)


@register_fusion([tt.mul])
def local_conv_dropout(node):
    """``conv / retain * cast(samples < retain)``, the division optional"""
    if len(node.inputs) != 2:
        return False
    for scaled, mask in (node.inputs, node.inputs[::-1]):
        below = _uncast(mask)
        if below is None or not _is_elemwise(below, scalar.lt):
            continue
        samples, threshold = below.owner.inputs
        threshold = _constant(threshold)
        if threshold is None or samples.type != node.outputs[0].type:
            continue
        conv, retain, last = scaled, 1., node
        if _is_elemwise(scaled, scalar.true_div) and only_consumer(scaled) is node:
            conv, retain = scaled.owner.inputs
            retain, last = _constant(retain), scaled.owner
        if not retain or not retain > 0:
            continue
        # The least float32 not less than the threshold: samples are float32, which leaves no
        # number between the two.
        bound = np.float32(threshold)
        if bound < threshold:
            bound = np.nextafter(bound, np.float32(np.inf))
        op, inputs = _grown(conv, last, ('dropout',), dropout=Dropout(
            float(bound), float(np.float32(1) / np.float32(retain))))
        if op is not None:
            return _replace(node, op, inputs[:3] + [samples])
    return False


def _uncast(mask):
    """What a cast to float32 is applied to, or None."""
    if mask.owner and isinstance(mask.owner.op, Elemwise) and mask.dtype == 'float32' and \
            isinstance(mask.owner.op.scalar_op, scalar.Cast):
        return mask.owner.inputs[0]


# ---- rewrites of the compiled function ----


@gof.local_optimizer([ConvPool])
def local_conv_lean(node):
    """Drop masks that no gradient needs; leave channels last what only convolutions read."""
    out, masks = node.outputs
    if not isinstance(node.op, ConvPool):
        return False
    op = node.op._with(save_masks=bool(masks.clients), channels_last=bool(out.clients) and all(
        user != 'output' and isinstance(user.op, _Conv) and i == 0 for user, i in out.clients))
    return op != node.op and op(*node.inputs)


@gof.local_optimizer([ConvPoolGrad])
def local_conv_grad_lean(node):
    """Compute only what is used, and let go of dropout's samples: the masks have what counts."""
    if not isinstance(node.op, ConvPoolGrad):
        return False
    dx, dw, db = node.outputs
    op = node.op._with(compute_dx=bool(dx.clients), compute_dw=bool(dw.clients or db.clients))
    inputs = list(node.inputs)
    if not isinstance(inputs[3], gof.Constant):
        inputs[3] = _nothing(4)
    return (op != node.op or inputs != node.inputs) and op(*inputs)


def install():
    """Register the rewrites of this module; the fusions are by importing it."""
    register_rewrite(gof.opt.TopoOptimizer(
        gof.opt.LocalOptGroup(local_conv_lean, local_conv_grad_lean), order='in_to_out',
        failure_callback=gof.opt.NavigatorOptimizer.warn_inplace),
        'theano_today_conv_lean', LEAN_POSITION)
