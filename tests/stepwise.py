"""Small nets whose training steps are counted, and which have accidents where a test wants them.

A module of its own, as the processes of theano_today.nets.parallel import it.
"""
import os
import signal
import time

import theano_today  # noqa: F401
import numpy as np
import theano
from lasagne import layers
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit


class Steps:
    """A handler for on_batch_finished that writes down each step that is computed.

    Parameters
    ----------
    fname : str
        The file: a line for each step has the number of the net's outputs, the step's number and
        the process.  Checkpoints keep the number.
    seconds : float
        How long to sleep after a step.
    accidents : dict of tuple to str
        (number of outputs, step): the name of a function below.
    """

    __slots__ = 'accidents', '__dict__'  # checkpoints keep what is in __dict__: not the accidents

    def __init__(self, fname, seconds=0., accidents=()):
        self.fname, self.seconds, self.accidents = fname, seconds, dict(accidents)
        self.count = 0

    def __call__(self, nn, history):
        self.count += 1
        place = nn.output_num_units, self.count
        with open(self.fname, 'a') as f:
            f.write('{} {} {}\n'.format(*place, os.getpid()))
        time.sleep(self.seconds)
        if place in self.accidents:
            globals()[self.accidents[place]](nn, self.fname)


def die(nn, fname):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(nn, fname):
    try:
        os.close(os.open(fname + '.died', os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_death(nn, fname):
    """Wait until another has died and trains again."""
    while not os.path.exists(fname + '.died') or len({
            pid for outputs, _, pid in steps(fname) if outputs != nn.output_num_units}) < 2:
        time.sleep(0.01)


def wait_to_be_told(nn, fname):
    """Wait until the training is told to stop after this batch."""
    while not nn._training.stopping:
        time.sleep(0.01)


def terminate(nn, fname):
    os.kill(os.getpid(), signal.SIGTERM)


def divide(nn, fname):
    1 / 0


def diverge(nn, fname):
    nn.update_learning_rate.set_value(np.float32(0.5))
    nn.layers_['output'].W.set_value(np.full_like(nn.layers_['output'].W.get_value(), np.inf))


def steps(fname):
    """[(number of outputs, step, process), ...]"""
    try:
        with open(fname) as f:
            return [tuple(map(int, line.split())) for line in f]
    except FileNotFoundError:
        return []


def net(outputs, handler, epochs=4):
    return NeuralNet(
        layers=[('input', layers.InputLayer), ('hidden', layers.DenseLayer),
                ('dropout', layers.DropoutLayer), ('output', layers.DenseLayer)],
        input_shape=(None, 6), hidden_num_units=5, output_num_units=outputs,
        output_nonlinearity=None, regression=True, max_epochs=epochs, verbose=1,
        update_learning_rate=theano.shared(np.float32(0.01)), update_momentum=0.9,
        batch_iterator_train=BatchIterator(batch_size=4),
        batch_iterator_test=BatchIterator(batch_size=4), train_split=TrainSplit(eval_size=0.2),
        on_batch_finished=[handler])


def data(outputs, rows=25):
    rng = np.random.RandomState(0)
    return (rng.normal(size=(rows, 6)).astype(np.float32),
            rng.normal(size=(rows, outputs)).astype(np.float32))


def results(net):
    """Weights and history, to be compared with ==."""
    return ([value.tobytes() for values in net.get_all_params_values().values()
             for value in values],
            [{key: value for key, value in info.items() if key != 'dur'}
             for info in net.train_history_])
