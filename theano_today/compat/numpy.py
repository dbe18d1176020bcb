"""What later versions of NumPy took away or changed.

The mends for NumPy 2 are made with NumPy 2 only: with NumPy 1.26 Theano runs as it was written.

The dangerous change is that of types (NEP 50): since NumPy 2.0 a Python number no longer has the
type float64 or int64 beside a NumPy scalar or an array without dimensions, and a number that does
not fit an integer type is an error.  Theano asks `np.float32(0.1) == 0.1` whether float32 can hold
0.1; the answer became yes.  NumPy 1.26 names such places, with Theano running its Python code
(``THEANO_FLAGS=cxx=``), when the variable ``NPY_PROMOTION_STATE`` is ``weak_and_warn``.
"""
import builtins
import copyreg
import functools
import os
from collections.abc import Iterator

import numpy as np

from .mending import after_import, beforehand, replace

NUMPY2 = int(np.__version__.split('.')[0]) >= 2


@beforehand
def _aliases_of_types():
    """NumPy's aliases of Python's own types: deprecated in NumPy 1.20, removed in 1.24."""
    for name in ('bool', 'complex', 'float', 'int', 'object', 'str'):
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))


@beforehand
def _asscalar():
    """np.asscalar: deprecated in NumPy 1.16, removed in 1.23."""
    if 'asscalar' not in vars(np):
        np.asscalar = lambda a: a.item()


@beforehand
def _stacks_of_iterators():
    """np.vstack(x for x in ...), np.hstack(map(...)): deprecated in NumPy 1.16, an error since 1.24."""
    def of_iterators(stack):
        @functools.wraps(stack)
        def stack_all(*args, **kwargs):
            if args and isinstance(args[0], Iterator):
                args = (list(args[0]),) + args[1:]
            return stack(*args, **kwargs)
        return stack_all
    for name in ('vstack', 'hstack', 'dstack', 'column_stack', 'stack'):
        setattr(np, name, of_iterators(getattr(np, name)))


@beforehand
def _points_counted_in_floats():
    """np.linspace(0, 1, np.sqrt(16)): deprecated in NumPy 1.12, an error since 1.18.

    Lasagne's master asks so for the grid of TPSTransformerLayer.
    """
    def of_floats(space):
        @functools.wraps(space)
        def points(start, stop, num=50, *args, **kwargs):
            if isinstance(num, (float, np.floating)):
                num = int(num)
            return space(start, stop, num, *args, **kwargs)
        return points
    for name in ('linspace', 'logspace', 'geomspace'):
        setattr(np, name, of_floats(getattr(np, name)))


# numpy.distutils: deprecated in NumPy 1.23, gone in Python 3.12.  Theano asks it for the folder of
# NumPy's header files, and for a BLAS when none is named, which ends in an error since NumPy 1.22.
replace('theano.gof.cmodule', {
    'import numpy.distutils': 'import numpy',
    'numpy.distutils.misc_util.get_numpy_include_dirs()': '[numpy.get_include()]'})
replace('theano.tensor.blas', {
    'import numpy.distutils\ntry:\n    import numpy.distutils.__config__  # noqa\n'
    'except ImportError:\n    pass\n': ''})
replace('theano.configdefaults', {
    "(hasattr(np.distutils, '__config__') and\n                np.distutils.__config__)": 'True',
    'np.distutils.__config__.blas_opt_info': '{}'})

# Indexing an array with a list of slices: deprecated in NumPy 1.15, removed in 1.23.  It is in the
# Python code of pooling, which Theano runs in the modes FAST_COMPILE and DebugMode.
replace('theano.tensor.signal.pool', {
    '[[region_slices[i][r[i]] for i in xrange(nd)]]':
        '[tuple([region_slices[i][r[i]] for i in xrange(nd)])]',
    'gxk[region_slice]': 'gxk[tuple(region_slice)]',
})


# ----------------------------------------------------------------------------- NumPy 2.0: names

class _Cast(dict):
    """np.cast: ``np.cast[dtype](x)``."""

    def __missing__(self, key):
        return lambda x: np.asarray(x).astype(dtype_of(key))


def dtype_of(kind):
    """Return the dtype of one of Theano's types, and anything else as it is.

    NumPy 2.4 no longer takes an object for a dtype because it has an attribute of that name.
    """
    return kind.dtype if isinstance(getattr(kind, 'dtype', None), str) else kind


