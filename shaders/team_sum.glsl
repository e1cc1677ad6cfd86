// Sums over teams of TEAM neighbouring lanes, in subgroups where SUBGROUP is defined, else through shared memory.
// The includer defines WORKGROUP, TEAM (powers of two) and N_SUMS; sums[] holds each lane's addends.
float sums[N_SUMS];

#ifdef SUBGROUP
shared float subgroup_sums[WORKGROUP / 4 * N_SUMS];

uint subgroups_a_team() { return max(1, TEAM / gl_SubgroupSize); }
uint team_lane() { return gl_SubgroupID % subgroups_a_team() * gl_SubgroupSize + gl_SubgroupInvocationID; }
uint team_number() { return gl_SubgroupID / subgroups_a_team(); }

// Every lane of a team then holds the sums. All lanes of the workgroup must call this.
void sum_over_team() {
    [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
        sums[i] = subgroupAdd(sums[i]);
    }
    uint n = subgroups_a_team();
    if (n > 1) {
        barrier(); // an earlier round may still be read
        if (subgroupElect()) {
            [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
                subgroup_sums[gl_SubgroupID * N_SUMS + i] = sums[i];
            }
        }
        barrier();
        uint first = team_number() * n;
        [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
            float sum = 0;
            for (uint s = 0; s < n; s++) {
                sum += subgroup_sums[(first + s) * N_SUMS + i];
            }
            sums[i] = sum;
        }
    }
}
#else
shared float lane_sums[N_SUMS * WORKGROUP];

uint team_lane() { return gl_LocalInvocationID.x % TEAM; }
uint team_number() { return gl_LocalInvocationID.x / TEAM; }

void sum_over_team() {
    uint lane = gl_LocalInvocationID.x;
    barrier(); // an earlier round may still be read
    [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
        lane_sums[i * WORKGROUP + lane] = sums[i];
    }
    for (uint half_team = TEAM / 2; half_team > 0; half_team /= 2) {
        barrier();
        if (team_lane() < half_team) {
            [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
                lane_sums[i * WORKGROUP + lane] += lane_sums[i * WORKGROUP + lane + half_team];
            }
        }
    }
    barrier();
    [[unroll]] for (uint i = 0; i < N_SUMS; i++) {
        sums[i] = lane_sums[i * WORKGROUP + team_number() * TEAM];
    }
}
#endif
