"""Memory that functions free is kept for their next call; everybody else's goes back to the kernel."""
import subprocess
import sys

import pytest

HEAD = '''
import resource
import theano_today
import numpy as np, theano, theano.tensor as T

def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2 ** 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = T.fmatrix()
sums = theano.function([x], (T.dot(x, x) + T.dot(x, 2 * x)).sum())
X = np.ones((2000, 2000), 'float32')  # 16 MB
'''


def run(program):
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', HEAD + program], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return [float(number) for number in result.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc only')
class TestMemory:

    def test_a_function_takes_no_new_pages_from_its_second_call_on(self):
        before, kept, later = run('''
before = resident(); sums(X); sums(X); kept = resident()
begin = faults(); sums(X); sums(X); print(before, kept, (faults() - begin) / 2)
''')
        assert kept > before + 30  # two matrices of 16 MB
        assert later < 400  # each has 4096 pages

    def test_the_users_arrays_go_back_to_the_kernel(self):
        before, after = run('''
sums(X); before = resident()
array = np.ones((1, 10000), 'float32')
for _ in range(30):
    array = np.vstack([array, np.ones((300, 10000), 'float32')])  # in the end 343 MB
assert resident() > before + 300
del array
print(before, resident())
''')
        assert after < before + 80

    def test_before_any_function_has_run_as_without_theano_today(self):
        before, after = run('''
before = resident()
array = np.ones((1, 10000), 'float32')
for _ in range(30):
    array = np.vstack([array, np.ones((300, 10000), 'float32')])
del array
print(before, resident())
''')
        assert after < before + 25  # glibc's own settings: 11

    def test_many_arrays_of_the_user_go_back_too(self):
        before, after = run('''
sums(X); before = resident()
arrays = [np.ones((500, 10000), 'float32') for _ in range(20)]
assert resident() > before + 300
del arrays
print(before, resident())
''')
        assert after < before + 80

    def test_what_a_function_kept_goes_with_it(self):
        kept, after = run('''
import gc
sums(X); kept = resident(); del sums; gc.collect(); print(kept, resident())
''')
        assert after < kept - 20
