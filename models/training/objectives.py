"""Losses between a student and its teacher: attention outputs and hidden states layer by layer, or the logits.

Each has two parts: what the teacher knows of a batch, tensors without gradient, and what the student learns from that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...errors import InputError
from ..conversion.descent import relative_error
from ..conversion.layerwise import Surroundings, trace, watch
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.kernels import kernels_for

# Tokens whose logits are in memory at the same time.
_TOKENS = 1024


def layers_of(teacher: Any, ids: Tensor) -> tuple[Tensor, ...]:
    """Return what `match_layers` needs of a teacher: residual, attended and result of each layer (`LayerTrace`)."""
    return tuple(x for layer in trace(teacher, ids) for x in (layer.residual, layer.attended, layer.result))


def match_layers(student: SpikingBrainForCausalLM, known: tuple[Tensor, ...], ids: Tensor, share: float) -> Tensor:
    """Add the gradients of the layer-wise loss to the student's parameters.

    Each layer of the student gets the input of the teacher's layer, so that every layer learns on its own. Its loss is
    |a - a'|^2 / |a'|^2, with a the student's attention output and a' the teacher's. If more than attention learns, the
    same error of the layer's hidden state (what the layer adds to the residual stream) is added. Layers that compute
    the same as the teacher's are left out (`equals_teacher`).

    Args:
        student: parameters that require gradients learn.
        known: from `layers_of`.
        ids: token ids, [B, L].
        share: factor of the gradients: 1 / number of accumulated batches.
    Returns:
        The mean loss of the layers that learn, without gradient.
    """
    around = Surroundings(student, ids, known[0].dtype)
    learning = [
        i
        for i, layer in enumerate(student.model.layers)
        if any(p.requires_grad for p in layer.parameters()) and not equals_teacher(student, i, ids.shape[1])
    ]
    total = torch.zeros((), device=ids.device)
    for i in learning:
        (before, wanted, after), layer = known[3 * i : 3 * i + 3], student.model.layers[i]
        # Requires a gradient, so that spiking attention takes its differentiable form in every layer.
        residual = before.detach().clone().requires_grad_()
        if any(p.requires_grad for p in layer.get_submodule("mlp").parameters()):
            with watch({"attn": layer.get_submodule("attn")}) as seen:
                result, _ = layer(residual, around.context, around.state(i))
            loss = relative_error(result - residual, after - before)
            loss = loss + relative_error(seen["attn"][1], wanted)
        else:
            normed = layer.get_submodule("attn_norm")(residual)
            attended = layer.get_submodule("attn")(normed, around.context, around.state(i))
            loss = relative_error(attended, wanted)
        loss = loss / len(learning)
        (loss * share).backward()
        total += loss.detach()
    return total


def equals_teacher(student: SpikingBrainForCausalLM, layer: int, length: int) -> bool:
    """Return whether a converted layer computes the same as the Transformer's, on texts of that length.

    The loss of such a layer is rounding noise, which Adam would scale up to full steps.
    """
    settings, plan = student.settings, student.settings.layers[layer]
    sees_all = plan.softmax == "full" or settings.max_window_keys >= length
    same = settings.spiking is None and settings.num_sinks == 0 and plan.ffn != "moe"
    return same and "gla" not in plan.mixers and sees_all


@torch.no_grad()
def hidden_of(teacher: Any, ids: Tensor) -> tuple[Tensor]:
    """Return what `match_logits` needs of a teacher: the last hidden states, [B, L, d]."""
    return (teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state,)


def match_logits(
    student: PreTrainedModel,
    known: tuple[Tensor],
    ids: Tensor,
    share: float,
    *,
    head: nn.Module,
    temperature: float,
    ce_weight: float,
    penalty: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Add the gradients of KL(teacher || student) * temperature^2 + ce_weight * cross-entropy + penalty.

    Both terms are means over tokens. With experts, the load-balancing loss is added, with its weight from the
    configuration.

    Args:
        student: parameters that require gradients learn.
        known: from `hidden_of`.
        ids: token ids, [B, L].
        share: factor of the gradients: 1 / number of accumulated batches.
        head: turns the teacher's hidden states into logits.
        temperature: divides both logits in the KL term.
        ce_weight: weight of the cross-entropy with the next token of the text.
        penalty: called after the student has run; returns what is added, a number with a gradient.
    Returns:
        The loss, without gradient.

    Source:
        Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
    """
    teachers = known[0][:, :-1].flatten(0, 1)
    found = _run(student, ids)
    hidden = found.last_hidden_state[:, :-1].flatten(0, 1)
    targets, own = ids[:, 1:].flatten(), cast(nn.Module, student.get_output_embeddings())
    loss, gradients = torch.zeros((), device=ids.device), list[Tensor]()
    kernels = None if ce_weight else kernels_for("divergence", hidden.detach())
    for some, wanted, following in zip(
        hidden.split(_TOKENS), teachers.split(_TOKENS), targets.split(_TOKENS), strict=True
    ):
        # Backward at once, so that only the logits of these tokens are in memory.
        leaf = some.detach().requires_grad_()
        if kernels is None:
            part = _divergence(own, head, leaf, wanted, following, temperature, ce_weight) / len(targets)
            (part * share).backward()
        else:
            with torch.no_grad():
                known_logits = head(wanted)
            logits = own(leaf)
            rows, gradient = kernels.divergence(logits.detach(), known_logits, temperature, share / len(targets))
            logits.backward(gradient)
            part = rows.sum() / len(targets)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        loss += part.detach()
    ends, gradients = [hidden], [torch.cat(gradients)]
    if isinstance(student, SpikingBrainForCausalLM) and found.aux_loss is not None:
        ends.append(student.settings.aux_loss_weight * found.aux_loss)
        gradients.append(torch.full_like(found.aux_loss, share))
        loss += ends[-1].detach()
    if penalty is not None:
        ends.append(penalty())
        gradients.append(torch.full_like(ends[-1], share))
        loss += ends[-1].detach()
    torch.autograd.backward(ends, gradients)
    return loss


