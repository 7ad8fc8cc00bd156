// Gives the command line the node that it runs.
#include <signal.h>

#include "cfs/cli/verbs.h"
#include "cfs/node.h"

int main(int argc, char** argv) {
  // UCX takes them when it is loaded, to print a trace of its own. A crash is
  // to leave a core, and what reads one.
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGHUP}) signal(number, SIG_DFL);
  return cfs::RunCli(argc, argv, cfs::RunNode);
}
