#include "server/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "server/version.h"

namespace fixpoint {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

using Routes =
    std::map<std::string, std::map<std::string, HttpHandler>>;  // path -> method -> handler

HttpResponse Dispatch(const Routes& routes, const HttpRequest& request) {
  const auto path = routes.find(request.path);
  if (path == routes.end()) return HttpError(404, "no such path");
  const std::string method = request.method == "HEAD" ? "GET" : request.method;
  const auto handler = path->second.find(method);
  if (handler == path->second.end()) return HttpError(405, "this path does not take this method");
  return handler->second(request);
}

}  // namespace

HttpResponse HttpError(int status, absl::string_view message) {
  JsonWriter json;
  json.BeginObject();
  json.Key("error");
  json.BeginObject();
  json.Field("message", message);
  json.Field("type", status < 500 ? "invalid_request_error" : "server_error");
  json.Key("param");
  json.Null();
  json.Field("code", status);
  json.EndObject();
  json.EndObject();
  return {.status = status, .content_type = "application/json", .body = json.Take() + "\n"};
}

// Everything below runs on `thread`, except Start and Stop.
struct HttpServer::Impl {
  class Connection;

  Impl() : acceptor(context), retry(context) {}

  absl::Status Listen(const HttpOptions& wanted);
  void Accept();

  Routes routes;
  HttpOptions options;
  asio::io_context context{1};
  tcp::acceptor acceptor;
  asio::steady_timer retry;  // after a failed accept (no file descriptors left): not a busy loop
  std::set<Connection*> connections;
  std::thread thread;
  uint16_t port = 0;
};

// Reads one request at a time. Kept alive by its pending operation.
class HttpServer::Impl::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Impl* server, tcp::socket socket) : server_(server), stream_(std::move(socket)) {
    server_->connections.insert(this);
  }
  ~Connection() { server_->connections.erase(this); }

  void Read() {
    parser_.emplace();
    parser_->header_limit(server_->options.max_header_bytes);
    parser_->body_limit(server_->options.max_body_bytes);
    ExpireLater();
    http::async_read(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->OnRead(error); });
  }

  void Close() {
    error_code ignored;  // the other side may be gone already
    stream_.socket().close(ignored);
  }

 private:
  void ExpireLater() {
    stream_.expires_after(std::chrono::seconds(server_->options.timeout_seconds));
  }

  void OnRead(error_code error) {
    if (error == http::error::header_limit)
      return Write(HttpError(431, "request header too large"), false);
    if (error == http::error::body_limit)
      return Write(HttpError(413, "request body too large"), false);
    if (error.category() == http::make_error_code(http::error::bad_method).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      return Write(HttpError(400, "not a valid HTTP/1.1 request"), false);
    }
    if (error) return;  // closed, timed out or broken: nobody to answer
    const auto& message = parser_->get();
    const std::string target(message.target());
    head_only_ = message.method() == http::verb::head;
    const HttpRequest request{.method = std::string(message.method_string()),
                              .path = target.substr(0, target.find('?')),
                              .body = message.body()};
    Write(Dispatch(server_->routes, request), message.keep_alive());
  }

  void Write(HttpResponse answer, bool keep_alive) {
    response_.emplace(static_cast<http::status>(answer.status), 11);
    response_->set(http::field::server, absl::StrCat("fixpoint/", kServerVersion));
    response_->set(http::field::content_type, answer.content_type);
    response_->set(http::field::cache_control, "no-store");
    response_->keep_alive(keep_alive);
    const size_t length = answer.body.size();
    if (!head_only_) response_->body() = std::move(answer.body);
    response_->content_length(length);
    ExpireLater();
    http::async_write(stream_, *response_,
                      [self = shared_from_this(), keep_alive](error_code error, size_t) {
                        if (error) return;
                        if (keep_alive) return self->Read();
                        error_code ignored;
                        self->stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
                      });
  }

  Impl* const server_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{64 << 10};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::optional<http::response<http::string_body>> response_;
  bool head_only_ = false;
};

absl::Status HttpServer::Impl::Listen(const HttpOptions& wanted) {
  options = wanted;
  const auto failed = [&](const error_code& error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.host, ":", options.port,
                                               " for HTTP: ", error.message()));
  };
  error_code error;
  const asio::ip::address address = asio::ip::make_address(options.host, error);
  if (error) return failed(error);
  const tcp::endpoint endpoint(address, options.port);
  acceptor.open(endpoint.protocol(), error);
  if (error) return failed(error);
  // Only past a connection in TIME_WAIT; a port that is listened on stays an error.
  acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (error) return failed(error);
  acceptor.bind(endpoint, error);
  if (error) return failed(error);
  acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) return failed(error);
  port = acceptor.local_endpoint(error).port();
  return error ? failed(error) : absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error) {
      retry.expires_after(std::chrono::milliseconds(100));
      retry.async_wait([this](error_code stopped) {
        if (!stopped) Accept();
      });
      return;
    }
    // Beyond the limit the socket closes as it goes out of scope.
    if (connections.size() < static_cast<size_t>(options.max_connections)) {
      std::make_shared<Connection>(this, std::move(socket))->Read();
    }
    Accept();
  });
}

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}

HttpServer::~HttpServer() { Stop(); }

void HttpServer::Route(const std::string& method, const std::string& path, HttpHandler handler) {
  impl_->routes[path][method] = std::move(handler);
}

absl::Status HttpServer::Start(const HttpOptions& options) {
  if (absl::Status status = impl_->Listen(options); !status.ok()) return status;
  impl_->Accept();
  impl_->thread = std::thread([impl = impl_.get()] { impl->context.run(); });
  return absl::OkStatus();
}

void HttpServer::Stop() {
  if (!impl_->thread.joinable()) return;
  asio::post(impl_->context, [impl = impl_.get()] {
    error_code ignored;
    impl->acceptor.close(ignored);
    impl->retry.cancel();
    for (Impl::Connection* connection : impl->connections) connection->Close();
  });
  impl_->thread.join();
}

uint16_t HttpServer::port() const { return impl_->port; }

}  // namespace fixpoint
