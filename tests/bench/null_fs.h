// The file system of null_daemon: names and attributes in memory, one mutex around all of it.

#ifndef TESTS_BENCH_NULL_FS_H_
#define TESTS_BENCH_NULL_FS_H_

#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <ctime>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "backing_store.h"

namespace null_daemon {

constexpr double kForeverSeconds = 1e9;

struct Options {
  std::string backing;
  bool passthrough = true;
  size_t pool = 32768;
  unsigned threads = 1;
};

inline timespec Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now;
}

inline bool Later(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

struct Inode;

struct Directory {
  struct Entry {
    std::string name;
    Inode* inode;  // Null once removed: an entry keeps its place, which is its readdir offset.
  };

  Inode* parent;
  std::deque<Entry> entries;
  absl::flat_hash_map<absl::string_view, uint32_t> index;  // The names are those of `entries`.
};

// The address of an Inode is its FUSE node id. Freed when it has no name, no open and the kernel
// has forgotten it.
struct Inode {
  struct stat attr = {};
  uint64_t lookups = 0;
  uint32_t opens = 0;
  uint32_t writers = 0;
  Backing backing;
  std::unique_ptr<Directory> directory;  // Null for regular files.
};

// The file system. One mutex guards all of it, never held across a reply.
class NullFs {
 public:
  explicit NullFs(const Options& options)
      : options_(options), store_(options.backing, options.pool, options.passthrough) {
    root_.attr = NewAttr(S_IFDIR | 0755, getuid(), getgid());
    root_.directory = std::make_unique<Directory>();
    root_.directory->parent = &root_;
  }

  BackingStore& store() { return store_; }
  bool passthrough() const { return options_.passthrough; }

  void Lookup(fuse_ino_t parent, const char* name, fuse_entry_param* out) {
    std::lock_guard lock(mutex_);
    Inode* inode = FindEntry(Find(parent), name);
    if (inode == nullptr) {
      *out = {};
      out->entry_timeout = kForeverSeconds;  // No inode, for ever: a cached negative answer.
      return;
    }
    if (inode->writers > 0) Refresh(inode);
    Describe(inode, out);
    ++inode->lookups;
  }

  void Forget(fuse_ino_t ino, uint64_t count) {
    std::lock_guard lock(mutex_);
    Inode* inode = Find(ino);
    inode->lookups -= count;
    FreeIfUnused(inode);
  }

  void GetAttr(fuse_ino_t ino, fuse_entry_param* out) {
    std::lock_guard lock(mutex_);
    Inode* inode = Find(ino);
    if (inode->opens > 0) Refresh(inode);
    Describe(inode, out);
  }

  int SetAttr(fuse_ino_t ino, const struct stat& wanted, int valid, fuse_entry_param* out) {
    std::lock_guard lock(mutex_);
    Inode* inode = Find(ino);
    struct stat& have = inode->attr;
    const bool regular = S_ISREG(have.st_mode);
    if (valid & FUSE_SET_ATTR_SIZE) {
      const int fd = store_.Open(inode->backing, O_WRONLY);
      if (fd < 0) return errno;
      const int error = ftruncate(fd, wanted.st_size) < 0 ? errno : 0;
      close(fd);
      if (error != 0) return error;
      Refresh(inode);
    }
    // KILLPRIV_V2: a SETATTR of nothing is a write by somebody who may not keep the bits.
    if (regular &&
        (valid == 0 || valid & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID | FUSE_SET_ATTR_KILL_SUID))) {
      DropPrivileges(inode);
    }
    if (valid & FUSE_SET_ATTR_MODE) {
      have.st_mode = (have.st_mode & S_IFMT) | (wanted.st_mode & ~S_IFMT);
    }
    if (valid & FUSE_SET_ATTR_UID) have.st_uid = wanted.st_uid;
    if (valid & FUSE_SET_ATTR_GID) have.st_gid = wanted.st_gid;
    const timespec now = Now();
    timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    if (valid & FUSE_SET_ATTR_ATIME) {
      times[0] = have.st_atim = valid & FUSE_SET_ATTR_ATIME_NOW ? now : wanted.st_atim;
    }
    if (valid & FUSE_SET_ATTR_MTIME) {
      times[1] = have.st_mtim = valid & FUSE_SET_ATTR_MTIME_NOW ? now : wanted.st_mtim;
    }
    if (regular && valid & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME)) {
      store_.SetTimes(inode->backing, times);
    }
    have.st_ctim = now;
    Describe(inode, out);
    return 0;
  }

  // Makes a directory or a regular file; opens the latter if `fi` is given.
  int Make(fuse_ino_t parent, const char* name, mode_t mode, const fuse_ctx& caller,
           fuse_file_info* fi, fuse_entry_param* out) {
    std::lock_guard lock(mutex_);
    Inode* up = Find(parent);
    if (up->attr.st_nlink == 0) return ENOENT;
    if (up->directory->index.contains(name)) return EEXIST;
    auto inode = std::make_unique<Inode>();
    inode->attr = NewAttr(mode, caller.uid, caller.gid);
    if (up->attr.st_mode & S_ISGID) {
      inode->attr.st_gid = up->attr.st_gid;
      if (S_ISDIR(mode)) inode->attr.st_mode |= S_ISGID;
    }
    if (S_ISDIR(mode)) {
      inode->directory = std::make_unique<Directory>();
    } else {
      inode->backing = store_.Take();
    }
    if (fi != nullptr) {
      if (const int error = OpenLocked(inode.get(), fi); error != 0) {
        store_.Discard(inode->backing);
        return error;
      }
    }
    Insert(up, name, inode.get());
    Describe(inode.get(), out);
    // Even though it is open for write: what could make an empty file other than empty passes the
    // kernel, which then forgets these attributes. With 0 it would ask for them before the open
    // returns, for its permission check.
    out->attr_timeout = kForeverSeconds;
    inode.release()->lookups = 1;
    return 0;
  }

  int Remove(fuse_ino_t parent, const char* name, bool is_directory) {
    std::lock_guard lock(mutex_);
    Inode* up = Find(parent);
    Inode* inode = FindEntry(up, name);
    if (inode == nullptr) return ENOENT;
    if (is_directory && inode->directory == nullptr) return ENOTDIR;
    if (!is_directory && inode->directory != nullptr) return EISDIR;
    if (is_directory && !inode->directory->index.empty()) return ENOTEMPTY;
    Erase(up, name);
    Unlinked(inode);
    return 0;
  }

  int Rename(fuse_ino_t from, const char* old_name, fuse_ino_t to, const char* new_name,
             unsigned flags) {
    if (flags & ~RENAME_NOREPLACE) return EINVAL;
    std::lock_guard lock(mutex_);
    Inode *source = Find(from), *target = Find(to);
    Inode* inode = FindEntry(source, old_name);
    if (inode == nullptr) return ENOENT;
    if (Inode* displaced = FindEntry(target, new_name); displaced != nullptr) {
      if (flags & RENAME_NOREPLACE) return EEXIST;
      if (displaced == inode) return 0;
      if (displaced->directory != nullptr && !displaced->directory->index.empty()) return ENOTEMPTY;
      Erase(target, new_name);
      Unlinked(displaced);
    }
    Erase(source, old_name);
    Insert(target, new_name, inode);
    inode->attr.st_ctim = Now();
    return 0;
  }

  int Open(fuse_ino_t ino, fuse_file_info* fi) {
    std::lock_guard lock(mutex_);
    return OpenLocked(Find(ino), fi);
  }

  void Release(fuse_ino_t ino, const fuse_file_info& fi) {
    std::lock_guard lock(mutex_);
    Inode* inode = Find(ino);
    if (IsWriter(fi) && --inode->writers == 0) Refresh(inode);
    --inode->opens;
    if (!options_.passthrough) close(static_cast<int>(fi.fh));
    FreeIfUnused(inode);
  }

  int Sync(fuse_ino_t ino, bool data_only) {
    const int fd = store_.Open(Find(ino)->backing, O_RDONLY);
    if (fd < 0) return errno;
    const int error = (data_only ? fdatasync(fd) : fsync(fd)) < 0 ? errno : 0;
    close(fd);
    return error;
  }

  // Fills `buffer` from `offset` on and returns the bytes used. Offset 0 is ".", 1 is "..", n + 2
  // is entry n.
  size_t ReadDir(fuse_req_t req, fuse_ino_t ino, off_t offset, bool plus, char* buffer,
                 size_t size) {
    std::lock_guard lock(mutex_);
    Inode* self = Find(ino);
    const Directory& directory = *self->directory;
    size_t used = 0;
    const auto add = [&](const char* name, Inode* inode, bool dots) {
      fuse_entry_param entry = {};
      entry.attr = inode->attr;
      if (plus && !dots) {
        if (inode->writers > 0) Refresh(inode);
        Describe(inode, &entry);
      }
      const size_t left = size - used;
      const size_t need =
          plus ? fuse_add_direntry_plus(req, buffer + used, left, name, &entry, offset + 1)
               : fuse_add_direntry(req, buffer + used, left, name, &entry.attr, offset + 1);
      if (need > left) return false;
      if (plus && !dots) ++inode->lookups;
      used += need;
      return true;
    };
    const off_t end = static_cast<off_t>(directory.entries.size()) + 2;
    for (; offset < end; ++offset) {
      if (offset < 2) {
        if (!add(offset == 0 ? "." : "..", offset == 0 ? self : directory.parent, true)) break;
        continue;
      }
      const Directory::Entry& entry = directory.entries[offset - 2];
      if (entry.inode != nullptr && !add(entry.name.c_str(), entry.inode, false)) break;
    }
    return used;
  }

 private:
  Inode* Find(fuse_ino_t ino) {
    return ino == FUSE_ROOT_ID ? &root_ : reinterpret_cast<Inode*>(ino);
  }

  static Inode* FindEntry(const Inode* up, const char* name) {
    const auto it = up->directory->index.find(name);
    return it == up->directory->index.end() ? nullptr : up->directory->entries[it->second].inode;
  }

  static bool IsWriter(const fuse_file_info& fi) { return (fi.flags & O_ACCMODE) != O_RDONLY; }

  struct stat NewAttr(mode_t mode, uid_t uid, gid_t gid) {
    struct stat attr = {};
    attr.st_ino = ++last_ino_;
    attr.st_mode = mode;
    attr.st_nlink = S_ISDIR(mode) ? 2 : 1;
    attr.st_uid = uid;
    attr.st_gid = gid;
    attr.st_blksize = 4096;
    attr.st_atim = attr.st_mtim = attr.st_ctim = Now();
    return attr;
  }

  static void Describe(Inode* inode, fuse_entry_param* out) {
    *out = {};
    out->ino = reinterpret_cast<fuse_ino_t>(inode);
    out->attr = inode->attr;
    // An open writer changes size and times unseen, so nobody may cache them.
    out->attr_timeout = inode->writers > 0 ? 0 : kForeverSeconds;
    out->entry_timeout = kForeverSeconds;
  }

  // The backing file is the authority for the size and times of a file that is written by
  // passthrough.
  void Refresh(Inode* inode) {
    struct stat backing;
    if (inode->directory != nullptr || store_.Stat(inode->backing, &backing) < 0) return;
    inode->attr.st_size = backing.st_size;
    inode->attr.st_blocks = backing.st_blocks;
    inode->attr.st_atim = backing.st_atim;
    inode->attr.st_mtim = backing.st_mtim;
    if (Later(backing.st_ctim, inode->attr.st_ctim)) inode->attr.st_ctim = backing.st_ctim;
  }

  static void DropPrivileges(Inode* inode) {
    inode->attr.st_mode &= ~S_ISUID;
    if (inode->attr.st_mode & S_IXGRP) inode->attr.st_mode &= ~S_ISGID;
  }

  int OpenLocked(Inode* inode, fuse_file_info* fi) {
    if (!options_.passthrough || fi->flags & O_TRUNC) {
      const int fd = store_.Open(inode->backing, O_RDWR | (fi->flags & O_TRUNC));
      if (fd < 0) return errno;
      if (fi->flags & O_TRUNC) {
        Refresh(inode);
        if (fi->kill_suidgid) DropPrivileges(inode);
      }
      if (options_.passthrough) close(fd);
      fi->fh = options_.passthrough ? 0 : fd;
    }
    fi->backing_id = inode->backing.id;
    fi->keep_cache = !options_.passthrough;
    fi->noflush = 1;
    ++inode->opens;
    if (IsWriter(*fi)) ++inode->writers;
    return 0;
  }

  void Insert(Inode* up, const char* name, Inode* inode) {
    Directory& directory = *up->directory;
    directory.entries.push_back({name, inode});
    directory.index.emplace(directory.entries.back().name, directory.entries.size() - 1);
    if (inode->directory != nullptr) {
      inode->directory->parent = up;
      ++up->attr.st_nlink;
    }
    up->attr.st_mtim = up->attr.st_ctim = Now();
  }

  void Erase(Inode* up, const char* name) {
    Directory& directory = *up->directory;
    const auto it = directory.index.find(name);
    Directory::Entry& entry = directory.entries[it->second];
    if (entry.inode->directory != nullptr) --up->attr.st_nlink;
    directory.index.erase(it);
    entry.inode = nullptr;
    if (directory.index.empty()) directory.entries.clear();
    up->attr.st_mtim = up->attr.st_ctim = Now();
  }

  void Unlinked(Inode* inode) {
    inode->attr.st_nlink = 0;
    inode->attr.st_ctim = Now();
    FreeIfUnused(inode);
  }

  void FreeIfUnused(Inode* inode) {
    if (inode->lookups > 0 || inode->opens > 0 || inode->attr.st_nlink > 0) return;
    if (inode->directory == nullptr) store_.Discard(inode->backing);
    delete inode;
  }

  const Options options_;
  BackingStore store_;
  std::mutex mutex_;
  Inode root_;
  ino_t last_ino_ = 0;
};

}  // namespace null_daemon

#endif  // TESTS_BENCH_NULL_FS_H_
