# Two commands matter: `make demo` shows what sealblk does, `make test` proves it.

SHELL := /bin/bash
CARGO ?= cargo
FUZZ_SECONDS ?= 600
CRASH_ROUNDS ?= 20

.PHONY: help setup build deb try-packages demo test test-storage test-zed test-openstack bench bench-ceph bench-iscsi lint audit fuzz crash clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing (Debian packages, the test guest, cargo-deny)
	@scripts/setup.sh

build: ## Build sealblkd, sealblk-agent and sealblk as they are released, into target/release
	@scripts/setup.sh build
	$(CARGO) build --locked --release -p sealblk-backend -p sealblk-cli

deb: build ## Debian packages of all parts, into target/deb
	@scripts/deb.sh

try-packages: ## Install the packages of target/deb in a clean Debian 12, serve a volume, remove them
	@scripts/try-packages.sh

demo: setup ## Show it: an encrypted disk under a guest, crashes, a new key, what it costs
	@scripts/demo.sh

test: setup ## Everything: lints, unit tests, whole-system tests, a short fuzz run
	@scripts/test.sh

test-storage: setup ## The rest of rotation's suite on Ceph and iSCSI, and outages (long: not timed yet)
	@scripts/test.sh storage

test-zed: setup ## Nova's plugin on Debian's Nova 26 (Zed); one scenario failed once on a busy machine, see docs/nova.md
	@scripts/nova.sh test l1-zed

test-openstack: ## With real Keystone, Barbican, Cinder on Ceph and OpenBao, and a guest (root; docs/testing-openstack.md)
	@scripts/openstack-test.sh

bench: setup ## Measure: us, the peers, no server at all, rotations (some 12 minutes; BENCH_ARGS=--help)
	@scripts/bench.sh $(BENCH_ARGS)

bench-ceph: setup ## The same on a Ceph cluster made for it, beside librbd and QEMU (some 6 minutes)
	@scripts/bench.sh --class rbd $(BENCH_ARGS)

bench-iscsi: setup ## The same on an iSCSI target, beside libiscsi and QEMU (some 5 minutes)
	@scripts/bench.sh --class iscsi $(BENCH_ARGS)

lint: setup ## Format, clippy, licences, shell scripts, the crates' arrows
	@scripts/lint.sh

audit: setup ## Known vulnerabilities in dependencies (fetches the advisory database)
	$(CARGO) deny check advisories

fuzz: setup ## Fuzz every target for FUZZ_SECONDS each (default 600)
	@scripts/fuzz.sh $(FUZZ_SECONDS)

crash: setup ## Crash states of rotations, many more than `make test` tries (CRASH_ROUNDS, default 20)
	SEALBLK_CRASH_ROUNDS=$(CRASH_ROUNDS) SEALBLK_CRASH_LOTS=6 \
	  $(CARGO) test --locked -p sealblk-luks --lib -- \
	  tests::rotation::crash tests::rotation::luks1 --nocapture
	SEALBLK_CRASH_ROUNDS=$(CRASH_ROUNDS) $(CARGO) test --locked -p sealblk-rotation --lib tests::power -- --nocapture

clean: ## Remove what the build made (not the guest's kernel and image)
	$(CARGO) clean
