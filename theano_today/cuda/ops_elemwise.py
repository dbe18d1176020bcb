"""Elementwise Ops, reductions and casts."""
import math

import torch
from theano import scalar
from theano.compile.ops import DeepCopyOp, Rebroadcast, SpecifyShape, ViewOp
from theano.printing import Print
from theano.scalar import basic_scipy
from theano.tensor import basic, elemwise
from theano.tensor.nnet import nnet, sigm
from theano.tensor.opt import Assert

from . import graphs
from .convert import Unsupported, converts, torch_dtype
from .kernels.elemwise import kernel_of
from .kernels.run import with_kernel
from .kernels.scalar import covers

# Scalar Ops whose arguments first become the dtype of the result, as C does for arithmetic.
_ARITHMETIC = {
    scalar.Sub: torch.sub,
    scalar.TrueDiv: torch.true_divide,
    scalar.IntDiv: torch.floor_divide,
    scalar.Mod: torch.remainder,
    scalar.Pow: torch.pow,
    scalar.ArcTan2: torch.atan2,
    scalar.Identity: lambda x: x,
    scalar.Abs: torch.abs,
    scalar.Sgn: lambda x: torch.where(x == x, torch.sign(x), x),  # NaN stays NaN
    scalar.Ceil: torch.ceil,
    scalar.Floor: torch.floor,
    scalar.Trunc: torch.trunc,
    scalar.RoundHalfToEven: torch.round,
    scalar.RoundHalfAwayFromZero: lambda x: torch.sign(x) * torch.floor(torch.abs(x) + 0.5),
    scalar.Neg: torch.neg,
    scalar.Inv: torch.reciprocal,
    scalar.Log: torch.log,
    scalar.Log2: torch.log2,
    scalar.Log10: torch.log10,
    scalar.Log1p: torch.log1p,
    scalar.Exp: torch.exp,
    scalar.Exp2: torch.exp2,
    scalar.Expm1: torch.expm1,
    scalar.Sqr: torch.square,
    scalar.Sqrt: torch.sqrt,
    scalar.Deg2Rad: lambda x: x * (math.pi / 180),
    scalar.Rad2Deg: lambda x: x * (180 / math.pi),
    scalar.Cos: torch.cos,
    scalar.ArcCos: torch.acos,
    scalar.Sin: torch.sin,
    scalar.ArcSin: torch.asin,
    scalar.Tan: torch.tan,
    scalar.ArcTan: torch.atan,
    scalar.Cosh: torch.cosh,
    scalar.ArcCosh: torch.acosh,
    scalar.Sinh: torch.sinh,
    scalar.ArcSinh: torch.asinh,
    scalar.Tanh: torch.tanh,
    scalar.ArcTanh: torch.atanh,
    basic_scipy.Erf: torch.erf,
    basic_scipy.Erfc: torch.erfc,
    basic_scipy.Erfinv: torch.erfinv,
    basic_scipy.GammaLn: torch.lgamma,
    basic_scipy.Psi: torch.digamma,
    basic_scipy.TriGamma: lambda x: torch.polygamma(1, x),
    basic_scipy.J0: torch.special.bessel_j0,
    basic_scipy.J1: torch.special.bessel_j1,
    basic_scipy.I0: torch.special.i0,
    basic_scipy.I1: torch.special.i1,
    sigm.ScalarSigmoid: torch.sigmoid,
    sigm.ScalarSoftplus: torch.nn.functional.softplus,
    nnet.ScalarSoftsign: torch.nn.functional.softsign,
}

# Scalar Ops that compare their arguments as they are, or work on their bits.
_AS_IS = {
    scalar.LT: torch.lt,
    scalar.GT: torch.gt,
    scalar.LE: torch.le,
    scalar.GE: torch.ge,
    scalar.EQ: torch.eq,
    scalar.NEQ: torch.ne,
    scalar.IsNan: torch.isnan,
    scalar.IsInf: torch.isinf,
    scalar.OR: torch.bitwise_or,
    scalar.XOR: torch.bitwise_xor,
    scalar.AND: torch.bitwise_and,
    scalar.Invert: torch.bitwise_not,
}


def _tensor_like(number, dtype, *others):
    """A tensor of no dimensions, made on the device without waiting for it."""
    if isinstance(number, torch.Tensor):
        return number.to(dtype)
    device = next(x.device for x in others if isinstance(x, torch.Tensor))
    return torch.full((), number, dtype=dtype, device=device)


def _fold(binary):
    """A function of any number of arguments from one of two."""
    def function(first, *rest):
        for x in rest:
            first = binary(first, x)
        return first
    return function


def _maximum(x, y):
    if isinstance(y, torch.Tensor):
        return torch.maximum(x, y) if isinstance(x, torch.Tensor) else y.clamp(min=x)
    return x.clamp(min=y)


def _minimum(x, y):
    if isinstance(y, torch.Tensor):
        return torch.minimum(x, y) if isinstance(x, torch.Tensor) else y.clamp(max=x)
    return x.clamp(max=y)


