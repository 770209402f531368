"""Architectures of transformers, tiny and random: converted, recorded, saved, loaded, and each layer computed anew.

A configuration is made small by the names of its fields (`SMALL`); `DECODERS` and `OTHERS` say what else it needs.
"""

import pytest
import torch
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM

import spikebrain
from spikebrain import record, to_spiking
from spikebrain.energy import count_operations
from spikebrain.models import spiking_layers
from spikebrain.models.layers.observing import observing

_SIZES = {
    97: "vocab_size vocab_size_per_layer_input",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers",
    32: "hidden_size n_embd d_model embedding_size lru_width mamba_d_ssm",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size d_ff encoder_ffn_dim decoder_ffn_dim hidden_dim",
    16: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank index_head_dim",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
    "n_routed_experts num_local_experts moe_num_experts rotary_dim index_topk mamba_dt_rank linear_num_value_heads",
    8: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim d_kv linear_key_head_dim linear_value_head_dim "
    "mamba_d_head mamba_d_state state_size hidden_size_per_layer_input patch_size",
}
SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
SMALL |= dict.fromkeys(["num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_topk", "moe_k", "top_k"], 2)
SMALL |= dict.fromkeys(["index_n_heads", "linear_num_key_heads", "max_source_positions"], 2)
SMALL |= dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"], 0)
SMALL |= {"image_size": 16, "max_source_positions": 8, "moe_num_shared_experts": 1}

