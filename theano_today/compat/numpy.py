"""What later versions of NumPy took away or changed."""
import builtins
import sys
import types
import warnings

import numpy as np

from .mending import beforehand, replace


@beforehand
def _aliases_of_types():
    """NumPy's aliases of Python's own types: deprecated in NumPy 1.20, removed in 1.24."""
    for name in ('bool', 'complex', 'float', 'int', 'object', 'str'):
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))


@beforehand
def _serve_numpy_distutils():
    """Import numpy.distutils without its warning (deprecated since NumPy 1.23), or stand in for it.

    Python 3.12 removed distutils, and with it NumPy's: there Theano gets the three names it uses.
    """
    if sys.version_info < (3, 12):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            import numpy.distutils  # noqa: F401
        return
    distutils = types.ModuleType('numpy.distutils', 'Stand-in made by theano_today.')
    distutils.misc_util = types.ModuleType('numpy.distutils.misc_util')
    distutils.misc_util.get_numpy_include_dirs = lambda: [np.get_include()]
    distutils.__config__ = types.ModuleType('numpy.distutils.__config__')
    distutils.__config__.blas_opt_info = {}
    distutils.__path__ = []
    np.distutils = distutils
    for module in (distutils, distutils.misc_util, distutils.__config__):
        sys.modules.setdefault(module.__name__, module)


# Indexing an array with a list of slices: deprecated in NumPy 1.15, removed in 1.23.  It is in the
# Python code of pooling, which Theano runs in the modes FAST_COMPILE and DebugMode.
replace('theano.tensor.signal.pool', {
    '[[region_slices[i][r[i]] for i in xrange(nd)]]':
        '[tuple([region_slices[i][r[i]] for i in xrange(nd)])]',
    'gxk[region_slice]': 'gxk[tuple(region_slice)]',
})
