// Non-blocking stream sockets on POSIX and Windows. They are opened, made non-blocking and closed by Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dllama::net {

using Socket = std::intptr_t;  // a file descriptor, or Windows' SOCKET

constexpr size_t kMaxParts = 3;  // of one frame: header, payload, authentication code
constexpr size_t kMaxNodes = 64;

struct OutPart {
  const uint8_t* data;
  size_t size;
};

struct InPart {
  uint8_t* data;
  size_t size;
};

enum class IoStatus { Moved, WouldBlock, Closed, Failed };

struct IoResult {
  IoStatus status;
  size_t n_bytes;  // if Moved
  int error;       // if Failed, a number of the system
};

// Send from or receive into at most kMaxParts parts, as much as goes without waiting.
IoResult send_some(Socket socket, const OutPart* parts, size_t n_parts);
IoResult receive_some(Socket socket, const InPart* parts, size_t n_parts);

struct PollItem {
  Socket socket;
  bool wants_read;
  bool wants_write;
};

enum class PollStatus { Done, Interrupted, Failed };

// Waits until something wanted can be done or a connection has an error to tell, at most `milliseconds`. At most kMaxNodes items.
PollStatus poll_sockets(const PollItem* items, size_t n_items, int milliseconds);

// Without this, macOS ends the process when a peer has gone; elsewhere it does nothing.
void suppress_broken_pipe_signal(Socket socket);

bool is_reset(int error);
std::string error_text(int error);

}  // namespace dllama::net
