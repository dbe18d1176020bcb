"""The steps of the tutorial one by one, on small files made here."""
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import kfkd
import numpy as np
import pandas as pd
import pytest
from beyond.runs import net_files
from lasagne import layers
from nolearn.lasagne import NeuralNet
from sklearn.base import clone

COLUMNS = [
    'left_eye_center_x', 'left_eye_center_y', 'right_eye_center_x', 'right_eye_center_y',
    'left_eye_inner_corner_x', 'left_eye_inner_corner_y',
    'left_eye_outer_corner_x', 'left_eye_outer_corner_y',
    'right_eye_inner_corner_x', 'right_eye_inner_corner_y',
    'right_eye_outer_corner_x', 'right_eye_outer_corner_y',
    'left_eyebrow_inner_end_x', 'left_eyebrow_inner_end_y',
    'left_eyebrow_outer_end_x', 'left_eyebrow_outer_end_y',
    'right_eyebrow_inner_end_x', 'right_eyebrow_inner_end_y',
    'right_eyebrow_outer_end_x', 'right_eyebrow_outer_end_y',
    'nose_tip_x', 'nose_tip_y', 'mouth_left_corner_x', 'mouth_left_corner_y',
    'mouth_right_corner_x', 'mouth_right_corner_y',
    'mouth_center_top_lip_x', 'mouth_center_top_lip_y',
    'mouth_center_bottom_lip_x', 'mouth_center_bottom_lip_y',
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """20 training faces (8 of them complete) and 6 test faces, and kfkd pointed at them."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (20, 9216))
    labels = rng.uniform(10, 86, (20, 30)).round(3)
    labels[8:, 4:20] = np.nan
    train = pd.DataFrame(labels, columns=COLUMNS)
    train['Image'] = [' '.join(map(str, image)) for image in images]
    train.to_csv(tmp_path / 'training.csv', index=False)
    pd.DataFrame({'ImageId': range(1, 7), 'Image': train['Image'][:6]}).to_csv(
        tmp_path / 'test.csv', index=False)
    pd.DataFrame({'RowId': range(1, 6), 'ImageId': [1, 1, 3, 6, 6],
                  'FeatureName': ['nose_tip_x', 'nose_tip_y', 'left_eye_center_x', 'nose_tip_y',
                                  'nose_tip_x'], 'Location': ''}).to_csv(
        tmp_path / 'IdLookupTable.csv', index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kfkd, 'FTRAIN', str(tmp_path / 'training.csv'))
    monkeypatch.setattr(kfkd, 'FTEST', str(tmp_path / 'test.csv'))
    monkeypatch.setattr(kfkd, 'FLOOKUP', str(tmp_path / 'IdLookupTable.csv'))
    monkeypatch.setattr(kfkd, 'FTESTLABELS', None)
    return tmp_path, images, labels


def edit(path, change):
    """Change a CSV file as a spreadsheet would."""
    table = pd.read_csv(path, dtype=str)
    table = change(table)
    table.to_csv(path, index=False)


# ----------------------------------------------------------------------------------------- load

def test_load_scales_and_shuffles_as_the_slide_says(files, capsys):
    _, images, labels = files
    X, y = kfkd.load()
    assert X.shape == (8, 9216) and y.shape == (8, 30)
    assert X.dtype == y.dtype == np.float32
    order = [np.abs(images / 255. - x).max(axis=1).argmin() for x in X]
    assert sorted(order) == list(range(8)) and order != list(range(8))
    np.testing.assert_allclose(X, images[order] / 255., atol=1e-6)
    np.testing.assert_allclose(y, (labels[order] - 48) / 48, atol=1e-6)
    np.testing.assert_array_equal(kfkd.load()[0], X)  # the same order each time
    printed = capsys.readouterr().out
    assert 'nose_tip_x' in printed and '20' in printed and '8' in printed


def test_load_of_some_columns_keeps_more_rows(files):
    X, y = kfkd.load2d(cols=('nose_tip_x', 'nose_tip_y'))
    assert X.shape == (20, 1, 96, 96) and y.shape == (20, 2)
    assert kfkd.load2d(test=True)[0].shape == (6, 1, 96, 96)
    assert kfkd.load2d(test=True)[1] is None


def test_load_with_gaps_keeps_all_rows_that_have_a_point(files, monkeypatch):
    _, images, labels = files
    monkeypatch.setattr(kfkd, 'GAPS', True)
    edit(kfkd.FTRAIN, lambda table: table.assign(  # the last row has no point at all
        **{name: table[name].where(table.index < 19) for name in COLUMNS}))
    X, y = kfkd.load()
    assert X.shape == (19, 9216) and y.shape == (19, 30)
    order = [np.abs(images / 255. - x).max(axis=1).argmin() for x in X]
    assert sorted(order) == list(range(19))
    np.testing.assert_allclose(y, (labels[order] - 48) / 48, atol=1e-6)
    # A specialist has the rows that have some of its points.
    assert len(kfkd.load(cols=COLUMNS[4:8])[0]) == 8
    with pytest.raises(kfkd.DataError, match='GAPS.*mean_squared_error_of_known'):
        kfkd.fit()  # the deck's loss does not know


def test_file_is_parsed_once_until_it_changes(files, monkeypatch):
    reads = []
    original = pd.read_csv
    monkeypatch.setattr(pd, 'read_csv', lambda *a, **k: reads.append(a) or original(*a, **k))
    for _ in range(3):
        kfkd.load()
    assert len(reads) == 1
    edit(kfkd.FTRAIN, lambda table: table[:12])
    reads.clear()
    assert len(kfkd.load(cols=['nose_tip_x'])[0]) == 12
    assert len(reads) == 1


def test_caller_may_change_what_load_returns(files):
    X, y = kfkd.load()
    expected = X.copy()
    X[:] = 0
    np.testing.assert_array_equal(kfkd.load()[0], expected)


def test_oddities_are_reported(files, capsys):
    def change(table):
        table.loc[1, 'nose_tip_x'] = '97.5'
        table.loc[2, 'Image'] = '256 ' + table.loc[2, 'Image'].split(' ', 1)[1]
        return pd.concat([table, table[5:6]])
    edit(kfkd.FTRAIN, change)
    kfkd.load()
    printed = capsys.readouterr().out
    assert '1 of 21 rows have nose_tip_x outside the image (0..96) (first: line 3)' in printed
    assert '1 of 21 rows have pixels outside 0..255 (first: line 4)' in printed
    assert '1 of 21 rows have the same values as an earlier row (first: line 22)' in printed


def test_fractions_of_grey_are_kept(files):
    edit(kfkd.FTRAIN, lambda t: t.assign(Image=['0.5' + im[im.index(' '):] for im in t['Image']]))
    assert (kfkd.load()[0][:, 0] == np.float32(0.5 / 255)).all()


def shorten(table):
    table.loc[3, 'Image'] = table.loc[3, 'Image'].rsplit(' ', 2)[0]
    return table


def misspell(table):
    table.loc[3, 'Image'] = table.loc[3, 'Image'].replace(' ', ' x', 1)
    return table


def with_cell(row, name, value):
    def change(table):
        table.loc[row, name] = value
        return table
    return change


@pytest.mark.parametrize('change, message', [
    (shorten, r'line 5, column Image: 9214 pixels'),
    (misspell, r'line 5, column Image: 1 pixels'),
    (with_cell(3, 'Image', np.nan), r'line 5: there is no image'),
    (with_cell(4, 'nose_tip_y', 'abc'), r"line 6, column nose_tip_y: 'abc' is not a number"),
    (with_cell(4, 'nose_tip_y', 'inf'), r'line 6, column nose_tip_y: inf is not a number'),
    (lambda t: t.drop(columns='Image'), r'has no column Image'),
    (lambda t: t[:0], r'no rows'),
    (lambda t: t[9:], r'no row has a value in each of the columns'),
])
def test_bad_training_file(files, change, message):
    edit(kfkd.FTRAIN, change)
    with pytest.raises(kfkd.DataError, match=message) as info:
        kfkd.load()
    assert kfkd.FTRAIN in str(info.value)


def test_files_that_are_no_tables(files):
    path = files[0]
    kfkd.FTRAIN = str(path / 'nothing.csv')
    with pytest.raises(kfkd.DataError, match='nothing.csv is not there'):
        kfkd.load()
    kfkd.FTRAIN = str(path)
    with pytest.raises(kfkd.DataError, match='cannot be read'):
        kfkd.load()
    for content in (b'', b'\xff\xfe\x00bad', b'a,b\n"1,2\n'):
        kfkd.FTRAIN = str(path / 'bad.csv')
        (path / 'bad.csv').write_bytes(content)
        with pytest.raises(kfkd.DataError, match='bad.csv'):
            kfkd.load()
    with pytest.raises(kfkd.DataError, match='has no column chin_x'):
        kfkd.FTRAIN = str(path / 'training.csv')
        kfkd.load(cols=['chin_x'])


# ------------------------------------------------------------------------------------- iterators

def test_flips_mirror_half_of_a_batch_and_leave_the_data_alone(files):
    X, y = kfkd.load2d(cols=None)
    X_before, y_before = X.copy(), y.copy()
    iterator = kfkd.FlipBatchIterator(batch_size=8)
    for _ in range(3):
        (Xb, yb), = iterator(X, y)
        flipped = [i for i in range(8) if not np.array_equal(Xb[i], X[i])]
        assert len(flipped) == 4
        names = dict(zip(COLUMNS, range(30)))
        for i in range(8):
            if i not in flipped:
                np.testing.assert_array_equal(yb[i], y[i])
                continue
            np.testing.assert_array_equal(Xb[i, 0], X[i, 0, :, ::-1])
            for name, column in names.items():  # the rule, told without the table of indices
                twin = name.replace('left', 'LEFT').replace('right', 'left').replace('LEFT', 'right')
                sign = -1 if name.endswith('_x') else 1
                assert yb[i, names[twin]] == sign * y[i, column]
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(y, y_before)


def test_flips_of_every_specialist_follow_the_names():
    for setting in kfkd.SPECIALIST_SETTINGS:
        cols = setting['columns']
        swapped = list(cols)
        for a, b in setting['flip_indices']:
            swapped[a], swapped[b] = swapped[b], swapped[a]
        assert swapped == [c.replace('left', 'LEFT').replace('right', 'left').replace(
            'LEFT', 'right') if not c.startswith('mouth_center') else c for c in cols]
    covered = [c for setting in kfkd.SPECIALIST_SETTINGS for c in setting['columns']]
    assert sorted(covered) == sorted(COLUMNS)


def test_flips_are_reproducible_and_differ_between_batches(files):
    X, y = kfkd.load2d()
    draws = [[yb.copy() for _ in range(5) for _, yb in it(X, y)] for it in
             (kfkd.FlipBatchIterator(8, seed=1), kfkd.FlipBatchIterator(8, seed=1))]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len({yb.tobytes() for yb in draws[0]}) > 1


def test_standardised_batches():
    X = np.random.RandomState(0).uniform(0.2, 0.6, (50, 1, 96, 96)).astype(np.float32)
    iterator = kfkd.FaceBatchIterator(batch_size=50)
    (Xb, _), = iterator(X)
    assert Xb is X[:50] or np.shares_memory(Xb, X)
    iterator.fit_pixels(X)
    (Xb, _), = pickle.loads(pickle.dumps(iterator))(X)
    assert abs(Xb.mean()) < 1e-4 and abs(Xb.std() - 1) < 1e-4 and Xb.dtype == np.float32


# -------------------------------------------------------------------------------------- handlers

class FakeNet:
    """What the handlers touch of a NeuralNet."""
    max_epochs = 10
    verbose = 1

    def __init__(self, *handlers):
        self.on_epoch_finished, self.on_training_finished = list(handlers), []
        self.layers_ = {'hidden': self}
        self.values = [np.zeros(2)]

    def get_params(self):
        return [self]

    def set_value(self, value):
        self.values.append(value)

    def get_all_params_values(self):
        return {'hidden': [self.values[-1].copy()]}


def history(*losses):
    return [{'epoch': i, 'valid_loss': loss, 'dur': 1.} for i, loss in enumerate(losses, 1)]


def test_adjust_variable_is_linear_and_stays_at_its_end():
    adjust = kfkd.AdjustVariable('rate', start=0.03, stop=0.0001)
    nn = FakeNet()
    nn.rate = FakeNet()
    for epoch in range(1, 13):
        adjust(nn, [{'epoch': epoch}])
    expected = list(np.linspace(0.03, 0.0001, 10)) + [0.0001] * 2
    np.testing.assert_allclose(nn.rate.values[1:], expected, rtol=1e-6)
    assert nn.rate.values[-1].dtype == np.float32


def test_early_stopping_after_patience_and_best_weights_back():
    stopping = kfkd.EarlyStopping(patience=3)
    nn = FakeNet(stopping)
    losses = [5., 4., 3., 3.5, 3., 3.2, 3.1]
    for epoch in range(1, 7):
        nn.values.append(np.full(2, epoch))
        stopping(nn, history(*losses[:epoch]))
    with pytest.raises(StopIteration):
        stopping(nn, history(*losses))
    assert (stopping.best_valid, stopping.best_valid_epoch) == (3., 3)
    assert nn.on_training_finished == [stopping.on_training_finished]
    stopping.on_training_finished(nn, history(*losses))
    np.testing.assert_array_equal(nn.values[-1], [3, 3])


def test_second_training_starts_clean():
    stopping = kfkd.EarlyStopping(patience=3)
    nn = FakeNet(stopping)
    stopping(nn, history(1.))
    stopping.on_training_finished(nn, history(1., 2., 3., 4., 5., 6.))
    stopping(nn, history(1., 2., 3., 4., 5., 6., 7.))  # worse than in the first training
    assert stopping.best_valid == 7. and stopping.best_valid_epoch == 7


def test_training_without_validation_does_not_stop():
    stopping = kfkd.EarlyStopping(patience=2)
    nn = FakeNet(stopping)
    for epoch in range(1, 5):
        stopping(nn, history(*[np.nan] * epoch))
    stopping.on_training_finished(nn, [])
    assert len(nn.values) == 1


def test_time_left_counts_the_specialists_to_come(capsys):
    handler = kfkd.TimeLeft(every=0)
    nn = FakeNet(handler)
    handler(nn, history(1., 1.))
    assert 'epoch 2 of 10, at most 0:00:08 left' in capsys.readouterr().out
    handler.stage, handler.stages = 2, 6
    handler(nn, history(1., 1.))
    assert 'specialist 2 of 6' in capsys.readouterr().out
    handler(nn, history(1., 1.))
    assert '0:00:48 for all' in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- net

def test_net_is_the_decks():
    net = kfkd.build_net()
    net.initialize_layers()
    assert sum(p.get_value(borrow=True).size for p in net.get_all_params()) == 16561502
    assert net.layers_['pool3'].output_shape == (None, 128, 11, 11)
    assert [net.layers_[f'dropout{i}'].p for i in (1, 2, 3, 4)] == [0.1, 0.2, 0.3, 0.5]
    assert net.max_epochs == 3000 and net.batch_iterator_train.batch_size == 128
    np.testing.assert_allclose(net.update_learning_rate.get_value(), 0.03)
    np.testing.assert_allclose(net.update_momentum.get_value(), 0.9)


def test_constants_are_read_when_called(monkeypatch):
    monkeypatch.setattr(kfkd, 'MAX_EPOCHS', 7)
    monkeypatch.setattr(kfkd, 'BATCH_SIZE', 16)
    monkeypatch.setattr(kfkd, 'PATIENCE', 3)
    monkeypatch.setattr(kfkd, 'LEARNING_RATE', (0.5, 0.25))
    net = clone(kfkd.build_net())
    assert net.max_epochs == 7 and net.batch_iterator_train.batch_size == 16
    assert net.on_epoch_finished[2].patience == 3
    assert net.update_learning_rate.get_value() == 0.5
    assert net.on_epoch_finished[0].stop == 0.25


@pytest.fixture
def small_net(monkeypatch):
    """A net of the deck's handlers and iterators that compiles and trains in a moment."""
    full = kfkd.build_net

    def build_net(c=None):
        deck = full(c)
        settings = {name: getattr(deck, name) for name in (
            'update_learning_rate', 'update_momentum', 'batch_iterator_train',
            'batch_iterator_test', 'train_split', 'on_training_finished', 'max_epochs')}
        return NeuralNet(
            layers=[('input', layers.InputLayer), ('pool', layers.MaxPool2DLayer),
                    ('hidden', layers.DenseLayer), ('dropout', layers.DropoutLayer),
                    ('output', layers.DenseLayer)],
            input_shape=(None, 1, 96, 96), pool_pool_size=(16, 16), hidden_num_units=8,
            output_num_units=30, output_nonlinearity=None, regression=True, verbose=1,
            on_training_started=deck.on_training_started[:-1],  # nolearn's printers are the last
            on_epoch_finished=deck.on_epoch_finished[:-1], **settings)

    monkeypatch.setattr(kfkd, 'build_net', build_net)
    monkeypatch.setattr(kfkd, 'MAX_EPOCHS', 3)
    monkeypatch.setattr(kfkd, 'SPECIALIST_SAMPLES', 40)
    return build_net


def test_fit_twice_gives_the_same_bits_and_best_weights(files, small_net):
    nets = [kfkd.fit() for _ in range(2)]
    for a, b in zip(*(net.get_all_params_values().values() for net in nets)):
        for u, v in zip(a, b):
            np.testing.assert_array_equal(u, v)
    net = nets[0]
    assert [info['epoch'] for info in net.train_history_] == [1, 2, 3]
    X, y = kfkd.load2d()
    _, X_valid, _, y_valid = net.train_split(X, y, net)
    loss = np.mean((net.predict(X_valid) - y_valid) ** 2)
    best = min(info['valid_loss'] for info in net.train_history_)
    np.testing.assert_allclose(loss, best, rtol=1e-5)


def test_pipeline_from_net_to_submission(files, small_net, monkeypatch, capsys):
    path = files[0]
    monkeypatch.setattr(kfkd, 'STANDARDIZE', True)
    assert kfkd.main([]) == 0
    names = sorted(os.listdir(path))
    assert {'net.pickle', 'net-specialists.pickle', 'training-faces.png', 'learning-curves.png',
            'test-predictions.png'} <= set(names)
    submission = pd.read_csv(next(path.glob('submission-*.csv')))
    assert list(submission.columns) == ['RowId', 'Location']
    assert list(submission['RowId']) == [1, 2, 3, 4, 5]
    assert submission['Location'].between(0, 96).all()

    specialists = kfkd.load_nets('net-specialists.pickle')
    assert [len(model.train_history_) for model in specialists.values()] == [2, 2, 2, 2, 5, 5]
    first = kfkd.load_nets('net.pickle')
    assert first.batch_iterator_test.pixel_std != 1
    nose = specialists[('nose_tip_x', 'nose_tip_y')]
    assert nose.batch_iterator_test.pixel_std == first.batch_iterator_test.pixel_std
    expected = nose.predict(kfkd.load2d(test=True)[0]) * 48 + 48
    np.testing.assert_allclose(submission['Location'][:2], expected[0].clip(0, 96), rtol=1e-5)
    np.testing.assert_allclose(submission['Location'][3:], expected[5, ::-1].clip(0, 96), rtol=1e-5)

    assert kfkd.main(['predict', 'net.pickle']) == 0
    assert kfkd.main(['plot_learning_curves', 'net.pickle']) == 0
    assert len(list(path.glob('submission-*.csv'))) == 2
    assert not list(path.glob('*.pickle.*')), 'temporary files are left behind'


def test_specialist_starts_from_the_first_net(files, small_net, monkeypatch):
    net = kfkd.fit()
    trained = []
    fit = NeuralNet.fit

    def noted(model, X, y):
        trained.append((model, {name: [value.copy() for value in values]
                                for name, values in model.get_all_params_values().items()}))
        return fit(model, X, y)

    monkeypatch.setattr(NeuralNet, 'fit', noted)
    settings = [dict(setting, kwargs=dict(dropout_p=0.25)) for setting in kfkd.SPECIALIST_SETTINGS]
    monkeypatch.setattr(kfkd, 'SPECIALIST_SETTINGS', settings[:2])
    kfkd.fit_specialists('net.pickle')
    for (model, weights), setting in zip(trained, settings):
        assert model.layers_['dropout'].p == 0.25
        assert model.layers_['output'].num_units == len(setting['columns'])
        assert model.batch_iterator_train.flip_indices == setting['flip_indices']
        np.testing.assert_array_equal(weights['hidden'][0], net.layers_['hidden'].W.get_value())
    assert kfkd.FlipBatchIterator.flip_indices[-1] == (23, 25)


def test_the_first_net_starts_from_another(files, small_net, monkeypatch):
    monkeypatch.setattr(kfkd, 'STANDARDIZE', True)
    first = kfkd.fit()
    os.rename('net.pickle', 'other.pickle')
    started = []
    fit = NeuralNet.fit

    def noted(model, X, y):
        started.append(model.layers_['hidden'].W.get_value())
        return fit(model, X + np.float32(.1), y)

    monkeypatch.setattr(NeuralNet, 'fit', noted)
    assert kfkd.main(['fit', 'other.pickle']) == 0
    np.testing.assert_array_equal(started[0], first.layers_['hidden'].W.get_value())
    second = kfkd.load_nets('net.pickle')
    assert second.batch_iterator_test.pixel_mean == first.batch_iterator_test.pixel_mean != 0
    assert not np.array_equal(second.layers_['hidden'].W.get_value(), started[0])


def interrupt(nn, train_history):
    """A handler: Ctrl-C after the second epoch."""
    if len(train_history) == 2:
        raise KeyboardInterrupt


def test_ctrl_c_keeps_the_best_weights_and_ends_the_program(files, small_net, monkeypatch, capsys):
    build = kfkd.build_net
    monkeypatch.setattr(kfkd, 'MAX_EPOCHS', 50)
    monkeypatch.setattr(kfkd, 'build_net', lambda c=None: build(c).set_params(
        on_epoch_finished=build(c).on_epoch_finished + [interrupt]))
    assert kfkd.main([]) == 130
    assert len(kfkd.load_nets('net.pickle').train_history_) == 2
    assert not os.path.exists('net-specialists.pickle')
    assert 'interrupted' in capsys.readouterr().err


@pytest.mark.parametrize('kept', [
    [], ['AdjustVariable'], ['EarlyStopping'], ['TimeLeft'], ['AdjustVariable', 'TimeLeft'],
    ['AdjustVariable', 'EarlyStopping']], ids='-'.join)
def test_each_handler_stands_alone(files, small_net, monkeypatch, capsys, kept):
    def build_net(c=None):
        model = small_net(c)
        return model.set_params(on_epoch_finished=[
            handler for handler in model.on_epoch_finished if type(handler).__name__ in kept])

    monkeypatch.setattr(kfkd, 'build_net', build_net)
    monkeypatch.setattr(kfkd, 'LEARNING_RATE', (0.5, 0.5))  # the best epoch is not the last one
    assert kfkd.main(['fit']) == 0
    net = kfkd.load_nets('net.pickle')
    losses = [info['valid_loss'] for info in net.train_history_]
    assert len(losses) == 3
    best, epoch = 48 * np.sqrt(min(losses)), 1 + np.argmin(losses)
    assert f'Best validation RMSE: {best:.3f} pixels, at epoch {epoch}.' in capsys.readouterr().out
    X, y = kfkd.load2d()
    _, X_valid, _, y_valid = net.train_split(X, y, net)
    loss = np.mean((net.predict(X_valid) - y_valid) ** 2)
    np.testing.assert_allclose(
        loss, min(losses) if 'EarlyStopping' in kept else losses[-1], rtol=1e-4)


def test_early_stopping_gives_the_best_weights_back_at_any_end(files, small_net, monkeypatch):
    """Without a checkpoint around it, when `fit` has other epochs, and in a second `fit`."""
    X, y = kfkd.load2d()
    net = kfkd.build_net().set_params(verbose=0)
    net.update_learning_rate.set_value(np.float32(0.5))
    net.on_epoch_finished = [kfkd.EarlyStopping(patience=10)]
    _, X_valid, _, y_valid = net.train_split(X, y, net)
    for fits in 1, 2:
        net.fit(X, y, epochs=4)
        losses = [info['valid_loss'] for info in net.train_history_[-4:]]
        np.testing.assert_allclose(
            np.mean((net.predict(X_valid) - y_valid) ** 2), min(losses), rtol=1e-4)
        assert net.on_epoch_finished[0].best_valid_epoch == 4 * fits - 3 + np.argmin(losses)
    assert len(net.on_training_finished) == 1


def test_training_without_validation(files, small_net, monkeypatch, capsys):
    monkeypatch.setattr(kfkd, 'EVAL_SIZE', 0)
    monkeypatch.setattr(kfkd, 'PATIENCE', 1)
    assert kfkd.main([]) == 0
    net = kfkd.load_nets('net.pickle')
    assert len(net.train_history_) == 3, 'nothing tells that it should stop'
    printed = capsys.readouterr().out
    last = 48 * np.sqrt(net.train_history_[-1]['train_loss'])
    assert f'Training RMSE: {last:.3f} pixels, at epoch 3.' in printed
    assert 'validation RMSE' not in printed
    X, y = kfkd.load2d()
    assert [len(part) for part in net.train_split(X, y, net)] == [8, 0, 8, 0]
    run, = files[0].glob('runs/*')
    assert kfkd.main(['compare', str(run), str(run)]) == 0
    assert kfkd.main(['report', str(run)]) == 0
    page, = files[0].glob('report-*.html')
    assert 'no face was kept for it' in page.read_text()


@pytest.mark.parametrize('value', [-0.1, 0.7, 1, 20])
def test_shares_for_validation_that_are_none(files, small_net, monkeypatch, capsys, value):
    monkeypatch.setattr(kfkd, 'EVAL_SIZE', value)
    assert kfkd.main(['fit']) == 1
    error = capsys.readouterr().err
    assert 'EVAL_SIZE is the share' in error and repr(value) in error and error.count('\n') == 1


def test_pickle_carries_no_compiled_function(files, small_net):
    kfkd.fit()
    code = ('import sys, pickletools; data = open("net.pickle", "rb").read()\n'
            'words = {str(arg) for _, arg, _ in pickletools.genops(data)}\n'
            'assert not any("__main__" in word or "FunctionMaker" in word for word in words)\n'
            'import kfkd, pickle; net = pickle.loads(data)\n'
            'print(len(net.train_history_), net.predict(kfkd.np.zeros((2, 1, 96, 96), "f")).shape)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split('\n')[-2] == '3 (2, 30)', done.stderr


# --------------------------------------------------------------------------- predict and figures

class Constant(NeuralNet):
    """A trained net, as far as `predict` is concerned: answers `value`."""

    def __init__(self, value, outputs):
        self.value, self.output_num_units = value, outputs
        self.train_history_ = [{'train_loss': 4. / 48 ** 2, 'valid_loss': 9. / 48 ** 2}] * 3

    def predict(self, X):
        return np.full((len(X), self.output_num_units), self.value, np.float32)

    def __getstate__(self):
        return vars(self)

    def __setstate__(self, state):
        vars(self).update(state)


@pytest.fixture
def constant_nets(files, monkeypatch):
    monkeypatch.setattr(kfkd, 'TRUSTED', (Constant,))
    nets = OrderedDict([(('nose_tip_x', 'nose_tip_y'), Constant(3., 2)),
                        (('left_eye_center_x', 'left_eye_center_y'), Constant(0.5, 2))])
    net_files.save(nets, 'nets.pickle')
    return nets


def test_submission_is_clipped_and_in_the_order_of_the_table(constant_nets):
    submission = kfkd.predict('nets.pickle')
    assert list(submission['Location']) == [96, 96, 72, 96, 96]


def test_the_mean_of_several_files(constant_nets):
    """A column that only one file's nets know is theirs."""
    net_files.save(OrderedDict([(('left_eye_center_x', 'left_eye_center_y'), Constant(0.25, 2))]),
                   'other.pickle')
    assert kfkd.main(['predict', 'nets.pickle', 'other.pickle']) == 0
    submission = kfkd.predict('nets.pickle', 'other.pickle')
    assert list(submission['Location']) == [96, 96, 66, 96, 96]


@pytest.mark.parametrize('change, message', [
    (with_cell(2, 'ImageId', '77'), r"line 4, column ImageId: 77 is not in .*test.csv"),
    (with_cell(2, 'ImageId', ''), r'line 4, column ImageId: nan is not a whole number'),
    (with_cell(2, 'ImageId', '1.5'), r'line 4, column ImageId: 1.5 is not a whole number'),
    (with_cell(1, 'FeatureName', 'chin_x'), r"line 3, column FeatureName: 'chin_x' is not in"),
    (lambda t: t.drop(columns='RowId'), r'has no column RowId'),
])
def test_odd_lookup_table(constant_nets, files, change, message):
    edit(kfkd.FLOOKUP, change)
    with pytest.raises(kfkd.DataError, match=message):
        kfkd.predict('nets.pickle')
    assert not list(files[0].glob('submission*'))


def test_missing_lookup_table(constant_nets, capsys):
    os.remove(kfkd.FLOOKUP)
    assert kfkd.main(['predict', 'nets.pickle']) == 1
    assert 'IdLookupTable.csv is not there' in capsys.readouterr().err


def test_score_ignores_nothing_but_gaps(constant_nets, files, monkeypatch, capsys):
    truth = pd.DataFrame({'ImageId': range(1, 7), 'nose_tip_x': 93., 'nose_tip_y': 100.,
                          'left_eye_center_x': 72., 'left_eye_center_y': np.nan})
    truth.to_csv('truth.csv', index=False)
    monkeypatch.setattr(kfkd, 'FTESTLABELS', 'truth.csv')
    kfkd.predict('nets.pickle')
    assert f'Test RMSE: {np.sqrt((9 + 16 + 0) / 3):.3f} pixels' in capsys.readouterr().out


def test_learning_curves_show_pixels(constant_nets, monkeypatch):
    figures = []
    monkeypatch.setattr(kfkd.figures, 'write_figure', lambda fig, fname: figures.append(fig))
    kfkd.plot_learning_curves('nets.pickle')
    axis, = figures[0].axes
    solid = [line for line in axis.lines if line.get_linestyle() == '-' and len(line.get_xdata())]
    dashed = [line for line in axis.lines if line.get_linestyle() == '--' and len(line.get_xdata())]
    assert len(solid) == 3 and len(dashed) == 2  # two specialists and their mean
    for line in solid[:2]:
        np.testing.assert_allclose(line.get_ydata(), 3., rtol=1e-6)
    mean, share = solid[2].get_ydata(), solid[2].get_xdata()
    begun = share > 100 / 3  # after the first of three epochs
    assert np.isnan(mean[~begun]).all()
    np.testing.assert_allclose(mean[begun], 3., rtol=1e-6)
    for line in dashed:
        np.testing.assert_allclose(line.get_ydata(), 2., rtol=1e-6)
    assert axis.get_ylim() == (1., 4.) and 'pixels' in axis.get_ylabel()


@pytest.mark.parametrize('content', [b'', b'not a pickle', pickle.dumps([1, 2]), pickle.dumps({}),
                                     b'cnowhere\nnothing\n.'])
def test_files_that_are_no_nets(files, content, capsys):
    with open('odd.pickle', 'wb') as f:
        f.write(content)
    for step in ('predict', 'plot_learning_curves', 'fit_specialists'):
        assert kfkd.main([step, 'odd.pickle']) == 1
        assert 'odd.pickle' in capsys.readouterr().err


# ---------------------------------------------------------------------------------- command line

def test_manual_and_usage(capsys):
    with pytest.raises(SystemExit) as info:
        kfkd.main(['-h'])
    assert info.value.code == 0
    printed = capsys.readouterr().out
    for words in ('fit_specialists', '--fresh', '--config FILE', 'report'):
        assert words in printed
    for words in (['fly'], ['fit', 'a', 'b'], ['report', 'a', 'b'], ['--fast']):
        with pytest.raises(SystemExit) as info:
            kfkd.main(words)
        assert info.value.code == 2
        assert 'usage: python kfkd.py' in capsys.readouterr().err


def test_missing_net_is_one_line_and_status_1(files, capsys):
    assert kfkd.main(['plot_learning_curves']) == 1
    error = capsys.readouterr().err
    assert 'net-specialists.pickle is not there' in error and error.count('\n') == 1


def test_without_kaggles_files_faces_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kfkd, 'DATA', str(tmp_path))
    monkeypatch.setattr(kfkd, 'DRAWN', str(tmp_path / 'faces'))
    monkeypatch.setattr(kfkd, 'DRAWN_ROWS', (40, 10))
    for name, value in (('FTRAIN', 'training.csv'), ('FTEST', 'test.csv'),
                        ('FLOOKUP', 'IdLookupTable.csv')):
        monkeypatch.setattr(kfkd, name, str(tmp_path / value))
    monkeypatch.setattr(kfkd, 'FTESTLABELS', None)
    monkeypatch.setattr(kfkd, 'MAX_EPOCHS', 5)  # changed by the user: stays

    X, y = kfkd.load2d()
    assert 20 < len(X) < 40 and y.shape[1] == 30, 'most have all points, but not all'
    assert len(kfkd.load2d(test=True)[0]) == 10
    constants = kfkd.constants()
    assert constants.MAX_EPOCHS == 5 and constants.STANDARDIZE is True
    assert [kfkd.build_net(constants).get_params()[f'dropout{number}_p'] for number in (1, 2, 3, 4)] \
        == list(constants.DROPOUT) == [0, 0, 0, 0]
    assert kfkd.build_net(constants).layers == kfkd.build_net().layers, "the deck's, but smaller"
    assert os.path.dirname(constants.FTESTLABELS) == kfkd.DRAWN
    assert kfkd.FTESTLABELS is None and kfkd.STANDARDIZE is False, 'nobody changes the constants'
    printed = capsys.readouterr().out
    assert printed.count('using drawn faces') == 1 and 'MAX_EPOCHS' not in printed
    written = set(os.listdir(tmp_path))
    assert written == {'faces'}, 'kept apart from Kaggle\'s'


@pytest.mark.parametrize('fname', ['training.csv', 'test.csv', 'test.zip'])
def test_with_kaggles_files_the_constants_are_the_decks(tmp_path, monkeypatch, capsys, fname):
    monkeypatch.setattr(kfkd, 'DATA', str(tmp_path))
    monkeypatch.setattr(kfkd, 'DRAWN', str(tmp_path / 'faces'))
    for name, value in ('FTRAIN', 'training.csv'), ('FTEST', 'test.csv'):
        monkeypatch.setattr(kfkd, name, str(tmp_path / value))
    (tmp_path / fname).write_text('')
    constants = kfkd.constants()
    assert {name: getattr(constants, name) for name in kfkd.DECK} == kfkd.DECK
    assert (constants.FTRAIN, constants.FTEST) == (kfkd.FTRAIN, kfkd.FTEST)
    assert os.listdir(tmp_path) == [fname] and not capsys.readouterr().out


def test_a_missing_file_of_ones_own_is_an_error(monkeypatch):
    monkeypatch.setattr(kfkd, 'FTRAIN', 'mine.csv')
    with pytest.raises(kfkd.DataError, match='mine.csv is not there'):
        kfkd.load()
