"""Fixtures: the shared golden vectors where they are present, and tiny models."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported. Processes of pytest-xdist share the cores; teams of threads that wait for each other
# would make tests of tiny models several times slower. The fixture `threads` runs with more where it matters.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
ROOMS = ("neuro", "coding", "chip", "backends", "models", "energy", "simulation", "analysis", "exchange", "jobs")


def _modules_to_check() -> list[str]:
    """Return the modules whose annotations are checked in tests: all but those that Numba or Triton compile."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    compiled = re.compile(r"^(import|from) (numba|triton|\.+compiled)\b", re.MULTILINE)
    return [
        ".".join(("spikebrain", *path.relative_to(ROOT).with_suffix("").parts))
        for path in files
        if not compiled.search(path.read_text(encoding="utf-8"))
    ]


# Before anything imports the package: shapes and types of annotated functions are checked in tests, and only there.
jaxtyping.install_import_hook(_modules_to_check(), "beartype.beartype")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - other libraries draw from it


@pytest.fixture
def as_users():
    """Switch the type checks of the test run off, so that bad input meets the errors that users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a test with one thread, and with more than there may be cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors and texts are not beside the project ({SHARED.name}/ is absent)")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    return lambda name: load_file(shared / "golden" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte: ids 0 to 255, end of text 256, and one merge, of two bytes 0, as 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)} | {"<end>": 256, "ĀĀ": 257}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ā", "Ā")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """Two layers, 24 channels, 40 in the feed-forward part, embedding and head tied, 64 positions."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model_folder(tmp_path: Path, tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "tiny-llama"
    tiny_llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def listens_to_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT, also where the shell started the tests with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command, and returns its exit code and what it wrote, as one line each."""

    from spikebrain.cli.app import main  # noqa: PLC0415 - not before the hook above

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spikebrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        found = capsys.readouterr()
        assert not found.out.startswith("\n")  # COMMAND | head -1 shows something
        return end.value.code, found.out, " ".join(found.err.split())

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A neuron fires when its potential passes the threshold, and rests. " * 12)
    return path


@pytest.fixture(scope="session")
def results(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """The JSON file of each command that writes a page, with the page beside it."""
    from made_pages import make_results  # noqa: PLC0415 - not before the hook above

    return make_results(tmp_path_factory.mktemp("pages"), tokenizer)
