#include "cfs/cli/fuse_probe.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cfs/base/error.h"
#include "cfs/base/unique_fd.h"

namespace cfs {
namespace {

constexpr int kInitMillisecondsMax = 5000;

// Newer than the headers of some distributions.
constexpr uint32_t kFlags2Passthrough = 1U << (37 - 32);
constexpr uint32_t kFlags2OverIoUring = 1U << (41 - 32);
constexpr size_t kMaxStackDepthOffset = offsetof(fuse_init_out, flags2) + sizeof(uint32_t);
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);

struct Outcome {
  int error;  // Of the probe itself.
  FuseProbe probe;
};

int OpenBackingFile(const std::string& directory) {
  const int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  return fd >= 0 ? fd : memfd_create("cfs-doctor", MFD_CLOEXEC);
}

// In the child. Returns an errno.
int Probe(const std::string& directory, FuseProbe* probe) {
  const int backing = OpenBackingFile(directory);
  if (backing < 0) return errno;
  // Private, or the mount would spread to the namespace that we came from.
  if (unshare(CLONE_NEWNS) != 0) return errno;
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return errno;
  const int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (device < 0) return errno;
  char options[64];
  snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
  if (mount("cfs-doctor", "/", "fuse", MS_NOSUID | MS_NODEV, options) != 0) return errno;

  pollfd init = {device, POLLIN, 0};
  if (poll(&init, 1, kInitMillisecondsMax) != 1) return ETIMEDOUT;
  std::vector<char> request(64 << 10);
  const ssize_t size = read(device, request.data(), request.size());
  if (size < 0) return errno;
  fuse_in_header in_header;
  fuse_init_in in = {};
  if (static_cast<size_t>(size) < sizeof(in_header)) return EPROTO;
  std::memcpy(&in_header, request.data(), sizeof(in_header));
  if (in_header.opcode != FUSE_INIT) return EPROTO;
  std::memcpy(&in, request.data() + sizeof(in_header),
              std::min(sizeof(in), static_cast<size_t>(size) - sizeof(in_header)));
  const uint32_t flags2 = (in.flags & FUSE_INIT_EXT) != 0 ? in.flags2 : 0;
  probe->protocol_minor = in.minor;
  probe->offers_passthrough = (flags2 & kFlags2Passthrough) != 0;
  probe->offers_io_uring = (flags2 & kFlags2OverIoUring) != 0;

  struct {
    fuse_out_header header;
    fuse_init_out init;
  } out = {};
  out.header = {sizeof(out), 0, in_header.unique};
  out.init.major = FUSE_KERNEL_VERSION;
  out.init.minor = in.minor;
  out.init.max_write = 4096;
  out.init.flags = FUSE_INIT_EXT;
  out.init.flags2 = kFlags2Passthrough;
  const uint32_t max_stack_depth = 1;
  std::memcpy(reinterpret_cast<char*>(&out.init) + kMaxStackDepthOffset, &max_stack_depth,
              sizeof(max_stack_depth));
  if (write(device, &out, sizeof(out)) != sizeof(out)) return errno;
  BackingMap map = {backing, 0, 0};
  probe->passthrough_errno = ioctl(device, kBackingOpen, &map) < 0 ? errno : 0;
  return 0;
}

}  // namespace

absl::StatusOr<FuseProbe> ProbeFuse(const std::string& directory) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus("pipe");
  const UniqueFd outcomes(pipe_fds[0]);
  const pid_t pid = fork();
  if (pid == 0) {
    Outcome outcome = {};
    outcome.error = Probe(directory, &outcome.probe);
    // The mount goes with the namespace, and that with this process.
    _exit(write(pipe_fds[1], &outcome, sizeof(outcome)) == sizeof(outcome) ? 0 : 1);
  }
  close(pipe_fds[1]);
  if (pid < 0) return ErrnoStatus("fork");
  Outcome outcome;
  const ssize_t n = read(outcomes.get(), &outcome, sizeof(outcome));
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (n != sizeof(outcome)) return absl::InternalError("the probe of FUSE died");
  if (outcome.error != 0) return ErrnoStatus(outcome.error, "a mount to try it out");
  return outcome.probe;
}

}  // namespace cfs
