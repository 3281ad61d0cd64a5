#include "server/client/answer_record.h"

#include <simdjson.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "server/client/library/call_progress.h"
#include "server/client/message_json.h"

namespace fixpoint::client {
namespace {

constexpr size_t kMaxRecordBytes = size_t{256} << 20;

void WriteIds(absl::string_view key, const std::vector<uint32_t>& ids, JsonWriter* json) {
  json->Key(key);
  json->BeginArray();
  for (const uint32_t id : ids) json->Uint(id);
  json->EndArray();
}

void WriteLogprob(const v1::TokenLogprob& token, JsonWriter* json) {
  json->BeginObject();
  json->Field("token_id", token.token_id());
  json->Field("logprob", token.logprob());
  json->Field("token", token.token());
  json->EndObject();
}

void WriteLogprobs(const std::vector<v1::Logprobs>& logprobs, JsonWriter* json) {
  if (logprobs.empty()) return;
  json->Key("logprobs");
  json->BeginArray();
  for (const v1::Logprobs& position : logprobs) {
    json->BeginObject();
    json->Key("chosen");
    WriteLogprob(position.chosen(), json);
    json->Key("top");
    json->BeginArray();
    for (const v1::TokenLogprob& token : position.top()) WriteLogprob(token, json);
    json->EndArray();
    json->EndObject();
  }
  json->EndArray();
}

void WriteFinished(const v1::Finished& finished, JsonWriter* json) {
  json->Field("finish_reason", FinishReasonName(finished.reason()));
  if (finished.stopped_by_case() == v1::Finished::kStopTokenId) {
    json->Field("stop_token_id", finished.stop_token_id());
  }
  if (finished.stopped_by_case() == v1::Finished::kStopString) {
    json->Field("stop_string", finished.stop_string());
  }
  json->Key("usage");
  json->BeginObject();
  json->Field("prompt_tokens", finished.usage().prompt_tokens());
  json->Field("cached_tokens", finished.usage().cached_tokens());
  json->Field("completion_tokens", finished.usage().completion_tokens());
  json->EndObject();
  if (!finished.receipt().empty()) json->Field("receipt", finished.receipt());
}

// One object of a document: keys that must be there, or may.
class Keys {
 public:
  explicit Keys(simdjson::dom::object object) : object_(object) {}

  absl::StatusOr<simdjson::dom::element> Get(const char* key) const {
    simdjson::dom::element element;
    if (object_.at_key(key).get(element) == simdjson::SUCCESS) return element;
    return absl::InvalidArgumentError(absl::StrCat("key '", key, "' is missing"));
  }
  bool Has(const char* key) const { return Get(key).ok(); }
  absl::StatusOr<std::string> Text(const char* key) const {
    ASSIGN_OR_RETURN(const simdjson::dom::element element, Get(key));
    std::string_view text;
    if (element.get(text) == simdjson::SUCCESS) return std::string(text);
    return absl::InvalidArgumentError(absl::StrCat("'", key, "' must be a string"));
  }
  absl::StatusOr<std::vector<uint32_t>> Ids(const char* key) const {
    ASSIGN_OR_RETURN(const simdjson::dom::element element, Get(key));
    simdjson::dom::array array;
    if (element.get(array) != simdjson::SUCCESS) {
      return absl::InvalidArgumentError(absl::StrCat("'", key, "' must be an array"));
    }
    std::vector<uint32_t> ids;
    for (const simdjson::dom::element item : array) {
      ASSIGN_OR_RETURN(ids.emplace_back(), Id(item, absl::StrCat(key, "[", ids.size(), "]")));
    }
    return ids;
  }
  static absl::StatusOr<uint32_t> Id(simdjson::dom::element element, const std::string& path) {
    uint64_t id = 0;
    if (element.get(id) == simdjson::SUCCESS && id <= UINT32_MAX) return static_cast<uint32_t>(id);
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' must be a token id"));
  }

