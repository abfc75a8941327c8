"""Results of runs that never took place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fpe_hf.recipes.results import ArmResult, Results

RECIPE: dict[str, Any] = {
    "description": "A test",
    "model": {"task": "feature-classification", "config": {"model_type": "mlp_classifier"}},
    "data": {"source": "digits"},
    "widen": {"at": {"step": 10, "epoch": None}, "alpha": 2},
    "train": {"num_train_epochs": 4},
}

AUDIT_BLOCK = {
    "name": "layers",
    "parent_nonzeros": 1610,
    "nonzeros": 1608,
    "weights": 1590,
    "biases": 18,
    "scalars": 0,
    "parents": 8,
    "children": 16,
    "disjoint": True,
    "coverage": 0.875,
    "parent_bytes": 6440,
    "memory_bytes": 9660,
    "disk_bytes": 6440,
    "layout": "element",
    "alpha": 2,
}


def make_results(
    by_arm: Mapping[str, Sequence[float]],
    metric: str = "accuracy",
    *,
    recipe: Mapping[str, Any] | None = None,
    steps: int = 40,
) -> Results:
    """A run of four evaluations per arm; values of the metric are given per arm and seed.

    The loss is 1 less the value (the metric itself, if it is the loss).
    """
    runs = [
        _run(arm, seed, value, metric, steps)
        for arm, values in by_arm.items()
        for seed, value in enumerate(values)
    ]
    return Results({**RECIPE, **(recipe or {})}, "digits", (metric,), runs, 10, (100, 20))


def _run(arm: str, seed: int, value: float, metric: str, steps: int) -> ArmResult:
    final = {"loss": 1 - value, metric: value}
    curve = [
        {
            "step": at,
            **{name: number * at / steps for name, number in final.items()},
            "nonzeros": 3220 if arm == "wide-dense" else 1610,
        }
        for at in range(steps // 4, steps + 1, steps // 4)
    ]
    total = {**AUDIT_BLOCK, "name": "total", "layout": "", "alpha": 0}
    widened = {"ok": True, "blocks": [AUDIT_BLOCK], "total": total, "breaches": []}
    return ArmResult(
        arm=arm,
        seed=seed,
        steps=steps,
        metrics=final,
        curve=curve,
        nonzeros=3220 if arm == "wide-dense" else 1610,
        seconds=2.0 + seed,
        audit=widened if arm == "fpe" else None,
        interference={"before": [_measured(0.2 + seed)], "after": [_measured(0.4 + seed)]},
        flops=1e6 if arm == "dense" else 2.5e6,
        peak_parameters=3220 if arm == "wide-dense" else 1610,
        disk_bytes=6800,
    )


def _measured(number: float) -> dict[str, Any]:
    return {
        "name": "layers.0",
        "neurons": 8,
        "feature_capacity": number,
        "mean_cosine": number / 10,
        "gram_off_diagonal_energy": 1 - number,
    }
