#include <iostream>

#include "base/file.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "calibrator/corpus.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxTextBytes = 64 << 20;

}  // namespace

absl::Status RunTokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const TextModel model, LoadTextModel(flags.model));
  const std::string path = flags.file == "-" ? "/dev/stdin" : flags.file;
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxTextBytes));
  RETURN_IF_ERROR(CheckUtf8(text, path));
  const std::vector<int32_t> ids = model.tokenizer->Encode(text, flags.special);
  if (flags.json) {
    JsonWriter json;
    json.BeginObject();
    json.Key("ids");
    json.BeginArray();
    for (const int32_t id : ids) json.Int(id);
    json.EndArray();
    json.EndObject();
    std::cout << json.Take() << "\n";
    return absl::OkStatus();
  }
  for (const int32_t id : ids)
    std::cout << id << "\t" << JsonQuote(model.tokenizer->TokenBytes(id)) << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
