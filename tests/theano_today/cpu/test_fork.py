"""Processes that are forked after the engine has run: `multiprocessing`'s default on Linux until 3.13."""
import os
import subprocess
import sys

import pytest

import theano_today  # noqa: F401

PROGRAM = """
import multiprocessing, sys, threading
import theano_today
import numpy as np, theano, theano.tensor as T, lasagne
from lasagne.layers import *

random = np.random.RandomState(0)
lasagne.random.set_rng(np.random.RandomState(1))
X, Y = random.rand(8, 1, 20, 20).astype('float32'), random.rand(8, 70).astype('float32')
x, y = T.ftensor4(), T.fmatrix()
net = DropoutLayer(MaxPool2DLayer(Conv2DLayer(InputLayer((None, 1, 20, 20), x), 20, (3, 3)), 2), p=.3)
net = DenseLayer(DropoutLayer(DenseLayer(net, 80)), 70)
params = get_all_params(net)
loss = ((get_output(net) - y) ** 2).mean()
step = theano.function([x, y], loss, updates=lasagne.updates.nesterov_momentum(loss, params, .01))
predict_ = theano.function([x], get_output(net, deterministic=True))

def predict(_):
    return predict_(X)

def train(_):
    for _ in range(3):
        step(X, Y)
    return [p.get_value() for p in params]

def children():
    with multiprocessing.get_context('fork').Pool(2) as pool:
        return pool.map(predict, range(4)), pool.map(train, range(1))[0]

train(None)
expected = predict(None)
predicted, trained = children()
assert all((p == expected).all() for p in predicted)
from_a_thread = []
thread = threading.Thread(target=lambda: from_a_thread.append(children()))  # which has no OpenMP threads
thread.start()
thread.join()
assert all((p == expected).all() for p in from_a_thread[0][0])
again = train(None)  # in the parent, from where the children began
for results in (trained, from_a_thread[0][1]):
    assert all((a == b).all() for a, b in zip(results, again))
print('answered')
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.parametrize('threads', [1, 2, 2 * (os.cpu_count() or 1) + 1])
def test_children_answer(threads):
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', PROGRAM], env=environment, timeout=600,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert result.stdout == 'answered\n', result.stderr[-2000:]
