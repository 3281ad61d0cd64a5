// Writes the tokenizer files of an exported checkpoint alone, for tests/export_test.py.
//
//   export_tokenizer_probe MODEL FOLDER      tokenizer.json and tokenizer_config.json
#include <iostream>
#include <string>

#include "base/file.h"
#include "base/status_macros.h"
#include "calibrator/export/tokenizer_files.h"
#include "calibrator/import/checkpoint.h"

namespace fixpoint {
namespace {

absl::Status Run(const std::string& model, const std::string& folder) {
  ASSIGN_OR_RETURN(const TokenizerAndTemplate imported, ImportTokenizer(model));
  ASSIGN_OR_RETURN(const std::string json, WriteTokenizerJson(imported.tokenizer));
  RETURN_IF_ERROR(WriteFileAtomically(folder + "/tokenizer.json", json));
  return WriteFileAtomically(
      folder + "/tokenizer_config.json",
      WriteTokenizerConfig(imported.tokenizer, imported.chat_template, 4096));
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: export_tokenizer_probe MODEL FOLDER\n";
    return 2;
  }
  const absl::Status status = fixpoint::Run(argv[1], argv[2]);
  if (!status.ok()) std::cerr << "export_tokenizer_probe: " << status << "\n";
  return status.ok() ? 0 : 1;
}
