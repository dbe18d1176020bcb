"""An experiment goes into a YAML file and comes back the same; what is wrong in a file is told."""
import glob
import os
import pickle
import subprocess
import sys

import theano_today  # noqa: F401  (before theano)

import kfkd
import numpy as np
import pytest
from lasagne import init, layers
from lasagne.nonlinearities import rectify, tanh
from lasagne.updates import adam
from nolearn.lasagne import BatchIterator, NeuralNet, TrainSplit

from beyond.augmentation import AffineBatchIterator, AffineFaceBatchIterator
from beyond.runs import experiment


def small_net():
    return NeuralNet(
        [('input', layers.InputLayer), ('conv', layers.Conv2DLayer),
         (layers.DenseLayer, dict(name='hidden', num_units=7, nonlinearity=tanh)),
         (layers.DropoutLayer, dict(p=.25)), ('output', layers.DenseLayer)],
        input_shape=(None, 1, 12, 12), conv_num_filters=4, conv_filter_size=(3, 3),
        conv_W=init.Normal(std=.02), conv_b=init.Constant(.1), output_num_units=2,
        output_nonlinearity=None, regression=True, update=adam, update_learning_rate=.0003,
        objective_l2=1e-4, max_epochs=5, train_split=TrainSplit(.25),
        batch_iterator_train=AffineBatchIterator(16, rotation=(-5, 5), flip_indices=((0, 1),)),
        batch_iterator_test=BatchIterator(8))


def read(tmp_path, content):
    path = tmp_path / 'experiment.yaml'
    path.write_text(content)
    return experiment.read(str(path))


def test_a_net_comes_back_the_same(tmp_path):
    net = small_net()
    written = experiment.text(net=experiment.describe_net(net))
    assert '- {name: hidden, type: DenseLayer, num_units: 7, nonlinearity: tanh}' in written
    again = NeuralNet(**experiment.net_settings(read(tmp_path, written)['net']))
    assert experiment.text(net=experiment.describe_net(again)) == written

    for one in net, again:
        one.initialize_layers()
    assert list(net.layers_) == list(again.layers_)
    for a, b in zip(net.get_all_params(), again.get_all_params()):
        assert a.get_value().shape == b.get_value().shape
    assert again.layers_['conv'].W.get_value().std() == pytest.approx(.02, rel=.5)
    assert np.allclose(again.layers_['conv'].b.get_value(), .1)
    assert again.layers_['hidden'].nonlinearity is tanh and again.update is adam
    assert again.update_learning_rate.get_value() == np.float32(.0003)
    iterator = again.batch_iterator_train
    assert isinstance(iterator, AffineBatchIterator) and iterator.rotation == (-5, 5)
    assert iterator.flip_indices == ((0, 1),) and again.train_split.eval_size == .25
    assert again.objective_l2 == 1e-4 and again.max_epochs == 5 and again.regression


def test_what_cannot_be_written_is_said():
    net = small_net()
    net.batch_iterator_train = kfkd.FlipBatchIterator(128)
    with pytest.raises(experiment.ConfigError, match='batch_iterator_train: .*no name'):
        experiment.describe_net(net)


def test_constants():
    defaults = dict(EPOCHS=3, RATE=.1, PAIR=(1., 2.), FREE=None, FLAG=False)
    assert experiment.checked_constants(
        dict(EPOCHS=4, PAIR=[3, 4], FREE='faces', FLAG=True), defaults) == dict(
            EPOCHS=4, PAIR=(3, 4), FREE='faces', FLAG=True)
    assert experiment.describe_constants(defaults)['PAIR'] == [1, 2]
    for name, value, words in [
            ('EPOCH', 4, "'EPOCH' is not known. Did you mean EPOCHS"), ('EPOCHS', 'x', 'a number'),
            ('RATE', '1e-4', 'write 1.0e-4'), ('PAIR', [1], '2 values'),
            ('FLAG', 1, 'true or false'), ('EPOCHS', True, 'a number'),
            ('PAIR', [1, 'x'], 'a number')]:
        with pytest.raises(experiment.ConfigError, match=words):
            experiment.checked_constants({'RATE': 9., **{name: value}}, defaults)


