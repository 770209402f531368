"""Convert SmolLM2 to a hybrid with half of its layers linear, train it briefly, and measure perplexity throughout.

    python benchmarks/distill_smollm2.py --text BOOK.txt [BOOK.txt ...] --test wiki.test.raw --out DIR
        [--model smollm2] [--layout 7b] [--placement measured] [--fresh | --samples N] [--minutes M] [--save DIR]
        [--trainable attention]
    python benchmarks/distill_smollm2.py --smoke --out DIR

The teacher writes --samples tokens (bfloat16, temperature 1), and training uses these and the books; or, with --fresh,
it writes while the student trains, and no text is read twice. Training never uses the test text. The converted model is
calibrated on --calibrate of those tokens (with --fresh: of the books), then trained in the --stages of `STAGES`. Each
stage gets a share of the remaining --minutes; its number of steps follows from the time of a few steps on a copy. The
last stage has spikes in its forward pass. Perplexity, float and on spikes, is measured on the test text in float32, in
windows of --window tokens without overlap, where the first token of each window is not predicted. It is also measured
on the first --watched tokens a few times per stage. Training uses bfloat16 autocast on a GPU and float32 on a CPU;
parameters and optimiser are float32.

Writes result.json (every figure with its conditions), losses.json and curve.png. The training state is kept in --state
(about 1.6 GB per stage). If a command cannot run for long, --pause-after SECONDS ends it cleanly, and the same command
continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from distill_parts import LongText, calibration_rows, load_teacher, perplexity, test_of, texts_of, written_by
from distill_plot import plot_curves
from safetensors.torch import load_file, save_file
from timing import environment
from torch import nn

import spikebrain as sb
from spikebrain.models.conversion import from_transformer
from spikebrain.models.conversion.to_spiking import set_settings
from spikebrain.models.io import save
from spikebrain.models.training import DistillSettings, Stage, WrittenText, distill, fit_steps

# By name: objective, share of the time, tokens per text, learning rate as a multiple of --learning-rate, spikes.
STAGES: dict[str, tuple[tuple[str, float, int, float, str | None], ...]] = {
    "quarter": (
        ("attention", 0.05, 512, 1.0, None),
        ("logits", 0.55, 512, 0.3, None),
        ("logits", 0.15, 1024, 0.15, None),
        ("logits", 0.25, 1024, 0.1, "as-described"),
    ),
    # Texts that grow to what SmolLM2 was trained on; spikes before the longest ones, whose scores would take 100 GB.
    "long": (
        ("attention", 0.05, 512, 1.0, None),
        ("logits", 0.40, 512, 0.15, None),
        ("logits", 0.12, 2048, 0.1, None),
        ("logits", 0.18, 2048, 0.1, "as-described"),
        ("logits", 0.25, 8192, 0.05, None),
    ),
}
# Texts longer than this are put together (`LongText`): the teacher does not keep to a subject for so long.
WRITTEN = 2048
# Number of perplexity measurements on the watched tokens per stage.
LOOKS = 6


def main() -> None:
    options = parse()
    run = Run(options)
    run.convert()
    for number in range(len(run.plan)):
        if not run.train(number):
            run.say("paused; the same command goes on")
            return
    run.figure("after spike-aware training", lambda: run.student)
    run.figure("after spike-aware training, spiking", lambda: sb.to_spiking(run.student))
    run.write()
    for name, value in run.found.items():
        print(f"{name:40} {value:10.3f}  {value / run.found['teacher'] - 1:+.1%}")


class Run:
    """The experiment and its results so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.perf_counter()
        self.plan = STAGES[options.stages]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.state: Path = options.state or options.out / "state"
        for folder in (options.out, self.state):
            folder.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.stages: list[dict[str, Any]] = []
        self.left = 0.0  # seconds for all stages
        self.losses: list[list[float]] = []
        teacher, encode, self.tokenizer = load_teacher(options)
        self.teacher = teacher.float().to(self.device)
        self.books = torch.cat([encode(text) for text in texts_of(options)])
        self.test = encode(test_of(options))[: options.test_tokens]
        self.student: Any = None
        self.tokens = self.books

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.start:7.0f} s  {text}", flush=True)

    def measure(self, model: nn.Module, num_tokens: int | None = None) -> float:
        return perplexity(model, self.test[:num_tokens], self.options.window, self.options.batch_tokens // 2)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        self.seconds[name] = time.perf_counter() - begin
        self.say(f"{name}: {self.seconds[name]:.1f} s")
        return result

    def figure(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Measure perplexity on the whole test text, unless an earlier call did."""
        if name not in self.found:
            model = make()
            self.found[name] = self.timed(f"perplexity, {name}", lambda: self.measure(model))
            self.say(f"{name}: {self.found[name]:.3f}")
            self.keep()

    def keep(self) -> None:
        """Save what an interrupted run needs to continue."""
        fields = {name: getattr(self, name) for name in ("found", "seconds", "curve", "stages", "left")}
        partial = self.state / "progress.partial"
        partial.write_text(json.dumps(fields))
        partial.replace(self.state / "progress.json")

    def convert(self) -> None:
        """Measure the teacher, sample from it, convert it and calibrate the result."""
        if (self.state / "progress.json").exists():
            vars(self).update(json.loads((self.state / "progress.json").read_text()))
        teacher, samples = self.teacher, self.state / "samples.safetensors"
        self.figure("teacher", lambda: teacher)
        self.figure("teacher, spiking", lambda: sb.to_spiking(teacher, sb.SpikeSettings()))
        if self.options.fresh:
            rows = calibration_rows(self.books, self.options)
        else:
            if not samples.exists():
                save_file({"ids": self.timed("sampling", lambda: written_by(teacher, self.options))}, samples)
            self.tokens = torch.cat([load_file(samples)["ids"], self.books])
            rows = calibration_rows(self.tokens, self.options)
        how: Any = {"placement": self.options.placement, "kernel": self.options.kernel, "chunk_size": 32}
        if self.options.num_sinks is not None:
            how["num_sinks"] = self.options.num_sinks
        if (self.state / "calibrated").exists():
            self.student = sb.load(self.state / "calibrated").model.to(self.device)
        else:
            make = partial(
                from_transformer, teacher, self.options.layout, calibration=rows, seed=self.options.seed, **how
            )
            self.student = self.timed("calibration", make)
            save(self.student, self.state / "calibrated", self.tokenizer)
        self.figure("calibrated", lambda: self.student)
        if not self.curve:
            first = self.measure(self.student, self.options.watched)
            self.curve.append({"tokens": 0, "stage": None, "perplexity": first})
            # Later measurements also take time: four in float and two on spikes.
            used = time.perf_counter() - self.start
            used += 6 * self.seconds["perplexity, teacher"] + 3 * self.seconds["perplexity, teacher, spiking"]
            self.left = max(60 * self.options.minutes - used, 0)
            self.keep()

    def train(self, number: int) -> bool:
        """Train a stage for its share of the time, and return whether it is finished."""
        objective, share, _, _, spiking = self.plan[number]
        if spiking is not None and self.plan[number - 1][-1] is None:
            self.figure("trained", lambda: self.student)
            self.figure("trained, spiking", lambda: sb.to_spiking(self.student))
        settings = settings_of(self.plan[number], self.options, self.device)
        tokens: Any = self.tokens
        if self.options.fresh:
            context = settings.stages[0].context
            written = min(context, WRITTEN)
            at_once = max(self.options.sample_batch * 512 // written, 1)  # so that keys and values fit
            how: Any = {"at_once": at_once, "seed": 10 * self.options.seed + number}
            if context > WRITTEN:
                tokens = LongText(self.teacher, self.books, WRITTEN, **how)
            else:
                tokens = WrittenText(self.teacher, **how)
        if number == len(self.stages):
            settings = fit_steps(self.student, self.teacher, tokens, settings, self.left, (share,))
            name = objective if spiking is None else f"{objective}, spikes"
            self.stages.append({"name": name, **vars(settings.stages[0]), "spiking": spiking, "seconds": 0.0})
            self.keep()
        row = self.stages[number]
        stage = replace(settings.stages[0], steps=row["steps"])
        before = sum(earlier["tokens"] for earlier in self.stages[:number])

        def progress(title: str, total: int) -> Callable[[int], None]:
            done = 0

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                if steps == 1 and done % max(total // LOOKS, 1) == 0:
                    value = self.measure(self.student, self.options.watched)
                    num_tokens = before + done * stage.batch_size * stage.context
                    self.curve.append({"tokens": num_tokens, "stage": number, "perplexity": value})
                    self.say(str(self.curve[-1]))

            return advance

        pause = self.options.pause_after
        budget = None if pause is None else max(pause - (time.perf_counter() - self.start), 0.0)
        settings = replace(settings, stages=(stage,), budget_s=budget)
        result = distill(self.student, self.teacher, tokens, settings, self.state / f"stage{number}", progress)
        if "perplexity" not in row:
            row["seconds"] += result.seconds
        if result.finished and "perplexity" not in row:
            row |= {"tokens": result.num_tokens, "tokens_per_second": result.num_tokens / row["seconds"]}
            row["perplexity"] = self.measure(self.student)
            self.say(str(row))
        self.losses.append([point.loss for point in result.losses])
        self.keep()
        return result.finished

    def write(self) -> None:
        options = self.options
        if options.save:
            set_settings(self.student, self.student.settings.replace(kernel="auto", chunk_size=16))
            save(self.student, options.save, self.tokenizer)
        content = {
            "environment": environment(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "fla": importlib.util.find_spec("fla") is not None,
            "options": {name: str(value) for name, value in vars(options).items()},
            "seconds": self.seconds,
            "layers": [str(plan) for plan in self.student.settings.layers],
            "num_sampled": len(self.tokens) - len(self.books),
            "num_book_tokens": len(self.books),
            "num_test_tokens": len(self.test),
            "trained_tokens": sum(stage["tokens"] for stage in self.stages),
            "perplexity": self.found,
            "stages": self.stages,
            "curve": self.curve,
        }
        (options.out / "result.json").write_text(json.dumps(content, indent=1) + "\n")
        (options.out / "losses.json").write_text(json.dumps(self.losses) + "\n")
        plot_curves(content, self.losses, self.measure(self.teacher, options.watched), options.out / "curve.png")


def settings_of(
    plan: tuple[str, float, int, float, str | None], options: argparse.Namespace, device: torch.device
) -> DistillSettings:
    """Return the settings of a stage whose number of steps is not known yet."""
    objective, _, context, rate, spiking = plan
    context = min(context, options.longest)
    stage = Stage(
        objective=objective,
        context=context,
        steps=1,
        learning_rate=rate * options.learning_rate,
        batch_size=max(options.batch_tokens // context, 1),
        trainable="attention" if objective == "attention" else options.trainable,
        new_rate=options.new_rate,
        warmup=50,
    )
    precision = "bfloat16" if device.type == "cuda" else "float32"
    return DistillSettings(stages=(stage,), spiking=spiking, precision=precision, seed=options.seed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--model", default="smollm2", help="the Transformer: whatever spikebrain.load takes")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="books to train on")
    parser.add_argument("--test", type=Path, help="text whose perplexity is taken; not trained on")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything")
    parser.add_argument("--layout", default="7b")
    parser.add_argument("--placement", default="alternate", choices=("alternate", "measured"))
    parser.add_argument("--num-sinks", type=int, help="sink tokens; those of the layout if left out")
    parser.add_argument("--trainable", default="all", choices=("all", "attention"), help="in the stages on logits")
    parser.add_argument("--kernel", default="auto", help="of linear attention in training")
    parser.add_argument("--fresh", action="store_true", help="the teacher writes while the student trains")
    parser.add_argument("--samples", type=int, default=6_000_000, help="tokens that the teacher writes")
    parser.add_argument("--sample-length", type=int, default=512)
    parser.add_argument("--sample-batch", type=int, default=2048)
    parser.add_argument("--calibrate", type=int, default=16384, help="tokens")
    parser.add_argument("--stages", default="quarter", choices=list(STAGES))
    parser.add_argument("--longest", type=int, default=8192, help="tokens of a text, at most")
    parser.add_argument("--window", type=int, default=1024, help="of the perplexity")
    parser.add_argument("--test-tokens", type=int, default=None, help="all if left out")
    parser.add_argument("--watched", type=int, default=32768, help="test tokens whose perplexity makes the curve")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--new-rate", type=float, default=1.0, help="of what is new, as a multiple")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="folder for what an interrupted run goes on from; OUT/state")
    parser.add_argument("--pause-after", type=float, help="seconds after which this call ends")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, half a minute on a CPU")
    options = parser.parse_args()
    if options.smoke:
        small = {
            "minutes": 0.4,
            "samples": 2000,
            "sample_length": 50,
            "sample_batch": 20,
            "window": 128,
            "longest": 128,
        }
        small |= {"calibrate": 512, "test_tokens": 1500, "watched": 512, "batch_tokens": 512}
        vars(options).update(small)
    elif not options.text or options.test is None:
        parser.error("expected --text and --test, or --smoke")
    return options


if __name__ == "__main__":
    main()
