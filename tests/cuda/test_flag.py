"""The value of Theano's flag ``device``."""
import pytest
import theano_today
import torch
from theano_today import cuda
from theano_today.cuda.kernels import run

MODES = ['eager']


@pytest.mark.parametrize('flag', ['cuda', 'cuda0', 'cuda1', 'gpu', 'gpu0'])
def test_values_that_are_for_this_engine(flag, monkeypatch):
    monkeypatch.setenv('THEANO_TODAY_TORCH', 'cpu')
    assert cuda.asked_for(flag) and cuda.torch_device(flag) == 'cpu'
    monkeypatch.delenv('THEANO_TODAY_TORCH')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert cuda.torch_device(flag) == 'cuda:' + ('1' if flag == 'cuda1' else '0')


@pytest.mark.parametrize('flag', [None, 'cpu', 'opencl0:0'])
def test_values_that_are_for_theano(flag):
    assert not cuda.asked_for(flag)


@pytest.mark.parametrize('flag, stand_in, message', [
    ('cuda:0', 'cpu', 'write cuda, or cuda0'), ('cuda', 'gpu', 'the only value is cpu'),
    ('cuda2', '', 'there are 2 GPUs, counted from cuda0')])
def test_typing_errors(flag, stand_in, message, monkeypatch):
    monkeypatch.setenv('THEANO_TODAY_TORCH', stand_in)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(theano_today.SetupError, match=message):
        cuda.torch_device(flag)


@pytest.mark.parametrize('asked, precision', [('', ''), ('0', ''), ('1', 'tf32'), ('x3', 'tf32x3')])
def test_how_products_are_rounded(asked, precision, monkeypatch):
    """PyTorch's own products and convolutions round with 1 alone."""
    monkeypatch.setenv('THEANO_TODAY_TF32', asked)
    assert run.precision() == precision
    for name in ('cuda.linker.register', 'cuda.storage.serve_host_programs', 'nets.batches.run_ahead',
                 'cuda.convert.use_device'):
        monkeypatch.setattr(f'theano_today.{name}', lambda *args: None)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda name: None)
    flags = [(torch.backends.cuda.matmul, 'allow_tf32'), (torch.backends.cudnn, 'allow_tf32'),
             (torch.backends.cudnn, 'deterministic')]
    before = [getattr(*flag) for flag in flags]
    try:
        cuda.install('cuda:0')
        assert [getattr(*flag) for flag in flags] == [asked == '1', asked == '1', True]
    finally:
        for flag, value in zip(flags, before):
            setattr(*flag, value)


def test_roundings_that_there_are_not(monkeypatch):
    monkeypatch.setenv('THEANO_TODAY_TF32', 'yes')
    with pytest.raises(ValueError, match='THEANO_TODAY_TF32=yes: choose 0, 1 or x3'):
        run.precision()
