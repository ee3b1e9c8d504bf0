"""Trainers that fail on purpose, in real processes: what the tests of several rooms share.

A server process imports the framework once and forks the ranks (multiprocessing's forkserver), so that a run starts in
a fraction of a second; the ranks meet over gloo as under torchrun. A fault is a function of this file; it changes the
process it is called in.
"""
import atexit
import contextlib
import faulthandler
import json
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.bundle import bundle
from common.readlog import parse_log
from tests.conftest import BACKENDS, ROOT, TINY, trainer_class

CONTEXT = multiprocessing.get_context("forkserver")
SCRIPTS = None
SECONDS = 60  # for anything that a test waits for


def start_server():
    """The process that the ranks are forked from, and one file of each trainer, which needs no bundling at every
    start."""
    CONTEXT.set_forkserver_preload(["tests.faults", "train_gpt", "torch._dynamo", "common.run"])
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}  # threads that spin starve a busy machine
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in BACKENDS.values():
        (folder / name).write_bytes(bundle(ROOT / name))
    folder.chmod(0o755)
    return folder


def settings(data_path, **changes):
    """dict of environment variables of a tiny run in float64: a step takes a few milliseconds."""
    values = (
        TINY
        | {
            "data_path": data_path,
            "compute_dtype": "float64",
            "run_id": "r",
            "warmup_steps": 0,
            "iterations": 24,
            "checkpoint_every": "5",
            "omp_num_threads": 1,
            "openblas_num_threads": 1,
        }
        | changes
    )
    return {name.upper(): str(int(value) if isinstance(value, bool) else value) for name, value in values.items()}


