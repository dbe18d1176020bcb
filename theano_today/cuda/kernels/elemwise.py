"""One kernel for a graph of elementwise Ops.

The elements of the outputs are numbered from 0 to n.  An input of the same shape without gaps has
element i at the address i; the address in a broadcast or transposed one follows from the coordinates
of i, with as many axes as are left after those that can be counted through have been merged.
"""
import torch
from theano.gof import graph

from .run import cannot, from_source, launch
from .scalar import OPTIONS, TYPES, expressions

__all__ = ['kernel_of', 'merged_axes', 'source']

BLOCK = 1024


def kernel_of(node):
    """Return the kernel of an Elemwise node, all of whose scalar Ops are covered.

    Returns
    -------
    callable
        From tensors and numbers to a tensor, or a list of several; with ``into=tensors`` it writes
        into these.
    """
    op = node.op.scalar_op
    turned = getattr(node.op, 'turned', ())
    dtypes = [variable.dtype for variable in node.inputs]
    results = [variable.dtype for variable in node.outputs]

    def run(*arguments, into=None):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        shape = torch.broadcast_shapes(*[a.shape for a in tensors])
        count = shape.numel()
        if count == 0 or count >= 2 ** 31 - BLOCK or any(
                not isinstance(a, torch.Tensor) and dtype == 'float64'
                for a, dtype in zip(arguments, dtypes)):
            return cannot
        kinds, strided, starts, full = [], [], [], contiguous(shape)
        for k, argument in enumerate(arguments):
            stride = argument.expand(shape).stride() if isinstance(argument, torch.Tensor) else None
            start = 0
            if k in turned:
                start = sum((size - 1) * step for size, step in zip(shape[2:], stride[2:]))
                stride = stride[:2] + tuple(-step for step in stride[2:])
            used = [(s, f) for s, f, size in zip(stride or (), full, shape) if size != 1]
            kinds.append('number' if stride is None else
                         'one' if not any(s for s, _ in used) else
                         'whole' if all(s == f for s, f in used) else 'strided')
            if kinds[-1] == 'strided':
                strided.append(stride)
                starts.append(start)
        sizes, strided = merged_axes(shape, strided) if strided else ((), [])
        outputs = into or [torch.empty(shape, dtype=getattr(torch, dtype), device=tensors[0].device)
                           for dtype in results]
        if any(not output.is_contiguous() for output in outputs):
            return cannot
        text = source(op, dtypes, results, tuple(kinds), len(sizes))
        launch(from_source(text), (-(-count // BLOCK),), *arguments, *outputs, count, *sizes,
               *[number for start, stride in zip(starts, strided) for number in (start, *stride)],
               BLOCK=BLOCK, reads=tensors, writes=outputs, name=f'elementwise: {op}', **OPTIONS)
        return outputs if len(outputs) > 1 else outputs[0]
    return run


def contiguous(sizes):
    """The strides of an array of these sizes without gaps."""
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def merged_axes(shape, strides):
    """Merge neighbouring axes wherever all arrays can be counted through.

    Parameters
    ----------
    shape : tuple of int
    strides : list of tuple

    Returns
    -------
    sizes : tuple of int
    strides : list of tuple
    """
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    groups = []
    for axis in axes:
        if groups and all(stride[groups[-1][1]] == stride[axis] * shape[axis] for stride in strides):
            groups[-1] = groups[-1][0] * shape[axis], axis
        else:
            groups.append((shape[axis], axis))
    return tuple(size for size, _ in groups), [
        tuple(stride[axis] for _, axis in groups) for stride in strides]


def source(op, dtypes, results, kinds, ndim):
    """The text of a kernel.

    Parameters
    ----------
    op : theano.scalar.ScalarOp
    dtypes, results : list of str
        Of inputs and outputs.
    kinds : tuple of str
        For each input: 'whole' (element i is at the address i), 'one' (a tensor with one element),
        'number', or 'strided'.
    ndim : int
        The number of axes for 'strided'.
    """
    inputs = [f'in{k}' for k in range(len(dtypes))]
    outputs = [f'out{k}' for k in range(len(results))]
    strided = [k for k, kind in enumerate(kinds) if kind == 'strided']
    sizes = [f'size{axis}' for axis in range(ndim)] if strided else []
    strides = [name for k in strided
               for name in [f'start{k}'] + [f'stride{k}_{axis}' for axis in range(ndim)]]
    lines = ['i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)', 'inside = i < count']
    if strided:
        lines.append('rest = i')
        for axis in reversed(range(ndim)):
            lines += [f'at{axis} = rest % size{axis}', f'rest = rest // size{axis}']
    used = _used(op, len(inputs))
    names = []
    for k, (name, kind) in enumerate(zip(inputs, kinds)):
        names.append(f'x{k}')
        if k not in used:
            continue
        address = {'whole': f'{name} + i', 'one': f'{name} + i * 0', 'number': None}.get(
            kind, f'{name} + start{k} + ' + ' + '.join(
                f'at{a} * stride{k}_{a}' for a in range(ndim)))
        lines.append(f'x{k} = tl.full([1], {name}, {TYPES[dtypes[k]]})' if address is None else
                     f'x{k} = tl.load({address}, mask=inside)')
        if dtypes[k] == 'bool' and address is not None:
            lines.append(f'x{k} = x{k} != 0')
    body, values = expressions(op, names, dtypes, 'v')
    lines += body
    for name, value in zip(outputs, values):
        lines.append(f'tl.store({name} + i, {value}, mask=inside)')
    parameters = inputs + outputs + ['count'] + sizes + strides + ['BLOCK: tl.constexpr']
    return f'def kernel({", ".join(parameters)}):\n    ' + '\n    '.join(lines) + '\n'


def _used(op, count):
    """The positions of the inputs whose elements are looked at."""
    if not hasattr(op, 'fgraph'):
        return range(count)
    needed = set(graph.ancestors(op.fgraph.outputs))
    return [k for k, variable in enumerate(op.fgraph.inputs) if variable in needed]
