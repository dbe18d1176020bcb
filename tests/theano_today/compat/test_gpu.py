"""Names of Theano's old GPU backends work on any machine: values by NumPy and SciPy."""
import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
import scipy.signal
import theano
import theano.tensor as T
from lasagne.layers import InputLayer, get_output
from lasagne_layers import PYTHON, convolve, pooled

rng = np.random.RandomState(1)
x = rng.standard_normal((2, 4, 6, 7)).astype('float32')
W = rng.standard_normal((16, 4, 3, 3)).astype('float32')


def run(*outputs):
    return theano.function([], outputs, mode=PYTHON)()


def close(ours, numpys):
    np.testing.assert_allclose(ours, numpys, rtol=1e-4, atol=1e-4)


def test_modules_import_as_they_did():
    import theano.sandbox.cuda
    from theano.gpuarray import dnn as new_dnn
    from theano.sandbox.cuda import cuda_enabled, dnn, use
    from theano.sandbox.cuda.basic_ops import host_from_gpu
    assert cuda_enabled and dnn.dnn_available() and new_dnn.dnn_present()
    assert dnn.version() and theano.sandbox.cuda.blas.GpuCorrMM
    use('gpu0')
    assert not isinstance(theano.shared(1.), theano.sandbox.cuda.CudaNdarraySharedVariable)
    assert host_from_gpu(T.matrix()).type == T.fmatrix


@pytest.mark.parametrize('pad', [0, 1, 'same', 'full'])
def test_layers_of_cudnn(pad):
    """Conv2DDNNLayer correlates: it does not flip its filters unless asked to."""
    from lasagne.layers.corrmm import Conv2DMMLayer
    from lasagne.layers.dnn import Conv2DDNNLayer
    pixels = {'same': 1, 'full': 2}.get(pad, pad)
    for kind in Conv2DDNNLayer, Conv2DMMLayer:
        for flip in False, True:
            layer = kind(InputLayer(x.shape), 16, 3, pad=pad, W=W, flip_filters=flip, nonlinearity=None)
            output, = run(get_output(layer, theano.shared(x)))
            assert output.shape == layer.output_shape
            close(output, convolve(x, W if flip else W[:, :, ::-1, ::-1], pad=pixels))


@pytest.mark.parametrize('mode, reduce', [
    ('max', np.max), ('average_inc_pad', np.mean), ('average', np.mean), ('sum', np.sum)])
def test_pooling_of_cudnn(mode, reduce):
    from lasagne.layers.dnn import MaxPool2DDNNLayer, Pool2DDNNLayer
    from theano.sandbox.cuda import dnn
    layer = Pool2DDNNLayer(InputLayer(x.shape), 3, stride=2, pad=1, mode=mode)
    output, single = run(get_output(layer, theano.shared(x)),
                         dnn.dnn_pool(theano.shared(x), (2, 2), mode=mode))
    assert output.shape == layer.output_shape
    close(output, pooled(x, 3, reduce, 2, 1, -np.inf if mode == 'max' else 0))
    close(single, pooled(x, 2, reduce, 1))  # a stride of 1 where none is given
    # Sizes that depend on the input, as SpatialPyramidPoolingDNNLayer has them.
    image = theano.shared(x)
    size = image.shape[2] // 2, image.shape[2] // 2
    close(run(dnn.dnn_pool(image, size, size, mode))[0], pooled(x, 3, reduce))
    if mode == 'max':
        layer = MaxPool2DDNNLayer(InputLayer(x.shape), 2)
        close(run(get_output(layer, theano.shared(x)))[0], pooled(x, 2, np.max))