def _clip(x, low, high):
    if isinstance(x, torch.Tensor) and not isinstance(low, torch.Tensor) and \
            not isinstance(high, torch.Tensor) and low <= high:
        return x.clamp(low, high)
    args = x, low, high
    dtype = next(a.dtype for a in args if isinstance(a, torch.Tensor))
    x, low, high = [_tensor_like(a, dtype, *args) for a in args]
    return torch.where(x < low, low, torch.where(x > high, high, x))


_ARITHMETIC.update({
    scalar.Add: _fold(torch.add),
    scalar.Mul: _fold(torch.mul),
    scalar.Maximum: _maximum,
    scalar.Minimum: _minimum,
    scalar.Clip: _clip,
    # x's shape counts, its values do not.
    scalar.Second: lambda x, y: torch.where(torch.ones_like(x, dtype=torch.bool), y, y)
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else
    (torch.full_like(x, y) if isinstance(x, torch.Tensor) else y),
})

for _op in (scalar.OR, scalar.XOR, scalar.AND):
    _AS_IS[_op] = _fold(_AS_IS[_op])


def _switch(dtype):
    def switch(condition, x, y):
        args = condition, x, y
        condition = _tensor_like(condition, torch.bool, *args) \
            if not isinstance(condition, torch.Tensor) else \
            condition if condition.dtype == torch.bool else condition != 0
        return torch.where(condition, _tensor_like(x, dtype, *args),
                           _tensor_like(y, dtype, *args))
    return switch


def _in_range(op):
    below, above = (torch.ge if op.openlow is False else torch.gt,
                    torch.le if op.openhi is False else torch.lt)
    return lambda x, low, high: below(x, low) & above(x, high)


def _composite(op):
    """The nodes inside a Composite, one after the other."""
    steps = [(scalar_function(node.op, node.inputs, node.outputs[0].type.dtype),
              node.inputs, node.outputs[0]) for node in op.fgraph.toposort()]
    if any(len(node.outputs) > 1 for node in op.fgraph.apply_nodes):
        raise Unsupported(f'the Op {op}')

    def run(*args):
        values = dict(zip(op.fgraph.inputs, args))

        def value(variable):
            return values[variable] if variable in values else variable.data.item()

        for function, inputs, output in steps:
            values[output] = function(*[value(v) for v in inputs])
        outputs = tuple(map(value, op.fgraph.outputs))
        return outputs if len(outputs) > 1 else outputs[0]
    return run


def scalar_function(op, inputs, dtype):
    """Return a function of tensors and numbers, at least one a tensor, for a scalar Op.

    Parameters
    ----------
    op : theano.scalar.ScalarOp
    inputs : list of Variable
    dtype : str
        Of the output.

    Raises
    ------
    Unsupported
        For complex numbers and scalar Ops without a counterpart.
    """
    if isinstance(op, scalar.Composite):
        return _composite(op)
    for variable in inputs:
        torch_dtype(variable.type.dtype)
    out = torch_dtype(dtype)
    if isinstance(op, scalar.Cast):
        return lambda x: x.to(out)
    if isinstance(op, scalar.Switch):
        return _switch(out)
    if isinstance(op, scalar.InRange):
        return _in_range(op)
    if type(op) in _AS_IS:
        function = _AS_IS[type(op)]
        swapped = {torch.lt: torch.gt, torch.gt: torch.lt, torch.le: torch.ge, torch.ge: torch.le,
                   torch.eq: torch.eq, torch.ne: torch.ne}

        def as_is(*args):
            if function in swapped and not isinstance(args[0], torch.Tensor):
                return swapped[function](args[1], args[0])
            args = [_tensor_like(a, torch.int64, *args) if not isinstance(a, torch.Tensor) else a
                    for a in args] if function not in swapped else args
            return function(*args).to(out)
        return as_is
    if type(op) not in _ARITHMETIC:
        raise Unsupported(f'the scalar Op {op}')
    function = _ARITHMETIC[type(op)]

    def arithmetic(*args):
        args = [a.to(out) if isinstance(a, torch.Tensor) else a for a in args]
        if len(args) > 1 and not isinstance(args[0], torch.Tensor) and \
                type(op) not in (scalar.Maximum, scalar.Minimum, scalar.Clip):
            args[0] = _tensor_like(args[0], out, *args)
        return function(*args)
    return arithmetic


# PyTorch does these in several passes.
_LONG = (scalar.Composite, scalar.Sgn, scalar.Clip, scalar.Switch, scalar.Second)


