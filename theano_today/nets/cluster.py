"""Workers of Dask: those of a client that is there, or a cluster on this machine.

A process of its own owns the cluster, which lives as long as the standard input of that process is
open.  Then, whether who has started it closes it or is dead, each training ends after its batch,
with its checkpoint written.

A process of its own, because Dask's workers import the main program of the process that has their
nannies, which would train once more in each where nobody thought of ``if __name__ == '__main__'``;
because nannies change the environment of their process (OMP_NUM_THREADS); and because a Ctrl-C in
the terminal reaches all processes of the foreground.
"""
import contextlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time

__all__ = ['client', 'stop']

# Not as a module: importing its package would import Theano, and take memory of a GPU.
OWNER = 'import runpy, sys; runpy.run_path(sys.argv[1])["main"]()'


@contextlib.contextmanager
def client(jobs, most):
    """Give the client that is there, or one with workers of our own; and how many train at a time.

    Parameters
    ----------
    jobs : int
        -1: one for each worker of the client, or for each core.
    most : int
        How many there are to be trained.
    """
    found = None
    if 'distributed' in sys.modules:
        from distributed import default_client
        with contextlib.suppress(ValueError):  # there is none
            found = default_client()
    if found is not None:
        yield found, jobs if jobs > 0 else max(len(found.nthreads()), 1)
        return
    from dask.system import CPU_COUNT
    jobs = min(jobs if jobs > 0 else CPU_COUNT, most)
    with _local_client(*_environments(jobs, CPU_COUNT)) as ours:
        yield ours, jobs


def _environments(jobs, cores):
    """Environment variables of all workers, and of each: its share of the threads, its GPU."""
    from .. import _user_flag, cuda
    common = {} if 'OMP_NUM_THREADS' in os.environ else {
        'OMP_NUM_THREADS': str(max(cores // jobs, 1))}
    flag, gpus = _user_flag('device'), ['']
    if flag in ('cuda', 'gpu') and cuda.asked_for(flag):
        import torch
        gpus = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(
            map(str, range(torch.cuda.device_count())))).split(',')
    return common, [{'CUDA_VISIBLE_DEVICES': gpus[job % len(gpus)]} if len(gpus) > 1 else {}
                    for job in range(jobs)]


@contextlib.contextmanager
def _local_client(environment, workers):
    """Start workers and give a client of them.

    Each is a process with one thread, which a nanny starts again when it dies.  Nobody but this
    machine reaches them.

    Parameters
    ----------
    environment : dict
        Environment variables of all, beside those of this process.
    workers : list of dict
        Those that a worker has for itself.
    """
    from distributed import Client
    folder = tempfile.mkdtemp(prefix='trainings.')
    path = os.pathsep.join(os.path.abspath(part or '.') for part in sys.path)
    process = subprocess.Popen([sys.executable, '-c', OWNER, __file__], stdin=subprocess.PIPE,
                               start_new_session=True,
                               env={**os.environ, **environment, 'PYTHONPATH': path,
                                    'DASK_LOGGING__DISTRIBUTED': 'critical'})
    try:
        pickle.dump((workers, folder), process.stdin)
        process.stdin.flush()
        scheduler = os.path.join(folder, 'scheduler.json')
        while not os.path.exists(scheduler):
            if process.poll() is not None:
                raise OSError('Dask has not started; see above what it has printed')
            time.sleep(0.02)
        with Client(scheduler_file=scheduler, set_as_default=False) as client:
            yield client
        process.stdin.close()
        process.wait()
    finally:
        process.kill()  # and, with their nannies, the workers
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def stop():
    """See `worker.stop`; by name, as the process that owns the cluster has no Theano."""
    from theano_today.nets import worker
    return await worker.stop()


def main():
    import dask
    from distributed import Client, Nanny, Scheduler, SpecCluster
    workers, folder = pickle.load(sys.stdin.buffer)
    dask.config.set({
        'distributed.nanny.pre-spawn-environ': {},      # threads are for us to say
        'distributed.scheduler.worker-ttl': None})      # a step may take long
    nannies = {number: dict(cls=Nanny, options=dict(
        nthreads=1, memory_limit=0, local_directory=folder, env=environment))
        for number, environment in enumerate(workers)}
    scheduler = dict(cls=Scheduler, options=dict(
        host='127.0.0.1', port=0, scheduler_file=os.path.join(folder, 'scheduler.json'),
        # A page for a browser with Bokeh; without it a server of numbers, on any port that is free.
        dashboard_address='127.0.0.1:8787' if importlib.util.find_spec('bokeh') else '127.0.0.1:0'))
    with SpecCluster(nannies, scheduler) as cluster, Client(cluster) as client:
        sys.stdin.buffer.read()
        client.run(stop, on_error='ignore')
