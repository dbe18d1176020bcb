"""Convolution with bias, ReLU, max-pooling and dropout as one Op, and its gradients as another.

    h = conv2d(x, W, ...) + b
    h = 0.5 * (h + abs(h))                 ──►  out = ConvPool(x, W, b, u)
    h = pool_2d(h, ...)
    out = h / retain * (u < retain)

Every part but the convolution may be missing.  Besides the output, `ConvPool` returns bit masks:
through which positions of each pooling window the gradient flows.  `ConvPoolGrad` needs neither the
output nor any activation in between.

The Ops come into compiled functions only (conv_rewrites.py), when all derivatives have been taken.
The kernels and how they work: conv.hpp.
"""
from collections import namedtuple

import numpy as np
import theano.tensor as tt
from theano import gof, scalar
from theano.gof.params_type import ParamsType
from theano.tensor.signal.pool import Pool

from .native import NativeOp

__all__ = ['RELUS', 'ConvPool', 'ConvPoolGrad', 'Dropout', 'Pooling']

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
    promised : tuple of (int or None), or None
        Sizes that the caller has promised: batch, channels, rows and columns of the images, number,
        rows and columns of the filters.  Others are errors.
    """

    kernels = 'conv'
    headers = ('conv_op.hpp',)
    _layer_props = ('border_mode', 'subsample', 'filter_flip', 'bias', 'relu', 'pooling', 'dropout',
                    'kernel_shape', 'promised')
    # One set of run-time parameters for both Ops, so that one compiled module serves all layers.
    params_type = ParamsType(
        pad_top=scalar.int64, pad_bottom=scalar.int64, pad_left=scalar.int64,
        pad_right=scalar.int64, stride_h=scalar.int64, stride_w=scalar.int64,
        pool_h=scalar.int64, pool_w=scalar.int64, pool_stride_h=scalar.int64,
        pool_stride_w=scalar.int64, pool_pad_h=scalar.int64, pool_pad_w=scalar.int64,
        ignore_border=scalar.int64, flip=scalar.int64, bias=scalar.int64, relu=scalar.int64,
        dropout=scalar.int64, threshold=scalar.float32, scale=scalar.float32,
        save_masks=scalar.int64, channels_last=scalar.int64, compute_dx=scalar.int64,
        compute_dw=scalar.int64, **{'promised_' + size: scalar.int64 for size in 'NCHWOIJ'})

    # What only one of the two Ops has as a prop.
    save_masks = channels_last = compute_dx = compute_dw = True

    def __init__(self, border_mode=((0, 0), (0, 0)), subsample=(1, 1), filter_flip=True, bias=False,
                 relu=None, pooling=None, dropout=None, kernel_shape=None, promised=None):
        assert relu in RELUS
        self.border_mode = border_mode
        self.subsample = subsample
        self.filter_flip = filter_flip
        self.bias = bias
        self.relu = relu
        self.pooling = pooling
        self.dropout = dropout
        self.kernel_shape = kernel_shape
        self.promised = promised

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
        promised = ['promised_' + size for size in 'NCHWOIJ'], self.promised or (None,) * 7
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
            compute_dx=int(self.compute_dx), compute_dw=int(self.compute_dw),
            **{name: -1 if size is None else size for name, size in zip(*promised)})

    def _inputs(self, x, W, b=None, u=None):
        b = _nothing(1) if b is None else tt.as_tensor_variable(b)
        u = _nothing(4) if u is None else tt.as_tensor_variable(u)
        inputs = [tt.as_tensor_variable(x), tt.as_tensor_variable(W), b, u]
        for variable, ndim in zip(inputs, (4, 4, 1, 4)):
            if variable.dtype != 'float32' or variable.ndim != ndim:
                raise TypeError(
                    f'{type(self).__name__} needs float32 tensors of 4, 4, 1 and 4 dimensions, not '
                    f'{[i.type for i in inputs]}')
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


class ConvPool(_Conv):
    """Convolution, bias, ReLU, max-pooling and dropout, each but the first optional.

    Parameters
    ----------
    save_masks : bool
        Whether there is a second output, for `ConvPoolGrad`.
    channels_last : bool
        Whether the output lies in memory with its channels last.  Its shape and meaning are the
        same; the next `ConvPool` need not rearrange it.

    Notes
    -----
    Inputs are images (batch, channels, rows, columns), filters (filters, channels, rows, columns),
    a bias and uniform samples; see `_Conv` for when the last two are needed.

    Outputs are the result and, if asked for, the bit masks, one row of bytes for each image.
    """

    __props__ = _Conv._layer_props + ('save_masks', 'channels_last')

    def __init__(self, save_masks=True, channels_last=False, **layer):
        super().__init__(**layer)
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
        outputs = [self._out_type(*inputs[:2])()] + [_masks_type()] * self.save_masks
        return gof.Apply(self, inputs, outputs)

    def infer_shape(self, node, shapes):
        shape = self._out_shape(shapes[0], shapes[1])
        if not self.save_masks:
            return [shape]
        n, filters, rows, columns = shape
        positions = int(np.prod(self.pooling.size)) if self.pooling else 1
        planes = positions if positions > 1 or self.relu or self.dropout else 0
        planes += bool(self.relu) + bool(self.dropout)
        plane_bytes = (filters + 31) // 32 * 4
        return [shape, (n, rows * columns * planes * plane_bytes)]

    def c_code(self, node, name, inputs, outputs, sub):
        return """
        {{
            conv::Layer l;
            if (!layer_of({params}, {x}, {W}, {b}, &l) ||
                (l.dropout && !has_shape({u}, "dropout samples", l.N, l.O, l.PH, l.PW)) ||
                !allocate(&{out}, l.N, l.O, l.PH, l.PW, {params}->channels_last)) {fail}
            uint8_t* masks = NULL;
            {save_masks}
            if (!kernels::convolve(l, images_of({x}), images_of({W}), (const float*)PyArray_DATA({b}),
                                   PyArray_STRIDE({b}, 0) / (npy_intp)sizeof(float), images_of({u}),
                                   images_of({out}), masks)) {{
                PyErr_NoMemory();
                {fail}
            }}
        }}
        """.format(x=inputs[0], W=inputs[1], b=inputs[2], u=inputs[3], out=outputs[0],
                   params=sub['params'], fail=sub['fail'], save_masks="""
            if (!allocate_masks(&{masks}, l.N, l.masks_bytes())) {fail}
            masks = (uint8_t*)PyArray_DATA({masks});
            """.format(masks=outputs[1], fail=sub['fail']) if self.save_masks else '')


class ConvPoolGrad(_Conv):
    """Gradients of `ConvPool` with respect to images, filters and bias.

    Parameters
    ----------
    compute_dx, compute_dw : bool
        Which outputs there are: the gradient of the images; those of filters and bias.

    Notes
    -----
    Inputs are those of `ConvPool` but for the samples, which the masks stand for, its masks, and the
    gradient of its output.
    """

    __props__ = _Conv._layer_props + ('compute_dx', 'compute_dw')

    def __init__(self, compute_dx=True, compute_dw=True, **layer):
        super().__init__(**layer)
        assert compute_dx or compute_dw
        self.compute_dx = compute_dx
        self.compute_dw = compute_dw

    def __str__(self):
        return '{}{{{}}}'.format(type(self).__name__, ' '.join(
            ['dx'] * self.compute_dx + ['dW db'] * self.compute_dw))

    def make_node(self, x, W, b, masks, gradient):
        x, W, b, _ = self._inputs(x, W, b)
        inputs = [x, W, b, tt.as_tensor_variable(masks), tt.as_tensor_variable(gradient)]
        outputs = [x.type()] * self.compute_dx + [W.type(), tt.fvector()] * self.compute_dw
        return gof.Apply(self, inputs, outputs)

    def infer_shape(self, node, shapes):
        x, W = shapes[:2]
        return [x] * self.compute_dx + [W, (W[0],)] * self.compute_dw

    def c_code(self, node, name, inputs, outputs, sub):
        x, W, b, masks, g = inputs
        outputs = list(outputs)
        code = """
        {{
            conv::Layer l;
            if (!layer_of({params}, {x}, {W}, {b}, &l) ||
                !has_shape({g}, "gradient", l.N, l.O, l.PH, l.PW)) {fail}
            if (PyArray_DIM({masks}, 0) != l.N || PyArray_DIM({masks}, 1) != l.masks_bytes() ||
                !PyArray_IS_C_CONTIGUOUS({masks})) {{
                PyErr_SetString(PyExc_ValueError, "masks of another convolution layer");
                {fail}
            }}
            const conv::Images x = images_of({x});
            conv::Images dx = {{NULL, 0, 0, 0, 0}};
            float *dw = NULL, *db = NULL;
        """
        if self.compute_dx:
            code += """
            // The gradient of the image lies in memory as the image does.
            if (!allocate(&{0}, l.N, l.C, l.H, l.W,
                          l.C > 1 && conv::is_channels_last(x[0], l.C, l.H, l.W))) {{fail}}
            dx = images_of({0});
            """.format(outputs.pop(0))
        if self.compute_dw:
            code += """
            npy_intp filters = l.O;
            if (!allocate(&{0}, l.O, l.C, l.KH, l.KW, false)) {{fail}}
            if (!{1} || PyArray_DIM({1}, 0) != filters || PyArray_STRIDE({1}, 0) != sizeof(float)) {{{{
                Py_XDECREF({1});
                {1} = (PyArrayObject*)PyArray_SimpleNew(1, &filters, NPY_FLOAT32);
                if (!{1}) {{fail}}
            }}}}
            dw = (float*)PyArray_DATA({0}), db = (float*)PyArray_DATA({1});
            """.format(*outputs)
        code += """
            if (!kernels::convolve_back(l, x, images_of({W}), (const float*)PyArray_DATA({b}),
                                        PyArray_STRIDE({b}, 0) / (npy_intp)sizeof(float),
                                        (const uint8_t*)PyArray_DATA({masks}), images_of({g}), dx, dw,
                                        db)) {{
                PyErr_NoMemory();
                {fail}
            }}
        }}
        """
        return code.format(x=x, W=W, b=b, masks=masks, g=g, params=sub['params'], fail=sub['fail'])
