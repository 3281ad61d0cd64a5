#include "calibrator/export/new_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempDirectory;

std::set<std::string> NamesIn(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.insert(entry.path().filename().string());
  return names;
}

TEST(NewFolderTest, AppearsWithItsFilesAtCommit) {
  const TempDirectory parent;
  for (const char* name : {"new", "slash/"}) {
    const std::string target = parent.path() + "/" + name;
    absl::StatusOr<NewFolder> folder = NewFolder::Create(target);
    ASSERT_TRUE(folder.ok()) << folder.status();
    std::ofstream(folder->path() + "/file") << "x";
    EXPECT_FALSE(fs::exists(target));
    ASSERT_TRUE(folder->Commit().ok());
    EXPECT_THAT(NamesIn(target), ElementsAre("file"));
  }
  EXPECT_THAT(NamesIn(parent.path()), ElementsAre("new", "slash"));
}

TEST(NewFolderTest, WithoutCommitNothingStays) {
  const TempDirectory parent;
  {
    absl::StatusOr<NewFolder> folder = NewFolder::Create(parent.path() + "/new");
    ASSERT_TRUE(folder.ok());
    NewFolder moved = *std::move(folder);
    std::ofstream(moved.path() + "/file") << "x";
    EXPECT_EQ(NamesIn(parent.path()).size(), 1u);
  }
  EXPECT_THAT(NamesIn(parent.path()), IsEmpty());
}

TEST(NewFolderTest, AnEmptyFolderIsTakenAFullOneIsNot) {
  const TempDirectory parent;
  const std::string target = parent.path() + "/there";
  fs::create_directory(target);
  absl::StatusOr<NewFolder> folder = NewFolder::Create(target);
  ASSERT_TRUE(folder.ok()) << folder.status();
  std::ofstream(folder->path() + "/file") << "x";
  ASSERT_TRUE(folder->Commit().ok());
  EXPECT_THAT(NamesIn(target), ElementsAre("file"));
  const absl::Status again = NewFolder::Create(target).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(again.message()), HasSubstr(target + ": exists and is not empty"));
  EXPECT_EQ(NewFolder::Check(target + "/file").code(), absl::StatusCode::kAlreadyExists);
}

TEST(NewFolderTest, WhatCameIntoBeingMeanwhileIsLeftAlone) {
  const TempDirectory parent;
  const std::string target = parent.path() + "/new";
  {
    absl::StatusOr<NewFolder> folder = NewFolder::Create(target);
    ASSERT_TRUE(folder.ok());
    fs::create_directory(target);
    std::ofstream(target + "/theirs") << "x";
    EXPECT_FALSE(folder->Commit().ok());
  }
  EXPECT_THAT(NamesIn(target), ElementsAre("theirs"));
  EXPECT_THAT(NamesIn(parent.path()), ElementsAre("new"));
}

TEST(NewFolderTest, ParentsThatCannotHoldItAreNamed) {
  const TempDirectory parent;
  EXPECT_THAT(std::string(NewFolder::Check(parent.path() + "/no/new").message()),
              HasSubstr(parent.path() + "/no does not exist"));
  EXPECT_FALSE(NewFolder::Check("").ok());
  if (::geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  fs::permissions(parent.path(), fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_EQ(NewFolder::Check(parent.path() + "/new").code(), absl::StatusCode::kPermissionDenied);
  fs::permissions(parent.path(), fs::perms::owner_all);
}

}  // namespace
}  // namespace fixpoint
