"""Theano's old GPU backends by their names: scripts and Lasagne's layers ask for them.

theano.sandbox.cuda was removed in Theano 1.0; what is left of the name asks for nose, and raises
nose's SkipTest, which no ``except ImportError`` catches.  theano.gpuarray needs pygpu, which does not
run with today's drivers.  cuda-convnet came with pylearn2, which was never on PyPI.  What they offer
is here Theano's own convolution, pooling and so on: the engine at work, for the CPU or
``device=cuda``, takes these as it takes those that a script has written itself, and gradients are
Theano's.
"""
import importlib.util

from .mending import after_import, replace, stand_in

# ------------------------------------------------------------------------------ cuDNN's functions


def dnn_available(context_name=None):
    """Whether cuDNN's functions work, which they do."""
    return True


dnn_available.msg = ''  # what Lasagne shows otherwise


def dnn_conv(img, kerns, border_mode='valid', subsample=(1, 1), dilation=(1, 1), conv_mode='conv',
             direction_hint=None, workmem=None, algo=None, precision=None, num_groups=1):
    """Convolve images (n, channels, rows, columns) with filters, as theano.sandbox.cuda.dnn did."""
    from theano.tensor.nnet import conv2d
    return conv2d(img, kerns, border_mode=_border(border_mode), subsample=tuple(subsample),
                  filter_flip=conv_mode == 'conv', filter_dilation=tuple(dilation),
                  num_groups=num_groups)


def dnn_conv3d(img, kerns, border_mode='valid', subsample=(1, 1, 1), dilation=(1, 1, 1),
               conv_mode='conv', direction_hint=None, workmem=None, algo=None, precision=None,
               num_groups=1):
    """Convolve (n, channels, depth, rows, columns) with filters."""
    from theano.tensor.nnet import conv3d
    return conv3d(img, kerns, border_mode=_border(border_mode), subsample=tuple(subsample),
                  filter_flip=conv_mode == 'conv', filter_dilation=tuple(dilation),
                  num_groups=num_groups)


def _border(mode):
    return tuple(mode) if isinstance(mode, list) else mode


def dnn_pool(img, ws, stride=None, mode='max', pad=None):
    """Pool over the last axes, as many as `ws` has, without what does not fill a window.

    Unlike Theano's own functions, it moves by one pixel when no stride is given.
    """
    from theano.tensor.signal.pool import pool_2d, pool_3d
    mode = {'average': 'average_inc_pad', 'max_deterministic': 'max'}.get(mode, mode)
    dims = img.ndim - 2
    return (pool_2d if dims == 2 else pool_3d)(
        img, _sizes(ws), ignore_border=True, stride=(1,) * dims if stride is None else _sizes(stride),
        pad=(0,) * dims if pad is None else _sizes(pad), mode=mode)


def _sizes(sizes):
    """Make one variable of sizes that depend on the input; numbers stay numbers."""
    import theano.tensor as T
    if isinstance(sizes, (list, tuple)) and not any(isinstance(s, T.Variable) for s in sizes):
        return tuple(sizes)
    return T.as_tensor_variable(sizes)


def dnn_batch_normalization_train(inputs, gamma, beta, mode='per-activation', epsilon=1e-4,
                                  running_average_factor=0.1, running_mean=None, running_var=None):
    """Return normalised inputs, mean, 1 / standard deviation (and new running mean and variance)."""
    from theano.tensor.nnet.bn import batch_normalization_train
    return batch_normalization_train(inputs, gamma, beta, mode, epsilon, running_average_factor,
                                     running_mean, running_var)


def dnn_batch_normalization_test(inputs, gamma, beta, mean, var, mode='per-activation', epsilon=1e-4):
    """Return inputs normalised by a given mean and variance."""
    from theano.tensor.nnet.bn import batch_normalization_test
    return batch_normalization_test(inputs, gamma, beta, mean, var, mode, epsilon)


class GpuDnnSoftmax:
    """Softmax over the channels of (n, channels, rows, columns), or over all of an example."""

    def __init__(self, *args):
        # (algo, mode); before Theano 0.8 (tensor_format, algo, mode).
        self.algo, self.mode = args[-2:]

    def __call__(self, x):
        import theano.tensor as T
        axes = (1,) if self.mode == 'channel' else (1, 2, 3)
        x = x - x.max(axis=axes, keepdims=True)
        if self.algo == 'log':
            return x - T.log(T.exp(x).sum(axis=axes, keepdims=True))
        e = T.exp(x)
        return e / e.sum(axis=axes, keepdims=True)


class GpuDnnConvDesc:
    """How a convolution moves: called with shapes, which matter no more, it describes itself."""

    def __init__(self, border_mode, subsample=(1, 1), conv_mode='conv', precision=None, dilation=(1, 1),
                 num_groups=1):
        self.options = dict(border_mode=_border(border_mode), subsample=tuple(subsample),
                            filter_flip=conv_mode == 'conv', filter_dilation=tuple(dilation),
                            num_groups=num_groups)

    def __call__(self, *shapes):
        return self


