"""Handlers that the field has added to the deck's since: what happens at the end of an epoch.

    net.on_epoch_finished.append(CosineAnnealing('update_learning_rate', 0.2, 0))
    net.on_epoch_finished.append(AverageWeights(20))

In a YAML experiment they stand under ``net``, as ``handlers``.
"""
import numpy as np

__all__ = ['AverageWeights', 'CosineAnnealing']


class CosineAnnealing:
    r"""Let a shared variable of the net fall from `start` to `stop` along half a cosine.

    .. math:: v(e) = v_1 + (v_0 - v_1) (1 + \cos(\pi e / E)) / 2

    in the epoch after :math:`e` of :math:`E`, the net's ``max_epochs``: long at large steps, long at
    small ones, where a straight line is at neither.

    Parameters
    ----------
    name : str
        Of the attribute of the net that holds the variable.  Handlers that change the same one, such
        as kfkd's AdjustVariable, must stand before this one.
    start, stop : float

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    arXiv:1608.03983.
    """

    def __init__(self, name='update_learning_rate', start=0.03, stop=0.0):
        self.name, self.start, self.stop = name, start, stop

    def __call__(self, nn, train_history):
        done = min(train_history[-1]['epoch'] / nn.max_epochs, 1)
        value = self.stop + (self.start - self.stop) * (1 + np.cos(np.pi * done)) / 2
        getattr(nn, self.name).set_value(np.float32(value))


class AverageWeights:
    """Give the net, at the end, the mean of its weights after each of the last epochs.

    The last steps go to and fro about a minimum; their mean lies nearer to it than any of them.  All
    parameters are averaged, also those that are not trained, such as running averages.

    Parameters
    ----------
    epochs : int
        How many, of the net's ``max_epochs``.  A training that ends before them keeps its weights.

    Notes
    -----
    Handlers that set the weights at the end of a training, such as kfkd's EarlyStopping, must stand
    behind this one in ``on_epoch_finished``: each puts itself first in line for the end, so that the
    mean comes last.

    References
    ----------
    P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson, "Averaging Weights Leads to
    Wider Optima and Better Generalization", arXiv:1803.05407.
    """

    def __init__(self, epochs=10):
        if epochs < 1:
            raise ValueError(f'epochs = {epochs!r}: at least one is averaged.')
        self.epochs = epochs
        self.start()

    def start(self):
        """Forget an earlier training."""
        self.count, self.sums = 0, None

    def __call__(self, nn, train_history):
        if self.on_training_finished not in nn.on_training_finished:  # nolearn looks at the end
            nn.on_training_finished.insert(0, self.on_training_finished)
        if train_history[-1]['epoch'] <= nn.max_epochs - self.epochs:
            return
        values = [param.get_value().astype(np.float64) for param in nn.get_all_params()]
        self.sums = [a + b for a, b in zip(self.sums, values)] if self.count else values
        self.count += 1

    def on_training_finished(self, nn, train_history):
        if self.count == self.epochs:
            for param, sum_ in zip(nn.get_all_params(), self.sums):
                param.set_value((sum_ / self.count).astype(param.dtype))
        self.start()

    def __getstate__(self):  # the net that is pickled has the mean
        return dict(vars(self), count=0, sums=None)
