# The commands that people type from habit; the build itself is meson's. Each build has a directory
# with meson's own in it (a directory named cfs among them) and a link to the binary: build/cfs.

comma := ,
JOBS := $(shell nproc)
ccache := $(shell command -v ccache)
werror := $(if $(CI),true,false)

# Sanitizer builds: little optimisation and line numbers only, or compiling takes most of the time.
sanitizer := -Db_lundef=false -Doptimization=1 -Dcpp_args='-g1 -fno-omit-frame-pointer' \
  -Dfault_points=true -Dwerror=$(werror)

clang := CC="$(ccache) clang" CXX="$(ccache) clang++"

# $(call compile,DIRECTORY,OPTIONS,TARGETS)
define compile
@test -f $(1)/meson/build.ninja || meson setup $(1)/meson $(2)
@ninja -j $(JOBS) -C $(1)/meson $(3)
@ln -sfn meson/cfs/cfs $(1)/cfs
endef

.PHONY: build quickstart quickstart-cluster test test-long test-builds bench install clean

build:
	@tools/bootstrap build
	$(call compile,build,-Dwerror=$(werror),cfs/cfs)

quickstart: build
	@tools/quickstart

quickstart-cluster: build
	@tools/bootstrap cluster
	@tools/quickstart-cluster

test: test-builds
	@tests/run

test-long: test-builds
	@tests/run --long

test-builds:
	@tools/bootstrap build test
	$(call compile,build,-Dwerror=$(werror),all)
	$(call compile,build-asan,-Db_sanitize=address$(comma)undefined $(sanitizer),all)
	$(call compile,build-tsan,-Db_sanitize=thread $(sanitizer),all)
	@# For clang's warnings, -Wthread-safety among them, and for the simulator.
	@test -f build-clang/meson/build.ninja || $(clang) meson setup build-clang/meson \
	  -Doptimization=1 -Ddebug=false -Dtests=false -Dfault_points=true -Dwerror=$(werror)
	@ninja -j $(JOBS) -C build-clang/meson
	@test -f build-fuzz/meson/build.ninja || $(clang) \
	  meson setup build-fuzz/meson -Db_sanitize=address$(comma)undefined $(sanitizer) \
	  -Dtests=false -Dfuzzers=true
	@ninja -j $(JOBS) -C build-fuzz/meson fuzzers

bench:
	@tools/bootstrap build bench
	$(call compile,build,-Dwerror=$(werror),all)
	@tests/bench/bench.py --build build/meson/tests/bench $(BENCH_ARGS)

install: build
	@meson install -C build/meson --skip-subprojects

clean:
	rm -rf build build-asan build-tsan build-clang build-fuzz