class _DnnConvBase:
    """An Op of cuDNN: it is given the array for its result, of which only the shape counts."""

    def __init__(self, *args, **kwargs):  # how cuDNN works
        pass

    def __call__(self, first, second, out, desc, alpha=1, beta=0):
        import theano.tensor.nnet.abstract_conv as conv
        result = self._apply(conv, first, second, out.shape[-2:], desc.options)
        if (alpha, beta) == (1, 0):
            return result
        return alpha * result + beta * out


class GpuDnnConv(_DnnConvBase):
    @staticmethod
    def _apply(conv, img, kerns, shape, options):
        return conv.AbstractConv2d(**options)(img, kerns)


class GpuDnnConvGradW(_DnnConvBase):
    @staticmethod
    def _apply(conv, img, topgrad, shape, options):
        return conv.AbstractConv2d_gradWeights(**options)(img, topgrad, shape)


class GpuDnnConvGradI(_DnnConvBase):
    @staticmethod
    def _apply(conv, kerns, topgrad, shape, options):
        return conv.AbstractConv2d_gradInputs(**options)(kerns, topgrad, shape)


_DNN = (dnn_conv, dnn_conv3d, dnn_pool, dnn_batch_normalization_train, dnn_batch_normalization_test)


# ------------------------------------------------------------------------------------- other Ops

def gpu_contiguous(x):
    """Return x: an engine lays arrays out as it needs them."""
    import theano.tensor as T
    return T.as_tensor_variable(x)


def gpu_alloc_empty(*shape, dtype='float32'):
    import theano.tensor as T
    return T.AllocEmpty(dtype)(*shape)


class GpuCorrMM:
    """Correlation, by matrix products: filters are not flipped."""

    def __init__(self, border_mode='valid', subsample=(1, 1), filter_dilation=(1, 1), num_groups=1,
                 unshared=False, pad=(0, 0)):
        if border_mode == 'valid' and tuple(pad) != (0,) * len(pad):
            border_mode = pad  # as it was called first
        self.options = dict(border_mode=_border(border_mode), subsample=tuple(subsample),
                            filter_dilation=tuple(filter_dilation), num_groups=num_groups,
                            filter_flip=False)

    def __call__(self, img, kern):
        import theano.tensor.nnet.abstract_conv as conv
        return conv.AbstractConv2d(**self.options)(img, kern)


class GpuCorrMM_gradWeights(GpuCorrMM):
    def __call__(self, img, topgrad, shape=None):
        import theano.tensor.nnet.abstract_conv as conv
        if shape is None:  # for a stride of 1
            shape = [img.shape[i] - topgrad.shape[i] + 1 for i in (2, 3)]
        return conv.AbstractConv2d_gradWeights(**self.options)(img, topgrad, shape)


class GpuCorrMM_gradInputs(GpuCorrMM):
    def __call__(self, kern, topgrad, shape=None):
        import theano.tensor.nnet.abstract_conv as conv
        if shape is None:
            shape = [kern.shape[i] + topgrad.shape[i] - 1 for i in (2, 3)]
        return conv.AbstractConv2d_gradInputs(**self.options)(kern, topgrad, shape)


class FilterActs:
    """cuda-convnet's correlation of (channels, rows, columns, n) with (channels, rows, columns, filters)."""

    def __init__(self, pad=0, partial_sum=None, stride=1):
        self.pad, self.stride = pad, stride

    def __call__(self, images, filters):
        from theano.tensor.nnet import conv2d
        return conv2d(images.dimshuffle(3, 0, 1, 2), filters.dimshuffle(3, 0, 1, 2), filter_flip=False,
                      border_mode=(self.pad,) * 2, subsample=(self.stride,) * 2).dimshuffle(1, 2, 3, 0)


class MaxPool:
    """cuda-convnet's max-pooling of (channels, rows, columns, n), with parts of windows at the edges."""

    def __init__(self, ds, stride, start=0, outputs=0):
        self.ds, self.stride = ds, stride

    def __call__(self, images):
        from theano.tensor.signal.pool import pool_2d
        return pool_2d(images.dimshuffle(3, 0, 1, 2), (self.ds,) * 2, ignore_border=False,
                       stride=(self.stride,) * 2).dimshuffle(1, 2, 3, 0)


# ------------------------------------------------------------------------ modules that offer them

class _OfAnotherBackend:
    """A class that scripts ask for by isinstance, and of which nothing is."""


@stand_in('theano.sandbox.cuda', always=True)
def _cuda(module):
    import theano.tensor as T
    # Whether the names of this package work.  Whether there is a GPU is not asked here.
    module.cuda_available = module.cuda_enabled = True
    module.use = module.unuse = lambda *args, **kwargs: None
    module.shared_constructor = module.float32_shared_constructor = T._shared
    for name in 'CudaNdarray', 'CudaNdarrayType', 'CudaNdarrayVariable', 'CudaNdarrayConstant', \
            'CudaNdarraySharedVariable':
        setattr(module, name, _OfAnotherBackend)
    # ``import theano.sandbox.cuda`` brought these along.
    from theano.sandbox.cuda import basic_ops, blas, dnn  # noqa: F401
    for name, thing in vars(basic_ops).items():
        if name.startswith(('gpu_', 'host_', 'as_')):
            setattr(module, name, thing)


