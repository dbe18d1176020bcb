"""PyTorch as a package that is not installed, for programs that tests run.

``sys.modules['torch'] = None`` would not do: SciPy takes whatever stands there for PyTorch.
"""

# The first lines of such a program.
CODE = '''import sys

class WithoutTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition('.')[0] == 'torch':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, WithoutTorch)
'''