@converts(elemwise.Elemwise, numbers=True, into=True)
def _elemwise(node):
    op = node.op.scalar_op
    function = scalar_function(op, node.inputs, node.outputs[0].type.dtype)
    if len(node.outputs) > 1 and not isinstance(op, scalar.Composite):
        raise Unsupported(f'the Op {node.op}')

    turned = getattr(node.op, 'turned', ())

    def reference(*arguments, into=None):
        arguments = [a.flip(list(range(2, a.dim()))) if k in turned else a
                     for k, a in enumerate(arguments)]
        results = function(*arguments)
        if into is None:
            return results
        graphs.copy_all(zip(into, results if len(into) > 1 else [results]))
        return into if len(into) > 1 else into[0]

    parts = op.fgraph.apply_nodes if isinstance(op, scalar.Composite) else [node]
    if not all(covers(part.op.scalar_op if part is node else part.op, part.inputs, part.outputs[0])
               for part in parts):
        return reference
    fused = with_kernel(kernel_of(node), reference)
    if isinstance(op, _LONG):
        return fused
    return lambda *arguments, into=None: reference(*arguments) if into is None else \
        fused(*arguments, into=into)


def check_elemwise(node, values):
    """Raise ValueError where Theano does and PyTorch would broadcast.

    In Theano an axis is stretched only where the type says that its length is 1.
    """
    tensors = [(v, value) for v, value in zip(node.inputs, values)
               if isinstance(value, torch.Tensor)]
    for axis in range(node.outputs[0].type.ndim):
        lengths = {value.shape[axis] for variable, value in tensors
                   if not variable.type.broadcastable[axis]}
        if len(lengths) > 1:
            raise ValueError('Input dimension mis-match: {} on axis {}.'.format(
                ', '.join(map(str, sorted(lengths))), axis))


# ------------------------------------------------------------------------------------- reductions

def _axes(op, x):
    axes = range(x.dim()) if op.axis is None else \
        [op.axis] if isinstance(op.axis, int) else op.axis
    return tuple(sorted(axis % x.dim() for axis in axes))


def _prod(x, axes, dtype):
    for axis in reversed(axes):
        x = torch.prod(x, axis, dtype=dtype)
    return x


_REDUCTIONS = {
    scalar.Add: lambda x, axes, dtype: torch.sum(x, axes, dtype=dtype),
    scalar.Mul: _prod,
    scalar.Maximum: lambda x, axes, dtype: torch.amax(x, axes),
    scalar.Minimum: lambda x, axes, dtype: torch.amin(x, axes),
    scalar.AND: lambda x, axes, dtype: torch.all(x != 0, axes),
    scalar.OR: lambda x, axes, dtype: torch.any(x != 0, axes),
    elemwise.MulWithoutZeros: lambda x, axes, dtype: torch.where(  # 0 where nothing else is
        torch.any(x != 0, axes), _prod(torch.where(x == 0, 1, x), axes, dtype), 0),
}


@converts(elemwise.CAReduce)
def _careduce(node):
    op, dtype = node.op, torch_dtype(node.outputs[0].type.dtype)
    reduce = _REDUCTIONS.get(type(op.scalar_op))
    logical = isinstance(op.scalar_op, (scalar.AND, scalar.OR))
    if reduce is None or (logical and node.inputs[0].type.dtype != 'bool'):
        raise Unsupported(f'the Op {op}')

    def run(x):
        axes = _axes(op, x)
        return reduce(x, axes, dtype).to(dtype) if axes else x.to(dtype)
    return run


@converts(basic.MaxAndArgmax)
def _max_and_argmax(node):
    op = node.op

    def run(x):
        axes = _axes(op, x)
        kept = [axis for axis in range(x.dim()) if axis not in axes]
        flat = x.permute(kept + list(axes)).flatten(len(kept))
        return torch.amax(flat, -1), torch.argmax(flat, -1)
    return run


@converts(basic.Argmax)
def _argmax(node):
    both = _max_and_argmax(node)
    return lambda x: both(x)[1]


# ------------------------------------------------------------------------------- copies and checks

@converts(DeepCopyOp)
def _deep_copy(node):
    return lambda x: x.clone()


@converts(ViewOp, basic.TensorFromScalar, basic.ScalarFromTensor)
def _view(node):
    return lambda x: x


@converts(Rebroadcast)
def _rebroadcast(node):
    axes = [axis for axis, one in node.op.axis.items() if one]

    def run(x):
        for axis in axes:
            if x.shape[axis] != 1:
                raise ValueError(f'Dimension {axis} in Rebroadcast\'s input was supposed to be 1 '
                                 f'(got {x.shape[axis]} instead)')
        return x
    return run


@converts(Assert, numbers=True, syncs=True)
def _assert(node):
    message = node.op.msg

    def run(x, *conditions):
        for condition in conditions:
            holds = condition.all().item() if isinstance(condition, torch.Tensor) else condition
            if not holds:
                raise AssertionError(message)
        return x
    return run


@converts(Print, syncs=True)
def _print(node):
    op = node.op

    def run(x):
        op.global_fn(op, x.cpu().numpy())
        return x
    return run


@converts(SpecifyShape, host=[1])
def _specify_shape(node):
    def run(x, shape):
        if tuple(x.shape) != tuple(shape):
            raise AssertionError(
                f'SpecifyShape: got shape {tuple(x.shape)}, expected {tuple(shape)}.')
        return x
    return run