@stand_in('theano.sandbox.cuda.basic_ops')
def _basic_ops(module):
    import theano.tensor as T
    module.gpu_contiguous = module.gpu_from_host = module.host_from_gpu = gpu_contiguous
    module.as_cuda_ndarray_variable = module.as_cuda_array = gpu_contiguous
    module.gpu_alloc_empty, module.gpu_alloc = gpu_alloc_empty, T.alloc
    module.GpuContiguous = module.GpuFromHost = module.HostFromGpu = lambda: gpu_contiguous


@stand_in('theano.sandbox.cuda.blas')
def _blas(module):
    module.GpuCorrMM, module.GpuCorrMM_gradInputs = GpuCorrMM, GpuCorrMM_gradInputs
    module.GpuCorrMM_gradWeights = GpuCorrMM_gradWeights


@stand_in('theano.sandbox.cuda.dnn')
def _dnn(module):
    module.dnn_available = module.dnn_present = dnn_available
    module.version = lambda raises=True: (5110, 5110)  # the last that Theano 0.9 knew
    for thing in _DNN + (GpuDnnSoftmax, GpuDnnConvDesc, GpuDnnConv, GpuDnnConvGradW, GpuDnnConvGradI):
        setattr(module, thing.__name__, thing)


@stand_in('theano.sandbox.cuda.rng_curand')
def _rng_curand(module):
    from theano.sandbox.rng_mrg import MRG_RandomStreams
    module.CURAND_RandomStreams = MRG_RandomStreams


@after_import('theano.gpuarray.dnn')
def _gpuarray_dnn(module):
    if importlib.util.find_spec('pygpu') is None:
        module.dnn_available = module.dnn_present = dnn_available
        for thing in _DNN:
            setattr(module, thing.__name__, thing)


@after_import('theano.gpuarray')
def _gpuarray(module):
    if importlib.util.find_spec('pygpu') is None:
        module.use = lambda *args, **kwargs: None


@stand_in('pylearn2')
@stand_in('pylearn2.sandbox')
@stand_in('pylearn2.sandbox.cuda_convnet')
def _pylearn2(module):
    pass


@stand_in('pylearn2.sandbox.cuda_convnet.filter_acts')
def _filter_acts(module):
    module.FilterActs = FilterActs


@stand_in('pylearn2.sandbox.cuda_convnet.pool')
def _pool(module):
    module.MaxPool = MaxPool


# ---------------------------------------------------------------------------- Lasagne 0.1's layers

# They ask for device=gpu.  (Lasagne's master asks theano.sandbox.cuda.)
replace('lasagne.layers.dnn', {
    'if not theano.config.device.startswith("gpu") or not dnn.dnn_available():':
        'if not dnn.dnn_available():'}, optional=True)
for _name in 'lasagne.layers.corrmm', 'lasagne.layers.cuda_convnet':
    replace(_name, {'if not theano.config.device.startswith("gpu"):': 'if False:'}, optional=True)
# A range was a list in Python 2.
replace('lasagne.layers.cuda_convnet', {
    'range(input.ndim - 1) + ': 'list(range(input.ndim - 1)) + '}, optional=True)


@after_import('lasagne.layers.cuda_convnet')
def _batch_first(module):
    """Let layers of cuda-convnet between other layers do without putting the batch last and back.

    The engine fuses convolution, bias, ReLU and pooling only where nothing stands between them.
    """
    def conv(self, input, **kwargs):
        if not self.dimshuffle:
            return conv_last(self, input, **kwargs)
        op = self.filter_acts_op  # the layer has its numbers in Lasagne 0.1, and pairs in the master
        output = dnn_conv(input, self.W, (op.pad,) * 2, (op.stride,) * 2,
                          conv_mode='conv' if self.flip_filters else 'cross')
        if self.pad == 'same' and self.filter_size[0] % 2 == 0:
            # (In the master alone.)  A row and a column too many.
            output = output[:, :, :-(-input.shape[2] // op.stride), :-(-input.shape[3] // op.stride)]
        if self.b is not None:
            output = output + (self.b.dimshuffle('x', 0, 1, 2) if self.untie_biases
                               else self.b.dimshuffle('x', 0, 'x', 'x'))
        return self.nonlinearity(output)

    def pool(self, input, **kwargs):
        if not self.dimshuffle:
            return pool_last(self, input, **kwargs)
        from theano.tensor.signal.pool import pool_2d
        return pool_2d(input, (self.pool_size,) * 2, ignore_border=False, stride=(self.stride,) * 2)

    conv_last, pool_last = module.Conv2DCCLayer.get_output_for, module.MaxPool2DCCLayer.get_output_for
    module.Conv2DCCLayer.get_output_for, module.MaxPool2DCCLayer.get_output_for = conv, pool
