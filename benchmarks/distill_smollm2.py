"""SmolLM2 becomes a hybrid, half of its layers linear, and is trained lightly: perplexity before and after, on spikes.

    python benchmarks/distill_smollm2.py --text BOOK.txt [BOOK.txt ...] --test wiki.test.raw --out DIR
        [--model smollm2] [--samples N] [--minutes M] [--save DIR] [--learning-rate R ...]
    python benchmarks/distill_smollm2.py --smoke --out DIR

The teacher writes --samples tokens (bfloat16, temperature 1); they and the books are what is trained on, and the test
text never is. The converted model is calibrated on --calibrate of those tokens, then trained in the stages of `STAGES`,
each of which has a share of what is left of --minutes: its number of steps follows from the time of a few steps of a
copy. The last stage has spikes in its forward pass. Perplexity is taken of the test text in windows of --window tokens
without overlap, the first token of each not predicted, in float32; and of its first --watched tokens a few times in
each stage. Training is bfloat16 autocast on a GPU, float32 on a CPU; parameters and optimiser are float32.

Writes result.json (every figure with its conditions), losses.json and curve.png.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import time
from collections.abc import Callable
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
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    run.convert()
    for number in range(len(STAGES)):
        run.train(number)
    run.found["after spike-aware training"] = run.measure(run.student)
    run.found["after spike-aware training, spiking"] = run.measure(sb.to_spiking(run.student))
    run.write()
    for name, value in run.found.items():
        print(f"{name:40} {value:10.3f}  {value / run.found['teacher'] - 1:+.1%}")


class Run:
    """The experiment: what it has found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.perf_counter()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.seconds: dict[str, float] = {}
        self.found: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.stages: list[dict[str, Any]] = []
        self.losses: list[list[float]] = []
        self.num_tokens = 0
        teacher, encode, self.tokenizer = load_teacher(options)
        self.teacher = teacher.float().to(self.device)
        self.books = torch.cat([encode(text) for text in texts_of(options)])
        self.test = encode(test_of(options))[: options.test_tokens]
        self.student: Any = None
        self.tokens = self.books

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.start:7.0f} s  {text}", flush=True)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"{name}: {self.seconds[name]:.1f} s")
        return result

    def measure(self, model: nn.Module, num_tokens: int | None = None) -> float:
        return perplexity(model, self.test[:num_tokens], self.options.window, self.options.batch_tokens // 2)

    def convert(self) -> None:
        """Measure the teacher, let it write, convert it, calibrate."""
        found, teacher = self.found, self.teacher
        found["teacher"] = self.timed("perplexity of the teacher", lambda: self.measure(teacher))
        spiking = sb.convert(teacher, sb.Policy()).model
        found["teacher, spiking"] = self.timed("the same on spikes", lambda: self.measure(spiking))
        samples = self.timed("sampling", lambda: written_by(teacher, self.options))
        self.tokens = torch.cat([samples, self.books])
        found["converted"] = self.measure(from_transformer(teacher, "7b"))
        rows = calibration_rows(self.tokens, self.options)
        self.student = self.timed("calibration", lambda: from_transformer(teacher, "7b", calibration=rows))
        found["calibrated"] = self.measure(self.student)
        self.say(str(found))
        first = self.measure(self.student, self.options.watched)
        self.curve.append({"tokens": 0, "stage": None, "perplexity": first})
        # Evaluations to come also take their time; those on spikes are two.
        used = time.perf_counter() - self.start
        used += 6 * self.seconds["perplexity of the teacher"] + 3 * self.seconds["the same on spikes"]
        self.left = max(60 * self.options.minutes - used, 0)

    def train(self, number: int) -> None:
        """Train for the share of a stage."""
        objective, share, _, _, spiking = STAGES[number]
        if spiking is not None and STAGES[number - 1][-1] is None:
            self.found["trained"] = self.measure(self.student)
            self.found["trained, spiking"] = self.measure(sb.to_spiking(self.student))
        settings = settings_of(number, self.options, self.device)
        settings = fit_steps(self.student, self.teacher, self.tokens, settings, self.left, (share,))
        (stage,) = settings.stages
        before = self.num_tokens

        def progress(title: str, total: int) -> Callable[[int], None]:
            done = 0

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                if steps and done % max(total // LOOKS, 1) == 0:
                    value = self.measure(self.student, self.options.watched)
                    num_tokens = before + done * stage.batch_size * stage.context
                    self.curve.append({"tokens": num_tokens, "stage": number, "perplexity": value})
                    self.say(str(self.curve[-1]))

            return advance

        result = distill(self.student, self.teacher, self.tokens, settings, None, progress)
        self.num_tokens += result.num_tokens
        name = objective if spiking is None else f"{objective}, spikes"
        row = {"name": name, **vars(stage), "spiking": spiking, "seconds": result.seconds}
        row |= {"tokens": result.num_tokens, "tokens_per_second": result.num_tokens / result.seconds}
        self.stages.append({**row, "perplexity": self.measure(self.student)})
        self.losses.append([point.loss for point in result.losses])
        self.say(str(self.stages[-1]))

    def write(self) -> None:
        options = self.options
        self.seconds["all"] = time.perf_counter() - self.start
        content = {
            "environment": environment(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "fla": importlib.util.find_spec("fla") is not None,
            "options": {name: str(value) for name, value in vars(options).items()},
            "seconds": self.seconds,
            "num_sampled": len(self.tokens) - len(self.books),
            "num_book_tokens": len(self.books),
            "num_test_tokens": len(self.test),
            "trained_tokens": self.num_tokens,
            "perplexity": self.found,
            "stages": self.stages,
            "curve": self.curve,
        }
        (options.out / "result.json").write_text(json.dumps(content, indent=1) + "\n")
        (options.out / "losses.json").write_text(json.dumps(self.losses) + "\n")
        plot_curves(content, self.losses, self.measure(self.teacher, options.watched), options.out / "curve.png")
        if options.save:
            save_folder(self.student, options.save, self.tokenizer)


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, window: int, batch_tokens: int) -> float:
    """Return exp of the mean negative log-likelihood over windows without overlap; a rest of 2 or more is one too."""
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
            count += len(targets)
    model.train(was_training)
    return float((total / count).exp())


def settings_of(number: int, options: argparse.Namespace, device: torch.device) -> DistillSettings:
    """Return a stage whose steps are not known yet."""
    objective, _, context, rate, spiking = STAGES[number]
    context = min(context, options.window)
    stage = Stage(
        objective=objective,
        context=context,
        steps=1,
        learning_rate=rate * options.learning_rate,
        batch_size=max(options.batch_tokens // context, 1),
        trainable="attention" if objective == "attention" else "all",
        new_rate=options.new_rate,
        warmup=20,
    )
    precision = "bfloat16" if device.type == "cuda" else "float32"
    return DistillSettings(stages=(stage,), spiking=spiking, precision=precision)


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
        small = {"minutes": 0.4, "samples": 2000, "sample_length": 50, "sample_batch": 20, "window": 128}
        small |= {"calibrate": 512, "test_tokens": 1500, "watched": 512, "batch_tokens": 512}
        vars(options).update(small)
    elif not options.text or options.test is None:
        parser.error("expected --text and --test, or --smoke")
    return options


if __name__ == "__main__":
    main()
