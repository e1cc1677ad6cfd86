// A list in shared memory of the best keys seen so far. A key is (value as an ordered integer, complement of the id):
// larger is better, and no two are equal, so that ties go to the lowest id. (0, 0) is worse than any.
shared uvec2 best[LIST];
shared uint n_best;

bool better(uvec2 a, uvec2 b) {
    return a.x > b.x || (a.x == b.x && a.y > b.y);
}

// An index of the list for one more key. The scope is said because without it the atomic would have the device's,
// which not every driver has.
uint take_place() {
    return atomicAdd(n_best, 1, gl_ScopeWorkgroup, gl_StorageSemanticsNone, gl_SemanticsRelaxed);
}

// An integer in the order of the floats; zero has one sign.
uint ordered(float value) {
    uint bits = floatBitsToUint(value == 0 ? 0.0 : value);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

float from_ordered(uint key) {
    return uintBitsToFloat((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Sorts the list, best first, and cuts it to k; returns how many there are. All lanes call it behind a barrier.
// Source: Batcher, "Sorting Networks and their Applications" (1968), bitonic sort.
uint sort_best(uint k) {
    uint lane = gl_LocalInvocationID.x;
    uint n = n_best;
    uint size = 2;
    while (size < n) {
        size *= 2;
    }
    for (uint i = n + lane; i < size; i += WORKGROUP) {
        best[i] = uvec2(0);
    }
    for (uint run = 2; run <= size; run *= 2) {
        for (uint stride = run / 2; stride > 0; stride /= 2) {
            barrier();
            for (uint i = lane; i < size / 2; i += WORKGROUP) {
                uint a = i / stride * stride * 2 + i % stride;
                uint b = a + stride;
                bool descending = (a & run) == 0;
                uvec2 first = best[a];
                uvec2 second = best[b];
                if (better(second, first) == descending) {
                    best[a] = second;
                    best[b] = first;
                }
            }
        }
    }
    barrier();
    n = min(n, k);
    if (lane == 0) {
        n_best = n;
    }
    barrier();
    return n;
}
