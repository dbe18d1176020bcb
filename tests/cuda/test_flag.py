"""The value of Theano's flag ``device``."""
import pytest
import theano_today
import torch
from theano_today import cuda

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
