"""Modules that scikit-learn removed do what they did."""
import pickle

import theano_today  # noqa: F401

import numpy as np
import pytest
from sklearn import model_selection
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope='module')
def points():
    x = np.random.RandomState(0).uniform(-1, 1, (40, 2))
    return x, (x[:, 0] > 0).astype(int)


def test_folds_can_be_run_through_twice_and_counted():
    import sklearn.cross_validation
    from sklearn import cross_validation
    y = np.tile([0, 1], 10)
    labels = np.repeat(np.arange(5), 4)
    assert sklearn.cross_validation is cross_validation
    for folds, number in [
            (cross_validation.KFold(20, n_folds=4), 4), (cross_validation.KFold(n=20), 3),
            (cross_validation.StratifiedKFold(y, 5, shuffle=True, random_state=3), 5),
            (cross_validation.StratifiedKFold(y, 5, random_state=3), 5),
            (cross_validation.ShuffleSplit(20, n_iter=2, test_size=.25), 2),
            (cross_validation.StratifiedShuffleSplit(y, 3, test_size=.5, random_state=1), 3),
            (cross_validation.LeaveOneOut(20), 20), (cross_validation.LeavePOut(5, 2), 10),
            (cross_validation.LeaveOneLabelOut(labels), 5), (cross_validation.LabelKFold(labels, 2), 2),
            (cross_validation.PredefinedSplit(labels), 5)]:
        first, second = list(folds), list(folds)
        assert len(folds) == len(first) == number, folds
        for (train, test), (again, test_again) in zip(first, second):
            np.testing.assert_array_equal(train, again)
            np.testing.assert_array_equal(test, test_again)
            assert not set(train) & set(test)
    assert repr(cross_validation.KFold(20, 4)) == (
        'KFold(n=20, n_folds=4, shuffle=False, random_state=None)')
    for (_, test), (_, test_today) in zip(
            cross_validation.KFold(20, 4, shuffle=True, random_state=1),
            model_selection.KFold(4, shuffle=True, random_state=1).split(y)):
        np.testing.assert_array_equal(test, test_today)


def test_functions_take_what_they_took(points):
    from sklearn.cross_validation import KFold, cross_val_predict, cross_val_score, train_test_split
    from sklearn.learning_curve import learning_curve, validation_curve
    x, y = points
    assert len(cross_val_score(LogisticRegression(), x, y)) == 3  # folds where none are given
    scores = cross_val_score(LogisticRegression(), x, y, 'accuracy', KFold(40, 4), 1)
    assert len(scores) == 4 and scores.min() > .5
    assert cross_val_predict(LogisticRegression(), x, y, 4).shape == y.shape
    assert [len(part) for part in train_test_split(x, y, test_size=.25)] == [30, 10, 30, 10]
    sizes, train, valid = learning_curve(LogisticRegression(), x, y, [.5, 1.], 4)
    assert list(sizes) == [15, 30] and train.shape == valid.shape == (2, 4)
    assert validation_curve(LogisticRegression(), x, y, 'C', [.1, 1], 4)[0].shape == (2, 4)


def test_searches(points, capsys):
    from sklearn.grid_search import GridSearchCV, ParameterGrid, RandomizedSearchCV
    x, y = points
    search = GridSearchCV(LogisticRegression(), {'C': [1e-6, 1]}, 'accuracy', cv=4).fit(x, y)
    assert search.best_params_ == {'C': 1}
    assert [score.parameters for score in search.grid_scores_] == [{'C': 1e-6}, {'C': 1}]
    row = search.grid_scores_[1]
    np.testing.assert_allclose(np.mean(row.cv_validation_scores), row.mean_validation_score)
    assert pickle.loads(pickle.dumps(search)).best_params_ == {'C': 1}
    assert clone(search).cv == 4
    search = RandomizedSearchCV(LogisticRegression(), {'C': [1e-6, 1]}, 2, random_state=0).fit(x, y)
    assert len(search.grid_scores_) == 2 and len(ParameterGrid({'a': [1, 2]})) == 2
    with pytest.warns(UserWarning, match='nolearn.grid_search module will be removed'):
        from nolearn.grid_search import grid_search

    class Dataset:
        data, target = x, y

    assert grid_search(Dataset, LogisticRegression(), {'C': [1]}, cv=2).best_params_ == {'C': 1}
    assert 'Best grid parameters' in capsys.readouterr().out


def test_other_names(points):
    import joblib
    import sklearn.externals.joblib
    from sklearn.datasets import fetch_mldata
    from sklearn.externals import six
    from sklearn.preprocessing import Imputer
    assert sklearn.externals.joblib is joblib and six.PY3
    assert Imputer(strategy='median').fit_transform([[1], [np.nan], [4], [5]])[1] == 4
    assert Imputer(missing_values=-1).fit_transform([[1], [-1], [3]])[1] == 2
    with pytest.raises(ValueError, match='axis=1.*transpose'):
        Imputer(axis=1)
    with pytest.raises(RuntimeError, match=r"'MNIST original'.*fetch_openml\('mnist_784'"):
        fetch_mldata('MNIST original')
