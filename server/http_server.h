// A small HTTP/1.1 server for probes, metrics and later the OpenAI routes. Boost.Beast on one
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // without the query
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// Runs on the server's thread: must be quick.
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8080;                  // 0: any free one
  int max_connections = 256;             // further ones are closed at once
  uint32_t max_header_bytes = 16 << 10;  // 431 beyond
  uint64_t max_body_bytes = 1 << 20;     // 413 beyond
  int timeout_seconds =
      10;  // to read a whole request, to write an answer, and between requests of a connection
};

// OpenAI's error body: {"error": {"message", "type", "param", "code"}}.
HttpResponse HttpError(int status, absl::string_view message);

// Routes are fixed before Start. GET routes answer HEAD too, without a body. Everything else
// thread-safe.
class HttpServer {
 public:
  HttpServer();
  ~HttpServer();  // stops

  // `path` matches exactly.
  void Route(const std::string& method, const std::string& path, HttpHandler handler);

  // Binds, listens and serves on a thread of its own. UNAVAILABLE naming address and reason when
  // that fails.
  absl::Status Start(const HttpOptions& options);
  // Closes the listener and all connections. Idempotent.
  void Stop();

  // The bound port, once started.
  uint16_t port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fixpoint
