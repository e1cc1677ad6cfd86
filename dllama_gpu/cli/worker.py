"""`dllama-gpu worker`: lends this machine to a root elsewhere."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import dllama_gpu
from dllama_gpu.cli.arguments import Options, Parser, UsageError, add_device_argument, whole_number
from dllama_gpu.cli.cluster_options import byte_size
from dllama_gpu.cli.display import note, size_text
from dllama_gpu.cli.failures import SUCCESS

if TYPE_CHECKING:
    from dllama_gpu.graph.batch import Device
    from dllama_gpu.net.addresses import Address
    from dllama_gpu.net.announcement import Announcement
    from dllama_gpu.net.session import Node
    from dllama_gpu.net.store import SliceStore
    from dllama_gpu.net.worker import WorkerServer

PROGRAM = "dllama-gpu worker"
DESCRIPTION = """Lend this machine to a root: listen, take a share of its model, compute, and listen again.

The root is any command with --workers HOST:PORT …. One root is served at a time. Weights that were
received once are kept in a cache, so that the next start is quick. Ctrl-C ends the worker."""

_DEFAULT_PORT = 9999


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host", metavar="ADDRESS", help="listen on this address or name alone (default: all of this machine's)"
    )
    network.add_argument(
        "--port", type=whole_number(0, 65535), default=_DEFAULT_PORT, metavar="N", help="(default: %(default)s)"
    )
    network.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        help="where other nodes reach this worker, if not where the root does (behind a router)",
    )
    network.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="serve only roots that know the key in this file (default: the one in DLLAMA_GPU_KEY, if set)",
    )
    network.add_argument(
        "--no-announce",
        action="store_true",
        help="be found by address alone; without it `dllama-gpu workers` and --workers auto find this worker too",
    )
    computation = parser.add_argument_group("computation")
    add_device_argument(computation)
    computation.add_argument(
        "--nthreads",
        type=whole_number(1),
        metavar="N",
        help="CPU threads (default: one for each processor this process may use)",
    )
    computation.add_argument(
        "--pin-threads",
        action="store_true",
        help="keep each thread on one processor (Linux): steadier on an idle machine, slower on a busy one",
    )
    computation.add_argument(
        "--max-memory", type=byte_size, metavar="SIZE", help="memory a root may use, e.g. 3G (default: what is free)"
    )
    cache = parser.add_argument_group("cache of weights")
    cache.add_argument("--no-cache", action="store_true", help="keep received weights in memory only")
    cache.add_argument("--cache-dir", type=Path, metavar="FOLDER", help="(default: this system's folder for caches)")
    cache.add_argument(
        "--cache-size",
        type=byte_size,
        metavar="SIZE",
        help="weights used longest ago are removed above this (default: 50G)",
    )


def run(options: Options) -> int:
    """Listens until Ctrl-C or SIGTERM."""
    if options.no_cache and (options.cache_dir is not None or options.cache_size is not None):
        raise UsageError("--no-cache leaves nothing for --cache-dir and --cache-size to say", PROGRAM)

    from dllama_gpu.cli.device_choice import choose_device
    from dllama_gpu.engine.machine import cpu_name
    from dllama_gpu.net.addresses import Address
    from dllama_gpu.net.key import read_key
    from dllama_gpu.net.session import Node
    from dllama_gpu.net.store import DEFAULT_LIMIT, SliceStore, default_folder
    from dllama_gpu.net.worker import WorkerServer

    key, warning = read_key(options.key_file, os.environ)
    folder = None if options.no_cache else options.cache_dir or default_folder()
    limit = options.cache_size or DEFAULT_LIMIT

    choice = choose_device(options.device)

    def make_device() -> Device:
        return choice.open(options)

    def make_store() -> SliceStore:
        return SliceStore(folder, limit, warn=lambda text: note("warning", text))

    def memory() -> int | None:
        return options.max_memory or choice.free_memory()

    node = Node(
        make_device=make_device,
        make_store=make_store,
        memory=memory,
        key=key,
        cpu=cpu_name(),
        advertised=Address.parse(options.advertise, options.port) if options.advertise else None,
        log=lambda text: note("worker", text),
    )
    device = f"{make_device().name}, {cpu_name()}"
    note("device", device)
    available = memory()
    if available is not None:
        note("memory", size_text(available))
    note("cache", "none" if folder is None else f"{folder}, at most {size_text(limit)}")
    announcement: Announcement | None = None

    def told_busy(busy: bool) -> None:
        if announcement is not None:
            announcement.set_busy(busy)

    server = WorkerServer(node, options.host, options.port, told_busy)
    note("listening", ", ".join(map(str, server.addresses)))
    note("root", f"--workers {_for_the_root(server.addresses)}")
    if warning is not None:
        note("warning", warning)
    if key is None:
        note("warning", _without_key(server.addresses))
    if not options.no_announce:
        announcement = _announce(server, node, device)
    try:
        _serve(server)
    finally:
        if announcement is not None:
            announcement.close()
    return SUCCESS


def _announce(server: WorkerServer, node: Node, device: str) -> Announcement:
    from dllama_gpu.net.announcement import Announcement

    texts = {
        "host": platform.node(),
        "device": device,
        "release": dllama_gpu.__version__,
        "key": "0" if node.key is None else "1",
    }
    return Announcement(server.addresses, texts, node.log)


def _for_the_root(listening: list[Address]) -> str:
    """What a root may write after --workers to reach this worker."""
    from dllama_gpu.net.addresses import Address, is_link_local
    from dllama_gpu.net.announcement import announced_hosts
    from dllama_gpu.net.discovery import in_order, own_addresses

    hosts = [host for host in announced_hosts(listening, own_addresses()) if not is_link_local(host)]
    numbers = [str(Address(host, listening[0].port)) for host in in_order(hosts, ())]
    return " or ".join(numbers or [str(Address(platform.node(), listening[0].port))])


def _without_key(addresses: list[Address]) -> str:
    from dllama_gpu.net.addresses import is_loopback

    if all(is_loopback(address.host) for address in addresses):
        return "no key: every program on this machine can use this worker"
    return (
        "no key: everyone who reaches this port over the network can use this worker; --key-file restricts it to those "
        "who know the key"
    )


def _serve(server: WorkerServer) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        note("worker", f"{signal.Signals(number).name}: ending")
        server.stop()
        signal.signal(number, signal.SIG_DFL)  # a second one is not asked

    # Windows does not wake a waiting select for a signal; a byte in this socket does.
    signal.set_wakeup_fd(server.wake_fileno, warn_on_full_buffer=False)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server.serve()
    finally:
        signal.set_wakeup_fd(-1)
