"""From Theano's scalar Ops to expressions of Triton's language.

Covered is what IEEE 754 defines to the last bit, for float32 and float64: arithmetic, square roots,
comparisons, choices and casts.  A multiplication and an addition stay two roundings, see `OPTIONS`.
"""
from theano import scalar
from theano.gof import graph

__all__ = ['OPTIONS', 'covers', 'expressions']

#: For all launches: as NumPy rounds.
OPTIONS = dict(enable_fp_fusion=False)

TYPES = {'float32': 'tl.float32', 'float64': 'tl.float64', 'bool': 'tl.int1', 'int8': 'tl.int8',
         'int16': 'tl.int16', 'int32': 'tl.int32', 'int64': 'tl.int64', 'uint8': 'tl.uint8'}
FLOATS = ('float32', 'float64')


def _fold(operator):
    return lambda dtype, *names: f' {operator} '.join(names)


def _extreme(function):
    def nested(dtype, first, *rest):
        for name in rest:
            first = f'tl.{function}({first}, {name}, propagate_nan=tl.PropagateNan.ALL)'
        return first
    return nested


def _number(value, dtype):
    text = f"float('{value}')" if value != value or abs(value) == float('inf') else repr(value)
    return f'tl.full([1], {text}, {TYPES[dtype]})'


def _divide(dtype, x, y):
    # For float32 Triton's / is an approximation.
    return f'tl.div_rn({x}, {y})' if dtype == 'float32' else f'{x} / {y}'


# Arguments become the dtype of the result first.
_ARITHMETIC = {
    scalar.Add: _fold('+'),
    scalar.Mul: _fold('*'),
    scalar.Sub: _fold('-'),
    scalar.TrueDiv: _divide,
    scalar.Maximum: _extreme('maximum'),
    scalar.Minimum: _extreme('minimum'),
    scalar.Neg: lambda dtype, x: f'-{x}',
    scalar.Abs: lambda dtype, x: f'tl.abs({x})',
    scalar.Sqr: lambda dtype, x: f'{x} * {x}',
    scalar.Sqrt: lambda dtype, x: f'tl.sqrt_rn({x})' if dtype == 'float32' else f'tl.sqrt({x})',
    scalar.Inv: lambda dtype, x: _divide(dtype, _number(1.0, dtype), x),
    # Zero stays zero, NaN stays NaN.
    scalar.Sgn: lambda dtype, x: f'tl.where({x} > 0, {_number(1.0, dtype)}, '
                                 f'tl.where({x} < 0, {_number(-1.0, dtype)}, {x}))',
    scalar.Clip: lambda dtype, x, low, high:
        f'tl.where({x} < {low}, {low}, tl.where({x} > {high}, {high}, {x}))',
    scalar.Identity: lambda dtype, x: x,
    scalar.Second: lambda dtype, x, y: y,
}
# Both sides must have one dtype.
_COMPARISONS = {scalar.LT: '<', scalar.GT: '>', scalar.LE: '<=', scalar.GE: '>=', scalar.EQ: '==',
                scalar.NEQ: '!='}
_BITS = {scalar.AND: '&', scalar.OR: '|', scalar.XOR: '^'}


def covers(op, inputs, output):
    """Whether a kernel can do a scalar Op, for variables of these dtypes."""
    dtypes, result = [v.dtype for v in inputs], output.dtype
    if any(dtype not in TYPES for dtype in dtypes + [result]):
        return False
    if type(op) in _ARITHMETIC:
        return result in FLOATS
    if type(op) in _COMPARISONS:
        return result == 'bool' and len(set(dtypes)) == 1
    if type(op) in _BITS:
        return set(dtypes) == {'bool'} == {result}
    if isinstance(op, scalar.Invert):
        return dtypes == ['bool']
    if isinstance(op, scalar.IsNan):
        return dtypes[0] in FLOATS and result == 'bool'
    if isinstance(op, scalar.Cast):
        # From float to integer C and CUDA differ beyond the range.
        return result in FLOATS or dtypes[0] not in FLOATS
    if isinstance(op, scalar.Switch):
        return result in FLOATS
    return False


def _expression(op, dtype, names, dtypes):
    def cast(name, source, target):
        if source == target:
            return name
        return f'({name} != 0)' if target == 'bool' else f'{name}.to({TYPES[target]})'

    if type(op) in _ARITHMETIC:
        return _ARITHMETIC[type(op)](dtype, *[cast(*pair, dtype) for pair in zip(names, dtypes)])
    if type(op) in _COMPARISONS:
        return f'{names[0]} {_COMPARISONS[type(op)]} {names[1]}'
    if type(op) in _BITS:
        return f' {_BITS[type(op)]} '.join(names)
    if isinstance(op, scalar.Invert):
        return f'{names[0]} == 0'
    if isinstance(op, scalar.IsNan):
        return f'{names[0]} != {names[0]}'
    if isinstance(op, scalar.Cast):
        return cast(names[0], dtypes[0], dtype)
    if isinstance(op, scalar.Switch):
        condition, *others = [cast(*triple) for triple in zip(
            names, dtypes, ('bool', dtype, dtype))]
        return f'tl.where({condition}, {others[0]}, {others[1]})'
    raise NotImplementedError(op)


def expressions(op, names, dtypes, prefix):
    """Return lines of Triton's language that compute a scalar Op.

    Parameters
    ----------
    op : theano.scalar.ScalarOp
        One that is covered, or a Composite of such.
    names, dtypes : list of str
        Its arguments.
    prefix : str
        What the names of new variables begin with.

    Returns
    -------
    lines : list of str
    results : list of str
        The names of its outputs.
    """
    if not isinstance(op, scalar.Composite):
        inputs = [scalar.get_scalar_type(dtype)() for dtype in dtypes]
        outputs = op(*inputs, return_list=True)
        nodes = [outputs[0].owner]
    else:
        inputs, outputs, nodes = op.fgraph.inputs, op.fgraph.outputs, op.fgraph.toposort()
    known = dict(zip(inputs, names))
    lines = []

    def name_of(variable):
        if isinstance(variable, graph.Constant):
            return _number(variable.data.item(), variable.dtype)
        return known[variable]

    for node in nodes:
        output, = node.outputs
        text = _expression(node.op, output.dtype, list(map(name_of, node.inputs)),
                           [v.dtype for v in node.inputs])
        known[output] = f'{prefix}{len(lines)}'
        lines.append(f'{known[output]} = {text}')
    return lines, [name_of(output) for output in outputs]
