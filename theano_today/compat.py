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
import contextlib
import copy
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import warnings

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

    _serve_numpy_distutils()
    _stand_in_for_imp()
    _stand_in_for_sklearn_cross_validation()
    _run_scan_in_python()

    # Lasagne 0.1 gives conv2d the shape by a name that Theano renamed in 0.8: one warning a layer.
    warnings.filterwarnings('ignore', 'The `image_shape` keyword argument', UserWarning,
                            r'lasagne\.')


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


def _stand_in_for_imp():
    """Serve ``imp.find_module``, with which Theano looks for debuggers; Python 3.12 removed imp."""
    if sys.version_info < (3, 12):
        return

    def find_module(name, path=None):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError('No module named {!r}'.format(name), name=name)
        return None, spec.origin, ('', '', 0)

    module = types.ModuleType('imp', 'Stand-in made by theano_today.')
    module.find_module = find_module
    sys.modules.setdefault(module.__name__, module)


def _run_scan_in_python():
    """Make Theano run the loop of a scan in Python, on Python 3.11 and later.

    Theano's scan_perform.c, which Cython 0.28 wrote, includes headers and reads fields that Python
    3.11 made private, and Theano 1.0.5 comes without the Cython source.  Theano falls back to
    its own `Scan.execute` when the module cannot be imported; the functions inside the loop are
    compiled as ever.  That costs some 10 microseconds a step.
    """
    if sys.version_info >= (3, 11):
        sys.modules['theano.scan_module.scan_perform_ext'] = None


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

_MENDS = collections.defaultdict(list)
# Source text to replace, where a function is wrong in its middle: {module: {old: new}}.
_REPLACEMENTS = {
    # Indexing an array with a list of slices: deprecated in NumPy 1.15, removed in 1.23.  It is in
    # the Python code of pooling, which Theano runs in the modes FAST_COMPILE and DebugMode.
    'theano.tensor.signal.pool': {
        '[[region_slices[i][r[i]] for i in xrange(nd)]]':
            '[tuple([region_slices[i][r[i]] for i in xrange(nd)])]',
        'gxk[region_slice]': 'gxk[tuple(region_slice)]',
    },
    # Ops without properties (ScalarFromTensor, DeepCopyOp) count as unversioned in Theano 1.0.5:
    # every process compiles them again and removes them at its end.
    'theano.gof.cc': {"hasattr(node.op, '__props__')": "getattr(node.op, '__props__', ())"},
    # The version of C code in files (DimShuffle) is a hash that differs from process to process
    # since Python 3.3: each compiles it again, and the folder of compiled modules grows.
    'theano.gof.op': {'hash(tuple(self.func_codes))':
                      "utils.hash_from_code(''.join(self.func_codes))"},
}


def after_import(module_name):
    """Mark a function to be called with the module `module_name` once that has been imported."""
    def register(mend):
        _MENDS[module_name].append(mend)
        return mend
    return register


class MendingFinder(importlib.abc.MetaPathFinder):
    """Find modules that have a mend the usual way, and hand them to `MendingLoader`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _MENDS and fullname not in _REPLACEMENTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = MendingLoader(spec.loader)
        return spec


class MendingLoader(importlib.abc.Loader):
    """Load a module with its own loader, then call its mends."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        name = module.__name__
        if name in _REPLACEMENTS:
            source = self.loader.get_source(name)
            for old, new in _REPLACEMENTS[name].items():
                source = source.replace(old, new)
            exec(compile(source, module.__file__, 'exec'), vars(module))
        else:
            self.loader.exec_module(module)
        for mend in _MENDS.get(name, ()):
            mend(module)

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
    """Make NeuralNet an estimator of today's scikit-learn that leaves the caller's lists alone."""
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

    # nolearn's get_params() claims to contain every name, so that set_params() takes any keyword.
    # scikit-learn 1.7 draws a net in a notebook by looking up all arguments, `**kwargs` too.
    base._dict.__contains__ = lambda self, name: name != 'kwargs'

    def __sklearn_clone__(self):
        # clone() compares the parameters by identity (scikit-learn 0.20), and nolearn's constructor
        # copies some.  One deepcopy keeps two handlers that share an object sharing one.
        params = copy.deepcopy(dict(self.get_params(deep=False)))
        if self.verbose:  # the constructor adds its print handlers: leave out those it added here
            for name in handlers:
                params[name] = [handler for handler in params[name]
                                if type(handler) not in (base.PrintLog, base.PrintLayerInfo)]
        return type(self)(**params)

    net.__sklearn_clone__ = __sklearn_clone__
    net.__sklearn_tags__ = _sklearn_tags

    # scikit-learn (0.22) takes an estimator for fitted that has any attribute like train_history_.
    net.__sklearn_is_fitted__ = lambda self: bool({'layers_', '_saved_weights'} & set(vars(self)))


