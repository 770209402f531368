"""From ids to the last norm: embedding, sink tokens, layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ...backends.gpu.one_pass import current_pass, one_pass
from ...errors import InputError
from .attention import Attention, Context
from .block import Block
from .cache import LayerState, SpikingBrainCache, check_cache
from .config import SpikingBrainConfig
from .norm import RMSNorm
from .rope import rotary_angles
from .transformers_config import SpikingBrainPretrainedConfig


@dataclass
class SpikingBrainOutput(ModelOutput):
    """The result of a forward pass. B batch, L tokens, V vocabulary.

    Attributes:
        loss: mean negative log-likelihood of the next tokens, plus aux_loss_weight * aux_loss; None without labels.
        logits: [B, L, V], or [B, logits_to_keep, V] for the last tokens only.
        cache: the state after these tokens; None without use_cache.
        hidden_states: the embedding, the residual stream after each layer but the last, and the result of the last
            norm, [B, L, hidden] each, as in transformers; None unless requested.
        aux_loss: load-balancing loss, mean over the layers with experts; None if there are none.
        last_hidden_state: result of the last norm; returned by `SpikingBrainModel` only.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: SpikingBrainCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    aux_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SpikingBrainPreTrainedModel(PreTrainedModel):
    """Settings that transformers needs from both model classes."""

    config_class = SpikingBrainPretrainedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    # Assisted generation takes tokens back, which linear attention can't do.
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, Attention) and module.plan.is_parallel:
            nn.init.constant_(module.branch_weight, 0.5)
        elif isinstance(module, SpikingBrainModel) and module.sinks is not None:
            nn.init.normal_(module.sinks, std=std)


