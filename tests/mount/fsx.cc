// Does random I/O to one file in every way there is, keeps what it must contain in memory, and
// compares after every read. Several descriptors of different kinds and a mapping that outlives
// them are open at once. A seed replays. After an idea of fsx from Apple and the BSDs.
//
// Exit code: 0 fine, 1 the file differs or a call failed, 2 not able to run.

#include <fcntl.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPipeBytes = 64 << 10;
constexpr size_t kTail = 60;  // Steps shown when one fails.
constexpr size_t kDescriptors = 5;
constexpr uint64_t kCoverageSteps = 20'000;

#define PRINTF_LIKE(first) __attribute__((format(printf, first, first + 1)))

// splitmix64: the same numbers on every compiler, which the std:: distributions don't promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  size_t Below(uint64_t bound) { return Next() % bound; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return choices.begin()[Below(choices.size())];
  }

 private:
  uint64_t state_;
};

struct Options {
  std::string path;
  uint64_t seed = 1;
  uint64_t steps = 0;
  uint64_t seconds = 0;
  uint64_t size_max = 512 << 10;
  std::string model;
  bool self_test = false;
  bool help = false;
};

class Exerciser {
 public:
  explicit Exerciser(const Options& options)
      : options_(options),
        random_(options.seed),
        length_max_(std::max<size_t>(kPipeBytes, options.size_max / kPage / 4 * kPage)),
        buffer_(AlignedBuffer(length_max_)) {
    for (Descriptor& descriptor : descriptors_) Open(&descriptor, O_RDWR);
    if (pipe2(pipe_, O_CLOEXEC) != 0) Fail("pipe: %m");
    running_ = this;
    signal(SIGBUS, [](int) { running_->Fail("SIGBUS: a mapped page can't be read or written"); });
  }
  ~Exerciser() {
    for (const Descriptor& descriptor : descriptors_) close(descriptor.fd);
    for (const int fd : pipe_) close(fd);
    Unmap();
  }
  Exerciser(const Exerciser&) = delete;

