"""Every tile of matmuls on matrix units against the NumPy oracle, with edges on all sides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dllama_gpu.graph.graph import BufferType, GatedMatmul, Matmul
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan import tuning as tune
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from tests.support.op_bench import OpBench, compare, normal
from tests.support.vulkan_settings import rounding

if TYPE_CHECKING:
    from dllama_gpu.vulkan import _native
    from tests.support.plan_runner import PlanRunner

N_ROWS, WIDTH = 200, 160  # no tile's, and an odd number of blocks of 32
TYPES = (FloatType.F16, FloatType.BF16, FloatType.Q40, FloatType.Q41, FloatType.Q80)


@pytest.fixture(params=tune.MATRIX_TILES, ids=lambda tile: f"{tile.rows}x{tile.batch}")
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tune.MatrixTile:
    """Is taken for all matmuls."""
    chosen: tune.MatrixTile = request.param
    monkeypatch.setattr(tune, "matrix_tile", lambda *_: chosen)
    return chosen


@pytest.fixture
def limits(tile: tune.MatrixTile, native_device: _native.Device) -> DeviceLimits:
    """Of the device, which has room for the tile; no message of the validation layers during the test."""
    from dllama_gpu.vulkan.tiers import limits_of, missing_for

    info = native_device.info
    for tier in Tier:
        if (lack := missing_for(tier, info)) is not None:
            pytest.skip(f"{info.name} has no {lack}")
    own = limits_of(info)
    if own.shared_bytes < tile.shared_bytes or own.max_invocations < tile.subgroups * own.subgroup_size:
        pytest.skip(f"{info.name} has no room for tiles of {tile.rows} x {tile.batch}")
    return own


def runner_on(device: _native.Device, limits: DeviceLimits) -> PlanRunner:
    from tests.support.plan_runner import PlanRunner

    return PlanRunner(device, limits, Tier.MATRIX, tune.for_device(limits, Tier.MATRIX))


def bench_of(float_type: FloatType) -> tuple[OpBench, str]:
    """With rows that its matmuls of `float_type` take."""
    bench = OpBench(normal(N_ROWS, WIDTH))
    return bench, bench.norm(WIDTH, BufferType.Q80) if float_type.is_quantized else "x"


@pytest.mark.parametrize("float_type", TYPES)
def test_matmul(limits: DeviceLimits, native_device: _native.Device, float_type: FloatType) -> None:
    bench, x = bench_of(float_type)
    bench.weight("w", normal(300, WIDTH, seed=1), float_type)
    bench.buffer("out", 311)
    bench.ops.append(Matmul(x, "w", "out", 5))
    runner = runner_on(native_device, limits)
    compare(bench.run(runner), "out", N_ROWS, rounding(runner, float_type))


@pytest.mark.parametrize("type", [BufferType.F32, BufferType.Q80])
@pytest.mark.parametrize("float_type", TYPES)
def test_gated_matmul(
    limits: DeviceLimits, native_device: _native.Device, float_type: FloatType, type: BufferType
) -> None:
    bench, x = bench_of(float_type)
    bench.weight("gate", normal(160, WIDTH, seed=1), float_type)
    bench.weight("up", normal(160, WIDTH, seed=2), float_type)
    bench.buffer("out", 160, type)
    bench.ops.append(GatedMatmul(x, "gate", "up", "out"))
    runner = runner_on(native_device, limits)
    exact = rounding(runner, float_type)
    compare(bench.run(runner), "out", N_ROWS, exact if type is BufferType.F32 else exact + 1 / 127)


def test_matrices_in_parts(limits: DeviceLimits, native_device: _native.Device) -> None:
    """Rows of 160 numbers in Q40 take 80 bytes of nibbles: 192 rows a shard, and a last one of 8."""
    bench, x = bench_of(FloatType.Q40)
    bench.weight("w", normal(200, WIDTH, seed=1), FloatType.Q40)
    for seed, name in ((2, "gate"), (3, "up")):
        bench.weight(name, normal(160, WIDTH, seed=seed), FloatType.Q40)
    bench.buffer("out", 200)
    bench.buffer("hidden", 160)
    bench.ops += [Matmul(x, "w", "out"), GatedMatmul(x, "gate", "up", "hidden")]
    runner = runner_on(native_device, limits)
    runner.limits = replace(limits, max_range=192 * 80)
    runner.tuning = tune.for_device(runner.limits, Tier.MATRIX)
    programs = bench.run(runner)
    for name in ("out", "hidden"):
        compare(programs, name, N_ROWS, rounding(runner, FloatType.Q40))
