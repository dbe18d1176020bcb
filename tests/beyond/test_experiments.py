"""The experiments end with their figures and honest verdicts; the pictures show what is there."""
import re
from types import SimpleNamespace

import theano_today  # noqa: F401  (before theano)

import lasagne
import numpy as np
import pytest
from lasagne import init, layers
from lasagne.nonlinearities import tanh
from matplotlib import pyplot
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit, visualize

pytest.importorskip('cv2')
from beyond import experiments, pictures  # noqa: E402
from beyond.nets import starter_net  # noqa: E402


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close('all')


def data(n=60):
    X = np.random.RandomState(0).rand(n, 1, 8, 8).astype(np.float32)
    return X, X[:, 0, ::4, ::4].reshape(n, 4) - np.float32(.5)


def small_net(**settings):
    lasagne.random.set_rng(np.random.RandomState(0))
    return NeuralNet(**dict(dict(
        layers=[('input', layers.InputLayer), ('hidden', layers.DenseLayer),
                ('drop', layers.DropoutLayer), ('output', layers.DenseLayer)],
        input_shape=(None, 1, 8, 8), hidden_num_units=40, hidden_nonlinearity=tanh, drop_p=0,
        output_num_units=4, output_nonlinearity=None, regression=True, update_learning_rate=.1,
        update_momentum=.9, batch_iterator_train=BatchIterator(32),
        batch_iterator_test=BatchIterator(32), train_split=TrainSplit(.2)), **settings))


# ----------------------------------------------------------------------------- sanity checks

def test_a_sound_net_learns_a_few_rows_by_heart():
    passed, verdict = experiments.check_overfitting(small_net(), *data(), epochs=200)
    assert passed and verdict.endswith('the net can learn.')


def test_a_net_that_cannot_learn_is_told_why():
    """A ReLU layer that is dead from the start: only the output's bias can learn."""
    net = small_net(hidden_nonlinearity=lasagne.nonlinearities.rectify,
                    hidden_b=init.Constant(-100))
    passed, verdict = experiments.check_overfitting(net, *data(), epochs=60)
    assert not passed
    assert '1,000 is the least to ask for' in verdict
    assert 'dead ReLUs: 100% of the units of hidden' in verdict


def test_more_regularisation_more_loss():
    net = small_net(update_learning_rate=.02)
    found = experiments.check_regularisation(
        net, *data(), epochs=4, l2=(0, .01, .1), l1=(0, .01), dropout=(0, .4, .8))
    assert {kind: [run[0] for run in runs] for kind, runs in found.items()} == {
        'l2': [0, .01, .1], 'l1': [0, .01], 'dropout': [0, .4, .8]}
    for runs in found.values():
        assert np.all(np.diff([run[2] for run in runs]) > 0)
    # Each training starts from the same weights and momentum.
    assert found['l2'][0][1:] == found['l1'][0][1:]
    assert found['dropout'][0][1:] == pytest.approx(found['l1'][0][1:], rel=1e-5)


# ------------------------------------------------------------------------------- experiments

