"""Train a small Llama-type model on texts, in floating point, and save it: one that no file stored in 4 bits.

    python benchmarks/small_model.py TEXT [TEXT ...] --out FOLDER [--minutes 15] [--held-out 60000]

The last letters of each text are held out, and written to FOLDER/held_out.txt: calibrate and measure on these.

    spikebrain calibrate FOLDER --budget read=0.6 --text FOLDER/held_out.txt --out calibrated
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from rich.progress import Progress
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_VOCABULARY, _CONTEXT, _BATCH = 2048, 128, 16
_LEARNING_RATE, _WARM_UP = 2e-3, 0.05


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of the texts."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<end>", pad_token="<end>")


def small_llama() -> LlamaForCausalLM:
    """Return an untrained model of 2.6 million parameters."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokens: Tensor, minutes: float) -> tuple[int, float]:
    """Train for some minutes; return the steps and the mean loss of the last fifty."""
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    start, steps, losses = time.perf_counter(), 0, []
    with Progress() as progress:
        task = progress.add_task("training", total=1.0)
        while (done := (time.perf_counter() - start) / (60 * minutes)) < 1:
            rate = _LEARNING_RATE * min(done / _WARM_UP, 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            first = torch.randint(0, len(tokens) - _CONTEXT, (_BATCH, 1))
            rows = tokens[first + torch.arange(_CONTEXT)]
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1
            losses.append(float(loss.detach()))
            progress.update(task, completed=done)
    return steps, sum(losses[-50:]) / len(losses[-50:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--held-out", type=int, default=60_000, help="letters at the end of each text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    texts = [path.read_text("utf-8") for path in options.texts]
    kept, held_out = [text[: -options.held_out] for text in texts], [text[-options.held_out :] for text in texts]
    tokenizer, model = tokenizer_of(kept), small_llama()
    tokens = torch.tensor([token for text in kept for token in tokenizer(text).input_ids])
    steps, loss = train(model, tokens, options.minutes)
    model.eval().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "held_out.txt").write_text("".join(held_out), "utf-8")
    passes = steps * _BATCH * _CONTEXT / len(tokens)
    print(f"{steps:,} steps, {passes:.1f} passes over {len(tokens):,} tokens; training perplexity {math.exp(loss):.1f}")


if __name__ == "__main__":
    main()
