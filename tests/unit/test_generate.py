"""The command and the job `generate` with models of transformers: what they write, count, say and refuse."""

import contextlib
import json
import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace

import spikebrain as sb
from spikebrain import jobs
from spikebrain.jobs import writing
from spikebrain.jobs.inputs import positions_of

PROMPT = "A neuron"
OPTIONS = ("--device", "cpu", "--max-new-tokens")
SIZES = {"vocab_size": 258, "hidden_size": 24, "num_hidden_layers": 2, "eos_token_id": 256}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, **HEADS, intermediate_size=40),
    "gemma3": transformers.Gemma3TextConfig(
        **SIZES, **HEADS, intermediate_size=40, num_key_value_heads=2, head_dim=6, sliding_window=8
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, **HEADS, intermediate_size=40),
    "falcon_mamba": transformers.FalconMambaConfig(**SIZES, state_size=4, use_mambapy=False),
}


def made(name):
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def likeliest(model, ids, number):
    """Write without a cache and without any decoder."""
    vars(model).pop("forward", None)
    for _ in range(number):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0].tolist()


@pytest.mark.parametrize("on_spikes", [False, True], ids=["float", "on spikes"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.filterwarnings("ignore:.*mamba.*")
def test_writes_the_likeliest_tokens(run, tokenizer, tmp_path, name, on_spikes):
    model = made(name)
    # None of these is asked for.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, top_k=3, top_p=0.5, temperature=0.2, repetition_penalty=3.0, max_length=10, eos_token_id=256
    )
    if on_spikes:
        model = sb.to_spiking(model)
    folder = saved(model, tokenizer, tmp_path / "model")
    code, out, err = run("generate", folder, PROMPT, *OPTIONS, 9, "--json")
    assert code == 0, err
    found = json.loads(out)
    again = sb.load(folder).model
    expected = likeliest(again, torch.tensor([tokenizer.encode(PROMPT)]), 9)
    assert found["token_ids"] == expected
    assert found["num_new_tokens"] == 9
    assert found["cache_bytes"] > 0
    assert (found["spikes"] is not None) == on_spikes
    assert sb.describe_decoding(again) in err if on_spikes else "in floating point" in err


def test_the_bytes_are_those_of_keys_and_values(run, model_folder):
    found = json.loads(run("generate", model_folder, PROMPT, *OPTIONS, 4, "--json")[1])
    assert found["cache_bytes"] == 2 * 2 * 2 * 6 * (8 + 3) * 4  # layers, keys and values, heads, dim, tokens, float32


def test_text_comes_piece_by_piece_and_ends_with_a_command_that_works(run, model_folder):
    pieces = []
    written = jobs.generate(jobs.GenerateSettings(model_folder, PROMPT, 6, device="cpu"), pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces).endswith(written.text)
    code, out, _ = run("generate", model_folder, PROMPT, *OPTIONS, 6)
    assert code == 0
    assert f"Next: spikebrain export {model_folder} --out {model_folder}-spiking   # the same model on spikes" in out
    assert run("export", model_folder, "--out", f"{model_folder}-spiking")[0] == 0
    code, out, err = run("generate", f"{model_folder}-spiking", PROMPT, *OPTIONS, 6)
    assert code == 0
    assert "by the compiled decoder" in err
    assert "spikes per channel and token." in out
    assert f"Next: spikebrain report {model_folder}-spiking" in out


def test_tokens_are_drawn_by_the_seed(model_folder):
    def drawn(seed, temperature=1.0):
        settings = jobs.GenerateSettings(model_folder, PROMPT, 8, temperature=temperature, seed=seed, device="cpu")
        return jobs.generate(settings).ids.tolist()

    state = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn(1, 1e-300) == jobs.generate(jobs.GenerateSettings(model_folder, PROMPT, 8, device="cpu")).ids.tolist()


def spaced(tokens):
    """A tokenizer as Llama 2 has it: a space before each word, which is left out at the start of a text."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "<mark>", *tokens])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer, backend.decoder = Metaspace(), MetaspaceDecoder()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", additional_special_tokens=["<mark>"]
    )


def test_new_text_goes_on_behind_the_prompt():
    tokenizer, pieces = spaced(["▁a", "▁neuron", "▁fires", "s", "▁now"]), []
    ids = tokenizer.convert_tokens_to_ids
    prompt = torch.tensor(ids(["<s>", "▁a", "▁neuron"]))
    new = writing.NewText(tokenizer, pieces.append, prompt)
    for token in ids(["s", "▁fires", "<mark>", "▁now"]):
        new.put(torch.tensor([token]))
    new.end()
    assert new.text == "".join(pieces) == "s fires now"
    assert len(pieces) > 1
    alone = writing.NewText(tokenizer, pieces.append, prompt)
    alone.put(torch.tensor(ids(["▁fires"])))
    alone.end()
    assert alone.text == " fires"


@pytest.mark.parametrize("name", [".", "./", ".."])
def test_the_folder_that_one_is_in(run, model_folder, monkeypatch, name):
    monkeypatch.chdir(model_folder)
    if name == "..":
        (model_folder / "in").mkdir()
        monkeypatch.chdir(model_folder / "in")
    code, out, err = run("generate", name, PROMPT, *OPTIONS, 2)
    assert code == 0, err
    assert f"Next: spikebrain export {name} --out {model_folder}-spiking" in out


def test_a_configuration_without_a_number_of_positions():
    config = transformers.XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8)
    assert positions_of(transformers.AutoModelForCausalLM.from_config(config)) is None


def test_a_token_that_ends_the_text_is_not_shown(tokenizer, tmp_path):
    model = made("llama")
    ids = likeliest(model, torch.tensor([tokenizer.encode(PROMPT)]), 5)
    last = ids[10]
    shown = []
    model.generation_config.eos_token_id = [256, last]
    num_bytes, found = writing.write_by_transformers(model, torch.tensor([ids[:8]]), 20, done=shown.append)
    stops = ids.index(last, 8)
    assert found[0].tolist() == ids[: stops + 1]
    assert [int(token) for token in shown] == ids[8:stops]
    assert num_bytes > 0


@pytest.mark.parametrize(
    ("prompt", "number", "remedy"),
    [("A" * 8, 57, "Write at most 56, or give a shorter prompt."), ("A" * 70, 1, "Give a shorter prompt.")],
)
def test_a_text_beyond_the_positions_is_refused(run, model_folder, prompt, number, remedy):
    code, _, err = run("generate", model_folder, prompt, *OPTIONS, number)
    assert code == 2
    assert "--max-new-tokens: expected a text that fits the 64 positions of the LlamaForCausalLM" in err
    assert f"got a prompt of {len(prompt)} tokens and {number} more. {remedy}" in err
    assert run("generate", model_folder, "A" * 8, *OPTIONS, 56)[0] == 0


def test_several_processes_read_for_hybrids_only(run, model_folder, monkeypatch):
    job = sys.modules["spikebrain.jobs.generate"]
    monkeypatch.setattr(job, "processes", lambda _: contextlib.nullcontext((0, 1)))
    code, _, err = run("generate", model_folder, PROMPT, "--device", "cpu", "--parallel")
    assert code == 2
    assert "expected a SpikingBrain model, as which several processes can read a text, got LlamaForCausalLM" in err


def test_a_model_without_a_tokenizer_is_refused(run, tmp_path):
    made("llama").save_pretrained(tmp_path / "model")
    code, _, err = run("generate", tmp_path / "model", PROMPT)
    assert code == 2
    assert "tokenizer" in err