def _sklearn_tags(self):
    """Tell scikit-learn whether a net is a classifier or a regressor (by tags since 1.6).

    It picks the folds of a cross-validation and the responses for a scorer by them.
    """
    from sklearn.base import BaseEstimator
    from sklearn.utils import ClassifierTags, RegressorTags
    tags = BaseEstimator.__sklearn_tags__(self)
    if self.regression:
        tags.estimator_type, tags.regressor_tags = 'regressor', RegressorTags()
        tags.target_tags.multi_output = True
    else:
        tags.estimator_type, tags.classifier_tags = 'classifier', ClassifierTags()
    tags.target_tags.required = True
    tags.input_tags.three_d_array = True
    return tags


@after_import('nolearn.lasagne.base')
def _nolearn_settings(base):
    """Let scikit-learn's searches set what a net is made with, and refuse what would do nothing."""
    net = base.NeuralNet
    original_get_params_for, original_set_params = net._get_params_for, net.set_params

    def _get_params_for(self, name):
        # The distributions of SciPy draw NumPy scalars.  Theano takes those for numbers of double
        # precision, unlike Python's own, and the float32 weights can then not be updated.
        return {key: value.item() if isinstance(value, np.generic) else value
                for key, value in original_get_params_for(self, name).items()}

    def set_params(self, **params):
        # nolearn lets any name pass (see `_dict` above): one that no layer and no update rule asks
        # for would be searched in vain, and clone() would forget one that is new to the net.
        from theano.compile import SharedVariable, shared
        prefixes = [name + '_' for name in ['update', 'objective'] + _layer_names(
            base, self, params.get('layers', self.layers))]
        new = [name for name in params if name not in self._get_param_names() and '__' not in name]
        for name in new:
            if not name.startswith(tuple(prefixes)):
                raise ValueError(
                    'Invalid parameter {!r} for estimator {}: it is neither one of its arguments '
                    'nor begins with {}.'.format(name, type(self).__name__, ', '.join(prefixes)))
        for name, value in params.items():
            old = vars(self).get(name)
            # A handler that changes the learning rate needs a shared variable there.
            if isinstance(old, SharedVariable) and isinstance(value, (int, float, np.number)):
                params[name] = shared(np.asarray(value, old.dtype)[()], old.name)
        original_set_params(self, **params)
        self._kwarg_keys += new
        return self

    set_params.__doc__ = original_set_params.__doc__
    net._get_params_for, net.set_params = _get_params_for, set_params


def _layer_names(base, net, layers):
    """The names by which a net's settings refer to its layers: ``name_num_units``."""
    if not layers or isinstance(layers[0], base.Layer):
        return []
    names = []
    for number, (first, second) in enumerate(layers):
        if isinstance(second, dict):
            factory = base.locate(first) if isinstance(first, str) else first
            names.append(second.get('name') or net._layer_name(factory, number))
        else:
            names.append(first)
    return names


@after_import('nolearn.lasagne.base')
def _nolearn_data(base):
    """Take what scikit-learn hands on: data frames, float64, labels as int64.

    nolearn picks rows by ``X[indices]``, which are columns in a data frame (pipelines hand them on
    since scikit-learn 1.2).  It asks Theano to narrow types by ``allow_input_downcast``, which
    Theano ignores for inputs that are given as `In`, as nolearn gives them since 0.6.
    """
    net = base.NeuralNet
    fit, predict_proba = net.fit, net.predict_proba

    def array(data):
        if isinstance(data, dict):
            return {name: array(part) for name, part in data.items()}
        return data if isinstance(data, np.ndarray) else np.asarray(data)

    @functools.wraps(fit)
    def new_fit(self, X, y, epochs=None):
        return fit(self, array(X), array(y), epochs=epochs)

    @functools.wraps(predict_proba)
    def new_predict_proba(self, X):
        return predict_proba(self, array(X))

    net.fit, net.predict_proba = new_fit, new_predict_proba