@beforehand
def _names():
    """Names that the three packages, and scripts for them, use."""
    if not NUMPY2:
        return
    names = dict(
        product=np.prod, cumproduct=np.cumprod, alltrue=np.all, sometrue=np.any, in1d=np.isin,
        row_stack=np.vstack, asfarray=functools.partial(np.asarray, dtype=np.float64),
        cast=_Cast(), sctype2char=lambda kind: np.dtype(kind).char,
        float_=np.float64, complex_=np.complex128, unicode_=np.str_, string_=np.bytes_,
        Inf=np.inf, Infinity=np.inf, infty=np.inf, PINF=np.inf, NINF=-np.inf, NaN=np.nan,
        MAXDIMS=64, ComplexWarning=np.exceptions.ComplexWarning)
    for name, value in names.items():
        if name not in vars(np):
            setattr(np, name, value)


# A private module, gone in NumPy 2.5; DebugMode imports this one, GPU or not.
replace('theano.gpuarray.linalg', {
    'from numpy.linalg.linalg import LinAlgError': 'from numpy.linalg import LinAlgError'})

if NUMPY2:
    # The private module moved in 2.0.  Compiled modules are filed under the version of its ABI.
    replace('theano.gof.cc', {'np.core._multiarray_umath': 'np._core._multiarray_umath'})
    # ndarray.itemset: removed in 2.0.
    replace('theano.tensor.blas', {
        'z.itemset(z * a + b * np.dot(x, y))': 'z[...] = z * a + b * np.dot(x, y)'})
    replace('theano.compile.debugmode', {
        'storage_map[r][0].itemset(dr_vals[r][0])': 'storage_map[r][0][...] = dr_vals[r][0]'})


# ----------------------------------------------------------------------------- NumPy 2.0: C code

if NUMPY2:
    replace('theano.gof.cmodule', {
        'cxxflags.append("-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION")':
            'cxxflags.extend(["-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION",'
            # PyArray_DESCR(x)->elsize is there for those who say that they need NumPy 2 only.
            ' "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION",'
            # numpy/npy_3kcompat.h no longer defines these; the C code of the linker uses them.
            ' "-DNPY_PY3K", "-DPyInt_AsLong=PyLong_AsLong", "-DPyInt_FromLong=PyLong_FromLong",'
            ' "-DPyInt_Check=PyLong_Check"])'})
    # As an axis NPY_MAXDIMS, all axes, became NPY_RAVEL_AXIS (which is the least int).
    replace('theano.tensor.basic', {'axis = NPY_MAXDIMS': 'axis = NPY_RAVEL_AXIS'})
    replace('theano.tensor.subtensor', {'NPY_MAXDIMS': 'NPY_RAVEL_AXIS'})
    replace('theano.tensor.extra_ops', {
        'NPY_MAXDIMS': 'NPY_RAVEL_AXIS', 'np.MAXDIMS if': '-2**31 if'})
    replace('theano.tensor.nnet.conv', {'numpy/noprefix.h': 'numpy/arrayobject.h'})
    # npy_complex64 and npy_complex128 have no real and imag in C++ any more.
    replace('theano.scalar.basic', {
        'struct theano_complex%(nbits)s : public npy_complex%(nbits)s\n            {\n':
            'struct theano_complex%(nbits)s\n            {\n'
            '                npy_float%(half_nbits)s real, imag;\n'})


@beforehand
def _pickles_of_random_states():
    """Pickle a RandomState as NumPy 1 did.

    NumPy 2.0 writes an object more, with the same state once more, and NumPy 1 cannot load that.
    Nets hold three, and `theano_today.nets.safe_pickle` knows the one form, which both can load.
    """
    if not NUMPY2:
        return
    from numpy.random import _pickle

    def reduce(random):
        if type(random._bit_generator) is not np.random.MT19937:
            return random.__reduce__()
        arguments = 'MT19937', _pickle.__bit_generator_ctor
        return _pickle.__randomstate_ctor, arguments, random.get_state(legacy=False)

    copyreg.pickle(np.random.RandomState, reduce)


@after_import('theano.tensor.inc_code')
def _increments(inc_code):
    """Give AdvancedIncSubtensor1 a loop of its own: PyArray_MapIter left the C API in NumPy 2.0."""
    if NUMPY2:
        with open(os.path.join(os.path.dirname(__file__), 'increments.c')) as f:
            code = f.read()
        inc_code.inc_code = lambda: code


# -------------------------------------------------------------- NumPy 2.0: types of Python numbers