  void Run() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(options_.seconds);
    uint64_t weights = 0;
    for (const Operation& operation : kOperations) weights += operation.weight;
    while (step_ < options_.steps &&
           (options_.seconds == 0 || std::chrono::steady_clock::now() < deadline)) {
      uint64_t at = random_.Below(weights);
      auto operation = kOperations.begin();
      while (at >= operation->weight) at -= operation++->weight;
      ++step_;
      Log("%s", operation->name);
      if ((this->*operation->run)()) ++done_[operation->name];
      if (step_ % 500 == 0) CheckAll();
    }
    if (options_.self_test) Damage();
    CheckAll();
    for (Descriptor& descriptor : descriptors_) Open(&descriptor, O_RDONLY);
    CheckAll();
  }

  void PrintStatistics() {
    std::string absent;
    for (const Operation& operation : kOperations) {
      if (unsupported_.contains(operation.name)) {
        absent += std::string(" ") + operation.name;
      } else if (step_ >= kCoverageSteps && done_[operation.name] == 0) {
        Fail("coverage: %s was never done", operation.name);
      }
    }
    printf("fine: seed=%lu steps=%lu size=%zu\nunsupported:%s\n", options_.seed, step_,
           model_.size(), absent.empty() ? " none" : absent.c_str());
  }

  const std::string& model() const { return model_; }

  // Says what is wrong, what was done before and how to do it again.
  [[noreturn]] PRINTF_LIKE(2) void Fail(const char* format, ...) {
    const int error = errno;
    printf("FAILED seed=%lu step=%lu: ", options_.seed, step_);
    va_list args;
    va_start(args, format);
    errno = error;
    vprintf(format, args);
    va_end(args);
    printf("\nsize=%zu, last steps:\n", model_.size());
    for (const std::string& line : tail_) printf("  %s\n", line.c_str());
    printf("replay: fsx --seed %lu --steps %lu --size-max %lu%s %s\n", options_.seed,
           std::max<uint64_t>(step_, 1), options_.size_max,
           options_.self_test ? " --self-test" : "", options_.path.c_str());
    fflush(stdout);
    _exit(1);
  }

 private:
  struct Descriptor {
    int fd = -1;
    int flags = 0;
    bool readable() const { return (flags & O_ACCMODE) != O_WRONLY; }
    bool writable() const { return (flags & O_ACCMODE) != O_RDONLY; }
    bool direct() const { return (flags & O_DIRECT) != 0; }
    bool append() const { return (flags & O_APPEND) != 0; }
  };
  // One that isn't done now (no room, no descriptor, not supported) returns false.
  struct Operation {
    const char* name;
    uint64_t weight;
    bool (Exerciser::*run)();
  };
  struct Range {
    size_t offset, size;
    size_t end() const { return offset + size; }
  };
  struct Unmapper {
    size_t size;
    void operator()(char* map) const { munmap(map, size); }
  };
  using Mapping = std::unique_ptr<char, Unmapper>;

  static const std::vector<Operation> kOperations;

  // --- Drawing

  Range Draw(size_t end) {
    Range range;
    range.offset = random_.Below(end + 1);
    if (random_.OneIn(3)) range.offset -= range.offset % kPage;
    range.size = random_.OneIn(4) ? random_.Below(64) : random_.Below(kPipeBytes);
    if (random_.OneIn(10)) range.size = random_.Below(length_max_);
    if (random_.OneIn(3)) range.size = (range.size / kPage + 1) * kPage;
    range.size = std::min({range.size, length_max_, end - range.offset});
    return range;
  }
  // Where a write may go: also behind the end of the file.
  Range DrawForWrite() {
    const size_t end = random_.OneIn(4) ? options_.size_max : model_.size() + kPage;
    return Draw(std::min<size_t>(end, options_.size_max));
  }
  static Range Aligned(Range range) {
    range.offset -= range.offset % kPage;
    range.size -= range.size % kPage;
    return range;
  }

  // A random descriptor that serves, or null.
  template <typename F>
  const Descriptor* Choose(F serves) {
    const size_t first = random_.Below(kDescriptors);
    for (size_t i = 0; i < kDescriptors; ++i) {
      const Descriptor& descriptor = descriptors_[(first + i) % kDescriptors];
      if (serves(descriptor)) {
        Log(" fd %zu", (first + i) % kDescriptors);
        return &descriptor;
      }
    }
    return nullptr;
  }
  const Descriptor* ChooseReader() {
    return Choose([](const Descriptor& d) { return d.readable() && !d.direct(); });
  }
  const Descriptor* ChooseWriter() {
    return Choose([](const Descriptor& d) { return d.writable() && !d.direct() && !d.append(); });
  }
  const Descriptor* ChooseForMap() {
    return Choose([](const Descriptor& d) { return (d.flags & O_ACCMODE) == O_RDWR; });
  }

  // Puts new bytes into buffer_, none of them zero: so a lost page shows.
  void Fill(size_t size) {
    const auto first = static_cast<unsigned char>(random_.Next());
    for (size_t i = 0; i < size; ++i) {
      buffer_[i] = static_cast<char>(1 + (first + i + i / 255) % 255);
    }
  }

  // --- Model

  void ModelWrite(size_t offset, size_t size) {
    if (size == 0) return;
    if (model_.size() < offset + size) model_.resize(offset + size);
    memcpy(&model_[offset], buffer_.get(), size);
  }

  void Compare(const char* got, Range range, const char* how) {
    if (memcmp(got, model_.data() + range.offset, range.size) == 0) return;
    size_t first = 0;
    while (got[first] == model_[range.offset + first]) ++first;
    size_t bad = 0;
    for (size_t i = first; i < range.size; ++i) bad += got[i] != model_[range.offset + i];
    Fail("%s of [%zu, %zu): first of %zu bad bytes at %zu: is %02x, not %02x", how, range.offset,
         range.end(), bad, range.offset + first, static_cast<unsigned char>(got[first]),
         static_cast<unsigned char>(model_[range.offset + first]));
  }

  void Expect(ssize_t result, size_t wanted, const char* call) {
    if (result < 0) Fail("%s: %m", call);
    if (static_cast<size_t>(result) != wanted) Fail("%s: %zd instead of %zu", call, result, wanted);
  }

  // By a new descriptor and a new mapping.
  void CheckAll() {
    const int fd = open(options_.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) Fail("open: %m");
    std::string data(options_.size_max + kPage, '\0');
    Expect(pread(fd, data.data(), data.size(), 0), model_.size(), "reading all");
    Compare(data.data(), {0, model_.size()}, "reading all");
    if (!model_.empty()) {
      const Mapping map = Map(fd, {0, model_.size()}, PROT_READ);
      CompareMapped(map.get(), {0, model_.size()});
    }
    close(fd);
  }

  // --- Descriptors

  // False if the file system has no such kind.
  bool Open(Descriptor* descriptor, int flags) {
    const int created = descriptor->fd < 0 ? O_CREAT : 0;
    const int fd = open(options_.path.c_str(), flags | created | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EINVAL && (flags & O_DIRECT) != 0) return false;
    if (fd < 0) Fail("open: %m");
    if (descriptor->fd >= 0 && close(descriptor->fd) != 0) Fail("close: %m");
    *descriptor = {fd, flags};
    return true;
  }

  bool Reopen() {
    const size_t index = random_.Below(kDescriptors);
    int flags = random_.Pick({O_RDONLY, O_RDWR, O_RDWR, O_RDWR | O_DSYNC, O_WRONLY | O_APPEND});
    // There is always one for everything.
    if (index == 0) flags = O_RDWR;
    if (random_.OneIn(60)) {
      flags = O_RDWR | O_TRUNC;
      model_.clear();
    }
    Log(" fd %zu flags 0%o", index, flags);
    return Open(&descriptors_[index], flags);
  }

  bool ReopenDirect() {
    const size_t index = 1 + random_.Below(kDescriptors - 1);
    Log(" fd %zu", index);
    if (Open(&descriptors_[index], O_RDWR | O_DIRECT)) return true;
    unsupported_.insert("reopen_direct");
    return false;
  }

  // --- Reading

  bool Read() {
    const Descriptor* descriptor = ChooseReader();
    if (descriptor == nullptr) return false;
    // Also past the end, where nothing comes.
    const Range asked = Draw(options_.size_max);
    const Range range = {asked.offset, model_.size() <= asked.offset
                                           ? 0
                                           : std::min(asked.size, model_.size() - asked.offset)};
    Log(" [%zu, %zu)", asked.offset, asked.end());
    const auto offset = static_cast<off_t>(asked.offset);
    switch (random_.Below(3)) {
      case 0:
        Expect(pread(descriptor->fd, buffer_.get(), asked.size, offset), range.size, "pread");
        break;
      case 1:
        Expect(lseek(descriptor->fd, offset, SEEK_SET), asked.offset, "lseek");
        Expect(read(descriptor->fd, buffer_.get(), asked.size), range.size, "read");
        break;
      default: {
        const size_t half = asked.size / 2;
        const struct iovec parts[] = {{buffer_.get(), half},
                                      {buffer_.get() + half, asked.size - half}};
        Expect(preadv(descriptor->fd, parts, 2, offset), range.size, "preadv");
      }
    }
    Compare(buffer_.get(), range, "read");
    return true;
  }

  bool ReadDirect() {
    const Descriptor* descriptor =
        Choose([](const Descriptor& d) { return d.readable() && d.direct(); });
    const Range asked = Aligned(Draw(options_.size_max));
    if (descriptor == nullptr || model_.size() <= asked.offset) return false;
    const Range range = {asked.offset, std::min(asked.size, model_.size() - asked.offset)};
    Log(" [%zu, %zu)", asked.offset, asked.end());
    Expect(pread(descriptor->fd, buffer_.get(), asked.size, static_cast<off_t>(asked.offset)),
           range.size, "direct pread");
    Compare(buffer_.get(), range, "direct read");
    return true;
  }

  bool SpliceRead() {
    const Descriptor* descriptor = ChooseReader();
    const Range range = Draw(model_.size());
    if (descriptor == nullptr || range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    auto offset = static_cast<off_t>(range.offset);
    size_t done = 0;
    while (done < range.size) {
      const ssize_t count =
          random_.OneIn(2)
              ? splice(descriptor->fd, &offset, pipe_[1], nullptr, range.size - done, 0)
              : sendfile(pipe_[1], descriptor->fd, &offset, range.size - done);
      if (count <= 0) Fail("splice: %zd %m", count);
      // In pieces: how many pages a pipe holds is not how many bytes.
      Expect(read(pipe_[0], &buffer_[done], count), count, "read of the pipe");
      done += count;
    }
    Compare(buffer_.get(), range, "splice");
    return true;
  }

  bool SeekHole() {
    const Descriptor* descriptor = ChooseReader();
    if (descriptor == nullptr || model_.empty()) return false;
    const size_t offset = random_.Below(model_.size());
    Log(" %zu", offset);
    // A FUSE server doesn't know of mapped pages that are not written back yet, and isn't told
    // here.
    Expect(
        sync_file_range(descriptor->fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER),
        0, "sync_file_range");
    const off_t data = lseek(descriptor->fd, static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0 && errno != ENXIO) Fail("SEEK_DATA: %m");
    const size_t zeros_end = data < 0 ? model_.size() : data;
    if (zeros_end < offset || zeros_end > model_.size()) Fail("SEEK_DATA: %zu", zeros_end);
    const size_t nonzero = model_.find_first_not_of('\0', offset);
    if (nonzero < zeros_end) Fail("SEEK_DATA: %zu, but there is data at %zu", zeros_end, nonzero);
    const off_t hole = lseek(descriptor->fd, static_cast<off_t>(offset), SEEK_HOLE);
    if (hole < static_cast<off_t>(offset) || hole > static_cast<off_t>(model_.size())) {
      Fail("SEEK_HOLE: %ld %m", hole);
    }
    const auto at = static_cast<size_t>(hole);
    if (at < model_.size() && model_[at] != '\0') Fail("SEEK_HOLE: %zu is data", at);
    return true;
  }

  bool Stat() {
    const Descriptor& descriptor = descriptors_[random_.Below(kDescriptors)];
    struct stat st;
    Expect(fstat(descriptor.fd, &st), 0, "fstat");
    Expect(st.st_size, model_.size(), "size by fstat");
    Expect(stat(options_.path.c_str(), &st), 0, "stat");
    Expect(st.st_size, model_.size(), "size by stat");
    Expect(lseek(descriptor.fd, 0, SEEK_END), model_.size(), "size by lseek");
    return true;
  }

  // --- Writing

  bool Write() {
    const Descriptor* descriptor = ChooseWriter();
    if (descriptor == nullptr) return false;
    const Range range = DrawForWrite();
    Log(" [%zu, %zu)", range.offset, range.end());
    Fill(range.size);
    const auto offset = static_cast<off_t>(range.offset);
    switch (random_.Below(3)) {
      case 0:
        Expect(pwrite(descriptor->fd, buffer_.get(), range.size, offset), range.size, "pwrite");
        break;
      case 1:
        Expect(lseek(descriptor->fd, offset, SEEK_SET), range.offset, "lseek");
        Expect(write(descriptor->fd, buffer_.get(), range.size), range.size, "write");
        break;
      default: {
        const size_t half = range.size / 2;
        const struct iovec parts[] = {{buffer_.get(), half},
                                      {buffer_.get() + half, range.size - half}};
        Expect(pwritev(descriptor->fd, parts, 2, offset), range.size, "pwritev");
      }
    }
    ModelWrite(range.offset, range.size);
    return true;
  }

  bool WriteDirect() {
    const Descriptor* descriptor =
        Choose([](const Descriptor& d) { return d.writable() && d.direct(); });
    const Range range = Aligned(DrawForWrite());
    if (descriptor == nullptr || range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    Fill(range.size);
    Expect(pwrite(descriptor->fd, buffer_.get(), range.size, static_cast<off_t>(range.offset)),
           range.size, "direct pwrite");
    ModelWrite(range.offset, range.size);
    return true;
  }

  bool Append() {
    const Descriptor* descriptor = Choose([](const Descriptor& d) { return d.append(); });
    const size_t size = Draw(kPipeBytes).size;
    if (descriptor == nullptr || model_.size() + size > options_.size_max) return false;
    Log(" %zu", size);
    Fill(size);
    // Wherever it is told to: O_APPEND goes to the end.
    const ssize_t written = random_.OneIn(2) ? write(descriptor->fd, buffer_.get(), size)
                                             : pwrite(descriptor->fd, buffer_.get(), size, 0);
    Expect(written, size, "append");
    ModelWrite(model_.size(), size);
    return true;
  }

  bool SpliceWrite() {
    const Descriptor* descriptor = ChooseWriter();
    Range range = DrawForWrite();
    range.size = std::min(range.size, kPipeBytes);
    if (descriptor == nullptr || range.size == 0) return false;
    Fill(range.size);
    Expect(write(pipe_[1], buffer_.get(), range.size), range.size, "write to the pipe");
    Log(" [%zu, %zu)", range.offset, range.end());
    auto offset = static_cast<off_t>(range.offset);
    for (size_t done = 0; done < range.size;) {
      const ssize_t count =
          splice(pipe_[0], nullptr, descriptor->fd, &offset, range.size - done, SPLICE_F_MOVE);
      if (count <= 0) Fail("splice: %zd %m", count);
      done += count;
    }
    ModelWrite(range.offset, range.size);
    return true;
  }

  // --- Mappings

  Mapping Map(int fd, Range range, int protection) {
    const size_t start = range.offset - range.offset % kPage;
    const size_t size = range.end() - start;
    void* map = mmap(nullptr, size, protection, MAP_SHARED, fd, static_cast<off_t>(start));
    if (map == MAP_FAILED) Fail("mmap: %m");
    return Mapping(static_cast<char*>(map), Unmapper{size});
  }

  // Also what is behind the end of the file in its last page: that must be zeros.
  void CompareMapped(const char* map, Range range) {
    const char* data = map + range.offset % kPage;
    Compare(data, range, "mapped read");
    if (range.end() != model_.size()) return;
    for (size_t i = range.end(); i % kPage != 0; ++i) {
      if (data[i - range.offset] != 0) Fail("mapped byte %zu behind the end is not zero", i);
    }
  }

  bool MapRead() {
    const Descriptor* descriptor = Choose([](const Descriptor& d) { return d.readable(); });
    const Range range = Draw(model_.size());
    if (descriptor == nullptr || range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    const Mapping map = Map(descriptor->fd, range, PROT_READ);
    CompareMapped(map.get(), range);
    return true;
  }

  bool MapWrite() {
    const Descriptor* descriptor = ChooseForMap();
    const Range range = Draw(model_.size());
    if (descriptor == nullptr || range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    const Mapping map = Map(descriptor->fd, range, PROT_READ | PROT_WRITE);
    Fill(range.size);
    memcpy(map.get() + range.offset % kPage, buffer_.get(), range.size);
    ModelWrite(range.offset, range.size);
    if (random_.OneIn(2)) {
      Log(" msync");
      Expect(msync(map.get(), map.get_deleter().size, MS_SYNC), 0, "msync");
    }
    return true;
  }

  // A mapping for later steps. The descriptor it came from is closed before it is.
  bool MapKept() {
    Unmap();
    const Range range = Aligned(Draw(options_.size_max));
    if (range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    Descriptor descriptor;
    Open(&descriptor, O_RDWR);
    kept_ = Map(descriptor.fd, range, PROT_READ | PROT_WRITE);
    kept_range_ = range;
    close(descriptor.fd);
    return true;
  }

  // The part of the kept mapping that the file has now.
  Range DrawKept() {
    if (kept_ == nullptr || kept_range_.offset >= model_.size()) return {0, 0};
    Range range = Draw(std::min(kept_range_.size, model_.size() - kept_range_.offset));
    range.offset += kept_range_.offset;
    Log(" [%zu, %zu)", range.offset, range.end());
    return range;
  }

  bool KeptRead() {
    const Range range = DrawKept();
    if (range.size == 0) return false;
    Compare(kept_.get() + (range.offset - kept_range_.offset), range, "read of the kept mapping");
    return true;
  }

  bool KeptWrite() {
    const Range range = DrawKept();
    if (range.size == 0) return false;
    Fill(range.size);
    memcpy(kept_.get() + (range.offset - kept_range_.offset), buffer_.get(), range.size);
    ModelWrite(range.offset, range.size);
    return true;
  }

  void Unmap() { kept_.reset(); }

  bool UnmapKept() {
    const bool had = kept_ != nullptr;
    Unmap();
    return had;
  }

  // --- Size and room

  bool Truncate() {
    const Descriptor* descriptor = ChooseWriter();
    if (descriptor == nullptr) return false;
    const size_t size =
        random_.OneIn(2) ? random_.Below(model_.size() + 1) : random_.Below(options_.size_max + 1);
    Log(" %zu", size);
    if (random_.OneIn(2)) {
      Expect(ftruncate(descriptor->fd, static_cast<off_t>(size)), 0, "ftruncate");
    } else {
      Expect(truncate(options_.path.c_str(), static_cast<off_t>(size)), 0, "truncate");
    }
    model_.resize(size);
    return true;
  }

  // False if there is no descriptor for it or the file system has no such call.
  bool Fallocate(const char* name, int mode, Range range) {
    const Descriptor* descriptor = Choose([](const Descriptor& d) { return d.writable(); });
    if (descriptor == nullptr || range.size == 0) return false;
    Log(" [%zu, %zu)", range.offset, range.end());
    if (fallocate(descriptor->fd, mode, static_cast<off_t>(range.offset),
                  static_cast<off_t>(range.size)) == 0) {
      return true;
    }
    if (errno != EOPNOTSUPP) Fail("fallocate: %m");
    unsupported_.insert(name);
    return false;
  }

  void ModelZero(Range range) {
    if (range.offset >= model_.size()) return;
    const size_t end = std::min(range.end(), model_.size());
    std::fill(model_.begin() + static_cast<ssize_t>(range.offset),
              model_.begin() + static_cast<ssize_t>(end), '\0');
  }

  bool Allocate() {
    const Range range = DrawForWrite();
    if (!Fallocate("allocate", 0, range)) return false;
    if (model_.size() < range.end()) model_.resize(range.end());
    return true;
  }

  bool AllocateKeep() { return Fallocate("allocate_keep", FALLOC_FL_KEEP_SIZE, DrawForWrite()); }

  bool PunchHole() {
    const Range range = DrawForWrite();
    if (!Fallocate("punch_hole", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range)) return false;
    ModelZero(range);
    return true;
  }

  bool ZeroRange() {
    const Range range = DrawForWrite();
    if (!Fallocate("zero_range", FALLOC_FL_ZERO_RANGE, range)) return false;
    if (model_.size() < range.end()) model_.resize(range.end());
    ModelZero(range);
    return true;
  }

  bool ZeroRangeKeep() {
    const Range range = DrawForWrite();
    if (!Fallocate("zero_range_keep", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, range)) {
      return false;
    }
    ModelZero(range);
    return true;
  }

  bool CollapseRange() {
    const Range range = Aligned(Draw(model_.size()));
    // It may not reach the end of the file.
    if (range.end() >= model_.size()) return false;
    if (!Fallocate("collapse_range", FALLOC_FL_COLLAPSE_RANGE, range)) return false;
    model_.erase(range.offset, range.size);
    return true;
  }

  bool InsertRange() {
    const Range range = Aligned(Draw(model_.size()));
    if (range.offset >= model_.size() || model_.size() + range.size > options_.size_max) {
      return false;
    }
    if (!Fallocate("insert_range", FALLOC_FL_INSERT_RANGE, range)) return false;
    model_.insert(range.offset, range.size, '\0');
    return true;
  }

  bool CopyFileRange() {
    const Descriptor* out = ChooseWriter();
    const Descriptor* in = ChooseReader();
    Range from = Draw(model_.size());
    const size_t to = DrawForWrite().offset;
    if (out == nullptr || in == nullptr) return false;
    from.size = std::min(from.size, options_.size_max - to);
    // The two may not overlap.
    if (from.size == 0 || (from.offset < to + from.size && to < from.end())) return false;
    Log(" [%zu, %zu) to %zu", from.offset, from.end(), to);
    auto in_offset = static_cast<off_t>(from.offset), out_offset = static_cast<off_t>(to);
    for (size_t done = 0; done < from.size;) {
      const ssize_t count =
          copy_file_range(in->fd, &in_offset, out->fd, &out_offset, from.size - done, 0);
      if (count <= 0) Fail("copy_file_range: %zd %m", count);
      done += count;
    }
    memcpy(buffer_.get(), &model_[from.offset], from.size);
    ModelWrite(to, from.size);
    return true;
  }

  // --- Caches

  bool Sync() {
    const Descriptor& descriptor = descriptors_[random_.Below(kDescriptors)];
    Expect(random_.OneIn(2) ? fsync(descriptor.fd) : fdatasync(descriptor.fd), 0, "fsync");
    return true;
  }

  bool DropCache() {
    const Descriptor& descriptor = descriptors_[random_.Below(kDescriptors)];
    // Only clean pages can be dropped.
    Expect(fdatasync(descriptor.fd), 0, "fdatasync");
    Expect(posix_fadvise(descriptor.fd, 0, 0, POSIX_FADV_DONTNEED), 0, "posix_fadvise");
    return true;
  }

  // --- The rest

  // Changes one byte that the model doesn't know of; the next comparison must find it.
  void Damage() {
    Log("damage");
    buffer_[0] = 'x';
    if (model_.empty()) {
      Expect(pwrite(descriptors_[0].fd, buffer_.get(), 1, 0), 1, "pwrite");
    } else {
      buffer_[0] = static_cast<char>(model_.back() ^ 1);
      Expect(pwrite(descriptors_[0].fd, buffer_.get(), 1, static_cast<off_t>(model_.size() - 1)), 1,
             "pwrite");
    }
  }

  // Begins the line of a step, or adds to it what begins with a space.
  PRINTF_LIKE(2) void Log(const char* format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (text[0] != ' ') {
      tail_.push_back(std::to_string(step_) + " ");
      if (tail_.size() > kTail) tail_.pop_front();
    }
    tail_.back() += text;
  }

  struct Free {
    void operator()(char* memory) const { free(memory); }
  };
  using Buffer = std::unique_ptr<char[], Free>;
  static Buffer AlignedBuffer(size_t size) {
    return Buffer(static_cast<char*>(aligned_alloc(kPage, size)));
  }

  inline static Exerciser* running_;  // For the signal handler.

  const Options& options_;
  Random random_;
  const size_t length_max_;  // Of one call.
  const Buffer buffer_;      // What is read and written.
  std::string model_;        // What the file must contain.
  std::array<Descriptor, kDescriptors> descriptors_;
  int pipe_[2];
  Mapping kept_;
  Range kept_range_ = {0, 0};
  uint64_t step_ = 0;
  std::deque<std::string> tail_;
  std::map<std::string, uint64_t> done_;
  std::set<std::string> unsupported_;
};

const std::vector<Exerciser::Operation> Exerciser::kOperations = {
    {"read", 60, &Exerciser::Read},
    {"read_direct", 20, &Exerciser::ReadDirect},
    {"splice_read", 15, &Exerciser::SpliceRead},
    {"seek_hole", 15, &Exerciser::SeekHole},
    {"stat", 15, &Exerciser::Stat},
    {"write", 50, &Exerciser::Write},
    {"write_direct", 20, &Exerciser::WriteDirect},
    {"append", 20, &Exerciser::Append},
    {"splice_write", 15, &Exerciser::SpliceWrite},
    {"map_read", 25, &Exerciser::MapRead},
    {"map_write", 25, &Exerciser::MapWrite},
    {"map_kept", 5, &Exerciser::MapKept},
    {"kept_read", 20, &Exerciser::KeptRead},
    {"kept_write", 20, &Exerciser::KeptWrite},
    {"unmap_kept", 2, &Exerciser::UnmapKept},
    {"truncate", 15, &Exerciser::Truncate},
    {"allocate", 8, &Exerciser::Allocate},
    {"allocate_keep", 8, &Exerciser::AllocateKeep},
    {"punch_hole", 10, &Exerciser::PunchHole},
    {"zero_range", 8, &Exerciser::ZeroRange},
    {"zero_range_keep", 8, &Exerciser::ZeroRangeKeep},
    {"collapse_range", 8, &Exerciser::CollapseRange},
    {"insert_range", 8, &Exerciser::InsertRange},
    {"copy_file_range", 20, &Exerciser::CopyFileRange},
    {"reopen", 20, &Exerciser::Reopen},
    {"reopen_direct", 10, &Exerciser::ReopenDirect},
    {"sync", 1, &Exerciser::Sync},
    {"drop_cache", 2, &Exerciser::DropCache},
};

[[noreturn]] void Usage(int code) {
  fputs(
      "usage: fsx [OPTION]... FILE\n"
      "Do random I/O to a new file and compare what is read with what was written.\n"
      "  --seed=N         what is drawn (1)\n"
      "  --steps=N        (20000, or no limit with --seconds)\n"
      "  --seconds=N      stop after this time\n"
      "  --size-max=N     largest size of the file in bytes (524288)\n"
      "  --model=COPY     leave FILE behind, and what it must contain in COPY\n"
      "  --self-test      change a byte before the last comparison, which then has to fail\n",
      code == 0 ? stdout : stderr);
  exit(code);
}

[[noreturn]] PRINTF_LIKE(1) void Die(const char* format, ...) {
  va_list args;
  va_start(args, format);
  fputs("fsx: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(2);
}

Options ParseOptions(int argc, char** argv) {
  Options options;
  const std::map<std::string, uint64_t*> numbers = {{"seed", &options.seed},
                                                    {"steps", &options.steps},
                                                    {"seconds", &options.seconds},
                                                    {"size-max", &options.size_max}};
  const std::map<std::string, bool*> flags = {{"self-test", &options.self_test},
                                              {"help", &options.help}};
  std::vector<struct option> known = {{"model", required_argument, nullptr, 0}};
  for (const auto& [name, number] : numbers) {
    known.push_back({name.c_str(), required_argument, nullptr, 0});
  }
  for (const auto& [name, flag] : flags) known.push_back({name.c_str(), no_argument, nullptr, 0});
  known.push_back({});
  int index;
  for (int c; (c = getopt_long(argc, argv, "", known.data(), &index)) != -1;) {
    if (c != 0) Usage(2);
    const std::string name = known[index].name;
    if (const auto number = numbers.find(name); number != numbers.end()) {
      char* end;
      *number->second = strtoull(optarg, &end, 10);
      if (*optarg == '\0' || *end != '\0') Die("--%s: not a number: %s", name.c_str(), optarg);
    } else if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
    } else {
      options.model = optarg;
    }
  }
  if (options.help) Usage(0);
  if (argc - optind != 1) Usage(2);
  if (options.steps == 0) options.steps = options.seconds > 0 ? UINT64_MAX : 20'000;
  options.path = argv[optind];
  return options;
}

int Main(int argc, char** argv) {
  const Options options = ParseOptions(argc, argv);
  if (access(options.path.c_str(), F_OK) == 0) Die("%s exists", options.path.c_str());
  Exerciser exerciser(options);
  exerciser.Run();
  exerciser.PrintStatistics();
  if (options.model.empty()) {
    if (unlink(options.path.c_str()) != 0) exerciser.Fail("unlink: %m");
    return 0;
  }
  FILE* copy = fopen(options.model.c_str(), "w");
  const std::string& model = exerciser.model();
  if (copy == nullptr || fwrite(model.data(), 1, model.size(), copy) != model.size() ||
      fclose(copy) != 0) {
    Die("%s: %m", options.model.c_str());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return Main(argc, argv); }
