"""What is wrong in Theano 1.0.5 itself, and what it took away from Lasagne and nolearn."""
import sys
import types

from .mending import after_import, beforehand, replace
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
    """theano.tensor.signal.downsample became `pool` in Theano 0.9 and was removed in 1.0."""
    def max_pool_2d(input, ds, ignore_border=None, st=None, padding=(0, 0), mode='max'):
        from theano.tensor.signal.pool import pool_2d
        return pool_2d(input, ws=ds, ignore_border=bool(ignore_border), stride=st, pad=padding,
                       mode=mode)

    module = types.ModuleType('theano.tensor.signal.downsample', 'Stand-in made by theano_today.')
    module.max_pool_2d = max_pool_2d
    signal.downsample = sys.modules.setdefault(module.__name__, module)
