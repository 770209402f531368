"""SmolLM2 becomes a 7B-style hybrid, half of its layers linear, and is trained lightly: perplexity before, after, on spikes.

    python benchmarks/distill_smollm2.py --text BOOK.txt [BOOK.txt ...] --test wiki.test.raw --out DIR
        [--model smollm2] [--samples N] [--minutes M] [--save DIR] [--learning-rate R ...]
    python benchmarks/distill_smollm2.py --smoke --out DIR

The teacher writes --samples tokens (bfloat16, temperature 1); they and the books are what is trained on, and the test text
never is. The converted model is calibrated on --calibrate of those tokens, then trained in the stages of `STAGES`, each of
which has a share of what is left of --minutes: its number of steps follows from the time of a few steps of a copy. The last
stage has spikes in its forward pass. Perplexity is taken of the test text in windows of --window tokens without overlap,
the first token of each not predicted, in float32; and of its first --watched tokens a few times in each stage. Training is
bfloat16 autocast on a GPU, float32 on a CPU; parameters and optimiser are float32.

Writes result.json (every figure with its conditions), losses.json and curve.png.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from distill_plot import plot_curves
from timing import environment
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import spikebrain as sb
from spikebrain.models.spikingbrain import (
    DistillSettings,
    Stage,
    distill,
    fit_steps,
    from_transformer,
    sample_from,
    save_folder,
)

# Objective, share of the training time, tokens of a text, learning rate as a multiple of --learning-rate, spikes.
STAGES: tuple[tuple[str, float, int, float, str | None], ...] = (
    ("attention", 0.10, 512, 1.0, None),
    ("logits", 0.60, 512, 1.0, None),
    ("logits", 0.15, 1024, 0.3, None),
    ("logits", 0.15, 512, 0.15, "as-described"),
)
# Times that the perplexity of the watched tokens is taken in a stage.
LOOKS = 6


def main() -> None:
    options = parse()
    start, seconds = time.perf_counter(), {}
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    teacher, encode, tokenizer = load_teacher(options)
    teacher = teacher.float().to(device)
    books = torch.cat([encode(text) for text in texts_of(options)])
    test = encode(test_of(options))[: options.test_tokens]

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = call()
        seconds[name] = time.perf_counter() - begin
        print(f"{time.perf_counter() - start:7.0f} s  {name}: {seconds[name]:.1f} s", flush=True)
        return found

    def measure(model: nn.Module, ids: Tensor = test) -> float:
        return perplexity(model, ids, options.window, options.batch_tokens // 2)

    found = {"teacher": timed("perplexity of the teacher", lambda: measure(teacher))}
    found["teacher, spiking"] = timed("the same on spikes", lambda: measure(sb.convert(teacher, sb.Policy()).model))
    samples = timed("sampling", lambda: written_by(teacher, options))
    tokens = torch.cat([samples, books])
    student: Any = timed("conversion without calibration", lambda: from_transformer(teacher, "7b"))
    found["converted"] = measure(student)
    rows = calibration_rows(tokens, options)
    student = timed("conversion, calibrated", lambda: from_transformer(teacher, "7b", calibration=rows))
    found["calibrated"] = measure(student)
    print(found, flush=True)

    curve: list[dict[str, Any]] = [
        {"tokens": 0, "stage": None, "perplexity": measure(student, test[: options.watched])}
    ]
    stages, losses, num_tokens = [], [], 0
    left = 60 * options.minutes - (time.perf_counter() - start)
    # What evaluations at the end will take, the spiking ones longest.
    left -= 3 * seconds["perplexity of the teacher"] + 3 * seconds["the same on spikes"]
    for number, (objective, share, context, rate, spiking) in enumerate(STAGES):
        if spiking is not None:
            found["trained"] = timed("perplexity after float training", lambda: measure(student))
            found["trained, spiking"] = timed("the same model on spikes", lambda: measure(sb.to_spiking(student)))
        stage, settings = settings_of(objective, context, rate, spiking, options, device)
        fitted = fit_steps(student, teacher, tokens, settings, max(left, 0), (share,))
        stage = replace(stage, steps=max(fitted.stages[0].steps, LOOKS))
        settings = replace(settings, stages=(stage,))
        size = stage.batch_size * stage.context

        def progress(title: str, total: int, size: int = size, number: int = number) -> Callable[[int], None]:
            done = 0

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                if steps and done % max(total // LOOKS, 1) == 0:
                    value = measure(student, test[: options.watched])
                    curve.append({"tokens": num_tokens + done * size, "stage": number, "perplexity": value})
                    print(f"{time.perf_counter() - start:7.0f} s  {curve[-1]}", flush=True)

            return advance

        result = distill(student, teacher, tokens, settings, None, progress)
        num_tokens += result.num_tokens
        name = objective if spiking is None else f"{objective}, spiking"
        after = measure(student)
        stages.append({"name": name, **vars(stage), "spiking": spiking, "seconds": result.seconds, "perplexity": after})
        stages[-1] |= {"tokens": result.num_tokens, "tokens_per_second": result.num_tokens / result.seconds}
        losses.append([point.loss for point in result.losses])
        print(f"{time.perf_counter() - start:7.0f} s  {stages[-1]}", flush=True)
    found["after spike-aware training"] = measure(student)
    found["after spike-aware training, spiking"] = measure(sb.to_spiking(student))
    seconds["all"] = time.perf_counter() - start
    content = {
        "environment": environment(),
        "device": where,
        "options": {name: str(value) for name, value in vars(options).items()},
        "seconds": seconds,
        "num_sampled": len(samples),
        "num_book_tokens": len(books),
        "num_test_tokens": len(test),
        "trained_tokens": num_tokens,
        "perplexity": found,
        "stages": stages,
        "curve": curve,
    }
    (options.out / "result.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "losses.json").write_text(json.dumps(losses) + "\n")
    plot_curves(content, losses, measure(teacher, test[: options.watched]), options.out / "curve.png")
    if options.save:
        save_folder(student, options.save, tokenizer)
    for name, value in found.items():
        print(f"{name:40} {value:10.3f}  {value / found['teacher'] - 1:+.1%}")


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, window: int, batch_tokens: int) -> float:
    """Return exp of the mean negative log-likelihood over windows of equal length; a rest of 2 or more is one as well."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    whole = len(ids) // window * window
    batches = [*ids[:whole].view(-1, window).split(max(batch_tokens // window, 1)), ids[None, whole:]]
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches:
        if batch.shape[0] == 0 or batch.shape[1] < 2:
            continue
        rows = batch.to(device)
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
        for some, targets in zip(logits, rows[:, 1:], strict=True):
            total += nn.functional.cross_entropy(some.float(), targets, reduction="sum").double()
        count += targets.numel() * len(rows)
    model.train(was_training)
    return float((total / count).exp())


def settings_of(
    objective: str, context: int, rate: float, spiking: str | None, options: argparse.Namespace, device: torch.device
) -> tuple[Stage, DistillSettings]:
    """Return a stage whose steps are not known yet."""
    is_layers = objective == "attention"
    context = min(context, options.window)
    stage = Stage(
        objective=objective,
        context=context,
        steps=1,
        learning_rate=rate * options.learning_rate,
        batch_size=max(options.batch_tokens // context, 1),
        trainable="attention" if is_layers else "all",
        new_rate=options.new_rate,
        warmup=20,
    )
    precision = "bfloat16" if device.type == "cuda" else "float32"
    return stage, DistillSettings(stages=(stage,), spiking=spiking, precision=precision)


def written_by(teacher: Any, options: argparse.Namespace) -> Tensor:
    """Return tokens that the teacher writes, in bfloat16 on a GPU."""
    if options.samples == 0:
        return torch.zeros(0, dtype=torch.int64)
    writer = copy.deepcopy(teacher)
    writer = writer.bfloat16() if writer.device.type == "cuda" else writer
    sizes = {"length": options.sample_length, "batch_size": options.sample_batch}
    return sample_from(writer, options.samples, **sizes)


def calibration_rows(tokens: Tensor, options: argparse.Namespace) -> Tensor:
    """Return texts of 512 tokens from the beginning and the end: samples and books."""
    size, half = min(512, options.window), options.calibrate // 2
    some = torch.cat([tokens[:half], tokens[-half:]])
    return some[: len(some) // size * size].view(-1, size)


def load_teacher(options: argparse.Namespace) -> tuple[Any, Callable[[str], Tensor], Any]:
    """Return the Transformer, what makes ids of a text, and its tokenizer."""
    if options.smoke:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, tie_word_embeddings=True, **sizes, **heads)).eval()
        return model, lambda text: torch.tensor(list(text.encode())), None
    model, tokenizer, _ = sb.load(options.model)
    assert tokenizer is not None
    return model, lambda text: torch.tensor(tokenizer.encode(text, verbose=False)), tokenizer


def texts_of(options: argparse.Namespace) -> list[str]:
    if options.smoke:
        return [Path(__file__).read_text()]
    return [path.read_text(encoding="utf-8") for path in options.text]


def test_of(options: argparse.Namespace) -> str:
    return (Path(__file__).parent / "timing.py").read_text() if options.smoke else options.test.read_text("utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--model", default="smollm2", help="the Transformer: whatever spikebrain.load takes")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="books to train on")
    parser.add_argument("--test", type=Path, help="text whose perplexity is taken; not trained on")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything")
    parser.add_argument("--samples", type=int, default=6_000_000, help="tokens that the teacher writes")
    parser.add_argument("--sample-length", type=int, default=512)
    parser.add_argument("--sample-batch", type=int, default=2048)
    parser.add_argument("--calibrate", type=int, default=16384, help="tokens")
    parser.add_argument("--window", type=int, default=1024, help="of the perplexity")
    parser.add_argument("--test-tokens", type=int, default=None, help="all if left out")
    parser.add_argument("--watched", type=int, default=32768, help="test tokens whose perplexity makes the curve")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--new-rate", type=float, default=5.0, help="of what is new, as a multiple")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, half a minute on a CPU")
    options = parser.parse_args()
    if options.smoke:
        small = {"minutes": 0.5, "samples": 2000, "sample_length": 50, "sample_batch": 20, "window": 128}
        small |= {"calibrate": 512, "test_tokens": 1500, "watched": 512, "batch_tokens": 512}
        vars(options).update(small)
    elif not options.text or options.test is None:
        parser.error("expected --text and --test, or --smoke")
    return options


if __name__ == "__main__":
    main()
