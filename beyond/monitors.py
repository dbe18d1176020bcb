"""Slides "Monitor Layers' Training": what happens in each layer while a net of nolearn trains.

    from beyond.monitors import attach_all, plot_activations, verdict
    attach_all(net).fit(X, y)
    plot_activations(net.train_history_).savefig('activations.png')
    print('\n'.join(verdict(net.train_history_)))

"Monitoring activation and gradients across layers and training iterations is a powerful
investigation tool": X. Glorot, Y. Bengio, "Understanding the difficulty of training deep
feedforward neural networks", AISTATS 2010.  The ratio of updates to weights is from A. Karpathy's
CS231n notes, which like to see it near 1e-3.

Every `every` batches a monitor takes one sample; the samples of an epoch go to its row of the
history under `activations`, `gradients` and `updates`, as a list of dictionaries::

    {'epoch': 2.5, 'batch': 51, 'layers': {'conv1': {'mean': ..., 'std': ..., ...}, ...}}

They are plain numbers and lists, so the history can be pickled or written as JSON.  `samples`
collects them.  tests/benchmarks/monitors.py measures what they cost.
"""
import copy

import numpy as np
import theano
from lasagne import nonlinearities
from lasagne.layers import InputLayer, get_output
from matplotlib import colormaps, pyplot
from nolearn.lasagne import base

from .figures import RED

QUANTILES = 0.05, 0.25, 0.5, 0.75, 0.95
BINS = 60               # of a histogram
SUBSET = 20000          # values of a layer that quantiles and histograms are made of

# Where each bounded nonlinearity of Lasagne counts as saturated.
SATURATED = {
    nonlinearities.tanh: lambda a: np.abs(a) > 0.97,
    nonlinearities.sigmoid: lambda a: (a < 0.03) | (a > 0.97),
}


# ------------------------------------------------------------------------------------- monitors

