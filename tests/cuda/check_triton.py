"""The kernel of kernels/mrg.py, in Triton's interpreter, against the table of powers."""
import theano_today  # noqa: F401, before theano

import numpy as np
import torch
from theano_today.cuda import ops_random
from theano_today.cuda.ops_random import M1, M2

rng = np.random.RandomState(0)
for streams, count in ((7, 493), (130, 8450), (300, 299), (1, 100), (64, 2113), (5, 160), (5, 161),
                       (3, 2), (40, 41)):
    state = np.hstack([rng.randint(0, M1, (streams, 3)), rng.randint(0, M2, (streams, 3))])
    state[0] = [M1 - 1] * 3 + [M2 - 1] * 3
    state = torch.from_numpy(state.astype('int32'))
    for ours, theirs in zip(ops_random.by_kernel(state, count, 'float32'),
                            ops_random.by_table(state, count, 'float32')):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
print('equal')
