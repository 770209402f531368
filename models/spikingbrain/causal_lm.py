"""The language model in transformers' form: from ids to logits, loss and generation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin

from ...errors import InputError
from ...module_check import check_module
from ..layers.guards import save_pretrained
from ..layers.spike_linear import spiking_layers
from .cache import SpikingBrainCache, check_cache
from .config import SpikingBrainConfig
from .model import SpikingBrainModel, SpikingBrainOutput, SpikingBrainPreTrainedModel
from .transformers_config import SpikingBrainPretrainedConfig

# The name under which `generate` passes the cache from step to step; it differs between versions of transformers.
_PARAMETERS = inspect.signature(vars(GenerationMixin)["prepare_inputs_for_generation"]).parameters
_CACHE_NAME = "cache" if "cache" in _PARAMETERS else "past_key_values"


class SpikingBrainForCausalLM(SpikingBrainPreTrainedModel, GenerationMixin):
    """A SpikingBrain language model, with `generate`, loss and the rest of transformers' interface.

    Args:
        config: a `SpikingBrainConfig`, or the same settings in transformers' form.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: SpikingBrainPretrainedConfig | SpikingBrainConfig) -> None:
        if isinstance(config, SpikingBrainConfig):
            config = SpikingBrainPretrainedConfig(config)
        super().__init__(config)
        self.model = SpikingBrainModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does; `spikebrain.load` also reads released folders.

        Raises:
            InputError: config.json says that the model spikes, but not how its layers do.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.settings.spiking is not None and not spiking_layers(model):
            raise InputError("SpikingBrainForCausalLM.from_pretrained: this is a spiking model. Use spikebrain.load.")
        return loaded

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save a model as `spikebrain.save` does, float or spiking."""
        save_pretrained(self, *args, **kwargs)

    @property
    def settings(self) -> SpikingBrainConfig:
        """The current configuration, from `self.config`; resizing the embedding changes it."""
        return self.config.settings

    def get_output_embeddings(self) -> nn.Module:
        """Return the output head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: SpikingBrainCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | Tensor | None = None,
        past_key_values: SpikingBrainCache | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> SpikingBrainOutput | tuple[Any, ...]:
        """Run the model. B batch, L new tokens.

        Args:
            input_ids: [B, L].
            attention_mask: 0 for padding; [B, L], or [B, cached tokens + L]; padding should be on the left.
            position_ids: positions for the rotary embedding, [B, L]; by default tokens are counted without padding.
            cache: state after the preceding tokens, updated in place; None at the start of a text.
            inputs_embeds: embeddings to use instead of input_ids, [B, L, hidden].
            labels: token ids, not shifted, [B, L]; -100 for tokens that are not to be predicted.
            use_cache: whether to return a cache; by default as the configuration says, but never in training.
            output_hidden_states: whether to return `SpikingBrainOutput.hidden_states`.
            logits_to_keep: compute logits for this many last tokens only; 0 for all.
            num_items_in_batch: divisor of the summed loss; None for the number of predicted tokens.
            past_key_values: another name for cache.
            return_dict: False to return a tuple.
            unused: arguments that transformers may pass as None or False; other values are refused.
        Raises:
            InputError: shapes do not match, or an argument is unknown.
        """
        surprising = [name for name, value in unused.items() if value is not None and value is not False]
        if surprising:
            raise InputError(f"SpikingBrainForCausalLM.forward: unknown arguments {surprising}. Leave them out.")
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(
            found.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else found.last_hidden_state
        )
        loss = None
        if labels is not None:
            labels = labels[:, -logits.shape[1] :]
            sizes = {"vocab_size": logits.shape[-1], "num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, **sizes)
            if found.aux_loss is not None:
                loss = loss + self.model.settings.aux_loss_weight * found.aux_loss
        output = SpikingBrainOutput(
            loss=loss,
            logits=logits,
            cache=found.cache,
            hidden_states=found.hidden_states,
            aux_loss=found.aux_loss,
        )
        return output.to_tuple() if return_dict is False else output

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Tell `generate` that the model brings its own cache."""
        return False

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        cache: SpikingBrainCache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Mapping[str, Any]:
        """Return the arguments of the next forward pass in `generate`, with the tokens not yet in the cache."""
        cache = kwargs.get("past_key_values") if cache is None else cache
        check_cache(cache)
        names = ("attention_mask", "use_cache", "logits_to_keep")
        arguments: dict[str, Any] = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        arguments["cache"] = cache
        seen = 0 if cache is None else cache.num_tokens
        if inputs_embeds is None:
            return {**arguments, "input_ids": input_ids[:, seen:]}
        if seen == 0:
            return {**arguments, "inputs_embeds": inputs_embeds}
        return {**arguments, "input_ids": input_ids[:, -1:]}  # input_ids holds generated tokens only

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **settings: Any
    ) -> dict[str, Any]:
        """Pass the cache on to the next step of `generate`."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **settings)
        if outputs.cache is not None:
            model_kwargs.pop("cache", None)
            model_kwargs[_CACHE_NAME] = outputs.cache
        return model_kwargs


AutoModelForCausalLM.register(SpikingBrainPretrainedConfig, SpikingBrainForCausalLM, exist_ok=True)


def check_spikingbrain(where: str, model: object, name: str = "model") -> None:
    """Refuse what is no SpikingBrain model, in the name of the function that got it."""
    advice = "from_transformer makes one of a Transformer."
    check_module(where, model, name, SpikingBrainForCausalLM, advice)
