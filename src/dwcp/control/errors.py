"""What the control plane refuses, each with a word for programs and a sentence for people."""

from __future__ import annotations


class ControlError(Exception):
    """The request cannot be carried out as it stands; the sentence says what to change."""

    code = "refused"


class JobRefused(ControlError):
    """The job file is wrong; the sentence names the key and what is allowed there."""

    code = "job_refused"


class DemandImpossible(JobRefused):
    """No node can ever meet the demand, even when empty; ask for less or add a larger node."""

    code = "demand_impossible"


class WorkloadUnknown(ControlError):
    """There is no workload of that id; `dwcp workloads` lists them."""

    code = "workload_unknown"


class NodeUnknown(ControlError):
    """There is no node of that name; `dwcp nodes` lists them."""

    code = "node_unknown"


class WorkloadExists(ControlError):
    """That id belongs to another job already; submit under a new id."""

    code = "workload_exists"


class WorkloadEnded(ControlError):
    """The workload has ended, so there is nothing left to cancel; `dwcp workloads ID` shows how it ended."""

    code = "workload_ended"


class RebalanceRefused(ControlError):
    """The plan does not hold any more, or its id is not one; plan again with `dwcp rebalance --dry-run`."""

    code = "rebalance_refused"


class RebalanceUnderWay(ControlError):
    """Another rebalance is under way; `dwcp rebalance --show` tells how far it is."""

    code = "rebalance_under_way"


class Contended(ControlError):
    """Others kept changing the same entry; nothing was done, try again."""

    code = "contended"


class ClockSkewed(ControlError):
    """This machine's clock is over a second away from committed time; synchronise it (chrony, ntp)."""

    code = "clock_skewed"


class NotReady(ControlError):
    """The manager has not read the control log yet; try again in a moment."""

    code = "not_ready"