@after_import('theano.misc.safe_asarray')
def _asarray(safe_asarray):
    """Let integers wrap where a type is too small for them, as Theano's look for a type has it."""
    if not NUMPY2:
        return
    original = safe_asarray._asarray

    @functools.wraps(original)
    def _asarray(a, dtype, order=None):
        dtype = dtype_of(dtype)
        try:
            return original(a, dtype, order)
        except OverflowError:
            whole = np.asarray(a)
            if whole.dtype != np.int64:  # NumPy 1 raised this for numbers that no int64 holds
                raise
            return original(whole, dtype, order)

    safe_asarray._asarray = _asarray


def times(a, b):
    """Multiply; a Python integer beside a NumPy one counts as int64, as it did in NumPy 1."""
    numbers = np.ndarray, np.generic
    if isinstance(a, numbers) and isinstance(b, int):
        b = np.int64(b)
    elif isinstance(b, numbers) and isinstance(a, int):
        a = np.int64(a)
    return a * b


if NUMPY2:
    replace('theano.scalar.basic', {
        'import numpy as np\n':
            'import numpy as np\nfrom {} import dtype_of as _dtype_of\n'.format(__name__),
        # Theano's types as a dtype.
        'return np.zeros((), dtype=dt)': 'return np.zeros((), dtype=_dtype_of(dt))',
        'np.asarray(np.pi / 180, gz.type)': 'np.asarray(np.pi / 180, gz.type.dtype)',
        'np.asarray(180. / np.pi, gz.type)': 'np.asarray(180. / np.pi, gz.type.dtype)',
        # Whether a type can hold a Python number.
        'if np.all(x == x_):': 'if np.all(np.asarray(x) == x_):',
        'converted_data = py_type(data)\n': 'converted_data = py_type(np.asarray(data))\n',
        '                    data == converted_data):\n                return py_type(data)\n':
            '                    np.asarray(data) == converted_data):\n'
            '                return converted_data\n',
        # The numbers that np.frompyfunc hands on are Python's own.
        'np.float32(1.0) / x': 'np.float32(1.0) / np.asarray(x)[()]',
    })
    replace('theano.sandbox.rng_mrg', {'mask = 0xffffffff': 'mask = np.int64(0xffffffff)'})
    replace('theano.tensor.extra_ops', {
        'offset = inputs[2]': 'offset = int(inputs[2])',  # as int8 it wrapped
        # The inverse that np.unique returns has the shape of x since 2.0.
        'outs = np.unique(x, **param)':
            "outs = np.unique(x, **param)\n"
            "        if param.get('return_inverse'):\n"
            "            outs = list(outs)\n"
            "            place = 1 + bool(param.get('return_index'))\n"
            "            outs[place] = outs[place].reshape(-1)"})
    replace('theano.tensor.opt', {  # -1 of an unsigned type
        'np.array(-1, dtype=node.inputs[0].dtype)': 'np.array(-1).astype(node.inputs[0].dtype)',
        'np.asarray(-1, dtype=node.outputs[0].dtype)':
            'np.asarray(-1).astype(node.outputs[0].dtype)'})
    # Sums and products of small integers with Python's were int64.
    replace('theano.tensor.basic', {
        'upper_idx = lower_idx + splits[i]': 'upper_idx = lower_idx + int(splits[i])'})
    replace('theano.tensor.opt', {
        'p_step = sl1.step * sl2.step\n        n_step = sl1.step * sl2.step * -1\n':
            'from {} import times\n'.format(__name__) +
            '        p_step = times(sl1.step, sl2.step)\n        n_step = times(p_step, -1)\n'})
    # 1.0 / sum_j was a float64 that was then rounded.
    replace('theano.tensor.nnet.nnet', {
        'sm[i] *= 1.0 / sum_j\n': 'sm[i] *= float(np.float64(1.0) / sum_j)\n'})
    # Numeric gradients of float32 were computed in float64.
    replace('theano.gradient', {
        'x[i] += eps': 'x[i] += np.float64(eps)',
        '((f_eps - f_x) / eps)': '((f_eps - f_x) / np.float64(eps))'})
    # Fourier transforms of float32 are computed in float32 since 2.0, and `s` asks for `axes`.
    replace('theano.tensor.fft', {
        'np.fft.rfftn(a, s=tuple(s))':
            "np.fft.rfftn(a.astype('float64'), s=tuple(s), axes=range(-len(s), 0))",
        'inp = a[..., 0] + 1j * a[..., 1]': "inp = a[..., 0].astype('float64') + 1j * a[..., 1]",
        'np.fft.irfftn(inp, s=tuple(s))':
            'np.fft.irfftn(inp, s=tuple(s), axes=range(-len(s), 0))'})
    replace('theano.tensor.fourier', {
        'np.fft.fft(a, ': 'np.fft.fft(a.astype(np.result_type(a, np.float64)), '})
