"""How work is cut into workgroups: pure choices from a device's limits and an op's shape."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.vulkan.limits import DeviceLimits, Tier

_BUSY_TILES = 128  # workgroups on matrix units that keep a GPU busy
_LANE_SUMS = 128  # registers of a lane for its part of a tile's sums
_MAX_MATVEC_ROWS = 8  # batch rows that a matmul without shared memory computes together


@dataclass(frozen=True)
class Tuning:
    """What suits a device; `for_device` makes the usual choices."""

    limits: DeviceLimits
    tier: Tier
    sum_lanes: int
    """Workgroup of a search for candidates, and of norms on processors."""
    plain_lanes: int
    """Workgroup of ops whose lanes do not talk."""
    team: int
    """Lanes that share a weight row at least."""
    busy_lanes: int
    """Invocations that keep the device busy."""
    attention_lanes: int
    """Positions of a tile."""
    min_split: int
    """Positions of a part of a row's attention, a multiple of 32."""
    busy_groups: int
    """Workgroups of attention that keep the device busy; fewer make a row's positions be cut into parts."""
    slice_size: int
    """Logits that a workgroup looks through for candidates."""


@dataclass(frozen=True)
class MatvecShape:
    """Workgroup, lanes of a team, weight rows of a team at a time."""

    workgroup: int
    team: int
    rows: int


@dataclass(frozen=True)
class TileShape:
    """A workgroup's tile of a matmul and each lane's part of it."""

    rows: int
    batch: int
    lane_rows: int
    lane_batch: int

    @property
    def workgroup(self) -> int:
        """Invocations."""
        return self.rows // self.lane_rows * self.batch // self.lane_batch


@dataclass(frozen=True)
class MatrixTile:
    """A workgroup's tile of a matmul on matrix units, and each subgroup's part of it."""

    rows: int
    batch: int
    subgroup_rows: int
    subgroup_batch: int

    @property
    def subgroups(self) -> int:
        """Of a workgroup."""
        return self.rows // self.subgroup_rows * self.batch // self.subgroup_batch

    @property
    def shared_bytes(self) -> int:
        """What shaders/matmul_matrix.glsl declares at most: twice 32 columns of f16, or f32 numbers to go out."""
        patch = self.batch // self.subgroup_batch * 16 * (4 * self.rows + 16)
        return max(2 * 80 * (self.rows + self.batch), patch)


MATRIX_TILES = (
    MatrixTile(128, 128, 64, 64),
    MatrixTile(64, 128, 32, 64),
    MatrixTile(64, 64, 32, 32),
    MatrixTile(64, 32, 32, 16),
    MatrixTile(64, 16, 32, 16),
)
"""Large ones first: they fetch less for each product, but leave a device with less to do at a time."""

LEAST_MATRIX_TILE = MATRIX_TILES[-1]
"""What a device with matrix units must have room for."""


def for_device(limits: DeviceLimits, tier: Tier) -> Tuning:
    """Choices that are known to be good for the kind of device."""
    subgroup = _power_of_two(min(max(limits.subgroup_size, 8), limits.max_invocations))
    if limits.is_cpu:
        # A subgroup is a vector register: wider workgroups only add switches between subgroups.
        return Tuning(
            limits,
            tier,
            sum_lanes=subgroup,
            plain_lanes=min(4 * subgroup, limits.max_invocations),
            team=subgroup,
            busy_lanes=0,
            attention_lanes=4 * subgroup,
            min_split=256,
            busy_groups=1,
            slice_size=16384,
        )
    return Tuning(
        limits,
        tier,
        sum_lanes=min(512, limits.max_invocations),
        plain_lanes=min(64, limits.max_invocations),
        team=subgroup,
        busy_lanes=1 << 17,
        attention_lanes=128,
        min_split=64,
        busy_groups=512,
        slice_size=4096,
    )


