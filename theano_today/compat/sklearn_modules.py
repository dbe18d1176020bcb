"""Modules, classes and functions that scikit-learn removed: nolearn and scripts of 2015 import them.

They do what they did, with their old arguments, on what scikit-learn has today.
"""
import sys

import numpy as np

from .mending import after_import, stand_in


class Folds:
    """Pairs of indices (train, test): can be run through again and again, and counted.

    The classes of sklearn.cross_validation were given the data's size or labels when they were made;
    today's are given them by ``split(X, y)``.  The folds are drawn once, when first asked for.
    """

    def __init__(self, splitter, X, y=None, groups=None, **attributes):
        self._split = splitter, X, y, groups
        self._folds = None
        vars(self).update(attributes)

    def __iter__(self):
        if self._folds is None:
            splitter, X, y, groups = self._split
            self._folds = list(splitter.split(X, y, groups))
        return iter(self._folds)

    def __len__(self):
        splitter, X, y, groups = self._split
        return splitter.get_n_splits(X, y, groups)

    def __repr__(self):
        values = ', '.join(f'{name}={value!r}' for name, value in vars(self).items() if name[0] != '_')
        return f'{type(self).__name__}({values})'


def _today(name, *args, **kwargs):
    from sklearn import model_selection
    return getattr(model_selection, name)(*args, **kwargs)


def _class(build):
    """Make a class of `Folds` of a function that returns its arguments."""
    def __init__(self, *args, **kwargs):
        splitter, X, *more = build(*args, **kwargs)
        Folds.__init__(self, splitter, X, *more)
        import inspect
        bound = inspect.signature(build).bind(*args, **kwargs)
        bound.apply_defaults()
        vars(self).update(bound.arguments)
    return type(build.__name__, (Folds,), {'__init__': __init__, '__module__': __name__})


@_class
def KFold(n, n_folds=3, shuffle=False, random_state=None):
    return _today('KFold', int(n_folds), shuffle=shuffle, random_state=_seed(shuffle, random_state)), \
        np.empty(n)


@_class
def StratifiedKFold(y, n_folds=3, shuffle=False, random_state=None):
    return _today('StratifiedKFold', int(n_folds), shuffle=shuffle,
                  random_state=_seed(shuffle, random_state)), np.empty(len(y)), y


def _seed(shuffle, random_state):
    # A seed without shuffling is an error since scikit-learn 0.24.
    return random_state if shuffle else None


@_class
def LabelKFold(labels, n_folds=3):
    return _today('GroupKFold', n_folds), np.empty(len(labels)), None, labels


@_class
def LeaveOneOut(n):
    return _today('LeaveOneOut'), np.empty(n)


@_class
def LeavePOut(n, p):
    return _today('LeavePOut', p), np.empty(n)


@_class
def LeaveOneLabelOut(labels):
    return _today('LeaveOneGroupOut'), np.empty(len(labels)), None, labels


@_class
def LeavePLabelOut(labels, p):
    return _today('LeavePGroupsOut', p), np.empty(len(labels)), None, labels


@_class
def ShuffleSplit(n, n_iter=10, test_size=0.1, train_size=None, random_state=None):
    return _today('ShuffleSplit', n_iter, test_size=test_size, train_size=train_size,
                  random_state=random_state), np.empty(n)


@_class
def StratifiedShuffleSplit(y, n_iter=10, test_size=0.1, train_size=None, random_state=None):
    return _today('StratifiedShuffleSplit', n_iter, test_size=test_size, train_size=train_size,
                  random_state=random_state), np.empty(len(y)), y


@_class
def LabelShuffleSplit(labels, n_iter=5, test_size=0.2, train_size=None, random_state=None):
    return _today('GroupShuffleSplit', n_iter, test_size=test_size, train_size=train_size,
                  random_state=random_state), np.empty(len(labels)), None, labels


@_class
def PredefinedSplit(test_fold):
    return _today('PredefinedSplit', test_fold), np.empty(len(test_fold))


_FOLDS = [kind for kind in list(globals().values())
          if isinstance(kind, type) and issubclass(kind, Folds) and kind is not Folds]


def _cv(cv):
    return 3 if cv is None else cv  # 5 since scikit-learn 0.22


@stand_in('sklearn.cross_validation')
def _cross_validation(module):
    """sklearn.cross_validation: deprecated in scikit-learn 0.18, removed in 0.20."""
    from sklearn import model_selection

    # The arguments behind y became keywords (0.24), and fit_params became params (1.4).
    def cross_val_score(estimator, X, y=None, scoring=None, cv=None, n_jobs=1, verbose=0,
                        fit_params=None, pre_dispatch='2*n_jobs'):
        return model_selection.cross_val_score(
            estimator, X, y, scoring=scoring, cv=_cv(cv), n_jobs=n_jobs, verbose=verbose,
            pre_dispatch=pre_dispatch, **_fit_params(fit_params))

    def cross_val_predict(estimator, X, y=None, cv=None, n_jobs=1, verbose=0, fit_params=None,
                          pre_dispatch='2*n_jobs'):
        return model_selection.cross_val_predict(
            estimator, X, y, cv=_cv(cv), n_jobs=n_jobs, verbose=verbose, pre_dispatch=pre_dispatch,
            **_fit_params(fit_params))

    def check_cv(cv, X=None, y=None, classifier=False):
        if cv is None or isinstance(cv, int):
            cv = StratifiedKFold(y, _cv(cv)) if classifier else KFold(len(X if y is None else y), _cv(cv))
        return cv

    vars(module).update({kind.__name__: kind for kind in _FOLDS})
    vars(module).update(train_test_split=model_selection.train_test_split, check_cv=check_cv,
                        permutation_test_score=model_selection.permutation_test_score,
                        cross_val_score=cross_val_score, cross_val_predict=cross_val_predict)


