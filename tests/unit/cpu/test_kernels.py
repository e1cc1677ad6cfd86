"""Every kernel of every instruction set against NumPy, and against each other; ARM's under an emulator if need be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import kernel_check
from tests.support.kernel_cases import Case, all_cases
from tests.support.kernel_check import Array, KernelCheck, UnavailableError

CASES = all_cases()


@dataclass(frozen=True)
class Target:
    """A kernel table on a kind of processor."""

    name: str
    table: str
    is_arm: bool


OTHER_TARGETS = [Target(name, name, False) for name in ("plain", "avx2", "avxvnni", "avx512")]
ARM_TARGETS = [Target("arm-plain", "plain", True), *(Target(name, name, True) for name in ("neon", "dotprod", "i8mm"))]
TARGETS = {target.name: target for target in (*OTHER_TARGETS, *ARM_TARGETS)}
FUSED_TARGETS = [name for name in TARGETS if "plain" not in name]

Results = dict[str, list[tuple[Array, ...]]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Future[Path]]:
    """kernel_check built for this machine (False) and for ARM (True), at the same time."""
    folder = tmp_path_factory.mktemp("kernel_check")
    with ThreadPoolExecutor() as pool:
        native = pool.submit(kernel_check.build, folder / "native", cross=False)
        if kernel_check.IS_ARM64:
            return {False: native, True: native}
        return {False: native, True: pool.submit(kernel_check.build, folder / "arm64", cross=True)}


def skip_or_fail(reason: UnavailableError, *, is_arm: bool) -> NoReturn:
    """Ends a test whose kernels cannot be run here; those of ARM may have been declared a must."""
    if is_arm and kernel_check.arm_required():
        pytest.fail(f"DLLAMA_GPU_REQUIRE_ARM_TESTS=1, but {reason}")
    pytest.skip(str(reason))


def runner_for(target: Target, programs: dict[bool, Future[Path]]) -> KernelCheck:
    program = programs[target.is_arm].result()
    if target.is_arm == kernel_check.IS_ARM64:
        runner = kernel_check.native(program)
        if target.table in runner.tables():
            return runner
    if target.is_arm:
        return kernel_check.emulated(program, target.table)
    raise UnavailableError(
        f"an ARM processor cannot stand for {target.name} of others"
        if kernel_check.IS_ARM64
        else f"this processor has no {target.table}"
    )


@pytest.fixture(scope="module")
def results_of(
    programs: dict[bool, Future[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Results]:
    """Results of all cases on a target, by kernel; skips the test where the target cannot be run."""
    known: dict[str, Results | UnavailableError] = {}

    def compute(name: str) -> Results:
        target = TARGETS[name]
        requests = [case.request for cases in CASES.values() for case in cases]
        answers = iter(runner_for(target, programs).run(target.table, requests, tmp_path_factory.mktemp(name)))
        return {kernel: [next(answers) for _ in cases] for kernel, cases in CASES.items()}

    def results(name: str) -> Results:
        if name not in known:
            try:
                known[name] = compute(name)
            except UnavailableError as reason:
                known[name] = reason
        result = known[name]
        if isinstance(result, UnavailableError):
            skip_or_fail(result, is_arm=TARGETS[name].is_arm)
        return result

    return results


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_computes_what_numpy_does(target: str, kernel: str, results_of: Callable[[str], Results]) -> None:
    for case, results in zip(CASES[kernel], results_of(target)[kernel], strict=True):
        check(case, results)


def check(case: Case, results: tuple[Array, ...]) -> None:
    try:
        case.check(results)
    except AssertionError as failure:
        raise AssertionError(f"{case.request.line}: {failure}") from failure


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("target", FUSED_TARGETS[1:])
def test_instruction_sets_with_fused_multiply_add_agree_in_every_bit(
    target: str, kernel: str, results_of: Callable[[str], Results]
) -> None:
    """Nodes of a cluster then compute the same whatever their processors, which plain C++ (unfused) cannot join."""
    reference = "neon" if kernel_check.IS_ARM64 else "avx2"
    assert_equal_bits(CASES[kernel], results_of(target)[kernel], results_of(reference)[kernel])


@pytest.mark.parametrize("kernel", CASES)
def test_plain_kernels_agree_on_both_architectures(kernel: str, results_of: Callable[[str], Results]) -> None:
    assert_equal_bits(CASES[kernel], results_of("arm-plain")[kernel], results_of("plain")[kernel])


def assert_equal_bits(cases: list[Case], left: list[tuple[Array, ...]], right: list[tuple[Array, ...]]) -> None:
    different = [
        case.request.line
        for case, a, b in zip(cases, left, right, strict=True)
        if any(x.tobytes() != y.tobytes() for x, y in zip(a, b, strict=True))
    ]
    assert not different, f"{len(different)} of {len(cases)} requests, the first being: {different[0]}"


@pytest.mark.parametrize("arm", [False, True], ids=["native", "arm"])
def test_no_function_of_one_instruction_set_can_be_linked_in_for_all(
    arm: bool, programs: dict[bool, Future[Path]]
) -> None:
    """Inline functions that were not inlined would be: the linker keeps the first one it meets, AVX-512 or not."""
    try:
        shared = kernel_check.shared_symbols(programs[arm].result(), cross=arm and not kernel_check.IS_ARM64)
    except UnavailableError as reason:
        skip_or_fail(reason, is_arm=arm)
    assert not shared


def test_missing_arm_tools_fail_where_they_are_required_and_skip_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = UnavailableError("qemu-aarch64 is not installed")
    monkeypatch.setenv("DLLAMA_GPU_REQUIRE_ARM_TESTS", "1")
    with pytest.raises(pytest.fail.Exception, match="qemu-aarch64 is not installed"):
        skip_or_fail(reason, is_arm=True)
    with pytest.raises(pytest.skip.Exception):
        skip_or_fail(reason, is_arm=False)
    monkeypatch.delenv("DLLAMA_GPU_REQUIRE_ARM_TESTS")
    with pytest.raises(pytest.skip.Exception):
        skip_or_fail(reason, is_arm=True)
