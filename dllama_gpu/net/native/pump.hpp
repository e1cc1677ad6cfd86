// Moves the frames of one exchange to and from all peers at once.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "link.hpp"

namespace dllama::net {

// True when the exchange must end, for instance because of Ctrl-C; asked every 100 ms and when a signal comes.
using Interrupted = std::function<bool()>;

// Returns when no link sends or receives any more. Sends and receives go on side by side, so that nodes which send each
// other more than the system buffers do not block each other. Fails when a peer with something still to move has not
// moved a byte for `timeout`, and when `stopped` becomes true.
std::optional<Failure> pump(const std::vector<Link*>& links, Clock::duration timeout, const std::atomic<bool>& stopped,
                            const Interrupted& interrupted);

}  // namespace dllama::net
