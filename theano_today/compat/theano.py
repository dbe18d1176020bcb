"""What is wrong in Theano 1.0.5 itself, and what it took away from Lasagne and nolearn."""
import functools
import itertools
import sys
import types

import numpy as np

from .mending import after_import, beforehand, replace, stand_in
from .numpy import NUMPY2

# Ops without properties (ScalarFromTensor, DeepCopyOp) count as unversioned in Theano 1.0.5:
# every process compiles them again and removes them at its end.
replace('theano.gof.cc', {
    "hasattr(node.op, '__props__')": "getattr(node.op, '__props__', ())"})

# The version of C code in files (DimShuffle) is a hash that differs from process to process since
# Python 3.3: each compiles it again, and the folder of compiled modules grows.
replace('theano.gof.op', {
    'hash(tuple(self.func_codes))': "utils.hash_from_code(''.join(self.func_codes))"})


# Empty matrices have the strides (0, 0) since NumPy 1.23, where they had those of matrices of one
# row or column: BLAS is called with the strides of a matrix that has none ('some matrix has no unit
# stride').  Which strides an empty matrix gets does not matter; these are what BLAS accepts.
replace('theano.tensor.blas', {
    text: mended for m in 'xyz' for text, mended in {
        # Gemm, Dot22 and Dot22Scalar
        'unit |= ((S{m}[1] == type_size || N{m}[1]==1)'.format(m=m):
            'unit |= ((S{m}[1] == type_size || N{m}[1]==1 || N{m}[0] * N{m}[1] == 0)'.format(m=m),
        's{m}_0 = (N{m}[0] > 1)'.format(m=m): 's{m}_0 = (N{m}[0] > 1 && N{m}[1] > 0)'.format(m=m),
        # BatchedDot
        'unit |= ((S{m}[2] == type_size || N{m}[2] == 1)'.format(m=m):
            'unit |= ((S{m}[2] == type_size || N{m}[2] == 1 || N{m}[1] * N{m}[2] == 0)'.format(m=m),
        's{m}_1 = (N{m}[1] > 1) ? S{m}[1]/type_size : (N{m}[2] + 1)'.format(m=m):
            's{m}_1 = (N{m}[1] > 1 && N{m}[2] > 0) ? S{m}[1]/type_size : (N{m}[2] + 1)'.format(m=m),
    }.items()})
# What was compiled before is not used any more.
replace('theano.tensor.blas', {
    'return (13, blas_header_version())': "return (13, 'empty', blas_header_version())",
    'return (4, blas_header_version())': "return (4, 'empty', blas_header_version())"})


@beforehand
def _run_scan_in_python():
    """Make Theano run the loop of a scan in Python, on Python 3.11 and later and on NumPy 2.

    Theano's scan_perform.c, which Cython 0.28 wrote, includes headers and reads fields that Python
    3.11 and NumPy 2.0 made private, and Theano 1.0.5 comes without the Cython source.  Theano falls
    back to its own `Scan.execute` when the module cannot be imported; the functions inside the loop
    are compiled as ever.  That costs some 10 microseconds a step.
    """
    if sys.version_info >= (3, 11) or NUMPY2:
        sys.modules['theano.scan_module.scan_perform_ext'] = None


