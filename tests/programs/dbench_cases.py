"""dbench: the file operations of an office's file server, with extended attributes."""

import re

from sites import Site, check, program_case


@program_case(needs=("dbench",))
def clients(site: Site) -> None:
    """Two clients that replay the load; dbench stops at a result that differs from it."""
    output = site.run("dbench", "--directory", site.dir, "--xattr", "--timelimit",
                      str(site.pick(5, 120)), "2")
    found = re.search(r"^Throughput ([\d.]+) MB/sec", output, re.MULTILINE)
    check(found and float(found[1]) > 0, f"dbench measured nothing: {output[-300:]}")
