"""Files that earlier versions have written go on being read.

tests/old-files/ has what `write` below has written with the version of 25 November 2026;
net-specialists.pickle are two specialists of a smaller net, with AUGMENT = 'faces' and MONITOR.
experiment.yaml is of the record of README's first command, of 26 November 2026.
"""
import os
import shutil
import signal
import sys

import kfkd
import killable
import numpy as np
import pytest
import stepwise
import yaml
from beyond.augmentation import AffineFaceBatchIterator
from beyond.runs import experiment, net_files

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'old-files')
NET = """
layers:
- {name: input, type: InputLayer, shape: [null, 1, 96, 96]}
- {name: pool, type: MaxPool2DLayer, pool_size: [16, 16]}
- {name: hidden, type: DenseLayer, num_units: 5}
- {name: output, type: DenseLayer, num_units: 30, nonlinearity: null}
"""


def constants(folder):
    return dict(FTRAIN=os.path.join(folder, 'training.csv'), NET=yaml.safe_load(NET), MAX_EPOCHS=6,
                BATCH_SIZE=8, PATIENCE=10, RUNS=None, VERBOSE=0, LEARNING_RATE=(0.01, 0.001),
                FTESTLABELS=None)


calls = []


def stop(nn, history):
    calls.append(1)
    if len(calls) == 10:
        os.kill(os.getpid(), signal.SIGTERM)


def write(folder):
    """Write a checkpoint from the midst of the third epoch, and what the training leads to."""
    killable.write_faces(folder)
    vars(kfkd).update(constants(folder))
    build_net = kfkd.build_net

    def build(c=None):
        model = build_net(c)
        model.on_batch_finished = [stop]
        return model

    os.chdir(folder)
    kfkd.build_net = build
    assert kfkd.main(['fit']) == 143
    shutil.copy('checkpoint-net.npz', HERE)
    kfkd.build_net = build_net
    assert kfkd.main(['fit', '--fresh']) == 0
    shutil.copy('net.pickle', HERE)


@pytest.fixture
def work(tmp_path, monkeypatch):
    killable.write_faces(str(tmp_path))
    for name, value in constants(str(tmp_path)).items():
        monkeypatch.setattr(kfkd, name, value)
    monkeypatch.setattr(kfkd, 'net', kfkd.net)  # `fit` puts its own there
    monkeypatch.chdir(tmp_path)


def test_net(work):
    net = kfkd.load_nets(os.path.join(HERE, 'net.pickle'))
    assert net.columns_ == kfkd.COLUMNS and len(net.train_history_) == 6
    assert net.on_epoch_finished[2].best_valid_epoch >= 1
    assert net.predict(kfkd.load2d()[0]).shape == (40, 30)


def test_augmented_and_monitored_specialists(work, monkeypatch):
    """Classes that have moved since are found, and the nets can be written again."""
    specialists = kfkd.load_nets(os.path.join(HERE, 'net-specialists.pickle'))
    assert list(specialists) == [kfkd.SPECIALIST_SETTINGS[n]['columns'] for n in (1, 2)]
    X = kfkd.load2d()[0]
    for cols, model in specialists.items():
        iterator = model.batch_iterator_train
        assert isinstance(iterator, AffineFaceBatchIterator) and iterator.pixel_std == 1
        assert model.predict(X).shape == (len(X), len(cols))
        assert {'activations', 'gradients', 'updates'} <= set(model.train_history_[0])
    net_files.save(specialists, 'again.pickle')
    again = kfkd.load_nets('again.pickle')
    for model, twin in zip(specialists.values(), again.values()):
        np.testing.assert_array_equal(model.predict(X), twin.predict(X))
    # A training goes on with it: its handlers work, those that there are no more do nothing.
    model.fit(X, np.zeros((len(X), len(cols)), np.float32), epochs=1)


def test_a_record_can_be_run_again():
    """Each constant that it has is still one, of the same kind, with the value of that day."""
    fname = os.path.join(HERE, 'experiment.yaml')
    found = experiment.constants(fname, vars(kfkd))
    with open(fname) as f:
        recorded = yaml.safe_load(f)['constants']
    assert set(found) == set(recorded) | {'NET'} and found['DRAWN_ROWS'] == (6000, 500)
    assert found['NET'] == {}, "the deck's net"
    drawn = dict(MAX_EPOCHS=33, BATCH_SIZE=16, LEARNING_RATE=(0.15, 0.001), MOMENTUM=(0.9, 0.98),
                 STANDARDIZE=True, DROPOUT=(0, 0, 0, 0), AUGMENT='faces', SPECIALIST_SAMPLES=18000,
                 SPECIALIST_RATE=0.5, MIRROR=True)
    assert {name: found[name] for name in drawn} == drawn


def test_checkpoint(work, capsys):
    """A training goes on from it to where it would have come."""
    shutil.copy(os.path.join(HERE, 'checkpoint-net.npz'), '.')
    net = kfkd.fit()
    assert 'epoch 3, after batch 2' in capsys.readouterr().out
    before = kfkd.load_nets(os.path.join(HERE, 'net.pickle'))
    for name, values in before.get_all_params_values().items():
        for one, other in zip(values, net.get_all_params_values()[name]):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert len(stepwise.results(net)[1]) == len(stepwise.results(before)[1])


if __name__ == '__main__':
    os.makedirs(HERE, exist_ok=True)
    write(sys.argv[1])