def rank_main(backend, rank, world_size, ports, folder, out, script, env, fault):
    """One rank, in a process of its own: never returns."""
    os.chdir(folder)
    out = os.open(f"{out}/rank{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(env)
    if world_size > 1 and backend == "torch":
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(ports[0]),
        )
    if world_size > 1 and backend == "mlx":
        Path("hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        os.environ.update(MLX_RANK=str(rank), MLX_HOSTFILE="hosts.json")
    sys.argv = [BACKENDS[backend]]
    code = 1
    faulthandler.register(signal.SIGUSR1)
    try:
        from common.run import main
        if backend == "torch":
            import torch
            torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
        kind = trainer_class(backend)
        if fault:
            name, *arguments = fault
            kind = globals()[name](kind, rank, *arguments) or kind
        code = main(kind, script)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Run:
    """The ranks of one run, under way."""

    def __init__(self, backend, folder, data_path, fault=None, world_size=1, **changes):
        global SCRIPTS
        if not find_spec(backend):  # then the test is skipped: see conftest.py
            raise ModuleNotFoundError(f"No module named '{backend}'", name=backend)
        SCRIPTS = SCRIPTS or start_server()
        folder.mkdir(exist_ok=True)
        self.folder, self.path, self.out = (
            folder,
            folder / "runs" / "r",
            Path(tempfile.mkdtemp(dir=SCRIPTS)),
        )  # never on a full disk
        ports = free_ports(world_size)
        self.ranks = [
            CONTEXT.Process(
                target=rank_main,
                daemon=True,
                args=(
                    backend,
                    rank,
                    world_size,
                    ports,
                    str(folder),
                    str(self.out),
                    str(SCRIPTS / BACKENDS[backend]),
                    settings(data_path, **changes),
                    fault,
                ),
            )
            for rank in range(world_size)
        ]
        for process in self.ranks:
            process.start()

    def wait(self, seconds=SECONDS):
        """Exit codes of the ranks."""
        for process in self.ranks:
            process.join(seconds)
            if process.exitcode is None:
                for left in self.ranks:
                    os.kill(left.pid, signal.SIGUSR1)  # tells where it stands
                time.sleep(1)
                text = self.text()
                for left in self.ranks:
                    left.kill()
                raise AssertionError(f"a rank did not end:\n{text}")
        return [process.exitcode for process in self.ranks]

    def text(self):
        return "\n".join(path.read_text() for path in sorted(self.out.glob("rank*.out")))

    def until(self, condition):
        """Waits for a condition (a function without arguments) of a run under way."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end and any(process.is_alive() for process in self.ranks), self.text()
            time.sleep(0.01)

    def until_step(self, step):
        self.until(lambda: self.path.exists() and any(v["step"] >= step for v in self.lines("step")))

    def lines(self, kind):
        log = self.path / "train.log"
        return [values for found, values in parse_log(log.read_text() if log.exists() else "") if found == kind]

    def status(self):
        return json.loads((self.path / "status.json").read_text())

    def model(self):
        return (self.path / "model.int8.zlib").read_bytes()


def ended(run, status, *words, codes=None):
    """Asserts the end of a run: exit codes, one message, the line in the log and the file, and the words in the
    reason."""
    found = run.wait()
    assert found == (codes or [2] * len(run.ranks)), (found, run.text())
    said, [line] = run.status(), run.lines("status")[-1:]
    assert said["status"] == line["status"] == status, run.text()
    assert said["reason"] == line["reason"] or "\n" in said["reason"]
    assert [word for word in words if word not in said["reason"]] == [], said
    assert f"status={status} reason=" in run.text()
    assert [line for line in run.text().splitlines() if line.startswith("error: ")], run.text()
    return said


# faults: each takes the trainer's class and the rank
# ----------------------------------------------------------------------


def at(kind, rank, which, step, act):
    """A trainer whose rank `which` calls act(trainer) before it makes the given step; 1 is the first."""
    class Faulty(kind):
        made = 0

        def train_step(self, *given):
            self.made += 1
            if rank == which and self.made == step:
                act(self)
            return super().train_step(*given)
    return Faulty


def slow(kind, rank, seconds=0.05):
    class Slow(kind):
        def train_step(self, *given):
            time.sleep(seconds)
            return super().train_step(*given)
    return Slow


def dies(kind, rank, which, step, code):
    return at(
        kind, rank, which, step, lambda trainer: os.kill(os.getpid(), signal.SIGKILL) if code < 0 else os._exit(code)
    )


def stops(kind, rank, which, step):
    """SIGSTOP: the whole process, threads too, stands still."""
    return at(kind, rank, which, step, lambda trainer: os.kill(os.getpid(), signal.SIGSTOP))


def raises(kind, rank, which, step):
    def act(trainer):
        raise ZeroDivisionError("a defect of this rank")
    return at(kind, rank, which, step, act)


def sleeps_in_data(kind, rank, which, step):
    """The rank waits forever for its data, as on a network file system that is gone."""
    import common.loop
    read = common.loop.step_rows

    def read_rows(stream, settings, at_step, *place):
        if rank == which and at_step + 1 == step:
            time.sleep(1000)
        return read(stream, settings, at_step, *place)
    common.loop.step_rows = read_rows


def poisons(kind, rank, which, step, what):
    """nan: the loss of this rank's rows. inf: the gradient of one weight, while the loss stays finite."""
    class Poisoned(kind):
        made = 0

        def train_step(self, *given):
            self.made += 1
            return super().train_step(*given)

        def backward(self, tokens, *given, **named):
            if not (rank == which and self.made == step):
                return super().backward(tokens, *given, **named)
            return poisoned_backward(self, what, lambda: super(Poisoned, self).backward(tokens, *given, **named))
    return Poisoned


def poisoned_backward(trainer, what, backward):
    if trainer.backend == "torch":
        if what == "nan":
            module, hook = trainer.model, lambda module, given, nats: nats * float("nan")
            handle = module.register_forward_hook(hook)
        else:
            handle = trainer.model.tok_emb.weight.register_hook(lambda grad: grad + float("inf"))
        try:
            return backward()
        finally:
            handle.remove()
    import mlx.core as mx
    plain = trainer.loss_and_grads

    def poisoned(params, tokens, scale):
        loss, grads = plain(params, tokens, scale)
        if what == "nan":
            return loss * float("nan"), grads
        return loss, grads | {"tok_emb.weight": grads["tok_emb.weight"] + mx.array(float("inf"), dtype=loss.dtype)}
    trainer.loss_and_grads = poisoned
    try:
        return backward()
    finally:
        trainer.loss_and_grads = plain


def keeps_weights(kind, rank, which, step, what, ahead=0):
    """poisons(), and writes what weights and optimizer state are before and after the step, and the next, to
    rank<r>.npz. ahead: the loop may look at a loss that many steps late, as on a GPU."""
    poisoned = poisons(kind, rank, which, step, what)

    class Keeps(poisoned):
        def __init__(self, *given):
            super().__init__(*given)
            self.steps_ahead, self.same = max(ahead, self.steps_ahead), []

        def train_step(self, *given):
            before = self.state()
            value = super().train_step(*given)
            if self.made >= step:
                after = self.state()
                self.same += [np.array_equal(before[n], after[n]) for n in before]
                if self.made == step:
                    self.seen = bool(np.isfinite(float(value)))
                np.savez(f"rank{rank}.npz", same=self.same, finite=self.seen, steps=self.made - step)
            return value
    return Keeps


def small_files(kind, rank, limit):
    """RLIMIT_FSIZE: a disk on which no file can be longer, as if it were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def much_space(kind, rank):
    """A small disk passes for one that is large enough."""
    import common.folder
    common.folder.disk_need = lambda settings: 0


def changes_code(kind, rank):
    """One int8 code of the model file is another when it is read back, in a file that is as well formed as the one
    written."""
    import common.finish
    from common.artifact import pack_payload
    from common.quantize import quantize_weights
    from common.zstream import zlib_encode
    write = common.finish.write_file

    def write_other(path, *parts):
        written = write(path, *parts)
        if path.name == "model.int8.zlib":
            from common.artifact import decode_model
            s, weights = decode_model(path.read_bytes())
            stored = quantize_weights(s, weights)
            code = stored["tok_emb.weight"].copy()
            code[3, 5] += 1 if code[3, 5] < 0 else -1
            path.write_bytes(zlib_encode(pack_payload(s, stored | {"tok_emb.weight": code})))
        return written
    common.finish.write_file = write_other


def acts_at(kind, rank, step, name, *arguments):
    """Calls another function of this file, in the middle of a run."""
    return at(kind, rank, 0, step, lambda trainer: globals()[name](*arguments))


def linger(seconds):
    """In short sleeps: a signal that comes just before a sleep begins is only seen when that sleep ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def slow_from(kind, rank, step, seconds):
    """A step that does not end, and a file named slow when it has begun."""
    def act(trainer):
        Path("slow").touch()
        linger(seconds)
    return at(kind, rank, 0, step, act)


def slow_validation(kind, rank, seconds, which=0):
    """The second validation does not end on one rank."""
    class Slow(kind):
        made = 0

        def train_step(self, *given):
            self.made += 1
            return super().train_step(*given)

        def token_nats(self, tokens):
            if self.made == 7 and rank == which:
                Path("slow").touch()
                linger(seconds)
            return super().token_nats(tokens)
    return Slow


def slow_final_evaluation(kind, rank, seconds):
    class Slow(kind):
        def token_nats(self, tokens):
            if Path("runs/r/model.int8.zlib").exists():
                Path("slow").touch()
                linger(seconds)
            return super().token_nats(tokens)
    return Slow


def diverges_at_test_time(kind, rank):
    """No weight is finite after a step of test-time training."""
    class Diverging(kind):
        def sgd_step(self, tokens, lr):
            super().sgd_step(tokens, float("nan"))
    return Diverging


def slow_warm_up(kind, rank, which):
    """The second step does not end, and there is little patience with it."""
    import common.loop
    common.loop.PATIENCE = 2.0
    return at(kind, rank, which, 2, lambda trainer: linger(1000))


def no_data(kind, rank, which):
    """One rank's folder has no shards, on another machine say."""
    if rank == which:
        os.environ["DATA_PATH"] = "/nowhere"


def only_resume(kind, rank, *others):
    """Nothing is set but RESUME, and others."""
    for name in kind.settings_class.__dataclass_fields__:
        os.environ.pop(name.upper(), None)
    os.environ.update(RESUME="runs/r", **dict(other.split("=") for other in others))


def closed_stdout(kind, rank):
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)
    os.close(reader)