def test_layers_of_cuda_convnet():
    """The batch comes last."""
    from lasagne.layers.cuda_convnet import (
        Conv2DCCLayer, MaxPool2DCCLayer, NINLayer_c01b, ShuffleBC01ToC01BLayer, ShuffleC01BToBC01Layer)
    inputs = InputLayer(x[..., :6].shape)
    images = theano.shared(np.ascontiguousarray(x[..., :6]))
    conv = Conv2DCCLayer(inputs, 16, 3, stride=2, pad=1, W=W, nonlinearity=None)
    pool = MaxPool2DCCLayer(inputs, 4, stride=3)
    nin = ShuffleC01BToBC01Layer(NINLayer_c01b(
        ShuffleBC01ToC01BLayer(inputs), 16, W=W[:, :, 0, 0], untie_biases=True, nonlinearity=None))
    outputs = run(*(get_output(layer, images) for layer in (conv, pool, nin)))
    # The same, with the batch last from one layer to the next.
    last = ShuffleBC01ToC01BLayer(inputs)
    for layer, output in [
            (Conv2DCCLayer(last, 16, 3, stride=2, pad=1, W=W.transpose(1, 2, 3, 0), nonlinearity=None,
                           dimshuffle=False), outputs[0]),
            (MaxPool2DCCLayer(last, 4, stride=3, dimshuffle=False), outputs[1])]:
        close(run(get_output(ShuffleC01BToBC01Layer(layer), images))[0], output)
    close(outputs[0], convolve(x[..., :6], W[:, :, ::-1, ::-1], pad=1, stride=2))
    # 6 pixels, windows of 4 with a stride of 3: the second has three pixels.
    close(outputs[1], pooled(np.pad(x[..., :6], [(0, 0)] * 2 + [(0, 1)] * 2,
                                    constant_values=-np.inf), 4, np.max, 3))
    close(outputs[2], np.einsum('nchw,fc->nfhw', x[..., :6], W[:, :, 0, 0]))
    assert [output.shape for output in outputs] == [layer.output_shape for layer in (conv, pool, nin)]