@pytest.mark.parametrize('content, words', [
    ('net: [', 'is no YAML'),
    ('- 1', 'names with values'),
    ('nets: {}', "'nets' is not known. Did you mean net"),
    ('net: {update: sgd, update: adam}', 'line 1: update is there twice'),
    ('net: !!python/object/apply:os.system ["echo"]', 'is no YAML'),
])
def test_files_that_are_something_else(tmp_path, content, words):
    with pytest.raises(experiment.ConfigError, match=words) as raised:
        read(tmp_path, content)
    assert 'experiment.yaml' in str(raised.value)


@pytest.mark.parametrize('net, words', [
    ("{max_epoch: 3}", "'max_epoch' is not known. Did you mean max_epochs"),
    ("{update: adamm}", 'Did you mean adam'),
    ("{update: sgd, update_momentum: 0.9}", "'update_momentum' is not known"),
    ("{update_learning_rate: 1e-4}", 'write 1.0e-4'),
    ("{layers: []}", 'a list is needed'),
    ("{layers: [{type: InputLayer}]}", r'layers\[0\]: a layer needs a name'),
    ("{layers: [{name: a, type: Conv2dLayer}]}", r'\(a\).*Did you mean Conv2DLayer'),
    ("{layers: [{name: a, type: DenseLayer, num_unit: 3}]}", r'\(a\).*Did you mean num_units'),
    ("{layers: [{name: a, type: DenseLayer, nonlinearity: relu}]}", "'relu' is not known"),
    ("{layers: [{name: a, type: DenseLayer, W: {Normal: {sd: 1}}}]}", "'sd' is not known"),
    ("{batch_iterator_train: {AffineBatchIterator: {batch_size: 8, scale: [2, 1]}}}", 'no range'),
    ("{batch_iterator_train: {AffineBatchIterator: {scale: [1, 1]}}}", 'batch_size'),
    ("{batch_iterator_train: FlipBatchIterator}", "'FlipBatchIterator' is not known"),
    ("{handlers: [CosineAnealing]}", r'handlers\[0\]: .*Did you mean CosineAnnealing'),
    ("{handlers: [AverageWeights: {epoch: 3}]}", 'Did you mean epochs'),
    ("{handlers: [AverageWeights: {epochs: 0}]}", 'at least one'),
    ("{handlers: {}}", 'a list is needed'),
    ("{train_split: {LookalikeSplit: {eval_size: 2}}}", '0 to 0.5'),
])
def test_nets_that_are_wrong(tmp_path, net, words):
    described = read(tmp_path, 'net: ' + net)['net']
    with pytest.raises(experiment.ConfigError, match=words):
        experiment.net_settings(described)


def test_layers_that_differ(tmp_path):
    """Without layers of its own, a file says by their names what is other about the net's."""
    described = read(tmp_path, 'net: {conv_num_filters: 3, conv_stride: [2, 2], hidden_W: {Normal: {std: 1}},'
                               ' hidden_nonlinearity: rectify}')['net']
    net = experiment.changed(small_net(), described)
    net.initialize_layers()
    assert [name for name in net.layers_] == ['input', 'conv', 'hidden', 'dropout3', 'output']
    assert net.layers_['conv'].output_shape == (None, 3, 5, 5)
    assert net.layers_['conv'].W.get_value().std() == pytest.approx(.02, rel=.5), 'as it was'
    assert net.layers_['hidden'].W.get_value().std() == pytest.approx(1, rel=.2)
    assert net.layers_['hidden'].nonlinearity is rectify and net.layers_['hidden'].num_units == 7
    for wrong, words in [
            ({'conv_num_filter': 3}, 'Did you mean conv_num_filters'),
            ({'convs_num_filters': 3}, 'Did you mean conv_num_filters'),
            ({'hidden_W': 'Normall'}, 'net: hidden_W: .*Did you mean Normal'),
            ({'conv_num_filters': 3, 'layers': []}, 'a list is needed|not known')]:
        with pytest.raises(experiment.ConfigError, match=words):
            experiment.changed(small_net(), wrong)


