// Gives the command line the node that it runs.
#include "cfs/cli/verbs.h"
#include "cfs/node.h"

int main(int argc, char** argv) { return cfs::RunCli(argc, argv, cfs::RunNode); }
