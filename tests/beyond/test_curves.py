"""Curves of known shape are called by their names."""
import theano_today  # noqa: F401  (before theano)

import numpy as np
import pytest
from beyond.curves import analyse, plot_analysis, smoothed
from matplotlib import pyplot

N = 200
EPOCH = np.arange(1, N + 1)


def history(train, valid):
    return [dict(epoch=i, train_loss=t ** 2, valid_loss=v ** 2)
            for i, (t, v) in enumerate(zip(train, valid), 1)]


def noise(size, seed=0):
    return 1 + np.random.RandomState(seed).normal(0, size, N)


FALLS = 1 + np.exp(-EPOCH / 20)


def test_converged():
    found = analyse(history(FALLS, FALLS * noise(.002)))
    assert found.state == 'converged' and not found.jitters
    # exp(-e/20) is 1 % of what is left at epoch 92
    assert 80 <= found.since <= 105
    assert f'since epoch {found.since} of 200' in str(found)


def test_still_falling():
    found = analyse(history(2 - EPOCH / 300, 2 - EPOCH / 300))
    assert found.state == 'still falling'
    # From 2 - 161/300 to 2 - 200/300, smoothed by a median that lags 2.5 epochs at the end.
    assert found.fall == pytest.approx(1 - (4 / 3) / (2 - 161 / 300), abs=.01)


@pytest.mark.parametrize('turn', [40, 100, 160])
def test_overfitting_since(turn):
    valid = 1 + ((EPOCH - turn) / 100.) ** 2
    found = analyse(history(2 - EPOCH / 200., valid * noise(.003)))
    assert found.state == 'overfitting'
    assert abs(found.since - turn) <= 12
    end = ((np.arange(181, 201) - turn) / 100.) ** 2
    assert found.rise == pytest.approx(end.mean(), rel=.1)
    assert f'Overfitting since epoch {found.since} of 200' in str(found)


def test_no_rise_before_the_lowest():
    """A short curve that falls to its end is not unstable since the epoch after its last."""
    falls = np.linspace(6, 3, 12)
    found = analyse(history(falls, falls))
    assert found.state == 'still falling' and found.rise == 0
    assert found.best_epoch == 12


def test_gap():
    found = analyse(history(FALLS / 3, FALLS))
    assert found.state == 'converged' and 'it is 3.0 times the training error' in str(found)
    assert 'training error' not in str(analyse(history(FALLS * .9, FALLS)))


def test_rising_without_learning_is_no_overfitting():
    valid = 1 + np.maximum(EPOCH - 80, 0) / 100.
    assert analyse(history(valid, valid)).state == 'unstable'


def test_jitter():
    found = analyse(history(FALLS, FALLS * noise(.1)))
    assert found.jitters and found.jitter == pytest.approx(.1, rel=.25)
    assert 'Jitter: it scatters by' in str(found)


def test_one_wild_epoch_changes_nothing():
    wild = FALLS * noise(.002)
    wild[150], wild[-1] = 30, .1
    found = analyse(history(FALLS, wild))
    assert found.state == 'converged' and not found.jitters


def test_too_short_and_diverged():
    assert analyse([]).state == 'too short'
    assert analyse(history([1] * 9, [1] * 9)).state == 'too short'
    curve = np.r_[FALLS[:50], [np.nan] * 5]
    found = analyse(history(curve, curve))
    assert found.state == 'diverged' and found.since == 51 and 'epoch 51' in str(found)


def test_without_validation_there_is_nothing_to_say():
    with pytest.raises(ValueError, match='no validation loss'):
        analyse(history(FALLS, FALLS * np.nan))


def test_smoothing_is_a_running_median():
    values = np.random.RandomState(1).rand(N)
    window = values[96:105].copy()
    assert smoothed(values)[100] == np.median(np.r_[values[95], window, values[105]])


def test_figure_marks_it():
    fig = plot_analysis(history(2 - EPOCH / 200., 1 + ((EPOCH - 80) / 100.) ** 2), scale=48,
                        unit='pixels', title='net')
    [axis] = fig.axes
    assert axis.get_ylabel() == 'RMSE (pixels)' and axis.get_title() == 'net: overfitting'
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert any(label.startswith('overfitting since epoch') for label in labels)
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 48 * (2 - EPOCH / 200.))
    fig.canvas.draw()
    pyplot.close(fig)
