"""Shapes, indexing, joining and matrix products."""

import numpy as np
import torch
from theano.compile.ops import Shape, Shape_i
from theano.tensor import basic, blas, elemwise, extra_ops, opt, subtensor
from theano.tensor.sort import ArgSortOp, SortOp
from theano.tensor.type_other import MakeSlice, NoneTypeT, SliceType

from .convert import Unsupported, converts, device, table, torch_dtype
from .kernels.run import cannot, precision, with_kernel


def _ints(values):
    return tuple(int(value) for value in values)


# ----------------------------------------------------------------------------------------- shapes

@converts(Shape, Shape_i, MakeSlice)
def _host_only(node):
    # These never reach the device: placement.py knows the shapes of its tensors.
    raise Unsupported(f'the Op {node.op}')


@converts(elemwise.DimShuffle)
def _dimshuffle(node):
    op = node.op

    def run(x):
        for axis in op.drop:
            if x.shape[axis] != 1:
                raise ValueError(
                    f'DimShuffle drops axis {axis}, whose length is {x.shape[axis]}, not 1.')
        x = x.permute(tuple(op.shuffle) + tuple(op.drop))
        if op.drop:
            x = x.reshape(x.shape[:len(op.shuffle)])
        for axis in op.augment:
            x = x.unsqueeze(axis)
        return x
    return run


@converts(basic.Reshape, host=[1])
def _reshape(node):
    return lambda x, shape: x.reshape(_ints(shape))


@converts(basic.Flatten)
def _flatten(node):
    outdim = node.op.outdim
    return lambda x: x.reshape(tuple(x.shape[:outdim - 1]) + (-1,))


@converts(basic.Alloc, host=lambda node: range(1, len(node.inputs)))
def _alloc(node):
    return lambda value, *shape: value.expand(_ints(shape))


@converts(basic.AllocEmpty, host=lambda node: range(len(node.inputs)))
def _alloc_empty(node):
    # Zeros, so that a program never shows what some other has left in memory.
    dtype = torch_dtype(node.outputs[0].dtype)
    return lambda *shape: torch.zeros(_ints(shape), dtype=dtype, device=device())


@converts(basic.Eye, host=[0, 1, 2])
def _eye(node):
    dtype = torch_dtype(node.outputs[0].dtype)

    def run(n, m, k):
        ones = torch.ones(_ints([n, m]), dtype=dtype, device=device())
        return ones.tril(int(k)).triu(int(k))
    return run


@converts(opt.MakeVector)
def _make_vector(node):
    dtype = torch_dtype(node.outputs[0].dtype)
    return lambda *values: torch.stack([value.to(dtype) for value in values])


@converts(basic.Join, host=[0])
def _join(node):
    dtype = torch_dtype(node.outputs[0].dtype)
    return lambda axis, *tensors: torch.cat([x.to(dtype) for x in tensors], int(axis))


@converts(basic.Split, host=[1, 2])
def _split(node):
    def run(x, axis, lengths):
        if sum(lengths) != x.shape[int(axis)] or min(lengths) < 0:
            raise ValueError(
                f'Split: lengths {_ints(lengths)} do not add up to {x.shape[int(axis)]}.')
        parts = torch.split(x, _ints(lengths), int(axis))
        return parts if len(parts) > 1 else parts[0]
    return run


@table  # a CUDA graph must not copy from the host
def _kept(numbers, device):
    """Integers as a tensor on the device."""
    return torch.tensor(numbers, dtype=torch.int64).to(device)


@converts(extra_ops.RepeatOp, host=[1])
def _repeat(node):
    axis = node.op.axis

    def run(x, repeats):
        if repeats.ndim == 0:
            return torch.repeat_interleave(x, int(repeats), axis)
        places = np.repeat(np.arange(len(repeats)), repeats)
        if axis is None:
            x = x.reshape(-1)
        if len(repeats) != x.shape[axis or 0]:
            raise ValueError(f'RepeatOp: {len(repeats)} numbers of repeats for a length of '
                             f'{x.shape[axis or 0]}.')
        return x.index_select(axis or 0, _kept(tuple(places.tolist()), x.device))
    return run


@converts(basic.Tile, host=[1])
def _tile(node):
    return lambda x, repeats: x.repeat(_ints(repeats))


@converts(basic.ExtractDiag)
def _extract_diag(node):
    op = node.op
    return lambda x: torch.diagonal(x, op.offset, op.axis1, op.axis2)


@converts(basic.AllocDiag)
def _alloc_diag(node):
    op = node.op
    return lambda x: torch.diag_embed(x, op.offset, op.axis1, op.axis2)


