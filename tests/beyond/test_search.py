"""A net is an estimator of today's scikit-learn: tags, clones, pipelines, searches."""
import os
import pickle
import subprocess
import sys
import warnings

import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pandas as pd
import pytest
import theano
from beyond.nets import SeededNet
from lasagne import layers, nonlinearities
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit
from scipy.stats import loguniform, uniform
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import (
    GridSearchCV, KFold, ParameterGrid, RandomizedSearchCV, StratifiedKFold, cross_val_predict,
    cross_val_score)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted
from theano_today.nets import safe_pickle

LAYERS = [('input', layers.InputLayer), ('hidden', layers.DenseLayer),
          ('dropout', layers.DropoutLayer), ('output', layers.DenseLayer)]


def net(kind=SeededNet, **settings):
    """A small net for the digits, or for what is drawn from them."""
    regression = settings.get('regression', False)
    return kind(**dict(dict(
        layers=LAYERS, input_shape=(None, 64), hidden_num_units=15, dropout_p=.1,
        output_num_units=2 if regression else 10,
        output_nonlinearity=None if regression else nonlinearities.softmax,
        update_learning_rate=.05, update_momentum=.9, max_epochs=3,
        batch_iterator_train=BatchIterator(32), train_split=TrainSplit(0)), **settings))


@pytest.fixture(scope='module')
def digits():
    X, y = load_digits(return_X_y=True)
    return (X[:200] / 16).astype(np.float32), y[:200].astype(np.int32)


@pytest.fixture(scope='module')
def halves(digits):
    """A regression of two outputs: how bright both halves of a digit are."""
    X, _ = digits
    return X, np.stack([X[:, :32].mean(axis=1), X[:, 32:].mean(axis=1)], axis=1)


def weights(model):
    return [values for layer in model.get_all_params_values().values() for values in layer]


# ----------------------------------------------------------------------------------- the estimator

def test_tags():
    classifier, regressor = get_tags(net()), get_tags(net(regression=True))
    assert is_classifier(net()) and not is_regressor(net())
    assert is_regressor(net(regression=True)) and not is_classifier(net(regression=True))
    assert classifier.classifier_tags.multi_class and classifier.regressor_tags is None
    assert regressor.target_tags.multi_output and regressor.classifier_tags is None
    assert classifier.target_tags.required and regressor.target_tags.required
    assert is_classifier(make_pipeline(StandardScaler(), net()))


def test_fitted_or_not(digits):
    model = net()
    for step in model, make_pipeline(StandardScaler(), model):
        with pytest.raises(NotFittedError):
            check_is_fitted(step)
    with pytest.raises(AttributeError, match='classes_'):
        model.classes_
    model.fit(*digits, epochs=1)
    for fitted in model, pickle.loads(pickle.dumps(model)):
        check_is_fitted(fitted)
        assert list(fitted.classes_) == list(range(10))
    assert not hasattr(net(regression=True).fit(digits[0], digits[0][:, :2], epochs=1), 'classes_')
    with pytest.raises(NotFittedError):
        check_is_fitted(clone(model))


def test_clones_have_the_same_parameters_and_share_nothing(digits):
    rate = theano.shared(np.float32(.05))
    model = net(update_learning_rate=rate, max_epochs=1).fit(*digits)
    twin = clone(model)
    mine, its = model.get_params(), twin.get_params()
    assert set(mine) == set(its)
    plain = [name for name, value in mine.items()
             if isinstance(value, (bool, int, float, str, tuple))]
    assert len(plain) > 8 and all(mine[name] == its[name] for name in plain)
    assert type(twin) is type(model) and its['layers'] == LAYERS
    for name in 'batch_iterator_train', 'batch_iterator_test', 'train_split', 'on_epoch_finished':
        assert its[name] is not mine[name]
    assert twin.train_history_ == [] and 'layers_' not in vars(twin)
    twin.update_learning_rate.set_value(np.float32(7))
    assert rate.get_value() == np.float32(.05)


def test_settings_of_layers(digits):
    model = net().set_params(hidden_num_units=7, hidden_nonlinearity=nonlinearities.tanh)
    assert model.get_params()['hidden_num_units'] == 7
    # Settings that the net was not made with stay in its clones.
    assert clone(model).hidden_nonlinearity is nonlinearities.tanh
    assert weights(clone(model).fit(*digits, epochs=1))[0].shape == (64, 7)
    nested = make_pipeline(StandardScaler(), net()).set_params(seedednet__dropout_p=.4)
    assert nested.get_params()['seedednet__dropout_p'] == .4
    assert nested.get_params()['seedednet'].dropout_p == .4
    for name in 'learning_rate', 'hiden_num_units', 'dropout':
        with pytest.raises(ValueError, match=f'Invalid parameter .*{name}.*dropout_'):
            net().set_params(**{name: 1})
    unnamed = NeuralNet([(layers.InputLayer, {'shape': (None, 4)}),
                         (layers.DenseLayer, {'num_units': 2}),
                         ('lasagne.layers.DenseLayer', {'num_units': 1, 'name': 'last'})])
    unnamed.set_params(dense1_num_units=3, last_num_units=2)
    with pytest.raises(ValueError, match='Invalid parameter'):
        unnamed.set_params(dense2_num_units=3)
    with pytest.raises(ValueError, match='Invalid parameter'):
        NeuralNet(layers.InputLayer((None, 4))).set_params(input_shape=(None, 5))


