"""The model card: what the model is, what it is worth, how to load it. Facts only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..markup import code, plain, table
from .facts import ModelFacts
from .results import Evaluation

TAGS = ("fpe", "fixed-parameter-expansion", "arxiv:2510.04500")
_DESCRIBED_SETTINGS = {
    "alpha": "children per parent neuron",
    "split": "how a neuron's inputs are divided among its children",
    "fan_out": "how outgoing weights are divided",
    "layout": "how weights are stored",
    "tile_size": "parents that share a split",
    "coupling": "share of the parent's sum that every child sees; 1 starts exactly at the parent",
    "learn_coupling": "whether the coupling is trained",
    "bias": "one bias per parent, or per child",
    "targets": "blocks that were widened",
    "exclude": "blocks that were left alone",
    "overrides": "settings of single blocks",
    "seed": "seed of everything drawn at random",
}


def model_card(repo_id: str, facts: ModelFacts, revision: str | None = None) -> ModelCard:
    """Writes the card of a model: `card.md`, filled in.

    Args:
        repo_id: Where the model will be.
        facts: What is known about it.
        revision: The branch it will be on, if not the main one.
    """
    name = repo_id.rpartition("/")[2]
    on = f', revision="{revision}"' if revision else ""
    count = len(facts.audit.blocks)
    card: ModelCard = ModelCard.from_template(
        _metadata(name, facts),
        template_path=str(Path(__file__).with_name("card.md")),
        name=name,
        facts=facts,
        total=facts.audit.total,
        parent=f"[{facts.base_model}](https://huggingface.co/{facts.base_model})",
        blocks=f"{count} MLP block{'' if count == 1 else 's'}",
        load=f'.from_pretrained("{repo_id}"{on})',
        load_modules=f'SentenceTransformer("{repo_id}"{on})',
        auto_class=_auto_class(facts),
        results=_results(facts.evaluations),
        verdicts=any(one.verdict for one in facts.evaluations),
        spread=any(one.spread is not None for one in facts.evaluations),
        sizes=_sizes(facts),
        by_block=_by_block(facts),
        settings=_settings(facts),
        code=code,
        plain=plain,
    )
    return card


def _metadata(name: str, facts: ModelFacts) -> ModelCardData:
    license = facts.license
    return ModelCardData(
        base_model=facts.base_model,
        license=license.id if license else None,
        license_name=license.name if license else None,
        license_link=license.link if license else None,
        library_name="transformers" if facts.dense else "fpe_hf",
        pipeline_tag=facts.task,
        tags=[
            *TAGS,
            *([] if facts.dense else ["transformers"]),
            *(["sentence-transformers"] if facts.modules else []),
        ],
        model_name=name if facts.evaluations else None,
        eval_results=[_eval_result(facts, one) for one in facts.evaluations] or None,
    )


def _eval_result(facts: ModelFacts, evaluation: Evaluation) -> EvalResult:
    return EvalResult(
        task_type=facts.task or "other",
        dataset_type=evaluation.dataset,
        dataset_name=evaluation.dataset,
        metric_type=evaluation.metric,
        metric_value=evaluation.value,
        metric_name=f"{evaluation.metric} ({evaluation.arm})",
    )


def _auto_class(facts: ModelFacts) -> str:
    """The auto class of a task, as far as the class name says it."""
    import transformers

    end = re.search(r"For\w+$", facts.model_class)
    name = f"AutoModel{end[0]}" if end else "AutoModel"
    return name if hasattr(transformers, name) else facts.model_class


# -- tables ----------------------------------------------------------------------------------------


def _results(evaluations: Sequence[Evaluation]) -> str:
    columns = {
        "arm": [code(one.arm) for one in evaluations],
        "dataset": [plain(one.dataset) for one in evaluations],
        "metric": [plain(one.metric) for one in evaluations],
        "value": [_value(one) for one in evaluations],
        "beside dense": [one.verdict or "" for one in evaluations],
        "seeds": [_or_blank(one.seeds) for one in evaluations],
        "non-zero parameters": [_or_blank(one.nonzeros) for one in evaluations],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    return table(list(known), zip(*known.values(), strict=True), texts=3) if known else ""


def _sizes(facts: ModelFacts) -> str:
    total = facts.audit.total
    compared = {
        "neurons": (total.parents, total.children),
        "non-zero parameters": (total.parent_nonzeros, total.nonzeros),
    }
    if not facts.dense:
        compared["bytes in the file"] = (total.parent_bytes, total.disk_bytes)
    rows = [[name, *(f"{number:,}" for number in pair)] for name, pair in compared.items()]
    return table(["all widened blocks", "dense parent", "widened"], rows)


def _by_block(facts: ModelFacts) -> str:
    rows = [
        [code(b.name), b.layout, str(b.alpha), f"{b.parent_nonzeros:,}", f"{b.nonzeros:,}"]
        for b in facts.audit.blocks
    ]
    header = ["block", "layout", "alpha", "non-zeros of the parent", "non-zeros"]
    return table(header, rows, texts=2)


def _settings(facts: ModelFacts) -> str:
    rows = [
        [f"`{name}`", code(facts.config[name]), meaning]
        for name, meaning in _DESCRIBED_SETTINGS.items()
        if facts.config.get(name) not in (None, {}, [], ())
    ]
    return table(["setting", "value", "meaning"], rows, texts=3)


def _value(evaluation: Evaluation) -> str:
    spread = "" if evaluation.spread is None else f" ± {evaluation.spread:.4g}"
    return f"{evaluation.value:.4g}{spread}"


def _or_blank(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
