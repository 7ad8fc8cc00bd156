// Goal: stderr's file has a bound, whoever writes to it, and loses nothing when it
// is changed for another. Method: the process's own stderr; sparse files.
#include "cfs/base/log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "cfs/base/limits.h"
#include "gtest/gtest.h"

namespace cfs {
namespace {

namespace fs = std::filesystem;

class LogFileTest : public testing::Test {
 protected:
  LogFileTest() : stderr_(fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)) {
    std::string path = fs::temp_directory_path() / "cfs-log-XXXXXX";
    directory_ = mkdtemp(path.data());
    log_ = directory_ + "/cfs.log";
    old_ = log_ + ".1";
    EXPECT_TRUE(LogToFile(log_).ok());
  }
  ~LogFileTest() override {
    dup2(stderr_, STDERR_FILENO);
    close(stderr_);
    fs::remove_all(directory_);
  }

  // What a library does.
  static void Print(const std::string& text) {
    ASSERT_EQ(write(STDERR_FILENO, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  void MakeTooLarge() { fs::resize_file(log_, kLogBytesMax + 1); }
  static std::string Read(const std::string& path) {
    std::string text(fs::file_size(path), '\0');
    std::ifstream(path).read(text.data(), static_cast<std::streamsize>(text.size()));
    return text;
  }
  static bool Has(const std::string& path, const std::string& text) {
    return Read(path).find(text) != std::string::npos;
  }

  const int stderr_;
  std::string directory_, log_, old_;
};

TEST_F(LogFileTest, BecomesAnotherWhenItIsTooLarge) {
  LogError("first");
  KeepLogSmall(log_);
  EXPECT_FALSE(fs::exists(old_)) << "a small one was renamed";
  for (const std::string before : {"first", "second"}) {
    MakeTooLarge();
    Print("the end of it\n");
    KeepLogSmall(log_);
    EXPECT_TRUE(Has(old_, before));
    EXPECT_TRUE(Has(old_, "the end of it"));
    EXPECT_EQ(Read(log_), "");
    Print("second\n");
    LogError("third");
    EXPECT_TRUE(Has(log_, "second\n"));
    EXPECT_TRUE(Has(log_, "third\n"));
    EXPECT_EQ(fs::file_size(old_), kLogBytesMax + 1 + 14);
  }
}

TEST_F(LogFileTest, GoesOnWhereItIsWhenItCannotBecomeAnother) {
  fs::create_directory(old_);
  MakeTooLarge();
  KeepLogSmall(log_);
  Print("not lost\n");
  EXPECT_TRUE(Has(log_, "not lost"));
  fs::remove(old_);
  // As a call leaves it that could not make the new file.
  fs::rename(log_, old_);
  Print("not lost either\n");
  KeepLogSmall(log_);
  EXPECT_TRUE(Has(old_, "not lost either"));
  Print("new\n");
  EXPECT_EQ(Read(log_), "new\n");
}

TEST_F(LogFileTest, WritersMissNoLine) {
  std::atomic<bool> renamed{false};
  std::atomic<int> begun{0}, written{0};
  std::vector<std::thread> writers;
  for (int i = 0; i < 2; ++i) {
    writers.emplace_back([&] {
      ++begun;
      for (bool last = false; !last; ++written) {
        last = renamed;
        Print("line\n");
      }
    });
  }
  while (begun < 2) std::this_thread::yield();
  MakeTooLarge();
  KeepLogSmall(log_);
  renamed = true;
  for (std::thread& writer : writers) writer.join();
  const std::string all = Read(old_) + Read(log_);
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), written);
  EXPECT_TRUE(Has(log_, "line\n"));
}

}  // namespace
}  // namespace cfs
