"""`dllama-gpu workers`: lists the workers on this network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser
from dllama_gpu.cli.cluster_options import seconds
from dllama_gpu.cli.display import note
from dllama_gpu.cli.failures import FAILURE, SUCCESS
from dllama_gpu.errors import DllamaError

if TYPE_CHECKING:
    from dllama_gpu.net.discovery import FoundWorker

PROGRAM = "dllama-gpu workers"
DESCRIPTION = """List the workers that answer on this network: where they are, what they compute with, whether they want
a key, and whether a root uses them now.

Workers answer by multicast DNS, which stays within one network (cable, switch, Wi-Fi) and is filtered by some
firewalls, access points, containers and VPNs. A worker that is not listed works all the same when it is named:
--workers HOST:PORT. The list goes to standard output; the status is 1 when it is empty."""

NOBODY = (
    "no worker answered. Is `dllama-gpu worker` running on the others, without --no-announce, in the same network? "
    "Firewalls (UDP port 5353), Wi-Fi that keeps its guests apart, containers and VPNs keep such answers back; naming "
    "a worker, --workers HOST:PORT, works in any case"
)

_LOCAL = "it listens on this machine's loopback alone, where the other workers cannot reach it"


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--wait", type=seconds, default=2.5, metavar="SECONDS", help="for answers (default: %(default)s)"
    )


def run(options: Options) -> int:
    """Asks, waits and prints."""
    from dllama_gpu.net.discovery import find_workers

    found = find_workers(options.wait)
    if not found:
        note("workers", NOBODY)
        return FAILURE
    print(table(found))
    return SUCCESS


def table(found: Sequence[FoundWorker]) -> str:
    """One line a worker."""
    rows = [["NAME", "ADDRESS", "STATE", "KEY", "RELEASE", "DEVICE"]]
    rows += [
        [
            worker.host_name,
            str(worker.address or worker.addresses[0]),
            "unreachable" if worker.address is None else "busy" if worker.busy else "free",
            "needed" if worker.has_key else "none",
            worker.release,
            worker.device,
        ]
        for worker in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def usable_workers(has_key: bool) -> list[str]:
    """Addresses of the workers that a root with or without a key can use; says why others are left out.

    Raises DllamaError when there is none.
    """
    from dllama_gpu.net.addresses import is_loopback
    from dllama_gpu.net.discovery import find_workers

    found = find_workers()
    if not found:
        raise DllamaError(f"--workers auto: {NOBODY}")
    reasons = {worker: why_not(worker, has_key) for worker in found}
    usable = [worker.address for worker in found if reasons[worker] is None and worker.address is not None]
    if not all(is_loopback(address.host) for address in usable):
        local = {worker: _LOCAL for worker in found if worker.address and is_loopback(worker.address.host)}
        reasons = {worker: reason or local.get(worker) for worker, reason in reasons.items()}
    for worker, reason in reasons.items():
        if reason is not None:
            note("left out", f"{worker.host_name}, {worker.address or worker.addresses[0]}: {reason}")
    addresses = [str(worker.address) for worker in found if reasons[worker] is None]
    if not addresses:
        raise DllamaError("--workers auto found no worker that this node can use; the lines above say why")
    return addresses


def why_not(worker: FoundWorker, has_key: bool) -> str | None:
    """Why a root with or without a key cannot use the worker, None if it can."""
    if worker.address is None:
        return "it announces itself, but does not answer; does its firewall let the port through?"
    if worker.has_key and not has_key:
        return "it wants a key; give it with --key-file or DLLAMA_GPU_KEY"
    if has_key and not worker.has_key:
        return "it has no key, but this node was given one"
    return "another root uses it" if worker.busy else None
