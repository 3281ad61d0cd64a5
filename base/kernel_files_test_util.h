// A folder that stands for / with files of the kernel, for tests.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace fixpoint {

class KernelFilesTest : public testing::Test {
 protected:
  KernelFilesTest()
      : root_(testing::TempDir() + "/kernel_files_" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(root_);
  }
  ~KernelFilesTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string root() const { return root_; }

 private:
  std::filesystem::path root_;
};

}  // namespace fixpoint