def test_initialisations_show_the_decks_effect():
    figures, verdict = experiments.initialisations(epochs=1, rows=80)
    assert verdict.endswith("The deck's effect shows.")
    axes = figures['initialisations'].axes
    assert len(axes) == 6 and all(axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    # Six layers are drawn; with 1/sqrt(n) the last one's activations are the narrowest.
    widths = [np.ptp(line.get_xdata()) for line in axes[0].lines]
    assert len(widths) == 6 and widths[-1] < .3 * widths[0]


def test_search_tells_what_it_has_found(capsys, monkeypatch):
    figures, verdict = experiments.search(epochs=8, rows=120, candidates=2)
    assert verdict.startswith('Best of 2 settings: dropout_p 0.')
    axes = figures['search'].axes
    assert [axis.get_xlabel() for axis in axes] == [
        'update_learning_rate', 'update_momentum', 'dropout_p']
    for axis in axes:
        found, far, best, _ = axis.lines
        assert len(found.get_xdata()) + len(far.get_xdata()) == 2
        assert best.get_ydata()[0] == min(found.get_ydata())
    best = re.search(r'RMSE (\S+) pixels', verdict).group(1)
    assert float(best) == pytest.approx(axes[0].lines[2].get_ydata()[0], abs=.006)

    capsys.readouterr()
    # Four trainings that take a minute each after the first, whatever this machine is doing beside.
    clock = iter([0, 100, 160, 220, 280])
    monkeypatch.setattr(experiments, 'time', SimpleNamespace(time=lambda: next(clock)))
    score = experiments.SearchScore(4, every=0)
    X, y = data()
    net = small_net().fit(X, y, epochs=1)
    assert [score(net, X, y) for _ in range(4)] == pytest.approx([
        -np.mean((net.predict(X) - y) ** 2, dtype=float)] * 4)
    assert capsys.readouterr().out.splitlines() == [
        '# search: 2 of 4 trainings, some 0:02:00 left',
        '# search: 3 of 4 trainings, some 0:01:00 left']


def test_older_initialisation_is_what_the_slide_says():
    lasagne.random.set_rng(np.random.RandomState(0))
    for shape, _inputs in (((400, 50), 400), ((30, 16, 5, 5), 400)):
        W = experiments.OneOverRoot().sample(shape)
        assert np.abs(W).max() <= 1 / 20 and np.abs(W).max() > .99 / 20
        assert W.std() == pytest.approx(1 / 20 / 3 ** .5, rel=.03)


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert experiments.main(['classification', 'augmented-faces', '--epochs', '2']) == 0
    out = capsys.readouterr().out
    assert 'valid acc' in out and 'Validation accuracy' in out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'augmented-faces.png', 'classification.png']
    for path in tmp_path.iterdir():
        assert path.stat().st_size > 10000
    assert experiments.main(['augmented-faces', '--faces', 'none.csv']) == 1
    assert 'none.csv is not there' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        experiments.main(['no-such-experiment'])


@pytest.mark.parametrize('name', sorted(set(experiments.EXPERIMENTS) - {
    'augmented-faces', 'classification', 'initialisations', 'search'}))  # they are above
def test_each_ends_with_a_figure_and_a_verdict(name, faces, tmp_path, monkeypatch, capsys):
    """On faces of a file, as few as will do, for two epochs."""
    monkeypatch.chdir(tmp_path)
    # It asks the net 18,432 times, and is tested below.
    monkeypatch.setattr(visualize, 'plot_occlusion', lambda *args, **kwargs: pyplot.figure())
    assert experiments.main([name, '--faces', str(faces / 'training.csv'), '--epochs', '2',
                             '--rows', '32']) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    out = capsys.readouterr().out
    assert written and all(path.endswith('.png') and 'Wrote ' + path in out for path in written)
    verdict = out.strip().split('\n')[-1]
    assert re.match(name + r' \(\d+ s\): \S.*\d.*\.$', verdict), verdict
    assert ('nose_tip_x' in out) == (name != 'update-rules')  # that one learns digits


def test_manual_lists_all(capsys):
    with pytest.raises(SystemExit) as done:
        experiments.main(['-h'])
    assert done.value.code == 0
    out = capsys.readouterr().out
    for name, function in experiments.EXPERIMENTS.items():
        assert '    ' + name in out and function.__doc__.split('\n')[0] in out


def test_faces_of_another_size():
    X, y = experiments.faces(6, size=24, standardise=False)
    whole, same = experiments.faces(6, standardise=False)
    assert X.shape == (6, 1, 24, 24) and whole.shape == (6, 1, 96, 96)
    np.testing.assert_allclose(X[2, 0, 3, 5], whole[2, 0, 12:16, 20:24].mean(), rtol=1e-5)
    np.testing.assert_array_equal(y, same)
    X, _ = experiments.faces(6)
    assert abs(X.mean()) < 1e-4 and X.std() == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------------- pictures

