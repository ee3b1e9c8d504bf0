"""Learning rate, momentum and decay of the average: pure functions of settings, step and time."""


def run_progress(settings, step, elapsed_seconds):
    """Fraction of the run that is done, 0 to 1: of the steps or the time cap, the larger one."""
    done = step / settings.iterations if settings.iterations else 1.0
    if settings.max_wallclock_seconds > 0:
        done = max(done, elapsed_seconds / settings.max_wallclock_seconds)
    return min(done, 1.0)


def lr_scale(settings, progress):
    """Factor of every learning rate: 1, then linearly to 0 over the last `warmdown_fraction` of the run, but not below
    `lr_floor`."""
    scale = min(1.0, (1.0 - progress) / settings.warmdown_fraction) if settings.warmdown_fraction else 1.0
    return max(settings.lr_floor, scale)


def ema_decay(settings, step):
    """Decay of the weights' average after a step, smaller at first, to forget the initial weights."""
    return min(settings.ema_decay, (1 + step) / (10 + step))


def muon_momentum(settings, step):
    """Momentum of Muon at a step: linear from its start value to its final one over `muon_momentum_warmup_steps`."""
    steps = settings.muon_momentum_warmup_steps
    part = min(step / steps, 1.0) if steps else 1.0
    return (1.0 - part) * settings.muon_momentum_warmup_start + part * settings.muon_momentum


def adam_lrs(settings):
    """dict group of params.py -> learning rate, for Adam."""
    s = settings
    rates = {"embed": s.tied_embed_lr} if s.tie_embeddings else {"embed": s.embed_lr, "head": s.head_lr}
    return rates | {"scalar": s.scalar_lr}