class SpikingBrainModel(SpikingBrainPreTrainedModel):
    """Embedding, sink tokens, layers and the last norm.

    Sink tokens are learned embeddings in front of the text. They see each other and nothing else, so their keys, values
    and states are the same for every text. They run once, as a batch of one, and the text continues from their state.
    Their positions are -num_sinks to -1, so the text starts at 0 with or without them. They are outside all windows:
    every token sees them. In linear attention, which has no mask, they are the first steps of the recurrence.

    Args:
        config: the model's configuration.
    """

    def __init__(self, config: SpikingBrainPretrainedConfig) -> None:
        super().__init__(config)
        self.settings: SpikingBrainConfig = config.settings
        self.embeddings = nn.Embedding(self.settings.vocab_size, self.settings.hidden_size)
        shape = (self.settings.num_sinks, self.settings.hidden_size)
        self.sinks = nn.Parameter(torch.empty(shape)) if self.settings.num_sinks else None
        self.layers = nn.ModuleList(Block(self.settings, plan) for plan in self.settings.layers)
        self.norm = RMSNorm(self.settings.hidden_size, self.settings.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: SpikingBrainCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SpikingBrainOutput:
        """Run the model up to its last norm; arguments are those of `SpikingBrainForCausalLM.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("SpikingBrainModel: expected either input_ids or inputs_embeds, got both or neither.")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[1] == 0:
            raise InputError("SpikingBrainModel: expected at least one token, got none. Is all of the text cached?")
        runs_twice = self.gradient_checkpointing and self.training
        if runs_twice:
            if cache is not None:
                raise InputError("SpikingBrainModel: a cache can't be used with gradient checkpointing. Leave it out.")
            use_cache = False
        check_cache(cache)
        if cache is None and (use_cache or self.sinks is not None):
            cache = SpikingBrainCache(self.settings)
        if cache is not None and cache.num_valid is None:
            self.start(cache, x)
        context = self._context(x, attention_mask, position_ids, cache)
        between: list[Tensor] | None = [] if output_hidden_states else None
        may_run_again = x.is_cuda and not torch.is_grad_enabled() and not torch.cuda.is_current_stream_capturing()
        if may_run_again and current_pass() is None:
            before = None if cache is None else [state.copy() for state in cache.layers]
            with one_pass() as shared:
                y, losses = self._run_layers(x, context, cache, between)
            if shared.failed():
                if cache is not None and before is not None:
                    cache.layers = before
                between = None if between is None else []
                y, losses = self._run_layers(x, context, cache, between)
            x = y
        else:
            x, losses = self._run_layers(x, context, cache, between, runs_twice=runs_twice)
        x = self.norm(x)
        return SpikingBrainOutput(
            cache=cache if use_cache else None,
            hidden_states=None if between is None else (*between, x),
            aux_loss=torch.stack(losses).mean() if losses else None,
            last_hidden_state=x,
        )

    def _run_layers(
        self,
        x: Tensor,
        context: Context,
        cache: SpikingBrainCache | None,
        between: list[Tensor] | None,
        *,
        runs_twice: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the residual stream after all layers and their losses; fill a list with the input of each layer."""
        losses: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            state = None if cache is None else cache.layers[i]
            if between is not None:
                between.append(x)
            if runs_twice:
                x, loss = checkpoint(_from_copy, layer, x, context, state, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
            else:
                x, loss = layer(x, context, state)
            losses += [] if loss is None else [loss]
        return x, losses

    def start(self, cache: SpikingBrainCache, x: Tensor) -> None:
        """Fill an empty cache with the sink tokens."""
        cache.num_valid = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        if self.sinks is None:
            return
        positions = torch.arange(-len(self.sinks), 0, device=x.device)[None]
        context = Context(*self._angles(positions, x.dtype), causal=False)
        sinks = self.sinks[None].to(x.dtype)
        for layer, state in zip(self.layers, cache.layers, strict=True):
            sinks, _ = layer(sinks, context, state)  # no load-balancing loss, as they are not text
            if state.columns is not None:
                state.columns.pin()

    def _context(
        self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: SpikingBrainCache | None
    ) -> Context:
        """Return positions and padding of these tokens, and add the tokens to the cache's totals."""
        batch, length = x.shape[:2]
        valid, is_padded = None, False
        if attention_mask is not None:
            seen = 0 if cache is None else cache.num_tokens
            if attention_mask.shape not in ((batch, length), (batch, seen + length)):
                raise InputError(
                    f"SpikingBrainModel.attention_mask: expected shape {(batch, seen + length)}, or "
                    f"{(batch, length)} for the new tokens only, got {tuple(attention_mask.shape)}."
                )
            valid = attention_mask[:, -length:].to(x.device, torch.bool)
            is_padded = not bool(valid.all())
        counted = torch.ones(batch, length, dtype=torch.int64, device=x.device) if valid is None else valid.long()
        positions = counted.cumsum(1) - 1
        if cache is not None and cache.num_valid is not None:
            if len(cache.num_valid) != batch:
                raise InputError(
                    f"SpikingBrainModel: expected {len(cache.num_valid)} rows, as in the cache, got {batch}. "
                    "A cache belongs to one batch."
                )
            rank, size = (0, 1) if cache.sequence is None else (cache.sequence.rank, cache.sequence.size)
            positions = positions + cache.num_valid[:, None] + rank * length
            cache.num_valid = cache.num_valid + size * counted.sum(1)
            cache.num_tokens += size * length
            is_padded = cache.is_padded = cache.is_padded or is_padded
        if position_ids is not None:
            positions = position_ids.to(x.device).expand(batch, -1)
        if positions.shape != (batch, length):
            raise InputError(
                f"SpikingBrainModel.position_ids: expected {(batch, length)}, got {tuple(positions.shape)}."
            )
        angles = self._angles(positions.clamp(min=0), x.dtype)
        sequence = None if cache is None else cache.sequence
        return Context(*angles, valid=valid if is_padded else None, is_padded=is_padded, sequence=sequence)

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return rotary_angles(positions, self.settings.dim, self.settings.rope_theta, dtype)


def _from_copy(layer: nn.Module, x: Tensor, context: Context, state: LayerState | None) -> tuple[Tensor, Tensor | None]:
    """Run a layer on a copy of its state (at most the sink tokens), so that the layer can run again."""
    return layer(x, context, None if state is None else state.copy())
