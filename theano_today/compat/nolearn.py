"""What is wrong in nolearn 0.6.1: lists of the caller, pickles, functions compiled too early."""
import contextlib
import copy
import inspect

import numpy as np

from .mending import after_import
from .sklearn import HANDLERS


@after_import('nolearn.lasagne.base')
def _constructor(base):
    """Make the constructor of NeuralNet leave the caller's lists alone."""
    net = base.NeuralNet
    original_init = net.__init__

    def __init__(self, layers, *args, **kwargs):
        # The constructor appends its print handlers to the lists it is given and shares its
        # default batch iterators among all nets (nolearn 0.6.1): give it copies.
        bound = inspect.signature(original_init).bind(self, layers, *args, **kwargs)
        bound.apply_defaults()
        for name in HANDLERS:
            if isinstance(bound.arguments[name], (list, tuple)):
                bound.arguments[name] = list(bound.arguments[name])
        for name in ('batch_iterator_train', 'batch_iterator_test', 'train_split'):
            if bound.arguments[name] is inspect.signature(original_init).parameters[name].default:
                bound.arguments[name] = copy.deepcopy(bound.arguments[name])
        return original_init(*bound.args, **bound.kwargs)

    __init__.__signature__ = inspect.signature(original_init)
    __init__.__doc__ = original_init.__doc__
    net.__init__ = __init__


@after_import('nolearn.lasagne.base')
def _nolearn_pickles(base):
    """Keep compiled functions out of pickles, and compile each function when it is first called.

    A pickled net of nolearn 0.6.1 carries its graph, its three compiled functions and the momentum:
    twice the size of its weights, a recursion limit to raise, and a minute of compiling to load it.
    Now it carries settings, history and weights.  Loading neither builds nor compiles anything: the
    layers are built when somebody asks for them.  It begins with a function of this package: a
    process that knows nothing of nets, a worker of joblib, makes the mends before nolearn comes.
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


@after_import('nolearn.lasagne.base')
def _load_params_from(base):
    """Let load_params_from read what Python 2 has pickled: its strings, and arrays, are bytes."""
    original = base.pickle

    class Pickle:
        @staticmethod
        def load(file):
            try:
                return original.load(file)
            except UnicodeDecodeError:
                file.seek(0)
                return original.load(file, encoding='latin1')

        def __getattr__(self, name):
            return getattr(original, name)

    base.pickle = Pickle()


def new_net(cls):
    """Make a net without calling its constructor, for pickles."""
    return cls.__new__(cls)


# The name in every pickle of a net: it stays where it is when this file moves.
new_net.__module__ = __package__


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