# --------------------------------------------------------------------------------------- indexing

def _indices(idx_list, values):
    """The indices of a Subtensor, as slices and Python ints."""
    values = iter(values)

    def convert(entry):
        if isinstance(entry, slice):
            return slice(convert(entry.start), convert(entry.stop), convert(entry.step))
        if entry is None or isinstance(entry, (int, np.integer)):
            return entry
        return int(next(values))  # a type: the value is an input of the node
    return [convert(entry) for entry in idx_list]


def _forward_steps(indices, shape):
    """Replace slices with negative steps, which PyTorch has not.

    Returns
    -------
    indices : tuple
        With positive steps only.
    flipped : list of int
        Axes of the result to be reversed.
    """
    result, flipped, axis = [], [], 0
    for index, length in zip(indices, shape):
        if isinstance(index, slice):
            start, stop, step = index.indices(length)
            if step < 0:
                count = len(range(start, stop, step))
                first = start + (count - 1) * step
                index = slice(first, start + 1, -step) if count else slice(0, 0)
                flipped.append(axis)
            axis += 1
        result.append(index)
    return tuple(result), flipped


@converts(subtensor.Subtensor, host=lambda node: range(1, len(node.inputs)))
def _subtensor(node):
    idx_list = node.op.idx_list

    def run(x, *values):
        indices, flipped = _forward_steps(_indices(idx_list, values), x.shape)
        x = x[indices]
        return x.flip(flipped) if flipped else x
    return run


@converts(subtensor.IncSubtensor, host=lambda node: range(2, len(node.inputs)))
def _inc_subtensor(node):
    op = node.op

    def run(x, y, *values):
        indices, flipped = _forward_steps(_indices(op.idx_list, values), x.shape)
        result = x.clone(memory_format=torch.contiguous_format)
        part = result[indices]
        if flipped:
            y = y.expand(part.shape).flip(flipped)
        if op.set_instead_of_inc:
            part.copy_(y)
        else:
            part.add_(y)
        return result
    return run


def _index_tensor(index):
    # PyTorch takes uint8 for a mask.
    return index.long()


def _limits(axis):
    """The range of indices of an axis of the first input, see `Converter.indices`."""
    return lambda x, *others: (-x.shape[axis], x.shape[axis])


def _advanced_limits(first):
    """The indices of an advanced (Inc)Subtensor, of which each takes an axis."""
    def indices(node):
        axis = 0
        for i, variable in enumerate(node.inputs[first:], first):
            if not isinstance(variable.type, (SliceType, NoneTypeT)):
                yield i, _limits(axis)
            axis += not isinstance(variable.type, NoneTypeT)
    return lambda node: list(indices(node))


@converts(subtensor.AdvancedSubtensor1, indices=[(1, _limits(0))])
def _advanced_subtensor1(node):
    if getattr(node.op, 'sparse_grad', False):
        raise Unsupported(f'the Op {node.op} with a sparse gradient')
    return lambda x, index: x[_index_tensor(index)]


def _put(result, indices, y, accumulate):
    shape = result[indices].shape
    return result.index_put_(indices, y.to(result.dtype).expand(shape), accumulate=accumulate)


@converts(subtensor.AdvancedIncSubtensor1, indices=[(2, _limits(0))])
def _advanced_inc_subtensor1(node):
    accumulate = not node.op.set_instead_of_inc

    def run(x, y, index):
        result = x.clone(memory_format=torch.contiguous_format)
        return _put(result, (_index_tensor(index),), y, accumulate)
    return run


def _check_advanced(node, first):
    """Host positions of the indices of an advanced (Inc)Subtensor: slices and None."""
    for variable in node.inputs[first:]:
        if getattr(variable.type, 'dtype', None) == 'bool':
            raise Unsupported(f'the Op {node.op} with a mask')
    return [i for i, variable in enumerate(node.inputs)
            if isinstance(variable.type, (SliceType, NoneTypeT))]


def _advanced_get(x, indices):
    """``x[indices]`` with NumPy's meaning: slices, which may step backwards, come first."""
    slices = []
    for index in indices:
        if isinstance(index, slice):
            slices.append(slice(*[None if n is None else int(n)
                                  for n in (index.start, index.stop, index.step)]))
        elif index is not None:
            slices.append(slice(None))
    forward, flipped = _forward_steps(slices, x.shape)
    x = x[forward]
    if flipped:
        x = x.flip(flipped)
    return x[tuple(_index_tensor(i) if isinstance(i, torch.Tensor) else
                   i if i is None else slice(None) for i in indices)]


