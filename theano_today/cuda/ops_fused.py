"""The Ops of fused.py: a kernel, and beside it the same in PyTorch's own calls."""
import torch
import torch.nn.functional as F

from .convert import converts, torch_dtype
from .fused import MaxPool, MaxPoolGrad, Turn
from .kernels import pool as kernels
from .kernels.run import cannot, with_kernel
from .ops_elemwise import scalar_function


@converts(Turn)
def _turn(node):
    axes = list(range(2, node.inputs[0].ndim))
    return lambda x: x.flip(axes)


def _function(op, variables, dtype):
    """A function of tensors for a scalar Op; for None that of one argument which returns it."""
    return (lambda x: x) if op is None else scalar_function(op, variables, dtype)


def _picture(node, arguments):
    """The shape of the picture; ValueError where the inputs do not agree, as in Theano."""
    op = node.op

    def shape_of(part):
        shape = []
        for axis in range(4):
            lengths = {a.shape[axis] for v, a in part if not v.type.broadcastable[axis]} or {1}
            if len(lengths) > 1:
                raise ValueError('Input dimension mis-match: {} on axis {}.'.format(
                    ', '.join(map(str, sorted(lengths))), axis))
            shape += lengths
        return tuple(shape)

    pairs = list(zip(node.inputs, arguments))
    shape = shape_of(pairs[:op.n_picture])
    maxima = shape[:2] + op.counts(shape)
    for v, a in pairs[op.n_picture:]:
        if any(n != m and not (v.type.broadcastable[axis] and n == 1)
               for axis, (n, m) in enumerate(zip(a.shape, maxima))):
            raise ValueError(f'Max-pooling gives the shape {maxima}, not {tuple(a.shape)}.')
    return shape


def _pick(arguments, positions, own):
    return [own if k < 0 else arguments[k] for k in positions]


def _variables(node, positions):
    """Stand-ins for the inputs of a scalar Op, of which only dtypes are looked at."""
    own = node.op.elements()
    return [own if k < 0 else node.inputs[k] for k in positions]


def _maxima(x, op):
    rows, columns = op.counts(x.shape)
    if not x.numel() or not rows or not columns:
        return x.new_empty(x.shape[:2] + (rows, columns))
    return F.max_pool2d(x, op.window)


@converts(MaxPool)
def _max_pool(node):
    op, dtype = node.op, torch_dtype(node.outputs[0].dtype)
    before = _function(op.before, _variables(node, op.before_inputs), op.dtype)
    after = _function(op.after, _variables(node, op.after_inputs), node.outputs[0].dtype)

    def reference(shape, *arguments):
        x = before(*_pick(arguments, op.before_inputs, None)).expand(shape)
        maxima = _maxima(x, op)
        return after(*_pick(arguments, op.after_inputs or [-1], maxima))

    def kernel(shape, *arguments):
        return kernels.forward(op, arguments, shape, dtype) if _sized(op, shape) else cannot

    either = with_kernel(kernel, reference)
    return lambda *arguments: either(_picture(node, arguments), *arguments)


@converts(MaxPoolGrad)
def _max_pool_grad(node):
    op, dtype = node.op, torch_dtype(node.outputs[0].dtype)
    before = _function(op.before, _variables(node, op.before_inputs), op.dtype)
    gradient_of = _function(op.gradient, _variables(node, op.gradient_inputs), op.dtype)
    after = _function(op.after, _variables(node, op.after_inputs), node.outputs[0].dtype)

    def reference(shape, *arguments):
        x = before(*_pick(arguments, op.before_inputs, None)).expand(shape)
        (rows, columns), (height, width) = op.counts(shape), op.window
        whole = x[:, :, :rows * height, :columns * width]
        split = whole.reshape(shape[:2] + (rows, height, columns, width))
        gradient = gradient_of(*_pick(arguments, op.gradient_inputs, None)).expand(
            shape[:2] + (rows, columns))
        # To broadcast against (..., rows, height, columns, width).
        maxima, gradient = [t[:, :, :, None, :, None] for t in (_maxima(x, op), gradient)]
        result = torch.where(split == maxima, gradient, 0).reshape(whole.shape)
        result = F.pad(result, (0, shape[3] - columns * width, 0, shape[2] - rows * height))
        return after(*_pick(arguments, op.after_inputs or [-1], result))

    def kernel(shape, *arguments):
        return kernels.backward(op, arguments, shape, dtype) if _sized(op, shape) else cannot

    either = with_kernel(kernel, reference)
    return lambda *arguments: either(_picture(node, arguments), *arguments)


def _sized(op, shape):
    """Whether kernels can number the elements: there are some, and 31 bits are enough."""
    return 0 < torch.Size(shape).numel() < 2 ** 31 - 2 ** 16 and 0 not in op.counts(shape)
