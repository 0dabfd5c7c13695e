"""The ranks of a job under torchrun, profiled at the same time: each alone, and then all of them as they train."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from lmdali.model.parallel import Ranks
from lmdali.tools.measurement import MIN_STEPS_PER_WINDOW, Probe, Rate, WindowPlan
from lmdali.tools.profile_config import ProfileConfig
from lmdali.tools.profiled_model import training_step
from lmdali.tools.rank_report import RankRates, RankReport, rank_report
from lmdali.tools.step_probes import Step, measure_on


def measure_job(
    ranks: Ranks,
    rates: dict[str, Rate],
    fed: Callable[[Step], Probe],
    model: nn.Module | None,
    config: ProfileConfig,
    device: torch.device,
    *,
    quiet: bool,
) -> tuple[dict[str, Rate], RankReport | None]:
    """The rates of a rank with the job's training step in place of its own, and the report on all ranks.

    One process alone has the rates that it has, and no such report.

    Every rank makes the same number of steps, or one would wait for others that have stopped; how many is agreed from
    the pace of the slowest.

    Args:
        ranks: all of them call this.
        rates: that this rank measured alone: its loader, its model, steps fed by its loader.
        fed: makes a probe of this rank's loader from a training step.
        model: that those steps train; from here on its gradients are averaged. None measures no steps.
        config: how long, and in which precision.
        device: of this rank.
        quiet: no progress.
    """
    if ranks.world_size == 1:
        return rates, None
    mine = RankRates(
        rank=ranks.rank,
        host=socket.gethostname(),
        device=str(device),
        loader=rates["loader"],
        model=rates.get("model"),
        alone=rates.get("together"),
    )
    if model is not None:
        plan = agreed_plan(config, [each.own.step_seconds for each in ranks.gather(mine)])
        averaged = ranks.averaging(model)
        step = training_step(averaged, dtype=config.dtype, device=device, cuda_graph=False)
        together = measure_on(device, {"together": fed(step)}, plan, quiet=quiet)["together"]
        rates, mine = rates | {"together": together}, replace(mine, together=together)
    return rates, rank_report(ranks.gather(mine))


def agreed_plan(config: ProfileConfig, step_seconds: list[float]) -> WindowPlan:
    """As many steps as the slowest rank can make in the time that was asked for.

    Args:
        config: with seconds, or steps, which then count.
        step_seconds: of each rank's steps alone.
    """
    plan = config.window_plan()
    if plan.steps is not None:
        return plan
    per_window = plan.seconds / plan.windows / max(step_seconds)
    return WindowPlan(seconds=plan.seconds, steps=plan.windows * max(MIN_STEPS_PER_WINDOW, int(per_window)))