@after_import('theano.tensor.signal')
def _downsample(signal):
    """theano.tensor.signal.downsample became `pool` in Theano 0.9 and was removed in 1.0.

    The Ops took what are inputs today when they were made: ``DownsampleFactorMax((2, 2))(x)``.
    """
    def max_pool_2d(input, ds, ignore_border=None, st=None, padding=(0, 0), mode='max'):
        from theano.tensor.signal.pool import pool_2d
        return pool_2d(input, ws=ds, ignore_border=bool(ignore_border), stride=st, pad=padding,
                       mode=mode)

    def max_pool_2d_same_size(input, patch_size):
        from theano.tensor.signal.pool import max_pool_2d_same_size
        return max_pool_2d_same_size(input, patch_size)

    class DownsampleFactorMax:
        def __init__(self, ds, ignore_border=False, st=None, padding=(0, 0), mode='max'):
            self.ds, self.ignore_border = tuple(ds), ignore_border
            self.st, self.padding, self.mode = tuple(st or ds), tuple(padding), mode

        def __call__(self, x):
            from theano.tensor.signal.pool import Pool
            return Pool(self.ignore_border, self.mode)(x, self.ds, self.st, self.padding)

        @staticmethod
        def out_shape(imgshape, ds, ignore_border=False, st=None, padding=(0, 0)):
            from theano.tensor.signal.pool import Pool
            return Pool.out_shape(imgshape, ds, ignore_border, st, padding)

    class DownsampleFactorMaxGrad(DownsampleFactorMax):
        def __call__(self, x, maxout, gz):
            from theano.tensor.signal import pool
            if self.mode != 'max':
                return pool.AveragePoolGrad(self.ignore_border, self.mode)(
                    x, gz, self.ds, self.st, self.padding)
            return pool.MaxPoolGrad(self.ignore_border)(
                x, maxout, gz, self.ds, self.st, self.padding)

    class DownsampleFactorMaxGradGrad(DownsampleFactorMax):
        def __call__(self, x, maxout, gz):
            from theano.tensor.signal import pool
            return pool.DownsampleFactorMaxGradGrad(self.ignore_border, self.mode)(
                x, maxout, gz, self.ds, self.st, self.padding)

    module = types.ModuleType('theano.tensor.signal.downsample', 'Stand-in made by theano_today.')
    for thing in (max_pool_2d, max_pool_2d_same_size, DownsampleFactorMax, DownsampleFactorMaxGrad,
                  DownsampleFactorMaxGradGrad):
        setattr(module, thing.__name__, thing)
    signal.downsample = sys.modules.setdefault(module.__name__, module)


@stand_in('theano.compat.python2x')
def _python2x(module):
    """theano.compat.python2x, what Python 2.4 lacked: removed in Theano 0.8."""
    import collections
    import functools

    import theano.compat
    module.OrderedDict, module.Counter = collections.OrderedDict, collections.Counter
    module.DictMixin, module.Callable = theano.compat.DictMixin, theano.compat.Callable
    module.partial, module.maxsize = functools.partial, sys.maxsize
    module.any, module.all = any, all
    module.product, module.combinations = itertools.product, itertools.combinations


@stand_in('theano.compat.six')
def _six(module):
    """theano.compat.six became the package six in Theano 0.8."""
    import six
    sys.modules[module.__name__] = six
    sys.modules[module.__name__ + '.moves'] = six.moves


# theano_today sets floatX=float32, where Theano's own default is float64.  Scripts of 2015 were written
# for either.  Those for float64 give arrays in double precision to `T.matrix()`; where nobody has
# set floatX they are rounded, as numbers of Python are in stock Theano.
replace('theano.tensor.type', {
    'import theano\n': 'import theano\nfrom {} import rounds as _rounds\n'.format(__name__),
    'if allow_downcast:\n': 'if allow_downcast or allow_downcast is None and _rounds(self, data):\n'})


def rounds(type_, data):
    """Whether `data`, of double precision or whole numbers, may be rounded to float32."""
    from theano import config
    return (type_.dtype == 'float32' and FLOATX_IS_OURS[0] and config.floatX == 'float32'
            and isinstance(data, (np.ndarray, np.generic, list, tuple))
            and np.asarray(data).dtype.kind in 'fiu')


# Whether floatX is our default, and nobody's choice.
FLOATX_IS_OURS = [False]


@after_import('theano.compile.pfunc')
def _name_floatx(pfunc):
    """Say who has set floatX where a shared variable is to be updated by double precision."""
    original = pfunc.rebuild_collect_shared

    @functools.wraps(original)
    def rebuild_collect_shared(*args, **kwargs):
        try:
            return original(*args, **kwargs)
        except TypeError as error:
            if FLOATX_IS_OURS[0] and 'An update must have the same type' in str(error):
                error.args += (ADVICE,)
            raise

    pfunc.rebuild_collect_shared = rebuild_collect_shared


ADVICE = (
    'If this script was written for double precision: theano_today has set floatX=float32, where '
    "Theano's own default is float64. THEANO_FLAGS=floatX=float64 gives that.")
