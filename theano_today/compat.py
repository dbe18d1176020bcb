"""Mends that let pip's own Theano 1.0.5, Lasagne 0.1 and nolearn 0.6.1 run on today's Python.

The packages stay as pip installed them; nothing is written into their folders.  What they ask of
Python, NumPy or scikit-learn and no longer find there is put back here, in memory.  Each mend says
what broke and since which version; when the package or Python below mends it, delete the mend.

`before_theano` runs before ``import theano``.  A mend for one module of a package is a function
marked ``@after_import('that.module')``: it runs once, right after Python has executed that module,
so a script that needs Theano alone does not pay for importing Lasagne, nolearn and scikit-learn.
"""
import builtins
import collections
import collections.abc
import copy
import importlib.abc
import importlib.machinery
import inspect
import sys
import types

import numpy as np


# ------------------------------------------------------------------------ mends made beforehand

def before_theano():
    """Put back what Theano, Lasagne and nolearn import or use by a name that has moved."""
    # collections.Iterable and friends moved to collections.abc: Python 3.3, removed in 3.10.
    for name in ('Callable', 'Iterable', 'Mapping', 'MutableMapping', 'MutableSequence',
                 'MutableSet', 'Sequence', 'Set', 'Sized'):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))

    # NumPy's aliases of Python's own types: deprecated in NumPy 1.20, removed in 1.24.
    for name in ('bool', 'complex', 'float', 'int', 'object', 'str'):
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))

    _stand_in_for_numpy_distutils()
    _stand_in_for_sklearn_cross_validation()


def _stand_in_for_numpy_distutils():
    """Serve the three names Theano takes from numpy.distutils, removed for Python 3.12 and later."""
    if sys.version_info < (3, 12):
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


def _stand_in_for_sklearn_cross_validation():
    """Serve sklearn.cross_validation, which scikit-learn 0.20 removed, to nolearn's TrainSplit.

    The old ``KFold(n, n_folds)`` and ``StratifiedKFold(y, n_folds)`` were themselves iterable;
    today's classes make the same folds, in the same order, from ``split(X, y)``.
    """
    def kfold(n, n_folds=3, shuffle=False, random_state=None):
        from sklearn.model_selection import KFold
        return KFold(int(n_folds), shuffle=shuffle, random_state=random_state).split(np.empty(n))

    def stratified_kfold(y, n_folds=3, shuffle=False, random_state=None):
        from sklearn.model_selection import StratifiedKFold
        folds = StratifiedKFold(int(n_folds), shuffle=shuffle, random_state=random_state)
        return folds.split(np.empty(len(y)), y)

    module = types.ModuleType('sklearn.cross_validation', 'Stand-in made by theano_today.')
    module.KFold, module.StratifiedKFold = kfold, stratified_kfold
    sys.modules.setdefault(module.__name__, module)


# -------------------------------------------------------------- mends made when a module comes in

_MENDS = {}


def after_import(module_name):
    """Mark a function to be called with the module `module_name` once that has been imported."""
    def register(mend):
        _MENDS[module_name] = mend
        return mend
    return register


class MendingFinder(importlib.abc.MetaPathFinder):
    """Find modules that have a mend the usual way, and hand them to `MendingLoader`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _MENDS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = MendingLoader(spec.loader, _MENDS[fullname])
        return spec


class MendingLoader(importlib.abc.Loader):
    """Load a module with its own loader, then call the mend."""

    def __init__(self, loader, mend):
        self.loader, self.mend = loader, mend

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.mend(module)

    def __getattr__(self, name):  # get_source, get_data, ...: tracebacks and pickles ask for them
        return getattr(self.loader, name)


def install():
    """Make the mends for imports to come (once)."""
    before_theano()
    if not any(isinstance(finder, MendingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MendingFinder())


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


@after_import('nolearn.lasagne.base')
def _nolearn_net(base):
    """Make NeuralNet a scikit-learn estimator of today, and keep its hands off the caller's lists."""
    net = base.NeuralNet
    handlers = ('on_batch_finished', 'on_epoch_finished',
                'on_training_started', 'on_training_finished')
    original_init = net.__init__

    def __init__(self, layers, *args, **kwargs):
        # The constructor appends its print handlers to the lists it is given and shares its
        # default batch iterators among all nets (nolearn 0.6.1): give it copies.
        bound = inspect.signature(original_init).bind(self, layers, *args, **kwargs)
        bound.apply_defaults()
        for name in handlers:
            if isinstance(bound.arguments[name], (list, tuple)):
                bound.arguments[name] = list(bound.arguments[name])
        for name in ('batch_iterator_train', 'batch_iterator_test', 'train_split'):
            if bound.arguments[name] is inspect.signature(original_init).parameters[name].default:
                bound.arguments[name] = copy.deepcopy(bound.arguments[name])
        return original_init(*bound.args, **bound.kwargs)

    __init__.__signature__ = inspect.signature(original_init)
    __init__.__doc__ = original_init.__doc__
    net.__init__ = __init__

    # get_params() reads every argument of the constructor from the net and no longer forgives a
    # missing one (scikit-learn 0.24); nolearn does not store these two, which must be None.
    net.X_tensor_type = None
    net.loss = None

    def __sklearn_clone__(self):
        # clone() compares the parameters by identity (scikit-learn 0.20), and nolearn's constructor
        # copies some.  One deepcopy keeps two handlers that share an object sharing one.
        params = copy.deepcopy(dict(self.get_params(deep=False)))
        if self.verbose:  # or the clone would print everything twice
            for name in handlers:
                params[name] = [handler for handler in params[name]
                                if not isinstance(handler, (base.PrintLog, base.PrintLayerInfo))]
        return type(self)(**params)

    net.__sklearn_clone__ = __sklearn_clone__
