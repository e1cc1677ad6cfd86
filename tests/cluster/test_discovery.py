"""Workers that are found by multicast DNS."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from dllama_gpu.cli.main import main
from tests.support.namespaces import Network, UnavailableError, check_available
from tests.support.tiny import write_tiny_gguf
from tests.support.worker_command import REPOSITORY, WorkerCommand
from tests.support.worker_process import wait_until

KEY = "a key that is long enough"


def listed(text: str) -> dict[str, list[str]]:
    """Cells of each line by address: state, key, release."""
    rows = [re.split(r"  +", line) for line in text.splitlines()[1:]]
    return {row[1]: row[2:5] for row in rows}


def test_workers_on_this_machine_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text(KEY, encoding="utf-8")
    key.chmod(0o600)
    with ExitStack() as stack:

        def start(*options: str, announce: bool = True) -> str:
            one = WorkerCommand(tmp_path / f"cache{len(options)}{announce}", *options, announce=announce)
            stack.callback(one.stop)
            return one.address

        hidden, open_one, locked = start(announce=False), start(), start("--key-file", str(key))
        found: dict[str, list[str]] = {}

        def both_found() -> bool:
            if main(["workers", "--wait", "1"]) == 0:
                found.update(listed(capsys.readouterr().out))
            return open_one in found and locked in found

        wait_until(both_found, "the workers' announcements")
        assert found[open_one][:2] == ["free", "none"]
        assert found[locked][:2] == ["free", "needed"]
        assert hidden not in found
    main(["workers", "--wait", "1"])
    left = listed(capsys.readouterr().out)
    assert open_one not in left
    assert locked not in left


@pytest.fixture
def machines() -> Sequence[Network]:
    try:
        check_available()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    with Network(4) as network:
        yield network


def test_a_root_finds_the_workers_of_its_network(machines: Network, smollm2_gguf: Path, tmp_path: Path) -> None:
    def on_root(*arguments: str) -> Callable[[], subprocess.CompletedProcess[str]]:
        command = machines.command(0, sys.executable, "-m", "dllama_gpu.cli.main", *arguments)
        return lambda: subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)

    tiny = tmp_path / "tiny.gguf"
    write_tiny_gguf(tiny)
    inference = ["inference", "--model", str(tiny), "--prompt", "the end", "--temperature", "0", "--steps", "6"]
    nobody = on_root(*inference, "--workers", "auto")()
    assert nobody.returncode == 1
    assert "--workers auto: no worker answered" in nobody.stderr
    with ExitStack() as stack:
        workers = []
        for number in (1, 2):
            python = machines.command(number, sys.executable)
            # There are only link-local addresses of IPv6, which each machine must complete for itself.
            worker = WorkerCommand(tmp_path / str(number), host="::", python=python, announce=True)
            stack.callback(worker.stop)
            workers.append(worker)
        listing = on_root("workers", "--wait", "1")
        wait_until(lambda: len(listed(listing().stdout)) == 2, "both workers")
        found = listed(listing().stdout)
        assert all(cells[0] == "free" and address.startswith("[fe80:") for address, cells in found.items())
        alone = on_root(*inference)()
        together = on_root(*inference, "--workers", "auto")()
        assert together.returncode == 0, together.stderr
        assert together.stdout == alone.stdout
        assert all(address in together.stderr for address in found)
        busy = subprocess.Popen(
            machines.command(
                0, sys.executable, "-u", "-m", "dllama_gpu.cli.main", "inference", "--model", str(smollm2_gguf),
                "--prompt", "Once", "--temperature", "0", "--steps", "8000", "--ignore-eos", "--nthreads", "1",
                "--workers", *found, "--ratio", "1,1,1",
            ),
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(busy.wait)
        stack.callback(busy.kill)
        assert busy.stdout is not None
        busy.stdout.read(10)
        wait_until(lambda: all(cells[0] == "busy" for cells in listed(listing().stdout).values()), "busy workers")
        taken = on_root(*inference, "--workers", "auto")()
        assert taken.returncode == 1
        assert "another root uses it" in taken.stderr


def test_found_workers_that_cannot_reach_each_other_do_not_end_the_start(machines: Network, tmp_path: Path) -> None:
    def on_root(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = machines.command(0, sys.executable, "-m", "dllama_gpu.cli.main", *arguments)
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)

    tiny = tmp_path / "tiny.gguf"
    write_tiny_gguf(tiny)
    inference = ["inference", "--model", str(tiny), "--prompt", "the end", "--temperature", "0", "--steps", "6"]
    with ExitStack() as stack:
        workers = []
        for number in (1, 2, 3):
            python = machines.command(number, sys.executable)
            worker = WorkerCommand(tmp_path / str(number), host=machines.address(number), python=python, announce=True)
            stack.callback(worker.stop)
            workers.append(worker)
        machines.keep_apart(2, 3)
        wait_until(lambda: len(listed(on_root("workers", "--wait", "1").stdout)) == 3, "all workers")
        together = on_root(*inference, "--workers", "auto")
        assert together.returncode == 0, together.stderr
        assert together.stdout == on_root(*inference).stdout
        taking_part = re.findall(r"^worker +(\S+):[0-9]+: ", together.stderr, re.MULTILINE)
        assert len(taking_part) == 2
        assert machines.address(1) in taking_part
        (why,) = re.findall(r"^left out +(.+)$", together.stderr, re.MULTILINE)
        assert re.match(r"worker \S+ cannot take part: worker \S+ cannot reach worker \S+: no connection to ", why)
        named = on_root(*inference, "--workers", *(worker.address for worker in workers[1:]))
        assert (named.returncode, named.stdout) == (1, "")
        assert named.stderr.splitlines()[-1].endswith(why)
