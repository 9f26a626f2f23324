/*
 * paths.h - the hot paths of the core, one after the other, for whoever counts:
 * instructions.c under callgrind, micro/test_core.py by the clock.
 */
#pragma once

#include <stdint.h>

/* What is done by that number, from 0 on; NULL behind the last. */
const char *path_name(uint32_t number);

/* Does it, and returns how many operations that were. */
uint64_t path_run(uint32_t number);

/* Time between the marks, of all runs so far. */
uint64_t path_ns(void);
