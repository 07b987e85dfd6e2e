"""Risk, time, event -> the loss and metrics of a proportional hazards model (Cox 1972)."""

import numpy as np
import torch
from torch import Tensor


def cox_loss(risk: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative logarithm of the partial likelihood, a mean over the events; ties by Breslow. 0 without an event.

    Args:
        risk: `(n,)`, logarithm of each one's relative hazard.
        time: `(n,)`, until the event or until last seen; event: `(n,)`, 1 or 0. NaN does not count.
    """
    known = ~(time.isnan() | event.isnan())
    order = torch.argsort(time[known], descending=True)
    risk = risk[known][order].to(torch.promote_types(risk.dtype, torch.float32))
    time, event = time[known][order], event[known][order].to(risk.dtype)
    if not len(risk):
        return torch.zeros((), dtype=risk.dtype, device=risk.device)
    at_risk = risk.logcumsumexp(0)
    last_of_tie = torch.searchsorted(-time, -time, right=True) - 1  # everybody of the same time is still at risk
    return ((at_risk[last_of_tie] - risk) * event).sum() / event.sum().clamp(min=1)


def concordance(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Chance that of two, of whom it is known who had the event first, this one has the larger risk; ties half (Harrell 1982).
    NaN without such a pair."""
    first = (event[:, None] == 1) & ((time[:, None] < time) | ((time[:, None] == time) & (event == 0)))
    won = (risk[:, None] > risk) + 0.5 * (risk[:, None] == risk)
    return float((won * first).sum() / first.sum()) if first.any() else float("nan")


def baseline_hazard(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> list[tuple[float, float]]:
    """Cumulative hazard of risk 0 after each time at which an event was seen (Breslow 1972): the chance of none until then is
    exp(-hazard * exp(risk))."""
    total, steps = 0.0, []
    for moment in np.unique(time[event == 1]):
        total += int(((time == moment) & (event == 1)).sum()) / float(np.exp(risk[time >= moment]).sum())
        steps.append((float(moment), total))
    return steps


def fit_cox(features: np.ndarray, time: np.ndarray, event: np.ndarray, penalty: float) -> np.ndarray:
    """Weights `(f,)` of the linear risk with the smallest `cox_loss` plus L2; `penalty` is its inverse, as scikit-learn's C."""
    x, t, e = (torch.from_numpy(np.asarray(part, np.float64)) for part in (features, time, event))
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")
    strength = 1 / (2 * penalty * max(float(e.sum()), 1.0))

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cox_loss(x @ weights, t, e) + strength * (weights**2).sum()
        loss.backward()
        return loss

    solver.step(closure)
    return weights.detach().numpy()
