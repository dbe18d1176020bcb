"""Find 15 points in faces: Daniel Nouri's kfkd.py tutorial, as the deck has it, on today's Python.

Without Kaggle's files in data/ (see data/README.md) it draws faces and uses these, in minutes.  To
run an experiment, edit the constants in kfkd.py and run again.  From another program:

    import kfkd
    kfkd.MAX_EPOCHS = 50
    kfkd.fit()

Stop a training when you like (Ctrl-C, kill): the same command goes on where it stopped, from the
checkpoint that is written every few minutes, and ends in the same net, bit for bit.
"""
import os
import sys
from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

if __name__ == '__main__':
    try:
        import kfkd     # as a module, so that pickles name classes of kfkd, not of __main__
    except ImportError as error:
        sys.exit(f'kfkd.py: {error}')
    sys.exit(kfkd.main())

import theano_today  # noqa: F401, first of all: it prepares Python for the packages below

import lasagne
import numpy as np
import theano
from lasagne import layers
from lasagne.layers import Conv2DLayer, MaxPool2DLayer
from matplotlib import pyplot
from nolearn.lasagne import NeuralNet, TrainSplit
from sklearn.base import clone
from sklearn.utils import shuffle

from beyond import figures, monitors
from beyond.augmentation import FaceBatchIterator, augmented
from beyond.runs import command, compare, experiment, net_files, record
from beyond.runs.training import Training, check_jobs, count, remove_checkpoints
from data import make_faces, photos, tables
from data.tables import COLUMNS, xy
from theano_today.nets import files
from theano_today.nets.files import FileError as DataError  # noqa: F401, what programs catch
from theano_today.nets.parallel import side_by_side
from theano_today.nets.progress import TimeLeft

# ---------------------------------------------------------------------------- constants to edit

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data')
FTRAIN = os.path.join(DATA, 'training.csv')        # 30 label columns and Image
FTEST = os.path.join(DATA, 'test.csv')             # ImageId and Image
FLOOKUP = os.path.join(DATA, 'IdLookupTable.csv')  # which point of which face Kaggle asks for
FTESTLABELS = None              # a file of true test labels to score against; Kaggle gives none
MAX_EPOCHS = 3000               # epochs of the first net at most (deck: 3000)
PATIENCE = 200                  # epochs without a better validation loss before stopping (200)
BATCH_SIZE = 128                # faces a batch (128)
EVAL_SIZE = 0.2                 # share of the faces kept for validation (0.2); 0: none
GAPS = False                    # learn from faces that lack points, too; the loss must know (False)
LEARNING_RATE = 0.03, 0.0001    # at the first and at the last epoch (.03, .0001)
MOMENTUM = 0.9, 0.999           # at the first and at the last epoch (.9, .999)
SPECIALIST_SAMPLES = 4e6        # faces a specialist sees in its training (4e6)
SPECIALIST_RATE = 1             # share of LEARNING_RATE with which specialists are fine-tuned (1)
DROPOUT = 0.1, 0.2, 0.3, 0.5    # share of units left out in training, behind layers 1 to 4 (same)
AUGMENT = None                  # None: flips only. 'faces', 'deck': beyond.augmentation's PRESETS
MIRROR = False                  # predict the mean of a face's points and its mirror image's (False)
ALIGN = False                   # look again, at faces turned to lie as the mean face does (False)
MONITOR = False                 # record activations, gradients and updates (beyond.monitors)
NET = None                      # what --config says of the net, other than the deck's
STANDARDIZE = False             # inputs of mean 0 and deviation 1: no plateau at the start (False)
SEED = 42                       # of weights, dropout and flips; same seed, data, threads: same net
VERBOSE = 1                     # nolearn's: 0 is silent, 1 prints a row an epoch, 2 tells more
CHECKPOINT_MINUTES = 5          # from one checkpoint of a training to the next
JOBS = 1                        # specialists trained at a time, by Dask; -1: as many as cores

# Files written, in the folder you are in:
FNET, FSPECIALISTS, FSUBMISSION = 'net.pickle', 'net-specialists.pickle', 'submission-{time}.csv'
FFACES, FCURVES = 'training-faces.png', 'learning-curves.png'
FPREDICTIONS, FCOMPARE, FREPORT = 'test-predictions.png', 'compare.png', 'report-{name}.html'
FMARKED, FPOINTS = '{name}-marked.png', 'points.csv'    # of photographs
FCHECKPOINT = 'checkpoint-{name}.npz'   # while there is a training to go on with
RUNS = 'runs'                   # a run that trains leaves a record in this folder; None: no record
TENSORBOARD = None              # folder for TensorBoard's event files; None: none
LARGEST_TABLE = 4e9             # bytes of a CSV file; Kaggle's have 0.24e9
TRUSTED = ()                    # classes and functions of your own that pickled nets may refer to

