"""Kernels in Triton, which comes with PyTorch for CUDA: fewer passes over the memory of the GPU.

==============  ==================================================================================
run.py          where every kernel is started and counted, and the way back to PyTorch's own calls
scalar.py       from Theano's scalar Ops to expressions of Triton
elemwise.py     any number of elementwise Ops with several outputs, in place where these are updates
pool.py         what comes before max-pooling, the pooling, and what comes after; and its gradient
mrg.py          Theano's random streams
dot.py          matrix products in three passes of TensorFloat-32
==============  ==================================================================================

Only `mrg` and `dot` are written out.  The others are put together from the scalar graph of an Op, of
arithmetic that IEEE 754 defines to the last bit; multiplications and additions are not contracted.
What they compute is therefore what NumPy computes, and they are tested for that.

Without a GPU Triton's interpreter (``TRITON_INTERPRET=1``) runs them, for tests.
"""