class Monitor:
    """What the monitors share: when a sample is due, on which batch, and where it goes.

    Parameters
    ----------
    every : int
        A sample is taken at the first batch of a training and then every so many batches.
    layers : sequence of str, optional
        Names of layers; all that have weights if not given.
    size : int
        Rows of the training set that are looked at: the first ones, the same each time, as the
        net's own batch iterator transforms them.  That draws from a copy of the iterator's random
        state: a monitored training gives the same weights as one that is not.
    batch : (X, y), optional
        Look at this batch instead, just as the net's functions take it (`y` as class numbers where
        the net encodes labels).
    """
    name = None  # of its column in the history
    not_in_checkpoint = ('_function',)  # compiled anew where a training goes on

    def __init__(self, every=50, layers=None, size=32, batch=None):
        self.every = every
        self.layers = layers
        self.size = size
        self.batch = batch
        self._forget()

    def attach(self, net):
        """Add the monitor to the handlers of a net; return the monitor."""
        net.on_training_started.append(self.on_training_started)
        net.on_batch_finished.append(self.on_batch_finished)
        # First of all: a handler that stops the training must not stop the record.
        net.on_epoch_finished.insert(0, self.on_epoch_finished)
        return self

    def on_training_started(self, nn, train_history):
        self._forget()

    def on_batch_finished(self, nn, train_history):
        self.batches += 1
        self.batches_of_epoch += 1
        if self.due():
            X = nn.batch_iterator_train.X
            rows = len(next(iter(X.values()))) if isinstance(X, dict) else len(X)
            in_epoch = -(-rows // nn.batch_iterator_train.batch_size)
            self.pending.append(dict(
                epoch=len(train_history) + self.batches_of_epoch / in_epoch,
                batch=self.batches, layers=self.look(nn)))

    def on_epoch_finished(self, nn, train_history):
        train_history[-1][self.name] = self.pending
        self.pending = []
        self.batches_of_epoch = 0

    def due(self):
        """Tell whether the batch just finished is one to look at."""
        return (self.batches - 1) % self.every == 0

    def look(self, nn):
        """Return the numbers of each layer, a dictionary of dictionaries."""
        raise NotImplementedError

    def probe(self, nn):
        """Return the batch to look at."""
        if self._probe is None:
            iterator = nn.batch_iterator_train
            twin = copy.deepcopy(iterator)  # without its data, as in a pickle
            rows = slice(0, self.size)
            self._probe = self.batch or twin.transform(
                base._sldict(iterator.X, rows), iterator.y[rows])
        return self._probe

    def _forget(self):
        self.batches = self.batches_of_epoch = 0
        self.pending = []
        self._function = self._probe = None

    def __getstate__(self):  # neither a compiled function nor faces belong into a pickled net
        return dict(vars(self), _function=None, _probe=None, pending=[])


class ActivationMonitor(Monitor):
    """Record the outputs of the layers, as the trained net would compute them (without dropout).

    Numbers of a layer: those of `describe`, and

    saturated
        Share of outputs near the bounds of tanh or sigmoid; absent for other nonlinearities.
    dead
        Share of units (feature maps in a convolution) that give 0 for the whole batch; only for
        ReLU.
    """
    name = 'activations'

    def look(self, nn):
        names = self.layers or layers_with_weights(nn)
        if self._function is None:
            outputs = get_output([nn.layers_[name] for name in names], deterministic=True)
            self._function = theano.function(
                inputs_of(nn), outputs, allow_input_downcast=True, on_unused_input='ignore')
        outputs = nn.apply_batch_func(self._function, self.probe(nn)[0])
        numbers = {}
        for name, output in zip(names, outputs):
            numbers[name] = described = describe(output, near_zero=1e-3)
            nonlinearity = getattr(nn.layers_[name], 'nonlinearity', None)
            if nonlinearity in SATURATED:
                described['saturated'] = float(SATURATED[nonlinearity](output).mean())
            if nonlinearity is nonlinearities.rectify:
                others = (0,) + tuple(range(2, output.ndim))
                described['dead'] = float((output.max(axis=others) <= 0).mean())
        return numbers


class GradientMonitor(Monitor):
    """Record the gradient of the training loss, as nolearn computes it (with dropout).

    Parameters
    ----------
    of : {'weights', 'outputs'}
        Gradient with respect to the parameters, named ``layer.W`` and so on, or to the outputs of
        the layers: what Glorot and Bengio call back-propagated gradients (their figure 7).

    Numbers of a parameter or layer: those of `describe`, and `norm`, the Euclidean norm.
    """
    name = 'gradients'

    def __init__(self, every=50, layers=None, size=32, batch=None, of='weights'):
        super().__init__(every, layers, size, batch)
        if of not in ('weights', 'outputs'):
            raise ValueError(f"of is 'weights' or 'outputs', not {of!r}.")
        self.of = of

    def look(self, nn):
        if self._function is None:
            self._names, gradients, target = self._graph(nn)
            self._function = theano.function(
                inputs_of(nn) + [theano.In(target, name='y')], gradients,
                allow_input_downcast=True, on_unused_input='ignore')
            # A training that goes on from a checkpoint goes on with the dropout masks, too.
            for stream, state in zip(self._streams(nn), self._random or ()):
                stream.set_value(state)
        values = nn.apply_batch_func(self._function, *self.probe(nn))
        self._random = [stream.get_value() for stream in self._streams(nn)]
        return {name: dict(describe(value, near_zero=1e-6), norm=norm(value))
                for name, value in zip(self._names, values)}

    def _streams(self, nn):
        """Shared variables of the function that are no weights: its random streams."""
        params = set(nn.get_all_params())
        return [variable for variable in self._function.get_shared() if variable not in params]

    def _forget(self):
        super()._forget()
        self._random = None

    def __getstate__(self):
        return dict(super().__getstate__(), _random=None)

    def _graph(self, nn):
        target = nn.y_tensor_type('y')
        if self.of == 'outputs':
            names = self.layers or layers_with_weights(nn)
            wrt, loss = outputs_and_loss(nn, names, target)
        else:
            params = trainable(nn, self.layers)
            names, wrt = list(params), list(params.values())
            loss = nn.objective(nn.layers_, target=target, **nn._get_params_for('objective'))
        gradients = theano.grad(loss, wrt)
        for i, variable in enumerate(wrt):
            scale = getattr(variable.tag, 'grad_scale', 1)
            if scale != 1:
                gradients[i] *= scale
        return names, gradients, target


class UpdateMonitor(Monitor):
    """Record what one batch adds to the weights, beside the weights before it.

    Numbers of a parameter, named ``layer.W`` and so on: `max_weight`, `mean_weight`, `max_update`,
    `mean_update` of the absolute values, and `ratio`, the norm of the update over the norm of the
    weights: not counted (absent) for weights that are all 0.

    A sample needs the weights before and after its batch: a copy of them is kept for that long.
    """
    name = 'updates'

    def on_training_started(self, nn, train_history):
        super().on_training_started(nn, train_history)
        self._remember(nn)

    def on_batch_finished(self, nn, train_history):
        super().on_batch_finished(nn, train_history)
        if self.batches % self.every == 0:  # the next batch is one to look at
            self._remember(nn)

    def look(self, nn):
        before, self._before = self._before, None
        numbers = {}
        for name, param in trainable(nn, self.layers).items():
            weights, update = before[name], param.get_value(borrow=True) - before[name]
            described = numbers[name] = {}
            size = norm(weights)
            if size:
                described['ratio'] = norm(update) / size
            for what, values in (('weight', weights), ('update', update)):
                np.abs(values, out=values)  # both are ours
                described['max_' + what] = float(values.max())
                described['mean_' + what] = float(values.mean())
        return numbers

    def _remember(self, nn):
        self._before = {name: param.get_value()
                        for name, param in trainable(nn, self.layers).items()}

    def _forget(self):
        super()._forget()
        self._before = None

    def __getstate__(self):
        return dict(super().__getstate__(), _before=None)


# -------------------------------------------------------------------------------------- numbers

def describe(values, near_zero):
    """Return the distribution of an array as plain numbers.

    Returns
    -------
    dict
        mean, std, max (of the absolute values), zeros: the share not larger than `near_zero`;
        quantiles (those of `QUANTILES`) and histogram (`counts`, `edges`), both of at most `SUBSET`
        values.  `finite` is False, and quantiles and histogram are missing, if a value is not.
    """
    values = values.ravel()
    absolute = np.abs(values)
    numbers = dict(mean=float(values.mean()), std=float(values.std()), max=float(absolute.max()),
                   zeros=float((absolute <= near_zero).mean()))
    numbers['finite'] = bool(np.isfinite(numbers['max']))
    if numbers['finite']:
        if len(values) > SUBSET:  # the same places each time
            values = values[np.random.RandomState(0).randint(len(values), size=SUBSET)]
        counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
        numbers['quantiles'] = [float(q) for q in np.quantile(values, QUANTILES)]
        numbers['histogram'] = dict(counts=counts.tolist(), edges=edges.tolist())
    return numbers


def norm(values):
    """Euclidean norm of an array of any shape."""
    return float(np.linalg.norm(values.ravel()))


def layers_with_weights(nn):
    """Names of the layers of a net that have trainable parameters, from the input on."""
    return [name for name, layer in nn.layers_.items() if layer.get_params(trainable=True)]


def param_name(layer_name, param):
    """``layer.W``, ``layer.b``, ...: Lasagne's own name, which may lack the layer."""
    return '{}.{}'.format(layer_name, (param.name or 'param').split('.')[-1])


def trainable(nn, layers=None):
    """Parameters that are trained, in these layers or all, by name (`param_name`)."""
    return {param_name(name, param): param for name in layers or layers_with_weights(nn)
            for param in nn.layers_[name].get_params(trainable=True)}


def outputs_and_loss(nn, names, target, **kwargs):
    """Outputs of layers, and the loss made of these very variables, so that it can be derived by them.

    Parameters
    ----------
    nn : NeuralNet
    names : sequence of str
        Of the layers.
    target : Theano variable
    **kwargs
        For the layers and the objective: ``deterministic=True``.

    Returns
    -------
    list of Theano variables, Theano variable
    """
    *outputs, last = get_output([nn.layers_[name] for name in names] + [nn.layers_[-1]], **kwargs)
    settings = nn._get_params_for('objective')
    settings['get_output_kw'] = dict(settings.get('get_output_kw') or {},
                                     inputs={nn.layers_[-1]: last})
    return outputs, nn.objective(nn.layers_, target=target, **settings, **kwargs)


def inputs_of(nn):
    """Inputs of a compiled function, named as nolearn names them."""
    return [theano.In(layer.input_var, name=layer.name) for layer in nn.layers_.values()
            if isinstance(layer, InputLayer)]


def samples(train_history, name):
    """Collect the samples of a monitor ('activations', 'gradients' or 'updates').

    Returns
    -------
    list of dict
        In the order they were taken.

    Raises
    ------
    ValueError
        If the history has none.
    """
    found = [sample for row in train_history for sample in row.get(name, ())]
    if not found:
        raise ValueError(f'The history has no samples of {name}: attach a monitor before training.')
    return found


def series(train_history, name, layer, number):
    """One number of one layer against the epoch: two arrays; NaN where a sample lacks it."""
    found = samples(train_history, name)
    return (np.array([sample['epoch'] for sample in found]),
            np.array([sample['layers'][layer].get(number, np.nan) for sample in found]))


# -------------------------------------------------------------------------------------- figures

def colors_of(names):
    """A colour for each layer, from dark (first) to light (last): readable in grey, too."""
    return dict(zip(names, colormaps['viridis'](np.linspace(0, 0.9, len(names)))))


def plot_activations(train_history):
    """Draw mean and spread, share near zero, and share saturated or dead against the epoch.

    Returns
    -------
    matplotlib Figure
    """
    names = list(samples(train_history, 'activations')[0]['layers'])
    fig, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout='constrained')
    for name, color in colors_of(names).items():
        def curve(number):
            return series(train_history, 'activations', name, number)
        epoch, std = curve('std')
        axes[0].plot(epoch, std, color=color, label=name)
        axes[1].plot(epoch, 100 * curve('zeros')[1], color=color)
        for number, style in (('dead', '-'), ('saturated', '--')):
            axes[2].plot(epoch, 100 * curve(number)[1], style, color=color)
    axes[0].set(ylabel='standard deviation of the activations', yscale='log')
    axes[1].set(ylabel='activations within 0.001 of zero (%)', ylim=(-2, 102))
    axes[2].set(ylabel='solid: dead ReLU units, dashed: saturated (%)', ylim=(-2, 102))
    _finish(fig, axes, 'Activations')
    return fig


