"""How often noise alone stops a run by its loss, and how soon a divergence does. JSON on standard output.

    python benchmarks/loss_stop.py [--runs 300] [--rows 10000]

A run of stationary noise is `rows` rows of the log that nothing but noise moves: Gaussian, Student's t with 5 degrees of
freedom, lognormal (sigma 1), around a loss of 5. A divergence is real: a small network learns a regression by AdamW, and from
row 200 on with a learning rate a thousand times as large; the delay is counted in rows from the first of them.
"""

import argparse
import json
import sys
from collections.abc import Iterator

import numpy as np
import torch
from ctfm.train.monitor import PATIENCE, LossRange
from torch import nn

DIVERGES_AT = 200


def first_stop(losses: Iterator[float]) -> int | None:
    """The row that stops the run."""
    loss_range = LossRange()
    return next((row for row, loss in enumerate(losses) if loss_range.add(loss) >= PATIENCE), None)


def draw_noise(kind: str, rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "gaussian":
        return 5 + random.normal(size=rows)
    return 5 + (random.standard_t(5, rows) if kind == "t(5)" else random.lognormal(0, 1, rows))


def diverge(seed: int, rows: int = 1000) -> Iterator[float]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for row in range(rows):
        if row == DIVERGES_AT:
            optimizer.param_groups[0]["lr"] = 1.0
        inputs = torch.randn(32, 8, generator=generator)
        loss = (model(inputs) - inputs.sin().sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--rows", type=int, default=10_000)
    given = parser.parse_args()
    stopped = {
        kind: sum(
            first_stop(iter(draw_noise(kind, given.rows, seed).tolist())) is not None for seed in range(given.runs)
        )
        for kind in ("gaussian", "t(5)", "lognormal")
    }
    delays = [stop - DIVERGES_AT if (stop := first_stop(diverge(seed))) is not None else None for seed in range(20)]
    found = {
        "runs": given.runs,
        "rows": given.rows,
        "runs_stopped_by_noise": stopped,
        "rows_until_a_divergence_stops": delays,
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
