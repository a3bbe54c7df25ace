# SPDX-License-Identifier: Apache-2.0
# Godwit. `make` builds build/bin/*, `make test` passes all tests, `make demo` shows the main job, `make help` tells the rest.
# Variants live side by side: SAN=address|undefined|thread|address,undefined, COV=1, and BENCH=1 (test switches compiled in, never for a release).

comma := ,
VARIANT := $(if $(SAN),$(subst $(comma),-,$(SAN)),$(if $(COV),cov,$(if $(BENCH),bench,release)))
ifeq ($(VARIANT),release)
OUT := build
else
OUT := build/$(VARIANT)
endif
OBJ := $(OUT)/obj
BIN := $(OUT)/bin
GEN := build/gen

CC ?= gcc
ifeq ($(origin CC),default)
CC := gcc
endif
PKGS := openssl libprotobuf-c libxxhash libzstd liblz4 liburing libsystemd jansson expat
# Loaded when they are needed (lib/late.h): only their headers are.
LATE_PKGS := libnbd libcurl
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2 -Wno-unused-parameter -Wno-format-nonliteral
WERROR ?= $(if $(CI),-Werror)
OPT ?= -O2 -g
ALL_CFLAGS := -std=gnu11 -D_GNU_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE -pthread -fno-strict-aliasing $(OPT) $(WARN) $(WERROR) \
	-I. -I$(GEN) $(CFLAGS)
ALL_LDFLAGS := -pthread -pie -Wl,-z,relro,-z,now $(LDFLAGS)
ifdef SAN
# Lines are what its reports name; more debug information makes programs that take long to link.
ALL_CFLAGS += -fsanitize=$(SAN) -fno-omit-frame-pointer -U_FORTIFY_SOURCE -O1 -g1
ifneq ($(findstring undefined,$(SAN)),)
ALL_CFLAGS += -fno-sanitize-recover=undefined
endif
# The thread sanitizer does not follow fences (it misses what they order, it reports nothing wrongly): gcc warns of each.
ifeq ($(SAN),thread)
ALL_CFLAGS += -Wno-tsan
endif
ALL_LDFLAGS += -fsanitize=$(SAN)
endif
ifdef COV
ALL_CFLAGS += --coverage -O0 -U_FORTIFY_SOURCE
ALL_LDFLAGS += --coverage
endif
ifdef BENCH
ALL_CFLAGS += -DGW_BENCH_SWITCHES=1
endif
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS) $(LATE_PKGS) 2>/dev/null)
LIBS = $(shell pkg-config --libs $(PKGS) 2>/dev/null) -lm

V ?= 0
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-5s %s\n' $(1) $(2))

# Floors, bottom to top: a folder links with those before it. Programs' main files are not part of a floor's library.
PROTOS := $(wildcard proto/*.proto)
GEN_C := $(PROTOS:proto/%.proto=$(GEN)/proto/%.pb-c.c)
GEN_H := $(GEN_C:.c=.h)
MAINS := vmm/main.c agent/godwitd.c agent/godwit.c ksm/ksmd-main.c
SRC_lib := $(wildcard lib/*.c lib/ram/*.c)
SRC_proto := $(wildcard proto/*.c)
SRC_ksm := $(filter-out $(MAINS),$(wildcard ksm/*.c))
SRC_migrate := $(wildcard migrate/*.c migrate/repo/*.c)
SRC_vmm := $(filter-out $(MAINS),$(wildcard vmm/*.c))
SRC_agent := $(filter-out $(MAINS),$(wildcard agent/*.c))
obj = $(patsubst %.c,$(OBJ)/%.o,$(1))
BASE_OBJ := $(call obj,$(SRC_lib) $(SRC_proto)) $(GEN_C:$(GEN)/%.c=$(OBJ)/gen/%.o)
VMM_OBJ := $(BASE_OBJ) $(call obj,$(SRC_ksm) $(SRC_migrate) $(SRC_vmm))
KSMD_OBJ := $(BASE_OBJ) $(call obj,$(SRC_ksm))
AGENT_OBJ := $(BASE_OBJ) $(call obj,$(SRC_ksm) $(SRC_migrate) $(SRC_agent))
TEST_OBJ := $(sort $(VMM_OBJ) $(AGENT_OBJ))

PROGRAMS := $(if $(wildcard vmm/main.c),$(BIN)/godwit-vmm) $(if $(wildcard agent/godwitd.c),$(BIN)/godwitd) \
	$(if $(wildcard agent/godwit.c),$(BIN)/godwit) $(if $(wildcard ksm/ksmd-main.c),$(BIN)/godwit-ksmd)
UNIT := $(patsubst tests/unit/%.c,$(OUT)/tests/%,$(wildcard tests/unit/test-*.c))
UNIT_HELP := $(call obj,$(filter-out $(wildcard tests/unit/test-*.c),$(wildcard tests/unit/*.c)))

.SECONDARY:
.PHONY: all
all: $(PROGRAMS)

$(BIN)/godwit-vmm: $(call obj,vmm/main.c) $(VMM_OBJ)
$(BIN)/godwitd: $(call obj,agent/godwitd.c) $(AGENT_OBJ)
$(BIN)/godwit: $(call obj,agent/godwit.c) $(AGENT_OBJ)
$(BIN)/godwit-ksmd: $(call obj,ksm/ksmd-main.c) $(KSMD_OBJ)
$(PROGRAMS):
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS)

$(GEN)/proto/%.pb-c.c: proto/%.proto
	$(call say,GEN,$@)
	$(Q)mkdir -p $(@D)
	$(Q)protoc-c --c_out=$(GEN) $<
$(GEN)/proto/%.pb-c.h: $(GEN)/proto/%.pb-c.c ;

# Generated headers must be there before anything is compiled; real dependencies come from the .d files.
$(OBJ)/%.o: %.c Makefile | $(GEN_H)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(PKG_CFLAGS) -MMD -MP -c -o $@ $<
$(OBJ)/gen/%.o: $(GEN)/%.c Makefile | $(GEN_H)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -w $(PKG_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/tests/test-%: $(OBJ)/tests/unit/test-%.o $(UNIT_HELP) $(TEST_OBJ)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

# Tests of the engine against a real S3 server, which a driver starts.
$(OUT)/tests/s3-%: $(OBJ)/tests/s3/s3-%.o $(TEST_OBJ)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

# Programs that a driver in tests/kill runs.
$(OUT)/tests/kill-%: $(OBJ)/tests/kill/kill-%.o $(UNIT_HELP) $(TEST_OBJ)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

# Benches of the engine alone, in C: bench/X.c becomes tests/bench-X.
$(OUT)/tests/bench-%: $(OBJ)/bench/%.o $(UNIT_HELP) $(TEST_OBJ)
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBS) -lcmocka

.PHONY: unit-build unit
unit-build: $(UNIT)
unit: $(UNIT)
	$(Q)tests/run-unit $(UNIT)

include tests/tests.mk

.PHONY: clean help
clean:
	rm -rf build
help:
	@sed -n 's/^#: //p' Makefile tests/tests.mk

-include $(shell find $(OUT)/obj -name '*.d' 2>/dev/null)