def test_layers_of_kfkd_that_differ(tmp_path):
    """A record of the run of minutes has its net, and makes it again."""
    fname = tmp_path / 'quick.yaml'
    fname.write_text(experiment.text(net=kfkd.DRAWN_CONSTANTS['NET']))
    assert fname.read_text().count('[3, 3]') == 2
    constants = kfkd.constants(for_the_data=False)
    constants.NET = experiment.constants(str(fname), vars(kfkd), net=kfkd.build_net())['NET']
    net = kfkd.build_net(constants)
    net.initialize_layers()
    assert list(net.layers_) == list(dict(kfkd.build_net().layers))
    assert net.layers_['conv1'].output_shape == (None, 16, 46, 46)
    assert sum(param.get_value().size for param in net.get_all_params()) == 430382
    fname.write_text('net: {hidden6_num_units: 5}')
    with pytest.raises(experiment.ConfigError, match=r'quick.yaml: .*Did you mean hidden\d_num_units'):
        experiment.constants(str(fname), vars(kfkd), net=kfkd.build_net())


SMALL = """
constants: {{MAX_EPOCHS: 2, BATCH_SIZE: 16, AUGMENT: faces, MONITOR: true, EVAL_SIZE: 0.25,
            FTRAIN: {0}/training.csv, FTEST: {0}/test.csv}}
net:
  layers:
  - {{name: input, type: InputLayer, shape: [null, 1, 96, 96]}}
  - {{name: conv1, type: Conv2DLayer, num_filters: 3, filter_size: [5, 5], stride: [4, 4]}}
  - {{name: output, type: DenseLayer, num_units: 30, nonlinearity: null}}
  objective_l2: 0.0001
"""


@pytest.fixture(scope='module')
def folder(faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp('experiment')
    (folder / 'experiment.yaml').write_text(SMALL.format(faces))
    return folder


def run(folder, *words):
    return subprocess.run([sys.executable, os.path.join(os.path.dirname(kfkd.__file__), 'kfkd.py')]
                          + list(words), cwd=str(folder), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)


def test_kfkd_runs_an_experiment(folder):
    """Another net, augmented and monitored, through kfkd's command line."""
    done = run(folder, '--config', 'experiment.yaml', 'fit')
    assert done.returncode == 0, done.stderr
    assert '47718 learnable parameters' in done.stdout  # 3x25+3 + 3x23x23x30+30
    net = kfkd.load_nets(str(folder / 'net.pickle'))
    assert len(net.train_history_) == 2 and net.objective_l2 == 1e-4
    assert isinstance(net.batch_iterator_train, AffineFaceBatchIterator)
    assert net.batch_iterator_train.scale == (1 / 1.12, 1.12)
    for name in 'activations', 'gradients', 'updates':
        assert len(net.train_history_[0][name]) == 1


def test_kfkd_names_the_fault(folder):
    (folder / 'wrong.yaml').write_text('constants: {MAX_EPOCH: 2}')
    done = run(folder, '--config', 'wrong.yaml', 'fit')
    assert done.returncode == 1
    assert done.stderr == ("kfkd.py: wrong.yaml: 'MAX_EPOCH' is not known. Did you mean "
                           "MAX_EPOCHS?\n")


def test_kfkd_without_the_packages_of_part_2(folder):
    code = ("import sys; sys.modules.update(cv2=None); import kfkd; kfkd.build_net()\n"
            "kfkd.AUGMENT = 'faces'\n"
            "try: kfkd.build_net()\nexcept kfkd.DataError as error: print(error)")
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, cwd=str(folder),
                          stderr=subprocess.PIPE, text=True)
    assert done.stdout == ("AUGMENT = 'faces': augmentation needs OpenCV: pip install -r "
                           "requirements.txt.\n"), done.stderr


def test_kfkds_own_constants_come_back(folder, monkeypatch):
    """`python kfkd.py config` writes what kfkd reads: the deck's net and its constants."""
    monkeypatch.chdir(folder)
    assert kfkd.main(['config', 'deck.yaml']) == 0
    assert len((folder / 'deck.yaml').read_text().splitlines()) <= 54
    written = experiment.read('deck.yaml')
    assert written['constants']['LEARNING_RATE'] == list(kfkd.LEARNING_RATE)
    assert not {'FTRAIN', 'DATA', 'DRAWN'} & set(written['constants']), 'paths of this machine'
    constants = experiment.constants('deck.yaml', vars(kfkd))
    assert all(getattr(kfkd, name) == value for name, value in constants.items() if name != 'NET')
    model = experiment.changed(kfkd.build_net(), written['net'])
    model.initialize_layers()
    assert sum(param.get_value().size for param in model.get_all_params()) == 16561502
    before = kfkd.build_net()
    assert [type(handler) for handler in model.on_epoch_finished] == [
        type(handler) for handler in before.on_epoch_finished]