 private:
  simdjson::dom::object object_;
};

absl::Status ReadFinished(const Keys& keys, AnswerRecord* record) {
  ASSIGN_OR_RETURN(const std::string reason, keys.Text("finish_reason"));
  if (reason != "stop" && reason != "length") {
    return absl::InvalidArgumentError(
        absl::StrCat("'finish_reason' must be stop or length, is '", reason, "'"));
  }
  v1::Finished& finished = record->finished;
  finished.set_reason(reason == "stop" ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  if (keys.Has("stop_token_id")) {
    ASSIGN_OR_RETURN(const simdjson::dom::element element, keys.Get("stop_token_id"));
    ASSIGN_OR_RETURN(const uint32_t id, Keys::Id(element, "stop_token_id"));
    finished.set_stop_token_id(id);
  }
  if (keys.Has("stop_string")) {
    ASSIGN_OR_RETURN(*finished.mutable_stop_string(), keys.Text("stop_string"));
  }
  if (keys.Has("receipt")) {
    ASSIGN_OR_RETURN(*finished.mutable_receipt(), keys.Text("receipt"));
  }
  finished.set_max_tokens(record->request.stopping().max_tokens());
  finished.set_seed(record->request.sampling().seed());
  return absl::OkStatus();
}

absl::StatusOr<AnswerRecord> ReadRecord(simdjson::dom::element document) {
  simdjson::dom::object object;
  if (document.get(object) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("must be a JSON object");
  }
  const Keys keys(object);
  ASSIGN_OR_RETURN(const std::string format, keys.Text("format"));
  if (format != kRecordFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat("'format' must be ", kRecordFormat, ", is '", format, "'"));
  }
  AnswerRecord record;
  ASSIGN_OR_RETURN(const simdjson::dom::element request, keys.Get("request"));
  RETURN_IF_ERROR(ReadMessage(request, "request", &record.request));
  if (record.request.has_n() || record.request.more_prompts_size() > 0) {
    return absl::InvalidArgumentError("'request' must be for one choice: no n, no more_prompts");
  }
  record.output_ids.assign(record.request.resume_token_ids().begin(),
                           record.request.resume_token_ids().end());
  record.request.clear_resume_token_ids();
  ASSIGN_OR_RETURN(const std::vector<uint32_t> ids, keys.Ids("token_ids"));
  record.output_ids.insert(record.output_ids.end(), ids.begin(), ids.end());
  ASSIGN_OR_RETURN(record.system_fingerprint, keys.Text("system_fingerprint"));
  RETURN_IF_ERROR(ReadFinished(keys, &record));
  return record;
}

}  // namespace

std::string RecordJson(const v1::GenerateRequest& request, uint32_t choice, const Answer& answer,
                       const PromptReport* prompt, const std::string& target) {
  v1::GenerateRequest single = CallProgress(request, "").Request(static_cast<int>(choice));
  single.clear_cache_salt();
  if (answer.finished.max_tokens() > 0) {
    single.mutable_stopping()->set_max_tokens(answer.finished.max_tokens());
  }
  JsonWriter json;
  json.BeginObject();
  json.Field("format", kRecordFormat);
  json.Field("choice", choice);
  json.Field("text", answer.text);
  WriteIds("token_ids", answer.token_ids, &json);
  WriteFinished(answer.finished, &json);
  json.Field("system_fingerprint", answer.started.system_fingerprint());
  json.Field("request_id", answer.started.request_id());
  json.Field("target", target);
  WriteLogprobs(answer.logprobs, &json);
  if (prompt != nullptr) {
    json.Key("prompt");
    json.BeginObject();
    json.Field("text", prompt->text);
    WriteIds("token_ids", prompt->token_ids, &json);
    WriteLogprobs(prompt->logprobs, &json);
    json.EndObject();
  }
  json.Key("request");
  WriteMessage(single, &json);
  json.EndObject();
  return json.Take();
}

absl::StatusOr<std::vector<AnswerRecord>> ParseRecords(absl::string_view text) {
  if (text.size() > kMaxRecordBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(text.size(), " bytes, at most ", kMaxRecordBytes, " are read"));
  }
  text = absl::StripAsciiWhitespace(text);
  if (text.empty()) return absl::InvalidArgumentError("no JSON document in it");
  const simdjson::padded_string padded(text.data(), text.size());
  simdjson::dom::parser parser;
  simdjson::dom::document_stream stream;
  if (const auto error =
          parser.parse_many(padded, std::max<size_t>(padded.size(), 64)).get(stream)) {
    return absl::InvalidArgumentError(simdjson::error_message(error));
  }
  std::vector<AnswerRecord> records;
  for (auto document : stream) {
    const std::string name = absl::StrCat("document ", records.size() + 1);
    simdjson::dom::element element;
    if (const auto error = document.get(element)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": no JSON: ", simdjson::error_message(error)));
    }
    absl::StatusOr<AnswerRecord> record = ReadRecord(element);
    if (!record.ok()) return Annotate(record.status(), name);
    records.push_back(*std::move(record));
  }
  if (stream.truncated_bytes() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("document ", records.size() + 1, ": it is cut off"));
  }
  return records;
}

}  // namespace fixpoint::client
