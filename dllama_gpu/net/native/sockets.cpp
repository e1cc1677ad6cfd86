#include "sockets.hpp"

#include <array>
#include <system_error>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <winsock2.h>
#else
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#endif

namespace dllama::net {

#ifdef _WIN32

namespace {

template <class Part>
std::array<WSABUF, kMaxParts> to_system(const Part* parts, size_t n_parts) {
  std::array<WSABUF, kMaxParts> buffers{};
  for (size_t i = 0; i < n_parts; i++) {
    buffers[i].buf = reinterpret_cast<char*>(const_cast<uint8_t*>(parts[i].data));
    buffers[i].len = static_cast<ULONG>(parts[i].size);
  }
  return buffers;
}

IoResult failed() {
  const int error = WSAGetLastError();
  return {error == WSAEWOULDBLOCK ? IoStatus::WouldBlock : IoStatus::Failed, 0, error};
}

}  // namespace

IoResult send_some(Socket socket, const OutPart* parts, size_t n_parts) {
  auto buffers = to_system(parts, n_parts);
  DWORD n_bytes = 0;
  if (WSASend(static_cast<SOCKET>(socket), buffers.data(), static_cast<DWORD>(n_parts), &n_bytes, 0, nullptr, nullptr))
    return failed();
  return {IoStatus::Moved, n_bytes, 0};
}

IoResult receive_some(Socket socket, const InPart* parts, size_t n_parts) {
  auto buffers = to_system(parts, n_parts);
  DWORD n_bytes = 0, flags = 0;
  if (WSARecv(static_cast<SOCKET>(socket), buffers.data(), static_cast<DWORD>(n_parts), &n_bytes, &flags, nullptr,
              nullptr))
    return failed();
  return {n_bytes ? IoStatus::Moved : IoStatus::Closed, n_bytes, 0};
}

PollStatus poll_sockets(const PollItem* items, size_t n_items, int milliseconds) {
  std::array<WSAPOLLFD, kMaxNodes> system{};
  for (size_t i = 0; i < n_items; i++) {
    system[i].fd = static_cast<SOCKET>(items[i].socket);
    system[i].events =
        static_cast<SHORT>((items[i].wants_read ? POLLRDNORM : 0) | (items[i].wants_write ? POLLWRNORM : 0));
  }
  if (WSAPoll(system.data(), static_cast<ULONG>(n_items), milliseconds) < 0) return PollStatus::Failed;
  return PollStatus::Done;
}

void suppress_broken_pipe_signal(Socket) {}

bool is_reset(int error) { return error == WSAECONNRESET || error == WSAECONNABORTED; }

#else

namespace {

#ifdef MSG_NOSIGNAL
constexpr int kSendFlags = MSG_NOSIGNAL;
#else
constexpr int kSendFlags = 0;
#endif

template <class Part>
IoResult transfer(Socket socket, const Part* parts, size_t n_parts, ssize_t (*move)(int, msghdr*)) {
  std::array<iovec, kMaxParts> buffers{};
  for (size_t i = 0; i < n_parts; i++) {
    buffers[i].iov_base = const_cast<uint8_t*>(parts[i].data);
    buffers[i].iov_len = parts[i].size;
  }
  msghdr message{};
  message.msg_iov = buffers.data();
  message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(n_parts);
  const ssize_t n_bytes = move(static_cast<int>(socket), &message);
  if (n_bytes > 0) return {IoStatus::Moved, static_cast<size_t>(n_bytes), 0};
  if (n_bytes == 0) return {IoStatus::Closed, 0, 0};
  // A signal is noticed by the poll that follows.
  const bool again = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  return {again ? IoStatus::WouldBlock : IoStatus::Failed, 0, errno};
}

}  // namespace

IoResult send_some(Socket socket, const OutPart* parts, size_t n_parts) {
  return transfer(socket, parts, n_parts, [](int fd, msghdr* message) { return sendmsg(fd, message, kSendFlags); });
}

IoResult receive_some(Socket socket, const InPart* parts, size_t n_parts) {
  return transfer(socket, parts, n_parts, [](int fd, msghdr* message) { return recvmsg(fd, message, 0); });
}

PollStatus poll_sockets(const PollItem* items, size_t n_items, int milliseconds) {
  std::array<pollfd, kMaxNodes> system{};
  for (size_t i = 0; i < n_items; i++) {
    system[i].fd = static_cast<int>(items[i].socket);
    system[i].events = static_cast<short>((items[i].wants_read ? POLLIN : 0) | (items[i].wants_write ? POLLOUT : 0));
  }
  const int n_ready = poll(system.data(), static_cast<nfds_t>(n_items), milliseconds);
  if (n_ready >= 0) return PollStatus::Done;
  return errno == EINTR || errno == EAGAIN ? PollStatus::Interrupted : PollStatus::Failed;
}

void suppress_broken_pipe_signal(Socket socket) {
#ifdef SO_NOSIGPIPE
  const int on = 1;
  setsockopt(static_cast<int>(socket), SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#else
  static_cast<void>(socket);
#endif
}

bool is_reset(int error) { return error == ECONNRESET || error == EPIPE || error == ECONNABORTED; }

#endif

std::string error_text(int error) { return std::system_category().message(error); }

}  // namespace dllama::net
