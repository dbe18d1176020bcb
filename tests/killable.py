"""Run kfkd on a net that trains in a second, in processes that tests start, stop and kill.

    python tests/killable.py DATA

reads runs from standard input, one JSON object a line: folder, argv (of kfkd.py), set (constants of
kfkd), and the other arguments of `run`.  For each run it prints one JSON object: the exit status, the time
of the kill, what was printed, and the number of training steps.

Each run is forked from this process, which has imported everything: a start takes no time, and nothing
else is shared.  The environment must have OMP_NUM_THREADS=1, as threads do not survive a fork.
"""
import glob
import json
import os
import resource
import signal
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import kfkd  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from beyond.runs import training  # noqa: E402
from lasagne import layers  # noqa: E402
from nolearn.lasagne import NeuralNet  # noqa: E402
from theano_today.nets import checkpoint  # noqa: E402


def log(folder):
    """The file with the steps of the trainings in a folder; beside it, as its disk may be full.

    It has a line for every training step that was computed: S, its time, the number of labels, epoch
    and batch; and for every checkpoint: W, when the next one is due, and the same three numbers.
    """
    return os.path.abspath(str(folder)) + '.steps'


def write_faces(folder, rows=60):
    """Write a data set of noise in the contest's format: what is learned does not matter here."""
    rng = np.random.RandomState(0)
    table = pd.DataFrame(rng.uniform(10, 86, (rows, 30)).round(3), columns=kfkd.COLUMNS)
    table.iloc[rows * 2 // 3:, 4:20] = np.nan
    table['Image'] = [' '.join(map(str, image)) for image in rng.randint(0, 256, (rows, 9216))]
    table.to_csv(os.path.join(folder, 'training.csv'), index=False)
    pd.DataFrame({'ImageId': [1, 2], 'Image': table['Image'][:2]}).to_csv(
        os.path.join(folder, 'test.csv'), index=False)
    pd.DataFrame({'RowId': [1, 2], 'ImageId': [1, 2], 'FeatureName': ['nose_tip_x', 'nose_tip_y'],
                  'Location': ''}).to_csv(os.path.join(folder, 'IdLookupTable.csv'), index=False)


def small(build_net):
    """Return a function that builds the deck's net, with few layers and units."""
    def build(c=None):
        deck = build_net(c)
        settings = {name: getattr(deck, name) for name in (
            'update_learning_rate', 'update_momentum', 'batch_iterator_train',
            'batch_iterator_test', 'train_split', 'on_training_finished', 'max_epochs')}
        return NeuralNet(
            layers=[('input', layers.InputLayer), ('first', layers.MaxPool2DLayer),
                    ('conv1', layers.Conv2DLayer), ('pool1', layers.MaxPool2DLayer),
                    ('dropout1', layers.DropoutLayer), ('hidden4', layers.DenseLayer),
                    ('dropout4', layers.DropoutLayer), ('output', layers.DenseLayer)],
            input_shape=(None, 1, 96, 96), first_pool_size=(6, 6), conv1_num_filters=8,
            conv1_filter_size=(3, 3), pool1_pool_size=(2, 2), dropout1_p=0.1, hidden4_num_units=16,
            dropout4_p=0.5, output_num_units=30, output_nonlinearity=None, regression=True, verbose=1,
            on_training_started=deck.on_training_started[:-1],  # without nolearn's printers
            on_epoch_finished=deck.on_epoch_finished[:-1], **settings)
    return build


def prepare(data):
    """Point kfkd at the files in the folder `data` and make everything small and frequent."""
    kfkd.build_net = small(kfkd.build_net)
    kfkd.SPECIALIST_SETTINGS = kfkd.SPECIALIST_SETTINGS[1:3]
    vars(kfkd).update(
        FTRAIN=os.path.join(data, 'training.csv'), FTEST=os.path.join(data, 'test.csv'),
        FLOOKUP=os.path.join(data, 'IdLookupTable.csv'), FTESTLABELS=None,
        MAX_EPOCHS=40, SPECIALIST_SAMPLES=900, BATCH_SIZE=4, CHECKPOINT_MINUTES=0.02 / 60,
        RUNS=None)
    checkpoint.Checkpoint.share = 1
    kfkd.figures.write_page = lambda *args: None  # a second a page, and no part of what is tested

    class Recorder(checkpoint._Recorder):
        def __call__(self, *inputs):
            outputs = super().__call__(*inputs)
            if not self.replaying:
                note('S', time.time(), self.net, self.outputs)
            return outputs

    class Checkpoint(checkpoint.Checkpoint):
        def write(self):
            super().write()
            note('W', time.time() + self.due - time.monotonic(), self.net, self.recorder.outputs)

    checkpoint._Recorder, training.Checkpoint = Recorder, Checkpoint


def note(what, when, net, outputs):
    with open(log('.'), 'a') as f:
        f.write(f'{what} {when:.6f} {net.output_num_units} {len(net.train_history_) + 1} '
                f'{len(outputs)}\n')


def batches():
    """How many training steps have been computed."""
    try:
        with open(log('.')) as f:
            return f.read().count('S')
    except FileNotFoundError:
        return 0


def fill_disk(nth):
    """Let the `nth` checkpoint from now meet a full disk."""
    write, calls = checkpoint.write, []

    def full(*args):
        calls.append(args)
        if len(calls) == nth:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        write(*args)

    checkpoint.write = full


def child(argv, set, full):
    """What runs in the forked process."""
    try:
        for handle in (1, 2):
            os.dup2(os.open(log('.') + '.printed', os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
        vars(kfkd).update(dict(set))
        if full:
            fill_disk(full)
        status = kfkd.main(list(argv))
        sys.stdout.flush()
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        os._exit(99)


def run(argv=(), set=(), kill=None, nth=1, signum=signal.SIGKILL, full=None):
    """Fork, run kfkd.main there, and send it a signal.

    Parameters
    ----------
    argv : list of str
    set : dict
        Constants of kfkd.
    kill : None, float or str
        When to send the signal: never; so many seconds from now; 'batch': after `nth` training steps;
        'writing': while the `nth` checkpoint is being written.
    signum : int
    full : int, optional
        From this checkpoint on, files can no longer grow beyond 4 kB, as on a full disk.
    """
    start, killed, status, seen, there = time.time(), None, None, 0, False
    before = batches()
    pid = os.fork()
    if pid == 0:
        child(argv, set, full)
    while status is None:
        if kill == 'writing':
            is_there = bool(glob.glob('checkpoint-*.partial'))
            seen += is_there and not there
            there = is_there
            now = is_there and seen >= nth
        elif kill == 'batch':
            now = batches() - before >= nth
        else:
            now = kill is not None and time.time() >= start + kill
        if now and killed is None:
            killed = time.time()
            os.kill(pid, signum)
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        time.sleep(0.0005 if kill == 'writing' else 0.002)
    with open(log('.') + '.printed') as f:
        printed = f.read()
    os.remove(log('.') + '.printed')
    return dict(status=status, killed=killed, printed=printed, batches=batches() - before)


if __name__ == '__main__':
    sys.stdout.reconfigure(line_buffering=True)  # in one file with what goes to stderr, in order
    # A job in the background, as CI may be, is started with signals ignored, and kfkd leaves those be.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in 'SIGTERM', 'SIGHUP':
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    prepare(sys.argv[1])
    print(json.dumps('ready'), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        os.chdir(command.pop('folder'))
        print(json.dumps(run(**command)), flush=True)