DECK = dict(                    # the deck's constants, whatever you have set above
    MAX_EPOCHS=3000, PATIENCE=200, BATCH_SIZE=128, EVAL_SIZE=0.2, LEARNING_RATE=(0.03, 0.0001),
    MOMENTUM=(0.9, 0.999), SPECIALIST_SAMPLES=4e6, SPECIALIST_RATE=1, AUGMENT=None, MONITOR=False,
    DROPOUT=(0.1, 0.2, 0.3, 0.5), NET=None, STANDARDIZE=False, SEED=42, GAPS=False, MIRROR=False,
    ALIGN=False)
DRAWN = os.path.join(DATA, 'faces')
DRAWN_ROWS = 6000, 500          # drawn faces for training (some 80 % with all points), for testing
DRAWN_CONSTANTS = dict(         # what a run of minutes on them has where you have left the deck's
    NET=dict(conv1_num_filters=16, conv1_filter_size=(5, 5), conv1_stride=(2, 2),
             conv2_num_filters=32, conv2_filter_size=(3, 3), conv3_num_filters=64,  # 17x as fast
             conv3_filter_size=(3, 3), hidden4_num_units=300, hidden5_num_units=300),
    MAX_EPOCHS=150, BATCH_SIZE=16, LEARNING_RATE=(0.15, 0.001), MOMENTUM=(0.9, 0.98),  # big steps,
    STANDARDIZE=True, DROPOUT=(0, 0, 0, 0), AUGMENT='faces',  # no plateau, little learned by heart
    SPECIALIST_SAMPLES=90000, SPECIALIST_RATE=0.5, MIRROR=True)


def constants(for_the_data=True):
    """Return the constants as they are now; where there are only drawn faces, those for them."""
    c = SimpleNamespace(**{name: value for name, value in globals().items() if name.isupper()})
    kaggles = FTRAIN != os.path.join(DATA, 'training.csv') or tables.are_there(FTRAIN, FTEST)
    return c if kaggles or not for_the_data else make_faces.in_place_of_kaggles(c)


# ----------------------------------------- slides "Data Exploration + Validation", "Pre-Processing"
# Count before you train: two thirds of Kaggle's faces lack points, and a net learns from whole rows
# only.  Small numbers of one size, in random order, are what gradient descent does best with.

def load(test=False, cols=None, fname=None):
    """Load the faces of FTRAIN, FTEST or another file, with all label columns or those in `cols`.

    Returns
    -------
    X : ndarray of float32, shape (n, 9216)
        Pixels in [0, 1].
    y : ndarray of float32, shape (n, number of columns), or None if `test`
        Positions in [-1, 1] from the left (x) or top (y) edge to the other: (pixels - 48) / 48.
    """
    c = constants()
    fname = fname or (c.FTEST if test else c.FTRAIN)
    df = tables.read_faces(fname, c.LARGEST_TABLE)  # a pandas dataframe; prints what is odd
    record.note_data(fname, rows=len(df))
    if cols:  # get a subset of columns
        df = tables.select(df, cols, fname)
    print(df.count())  # prints the number of values for each column
    df = df.dropna(subset=df.columns[:-1], how='all' if c.GAPS else 'any')  # whole rows, or some
    tables.check_rows(df, fname)
    X = np.vstack(df['Image'].values).astype(np.float32)
    X /= 255.  # scale pixel values to [0, 1]
    if test:
        return X, None
    y = df[df.columns[:-1]].values  # only FTRAIN has any target columns
    y = (y - 48) / 48  # scale target coordinates to [-1, 1]
    X, y = shuffle(X, y, random_state=42)  # shuffle train data
    return X, y.astype(np.float32)


def load2d(test=False, cols=None, fname=None):
    """Load as `load` does, with X of shape (n, 1, 96, 96): what a convolution takes."""
    X, y = load(test, cols, fname)
    return X.reshape(-1, 1, 96, 96), y


def plot_sample(x, y, axis):
    """Draw a face, 9216 pixels in [0, 1], and its points, x and y in turn in [-1, 1]."""
    figures.plot_face(x.reshape(96, 96), y * 48 + 48, axis)


