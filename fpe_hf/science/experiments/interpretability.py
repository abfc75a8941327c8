"""What parents and their children respond to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...metrics import class_entropy, class_selectivity, polysemanticity, top_purity
from ..classifiers import PIXELS, hidden_activations, pixels, trials, warm_up
from ..data import Labelled
from ..networks import Networks
from ..report import Report, Row, new_figure
from ..splitting import expand
from ..statistics import mean
from ..trials import DENSE

NEURONS, ALPHA = 16, 2
SHOWN_PARENTS, SHOWN_EXAMPLES = 4, 4
TOP = 50
CHILDREN, AT_SPLIT = "children", "parents at the split"
MEASURES = ("class selectivity", "class entropy", "classes per neuron", "purity of the top 50")


def run(full: bool) -> Report:
    """Compares the neurons of dense networks with the children of expanded ones."""
    seeds = 20 if full else 8
    data = pixels(full)
    warm = warm_up(data, [NEURONS], seeds, PIXELS)
    both, after = trials(data), replace(PIXELS, seed=PIXELS.seed + 1)
    networks = {
        AT_SPLIT: warm,
        DENSE: both.train(warm, after),
        CHILDREN: both.train(expand(warm, ALPHA), after),
    }
    measured = {name: _measure(own, data) for name, own in networks.items()}
    rows: list[Row] = []
    for name, values in measured.items():
        row: dict[str, Any] = {"neurons": name}
        for measure in MEASURES:
            found = mean(values[measure])
            row |= {measure: found.value, f"{measure}, ci95": found.half_width}
        rows.append(row | {"seeds": seeds})
    lines = []
    for measure in MEASURES:
        difference = mean(measured[CHILDREN][measure] - measured[DENSE][measure])
        clear = abs(difference.value) > difference.half_width
        lines.append(
            f"- {measure}: {difference.value:+.3f} ± {difference.half_width:.3f}"
            + ("" if clear else ", no clear difference")
        )
    text = (
        f"Hidden neurons of networks on FashionMNIST, {NEURONS} parents, alpha {ALPHA}, trained as "
        f"in the experiment of that name; {seeds} seeds, means over the neurons that respond at "
        "all. *Class selectivity* is 1 for a neuron that responds to one class only, *class "
        "entropy* is 0 for such a one. *Classes per neuron* counts the classes with half of the "
        f"largest mean response. *Purity* is the share of the most frequent class among the {TOP} "
        "test examples with the largest responses. The paper does not measure this.\n\nChildren "
        "against the neurons of the dense network, trained as long:\n\n" + "\n".join(lines) + "\n\n"
        f"The pictures show the test examples with the largest responses of {SHOWN_PARENTS} "
        "parents at the split (left) and of their children at the end of training, behind the "
        "inputs that each reads (white), in the network of the first seed."
    )
    figures = {"interpretability": _pictures(networks, data)}
    return Report("Interpretability", text, rows, figures)


def _measure(networks: Networks, data: Labelled) -> dict[str, Tensor]:
    """Means over neurons that respond, `[seeds]` each."""
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for activations in hidden_activations(networks, data.test_x):
        alive = activations[:, activations.amax(0) > 0]
        values = (
            class_selectivity(alive, data.test_y),
            class_entropy(alive, data.test_y),
            polysemanticity(alive, data.test_y).float(),
            top_purity(alive, data.test_y, count=TOP),
        )
        for name, value in zip(MEASURES, values, strict=True):
            found[name].append(float(value.mean()))
    return {
        name: torch.tensor(values, dtype=torch.float32, device="cpu")
        for name, values in found.items()
    }


def _pictures(networks: dict[str, Networks], data: Labelled) -> Any:
    """A row per parent: the parent and its children, each its inputs and then its examples."""
    figure, axes = new_figure(1 + ALPHA, width=2.9, height=0.62 * SHOWN_PARENTS + 0.4)
    shown = [("parent at the split", AT_SPLIT, 0)]
    # The children of parent i are the neurons i, h + i, 2 h + i, ...
    shown += [(f"child {child + 1}", CHILDREN, child * NEURONS) for child in range(ALPHA)]
    for ax, (title, name, start) in zip(axes, shown, strict=True):
        network = networks[name].take(slice(0, 1))
        activations = hidden_activations(network, data.test_x)[0]
        masks = network.masks[0][0].float().view(-1, *data.x.shape[2:])
        rows = [
            torch.cat([masks[neuron], _examples(activations[:, neuron], data)], 1)
            for neuron in range(start, start + SHOWN_PARENTS)
        ]
        ax.imshow(torch.cat(rows).numpy(), cmap="gray", interpolation="none")
        ax.set_title(title, fontsize="medium")
        ax.set_axis_off()
    return figure


def _examples(activations: Tensor, data: Labelled) -> Tensor:
    """The pictures that move a neuron most, side by side."""
    best = activations.topk(SHOWN_EXAMPLES).indices
    return torch.cat(list(data.test_x[best, 0]), 1)
