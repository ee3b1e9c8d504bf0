"""The one place that loads trainers: those of this repository, and those of scripts from elsewhere.

A script from elsewhere brings the common/ beside it, or is a bundle that holds one: it runs as one module of its own,
so that its parameter table, settings and data code are its own, and a proof is about them.
"""
import contextlib
import inspect
import linecache
import re
import sys
import traceback
import types
from pathlib import Path

from common import artifact, batches, bpb, calibration, fit, params, schedule, settings
from common.bundle import bundle_source
from common.openblas import load_openblas
from common.settings import UserError

ROOT = Path(__file__).parents[1]
SCRIPTS = {"torch": "train_gpt.py", "mlx": "train_gpt_mlx.py"}
OFFERS = "backend", "settings_class", "train_step", "token_nats", "logits", "gradients", "weights"
SELF_CONTAINED = {}  # name of a module -> path of the script that it was loaded from
COMMON = params, batches, bpb, schedule, artifact, calibration, fit, settings


def load_trainer(backend, path=None):
    """The trainer class of a backend: this repository's, or that of the script at `path`. Raises UserError."""
    with contextlib.suppress(ModuleNotFoundError):  # MLX and its OpenBLAS must be loaded before torch's libraries
        load_openblas()
    own = not path or Path(path).resolve() == ROOT / SCRIPTS[backend]
    module = own_script(backend) if own else load_script(Path(path))
    found = trainer_in(module, path)
    if found.backend != backend:
        raise UserError(f"{path} is a trainer for {found.backend}: give it as --{found.backend}")
    return found if hasattr(found, "load_state") else adapted(module, found)


def own_script(backend):
    """The module of a trainer of this repository. Raises UserError where its framework is not installed."""
    try:
        if backend == "mlx":
            import train_gpt_mlx as module
        else:
            import train_gpt as module
    except ImportError as error:  # the framework, or a library of its own
        hint = f"`make install BACKEND={backend}` or `pip install '.[{backend}]'` provides it"
        raise UserError(f"{error}: {hint}") from None
    return module


def load_script(path):
    """The module that a script and its common/, or a bundle, is. Raises UserError."""
    text, name = bundle_source(path), re.sub(r"\W", "_", str(path.resolve()))
    module = sys.modules[name] = types.ModuleType(name)  # dataclasses look their module up
    module.__file__, SELF_CONTAINED[name] = str(path), path
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # for tracebacks
    try:
        exec(compile(text, name, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from None
    return module


def trainer_in(module, path):
    """The class of a module that is a trainer, by what it offers. Raises UserError."""
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    found = [kind for kind in classes if all(hasattr(kind, name) for name in OFFERS)]
    found = [kind for kind in found if not any(kind in other.__mro__[1:] for other in found)]
    if len(found) != 1:
        names = ", ".join(kind.__name__ for kind in found) or f"no class has {', '.join(OFFERS)}"
        raise UserError(f"{path} does not define one trainer: {names}")
    return found[0]


class Code:
    """The functions of common/ that the script of a trainer class runs with: attributes of the module that it was
    loaded as, or of this repository's modules."""

    def __init__(self, trainer_class):
        name = trainer_class.__module__
        self.path = SELF_CONTAINED.get(name)  # None: this repository's
        self.name = str(self.path or f"{name}.py")
        self.modules = (sys.modules[name],) if self.path else COMMON

    def __getattr__(self, name):
        for module in self.modules:
            if hasattr(module, name):
                return getattr(module, name)
        raise UserError(f"{self.path} has no {name}, which the ladder needs")


@contextlib.contextmanager
def errors_of(code):
    """A UserError of a script's own class becomes one of this repository's. Any other exception of a script from
    elsewhere is printed with its traceback, and is an error too: nothing is proven."""
    try:
        yield
    except (UserError, code.UserError) as error:
        raise UserError(str(error)) from None
    except Exception as error:
        if not code.path:
            raise
        traceback.print_exc()
        raise UserError(f"{code.path} does not run here: {type(error).__name__}: {error}") from None


# ----------------------------------------------------------------------------------------------------------------------
# Records from before `state` keep climbing: what common/trainer.py names now, in their words
# ----------------------------------------------------------------------------------------------------------------------


class OlderTrainer:
    """A trainer from before `state`, with the methods that common/trainer.py names now."""

    rounding = False

    def state(self):
        return self.weights() | self.optimizer_state()

    def load_state(self, state):
        self.load_weights({name: state[name] for name in self.weights()})
        if "adam_step" in state:
            self.load_optimizer_state(state)

    def weights(self, averaged=False):
        return self.average() if averaged else super().weights()

    def train_step(self, tokens, lr_scale, momentum, rounding=False):
        self.rounding = rounding
        try:
            return super().train_step(tokens, lr_scale, momentum)
        finally:
            self.rounding = False


def adapted(module, trainer_class):
    """The trainer class of an older script with today's methods. The functions of the module get today's parameters."""
    if "stride" not in inspect.signature(module.eval_windows).parameters:  # from before the options
        module.eval_windows = without_last(module.eval_windows, 2)
        module.evaluate = without_last(module.evaluate, 5)
        module.encode_within = without_last(module.encode_model, 2)
    return type(trainer_class.__name__, (OlderTrainer, trainer_class), {"__module__": trainer_class.__module__})


def without_last(function, count):
    """A function that takes more arguments and ignores them, all but the first `count`."""
    def first_arguments(*arguments, **more):
        return function(*arguments[:count])
    return first_arguments
