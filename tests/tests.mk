# SPDX-License-Identifier: Apache-2.0
# Test, fuzz, check and demo targets.

FUZZ_SRC := $(wildcard tests/fuzz/fuzz-*.c)
FUZZ := $(patsubst tests/fuzz/%.c,build/fuzz/bin/%,$(FUZZ_SRC))
FUZZ_OBJ := $(patsubst $(OBJ)/%,build/fuzz/obj/%,$(TEST_OBJ))
FUZZ_CFLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g -std=gnu11 -D_GNU_SOURCE -pthread \
	-fno-strict-aliasing -w -DGW_FUZZING=1 -I. -I$(GEN)
# Seconds a target: short in `make test`, longer by `make fuzz FUZZ_SECONDS=600`.
FUZZ_SECONDS ?= 60

build/fuzz/obj/%.o: %.c Makefile | $(GEN_H)
	$(call say,CC-FZ,$<)
	$(Q)mkdir -p $(@D)
	$(Q)clang $(FUZZ_CFLAGS) $(PKG_CFLAGS) -MMD -MP -c -o $@ $<
build/fuzz/obj/gen/%.o: $(GEN)/%.c Makefile | $(GEN_H)
	$(Q)mkdir -p $(@D)
	$(Q)clang $(FUZZ_CFLAGS) $(PKG_CFLAGS) -c -o $@ $<
# A guest without KVM, shared with the unit tests.
build/fuzz/bin/fuzz-virtqueue build/fuzz/bin/fuzz-virtio-pci build/fuzz/bin/fuzz-virtio-state build/fuzz/bin/fuzz-snapshot-machine: build/fuzz/obj/tests/unit/fake-host.o build/fuzz/obj/tests/unit/virtio-guest.o
build/fuzz/bin/%: build/fuzz/obj/tests/fuzz/%.o $(FUZZ_OBJ)
	$(call say,LD-FZ,$@)
	$(Q)mkdir -p $(@D)
	$(Q)clang -pthread -fsanitize=fuzzer,address,undefined -o $@ $^ $(LIBS)

.PHONY: deps fuzz fuzz-build check test quick-test faults soak race demo bench
#: make deps        install the Debian packages that building and testing need (root), or say which are missing
deps:
	@tests/lab/deps
#: make fuzz        run every fuzz target for FUZZ_SECONDS=60 each
fuzz-build: $(FUZZ)
fuzz: $(FUZZ)
	@tests/run-fuzz $(FUZZ_SECONDS) $(FUZZ)
#: make check       floors, headers, licence lines
check:
	@tests/run-stages floors=tests/check/floors words=tests/check/words 'headers=tests/check/headers $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS)'

# All but what strikes suspending at each step, which takes long: make faults.
LAB_TESTS := $(filter-out suspend-faults,$(patsubst tests/lab/test-%.py,%,$(sort $(wildcard tests/lab/test-*.py))))
sub = $(MAKE) --no-print-directory -j$(shell nproc)
#: make quick-test  checks and unit tests of the plain build only
quick-test: all unit-build
	@tests/run-stages floors=tests/check/floors 'unit=tests/run-unit $(UNIT)'
#: make test        everything: checks, unit tests (plain, address and undefined, thread), fuzz, model, an S3 server, processes killed at random, the lab
test: deps
	@$(sub) all unit-build
	@tests/run-stages \
		floors=tests/check/floors words=tests/check/words \
		'headers=$(sub) check-headers' \
		'unit=$(sub) unit' \
		'unit-address-undefined=$(sub) SAN=address,undefined unit' \
		'unit-thread=$(sub) SAN=thread unit' \
		'fuzz=$(sub) fuzz FUZZ_SECONDS=3' \
		'model=tests/model/check' \
		's3=tests/s3/test-rgw.py' \
		'kill=tests/kill/test-kill.py --trials 3' \
		$(foreach t,$(LAB_TESTS),'lab-$(t)=tests/lab/test-$(t).py$(if $(filter faults,$(t)), --brief)')
.PHONY: check-headers
check-headers: $(GEN_H)
	@tests/check/headers $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS)
#: make faults      suspend, resume, prune and copy struck at TRIALS=100 random moments each; in the lab moves and suspending, struck at each step
TRIALS ?= 100
faults: deps
	@$(sub) all build/tests/kill-vmm
	@tests/run-stages \
		'kill=tests/kill/test-kill.py --trials $(TRIALS)' \
		'lab-faults=tests/lab/test-faults.py' \
		'lab-suspend-faults=tests/lab/test-suspend-faults.py'
#: make soak        200 moves in a row of a guest that checks its own memory and disk (MOVES=200)
MOVES ?= 200
soak: deps
	@$(sub) all
	@tests/lab/soak.py --moves $(MOVES)
#: make race        at least ten million racing writes against a million merged pages
race: build/tests/test-merge
	@GODWIT_RACE_LONG=1 CMOCKA_MESSAGE_OUTPUT=stdout build/tests/test-merge
#: make demo        two hosts, a Linux guest under load, moved A -> B -> A, and a table of what it cost
demo: deps
	@$(sub) all
	@tests/lab/demo.py
#: make bench       every bench, and a report in bench/out/report.html
bench: deps
	@$(sub) all
	@$(sub) BENCH=1 all
	@bench/run --all

.PHONY: lint analyze
C_FILES := $(wildcard $(addsuffix /*.c,lib lib/ram proto ksm migrate migrate/repo vmm agent))
# Exclusions, each with its reason: cppcheck does not know glibc's cleanup attribute (unreadVariable, memleak on steal), and library functions of
# one floor are used by others (unusedFunction is off by default).
#: make lint        cppcheck over all of our code
lint: $(GEN_H)
	@cppcheck -q -j2 --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 --suppress=missingInclude \
		--suppress=unknownMacro -D__x86_64__ -I. $(C_FILES) && echo "1 passed, 0 failed"
#: make analyze     gcc -fanalyzer over all of our code (slow)
analyze: $(GEN_H)
	@for f in $(C_FILES); do $(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) -fanalyzer -Wno-analyzer-malloc-leak -Wno-analyzer-fd-leak -c -o /dev/null $$f || exit 1; done
