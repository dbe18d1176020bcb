"""How long six specialists take one after the other, and side by side.

    python tests/benchmarks/jobs.py [--rows 2000] [--samples 4000] [--rounds 2] [--jobs 2]

JOBS = 1 has all cores; with JOBS = n each of n processes has an nth of them.  Both take turns, on
drawn faces and the deck's net.  Memory is the largest sum over the processes of a run (unique
pages), looked at twice a second.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import psutil

from epoch import with_project

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

RUN = '''
import sys
import kfkd
data, jobs, samples = sys.argv[1], *map(int, sys.argv[2:])
vars(kfkd).update(
    FTRAIN=data + '/training.csv', FTEST=data + '/test.csv', FTESTLABELS=None, RUNS=None,
    STANDARDIZE=True, SPECIALIST_SAMPLES=samples, JOBS=jobs, CHECKPOINT_MINUTES=60)
kfkd.fit_specialists()
'''


def draw(folder, rows):
    from data import make_faces
    make_faces.write_csvs(folder, rows, 10)


def memory(process):
    """Bytes that a process and those it has started have for themselves."""
    total = 0
    for one in [process] + process.children(recursive=True):
        try:
            total += one.memory_full_info().uss
        except psutil.Error:  # it has just ended
            pass
    return total


def measure(data, jobs, samples):
    """Return the seconds and the bytes of a run."""
    environment = with_project()
    with tempfile.TemporaryDirectory() as folder:
        start, peak = time.time(), 0
        with open(os.path.join(folder, 'printed'), 'wb') as printed:
            run = subprocess.Popen(
                [sys.executable, '-c', RUN, data, str(jobs), str(samples)], cwd=folder,
                env=environment, stdout=printed, stderr=printed)
        process = psutil.Process(run.pid)
        while run.poll() is None:
            try:
                peak = max(peak, memory(process))
            except psutil.Error:
                pass
            time.sleep(0.5)
        assert run.returncode == 0
        return time.time() - start, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in ('rows', 2000), ('samples', 4000), ('rounds', 2), ('jobs', 2):
        parser.add_argument('--' + name, type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data:
        draw(data, args.rows)
        for _ in range(args.rounds):
            for jobs in 1, args.jobs:
                seconds, peak = measure(data, jobs, args.samples)
                print(f'JOBS = {jobs}: {seconds:6.1f} s, {peak / 1e9:.2f} GB, load '
                      f'{os.getloadavg()[0]:.1f}', flush=True)


if __name__ == '__main__':
    main()