# -------------------------------------------------- slides "Batch", "Horizontal Flip Perturbation"
# A step of gradient descent sees a batch, not all faces: many steps in an epoch.  A mirrored face
# is a face, too: twice the data for nothing, and less overfitting.

class FlipBatchIterator(FaceBatchIterator):
    """Mirror a random half of each batch; `flip_indices` are the columns that change places then.

    In a copy: the batch is a view of the training faces, in which the flips would pile up.
    """

    flip_indices = [(0, 2), (1, 3), (4, 8), (5, 9), (6, 10), (7, 11), (12, 16), (13, 17), (14, 18),
                    (15, 19), (22, 24), (23, 25)]

    def transform(self, Xb, yb):
        Xb, yb = super().transform(Xb, yb)
        # Flip half of the images in this batch at random:
        bs = Xb.shape[0]
        indices = self.random.choice(bs, bs // 2, replace=False)
        Xb = Xb.copy()
        Xb[indices] = Xb[indices, :, :, ::-1]

        if yb is not None:
            yb = yb.copy()
            # Horizontal flip of all x coordinates:
            yb[indices, ::2] = yb[indices, ::2] * -1

            # Swap places, e.g. left_eye_center_x -> right_eye_center_x
            for a, b in self.flip_indices:
                yb[indices, a], yb[indices, b] = yb[indices, b], yb[indices, a]

        return Xb, yb


# ------------------------------------------------- slide "Adjusting Learning Rate & Momentum"
# Large steps find the valley, small ones its floor; momentum grows as the direction gets surer.

class AdjustVariable:
    """Change a shared variable of the net linearly, from `start` to `stop` in its `max_epochs`."""

    def __init__(self, name, start=0.03, stop=0.001):
        self.name = name
        self.start, self.stop = start, stop

    def __call__(self, nn, train_history):
        ls = np.linspace(self.start, self.stop, nn.max_epochs)
        epoch = min(train_history[-1]['epoch'], nn.max_epochs)  # a second `fit` stays at `stop`
        new_value = np.float32(ls[epoch - 1])
        getattr(nn, self.name).set_value(new_value)


# ---------------------------------------------------------------------- slide "Convergence Tuning"
# The training loss falls for ever; the validation loss says when the net begins to learn by heart.

class EarlyStopping:
    """Stop after `patience` epochs without a better validation loss; give the best weights back."""

    def __init__(self, patience=100):
        self.patience = patience
        self.start()

    def start(self, epoch=0):
        """Forget earlier training, whose losses may be of other data, at the end of `epoch`."""
        self.best_valid = np.inf
        self.best_valid_epoch = epoch
        self.best_weights = None
        self.ended = False

    def __call__(self, nn, train_history):
        current_valid = train_history[-1]['valid_loss']
        current_epoch = train_history[-1]['epoch']
        if getattr(self, 'ended', True):  # this is a second `fit`
            self.start(current_epoch - 1)
        if self.on_training_finished not in nn.on_training_finished:  # nolearn looks at the end
            nn.on_training_finished.insert(0, self.on_training_finished)
        if current_valid < self.best_valid:
            self.best_valid = current_valid
            self.best_valid_epoch = current_epoch
            self.best_weights = nn.get_all_params_values()
        elif self.best_weights and self.best_valid_epoch + self.patience < current_epoch:
            print("Early stopping.")
            print(f"Best valid loss was {self.best_valid:.6f} at epoch {self.best_valid_epoch}.")
            raise StopIteration()

    def on_training_finished(self, nn, train_history):  # also at the last epoch, or Ctrl-C
        for name, values in (self.best_weights or {}).items():
            for param, value in zip(nn.layers_[name].get_params(), values):
                param.set_value(value)
        self.ended = True

    def __getstate__(self):  # the net that is pickled has these weights
        return dict(vars(self), best_weights=None, ended=True)


# ---------------------------------------------------------------------- slide "Layers Definition"
# Convolutions look for the same patterns everywhere, pooling makes them few and robust, dropout
# keeps units from relying on each other, dense layers put the patterns together to positions.

def build_net(c=None):
    """Return the deck's net, 16,561,502 parameters, with the constants as they are now or `c`."""
    c = c or constants(for_the_data=False)
    p1, p2, p3, p4 = c.DROPOUT
    model = NeuralNet(
        layers=[
            ('input', layers.InputLayer),
            ('conv1', Conv2DLayer), ('pool1', MaxPool2DLayer), ('dropout1', layers.DropoutLayer),
            ('conv2', Conv2DLayer), ('pool2', MaxPool2DLayer), ('dropout2', layers.DropoutLayer),
            ('conv3', Conv2DLayer), ('pool3', MaxPool2DLayer), ('dropout3', layers.DropoutLayer),
            ('hidden4', layers.DenseLayer), ('dropout4', layers.DropoutLayer),
            ('hidden5', layers.DenseLayer), ('output', layers.DenseLayer),
        ],
        input_shape=(None, 1, 96, 96),
        conv1_num_filters=32, conv1_filter_size=(3, 3), pool1_pool_size=(2, 2), dropout1_p=p1,
        conv2_num_filters=64, conv2_filter_size=(2, 2), pool2_pool_size=(2, 2), dropout2_p=p2,
        conv3_num_filters=128, conv3_filter_size=(2, 2), pool3_pool_size=(2, 2), dropout3_p=p3,
        hidden4_num_units=1000, dropout4_p=p4, hidden5_num_units=1000,
        output_num_units=30, output_nonlinearity=None,

        update_learning_rate=theano.shared(np.float32(c.LEARNING_RATE[0])),
        update_momentum=theano.shared(np.float32(c.MOMENTUM[0])),
        regression=True, max_epochs=c.MAX_EPOCHS, verbose=c.VERBOSE,
        batch_iterator_train=(FlipBatchIterator if c.AUGMENT is None else augmented(c.AUGMENT))(
            batch_size=c.BATCH_SIZE, seed=c.SEED),
        batch_iterator_test=FaceBatchIterator(batch_size=c.BATCH_SIZE),
        train_split=TrainSplit(eval_size=c.EVAL_SIZE),
        on_epoch_finished=[
            AdjustVariable('update_learning_rate', *c.LEARNING_RATE),
            AdjustVariable('update_momentum', *c.MOMENTUM),
            EarlyStopping(patience=c.PATIENCE), TimeLeft(),
        ],
    )
    model = experiment.changed(model, c.NET)
    return monitors.attach_all(model) if c.MONITOR else model


net = build_net()


# --------------------------------------------------------------------------------- slide "Fit"
# nolearn's `fit` loops over epochs and batches: forward, loss, backward, update; then over the
# validation batches, forward only, for that is how good the net is on faces it has not learned.

def fit(fname_pretrain=None, keep_checkpoint=False):
    """Train the net on all 30 labels and write it to FNET; return it.

    It starts from the weights of the net in `fname_pretrain`, but for layers of another shape.
    With `keep_checkpoint`, calling it again gives the same net at once: for longer programs.
    """
    global net
    c = constants()
    files.check_writable(FNET)
    files.check_free(FCHECKPOINT.format(name='net'))  # or another process is training this net
    net_pretrain = net_files.single(load_nets, fname_pretrain)  # None: random weights
    X, y = load2d()
    tables.check_columns(c.FTRAIN)
    tables.check_enough(X, c.EVAL_SIZE, c.FTRAIN)
    figures.write_page(X, y, plot_sample, FFACES, '16 training faces and their 15 points')

    lasagne.random.set_rng(np.random.RandomState(c.SEED))
    net = build_net(c)
    net.columns_ = COLUMNS
    FaceBatchIterator.standardize(net, c.STANDARDIZE, X, net_pretrain)
    if net_pretrain is not None:
        net.load_params_from(net_pretrain)
    training = Training('net', COLUMNS, c)
    with training.checkpointed(net, X, y):
        net.fit(X, y)
    net_files.save(net, FNET)
    training.raise_if_stopped()  # now that the best weights so far are saved
    if not keep_checkpoint:
        remove_checkpoints(FCHECKPOINT, 'fit')
    return net


def load_nets(fname):
    """Unpickle nets of this module's classes, of those that `build_net` now uses, of TRUSTED."""
    return net_files.load(fname, [AdjustVariable, EarlyStopping, FlipBatchIterator,
                                  *net_files.parts_of(build_net()), *TRUSTED])


# ------------------------------------------------------------------ slide "Fine Tune Pre-Trained"
# A specialist needs fewer points, so more faces have all of its points; what the first net has
# learned of faces is worth more than random weights.

SPECIALIST_SETTINGS = [
    dict(columns=xy('left_eye_center', 'right_eye_center'), flip_indices=((0, 2), (1, 3))),
    dict(columns=xy('nose_tip'), flip_indices=()),
    dict(columns=xy('mouth_left_corner', 'mouth_right_corner', 'mouth_center_top_lip'),
         flip_indices=((0, 2), (1, 3))),
    dict(columns=xy('mouth_center_bottom_lip'), flip_indices=()),
    dict(columns=xy('left_eye_inner_corner', 'right_eye_inner_corner',
                    'left_eye_outer_corner', 'right_eye_outer_corner'),
         flip_indices=((0, 2), (1, 3), (4, 6), (5, 7))),
    dict(columns=xy('left_eyebrow_inner_end', 'right_eyebrow_inner_end',
                    'left_eyebrow_outer_end', 'right_eyebrow_outer_end'),
         flip_indices=((0, 2), (1, 3), (4, 6), (5, 7))),
]   # also kwargs, such as kwargs=dict(dropout2_p=0.3): what its net has other than the first one


def fit_specialists(fname_pretrain=None, keep_checkpoint=False):
    """Fine-tune a net for each group of columns and write all to FSPECIALISTS, by their columns.

    They start from the weights of the net in `fname_pretrain`, as `fit` writes it, but for the
    output layer.  They are trained one by one, or JOBS at a time, which leads to the same bits.
    """
    c = constants()
    c.LEARNING_RATE = tuple(c.SPECIALIST_RATE * rate for rate in c.LEARNING_RATE)
    files.check_writable(FSPECIALISTS)
    check_jobs(c.JOBS)
    net_pretrain = net_files.single(load_nets, fname_pretrain)  # None: random weights

    def prepare(number, setting):
        X, y = load2d(cols=setting['columns'])
        tables.check_enough(X, c.EVAL_SIZE, c.FTRAIN)
        lasagne.random.set_rng(np.random.RandomState(c.SEED))
        model = clone(build_net(c))
        model.output_num_units = y.shape[1]
        model.batch_iterator_train.flip_indices = setting['flip_indices']
        # set number of epochs relative to number of training examples:
        model.max_epochs = max(int(c.SPECIALIST_SAMPLES / y.shape[0]), 1)
        model.set_params(**setting.get('kwargs', {}))
        FaceBatchIterator.standardize(model, c.STANDARDIZE, X, net_pretrain)
        count(model, number, len(SPECIALIST_SETTINGS))  # for what it says of the time left
        return model, X, y

    specialists = OrderedDict()
    # Trained side by side, specialists leave finished checkpoints, which the loop takes over.
    trainings = [Training(f'specialist-{number}', setting['columns'], c,
                          partial(prepare, number, setting), net_pretrain)
                 for number, setting in enumerate(SPECIALIST_SETTINGS, 1)]
    for training in side_by_side(trainings, c.JOBS, 48, 'pixels', c.VERBOSE):
        model, X, y, _ = training.prepare()
        if net_pretrain is not None:
            # if a pretrain model was given, use it to initialize the weights of our new model:
            model.load_params_from(net_pretrain)

        print(f"Training model for columns {training.columns} for {model.max_epochs} epochs")
        with training.checkpointed(model, X, y):
            model.fit(X, y)
        training.raise_if_stopped()
        specialists[training.columns] = model

    net_files.save(specialists, FSPECIALISTS)
    if not keep_checkpoint:
        remove_checkpoints(FCHECKPOINT, 'fit_specialists')
    return specialists


# --------------------------------------------------------------------------------- slide "Flow"
# What it is all for: the points of faces that no net has seen.

def predict(fname_specialists='net-specialists.pickle', *fnames):
    """Mark the test faces' points, the mean of several files, and write what Kaggle wants of them."""
    c = constants()
    nets = {f: net_files.by_columns(load_nets(f), f) for f in (fname_specialists, *fnames)}

    X = load2d(test=True)[0]
    y_pred = net_files.predict_mean(nets, X, c.MIRROR, align=c.ALIGN)
    df = (y_pred * 48 + 48).clip(0, 96).set_axis(tables.image_ids(c.FTEST))
    figures.write_page(X, y_pred.values, plot_sample, FPREDICTIONS,
                       '16 test faces and the points found in them')
    if c.FTESTLABELS:
        record.note_result(**tables.score(df, c.FTESTLABELS, c.FTEST, c.FTRAIN))
    submission = tables.look_up(df, c.FLOOKUP, c.FTEST)
    record.keep(tables.write_submission(submission, FSUBMISSION))
    return submission


# ---------------------------------------------------------------------- slide "Tutorial", the goal
# A photograph is turned and scaled until its faces lie as those do that the net has learned.

def mark(image, smallest=photos.SMALLEST):
    """Mark the faces in an image, an array of grey, RGB or RGBA, with FSPECIALISTS, FNET or our own.

    Returns `data.photos.Faces`.  Those narrower than `smallest` times the image are not found.
    """
    nets, fname = net_files.kept(load_nets, FSPECIALISTS, FNET, own=photos.NET)

    def predict_pixels(X, columns):
        mirror = MIRROR or fname == photos.NET  # ours is small: it can be asked twice
        return net_files.predict(nets, X, fname, mirror, columns).values * 48 + 48
    return photos.mark(image, predict_pixels, smallest, at_pupils=True)


# ------------------------------------------------------------------------ slide "Learning Curves"

def plot_learning_curves(fname_specialists='net-specialists.pickle'):
    """Draw the RMSE in pixels of each net against its training: solid validation, dashed training.

    Specialists train for different numbers of epochs, so the axis is the share of each one's
    training; the red curve is their mean, weighted by the number of columns.
    """
    models = net_files.by_columns(load_nets(fname_specialists), fname_specialists)

    fig, ax = pyplot.subplots(figsize=(10, 7), layout='constrained')
    share = np.linspace(1, 100, 100)  # of each net's training, in percent
    valid_losses = []
    for (cg, model), color in zip(models.items(), figures.NETS * len(models)):
        with net_files.usable(fname_specialists):
            done, valid_loss, train_loss = net_files.curves(model, scale=48)
        ax.plot(done, valid_loss, color=color, linewidth=3,
                label='{} ({}), {} epochs'.format(cg[0], len(cg), len(done)))
        ax.plot(done, train_loss, color=color, linestyle='--', linewidth=3, alpha=0.6)
        valid_losses.append(np.interp(share, done, valid_loss, left=np.nan))

    weights = np.array([len(cg) for cg in models], dtype=float)
    weights /= weights.sum()
    mean_valid_loss = (np.vstack(valid_losses) * weights.reshape(-1, 1)).sum(axis=0)
    if len(models) > 1:
        ax.plot(share, mean_valid_loss, color=figures.RED, label='mean', linewidth=4, alpha=0.8)
    ax.set(xlabel="share of the training done (%)", ylabel="RMSE (pixels)")
    figures.write_curves(fig, ax, FCURVES, lowest=1.0, highest=4.0)


# ------------------------------------------------------------------------ slide "Part 1 Summary"

def run():
    fit(keep_checkpoint=True)  # train your first model
    fit_specialists(FNET, keep_checkpoint=True)  # train specialists, initialize weights from it
    plot_learning_curves(FSPECIALISTS)
    predict(FSPECIALISTS)  # make predictions to submit to Kaggle
    remove_checkpoints(FCHECKPOINT)  # not before the last step has succeeded


def main(argv=None):
    """Do what the command line says; return the exit status."""
    args = command.parse(argv, 'kfkd.py', __doc__, run, {  # function, what it takes, default, help
        'fit': (fit, '[NET]', None, 'train the first net, from the weights of another or none'),
        'fit_specialists': (fit_specialists, 'NET', FNET, 'fine-tune six specialists from it'),
        'plot_learning_curves': (plot_learning_curves, 'NETS', FSPECIALISTS, 'draw RMSE and epoch'),
        'predict': (predict, 'NETS...', FSPECIALISTS, 'mark the test faces, write a submission'),
        'mark': (lambda *fnames: command.mark(fnames, mark, FMARKED, FPOINTS), 'PHOTO...', None,
                 'mark the faces in photographs'),
        'compare': (lambda *runs: compare.compare(runs, FCOMPARE, 48, 'pixels'), 'RUN...', None,
                    'tell runs apart by their records'),
        'report': (lambda run: command.report(run, load_nets, load2d, constants(False)),
                   'RUN', None, 'show a run on one page'),
        'config': (lambda fname: experiment.write_program(fname, constants(False), build_net()),
                   'FILE', None, 'write constants and net for --config')})
    with command.exit_status('kfkd.py') as status:
        files.remove_leftovers(*command.patterns(globals()))
        globals().update(experiment.constants(args.config, globals(), args.set, net=build_net()))
        if args.fresh:
            remove_checkpoints(FCHECKPOINT, args.step)
        with record.Record(RUNS, args.step or 'all', constants, __file__, argv):
            args.function(*args.arguments)
    return status()
