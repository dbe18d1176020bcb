"""The engine trains as stock Theano does: the same losses from the same seed."""
import kfkd
import lasagne
import numpy as np
import pytest
import theano
import theano_today.cpu
from data import make_faces
from sklearn.base import clone

EPOCHS = 20


@pytest.fixture(scope='module')
def faces():
    """Drawn faces of 48 x 48 pixels, standardised, and their labels.

    Noise keeps the positions of a pooling window apart: where the largest two are as good as equal,
    as in flat parts of an image, rounding decides which of them the gradient goes to.
    """
    X, y = make_faces.draw_faces(170, seed=3)
    X = np.asarray(X, 'float32').reshape(-1, 1, 96, 96)[:, :, ::2, ::2]
    X = (X - X.mean()) / X.std() + np.random.RandomState(0).normal(0, .05, X.shape)
    return X.astype('float32'), ((np.asarray(y) - 48) / 48).astype('float32')


def small_net():
    """The deck's net with fewer filters and units, for images of 48 x 48; dropout as in the deck."""
    net = clone(kfkd.build_net()).set_params(
        input_shape=(None, 1, 48, 48), conv1_num_filters=8, conv2_num_filters=16,
        conv3_num_filters=24, hidden4_num_units=60, hidden5_num_units=50, max_epochs=EPOCHS,
        verbose=0)
    net.batch_iterator_train.batch_size = net.batch_iterator_test.batch_size = 16
    return net


def train(faces, monkeypatch, **constants):
    """Train a net; return it and the loss of each training batch."""
    for name, value in constants.items():
        monkeypatch.setattr(kfkd, name, value)
    lasagne.random.set_rng(np.random.RandomState(0))
    net = small_net()
    losses = []
    net.initialize()
    step = net.train_iter_

    def recorded(*batch):
        outputs = step(*batch)
        losses.append(float(outputs[0]))
        return outputs

    net.train_iter_ = recorded
    net.fit(*faces)
    net.train_iter_ = step
    return net, np.array(losses)


@pytest.fixture
def switch():
    """Leave the engine on, whatever a test does."""
    yield
    theano_today.cpu.enable()


@pytest.mark.parametrize('rate', [0.03, 0.1])
def test_curve_of_stock_theano(faces, monkeypatch, switch, rate):
    theano_today.cpu.disable()
    stock, stocks_losses = train(faces, monkeypatch, LEARNING_RATE=(rate, rate / 10))
    theano_today.cpu.enable()
    net, losses = train(faces, monkeypatch, LEARNING_RATE=(rate, rate / 10))
    # As README tells users to look at it.
    assert 'ConvPoolGrad' in theano.printing.debugprint(net.train_iter_, file='str')
    assert 'ConvPool' not in theano.printing.debugprint(stock.train_iter_, file='str')

    assert len(losses) == EPOCHS * 9  # 136 faces in batches of 16
    # Two stock Theanos with different BLAS kernels are no nearer to each other.
    np.testing.assert_allclose(losses[:10], stocks_losses[:10], rtol=1e-5, atol=5e-6)
    for name in ('train_loss', 'valid_loss'):
        ours, theirs = (np.array([info[name] for info in n.train_history_]) for n in (net, stock))
        np.testing.assert_allclose(ours, theirs, rtol=.01, err_msg=name)
        assert theirs[-1] < .7 * theirs[0]  # it has learnt something to compare