@after_import('nolearn.lasagne.base')
def _nolearn_pickles(base):
    """Keep compiled functions out of pickles, and compile each function when it is first called.

    A pickled net of nolearn 0.6.1 carries its graph, its three compiled functions and the momentum:
    twice the size of its weights, a recursion limit to raise, and a minute of compiling to load it.
    Now it carries settings, history and weights.  Loading neither builds nor compiles anything: the
    layers are built when somebody asks for them.  It begins with a function of this module, so that
    a process that knows nothing of nets, a worker of joblib, makes the mends before nolearn comes.
    """
    from theano.compile import SharedVariable, shared as shared_variable
    base.theano = _TheanoLate()
    net = base.NeuralNet
    layers = ('layers_', '_output_layers')
    functions = ('train_iter_', 'eval_iter_', 'predict_iter_')

    def __getstate__(self):
        state = {name: value for name, value in vars(self).items()
                 if name not in layers + functions + ('_initialized', '_get_output_fn_cache')}
        if 'layers_' in vars(self):
            # Layers given as Lasagne objects are a setting; they carry their weights themselves.
            given = isinstance(self.layers[0], base.Layer)
            state['_saved_weights'] = {} if given else self.get_all_params_values()
        training = state.pop('_training', None)  # a Checkpoint at work: leave out what it has added
        if training is not None:
            del state['train_loop']
            state.update((name, value) for name, value in training.original.items()
                         if name not in functions)
        # A pickled shared variable (the learning rate) would carry its container and the source
        # lines that made it.
        shared = {name: value.get_value() for name, value in state.items()
                  if isinstance(value, SharedVariable)}
        if shared:
            state.update(dict.fromkeys(shared), _shared=shared)  # the names keep their places
        return state

    def __setstate__(self, state):
        vars(self).update(state)
        for name, value in vars(self).pop('_shared', {}).items():
            # A 0-d array becomes the NumPy scalar that a shared scalar is made from.
            vars(self)[name] = shared_variable(value[()] if value.ndim == 0 else value)

    def __getattr__(self, name):  # called only for what is not there (yet)
        if name in layers and '_saved_weights' in vars(self):
            saved = vars(self).pop('_saved_weights')
            with _only_shapes_of(saved):
                self.initialize_layers()
            for layer, values in saved.items():
                for param, value in zip(self.layers_[layer].get_params(), values):
                    param.set_value(value)
            return vars(self)[name]
        if name in functions and hasattr(self, 'layers_'):
            self.initialize()
            return vars(self)[name]
        if name == 'classes_' and not self.regression and hasattr(self, 'layers_'):
            # The columns of predict_proba, which scikit-learn's scorers ask a classifier for.  With
            # use_label_encoder nolearn has an attribute of this name.
            return np.arange(self._output_layers[0].output_shape[1])
        raise AttributeError('{!r} object has no attribute {!r}'.format(type(self).__name__, name))

    def __reduce_ex__(self, protocol):
        return new_net, (type(self),), self.__getstate__()

    net.__getstate__, net.__setstate__, net.__getattr__ = __getstate__, __setstate__, __getattr__
    net.__reduce_ex__ = __reduce_ex__


def new_net(cls):
    """Make a net without calling its constructor, for pickles."""
    return cls.__new__(cls)


@contextlib.contextmanager
def _only_shapes_of(saved):
    """Make weights only where there are saved ones to be put into them, and draw none.

    The settings of a pickled net could otherwise ask for more memory than the machine has.
    """
    import lasagne.init
    import lasagne.utils
    from theano import Variable
    shapes = [value.shape for values in saved.values() for value in values]
    original = lasagne.utils.create_param

    def create_param(spec, shape, *args, **kwargs):
        shape = tuple(shape)
        if saved and not isinstance(spec, Variable):  # a variable is that of another layer
            if shape not in shapes:
                raise ValueError('weights of shape {} are needed, but not saved'.format(shape))
            shapes.remove(shape)
            spec = lasagne.init.Constant(0) if callable(spec) else spec
        return original(spec, shape, *args, **kwargs)

    lasagne.utils.create_param = create_param
    try:
        yield
    finally:
        lasagne.utils.create_param = original


class _TheanoLate:
    """Theano as nolearn.lasagne.base sees it: `function` compiles when the function is called."""

    @staticmethod
    def In(variable, **kwargs):  # see _nolearn_data
        import theano
        return theano.In(variable, allow_downcast=True, **kwargs)

    class function:
        def __init__(self, *args, **kwargs):
            self.arguments, self.compiled = (args, kwargs), None

        @property
        def __class__(self):  # for those who ask by isinstance, as theano.printing does
            import theano
            return theano.compile.Function

        def __call__(self, *args, **kwargs):
            return self._get()(*args, **kwargs)

        def __getattr__(self, name):
            if name.startswith('__'):  # copy and pickle ask for these
                raise AttributeError(name)
            return getattr(self._get(), name)

        def _get(self):
            if self.compiled is None:
                import theano
                args, kwargs = self.arguments
                self.compiled, self.arguments = theano.function(*args, **kwargs), None
            return self.compiled

    def __getattr__(self, name):
        import theano
        return getattr(theano, name)
