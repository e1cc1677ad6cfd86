#include "pump.hpp"

#include <algorithm>
#include <array>

namespace dllama::net {

namespace {

// Sleeping and being woken costs about as much as a small frame's way through a local network.
constexpr auto kBusyTime = std::chrono::microseconds(50);
constexpr auto kCheckInterval = std::chrono::milliseconds(100);

bool busy(const Link& link) { return link.sending() || link.receiving(); }

// The peer that has been silent the longest.
const Link* quietest(const std::vector<Link*>& links) {
  const Link* found = nullptr;
  for (const Link* link : links)
    if (busy(*link) && (!found || link->last_sign_of_life() < found->last_sign_of_life())) found = link;
  return found;
}

int whole_milliseconds(Clock::duration time) {
  const auto rounded = std::chrono::duration_cast<std::chrono::milliseconds>(time).count() + 1;
  return static_cast<int>(std::max<std::chrono::milliseconds::rep>(rounded, 0));
}

}  // namespace

std::optional<Failure> pump(const std::vector<Link*>& links, Clock::duration timeout, const std::atomic<bool>& stopped,
                            const Interrupted& interrupted) {
  std::optional<Failure> failure;
  std::array<PollItem, kMaxNodes> items;
  Clock::time_point now = Clock::now(), last_moved = now, last_check = now;
  const Failure stop{-1, Reason::Stopped, ""};

  while (true) {
    // Most frames can be sent at once, and those of faster peers are there already.
    bool moved = false;
    for (Link* link : links) {
      if (busy(*link) && link->progress(now, failure)) moved = true;
      if (failure) return failure;
    }
    const Link* silent = quietest(links);
    if (!silent) return std::nullopt;
    now = Clock::now();
    if (stopped.load(std::memory_order_relaxed)) return stop;
    const auto left = silent->last_sign_of_life() + timeout - now;
    if (left <= Clock::duration::zero()) return Failure{silent->rank(), Reason::TimedOut, ""};
    if (now - last_check >= kCheckInterval) {
      if (interrupted()) return stop;
      last_check = now;
    }
    if (moved) last_moved = now;
    if (now - last_moved < kBusyTime) continue;

    size_t n_items = 0;
    for (Link* link : links)
      if (busy(*link)) items[n_items++] = {link->socket(), link->receiving(), link->sending()};
    const int milliseconds = whole_milliseconds(std::min<Clock::duration>(left, kCheckInterval));
    const PollStatus status = poll_sockets(items.data(), n_items, milliseconds);
    if (status == PollStatus::Failed) return Failure{silent->rank(), Reason::Lost, "poll failed"};
    if (status == PollStatus::Interrupted && interrupted()) return stop;
    now = Clock::now();
  }
}

}  // namespace dllama::net
