"""Max-pooling with the elementwise Ops before and after it, in one kernel; and its gradient.

The windows lie side by side.  `before` makes the elements of a window from tensors of the size of the
picture, `after` makes the output from the maximum and tensors of the size of the output::

    z ──┐
        ├─ before: 0.5 * (z + b + |z + b|) ── maximum of each window ─┐
    b ──┘                                                             ├─ after: * (u < 0.9) / 0.9 ──►
    u ────────────────────────────────────────────────────────────────┘

The gradient computes the elements of the windows once more, since reading them would take as long as
reading z.  Every element that equals the maximum gets the gradient, as in Theano.
"""
import torch

from .run import from_source, launch
from .scalar import OPTIONS, expressions

__all__ = ['backward', 'backward_source', 'forward', 'forward_source']

BLOCK = 256


def forward(block, arguments, shape, dtype):
    """Run the kernel of a `fused.MaxPool`.

    Parameters
    ----------
    block : fused.MaxPool
    arguments : list of tensors
        As the Op has them: of the picture, then of the output; 4D.
    shape : tuple of int
        Of the picture.
    dtype : torch.dtype
        Of the output.
    """
    rows, columns = block.counts(shape)
    output = torch.empty(tuple(shape[:2]) + (rows, columns), dtype=dtype, device=arguments[0].device)
    text = forward_source(block, tuple(map(name_of, arguments)))
    count = output.numel()
    launch(from_source(text), (-(-count // BLOCK),), *arguments, output, count, shape[1], rows, columns,
           *strides(arguments, shape, (rows, columns), block.n_picture), BLOCK=BLOCK,
           reads=arguments, writes=[output], name='pool', **OPTIONS)
    return output


def backward(block, arguments, shape, dtype):
    """Run the kernel of a `fused.MaxPoolGrad`; see `forward`."""
    rows, columns = block.counts(shape)
    output = torch.empty(shape, dtype=dtype, device=arguments[0].device)
    height, width = block.window
    # Windows that overhang get no gradient, but their elements must be written.
    all_rows, all_columns = -(-shape[2] // height), -(-shape[3] // width)
    text = backward_source(block, tuple(map(name_of, arguments)),
                           (all_rows, all_columns) == (rows, columns) and
                           not (shape[2] % height or shape[3] % width))
    count = shape[0] * shape[1] * all_rows * all_columns
    launch(from_source(text), (-(-count // BLOCK),), *arguments, output, count, shape[1], rows, columns,
           all_rows, all_columns, shape[2], shape[3],
           *strides(arguments, shape, (rows, columns), block.n_picture), BLOCK=BLOCK,
           reads=arguments, writes=[output], name='gradient of pool', **OPTIONS)
    return output


def name_of(tensor):
    return str(tensor.dtype).split('.')[-1]


def strides(arguments, shape, counts, n_picture):
    """The strides of all tensors, as those of their broadcast shape."""
    result = []
    for k, argument in enumerate(arguments):
        size = tuple(shape) if k < n_picture else tuple(shape[:2]) + tuple(counts)
        result += argument.expand(size).stride()
    return result


def _loads(names, places, mask, prefix, dtypes):
    """Lines that read the element at (n, c, y, x) of some inputs."""
    lines = []
    for k in names:
        y, x = places
        lines.append(f'{prefix}{k} = tl.load(in{k} + n * s{k}_0 + c * s{k}_1 + {y} * s{k}_2 + '
                     f'{x} * s{k}_3, mask={mask})')
        if dtypes[k] == 'bool':
            lines.append(f'{prefix}{k} = {prefix}{k} != 0')
    return lines


def _apply(op, names, dtypes, prefix):
    if op is None:
        return [], names[0]
    lines, results = expressions(op, names, dtypes, prefix)
    return lines, results[0]


def _kernel(inputs, sizes, lines):
    parameters = [f'in{k}' for k in range(inputs)] + ['out', 'count'] + sizes + [
        f's{k}_{axis}' for k in range(inputs) for axis in range(4)] + ['BLOCK: tl.constexpr']
    return f'def kernel({", ".join(parameters)}):\n    ' + '\n    '.join(lines) + '\n'


def _elements(block, dtypes, inside):
    """Lines that compute all elements of a window and their maximum ``m``; their names.

    ``e0`` is the first element and ``p0_k`` what input k has there.
    """
    lines, elements = [], []
    height, width = block.window
    for place in range(height * width):
        y = f'(y * {height} + {place // width})'
        x = f'(x * {width} + {place % width})'
        lines += _loads(range(block.n_picture), (y, x), inside, f'p{place}_', dtypes)
        body, value = _apply(block.before, [f'p{place}_{k}' for k in block.before_inputs],
                             [dtypes[k] for k in block.before_inputs], f'e{place}_')
        lines += body
        elements.append(value)
    lines.append(f'm = {elements[0]}')
    lines += [f'm = tl.maximum(m, {value}, propagate_nan=tl.PropagateNan.ALL)'
              for value in elements[1:]]
    return lines, elements


_START = ['i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)', 'inside = i < count']


def forward_source(block, dtypes):
    """The text of the kernel, for tensors of these dtypes."""
    lines = _START + ['x = i % columns', 'rest = i // columns', 'y = rest % rows',
                      'rest = rest // rows', 'c = rest % channels', 'n = rest // channels']
    lines += _elements(block, dtypes, 'inside')[0]
    lines += _loads(range(block.n_picture, len(dtypes)), 'yx', 'inside', 'u', dtypes)
    names = ['m' if k < 0 else f'u{k}' for k in block.after_inputs]
    body, value = _apply(block.after, names or ['m'],
                         [block.dtype if k < 0 else dtypes[k] for k in block.after_inputs], 'o')
    lines += body + [f'tl.store(out + i, {value}, mask=inside)']
    return _kernel(len(dtypes), ['channels', 'rows', 'columns'], lines)


def backward_source(block, dtypes, exact):
    """The text of the kernel, for tensors of these dtypes; `exact` if no window overhangs."""
    height, width = block.window
    lines = _START + [
        'x = i % all_columns', 'rest = i // all_columns', 'y = rest % all_rows',
        'rest = rest // all_rows', 'c = rest % channels', 'n = rest // channels',
        'whole = inside & (y < rows) & (x < columns)']
    body, elements = _elements(block, dtypes, 'whole')
    lines += body
    lines += _loads(range(block.n_picture, len(dtypes)), 'yx', 'whole', 'u', dtypes)
    body, value = _apply(block.gradient, [f'u{k}' for k in block.gradient_inputs],
                         [dtypes[k] for k in block.gradient_inputs], 'g')
    lines += body + [f'g = tl.where(whole, {value}, 0.0)']
    stores = []
    for place, element in enumerate(elements):
        y, x = f'(y * {height} + {place // width})', f'(x * {width} + {place % width})'
        lines += [f'd{place} = tl.where({element} == m, g, 0.0)',
                  f'there{place} = inside & ({y} < picture_rows) & ({x} < picture_columns)']
        if not exact:  # where a window overhangs, its elements have not been read yet
            lines += _loads([k for k in block.after_inputs if k >= 0], (y, x), f'there{place}',
                            f'p{place}_', dtypes)
        names = [f'd{place}' if k < 0 else f'p{place}_{k}' for k in block.after_inputs]
        body, value = _apply(block.after, names or [f'd{place}'],
                             [block.dtype if k < 0 else dtypes[k] for k in block.after_inputs],
                             f'o{place}_')
        lines += body
        stores.append(f'tl.store(out + ((n * channels + c) * picture_rows + {y}) * picture_columns + '
                      f'{x}, {value}, mask=there{place})')
    return _kernel(len(dtypes), ['channels', 'rows', 'columns', 'all_rows', 'all_columns',
                                 'picture_rows', 'picture_columns'], lines + stores)
