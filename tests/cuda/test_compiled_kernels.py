"""Triton's compiler accepts every kernel, for GPUs that are not here: it needs none.

The kernels are those that a net of the deck's kind asks for when its nodes run on a pretended GPU.
"""
import lasagne
import numpy as np
import pretend
import pytest
import theano
import theano.tensor as tt
import torch
from lasagne import layers, updates
from theano_today.cuda import convert, graphs
from theano_today.cuda.kernels import run

triton = pytest.importorskip('triton')
from theano_today.cuda.kernels import dot, mrg  # noqa: E402

pytestmark = pytest.mark.skipif(convert.device().type != 'cpu' or run.interpreted(),
                                reason='on a GPU they run; the interpreter compiles nothing')

MODES = ['eager']
POINTERS = {'torch.float32': '*fp32', 'torch.float64': '*fp64', 'torch.int32': '*i32',
            'torch.int64': '*i64', 'torch.bool': '*i1'}
PRODUCTS = {'product', 'convolution', 'gradient of filters'}
# Of Triton, not of a kernel.
OPTIONS = ('enable_fp_fusion', 'num_warps', 'num_stages')


def signature(launch):
    """The types of a kernel's arguments, and its constants."""
    types, names = {}, launch.kernel.arg_names
    for name, argument in zip(names, launch.arguments):
        if isinstance(argument, torch.Tensor):
            types[name] = POINTERS[str(argument.dtype)]
        else:
            types[name] = 'fp32' if isinstance(argument, float) else 'i32'
    constants = {name: launch.options[name] for name in names[len(launch.arguments):]}
    return dict(types, **{name: 'constexpr' for name in constants}), constants


@pytest.fixture(scope='module')
def kernels():
    """Launches of a training step and of a few Ops that it has not, one for each kernel."""
    found = {}

    def note(launch):
        types, constants = signature(launch)
        found[launch.kernel.src, tuple(types.items()), tuple(constants.items())] = launch

    with pytest.MonkeyPatch.context() as patch:
        run.observers.append(note)
        ask_for_kernels()
        patch.setenv('THEANO_TODAY_TF32', 'x3')
        patch.setattr(dot, 'WORTH', 0)
        ask_for_products()
        run.observers.remove(note)
    return list(found.values())


def ask_for_kernels():
    lasagne.random.set_rng(np.random.RandomState(1))
    net = layers.InputLayer((None, 1, 13, 12))
    net = layers.Conv2DLayer(net, 3, 3)
    net = layers.MaxPool2DLayer(net, 2)  # an odd number of rows: windows that overhang
    net = layers.DropoutLayer(net, 0.1)
    net = layers.MaxPool2DLayer(layers.Conv2DLayer(net, 4, 2), 2)
    net = layers.DropoutLayer(layers.DenseLayer(net, 5), 0.5)
    net = layers.DenseLayer(net, 2, nonlinearity=None)
    x, y = layers.get_all_layers(net)[0].input_var, tt.matrix()
    cost = lasagne.objectives.squared_error(layers.get_output(net), y).mean()
    step = theano.function([x, y], cost, updates=updates.nesterov_momentum(
        cost, layers.get_all_params(net), theano.shared(np.float32(0.01))))
    step(np.zeros((3, 1, 13, 12), 'float32'), np.zeros((3, 2), 'float32'))
    z, k = tt.dmatrix(), tt.imatrix()
    f = theano.function([z, k], [
        tt.sqrt(abs(z)) / 3 + tt.sgn(z), tt.clip(z, -1, 2.5) * tt.maximum(z, 0.1),
        tt.switch(tt.isnan(z) | (z > 1), tt.cast(k, 'float64'), z.T) * 2])
    f(np.zeros((4, 4)), np.zeros((4, 4), 'int32'))
    with pretend.on_the_gpu():  # PyTorch hides it from fake tensors
        mrg.draw(torch.empty(7, 6, dtype=torch.int32), torch.empty(2, 18, dtype=torch.int64), 99, 0.5)


def ask_for_products():
    x, y, image, w = tt.matrix(), tt.matrix(), tt.tensor4(), tt.tensor4()
    out = tt.nnet.conv2d(image, w)
    f = theano.function([x, y, image, w], [tt.dot(x, y)] + theano.grad((out ** 2).sum(), [image, w]))
    f(np.zeros((3, 4), 'f'), np.zeros((4, 5), 'f'), np.zeros((2, 9, 6, 6), 'f'),
      np.zeros((10, 9, 2, 2), 'f'))


@pytest.mark.parametrize('capability', [80, 90, 100])
def test_kernels_compile(kernels, capability, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    names = {launch.name.split(':')[0] for launch in kernels}
    assert {'elementwise', 'pool', 'gradient of pool', 'random numbers'} | PRODUCTS <= names
    assert len(kernels) >= 10
    for launch in kernels:
        types, constants = signature(launch)
        options = {name: value for name, value in launch.options.items() if name in OPTIONS}
        compiled = triton.compile(ASTSource(launch.kernel, types, constants),
                                  target=GPUTarget('cuda', capability, 32), options=options)
        assert compiled.asm['cubin'], launch.name
        ptx = compiled.asm['ptx']
        assert f'.target sm_{capability}' in ptx
        if launch.name in PRODUCTS:
            assert 'tf32' in ptx  # on the matrix units
            assert compiled.metadata.shared <= 99 * 1024  # what the smallest of these GPUs has
        elif launch.name != 'random numbers':
            assert 'fma.' not in ptx  # two roundings stay two


def test_nothing_runs_here():
    assert graphs.mode(convert.device()) == 'eager'
    assert not run.usable([torch.zeros(3)])
