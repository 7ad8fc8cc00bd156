# The commands that people type from habit; the build itself is meson's. Each build has a directory
# with meson's own in it (a directory named cfs among them) and a link to the binary: build/cfs.

comma := ,
JOBS := $(shell nproc)
ccache := $(shell command -v ccache)
werror := $(if $(CI),true,false)

# Sanitizer builds: little optimisation and line numbers only, or compiling takes most of the time.
sanitizer := -Db_lundef=false -Doptimization=1 -Dcpp_args='-g1 -fno-omit-frame-pointer' \
  -Dfault_points=true -Dwerror=$(werror)

# $(call compile,DIRECTORY,OPTIONS,TARGETS)
define compile
@test -f $(1)/meson/build.ninja || meson setup $(1)/meson $(2)
@ninja -j $(JOBS) -C $(1)/meson $(3)
@ln -sfn meson/cfs/cfs $(1)/cfs
endef

.PHONY: build quickstart test test-long test-builds bench install clean

build:
	@tools/bootstrap build
	$(call compile,build,-Dwerror=$(werror),cfs/cfs)

quickstart: build
	@tools/quickstart

test: test-builds
	@tests/run

test-long: test-builds
	@tests/run --long

test-builds:
	@tools/bootstrap build test
	$(call compile,build,-Dwerror=$(werror),all)
	$(call compile,build-asan,-Db_sanitize=address$(comma)undefined $(sanitizer),all)
	$(call compile,build-tsan,-Db_sanitize=thread $(sanitizer),all)
	@# For clang's warnings, -Wthread-safety among them; nobody runs it.
	@export CC="$(ccache) clang" CXX="$(ccache) clang++"; \
	test -f build-clang/build.ninja || \
	  meson setup build-clang -Doptimization=0 -Ddebug=false -Dtests=false -Dwerror=$(werror)
	@ninja -j $(JOBS) -C build-clang

bench:
	@tools/bootstrap build bench
	$(call compile,build,-Dwerror=$(werror),all)
	@tests/bench/bench.py --build build/meson/tests/bench $(BENCH_ARGS)

install: build
	@meson install -C build/meson --skip-subprojects

clean:
	rm -rf build build-asan build-tsan build-clang