def norm_lanes(tuning: Tuning, width: int) -> int:
    """Workgroup of a norm: on a GPU a lane for each quad of the row, if there are so many."""
    limits = tuning.limits
    if limits.is_cpu:
        return tuning.sum_lanes
    most = min(_power_of_two(limits.max_invocations), _power_of_two(limits.shared_bytes // 20))
    return min(most, max(tuning.team, _power_of_two_from(-(-width // 4))))


def matvec_rows(tuning: Tuning, n_rows: int) -> int | None:
    """Batch rows of a matvec, which divide `n_rows`; None where a matmul with tiles in shared memory is faster."""
    if n_rows > _MAX_MATVEC_ROWS and not tuning.limits.is_cpu:
        return None
    return max(n for n in range(1, _MAX_MATVEC_ROWS + 1) if n_rows % n == 0)


def matvec(tuning: Tuning, n_rows: int, n_units: int, batch_rows: int) -> MatvecShape:
    """Few teams make long ones: a row's columns are then shared by more lanes."""
    few = n_rows // 2 * tuning.team < tuning.busy_lanes // 4
    rows = 1 if tuning.limits.is_cpu or batch_rows > 4 or few else 2
    limit = min(256, tuning.limits.max_invocations)
    team = tuning.team
    while team < limit and n_rows // rows * team < tuning.busy_lanes and n_units >= 4 * team:
        team *= 2
    workgroup = team if tuning.limits.is_cpu else max(team, min(limit, 2 * tuning.team))
    if tuning.tier < Tier.SUBGROUP:
        workgroup = max(team, min(workgroup, _sums_that_fit(tuning, rows * batch_rows)))
        while workgroup > _sums_that_fit(tuning, rows * batch_rows):
            team, workgroup = team // 2, workgroup // 2
    return MatvecShape(workgroup, team, rows)


def gated_matvec(tuning: Tuning, batch_rows: int) -> MatvecShape:
    """A workgroup makes 32 numbers, which are 64 weight rows."""
    team = tuning.team
    if tuning.limits.is_cpu:
        return MatvecShape(team, team, 2)
    rows = 2
    workgroup = min(256, tuning.limits.max_invocations, team * 64 // rows)
    if tuning.tier < Tier.SUBGROUP:
        while workgroup > _sums_that_fit(tuning, rows * batch_rows):
            workgroup //= 2
            team = min(team, workgroup)
    return MatvecShape(workgroup, team, rows)


def tile(tuning: Tuning, dot: bool, n_rows: int, batch_rows: int) -> TileShape:
    """A matmul's tile; 64 weight rows, which are a block of 32 numbers behind a gate.

    Where that leaves a device with little to do, twice the lanes compute half as much each.
    """
    batch = 16 if batch_rows <= 16 else 64 if dot and batch_rows > 32 else 32
    large, small = TileShape(64, batch, 8, 4), TileShape(64, batch, 4, 4)
    n_lanes = -(-n_rows // 64) * -(-batch_rows // batch) * large.workgroup
    return small if n_lanes < tuning.busy_lanes and small.workgroup <= tuning.limits.max_invocations else large


def uses_matrices(tuning: Tuning, type: FloatType, packed_input: bool, batch_rows: int) -> bool:
    """Whether a matmul is for matrix units: no other is faster, and f16 loses nothing that is asked for."""
    exact = type is FloatType.F32 or packed_input != type.is_quantized
    limits = tuning.limits
    has_units = tuning.tier >= Tier.MATRIX and limits.matrix is not None and _has_room(limits, LEAST_MATRIX_TILE)
    return has_units and not exact and batch_rows > _MAX_MATVEC_ROWS


def matrix_tile(tuning: Tuning, n_rows: int, batch_rows: int) -> MatrixTile:
    """A matmul's tile on matrix units: the largest one that leaves the device with enough of them.

    None is much wider than the batch.
    """
    limits = tuning.limits
    possible = [tile for tile in MATRIX_TILES if tile.batch < 2 * batch_rows and _has_room(limits, tile)]
    busy = 1 if limits.is_cpu else _BUSY_TILES
    for tile in possible:
        if -(-n_rows // tile.rows) * -(-batch_rows // tile.batch) >= busy:
            return tile
    return possible[-1]


def _has_room(limits: DeviceLimits, tile: MatrixTile) -> bool:
    n_lanes = tile.subgroups * limits.subgroup_size
    n_sums = tile.subgroup_rows * tile.subgroup_batch // limits.subgroup_size
    fits = tile.shared_bytes <= limits.shared_bytes and n_lanes <= limits.max_invocations
    return fits and (n_sums <= _LANE_SUMS or tile == LEAST_MATRIX_TILE)


def attention_heads(tuning: Tuning, group: int, head_units: int, lanes: int) -> int:
    """Query heads that a workgroup computes together: up to 4, evenly, as shared memory allows."""
    heads = -(-group // -(-group // 4))
    while heads > 1 and _attention_bytes(heads, head_units, lanes) > tuning.limits.shared_bytes:
        heads -= 1
    return heads


def attention_lanes(tuning: Tuning, head_units: int) -> int:
    """Workgroup of attention: at least a lane for each 8 elements of a head."""
    lanes = max(tuning.attention_lanes, _power_of_two_from(head_units))
    while lanes > max(8, _power_of_two_from(head_units)) and (
        _attention_bytes(1, head_units, lanes) > tuning.limits.shared_bytes or lanes > tuning.limits.max_invocations
    ):
        lanes //= 2
    return lanes


def attention_splits(tuning: Tuning, n_groups: int, seq_len: int) -> int:
    """Parts of a row's positions, so that `n_groups` workgroups for each part keep the device busy."""
    wanted = -(-tuning.busy_groups // n_groups)
    return max(1, min(wanted, -(-seq_len // tuning.min_split), 64))


def uses_dot(tuning: Tuning, type: FloatType, packed_input: bool) -> bool:
    """Whether a matmul reads int8 activations."""
    return packed_input and type.is_quantized and tuning.tier >= Tier.DOT


def _attention_bytes(heads: int, head_units: int, lanes: int) -> int:
    queries, results = 32 * heads * head_units, 32 * head_units + 96
    return queries + results + 4 * heads * (lanes + 8) + 36 * lanes


def _sums_that_fit(tuning: Tuning, n_sums: int) -> int:
    """Lanes whose sums fit three quarters of shared memory; the rest is for what else a shader keeps there."""
    return _power_of_two(tuning.limits.shared_bytes * 3 // 4 // (4 * n_sums))


def _power_of_two(n: int) -> int:
    """The largest power of two up to n."""
    return 1 << (n.bit_length() - 1)


def _power_of_two_from(n: int) -> int:
    """The smallest power of two from n on."""
    return 1 << (n - 1).bit_length()
