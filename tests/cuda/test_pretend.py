"""The pretended GPU of pretend.py catches what it is for."""
import pretend
import pytest
import theano
import theano.tensor as tt
import torch
from theano_today.cuda import convert

MODES = ['eager']


class Node:
    op = 'an Op'


FAULTS = {
    'a tensor of the host among the others': lambda x: x + torch.ones(3),
    'a look at an element': lambda x: x * x.sum().item(),
    'a shape that depends on elements': lambda x: x[x > 0],
    'a copy from the host': lambda x: x + torch.tensor([1., 2., 3.]).to(x.device),
    'a copy to the host': lambda x: x.cpu(),
    'another shape than on the CPU': lambda x: x[:2] if x.is_cuda else x,
    'another dtype than on the CPU': lambda x: x.double() if x.is_cuda else x,
}

pytestmark = pytest.mark.skipif(convert.device().type != 'cpu', reason='a real GPU is there')


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_are_found(fault):
    x = torch.tensor([1., -2., 3.])
    converter = convert.Converter(FAULTS[fault], (), False, False)
    with pytest.raises(Exception):
        pretend.check(Node, converter, [x], (FAULTS[fault](x),))


def test_nodes_are_checked():
    before = pretend.checked
    x = tt.vector()
    f = theano.function([x], tt.exp(x) + x[::-1])
    f([1, 2, 3])
    assert pretend.checked >= before + 3
