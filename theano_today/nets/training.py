"""The training of a net, which another process may do.

    training = Training('left', 'left.npz', prepare)
    net = training.fit()
"""
import contextlib
import io

from .checkpoint import FRESH, Checkpoint

__all__ = ['Training']


class Training:
    """The training of a net, with its checkpoint.

    Parameters
    ----------
    title : str
        What messages call it.
    fname : str
        Its checkpoint.
    prepare : callable
        Returns ``(net, X, y, settings)``: the net as it is before its training, not initialized;
        what its `fit` takes; the settings of its `Checkpoint`.  It is called when the training's
        turn comes, and once more when a worker's result is taken over.
    every : float
        Seconds from one checkpoint to the next.
    pretrained : NeuralNet, optional
        The net takes its weights over (`load_params_from`).
    around : callable, optional
        From the net to a context in which it is trained, such as ``TensorBoard('runs').attached``.
    fresh : str
        How the user starts anew, for messages.

    Attributes
    ----------
    net : NeuralNet
        As `prepare` has returned it, trained as far as `fit` has come.
    checkpoint : Checkpoint
        Tells after `fit` how it has ended.
    error : Exception or None
        What has stopped it elsewhere: `Diverged`, `TrainingError`, or whatever was raised.
    """

    def __init__(self, title, fname, prepare, every=300., pretrained=None,
                 around=contextlib.nullcontext, fresh=FRESH):
        self.title, self.fname, self.prepare, self.every = title, fname, prepare, every
        self.pretrained, self.around, self.fresh = pretrained, around, fresh
        self.net = self.checkpoint = self.error = None

    def fit(self):
        """Train the net, from its checkpoint on; return it.

        Raises
        ------
        Diverged, CheckpointError, FileError
            As `Checkpoint` does, or what has stopped the training on a worker.
        """
        self.net, X, y, settings = self.prepare()
        if self.error is not None:
            for name, value in getattr(self.error, 'shared', {}).items():  # of that moment
                getattr(self.net, name).set_value(value)
            raise self.error
        return self.fit_prepared(X, y, settings)

    def prepare_quietly(self):
        """What `prepare` returns; what it prints is left to `fit`."""
        with contextlib.redirect_stdout(io.StringIO()):
            return self.prepare()

    def fit_prepared(self, X, y, settings):
        """Train `net`; return it."""
        if self.pretrained is not None:
            self.net.load_params_from(self.pretrained)
        self.checkpoint = Checkpoint(self.fname, self.net, settings, self.every, self.fresh)
        with self.checkpoint, self.around(self.net):
            self.net.fit(X, y)
        return self.net