def no_streams(kind, rank):
    """As a daemon starts; a library prints to the numbers that were closed."""
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None
    return at(kind, rank, 0, 8, lambda trainer: [os.write(number, b"printed by a library") for number in (1, 2)])


def taken_name(kind, rank):
    """All times are one second, whose name is taken; and what the other rank watches is written down."""
    import common.run
    common.run.time.strftime = lambda form: f"second{rank}"
    Path("runs/second0").mkdir(parents=True, exist_ok=True)

    class Watched(common.run.RankWatch):
        def hold(self):
            super().hold()
            if rank == 1:
                Path("watched").write_text(str(self.path))
    common.run.RankWatch = Watched


def nohup(kind, rank):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return slow(kind, rank)


def own_folder(kind, rank):
    """Each rank on a machine of its own, with nothing shared."""
    os.environ["MLX_HOSTFILE"] = os.path.abspath("hosts.json")
    Path(f"machine{rank}").mkdir(exist_ok=True)
    os.chdir(f"machine{rank}")


def hangs_in_step(kind, rank, which, step):
    return at(kind, rank, which, step, lambda trainer: linger(1000))


def other_code(kind, rank):
    import common.run
    plain = common.run.bundle_source
    common.run.bundle_source = lambda script: plain(script) + "#"


def little_space(kind, rank):
    from collections import namedtuple
    shutil.disk_usage = lambda path: namedtuple("Usage", "free")(1 << 20)


def small_later(kind, rank, step, limit):
    return at(kind, rank, 0, step, lambda trainer: small_files(kind, rank, limit))


def fills_disk(kind, rank, step):
    """Other files take the room that is left, on a disk that was found large enough."""
    much_space(kind, rank)

    def act(trainer):
        time.sleep(0.5)  # the checkpoint of step 10 is there
        with contextlib.suppress(OSError), open("fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    return at(kind, rank, 0, step, act)


def overwrite_shard(path, content):
    Path(path).write_bytes(bytes(content))


def replace_shard(path, other):
    os.replace(other, path)


def flip_bit(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes at a folder, where the machine lets us; else None."""
    folder.mkdir()
    mounted = os.system(f"mount -t tmpfs -o size={size} tmpfs '{folder}' 2>/dev/null") == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            os.system(f"umount -l '{folder}'")
