"""Curves where people keep them (REPORT_TO): what the log says, sent on by the tools' own libraries as it is written.

The tools start before the clock and then run in a thread of their own, so they neither end nor slow the training.
"""
import contextlib
import dataclasses
import json
import queue
import threading
import time
from importlib import metadata

from common.settings import UserError

CURVES = {  # kind of a line of the log -> name of a curve: field of the line
    "resume": {},  # what was sent of later steps is void
    "step": {"train_loss": "train_loss", "tokens_per_second": "rate"},
    "val": {"val_loss": "val_loss", "val_bpb": "val_bpb"},
    "total": {"total_bytes": "bytes"},
    "final_exact": {"final_val_loss": "val_loss", "final_val_bpb": "val_bpb"},
}
LAST_WAIT = 20.0  # seconds that the end of a run waits for the tools


def check_tools(names):
    """UserError: one of the tools is not installed."""
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise UserError(f"REPORT_TO names {name}, which is not installed here: `pip install {name}`, or leave it "
                            "out", "bad_settings") from None


def start_tensorboard(path, settings):
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    writer = EventFileWriter(str(path))

    def add(step=0, **what):
        writer.add_event(Event(wall_time=time.time(), step=step, **what))
        writer.flush()

    def log(values, step):
        if values:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            add(step, summary=Summary(value=values))
        else:
            add(step + 1, session_log=SessionLog(status=SessionLog.START))

    add(summary=hparams_pb(settings))
    add(summary=text_pb("settings", f"```json\n{json.dumps(settings, indent=1)}\n```"))
    return log, writer.close


def start_wandb(path, settings):
    import wandb
    quiet = wandb.Settings(console="off")  # it would replace the streams
    run = wandb.init(project="parity-golf", name=path.name, dir=str(path), config=settings, settings=quiet)
    return run.log, run.finish


def start_trackio(path, settings):
    import trackio
    run = trackio.init(project="parity-golf", name=path.name, config=settings)
    return run.log, run.finish


STARTS = {"tensorboard": start_tensorboard, "wandb": start_wandb, "trackio": start_trackio}


class Report:
    """path: the run's folder; warn: prints a text. A tool that fails is warned of once, and gets nothing more."""

    def __init__(self, settings, path, warn):
        self.warn, self.lines, self.step = warn, queue.SimpleQueue(), 0
        started = {name: self.attempt(name, STARTS[name], path, dataclasses.asdict(settings))
                   for name in settings.report_to.names}
        self.tools = {name: tool for name, tool in started.items() if tool}  # name -> (log, finish)
        self.thread = threading.Thread(target=self.send_on, daemon=True)
        if self.tools:
            self.thread.start()

    def attempt(self, name, act, *arguments):
        try:
            return act(*arguments) or True
        except (Exception, SystemExit) as error:
            self.warn(f"warning: nothing more is reported to {name}: {type(error).__name__}: {error}".splitlines()[0])
            return False

    def put(self, kind, values):
        """Send on what a line of the log says."""
        self.step = values.get("step", self.step)
        if kind in CURVES:
            self.lines.put(({curve: values[field] for curve, field in CURVES[kind].items()}, self.step))

    def send_on(self):
        for line in iter(self.lines.get, None):
            self.tools = {name: tool for name, tool in self.tools.items() if self.attempt(name, tool[0], *line)}
        for name, (_, finish) in self.tools.items():
            self.attempt(name, finish)

    def close(self):
        self.lines.put(None)
        if self.tools:
            with contextlib.suppress(KeyboardInterrupt):  # the run has ended as it should
                self.thread.join(LAST_WAIT)
            if self.thread.is_alive():
                self.warn(f"warning: {', '.join(self.tools)} did not take all in {LAST_WAIT:.0f} s")
