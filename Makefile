# One command a verb. `make run` and `make test` do all the set-up there is.

PYTHON ?= python3
BIN := .venv/bin
CORE := $(wildcard _core/*) $(wildcard bench/*.[ch]) bench/build_ffi.py
SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -DIM_DEBUG -O1 -g
ASAN_LIB := build/asan/lib

.PHONY: run test setup build check fmt asan tsan fuzz torture autobahn autobahn-all peers bench micro instructions clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: build  ## a server on loopback for a first look: open to everybody on this machine
	@exec $(BIN)/imserver serve --dev $(ARGS)

test: build  ## all tests; ARGS="-k chat" for some
	$(BIN)/python -m pytest $(ARGS)

setup: .venv/ready  ## system packages, virtual environment, git hook
.venv/ready: pyproject.toml ci/setup
	PYTHON=$(PYTHON) ci/setup
	@touch $@

build: build/ready  ## the core, in place
build/ready: .venv/ready setup.py $(CORE)
	@mkdir -p build
	$(BIN)/python setup.py -q build_clib build_ext --inplace
	@touch $@

check: build  ## format, lint, types, and the stub against the module
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror _core/*.[ch] bench/*.[ch] tests/core/*.[ch] tests/fuzz/*.[ch]
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest imserver._core --allowlist ci/stubtest.allow

fmt: setup  ## put everything into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .
	$(BIN)/clang-format -i _core/*.[ch] bench/*.[ch] tests/core/*.[ch] tests/fuzz/*.[ch]

asan: setup  ## the tests of core, protocol and load generator under ASan and UBSan
	CFLAGS="$(SAN)" LDFLAGS="$(SAN)" $(BIN)/python setup.py -q \
	    build_clib --build-clib build/asan/clib --build-temp build/asan/temp \
	    build_ext --build-lib $(ASAN_LIB) --build-temp build/asan/temp
	ci/asan $(ASAN_LIB) $(ARGS)

tsan: build  ## the core alone, in a storm, under TSan
	$(BIN)/python -m pytest -q tests/core/test_storm.py -k tsan

fuzz:  ## libFuzzer on everything a peer may send over HTTP and WebSocket; SECONDS=60 each
	tests/fuzz/run $(or $(SECONDS),60)

torture: build  ## a server killed N times under traffic (about a second each); N=1000
	$(BIN)/python tests/torture.py $(or $(N),1000)

autobahn: build  ## the cases of the Autobahn WebSocket test suite; ARGS="-i '9.*'" for some
	ci/autobahn $(ARGS)

autobahn-all: build  ## ... with performance and compression: 517, two minutes
	ci/autobahn -i '*'

peers: setup  ## the servers that bench compares with: Debian packages and Python ones
	ci/peers

bench: build  ## server CPU an operation beside the floor and the peers, in one run
	PATH="$$PATH:/usr/sbin" $(BIN)/python -m bench $(ARGS)

micro: build  ## nanoseconds a step: parsing, pool, fan-out, codecs, the border to Python
	$(BIN)/python -m pytest -o addopts= -q bench/micro --benchmark-columns=median,iqr,rounds \
	    --benchmark-sort=name $(ARGS)

instructions: build  ## instructions of the hot paths beside the baseline; needs valgrind
	$(BIN)/python -m bench.instructions $(ARGS)

clean:  ## everything that was built; .venv stays
	rm -rf build dist *.egg-info imserver/*.so bench/_build
