"""Slide "Learning Curves Analysis": say what a learning curve shows, and mark it in the figure.

    from beyond.curves import analyse, plot_analysis
    print(analyse(net.train_history_))
    plot_analysis(net.train_history_, scale=48, unit='pixels').savefig('analysis.png')
"""
import numpy as np
import pandas as pd
from matplotlib import pyplot

from .figures import BLUE, GREEN, RED


TAIL = 0.2              # the last part of the epochs, by which "still falling" is told
FALLING = 0.01          # fall of the validation error in it that counts
RISING = 0.02           # rise of the validation error above its best that counts
JITTER = 0.03           # relative scatter from epoch to epoch that counts
GAP = 1.5               # validation error over training error that is worth a word
FEWEST = 10             # epochs, to say anything


class Analysis:
    """What `analyse` found; as a string, sentences with the numbers behind them.

    Attributes
    ----------
    state : {'still falling', 'converged', 'overfitting', 'unstable', 'diverged', 'too short'}
        'unstable': the validation error rises, and the training error does not fall.
    best_epoch : int
        Epoch of the lowest smoothed validation error; None if there is none.
    since : int
        Epoch from which on the state is true; None where that has no meaning.
    fall : float
        Relative fall of the smoothed validation error in the last fifth of the epochs.
    rise : float
        Rise of the smoothed validation error, mean of the last tenth of the epochs (of those since
        the lowest), above its lowest, relative.
    jitter : float
        Scatter of the validation error about its smoothed curve, relative: median absolute
        deviation x 1.48 in the second half of the epochs.
    gap : float
        Validation error over training error at the end.  Dropout in training, and augmentation,
        push it below 1.
    """
    def __init__(self, state, epochs, best_epoch=None, since=None, fall=np.nan, rise=np.nan,
                 jitter=np.nan, gap=np.nan):
        self.state, self.epochs, self.best_epoch, self.since = state, epochs, best_epoch, since
        self.fall, self.rise, self.jitter, self.gap = fall, rise, jitter, gap

    @property
    def jitters(self):
        """True if the curve scatters enough to hide small differences."""
        return self.jitter > JITTER

    def __str__(self):
        text = {
            'too short': f'Too short to judge: {self.epochs} of at least {FEWEST} epochs.',
            'diverged': 'Diverged: the loss is not a number from epoch {s.since} on. Lower the '
                        'learning rate.',
            'still falling': 'Still falling: the validation error fell by {s.fall:.1%} in the last '
                             'fifth of {s.epochs} epochs. Train longer.',
            'converged': 'Converged: since epoch {s.since} of {s.epochs} the validation error is '
                         'within {f:.0%} of its lowest.',
            'overfitting': 'Overfitting since epoch {s.since} of {s.epochs}: the validation error '
                           'rose by {s.rise:.1%} from its lowest while the training error fell.',
            'unstable': 'Unstable since epoch {s.since} of {s.epochs}: the validation error rose '
                        'by {s.rise:.1%} from its lowest, and the training error did not fall. '
                        'Lower the learning rate.',
        }[self.state].format(s=self, f=FALLING)
        if self.gap > GAP:
            text += (f' At the end it is {self.gap:.1f} times the training error: more data, '
                     'augmentation or dropout would help.')
        if self.jitters:
            text += (f' Jitter: it scatters by {self.jitter:.1%} from epoch to epoch; a lower '
                     'learning rate or larger batches smooth it.')
        return text


def analyse(train_history):
    """Judge the learning curve of a training.

    Both curves are square roots of the losses (so of a squared error, RMSE), smoothed by a running
    median over a twentieth of the epochs, 5 at least.

    Parameters
    ----------
    train_history : list of dict
        nolearn's `train_history_`, with train_loss and valid_loss.

    Returns
    -------
    Analysis

    Raises
    ------
    ValueError
        If the net was trained without a validation set.
    """
    train, valid = errors(train_history)
    if len(valid) and np.isnan(valid).all() and np.isfinite(train).any():
        raise ValueError('The history has no validation loss: train with TrainSplit(eval_size=.2).')
    epochs = len(valid)
    bad = ~np.isfinite(valid) | ~np.isfinite(train)
    if epochs and bad.any() and bad[-1]:
        return Analysis('diverged', epochs, since=int(np.flatnonzero(~bad)[-1]) + 2
                        if not bad.all() else 1)
    if epochs < FEWEST:
        return Analysis('too short', epochs)
    smooth_train, smooth = smoothed(train), smoothed(valid)
    best = int(smooth.argmin())
    scatter = ((valid - smooth) / smooth)[epochs // 2:]
    found = Analysis(
        None, epochs, best_epoch=best + 1,
        rise=smooth[max(best, epochs - max(epochs // 10, 3)):].mean() / smooth[best] - 1,
        fall=1 - smooth[-1] / smooth[-max(int(TAIL * epochs), 2)],
        jitter=1.4826 * float(np.median(np.abs(scatter - np.median(scatter)))),
        gap=smooth[-1] / smooth_train[-1])
    if found.rise > max(RISING, found.jitter):
        falls = smooth_train[-1] < smooth_train[best] * (1 - FALLING)
        found.state, found.since = ('overfitting' if falls else 'unstable'), best + 2
    elif found.fall > FALLING:
        found.state = 'still falling'
    else:
        found.state = 'converged'
        found.since = int((smooth > smooth[best] * (1 + FALLING))[:best + 1].sum()) + 1
    return found


def errors(train_history):
    """Return the square roots of training and validation loss, two arrays."""
    return tuple(np.sqrt([row[name] for row in train_history], dtype=float)
                 for name in ('train_loss', 'valid_loss'))


def smoothed(values):
    """Running median of a curve over a twentieth of it, 5 at least."""
    window = max(len(values) // 20, 5) | 1
    return pd.Series(values).rolling(window, center=True, min_periods=1).median().values


def plot_analysis(train_history, scale=1, unit='', title=None, axis=None):
    """Draw the learning curve and mark what `analyse` found.

    Parameters
    ----------
    scale, unit : float, str
        Factor of the error and its name: 48, 'pixels' for faces.
    title : str, optional
    axis : matplotlib Axes, optional
        To draw into; a new figure if not given.

    Returns
    -------
    matplotlib Figure
    """
    found = analyse(train_history)
    train, valid = (scale * values for values in errors(train_history))
    epochs = np.arange(1, len(valid) + 1)
    if axis is None:
        axis = pyplot.subplots(figsize=(7, 4.6), layout='constrained')[1]
    axis.plot(epochs, train, '--', color=BLUE, label='training')
    if found.state == 'too short':
        axis.plot(epochs, valid, color=BLUE, linewidth=2, label='validation')
    else:
        axis.plot(epochs, valid, color=BLUE, alpha=0.4)
        axis.plot(epochs, smoothed(valid), color=BLUE, linewidth=2, label='validation, smoothed')
    if found.best_epoch:
        axis.axvline(found.best_epoch, color=GREEN, linestyle=':', linewidth=2,
                     label=f'lowest, epoch {found.best_epoch}')
    if found.since:
        color = GREEN if found.state == 'converged' else RED
        axis.axvspan(found.since, max(len(valid), found.since + 0.5), color=color, alpha=0.12,
                     label=f'{found.state} since epoch {found.since}')
    state = found.state + (f', jitter {found.jitter:.1%}' if found.jitters else '')
    axis.set(title=': '.join(filter(None, [title, state])), xlabel='epoch',
             ylabel=f'RMSE ({unit})' if unit else 'square root of the loss', ylim=(0, None))
    axis.grid(alpha=0.4)
    axis.legend()
    return axis.figure