def test_constants_of_the_command_line(tmp_path):
    program = dict(SEED=42, RATE=(.1, .2), FNET='net.pickle', NET=None, AUGMENT=None, small=1)
    (tmp_path / 'e.yaml').write_text('constants: {SEED: 1, FNET: a.pickle}')
    settings = ['SEED=43', 'RATE=[1, 2]', 'AUGMENT={faces: {middle: 47}}']
    found = {'SEED': 43, 'RATE': (1, 2), 'AUGMENT': {'faces': {'middle': 47}}}
    assert experiment.constants(None, program, settings) == found
    assert experiment.constants(str(tmp_path / 'e.yaml'), program, settings) == dict(
        found, FNET='a.pickle', NET={})
    assert experiment.constants(None, program) == {}


@pytest.mark.parametrize('setting, words', [
    ('SEED', '--set SEED: a constant and its value are needed, as in SEED=43'), ('SEED=[', 'are needed'),
    ('NET={}', 'are needed'), ('SEEDS=1', "--set: 'SEEDS' is not known. Did you mean SEED?"),
    ('SEED=one', '--set: SEED: a number is needed'), ('=1', "'' is not known"), ('small=1', 'not known')])
def test_constants_of_the_command_line_that_are_wrong(setting, words):
    with pytest.raises(experiment.ConfigError) as info:
        experiment.constants(None, dict(SEED=42, NET=None, small=1), [setting])
    assert words in str(info.value)


def test_another_update_rule_takes_what_it_takes(capsys):
    """Adam has no momentum, so nothing is left that would set one; it trains."""
    net = experiment.changed(kfkd.build_net(), {
        'update': 'adam', 'update_beta1': .8, 'max_epochs': 2, 'verbose': 0,
        'layers': [dict(name='input', type='InputLayer', shape=[None, 1, 96, 96]),
                   dict(name='output', type='DenseLayer', num_units=30, nonlinearity=None)]})
    assert net.update is adam and net.update_beta1.get_value() == np.float32(.8)
    assert not hasattr(net, 'update_momentum')
    names = [getattr(handler, 'name', None) for handler in net.on_epoch_finished]
    assert 'update_learning_rate' in names and 'update_momentum' not in names
    random = np.random.RandomState(0)
    net.fit(random.rand(10, 1, 96, 96).astype('f4'), random.rand(10, 30).astype('f4'))
    assert len(net.train_history_) == 2


RECIPES = sorted(glob.glob(os.path.join(os.path.dirname(kfkd.__file__), 'beyond', 'recipes', '*.yaml')))


@pytest.mark.parametrize('fname', RECIPES, ids=os.path.basename)
def test_recipes(fname, tmp_path, monkeypatch):
    """Each makes a net for the 30 coordinates, is written again the same, and is trusted in files."""
    for name, value in experiment.constants(fname, vars(kfkd)).items():
        monkeypatch.setattr(kfkd, name, value)
    net = kfkd.build_net()
    net.initialize_layers()
    assert list(net.layers_.values())[-1].output_shape == (None, 30)
    handlers = [type(handler).__name__ for handler in net.on_epoch_finished]
    assert handlers.index('CosineAnnealing') > handlers.index('AdjustVariable')
    assert handlers.index('CosineAnnealing') < handlers.index('EarlyStopping')

    kfkd.main(['config', str(tmp_path / 'again.yaml')])
    again, recipe = experiment.read(str(tmp_path / 'again.yaml')), experiment.read(fname)
    assert {name: again['constants'][name] for name in recipe['constants']} == recipe['constants']
    for name in 'handlers', 'train_split', 'objective_loss_function':
        assert again['net'].get(name) == recipe['net'].get(name)
    assert len(again['net']['layers']) == len(recipe['net']['layers'])

    with open(tmp_path / 'net.pickle', 'wb') as f:
        pickle.dump(net, f, -1)
    loaded = kfkd.load_nets(str(tmp_path / 'net.pickle'))
    assert loaded.train_split.eval_size == net.train_split.eval_size


def test_there_are_recipes():
    assert RECIPES