def test_a_shared_learning_rate_stays_shared():
    rate = theano.shared(np.float32(.05))
    model = net(update_learning_rate=rate).set_params(update_learning_rate=np.float64(.5))
    assert model.update_learning_rate.get_value() == .5 and rate.get_value() == np.float32(.05)
    other = theano.shared(np.float32(.25))
    assert net(update_learning_rate=rate).set_params(
        update_learning_rate=other).update_learning_rate is other
    assert net().set_params(update_learning_rate=.5).update_learning_rate == .5


def test_what_it_is_fed(digits):
    """Data frames, float64, int64 and lists give the weights of float32 and int32, bit for bit."""
    X, y = digits
    expected = net(max_epochs=2).fit(X, y)
    frame = pd.DataFrame(X, index=np.arange(len(X))[::-1])
    for inputs, labels in (frame, pd.Series(y)), (X.astype(float), y.astype(np.int64)), (
            X.tolist(), y.tolist()):
        found = net(max_epochs=2).fit(inputs, labels)
        for ours, theirs in zip(weights(found), weights(expected)):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(found.predict_proba(inputs), expected.predict_proba(X))
    regression = net(regression=True, output_num_units=1, max_epochs=1)
    assert regression.fit(frame, pd.Series(X[:, 0])).predict(frame).shape == (200, 1)


def test_numpy_scalars_are_numbers(digits):
    """As SciPy's distributions draw them; Theano would make double precision of them."""
    settings = dict(update_learning_rate=.07, update_momentum=.8, dropout_p=.3, hidden_num_units=9)
    expected = net(max_epochs=2, **settings).fit(*digits)
    found = net(max_epochs=2).set_params(**{
        name: np.array(value)[()] for name, value in settings.items()}).fit(*digits)
    for ours, theirs in zip(weights(found), weights(expected)):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_pipelines(digits, halves):
    X, y = digits
    images = net(layers=[('input', layers.InputLayer), ('conv', layers.Conv2DLayer)] + LAYERS[1:],
                 input_shape=(None, 1, 8, 8), conv_num_filters=4, conv_filter_size=(3, 3),
                 update_learning_rate=.1)
    reshape = FunctionTransformer(lambda X: X.reshape(-1, 1, 8, 8))
    pipeline = make_pipeline(StandardScaler(), reshape, images)
    scores = cross_val_score(pipeline, X, y, cv=2)
    expected = []
    for train, test in StratifiedKFold(2).split(X, y):
        scaler = StandardScaler().fit(X[train])
        fitted = clone(images).fit(scaler.transform(X[train]).reshape(-1, 1, 8, 8), y[train])
        expected.append(fitted.score(scaler.transform(X[test]).reshape(-1, 1, 8, 8), y[test]))
    assert list(scores) == expected and min(scores) > .2  # a guess is right in one of ten

    # As data frames from step to step; the targets scaled and scaled back.
    framed = make_pipeline(StandardScaler(), net(regression=True)).set_output(transform='pandas')
    scaled = TransformedTargetRegressor(framed, transformer=StandardScaler())
    X, y = halves
    assert scaled.fit(X, y).predict(X).shape == y.shape
    scaler = StandardScaler().fit(y)
    plain = make_pipeline(StandardScaler(), net(regression=True)).fit(X, scaler.transform(y))
    np.testing.assert_allclose(scaled.predict(X), scaler.inverse_transform(plain.predict(X)),
                               rtol=1e-6)


def test_cross_validation(digits):
    """Folds keep the shares of the classes; scorers that need probabilities find their classes."""
    X, y = digits
    folds = list(StratifiedKFold(3).split(X, y))
    probabilities = cross_val_predict(net(), X, y, cv=3, method='predict_proba')
    for train, test in folds:
        np.testing.assert_array_equal(
            probabilities[test], net().fit(X[train], y[train]).predict_proba(X[test]))
    losses = cross_val_score(net(), X, y, cv=3, scoring='neg_log_loss')
    np.testing.assert_allclose(losses, [
        np.log(probabilities[test, y[test]]).mean() for _, test in folds], rtol=1e-5)
    assert cross_val_score(net(), X, y, cv=3, scoring='roc_auc_ovr').min() > .6


# ---------------------------------------------------------------------------------------- searches

GRID = {'update_learning_rate': [.02, .2], 'dropout_p': [0, .5]}


@pytest.fixture(scope='module')
def searched(halves):
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        return GridSearchCV(net(regression=True), GRID, cv=KFold(2)).fit(*halves)


