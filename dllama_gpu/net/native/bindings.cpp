// The Python module dllama_gpu.net._native. Sockets and arrays belong to Python; dllama_gpu/net/mesh.py keeps them alive.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "mesh.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dllama::net {

namespace {

using Rows = py::array_t<float, py::array::c_style>;
using PeerKeys = std::optional<std::pair<py::bytes, py::bytes>>;
using FailureTuple = std::optional<std::tuple<int, Reason, std::string>>;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

MacKey mac_key(const py::bytes& bytes) {
  const auto view = static_cast<std::string_view>(bytes);
  MacKey key;
  require(view.size() == key.size(), "a key has 16 bytes");
  std::copy(view.begin(), view.end(), key.begin());
  return key;
}

std::unique_ptr<Mesh> make_mesh(int rank, const std::map<int, std::pair<Socket, PeerKeys>>& sockets, double timeout) {
  const int n_nodes = static_cast<int>(sockets.size()) + 1;
  require(n_nodes >= 2 && n_nodes <= static_cast<int>(kMaxNodes) && rank >= 0 && rank < n_nodes, "2 to 64 nodes");
  require(timeout > 0 && timeout <= 1e6, "a timeout is above 0 and below a million seconds");
  std::map<int, Peer> peers;
  for (const auto& [peer_rank, socket_and_keys] : sockets) {
    const auto& [socket, keys] = socket_and_keys;
    require(peer_rank >= 0 && peer_rank < n_nodes && peer_rank != rank, "every rank but the own one needs a socket");
    peers[peer_rank] = {socket, std::nullopt};
    if (keys) peers[peer_rank].keys = LinkKeys{mac_key(keys->first), mac_key(keys->second)};
  }
  return std::make_unique<Mesh>(rank, peers, timeout);
}

bool signal_raised() {
  py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

// Runs an exchange without the GIL. A signal handler's exception goes on, a failure comes back as a tuple.
template <class Exchange>
FailureTuple run(Exchange exchange) {
  std::optional<Failure> failure;
  {
    py::gil_scoped_release unlocked;
    failure = exchange();
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  if (!failure) return std::nullopt;
  return std::make_tuple(failure->rank, failure->reason, failure->detail);
}

struct RowsView {
  float* data;
  size_t n_rows, width;
};

RowsView view_of(Rows& rows) {
  require(rows.ndim() == 2 && rows.shape(0) > 0 && rows.shape(1) > 0, "rows must be an array (n_rows, width)");
  require(static_cast<size_t>(rows.size()) <= kMaxPayloadBytes / sizeof(float), "rows must not exceed 1 GiB");
  return {rows.mutable_data(), static_cast<size_t>(rows.shape(0)), static_cast<size_t>(rows.shape(1))};
}

FailureTuple all_reduce(Mesh& mesh, Rows rows, bool contributes, Wire wire, Algorithm algorithm) {
  const RowsView view = view_of(rows);
  require(wire != Wire::Q80 || view.width % kBlock == 0, "Q80 needs a width that is a multiple of 32");
  return run([&] {
    return mesh.all_reduce(view.data, view.n_rows, view.width, contributes, wire, algorithm, signal_raised);
  });
}

FailureTuple broadcast(Mesh& mesh, Rows rows) {
  const RowsView view = view_of(rows);
  return run([&] { return mesh.broadcast(view.data, view.n_rows, view.width, signal_raised); });
}

std::pair<FailureTuple, std::vector<py::bytes>> gather(Mesh& mesh, const py::bytes& payload, size_t max_bytes) {
  const auto view = static_cast<std::string_view>(payload);
  require(view.size() <= max_bytes && max_bytes <= kMaxPayloadBytes, "the payload is too long");
  std::vector<OutPart> gathered;
  const auto failure = run([&] {
    return mesh.gather(reinterpret_cast<const uint8_t*>(view.data()), view.size(), max_bytes, gathered, signal_raised);
  });
  std::vector<py::bytes> payloads;
  for (const OutPart& part : gathered) payloads.emplace_back(reinterpret_cast<const char*>(part.data), part.size);
  return {failure, payloads};
}

py::bytes siphash(const py::bytes& key, const std::vector<py::bytes>& pieces) {
  SipHash hash(mac_key(key));
  for (const py::bytes& piece : pieces) {
    const auto view = static_cast<std::string_view>(piece);
    hash.update(reinterpret_cast<const uint8_t*>(view.data()), view.size());
  }
  const Mac mac = hash.finish();
  return py::bytes(reinterpret_cast<const char*>(mac.data()), mac.size());
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Exchanges between nodes; see dllama_gpu/net/mesh.py.";
  m.attr("HEADER_BYTES") = kHeaderBytes;
  m.attr("MAX_NODES") = kMaxNodes;
  m.attr("MAX_PAYLOAD_BYTES") = kMaxPayloadBytes;

  py::enum_<Wire>(m, "Wire").value("F32", Wire::F32).value("F16", Wire::F16).value("Q80", Wire::Q80);
  py::enum_<Algorithm>(m, "Algorithm")
      .value("DIRECT", Algorithm::Direct)
      .value("REDUCE_SCATTER_ALL_GATHER", Algorithm::ReduceScatterAllGather);
  py::enum_<Reason>(m, "Reason")
      .value("CLOSED", Reason::Closed)
      .value("RESET", Reason::Reset)
      .value("LOST", Reason::Lost)
      .value("TIMED_OUT", Reason::TimedOut)
      .value("OUT_OF_STEP", Reason::OutOfStep)
      .value("WRONG_AUTHENTICATION", Reason::WrongAuthentication)
      .value("FRAME_TOO_LONG", Reason::FrameTooLong)
      .value("STOPPED", Reason::Stopped);

  py::class_<LinkStats>(m, "LinkStats")
      .def_readonly("bytes_sent", &LinkStats::bytes_sent)
      .def_readonly("bytes_received", &LinkStats::bytes_received)
      .def_readonly("waiting_seconds", &LinkStats::waiting_seconds)
      .def_readonly("receiving_seconds", &LinkStats::receiving_seconds)
      .def_readonly("sending_seconds", &LinkStats::sending_seconds);
  py::class_<MeshTotals>(m, "MeshTotals")
      .def_readonly("n_exchanges", &MeshTotals::n_exchanges)
      .def_readonly("seconds", &MeshTotals::seconds)
      .def_readonly("waiting_seconds", &MeshTotals::waiting_seconds);

  py::class_<Mesh>(m, "Mesh")
      .def(py::init(&make_mesh), "rank"_a, "sockets"_a, "timeout"_a)
      .def("all_reduce", &all_reduce, py::arg("rows").noconvert(), "contributes"_a, "wire"_a, "algorithm"_a)
      .def("broadcast", &broadcast, py::arg("rows").noconvert())
      .def("gather", &gather, "payload"_a, "max_bytes"_a)
      .def("stop", &Mesh::stop)
      .def("stats", &Mesh::stats)
      .def("totals", &Mesh::totals);
  m.def("siphash", &siphash, "key"_a, "pieces"_a, "SipHash-2-4-128 of the pieces one behind the other.");
}

}  // namespace dllama::net