@pytest.fixture(scope='module')
def net():
    lasagne.random.set_rng(np.random.RandomState(3))
    net = starter_net((None, 1, 24, 24), 4, num_filters=3, num_convolutions=2, num_units=10,
                      dropout=.5, max_epochs=1)
    return net.fit(*images(40))


def images(n):
    X = np.random.RandomState(4).rand(n, 1, 24, 24).astype(np.float32)
    return X, X[:, 0, :4, 0]


def test_paths(net):
    X, y = images(5)
    values = pictures.paths(net, X, y)
    assert list(values) == ['input', 'conv1', 'pool1', 'conv2', 'pool2', 'hidden', 'output']
    assert all(output.shape == gradient.shape for output, gradient in values.values())
    found = net.predict(X)
    np.testing.assert_allclose(values['output'][0], found, rtol=1e-4, atol=1e-6)
    by_output = 2 * (found - y) / y.size
    np.testing.assert_allclose(values['output'][1], by_output, rtol=1e-4, atol=1e-7)
    W = net.layers_['output'].W.get_value()
    np.testing.assert_allclose(values['hidden'][1], by_output @ W.T, rtol=1e-3, atol=1e-7)

    # By finite differences: what a step in the images does to the loss.
    step = np.random.RandomState(5).normal(size=X.shape).astype(np.float32) * np.float32(1e-3)
    up, down = (((net.predict(X + sign * step) - y) ** 2).mean(dtype=float) for sign in (1, -1))
    assert up - down == pytest.approx(2 * (values['input'][1] * step).sum(dtype=float), rel=.05)


def test_paths_are_drawn(net):
    fig = pictures.plot_paths(net, *images(5), maps=3)
    fig.canvas.draw()
    shown = [axis for part in fig.subfigs for axis in part.axes if axis.get_visible()]
    # input, two convolutions of three maps, hidden, output; twice
    assert len(shown) == 2 * (1 + 3 + 3 + 1 + 1)


def test_point_saliency(net):
    X, _ = images(2)
    heat = pictures.point_saliency(net, X, (0, 1))
    assert heat.shape == (2, 24, 24) and (heat >= 0).all()
    i, j = np.unravel_index(heat[0].argmax(), heat[0].shape)
    step = np.zeros_like(X)
    step[0, 0, i, j] = 1e-2
    slope = (net.predict(X + step) - net.predict(X - step))[0, :2] / 2e-2
    assert np.linalg.norm(slope) == pytest.approx(heat[0, i, j], rel=.03)
    fig = pictures.plot_point_saliency(net, X, {'a': 0, 'b': 2})
    fig.canvas.draw()
    assert len(fig.axes) == 6


def test_nolearns_pictures(net):
    """On today's matplotlib, without a display, for a regression net."""
    X, _ = images(2)
    for draw, axes in ((lambda: visualize.plot_conv_weights(net.layers_['conv1']), 4),
                       (lambda: visualize.plot_conv_activity(net.layers_['conv2'], X[:1]), 6),
                       (lambda: visualize.plot_occlusion(net, X, [0, 1]), 6),
                       (lambda: visualize.plot_loss(net), 1)):
        pyplot.close('all')
        draw()
        fig = pyplot.gcf()
        fig.canvas.draw()
        assert len(fig.axes) == axes


def test_nolearns_saliency_of_a_classifier():
    net = starter_net((None, 1, 12, 12), 3, num_filters=2, num_convolutions=1, num_units=5,
                      regression=False)
    net.initialize()
    X = np.random.RandomState(6).rand(2, 1, 12, 12).astype(np.float32)
    visualize.plot_saliency(net, X)
    heat = visualize.saliency_map_net(net, X[:1])
    assert heat.shape == (12, 12) and np.isfinite(heat).all() and heat.max() > 0