_MLA = {"num_key_value_heads": 4}
_HYBRID = {"num_hidden_layers": 4}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
DECODERS = {
    "apertus": {},
    "bamba": {**_HYBRID, **_MAMBA, "attn_layer_indices": [1]},
    "bitnet": {},
    "bloom": {},
    "codegen": {},
    "cohere": {},
    "cohere2": {},
    "deepseek_v2": {**_MLA, "topk_method": "greedy", "num_experts_per_tok": 2},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {},
    "diffllama": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {"mamba_n_heads": 4},
    "falcon_mamba": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma4_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "helium": {},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {**_HYBRID, "attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {},
    "mamba": {},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "minicpm3": _MLA,
    "minimax": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "mpt": {},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "opt": {"word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_text": _HYBRID,
    "qwen3_moe": {},
    "qwen3_next": _HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "rwkv": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {},
    "zamba2": {**_HYBRID, "layers_block_type": ["mamba", "hybrid"] * 2},
}
_CONVOLUTIONS = {"conv_dim": (16, 16), "conv_kernel": (5, 3), "conv_stride": (4, 2), "num_feat_extract_layers": 2}
_SPEECH = {**_CONVOLUTIONS, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
OTHERS = {
    "albert": {},
    "bart": {},
    "bert": {},
    "clip_vision_model": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "dinov2": {},
    "distilbert": {},
    "electra": {},
    "hubert": _SPEECH,
    "modernbert": {},
    "mpnet": {},
    "roberta": {},
    "siglip_vision_model": {},
    "t5": {},
    "vit": {},
    "wav2vec2": _SPEECH,
    "wavlm": _SPEECH,
    "whisper": {"num_mel_bins": 8},
}
FAST = ("gpt2", "mixtral", "olmo", "qwen2_moe", "vit")
SPEECH = ("hubert", "wav2vec2", "wavlm")
IMAGES = ("clip_vision_model", "dinov2", "siglip_vision_model", "vit")
SEQ2SEQ = ("bart", "t5", "whisper")


def config_of(model_type, changes):
    found = AutoConfig.for_model(model_type)
    small = {name: SMALL[name] for name, value in found.to_dict().items() if name in SMALL and type(value) is int}
    return AutoConfig.for_model(model_type, **{**small, **changes})


def tiny(model_type, changes):
    auto = AutoModelForCausalLM if model_type in DECODERS else AutoModel
    return auto.from_config(config_of(model_type, changes)).eval()


def inputs_of(model_type):
    ids = torch.arange(3, 12)[None]
    if model_type in IMAGES:
        return {"pixel_values": torch.randn(1, 3, 16, 16)}
    if model_type in SPEECH:
        return {"input_values": torch.randn(1, 400)}
    if model_type == "whisper":
        return {"input_features": torch.randn(1, 8, 16), "decoder_input_ids": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5]} if model_type in SEQ2SEQ else {})


@torch.no_grad()
def result_of(model, inputs):
    found = model(**inputs)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


class Emulation:
    """Compares what layers compute with dense integer products, by the rules of the report (eq. 19 to 23)."""

    def __init__(self, k=3.0):
        self.k, self.seen = k, set()

    def __call__(self, layer, step):
        x = step.x.reshape(-1, layer.in_features)[step.first_token :][: len(step.count)].double()
        threshold = (x.abs().mean(-1, keepdim=True) / self.k).clamp(1e-5, 1e4)
        torch.testing.assert_close(step.threshold.double(), threshold, rtol=1e-6, atol=0)
        count = (x / threshold).round()
        # Where x / threshold is half an integer but for the last bits of float32, both neighbours are right.
        differs = count != step.count
        assert ((x / threshold - step.count)[differs].abs() < 0.5 + 1e-4).all()
        sums = step.count.long() @ layer.weight.long().t()
        assert torch.equal(sums, step.accumulation[:, 0].long())
        train = torch.einsum("tnk,t->nk", step.train.spikes.long(), step.train.timestep_weight.long())
        assert torch.equal(train - step.train.zero_point, step.count.long())
        self.seen.add(layer.name)


def check_output(layer, arguments, y):
    """The output of an unobserved call is that of the dense product with INT8 weights; without a tie of a rounding."""
    x = arguments[0].double()
    threshold = (arguments[0].abs().mean(-1, keepdim=True).double() / 3).clamp(1e-5, 1e4)
    dense = F.linear((x / threshold).round() * threshold, layer.weight.double() * layer.scale.double())
    dense = dense if layer.bias is None else dense + layer.bias
    wrong = (y - dense).abs() > 1e-4 * dense.abs().max() + 1e-6
    tie = ((x / threshold).frac().abs() - 0.5).abs().min(-1).values < 1e-4
    assert not wrong[~tie].any(), layer.name


MATRIX = [
    pytest.param(name, changes, id=name, marks=() if name in FAST else pytest.mark.slow)
    for name, changes in (DECODERS | OTHERS).items()
]


@pytest.mark.parametrize(("model_type", "changes"), MATRIX)
def test_architecture(model_type, changes, tmp_path):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {model_type}")
    model, inputs = tiny(model_type, changes), inputs_of(model_type)
    before = result_of(model, inputs)
    spiking = to_spiking(model)
    assert torch.equal(result_of(model, inputs), before)  # the model itself is as it was
    layers = spiking_layers(spiking)
    assert tuple(layers) == spiking.conversion.converted

    emulation = Emulation()
    with record(spiking) as recording, observing(layers.values(), emulation):
        recorded = result_of(spiking, inputs)
    ran = {name for name, layer in recording.layers.items() if layer.num_tokens}
    assert emulation.seen == ran
    assert ran
    counts = count_operations(recording)
    assert counts.total("spiking").num_synops == sum(r.num_spikes * r.out_features for r in recording.layers.values())
    assert 0 <= counts.uncounted_share < 1
    assert bool(counts.not_counted()) == bool(counts.unsupported)

    hooks = [layer.register_forward_hook(check_output) for layer in layers.values()]
    found = result_of(spiking, inputs)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, recorded, rtol=1e-3, atol=1e-3 * float(found.abs().max()))

    path = tmp_path / "model.safetensors"
    spikebrain.save(spiking, path)
    again = spikebrain.load(path, architecture=None if model_type in DECODERS else tiny(model_type, changes)).model
    assert torch.equal(result_of(again, inputs), found)
    assert again.conversion == spiking.conversion
    if model_type in DECODERS:
        settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
        written = spiking.generate(**inputs, **settings)
        assert written.shape[1] > inputs["input_ids"].shape[1]
        assert torch.equal(again.generate(**inputs, **settings), written)


@pytest.mark.parametrize(
    "model_type",
    ["gemma", "gpt_oss", "llama", "llama4_text", "mamba2", "mixtral", "qwen2", "qwen2_moe"],
)
@pytest.mark.slow
def test_compiled_whole(as_users, model_type):
    model, inputs = to_spiking(tiny(model_type, DECODERS[model_type])), inputs_of(model_type)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(result_of(compiled, inputs), result_of(model, inputs))
