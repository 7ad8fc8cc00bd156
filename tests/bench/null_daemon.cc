// null_daemon is the ceiling that the benchmark measures against: a FUSE file system that does as
// little as one can. Names and attributes live in memory and are answered at once; nothing is
// durable and nothing survives the process. File data is in backing files that the kernel reads and
// writes itself (passthrough) or, with --no-passthrough, that the daemon reads and writes with
// pread and pwrite. Backing files are made and registered ahead of need and deleted when the daemon
// is idle, so that no request but fsync, truncate and the stat of a file open for write does a
// system call.
//
//   null_daemon MNT --backing DIR [--no-passthrough] [--pool N] [--threads N] [-o FUSE_OPTIONS]
//
// Stays in the foreground, prints "ready" when the pool is full, and ends when MNT is unmounted.

#include <fuse_lowlevel.h>
#include <getopt.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "null_fs.h"

namespace null_daemon {
namespace {

NullFs* Fs(fuse_req_t req) { return static_cast<NullFs*>(fuse_req_userdata(req)); }

void ReplyEntry(fuse_req_t req, int error, const fuse_entry_param& entry) {
  error != 0 ? fuse_reply_err(req, error) : fuse_reply_entry(req, &entry);
}

void Init(void* userdata, fuse_conn_info* conn) {
  for (const uint64_t flag :
       {FUSE_CAP_PARALLEL_DIROPS, FUSE_CAP_HANDLE_KILLPRIV_V2, FUSE_CAP_NO_OPENDIR_SUPPORT,
        FUSE_CAP_EXPIRE_ONLY, FUSE_CAP_CACHE_SYMLINKS, FUSE_CAP_DIRECT_IO_ALLOW_MMAP}) {
    fuse_set_feature_flag(conn, flag);
  }
  if (static_cast<NullFs*>(userdata)->passthrough() &&
      fuse_set_feature_flag(conn, FUSE_CAP_PASSTHROUGH)) {
    conn->max_backing_stack_depth = 1;
  }
}

void ReadDir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, bool plus) {
  thread_local std::vector<char> buffer;
  if (buffer.size() < size) buffer.resize(size);
  const size_t used = Fs(req)->ReadDir(req, ino, offset, plus, buffer.data(), size);
  fuse_reply_buf(req, buffer.data(), used);
}

// What is not given is ENOSYS once and then not asked for again (xattrs, locks, fsyncdir).
fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops ops = {};
  ops.init = Init;
  ops.lookup = [](fuse_req_t req, fuse_ino_t parent, const char* name) {
    fuse_entry_param entry;
    Fs(req)->Lookup(parent, name, &entry);
    fuse_reply_entry(req, &entry);
  };
  ops.forget = [](fuse_req_t req, fuse_ino_t ino, uint64_t count) {
    Fs(req)->Forget(ino, count);
    fuse_reply_none(req);
  };
  ops.forget_multi = [](fuse_req_t req, size_t count, fuse_forget_data* forgets) {
    for (size_t i = 0; i < count; ++i) Fs(req)->Forget(forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
  };
  ops.getattr = [](fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    fuse_entry_param entry;
    Fs(req)->GetAttr(ino, &entry);
    fuse_reply_attr(req, &entry.attr, entry.attr_timeout);
  };
  ops.setattr = [](fuse_req_t req, fuse_ino_t ino, struct stat* wanted, int valid,
                   fuse_file_info*) {
    fuse_entry_param entry;
    const int error = Fs(req)->SetAttr(ino, *wanted, valid, &entry);
    error != 0 ? fuse_reply_err(req, error) : fuse_reply_attr(req, &entry.attr, entry.attr_timeout);
  };
  ops.mknod = [](fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t) {
    fuse_entry_param entry;
    const int error = S_ISREG(mode)
                          ? Fs(req)->Make(parent, name, mode, *fuse_req_ctx(req), nullptr, &entry)
                          : ENOTSUP;
    ReplyEntry(req, error, entry);
  };
  ops.mkdir = [](fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
    fuse_entry_param entry;
    const int error =
        Fs(req)->Make(parent, name, S_IFDIR | mode, *fuse_req_ctx(req), nullptr, &entry);
    ReplyEntry(req, error, entry);
  };
  ops.create = [](fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
                  fuse_file_info* fi) {
    fuse_entry_param entry;
    const int error = Fs(req)->Make(parent, name, S_IFREG | mode, *fuse_req_ctx(req), fi, &entry);
    error != 0 ? fuse_reply_err(req, error) : fuse_reply_create(req, &entry, fi);
  };
  ops.unlink = [](fuse_req_t req, fuse_ino_t parent, const char* name) {
    fuse_reply_err(req, Fs(req)->Remove(parent, name, false));
  };
  ops.rmdir = [](fuse_req_t req, fuse_ino_t parent, const char* name) {
    fuse_reply_err(req, Fs(req)->Remove(parent, name, true));
  };
  ops.rename = [](fuse_req_t req, fuse_ino_t from, const char* old_name, fuse_ino_t to,
                  const char* new_name, unsigned flags) {
    fuse_reply_err(req, Fs(req)->Rename(from, old_name, to, new_name, flags));
  };
  ops.open = [](fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
    const int error = Fs(req)->Open(ino, fi);
    error != 0 ? fuse_reply_err(req, error) : fuse_reply_open(req, fi);
  };
  ops.release = [](fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
    Fs(req)->Release(ino, *fi);
    fuse_reply_err(req, 0);
  };
  ops.read = [](fuse_req_t req, fuse_ino_t, size_t size, off_t offset, fuse_file_info* fi) {
    thread_local std::vector<char> buffer;
    if (buffer.size() < size) buffer.resize(size);
    const ssize_t got = pread(static_cast<int>(fi->fh), buffer.data(), size, offset);
    got < 0 ? fuse_reply_err(req, errno) : fuse_reply_buf(req, buffer.data(), got);
  };
  ops.write = [](fuse_req_t req, fuse_ino_t, const char* data, size_t size, off_t offset,
                 fuse_file_info* fi) {
    const ssize_t put = pwrite(static_cast<int>(fi->fh), data, size, offset);
    put < 0 ? fuse_reply_err(req, errno) : fuse_reply_write(req, put);
  };
  ops.fsync = [](fuse_req_t req, fuse_ino_t ino, int data_only, fuse_file_info*) {
    fuse_reply_err(req, Fs(req)->Sync(ino, data_only != 0));
  };
  // NO_OPENDIR: the kernel then opens and caches directories by itself.
  ops.opendir = [](fuse_req_t req, fuse_ino_t, fuse_file_info*) { fuse_reply_err(req, ENOSYS); };
  ops.readdir = [](fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
    ReadDir(req, ino, size, offset, false);
  };
  ops.readdirplus = [](fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, fuse_file_info*) {
    ReadDir(req, ino, size, offset, true);
  };
  ops.statfs = [](fuse_req_t req, fuse_ino_t) {
    struct statvfs result;
    Fs(req)->store().StatFs(&result) < 0 ? fuse_reply_err(req, errno)
                                         : fuse_reply_statfs(req, &result);
  };
  return ops;
}

int Serve(const Options& options, const std::string& mount_point, const std::string& fuse_options) {
  fuse_args args = FUSE_ARGS_INIT(0, nullptr);
  fuse_opt_add_arg(&args, "null_daemon");
  fuse_opt_add_arg(&args, "-o");
  fuse_opt_add_arg(
      &args, ("fsname=null,subtype=null,default_permissions,allow_other" + fuse_options).c_str());
  const fuse_lowlevel_ops ops = Operations();
  NullFs fs(options);
  fuse_session* session = fuse_session_new(&args, &ops, sizeof(ops), &fs);
  fuse_opt_free_args(&args);
  if (session == nullptr) return 1;
  if (fuse_set_signal_handlers(session) < 0) return 1;
  if (fuse_session_mount(session, mount_point.c_str()) < 0) return 1;
  fuse_loop_config* config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_max_threads(config, options.threads);
  fuse_loop_cfg_set_idle_threads(config, UINT_MAX);
  std::thread start([&] {
    struct statvfs ignored;
    // Is answered after FUSE_INIT.
    if (statvfs(mount_point.c_str(), &ignored) < 0) Die(mount_point.c_str());
    fs.store().Start(fuse_session_fd(session));
    std::puts("ready");
    std::fflush(stdout);
  });
  const int result = fuse_session_loop_mt(session, config);
  start.join();
  fs.store().Stop();
  fuse_loop_cfg_destroy(config);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return result == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  const option long_options[] = {{"backing", required_argument, nullptr, 'b'},
                                 {"no-passthrough", no_argument, nullptr, 'n'},
                                 {"pool", required_argument, nullptr, 'p'},
                                 {"threads", required_argument, nullptr, 't'},
                                 {}};
  Options options;
  std::string fuse_options;
  bool usage = false;
  for (int c; (c = getopt_long(argc, argv, "o:", long_options, nullptr)) != -1;) {
    switch (c) {
      case 'b':
        options.backing = optarg;
        break;
      case 'n':
        options.passthrough = false;
        break;
      case 'p':
        options.pool = std::strtoul(optarg, nullptr, 10);
        break;
      case 't':
        options.threads = std::max(1UL, std::strtoul(optarg, nullptr, 10));
        break;
      case 'o':
        fuse_options += std::string(",") + optarg;
        break;
      default:
        usage = true;
    }
  }
  if (usage || optind + 1 != argc || options.backing.empty()) {
    std::fprintf(stderr,
                 "usage: null_daemon MNT --backing DIR [--no-passthrough] [--pool N] [--threads N] "
                 "[-o OPTIONS]\n");
    return 64;
  }
  return Serve(options, argv[optind], fuse_options);
}

}  // namespace
}  // namespace null_daemon

int main(int argc, char** argv) { return null_daemon::Main(argc, argv); }
