"""The model card: what the model is, what it is worth, how to load it. Facts only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

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
_CITATION = """\
```bibtex
@inproceedings{kong2026expand,
  title     = {Expand Neurons, Not Parameters},
  author    = {Kong, Linghao and Subramanian, Inimai and Shavit, Yonadav and Adler, Micah and
               Alistarh, Dan and Shavit, Nir},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2026},
  note      = {arXiv:2510.04500}
}
```"""


def model_card(repo_id: str, facts: ModelFacts, revision: str | None = None) -> ModelCard:
    """Writes the card of a model.

    Args:
        repo_id: Where the model will be.
        facts: What is known about it.
        revision: The branch it will be on, if not the main one.
    """
    name = repo_id.rpartition("/")[2]
    sections = [
        f"# {name}",
        _summary(facts),
        *_results(facts.evaluations),
        *([f"More is in the [report]({facts.report})."] if facts.report else []),
        *_figures(facts.figures),
        "## How to load it",
        _loading(repo_id, facts, revision),
        "## Size",
        _budget(facts),
        "## How it was widened",
        _settings(facts),
        "## Citation",
        "The method was introduced in [Expand Neurons, Not Parameters]"
        "(https://arxiv.org/abs/2510.04500).",
        _CITATION,
    ]
    return ModelCard(f"---\n{_metadata(name, facts).to_yaml()}\n---\n\n{_joined(sections)}\n")


def _joined(sections: Iterable[str]) -> str:
    return "\n\n".join(sections)


# -- metadata --------------------------------------------------------------------------------------


def _metadata(name: str, facts: ModelFacts) -> ModelCardData:
    license = facts.license
    return ModelCardData(
        base_model=facts.base_model,
        license=license.id if license else None,
        license_name=license.name if license else None,
        license_link=license.link if license else None,
        library_name="transformers" if facts.dense else "fpe_hf",
        pipeline_tag=facts.task,
        tags=[*TAGS, *([] if facts.dense else ["transformers"])],
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


# -- text ------------------------------------------------------------------------------------------


def _summary(facts: ModelFacts) -> str:
    total = facts.audit.total
    parent = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    of = parent if facts.base_model else f"a `{facts.model_class}`"
    blocks = _count(len(facts.audit.blocks), "MLP block")
    lines = [
        f"This is {of} with {blocks} widened by *Fixed Parameter Expansion*: every hidden neuron "
        "is replaced by several sparser ones that divide its inputs among them. The blocks hold "
        f"{total.children:,} neurons instead of {total.parents:,}, and {total.nonzeros:,} non-zero "
        f"parameters, where their dense parents hold {total.parent_nonzeros:,}."
    ]
    if facts.dense:
        lines.append(
            "This is the stock variant: all zeros are filled in, so the blocks take "
            "more memory and arithmetic, and nothing but transformers is needed to load it."
        )
    if facts.license is not None and facts.license.of_base:
        known = facts.license.name or facts.license.id
        lines.append(f"The licence, {_code(known)}, is that of {parent}.")
    if not facts.evaluations:
        lines.append("No measured results were recorded with this model.")
    return _joined(lines)


def _results(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    if not evaluations:
        return
    yield "## Results"
    columns = {
        "arm": [_code(one.arm) for one in evaluations],
        "dataset": [_plain(one.dataset) for one in evaluations],
        "metric": [_plain(one.metric) for one in evaluations],
        "value": [_value(one) for one in evaluations],
        "seeds": [_or_blank(one.seeds) for one in evaluations],
        "non-zero parameters": [_or_blank(one.nonzeros) for one in evaluations],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    yield _table(list(known), zip(*known.values(), strict=True), left=3)
    if any(one.spread is not None for one in evaluations):
        yield "Means and standard deviations over seeds."


def _figures(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"![{_plain(name)}](<{_plain(name)}>)"


def _loading(repo_id: str, facts: ModelFacts, revision: str | None) -> str:
    on = f', revision="{revision}"' if revision else ""
    load = f'.from_pretrained("{repo_id}"{on})'
    if facts.dense:
        auto = _auto_class(facts)
        return f"```python\nfrom transformers import {auto}\n\nmodel = {auto}{load}\n```"
    return (
        f"```python\nimport fpe_hf\n\nmodel = fpe_hf{load}  # a {facts.model_class}\n```\n\n"
        "The package `fpe_hf` must be installed. Once it is imported, transformers' own "
        "`AutoModel` classes and pipelines load the model as well; without it, loading fails. "
        "No code from this repository is run, and `trust_remote_code` is not needed."
    )


def _auto_class(facts: ModelFacts) -> str:
    """The auto class of a task, as far as the class name says it."""
    import transformers

    end = re.search(r"For\w+$", facts.model_class)
    name = f"AutoModel{end[0]}" if end else "AutoModel"
    return name if hasattr(transformers, name) else facts.model_class


def _budget(facts: ModelFacts) -> str:
    total = facts.audit.total
    compared = {
        "neurons": (total.parents, total.children),
        "non-zero parameters": (total.parent_nonzeros, total.nonzeros),
        "bytes in the file": (total.parent_bytes, total.disk_bytes),
    }
    header = ["all widened blocks", "dense parent", "widened"]
    rows = [[name, *(f"{number:,}" for number in pair)] for name, pair in compared.items()]
    if facts.dense:
        rows = rows[:-1]
    blocks = [
        [
            _code(block.name),
            block.layout,
            str(block.alpha),
            f"{block.parent_nonzeros:,}",
            f"{block.nonzeros:,}",
        ]
        for block in facts.audit.blocks
    ]
    names = ["block", "layout", "alpha", "non-zeros of the parent", "non-zeros"]
    return _joined(
        [
            _table(header, rows),
            f"<details>\n<summary>Block by block</summary>\n\n{_table(names, blocks, left=2)}\n\n"
            "</details>",
            "Counted in the weights of this model, biases included, by `fpe_hf.audit`.",
        ]
    )


def _settings(facts: ModelFacts) -> str:
    rows = [
        [f"`{name}`", _code(facts.config[name]), meaning]
        for name, meaning in _DESCRIBED_SETTINGS.items()
        if facts.config.get(name) not in (None, {}, [], ())
    ]
    text = f"With fpe_hf {_plain(facts.version)}"
    text += f", by the recipe [{facts.recipe}]({facts.recipe}):" if facts.recipe else ":"
    return _joined([text, _table(["setting", "value", "meaning"], rows, left=3)])


# -- Markdown --------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rules = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rules, *rows))


def _plain(text: object) -> str:
    """A text in which nothing is markup. Names in a config are data, here as elsewhere."""
    return re.sub(r"([\\`*_<>\[\]|#!])", r"\\\1", " ".join(str(text).split()))


def _code(value: object) -> str:
    words = " ".join(str(value).split())
    return "`" + words.replace("`", "'").replace("|", "\\|") + "`"


def _value(evaluation: Evaluation) -> str:
    spread = "" if evaluation.spread is None else f" ± {evaluation.spread:.4g}"
    return f"{evaluation.value:.4g}{spread}"


def _or_blank(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
