// Drives text/ alone for tokenizer_test.py and template_test.py: answers one request per line, so
// that one process serves thousands of strings.
//   text_probe tokenizer TOKENIZER.json [TOKENIZER_CONFIG.json]
//     in:  a JSON object {"text": "...", "control": bool} or {"ids": [...], "skip_control": bool}
//     or
//          {"segments": [["text", trusted], ...]}
//     out: {"ids": [...]} or {"text": "..."}
//   text_probe template TEMPLATE.jinja
//     in:  a JSON object of template variables
//     out: {"text": "...", "segments": [["...", trusted], ...]} or {"error": "..."}
#include <simdjson.h>

#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "calibrator/import/tokenizer_json.h"
#include "text/template/chat_template.h"
#include "text/template/messages_json.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    std::cerr << path << ": cannot be read\n";
    std::exit(1);
  }
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string Quoted(absl::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", absl::string_view(&c, 1));
    } else if (byte < 0x20) {
      absl::StrAppend(&out, "\\u00", absl::Hex(byte, absl::kZeroPad2));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
  return out;
}

std::string Ids(const std::vector<int32_t>& ids) {
  return absl::StrCat("{\"ids\":[", absl::StrJoin(ids, ","), "]}");
}

template <typename T>
T Get(simdjson::simdjson_result<simdjson::dom::element> element, T otherwise) {
  T value;
  return element.get(value) == simdjson::SUCCESS ? value : otherwise;
}

std::string AnswerTokenizer(const Tokenizer& tokenizer, simdjson::dom::element request) {
  std::string_view text;
  simdjson::dom::array list;
  if (request["text"].get(text) == simdjson::SUCCESS) {
    return Ids(tokenizer.Encode({text.data(), text.size()}, Get(request["control"], false)));
  }
  if (request["segments"].get(list) == simdjson::SUCCESS) {
    std::vector<TextSegment> segments;
    for (simdjson::dom::element item : list) {
      segments.push_back(
          {std::string(Get(item.at(0), std::string_view())), Get(item.at(1), false)});
    }
    return Ids(tokenizer.EncodeSegments(segments));
  }
  std::vector<int32_t> ids;
  if (request["ids"].get(list) == simdjson::SUCCESS) {
    for (simdjson::dom::element item : list) {
      int64_t id = -1;
      if (item.get(id) == simdjson::SUCCESS) ids.push_back(static_cast<int32_t>(id));
    }
  }
  return absl::StrCat(
      "{\"text\":", Quoted(tokenizer.Decode(ids, Get(request["skip_control"], false))), "}");
}

int RunTokenizer(int argc, char** argv) {
  auto spec = ParseTokenizerJson(ReadFile(argv[2]), argc > 3 ? ReadFile(argv[3]) : "");
  if (!spec.ok()) {
    std::cerr << spec.status() << "\n";
    return 1;
  }
  auto reread = ParseTokenizerSpec(SerializeTokenizerSpec(*spec));
  if (!reread.ok()) {
    std::cerr << reread.status() << "\n";
    return 1;
  }
  auto tokenizer = Tokenizer::Create(*std::move(reread));
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  simdjson::dom::parser parser;
  for (std::string line; std::getline(std::cin, line);) {
    simdjson::dom::element request;
    if (parser.parse(line).get(request)) {
      std::cerr << "not JSON: " << line.substr(0, 200) << "\n";
      return 1;
    }
    std::cout << AnswerTokenizer(**tokenizer, request) << std::endl;
  }
  return 0;
}

int RunTemplate(char** argv) {
  auto parsed = ChatTemplate::Parse(ReadFile(argv[2]));
  if (!parsed.ok()) {
    std::cerr << parsed.status().message() << "\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    auto variables = ValueFromJson(line);
    if (!variables.ok()) {
      std::cerr << variables.status() << "\n";
      return 1;
    }
    // As an operator passes them: these two are trusted.
    DictValue dict = *variables->as_dict();
    for (const char* name : {"bos_token", "eos_token"}) {
      if (const Value* token = dict.Find(name))
        dict.Set(name, Value::String(token->as_string()->text(), true));
    }
    RenderOptions options;
    options.now.tm_year = 124;  // 26 July 2024
    options.now.tm_mon = 6;
    options.now.tm_mday = 26;
    auto segments = (*parsed)->Render(Value::Dict(std::move(dict)), options);
    if (!segments.ok()) {
      std::cout << "{\"error\":" << Quoted(segments.status().message()) << "}" << std::endl;
      continue;
    }
    std::string text;
    std::vector<std::string> parts;
    for (const TextSegment& segment : *segments) {
      text += segment.text;
      parts.push_back(
          absl::StrCat("[", Quoted(segment.text), ",", segment.trusted ? "true" : "false", "]"));
    }
    std::cout << "{\"text\":" << Quoted(text) << ",\"segments\":[" << absl::StrJoin(parts, ",")
              << "]}" << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  const std::string mode = argc > 2 ? argv[1] : "";
  if (mode == "tokenizer") return fixpoint::RunTokenizer(argc, argv);
  if (mode == "template") return fixpoint::RunTemplate(argv);
  std::cerr
      << "usage: text_probe tokenizer TOKENIZER.json [CONFIG.json] | template TEMPLATE.jinja\n";
  return 2;
}
