"""Theano's default mode for the device.

    theano.function ──► DeviceMode.function_maker
                          ├─► optimise as for the CPU, without what is meant for C code
                          │     ──► TorchLinker ──► Program             on the device
                          └─► an Op has no counterpart there: warn,
                                ──► stock FunctionMaker, FAST_RUN       on the CPU

Left out of the optimisations: those that lower convolutions to C Ops, C BLAS calls, work in place
(`lines` decides what may), fuse elementwise Ops into C loops (`fused` makes kernels of them), or
put factors and sums into matrix products (which costs a pass of its own there, and none in a kernel).
Everything else of Theano's stays: constant folding, shape inference, merging, stabilisation.

Shared variables keep their types; `storage.DeviceStorage` moves their values.  Functions that run
on the CPU, by their ``mode`` or because of an Op, therefore share variables with those on the
device.
"""
import warnings

import theano
from theano.compile import mode as compile_mode
from theano.compile.function_module import FunctionMaker
from theano.gof import link
from theano.sandbox.rng_mrg import DotModulo

from ..cpu.rewrites import TAG as CPU_ENGINE
from . import fused
from . import ops_elemwise, ops_fused, ops_nnet, ops_random, ops_tensor  # noqa: F401, converters
from .convert import Unsupported, device
from .placement import place
from .program import Program
from .storage import adopt

__all__ = ['DeviceMode', 'TorchLinker', 'register']

NAME = 'theano_today_cuda'

# Tags and names in Theano's optdb.
LEFT_OUT = ('inplace', 'fusion', 'elemwise_fusion', 'conv_opts', 'AbstractConvCheck', 'c_blas',
            'use_c_blas', 'scipy_blas', 'cxx_only', 'gemm_optimizer', 'local_dot22_to_dot22scalar',
           CPU_ENGINE)

# Functions of these Ops are Theano's own bookkeeping, with arrays of a few numbers.
FOR_THE_HOST = (DotModulo,)


class TorchLinker(link.Linker):
    """Make a `Program` of a FunctionGraph, see `theano.gof.link.Linker`."""

    def __init__(self, allow_gc=None, schedule=None):
        self.allow_gc = allow_gc
        self.fgraph = self.placed = None
        self.updated = {}
        if schedule:
            self.schedule = schedule

    def accept(self, fgraph, no_recycling=None, profile=None):
        """Return a linker for this graph; raise `Unsupported` if it cannot run on the device."""
        linker = type(self)(self.allow_gc)
        linker.fgraph, linker.order = fgraph, self.schedule(fgraph)
        for variable in fgraph.inputs:
            if not isinstance(variable.type, theano.tensor.TensorType):
                raise Unsupported(f'an input of the type {variable.type}')
        linker.placed = place(fgraph, linker.order)
        return linker

    def __getstate__(self):  # pickled functions are placed anew
        return dict(vars(self), placed=None)

    def accept_var_updates(self, updated):
        self.updated = updated

    def make_thunk(self, input_storage=None, output_storage=None, storage_map=None):
        fgraph = self.fgraph
        inputs = list(input_storage or [[None] for _ in fgraph.inputs])
        outputs = output_storage or [[None] for _ in fgraph.outputs]
        adopt(fgraph.inputs, inputs, device())
        if self.placed is None:
            self.placed = place(fgraph, self.order)
        program = Program(fgraph, self.order, *self.placed, self.updated, inputs, outputs)
        return (program,
                [link.Container(v, storage) for v, storage in zip(fgraph.inputs, inputs)],
                [link.Container(v, storage, True) for v, storage in zip(fgraph.outputs, outputs)])

    def schedule(self, fgraph):
        return fgraph.toposort()


class DeviceMode(compile_mode.Mode):
    """The mode of `theano.function` with ``device=cuda``."""

    def __init__(self, linker=None, optimizer=None):
        super().__init__(linker or TorchLinker(),
                         optimizer or compile_mode.OPT_FAST_RUN.including(fused.TAG).excluding(*LEFT_OUT))

    def clone(self, link_kwargs=None, optimizer='', **kwargs):
        if link_kwargs:
            # Scan asks so for the mode of the function in its loop, which the host runs.
            return host_mode().clone(link_kwargs=link_kwargs, optimizer=optimizer, **kwargs)
        return type(self)(self.linker.clone(), optimizer or self.provided_optimizer)

    def function_maker(self, inputs, outputs, mode, **kwargs):
        """Stand in for FunctionMaker: on the device if all Ops can go there, else on the CPU."""
        try:
            return FunctionMaker(inputs, outputs, mode, **kwargs)
        except Unsupported as why:
            if not any(name in str(why) for name in (op.__name__ for op in FOR_THE_HOST)):
                name = kwargs.get('name') or 'without a name'
                warnings.warn(f'The function {name!r} runs on the CPU: theano_today.cuda does not '
                              f'cover {why}.', stacklevel=4)
            return FunctionMaker(inputs, outputs, host_mode(), **kwargs)


def host_mode():
    """Theano's FAST_RUN for the CPU, with the user's ``optimizer_excluding`` and the like."""
    mode = compile_mode.Mode('cvm' if theano.config.cxx else 'vm', 'fast_run')
    for flag, change in (('optimizer_excluding', mode.excluding),
                         ('optimizer_including', mode.including),
                         ('optimizer_requiring', mode.requiring)):
        tags = getattr(theano.config, flag)
        if tags:
            mode = change(*tags.split(':'))
    return mode


def register():
    """Make `DeviceMode` the default of `theano.function`.  Other modes stay on the CPU."""
    fused.register()
    compile_mode.register_linker(NAME, TorchLinker())
    mode = DeviceMode()
    compile_mode.register_mode(NAME, mode)
    if theano.config.mode in ('Mode', 'FAST_RUN'):
        # Theano takes its default by this name.
        compile_mode.predefined_modes['FAST_RUN'] = mode
        theano.config.mode = 'FAST_RUN'
        compile_mode.instantiated_default_mode = None
