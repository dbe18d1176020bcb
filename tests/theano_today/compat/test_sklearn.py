"""A net of nolearn is an estimator of today's scikit-learn."""
import re

import theano_today  # noqa: F401  (before theano)

from nolearn.lasagne import TrainSplit
from nolearn_nets import regressor
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


class Shared:
    """Two handlers of one net that share this must do so in a clone."""

    def __call__(self, net, history):
        pass


def test_clone(line, capsys):
    shared = Shared()
    net = regressor(verbose=1, on_epoch_finished=[shared], on_training_finished=[shared],
                    train_split=TrainSplit(.5), update_momentum=.5)
    net.fit(*line)
    capsys.readouterr()
    other = clone(clone(net))
    assert other.train_history_ == [] and 'layers_' not in vars(other)
    assert other.update_momentum == .5 and other.train_split.eval_size == .5
    assert other.on_epoch_finished[0] is other.on_training_finished[0]
    assert other.on_epoch_finished[0] is not shared
    other.fit(*line)
    printed = capsys.readouterr().out
    assert printed.count('## Layer information') == 1
    assert len(re.findall(r'\d\.\d\ds$', printed, re.M)) == 2  # one line for each epoch


def test_estimator_of_scikit_learn(line):
    net = regressor()
    assert set(net.get_params()) >= {'layers', 'max_epochs', 'update_learning_rate', 'verbose'}
    net.set_params(max_epochs=7, update_learning_rate=.01)
    assert (net.max_epochs, net.update_learning_rate) == (7, .01)
    assert 'NeuralNet' in repr(net)
    assert 'NeuralNet' in net._repr_html_()
    x, y = line
    scores = cross_val_score(regressor(max_epochs=40), x, y, cv=2)
    assert scores.min() > .9
    search = GridSearchCV(regressor(max_epochs=30), {'update_learning_rate': [1e-5, .05]}, cv=2)
    assert search.fit(x, y).best_params_ == {'update_learning_rate': .05}
    assert search.best_estimator_.update_learning_rate == .05
    pipeline = make_pipeline(StandardScaler(), regressor(max_epochs=40)).fit(x, y)
    assert pipeline.score(x, y) > .9
