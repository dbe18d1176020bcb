"""Threads that wait for work, and the cores that they hold meanwhile."""
import os

__all__ = ['let_go_of_cores']


def let_go_of_cores():
    """Have the threads of OpenBLAS and OpenMP give their core back after some 0.1 ms without work.

    The libraries read it when they are loaded, so it takes effect on those that are loaded later, NumPy's
    OpenBLAS among them.  What the environment says already stays.

    Notes
    -----
    After a parallel region the threads of libgomp, with which the engine is compiled, turn round
    300,000 times, which is some 5 ms, and those of OpenBLAS for 2^26 clock cycles.  When work for the
    other library comes meanwhile, its threads have to share the cores with them: on two cores, a product
    of OpenBLAS and an Op of the engine in turn took 5 to 30 times as long as each by itself.  0.1 ms is
    enough to wait for the engine's next Op.
    """
    os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '16')  # 2^16 clock cycles
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '6000')
