"""Perplexity over windows of a text: the same figure for any number of threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import ActivationError, InputError
from ..module_check import check_module

# Positions whose log-probabilities are taken at a time, to bound memory.
_POSITIONS = 128
# exp of a larger number does not fit a float64.
_LARGEST_NLL = 709.0


def split_windows(ids: Tensor, context: int) -> list[Tensor]:
    """Cut token ids, [L], into non-overlapping windows of `context` tokens.

    The first token of a window is not predicted. A remainder of at least 2 tokens is kept as a shorter window.

    Raises:
        InputError: context < 2, or fewer than `context` tokens.
    """
    if context < 2:
        raise InputError(f"context: expected at least 2 tokens, since the first is not predicted; got {context}.")
    if len(ids) < context:
        raise InputError(
            f"text: expected at least one window of {context} tokens, got {len(ids)}. "
            "Give a longer text, more tokens or a smaller context."
        )
    return [window for window in ids.split(context) if len(window) >= 2]


def measure_perplexity(model: nn.Module, windows: Sequence[Tensor]) -> float:
    """Return the perplexity of a causal language model of transformers over all windows; see `window_nlls`."""
    check_module("measure_perplexity", model)
    return perplexity_of(window_nlls(model, windows), windows)


def perplexity_of(nlls: Sequence[float], windows: Sequence[Tensor]) -> float:
    """Return exp of the mean negative log-likelihood, in nats, over the tokens that the windows predict."""
    return exp_of_mean(math.fsum(nlls) / sum(len(window) - 1 for window in windows))


def exp_of_mean(mean: float) -> float:
    """Return the perplexity of a mean negative log-likelihood, in nats."""
    if mean > _LARGEST_NLL:
        raise ActivationError(
            f"perplexity: expected a mean negative log-likelihood up to {_LARGEST_NLL:.0f} nats, got {mean:.4g}: the "
            "model's logits are far too large. Check its weights."
        )
    return math.exp(mean)


def window_nlls(
    model: nn.Module, windows: Iterable[Tensor], done: Callable[[int], None] = lambda tokens: None
) -> list[float]:
    """Return the summed negative log-likelihood of each window's tokens but the first.

    Each window runs on one thread, and `torch.get_num_threads()` windows run at the same time. Floats are then always
    summed in the same order, so the result does not depend on the number of threads. On a GPU windows run one after
    the other.

    Args:
        model: a causal language model of transformers; left in the mode and on the device it is in.
        windows: token ids, each [L] with L >= 2, on any device.
        done: called with the number of tokens of each finished window.
    Raises:
        ActivationError: logits are NaN or infinite; the message names the first layer that gives such values.
    """
    check_module("window_nlls", model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def run(window: Tensor) -> float:
        with one_thread():  # OpenMP's setting belongs to the thread: set here as well as below
            nll = _nll(model, window.to(device))
        done(len(window))
        return nll

    # A model that adapts its rotary embedding to the length of its input keeps state: one window after the other then.
    in_turn = device.type != "cpu" or _rotary_type(model) in ("dynamic", "longrope")
    with one_thread() as num_threads, ThreadPoolExecutor(1 if in_turn else num_threads) as pool:
        futures = [pool.submit(run, window) for window in windows]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def one_thread() -> Iterator[int]:
    """Let PyTorch compute on one thread inside a `with` block; yields the number of threads outside it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def _rotary_type(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope.get("rope_type") if isinstance(rope, dict) else None


@torch.inference_mode()
def _nll(model: nn.Module, window: Tensor) -> float:
    logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
    total = 0.0
    for part, targets in zip(logits.split(_POSITIONS), window[1:].split(_POSITIONS), strict=True):
        losses = nn.functional.cross_entropy(part.float(), targets, reduction="none")
        total += float(losses.double().sum())
    if not math.isfinite(total):
        raise ActivationError(_name_first_non_finite(model, window))
    return total


def _name_first_non_finite(model: nn.Module, window: Tensor) -> str:
    """Run the window again, and name the first module whose output is NaN or infinite."""
    found: list[str] = []
    this_thread = threading.get_ident()  # other windows run through the same hooks on theirs

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if threading.get_ident() != this_thread or not isinstance(output, Tensor):
                return
            if output.is_floating_point() and not bool(output.isfinite().all()):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    try:
        model(input_ids=window[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    where = found[0] if found else "the loss"
    return f"{where}: expected finite activations, got NaN or infinity. Check this layer's weights and number format."