def test_a_search_finds_what_a_loop_finds(searched, halves):
    X, y = halves
    scores = {}
    for params in ParameterGrid(GRID):
        for _number, (train, test) in enumerate(KFold(2).split(X)):
            model = net(regression=True, **params).fit(X[train], y[train])
            scores.setdefault(tuple(params.items()), []).append(model.score(X[test], y[test]))
    results = searched.cv_results_
    for params, *found in zip(results['params'], *(
            results[f'split{number}_test_score'] for number in range(2))):
        assert found == scores[tuple(params.items())]
    best = max(scores, key=lambda params: np.mean(scores[params]))
    assert searched.best_params_ == dict(best)
    assert len({np.mean(values) for values in scores.values()}) == 4
    again = net(regression=True, **dict(best)).fit(X, y)
    for ours, theirs in zip(weights(searched.best_estimator_), weights(again)):
        np.testing.assert_array_equal(ours, theirs)


def test_the_best_net_can_be_pickled(searched, halves):
    best = searched.best_estimator_
    loaded = safe_pickle.loads(pickle.dumps(best, -1), [SeededNet])
    np.testing.assert_array_equal(loaded.predict(halves[0]), best.predict(halves[0]))
    assert loaded.get_params()['dropout_p'] == searched.best_params_['dropout_p']
    with pytest.raises(pickle.UnpicklingError, match='SeededNet'):
        safe_pickle.loads(pickle.dumps(best, -1))


PARALLEL = """
import theano_today
import pickle, sys
from sklearn.model_selection import GridSearchCV, KFold
from test_search import net
X, y = pickle.load(sys.stdin.buffer)
found = []
for jobs in 1, 2:
    search = GridSearchCV(net(regression=True), {'update_learning_rate': [.02, .2]}, cv=KFold(2),
                          n_jobs=jobs, refit=False)
    found.append(search.fit(X, y).cv_results_)
sys.stdout.buffer.write(pickle.dumps(found))
"""


def test_two_processes_find_what_one_finds(halves):
    """Workers of joblib know nothing of the mends; they learn of them from the pickled net."""
    env = dict(os.environ, OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    env['PYTHONPATH'] = os.pathsep.join([os.path.dirname(__file__), env['PYTHONPATH']])
    done = subprocess.run([sys.executable, '-c', PARALLEL], input=pickle.dumps(halves),
                          stdout=subprocess.PIPE, check=True, env=env)
    one, two = pickle.loads(done.stdout)
    assert np.isfinite(one['mean_test_score']).all()
    for name in one:
        if name.endswith('test_score'):
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_random_search_of_numbers_and_shared_variables(digits, capfd):
    rates = [theano.shared(np.float32(rate)) for rate in (1e-4, .1)]
    search = GridSearchCV(net(), {'update_learning_rate': rates}, cv=2).fit(*digits)
    numbers = GridSearchCV(net(update_learning_rate=rates[0]),
                           {'update_learning_rate': [np.float32(1e-4), .1]}, cv=2).fit(*digits)
    np.testing.assert_array_equal(search.cv_results_['mean_test_score'],
                                  numbers.cv_results_['mean_test_score'])
    assert search.best_params_['update_learning_rate'] is rates[1]
    assert [rate.get_value() for rate in rates] == [np.float32(1e-4), np.float32(.1)]

    settings = dict(update_learning_rate=loguniform(1e-3, 1), update_momentum=uniform(.5, .45),
                    dropout_p=uniform(0, .5))
    search = RandomizedSearchCV(net(), settings, n_iter=2, cv=2, random_state=1).fit(*digits)
    assert np.isfinite(search.cv_results_['mean_test_score']).all()
    assert set(search.best_params_) == set(settings)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ''


def test_a_net_that_diverges_does_not_end_the_search(halves):
    grid = {'update_learning_rate': [.05, 1e6]}
    with pytest.warns(UserWarning, match='Scoring failed|non-finite'):
        search = GridSearchCV(net(regression=True), grid, cv=2).fit(*halves)
    scores = search.cv_results_['mean_test_score']
    assert np.isfinite(scores[0]) and np.isnan(scores[1])
    assert search.best_params_ == {'update_learning_rate': .05}
    grid['update_learning_rate'].pop(0)
    with pytest.raises(ValueError, match='NaN'):
        GridSearchCV(net(regression=True), grid, cv=2, error_score='raise').fit(*halves)


def test_a_seeded_net_does_not_depend_on_others(digits):
    first = net(max_epochs=1).fit(*digits)
    lasagne.random.get_rng().uniform(size=3)
    stream = lasagne.random.get_rng()
    second = net(max_epochs=1).fit(*digits)
    assert lasagne.random.get_rng() is stream
    for ours, theirs in zip(weights(first), weights(second)):
        np.testing.assert_array_equal(ours, theirs)
    third = net(max_epochs=1)
    third.seed = 1
    assert not np.array_equal(weights(third.fit(*digits))[0], weights(first)[0])