@converts(subtensor.AdvancedSubtensor, host=lambda node: _check_advanced(node, 1),
          indices=_advanced_limits(1))
def _advanced_subtensor(node):
    return lambda x, *indices: _advanced_get(x, indices)


@converts(subtensor.AdvancedIncSubtensor, host=lambda node: _check_advanced(node, 2),
          indices=_advanced_limits(2))
def _advanced_inc_subtensor(node):
    accumulate = not node.op.set_instead_of_inc

    def run(x, y, *indices):
        result = x.clone(memory_format=torch.contiguous_format)
        if any(isinstance(i, slice) or i is None for i in indices):
            # Number the elements, index the numbers as NumPy would the elements, put by number.
            numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)
            numbers = _advanced_get(numbers, indices)
            y = y.to(x.dtype).expand(numbers.shape)
            result.view(-1).index_put_((numbers.reshape(-1),), y.reshape(-1),
                                       accumulate=accumulate)
            return result
        return _put(result, tuple(map(_index_tensor, indices)), y, accumulate)
    return run


# ------------------------------------------------------------------------------ sorting, cumulation

@converts(SortOp, host=[1])
def _sort(node):
    return lambda x, axis: torch.sort(x, dim=int(axis), stable=True)[0]


@converts(ArgSortOp, host=[1])
def _argsort(node):
    return lambda x, axis: torch.sort(x, dim=int(axis), stable=True)[1]


@converts(extra_ops.CumOp)
def _cumulate(node):
    axis, dtype = node.op.axis, torch_dtype(node.outputs[0].dtype)
    function = torch.cumsum if node.op.mode == 'add' else torch.cumprod

    def run(x):
        return function(x.reshape(-1) if axis is None else x, axis or 0, dtype=dtype)
    return run


# --------------------------------------------------------------------------------- matrix products

def _product(x, y):
    if x.shape[-1] != y.shape[max(y.dim() - 2, 0)]:
        raise ValueError(
            f'Shape mismatch in a matrix product: {tuple(x.shape)} and {tuple(y.shape)}.')
    return _either(x, y)


def _three_products(x, y):
    if precision() != 'tf32x3' or x.dim() != 2 or y.dim() != 2:
        return cannot
    from .kernels import dot
    return dot.product(x, y)


_either = with_kernel(_three_products, torch.matmul)


@converts(basic.Dot, blas.Dot22)
def _dot(node):
    dtype = torch_dtype(node.outputs[0].dtype)
    return lambda x, y: _product(x.to(dtype), y.to(dtype))


def _number(value):
    return not isinstance(value, torch.Tensor)


@converts(blas.Dot22Scalar, numbers=True)
def _dot22scalar(node):
    return lambda x, y, a: _product(x, y) * a


@converts(blas.Gemm, numbers=True)
def _gemm(node):
    def run(z, a, x, y, b):
        product = _product(x, y)
        if _number(b) and b == 0:
            return product * a
        if z.shape != product.shape:
            raise ValueError(
                f'Gemm: the product has shape {tuple(product.shape)}, z has {tuple(z.shape)}.')
        if _number(a) and _number(b):
            return torch.addmm(z, x, y, beta=b, alpha=a)
        return b * z + a * product
    return run


@converts(blas.Gemv, numbers=True)
def _gemv(node):
    def run(y, alpha, A, x, beta):
        product = _product(A, x) * alpha
        if _number(beta) and beta == 0:
            return product
        if y.shape != product.shape:
            raise ValueError(
                f'Gemv: the product has shape {tuple(product.shape)}, y has {tuple(y.shape)}.')
        return product + beta * y
    return run


@converts(blas.Ger, numbers=True)
def _ger(node):
    def run(A, alpha, x, y):
        product = torch.outer(x, y)
        if A.shape != product.shape:
            raise ValueError(
                f'Ger: the product has shape {tuple(product.shape)}, A has {tuple(A.shape)}.')
        return A + alpha * product
    return run


@converts(blas.BatchedDot)
def _batched_dot(node):
    def run(x, y):
        if x.shape[0] != y.shape[0]:
            raise TypeError(f'BatchedDot: {tuple(x.shape)} and {tuple(y.shape)} must have the same '
                            'size in axis 0.')
        a = x.unsqueeze(1) if x.dim() == 2 else x
        b = y.unsqueeze(2) if y.dim() == 2 else y
        z = torch.bmm(a, b)
        if y.dim() == 2:
            z = z.squeeze(2)
        return z.squeeze(1) if x.dim() == 2 else z
    return run
