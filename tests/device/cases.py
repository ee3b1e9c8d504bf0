"""Everything that tests/device/test_step.py looks at, from one process: `python -m tests.device.cases`.

Prints one line of JSON: what each case launches and waits for, and what every kernel of them needs on sm_90.
"""
import dataclasses
import json
import sys
import time

import torch

from common.settings import Settings, settings_of
from parity.options import OPTIONS, with_options
from tests.device import inductor, roofline, sm90
from tests.device.step import Rank, count_step, start

WORLD_SIZES = 1, 8
DEFAULT = Settings(vocab_size=1024)
SMALL = dataclasses.replace(DEFAULT, num_layers=2)
SAME_STEP = settings_of("evaluation").keys() - {"quant_levels"} | {"lr_floor"}  # with these alone
MODEL = [name for name in OPTIONS if OPTIONS[name].keys() <= settings_of("model").keys()]
# one step each; the options have fewer layers, those of the model are together, the others are looked at in the larger
# world, and a graph that another case has is not compiled again
STEPS = {"default": DEFAULT, "small": SMALL, "small, kernels": dataclasses.replace(SMALL, kernels="triton"),
         "small, options of the model": with_options(SMALL, MODEL)}
OTHERS = {f"small, {name}": with_options(SMALL, [name]) for name in OPTIONS
          if name not in MODEL and OPTIONS[name].keys() - SAME_STEP}


def method_calls(trainer, tokens):
    """dict name -> a call of what else a run uses of a trainer."""
    state = trainer.state()
    return {
        "update_average": lambda: trainer.update_average(0.9),
        "token_nats": lambda: trainer.token_nats(tokens),
        "sgd_step": lambda: trainer.sgd_step(tokens, 0.1),
        "undo_sgd": trainer.undo_sgd,
        "state": trainer.state,
        "load_state": lambda: trainer.load_state(state),
        "logits": lambda: trainer.logits(tokens[:, :-1]),
        "gradients": lambda: trainer.gradients(tokens),
        "finite_alone": lambda: trainer.finite_alone(tokens),
    }


def short(s, passes, world_size):
    """The settings with so many micro-batches a step, and one or more on each rank."""
    return dataclasses.replace(s, train_batch_tokens=max(passes, world_size) * s.micro_batch_tokens)


def all_cases(meter):
    """dict name -> what was counted, as dicts."""
    found = {}
    for world_size in WORLD_SIZES:
        for name, s in (STEPS | OTHERS if world_size > 1 else STEPS).items():
            print(name, f"{time.process_time():.0f} CPU s", file=sys.stderr, flush=True)
            rounding = s.qat_start < 1 or s.quant_levels != DEFAULT.quant_levels
            found[f"{name}, world size {world_size}"] = count_step(
                meter, short(s, 1 if name == "default" else 2, world_size), world_size, rounding)
        rank = Rank(meter, short(with_options(SMALL, ["average"]), 2, world_size), world_size)
        rank.measured(rank.step)
        with rank.mode, meter:
            calls = method_calls(rank.trainer, rank.tokens[:64])
        for name, call in calls.items():
            found[f"{name}(), world size {world_size}"] = dataclasses.asdict(rank.measured(call))
    return found


def totals(case):
    """What the table of costs keeps of a case."""
    return {"launches": len(case["launches"]), "bytes": sum(launch["bytes"] for launch in case["launches"]),
            "peak": case["peak"], "collectives": sum(size for _, size, _ in case["collectives"]),
            "ms": round(sum(ms for *_, ms in roofline.table(case["launches"]).values()), 1)}


def main():
    cases = {name: case | totals(case) for name, case in all_cases(start()).items()}
    kernels = {name: sm90.compiled(name, source) for name, source in sm90.unique(inductor.Kernel.sources).items()}
    print(json.dumps({"torch": torch.__version__.split("+")[0], "cases": cases, "kernels": kernels}))


if __name__ == "__main__":
    main()