def plot_gradients(train_history):
    """Draw the norm and the largest value of each layer's gradient against the epoch.

    Of parameters, the weights are drawn and the biases left out.

    Returns
    -------
    matplotlib Figure
    """
    fig, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout='constrained')
    for name, color in colors_of(_weights(samples(train_history, 'gradients'))).items():
        for axis, number in zip(axes, ('norm', 'max')):
            epoch, values = series(train_history, 'gradients', name, number)
            axis.plot(epoch, np.where(values > 0, values, np.nan), color=color, label=name)
    axes[0].set(ylabel='norm of the gradient', yscale='log')
    axes[1].set(ylabel='largest absolute gradient', yscale='log')
    _finish(fig, axes, 'Gradients of the training loss')
    return fig


def plot_updates(train_history, param=None):
    """Draw slide "Monitoring weights/update ratio".

    Parameters
    ----------
    param : str, optional
        The parameter whose largest and mean weights and updates are drawn; the first layer's W, as
        on the slide, if not given.

    Returns
    -------
    matplotlib Figure
    """
    names = _weights(samples(train_history, 'updates'))
    param = param or names[0]
    if param not in samples(train_history, 'updates')[0]['layers']:
        raise ValueError(f'{param} is not among the parameters {", ".join(names)}.')
    fig, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout='constrained')
    for axis, what in zip(axes, ('weight', 'update')):
        for number, style in (('max', '-'), ('mean', '--')):
            epoch, values = series(train_history, 'updates', param, number + '_' + what)
            axis.plot(epoch, values, style, color='black', label=number)
        axis.set(ylabel=f'absolute {what}s of {param}', yscale='log')
        axis.legend()
    for name, color in colors_of(names).items():
        epoch, values = series(train_history, 'updates', name, 'ratio')
        axes[2].plot(epoch, values, color=color, label=name)
    axes[2].axhline(1e-3, color=RED, linestyle=':', label='1e-3')
    axes[2].set(ylabel='norm of the update / norm of the weights', yscale='log')
    _finish(fig, axes, 'Weights and their updates', axes[2])
    return fig