def _run(student: Any, ids: Tensor) -> Any:
    """Return what a student gives before its head."""
    if not isinstance(student, SpikingBrainForCausalLM):
        return student.base_model(input_ids=ids, use_cache=False)
    embedded = student.model.embeddings(ids)
    if not embedded.requires_grad:
        # As above: spiking attention must take its differentiable form for sink tokens, too.
        embedded.requires_grad_()
    return student.model(inputs_embeds=embedded, use_cache=False)


def check_head(model: Any, name: str) -> None:
    """Raise an InputError unless a model's logits are its output head's, of its last hidden state, and nothing else.

    Args:
        model: a causal language model of transformers.
        name: of it, for the message.
    """
    head, ids = model.get_output_embeddings(), torch.arange(4, device=model.device)[None]  # of which one may be padding
    fits = isinstance(head, nn.Module)
    if fits:
        training = model.training
        with torch.no_grad():
            model.eval()
            expected = model(input_ids=ids, use_cache=False).logits
            found = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
            model.train(training)
        fits = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    if not fits:
        raise InputError(
            f"distill.{name}: expected a model whose logits are its output head's, got a {type(model).__name__}, which "
            "changes them afterwards or has no head. Train another model."
        )


def _divergence(
    student: nn.Module,
    teacher: nn.Module,
    hidden: Tensor,
    known: Tensor,
    targets: Tensor,
    temperature: float,
    ce_weight: float,
) -> Tensor:
    """Return the loss of `match_logits`, summed over tokens, from heads and last hidden states [tokens, d]."""
    with torch.no_grad():
        wanted = _divided(teacher(known).float(), temperature).log_softmax(-1)
    logits = student(hidden).float()
    found = _divided(logits, temperature).log_softmax(-1)
    loss = F.kl_div(found, wanted, reduction="sum", log_target=True) * temperature**2
    return loss + ce_weight * F.cross_entropy(logits, targets, reduction="sum") if ce_weight else loss


def _divided(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature
