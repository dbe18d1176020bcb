"""The kernel of mrg.py, in Triton's interpreter, against the table of powers."""
import theano_today  # noqa: F401, before theano

import numpy as np
import torch
from theano_today.cuda import ops_random
from theano_today.cuda.kernels import mrg
from theano_today.cuda.ops_random import _A1, _A2, _NORMS, M1, M2

rng = np.random.RandomState(0)
for streams, count in ((7, 493), (130, 8450), (300, 299), (1, 100), (64, 2113)):
    state = np.hstack([rng.randint(0, M1, (streams, 3)), rng.randint(0, M2, (streams, 3))])
    state[0] = [M1 - 1] * 3 + [M2 - 1] * 3
    state = torch.from_numpy(state.astype('int32'))
    _, expected = ops_random.mrg_uniform(state, count, 'float32')
    jumps = mrg.jumps_for((_A1, _A2), (M1, M2), streams, count, state.device)
    numbers = mrg.uniform(state, jumps, count, _NORMS['float32'])
    np.testing.assert_array_equal(numbers.numpy(), expected.numpy())
    # The GPU's route computes only the end of each sequence for the new state.
    steps = -(-count // streams)
    for whole, end in zip(ops_random._powers(1, steps, state.device),
                          ops_random._powers(max(steps - 3, 1), steps, state.device)):
        np.testing.assert_array_equal(whole[-4:].numpy(), end.numpy())
print('equal')