def plot_histograms(train_history, name='activations', epochs=None, nonzero=True):
    """Draw the distributions of all layers at some moments, as in Glorot and Bengio's figures.

    Parameters
    ----------
    name : {'activations', 'gradients'}
    epochs : sequence of float, optional
        The samples next to these are drawn, a panel each; the first, the middle and the last one
        if not given.
    nonzero : bool
        Leave out the bin at zero of layers that are zero for more than a fifth, or a ReLU's zeros
        would hide everything else.

    Returns
    -------
    matplotlib Figure
    """
    found = samples(train_history, name)
    at = np.array([sample['epoch'] for sample in found])
    if epochs is None:
        chosen = sorted({0, len(found) // 2, len(found) - 1})
    else:
        chosen = [int(np.abs(at - epoch).argmin()) for epoch in epochs]
    fig, axes = pyplot.subplots(1, len(chosen), figsize=(4.3 * len(chosen), 4.2), squeeze=False,
                                layout='constrained')
    colors = colors_of(_weights(found))
    for axis, index in zip(axes[0], chosen):
        for layer, color in colors.items():
            described = found[index]['layers'][layer]
            if 'histogram' in described:
                draw_histogram(axis, described, color, layer, nonzero)
        axis.set(title=f'epoch {at[index]:.1f}', xlabel=name.rstrip('s'))
    axes[0, 0].set_ylabel('density (1 at the highest)')
    axes[0, -1].legend(fontsize='small')
    return fig


def draw_histogram(axis, described, color, label, nonzero=True):
    """Draw one layer's histogram, scaled to 1 at its highest."""
    counts = np.array(described['histogram']['counts'], float)
    edges = np.array(described['histogram']['edges'])
    if nonzero and described['zeros'] > 0.2:
        counts[(edges[:-1] <= 0) & (edges[1:] >= 0)] = np.nan
    if np.nanmax(counts, initial=0) > 0:
        axis.plot((edges[:-1] + edges[1:]) / 2, counts / np.nanmax(counts), color=color,
                  label=label, drawstyle='steps-mid')


def _weights(found):
    """Names in the samples, without biases where there are weights."""
    names = list(found[0]['layers'])
    return [name for name in names if name.endswith('.W')] or names


def _finish(fig, axes, title, legend=None):
    for axis in axes:
        axis.set_xlabel('epoch')
        axis.grid(alpha=0.4)
    (legend or axes[0]).legend(fontsize='small')
    fig.suptitle(title)


# -------------------------------------------------------------------------------------- verdict

VANISHING = 1e-2        # norm of the first layer's gradient over the largest of all layers
EXPLODING = 0.1         # ratio of update to weights: steps as long as the way come soon
STANDING = 1e-5         # ratio of update to weights: the layer hardly moves
SILENT = 1e-2           # standard deviation of the outputs over that of the first layer
HALF = 0.5              # share of units, dead or saturated
PLATEAU = 0.01          # relative fall of the training loss over the last fifth of the epochs


def attach_all(net, **settings):
    """Let an activation, a gradient and an update monitor watch a net; return the net."""
    for monitor in ActivationMonitor, GradientMonitor, UpdateMonitor:
        monitor(**settings).attach(net)
    return net


def verdict(train_history):
    """Say in words what the monitors saw over the last fifth of the samples.

    Returns
    -------
    list of str
        A line for each finding, with the numbers that led to it; one reassuring line if there is
        none.  Monitors that were not attached are not asked.
    """
    lines = []
    for name, judge in (('activations', _judge_activations), ('gradients', _judge_gradients),
                        ('updates', _judge_updates)):
        if any(name in row for row in train_history):
            found = samples(train_history, name)
            lines += judge(found[-max(len(found) // 5, 1):])
    lines += _judge_loss([row['train_loss'] for row in train_history])
    return lines or ['Nothing vanishes, explodes, saturates, dies or stands still in '
                     f'{len(train_history)} epochs.']


def _medians(found, number):
    """Median of a number over the samples, by layer; layers that lack it are left out."""
    medians = {}
    for layer in found[0]['layers']:
        values = [sample['layers'][layer].get(number, np.nan) for sample in found]
        if not np.isnan(values).all():
            medians[layer] = float(np.nanmedian(values))
    return medians


def _judge_activations(found):
    lines = []
    for layer, share in _medians(found, 'dead').items():
        if share > HALF:
            lines.append(
                f'dead ReLUs: {share:.0%} of the units of {layer} give 0 for the whole batch.')
    for layer, share in _medians(found, 'saturated').items():
        if share > HALF:
            lines.append(f'saturated: {share:.0%} of the outputs of {layer} are at their bounds.')
    spread = _medians(found, 'std')
    first = next(iter(spread))
    for layer, std in spread.items():
        if std < SILENT * spread[first]:
            lines.append(f'silent: the outputs of {layer} have a deviation of {std:.1e}, those of '
                         f'{first} {spread[first]:.1e}.')
    return lines


def _judge_gradients(found):
    bad = next((sample for sample in found
                for described in sample['layers'].values() if not described['finite']), None)
    if bad:
        return [f'exploding: a gradient is not finite at epoch {bad["epoch"]:.1f}.']
    norms = _medians(found, 'norm')
    norms = {name: norms[name] for name in _weights(found)}
    first, largest = next(iter(norms)), max(norms, key=norms.get)
    if norms[largest] == 0:
        return ['vanishing: all gradients are 0.']
    if norms[first] < VANISHING * norms[largest]:
        return [f'vanishing: the gradient of {first} has a norm of {norms[first]:.1e}, that of '
                f'{largest} {norms[largest]:.1e}.']
    return []


def _judge_updates(found):
    lines = []
    ratios = _medians(found, 'ratio')
    for name in _weights(found):
        if not ratios.get(name, 1e-3) < EXPLODING:  # not finite, too
            lines.append(f'exploding: an update changes {name} by {ratios[name]:.0%} of its norm; '
                         '0.1 % is usual.')
        elif ratios.get(name, 1e-3) < STANDING:
            lines.append(f'standing still: an update changes {name} by {ratios[name]:.1e} of its '
                         'norm; 1e-3 is usual.')
    return lines


def _judge_loss(losses):
    if not np.isfinite(losses[-1]):
        return [f'exploding: the training loss is {losses[-1]} at epoch {len(losses)}.']
    if len(losses) < 10:
        return []  # too few epochs to call anything a plateau
    recent = losses[-max(len(losses) // 5, 2):]
    fall = 1 - np.mean(recent[len(recent) // 2:]) / np.mean(recent[:len(recent) // 2])
    if fall < PLATEAU:
        return [f'plateau: the training loss fell by {fall:.1%} in the last {len(recent)} epochs, '
                f'to {losses[-1]:.3g}.']
    return []