def _fit_params(fit_params):
    return {'params': fit_params} if fit_params else {}


@stand_in('sklearn.grid_search')
def _grid_search(module):
    """sklearn.grid_search: deprecated in scikit-learn 0.18, removed in 0.20."""
    import collections

    from sklearn import model_selection
    Score = collections.namedtuple(
        '_CVScoreTuple', ['parameters', 'mean_validation_score', 'cv_validation_scores'])

    class Search:
        def _scores(self):
            results = self.cv_results_
            splits = [results[f'split{i}_test_score'] for i in range(self.n_splits_)]
            return [Score(*row) for row in zip(
                results['params'], results['mean_test_score'], np.transpose(splits))]

        def fit(self, X, y=None, **fit_params):
            return super().fit(X, y, **{**(self.fit_params or {}), **fit_params})

        grid_scores_ = property(_scores)  # today: cv_results_

    class GridSearchCV(Search, model_selection.GridSearchCV):
        def __init__(self, estimator, param_grid, scoring=None, fit_params=None, n_jobs=1, iid=True,
                     refit=True, cv=None, verbose=0, pre_dispatch='2*n_jobs', error_score='raise'):
            super().__init__(estimator, param_grid, scoring=scoring, n_jobs=n_jobs, refit=refit,
                             cv=_cv(cv), verbose=verbose, pre_dispatch=pre_dispatch,
                             error_score=error_score)
            self.fit_params, self.iid = fit_params, iid

    class RandomizedSearchCV(Search, model_selection.RandomizedSearchCV):
        def __init__(self, estimator, param_distributions, n_iter=10, scoring=None, fit_params=None,
                     n_jobs=1, iid=True, refit=True, cv=None, verbose=0, pre_dispatch='2*n_jobs',
                     random_state=None, error_score='raise'):
            super().__init__(estimator, param_distributions, n_iter=n_iter, scoring=scoring,
                             n_jobs=n_jobs, refit=refit, cv=_cv(cv), verbose=verbose,
                             pre_dispatch=pre_dispatch, random_state=random_state,
                             error_score=error_score)
            self.fit_params, self.iid = fit_params, iid

    for kind in GridSearchCV, RandomizedSearchCV:  # for pickles
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    module.ParameterGrid = model_selection.ParameterGrid
    module.ParameterSampler = model_selection.ParameterSampler


@stand_in('sklearn.learning_curve')
def _learning_curve(module):
    """sklearn.learning_curve: deprecated in scikit-learn 0.18, removed in 0.20."""
    from sklearn import model_selection

    def learning_curve(estimator, X, y, train_sizes=np.linspace(0.1, 1.0, 5), cv=None, scoring=None,
                       exploit_incremental_learning=False, n_jobs=1, pre_dispatch='all', verbose=0):
        return model_selection.learning_curve(
            estimator, X, y, train_sizes=train_sizes, cv=_cv(cv), scoring=scoring,
            exploit_incremental_learning=exploit_incremental_learning, n_jobs=n_jobs,
            pre_dispatch=pre_dispatch, verbose=verbose)

    def validation_curve(estimator, X, y, param_name, param_range, cv=None, scoring=None, n_jobs=1,
                         pre_dispatch='all', verbose=0):
        return model_selection.validation_curve(
            estimator, X, y, param_name=param_name, param_range=param_range, cv=_cv(cv),
            scoring=scoring, n_jobs=n_jobs, pre_dispatch=pre_dispatch, verbose=verbose)

    module.learning_curve, module.validation_curve = learning_curve, validation_curve


@stand_in('sklearn.externals.joblib')
def _joblib(module):
    """sklearn.externals.joblib: removed in scikit-learn 0.23."""
    import joblib
    sys.modules[module.__name__] = joblib


@stand_in('sklearn.externals.six')
def _six(module):
    """sklearn.externals.six: removed in scikit-learn 0.23."""
    import six
    sys.modules[module.__name__] = six


@after_import('sklearn.preprocessing')
def _imputer(preprocessing):
    """Imputer became sklearn.impute.SimpleImputer in scikit-learn 0.20; removed in 0.22."""
    def Imputer(missing_values='NaN', strategy='mean', axis=0, verbose=0, copy=True):
        from sklearn.impute import SimpleImputer
        if axis != 0:
            raise ValueError('Imputer(axis={}): scikit-learn 0.22 kept columns (axis=0) alone. Take '
                             'the transpose of the data.'.format(axis))
        missing = np.nan if missing_values == 'NaN' else missing_values
        return SimpleImputer(missing_values=missing, strategy=strategy, copy=copy)

    if not hasattr(preprocessing, 'Imputer'):
        preprocessing.Imputer = Imputer


@after_import('sklearn.datasets')
def _fetch_mldata(datasets):
    """mldata.org is gone; scikit-learn removed fetch_mldata in 0.22."""
    def fetch_mldata(dataname, *args, **kwargs):
        raise RuntimeError(
            f'fetch_mldata({dataname!r}): the server mldata.org is gone, and its data are at '
            "openml.org: sklearn.datasets.fetch_openml('mnist_784', version=1, as_frame=False) has "
            "what was 'MNIST original'; its labels are strings: y.astype(int).")

    vars(datasets).setdefault('fetch_mldata', fetch_mldata)
