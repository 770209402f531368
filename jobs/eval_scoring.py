"""Scores of documents by lm-eval: its tasks make the requests, its model runs them, its metrics judge the answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lm_eval.api.task
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM  # pyright cannot follow its base class: hence the remarks in _Model
from torch import nn

from ..errors import ActivationError, InputError
from .eval_tasks import TASKS, Document


class Scorer:
    """Scores documents with one model.

    Args:
        model: a causal language model of transformers, in float or on spikes.
        tokenizer: its tokenizer.
        batch_size: requests that run together.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int) -> None:
        with _quiet():
            self._lm = _Model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)  # pyright: ignore

    def score(self, task: str, documents: list[Document]) -> list[dict[str, Any]]:
        """Return what each document got.

        Args:
            task: name in `TASKS`.
            documents: at least one.
        Returns:
            For each document its metrics, by name, and "loglikelihoods", in nats, one per answer.
        Raises:
            InputError: a request is longer than the model's context, or its answer has no token of its own.
            ActivationError: the model gives NaN or infinity.
        """
        with _quiet():
            local = _Task(task, documents)
            found = evaluate(self._lm, {"tasks": {task: local}}, bootstrap_iters=0)
        rows = []
        for sample in found["samples"][task]:  # pyright: ignore[reportOptionalSubscript, reportTypedDictNotRequiredAccess]
            values = [float(value) for value, _ in sample["filtered_resps"]]
            if not all(map(math.isfinite, values)):
                raise ActivationError(
                    f"{task}: expected finite log-likelihoods, got {values}: the model's logits are NaN or infinite. "
                    "Check its weights."
                )
            metrics = {name: float(sample[name]) for name, _ in TASKS[task].scoring["metrics"]}
            rows.append({**metrics, "loglikelihoods": values})
        return rows


class _Documents(list):
    """Documents in memory, as lm-eval reads them."""

    @property
    def features(self) -> Document:
        return self[0]


class _Task(ConfigurableTask):
    """A task of lm-eval whose documents are in memory, so that nothing is fetched."""

    def __init__(self, task: str, documents: list[Document]) -> None:
        self._documents = _Documents(documents)
        scoring = dict(TASKS[task].scoring)
        metrics = [
            {"metric": name, "aggregation": aggregation, "higher_is_better": name != "perplexity"}
            for name, aggregation in scoring.pop("metrics")
        ]
        config = {**scoring, "task": task, "test_split": "test", "num_fewshot": 0, "metric_list": metrics}
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        self.dataset = {"test": self._documents}


class _Model(HFLM):
    """lm-eval's model, which refuses what it would cut short, and shows no bars."""

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(list(requests), disable_tqdm=True)  # pyright: ignore[reportCallIssue]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        longest: int = self.max_length  # pyright: ignore[reportAttributeAccessIssue]
        for (context, answer), context_ids, answer_ids in requests:
            if not answer_ids:
                raise InputError(
                    f"The tokenizer gives the answer {answer[:40]!r} no token of its own after {context[-40:]!r}. Use "
                    "the model's own tokenizer, or leave the document out."
                )
            num_tokens = len(context_ids) + len(answer_ids)
            if num_tokens > longest + 1:  # the last token is only predicted
                raise InputError(
                    f"The document {context[:40]!r}...: expected at most the model's {longest:,} positions, "
                    f"got {num_tokens - 1:,} tokens. Leave the document out, or use a model with more positions."
                )
        with torch.inference_mode():
            run = super()._loglikelihood_tokens  # pyright: ignore[reportAttributeAccessIssue]
            return run(list(requests), disable_tqdm=True, override_bs=override_bs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's remarks and bars off the screen: the job tells of its progress itself."""
    logger, bars = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **options: items  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bars
