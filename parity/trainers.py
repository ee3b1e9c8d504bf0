"""The trainers, by backend: the one place that loads them."""
import contextlib

from common.settings import UserError


def load_trainer(backend):
    """The trainer class of a backend, "torch" or "mlx". Raises UserError where it is not installed."""
    with contextlib.suppress(ModuleNotFoundError):  # MLX first either way: its OpenBLAS must be loaded before torch
        import train_gpt_mlx
    try:
        if backend == "mlx":
            import train_gpt_mlx
            return train_gpt_mlx.MlxTrainer
        import train_gpt
        return train_gpt.TorchTrainer
    except ModuleNotFoundError as error:
        hint = f"`make install BACKEND={backend}` or `pip install '.[{backend}]'` provides it"
        raise UserError(f"{error}: {hint}") from None
