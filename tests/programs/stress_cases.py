"""stress-ng's file stressors, two instances each, with --verify."""

import os
import re

from harness import NOBODY
from sites import Failure, Site, Skip, add_case

# Each stressor with its own options.
STRESSORS = {
    "access": "",
    "aio": "",
    "aiol": "",
    "chdir": "--chdir-dirs 1024",
    "chmod": "",
    "chown": "",
    "copy-file": "--copy-file-bytes 128m",
    "dentry": "--dentries 512",
    "dir": "--dir-dirs 1024",
    "dirdeep": "--dirdeep-inodes 2048",
    "dirmany": "",
    "dnotify": "",
    "exec": "",
    "fallocate": "--fallocate-bytes 32m",
    "fault": "",
    "fcntl": "",
    "file-ioctl": "",
    "filename": "",
    "flock": "",
    "fpunch": "",
    "fsize": "",
    "fstat": "--fstat-dir {directory}",
    "handle": "",
    "hdd": "--hdd-bytes 16m --hdd-opts wr-rnd,rd-rnd,fdatasync,utimes",
    "inotify": "",
    "iomix": "--iomix-bytes 16m",
    "lease": "",
    "link": "",
    "locka": "",
    "lockf": "",
    "lockofd": "",
    "madvise": "",
    "mknod": "",
    "mmap": "--mmap-file --mmap-bytes 16m",
    "msync": "--msync-bytes 16m",
    "open": "",
    "readahead": "--readahead-bytes 16m",
    "rename": "",
    "revio": "--revio-bytes 4m",
    "seek": "--seek-size 16m",
    "sendfile": "",
    "symlink": "",
    "sync-file": "--sync-file-bytes 16m",
    "touch": "",
    "utime": "",
    "xattr": "--xattr-ops 2",  # An operation is 4,096 attributes and more.
}

# Those that say something other as root, or refuse to run.
UNPRIVILEGED = {"access", "chmod", "chown", "exec", "open", "utime"}

NOT_RUN = {
    "chattr": "inode flags are not POSIX; cfs has none",
    "inode-flags": "inode flags are not POSIX; cfs has none",
    "fanotify": "marks all mounts of the machine, so that a dead one blocks it",
    "fiemap": "FUSE has no FIEMAP",
    "io": "syncs all file systems of the machine, so that a broken one fails it",
    "io-uring": "fails on ext4 too: its statx request ends with ENOENT",
    "verity": "fs-verity is not POSIX; cfs has none",
}


def stress(site: Site, stressor: str, options: str) -> None:
    if stressor in NOT_RUN:
        raise Skip(NOT_RUN[stressor])
    identity = {}
    if stressor in UNPRIVILEGED and os.geteuid() == 0:
        os.chown(site.dir, NOBODY, NOBODY)
        identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    for number in range(20):  # fstat's directory must have entries.
        (site.dir / f"entry{number}").write_bytes(b"")
    for seconds in site.pick(1, 15), 5, 40:  # A busy machine may get nothing done at first.
        output = site.run("stress-ng", f"--{stressor}", "2", "--timeout", str(seconds),
                          "--verify", "--metrics", "--temp-path", site.dir,
                          *options.format(directory=site.dir).split(), **identity)
        found = re.search(rf"\] {stressor} +(\d+)", output)
        if found and int(found[1]) > 0:
            return
    raise Failure(f"stress-ng did nothing: {' '.join(output.split())[-300:]}")


for _stressor in sorted(STRESSORS | NOT_RUN):
    add_case(f"stress.{_stressor}", stress, _stressor, STRESSORS.get(_stressor, ""),
             timeout=120, needs=("stress-ng",))