@pytest.mark.parametrize('size, pad, stride', [(3, 1, 2), (3, 'same', 1), (2, 'same', 1), (2, 'same', 2)])
def test_cuda_convnet_in_the_master_of_lasagne(size, pad, stride):
    """Its layer holds pairs, and 'same' by name; an even filter then gives no pixel too many."""
    from lasagne.layers.cuda_convnet import Conv2DCCLayer
    filters = np.ascontiguousarray(W[:, :, :size, :size])
    layer = Conv2DCCLayer(InputLayer(x.shape), 16, size, stride=stride, pad=1, W=filters, nonlinearity=None)
    layer.filter_size, layer.stride = (size,) * 2, (stride,) * 2
    layer.pad = 'same' if pad == 'same' else (pad,) * 2
    output, = run(get_output(layer, theano.shared(x)))
    expected = convolve(x, filters[:, :, ::-1, ::-1], pad=1, stride=stride)
    if pad == 'same':
        expected = expected[:, :, :-(-6 // stride), :-(-7 // stride)]
    assert output.shape == expected.shape
    close(output, expected)


def test_three_dimensions():
    from theano.sandbox.cuda import dnn
    video = rng.standard_normal((1, 2, 3, 4, 4)).astype('float32')
    filters = rng.standard_normal((2, 2, 2, 2, 2)).astype('float32')
    conv, pool = run(dnn.dnn_conv3d(video, filters), dnn.dnn_pool(theano.shared(video), (3, 2, 2)))
    close(conv, convolve(video, filters))
    assert pool.shape == (1, 2, 1, 3, 3)
    close(pool[0, 0, 0, 0, 0], video[0, 0, :3, :2, :2].max())


def test_transposed_convolution():
    """As scripts for generative nets write it: the gradient of a convolution, as a layer."""
    from theano.sandbox.cuda import dnn
    from theano.sandbox.cuda.basic_ops import gpu_alloc_empty, gpu_contiguous
    from theano.sandbox.cuda.blas import GpuCorrMM, GpuCorrMM_gradInputs
    small, kernels = theano.shared(x), theano.shared(np.ascontiguousarray(W[:4].swapaxes(0, 1)))
    out = gpu_alloc_empty(2, 4, 13, 15)
    desc = dnn.GpuDnnConvDesc(border_mode=(0, 0), subsample=(2, 2), conv_mode='cross')(
        out.shape, kernels.shape)
    big = dnn.GpuDnnConvGradI()(gpu_contiguous(kernels), gpu_contiguous(small), out, desc)
    conv = dnn.GpuDnnConv()(small, kernels, gpu_alloc_empty(2, 4, 2, 3), desc)
    by_W = dnn.GpuDnnConvGradW()(big, small, gpu_alloc_empty(4, 4, 3, 3), desc)
    mm = GpuCorrMM(subsample=(2, 2), pad=(0, 0))(small, kernels)
    mm_big = GpuCorrMM_gradInputs(subsample=(2, 2))(kernels, small, (13, 15))
    big, conv, by_W, mm, mm_big = run(big, conv, by_W, mm, mm_big)
    expected = np.zeros((2, 4, 13, 15))
    for i in range(6):
        for j in range(7):
            expected[:, :, 2 * i:2 * i + 3, 2 * j:2 * j + 3] += np.einsum(
                'nk,kcij->ncij', x[:, :, i, j], kernels.get_value())
    close(big, expected)
    close(mm_big, expected)
    close(conv, convolve(x, kernels.get_value()[:, :, ::-1, ::-1], stride=2))
    close(mm, conv)
    close(by_W, [[[[(x[:, k] * expected[:, c, i:i + 11:2, j:j + 13:2]).sum() for j in range(3)]
                   for i in range(3)] for c in range(4)] for k in range(4)])


def test_batch_normalisation_and_softmax():
    from theano.sandbox.cuda import dnn
    gamma, beta = (rng.standard_normal((1, 4, 1, 1)).astype('float32') for _ in range(2))
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    image = theano.shared(x)
    *trained, tested, soft, log_soft = run(
        *dnn.dnn_batch_normalization_train(image, gamma, beta, 'spatial', epsilon=1e-3),
        dnn.dnn_batch_normalization_test(image, gamma, beta, mean, var, 'spatial', epsilon=1e-3),
        dnn.GpuDnnSoftmax('bc01', 'accurate', 'channel')(image), dnn.GpuDnnSoftmax('log', 'instance')(image))
    normal = (x - mean) / np.sqrt(var + 1e-3) * gamma + beta
    for ours, numpys in zip(trained, (normal, mean, 1 / np.sqrt(var + 1e-3))):
        close(ours, numpys)
    close(tested, normal)
    close(soft, np.exp(x) / np.exp(x).sum(1, keepdims=True))
    close(log_soft, x - np.log(np.exp(x).sum((1, 2, 3), keepdims=True)))


@pytest.mark.parametrize('backend', ['dnn', 'cuda_convnet'])
def test_the_engine_takes_these_layers(backend):
    """Convolution, bias, ReLU and max-pooling become one pass, and their gradient another."""
    from lasagne.layers import cuda_convnet, dnn
    conv, pool = {'dnn': (dnn.Conv2DDNNLayer, dnn.MaxPool2DDNNLayer), 'cuda_convnet': (
        cuda_convnet.Conv2DCCLayer, cuda_convnet.MaxPool2DCCLayer)}[backend]
    images = T.tensor4()
    layer = pool(conv(InputLayer(x.shape, images), 16, 3), 2)
    output = get_output(layer)
    params = layer.input_layer.get_params()
    maker = theano.compile.function_module.FunctionMaker  # rewrites, and does not compile
    inputs = [theano.In(images)] + [theano.In(p, value=p.container, implicit=True) for p in params]
    graph = maker(inputs, [theano.Out(g) for g in T.grad(output.sum(), params)],
                  theano.compile.get_mode('FAST_RUN')).fgraph
    names = [type(node.op).__name__ for node in graph.toposort()]
    assert 'ConvPool' in names and 'ConvPoolGrad' in names
    assert not {'CorrMM', 'Pool', 'MaxPoolGrad'} & set(names)


def test_convolution_in_python():
    """optimizer=None, DebugMode and compute_test_value run Theano's Python code, on SciPy."""
    image, filters = T.tensor4(), theano.shared(W)
    with theano.configparser.change_flags(compute_test_value='raise'):
        image.tag.test_value = x
        output = T.nnet.conv2d(image, filters)
    expected = [[sum(scipy.signal.convolve2d(image[c], kernel[c], 'valid') for c in range(4))
                 for kernel in W] for image in x]
    close(output.tag.test_value, expected)
    old = T.nnet.conv.conv2d(image, filters, image_shape=x.shape, filter_shape=W.shape)
    for convolution in output, old:
        close(theano.function([image], convolution, mode=PYTHON)(x), expected)
