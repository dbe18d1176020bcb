"""What today's scikit-learn asks of a net.  What it took away is in `sklearn_modules`."""
import copy
import functools

import numpy as np

from .mending import after_import

# The arguments of a net that hold handlers: the constructor appends its print handlers to some.
HANDLERS = ('on_batch_finished', 'on_epoch_finished',
            'on_training_started', 'on_training_finished')


@after_import('nolearn.lasagne.base')
def _estimator(base):
    """Make NeuralNet an estimator of today's scikit-learn."""
    net = base.NeuralNet

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
            for name in HANDLERS:
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
        # What has a shape and can be sliced stays what it is: memory maps, HDF5, sparse matrices
        # with an iterator that makes them dense.
        if hasattr(data, 'iloc') or not hasattr(data, 'shape'):
            return np.asarray(data)
        return data

    @functools.wraps(fit)
    def new_fit(self, X, y, epochs=None):
        return fit(self, array(X), array(y), epochs=epochs)

    @functools.wraps(predict_proba)
    def new_predict_proba(self, X):
        return predict_proba(self, array(X))

    net.fit, net.predict_proba = new_fit, new_predict_proba
