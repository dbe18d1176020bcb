"""The command line by itself, and how a program ends."""
import signal
from types import SimpleNamespace

import pytest
from beyond.runs import command
from beyond.runs.training import best_error
from theano_today.nets.checkpoint import Stopped
from theano_today.nets.files import FileError

STEPS = {'fit': (print, '', None, 'train'), 'tune': (iter, '[NET]', None, 'from a net or none'),
         'predict': (len, 'NETS...', 'nets.pickle', 'mark'),
         'compare': (max, 'RUN...', None, 'tell apart'), 'report': (min, 'RUN', None, 'show')}


@pytest.mark.parametrize('words, function, arguments', [
    ([], sum, []), (['fit'], print, []), (['predict'], len, ['nets.pickle']),
    (['predict', 'other'], len, ['other']), (['predict', 'a', 'b'], len, ['a', 'b']),
    (['compare', 'a', 'b'], max, ['a', 'b']),
    (['report', 'a'], min, ['a']), (['tune'], iter, [None]), (['tune', 'a'], iter, ['a'])])
def test_steps(words, function, arguments):
    args = command.parse(words, 'p', 'Text.', sum, STEPS)
    assert (args.function, args.arguments) == (function, arguments)
    assert args.step == (words[0] if words else None) and not args.fresh and args.config is None


def test_options_stand_before_the_step_and_fresh_behind_it_too():
    for words in ['--fresh', 'fit'], ['fit', '--fresh'], ['--fresh']:
        assert command.parse(words, 'p', '', sum, STEPS).fresh
    assert command.parse(['--config', 'f.yaml', 'fit'], 'p', '', sum, STEPS).config == 'f.yaml'
    assert command.parse(['--set', 'A=1', '--set', 'B=c d', 'fit'], 'p', '', sum, STEPS).set == [
        'A=1', 'B=c d']
    with pytest.raises(SystemExit):
        command.parse(['predict', '--fresh'], 'p', '', sum, STEPS)


@pytest.mark.parametrize('error, status, words', [
    (FileError('f.csv\n\x1b[2J is not there'), 1, 'p: f.csv ?[2J is not there\n'),
    (MemoryError(), 1, 'p: there is not enough memory\n'),
    (OSError('x' * 5000), 1, 'p: ' + 'x' * 500 + ' ... ' + 'x' * 500 + '\n'),
    (KeyboardInterrupt(), 130, 'p: interrupted\n'),
    (Stopped(signal.SIGTERM), 143, 'p: interrupted\n')])
def test_what_ends_a_program_becomes_one_line(capsys, error, status, words):
    with command.exit_status('p') as found:
        raise error
    assert found() == status and capsys.readouterr().err == words


def test_an_error_of_our_own_is_no_message():
    with pytest.raises(ZeroDivisionError):
        with command.exit_status('p'):
            1 / 0
    with command.exit_status('p') as found:
        pass
    assert found() == 0


def test_patterns_of_files():
    assert command.patterns(dict(FNET='net.pickle', FPAGE='page-{name}.html', DATA='data', F=1)) == [
        'net.pickle', 'page-*.html']


def test_best_error():
    nan = float('nan')
    history = [dict(epoch=n, train_loss=(n / 48) ** 2, valid_loss=(v / 48) ** 2)
               for n, v in ((1, 4.), (2, 2.), (3, nan))]
    assert best_error(history) == 'Best validation RMSE: 2.000 pixels, at epoch 2.'
    assert best_error(history[2:]) == 'Training RMSE: 3.000 pixels, at epoch 3.'


def test_a_report_wants_the_rows_of_the_training(monkeypatch):
    monkeypatch.setattr(command, 'read', lambda run: {'constants': {'GAPS': True}})
    with pytest.raises(FileError, match=r'GAPS = True, now it is False: .*--config a.experiment.yaml'):
        command.report('a', None, None, SimpleNamespace(GAPS=False))
