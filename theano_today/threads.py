"""Threads that wait for work, and the cores that they hold meanwhile."""
import os

__all__ = ['let_go_of_cores']


def let_go_of_cores():
    """Have OpenBLAS's threads give their core back soon after a product.

    The library reads it when it is loaded, so it takes effect on those that are loaded later, NumPy's
    OpenBLAS among them.  What the environment says already stays.

    Notes
    -----
    After a product these threads turn round for 2^26 clock cycles, some 20 ms, and ask for the next.
    When an Op of the engine comes meanwhile, its threads have to share the cores with them: on two
    cores, a product of OpenBLAS and an Op of the engine in turn took 5 to 30 times as long as each by
    itself.  (2^18 is still too much.)

    Those of libgomp, with which the engine is compiled, turn round for some 8 ms, and products of
    OpenBLAS in that time take 1.1 to 1.3 times as long.  It stays, since to wake them takes longer than
    many an Op: on an idle core of a virtual machine 0.15 ms.
    """
    os.environ.setdefault('OPENBLAS_THREAD_TIMEOUT', '10')  # 2^10 clock cycles
