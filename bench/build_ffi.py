"""The C load generator as a module of the package, `imserver._load`, through cffi.

setup.py executes this file; the C beside it is built by setup.py as a library, under the strict
flags that what cffi writes would not stand. `imserver.load` is the only importer. The compiler
checks every declaration against the headers. Paths are relative to the project root.
"""

from pathlib import Path

import cffi  # type: ignore[import-untyped]

DECLARATIONS = """
struct histogram { uint64_t count; uint64_t max; ...; };
struct histogram *histogram_new(void);
void histogram_free(struct histogram *);
void histogram_add(struct histogram *, const struct histogram *);
uint64_t histogram_at(const struct histogram *, double share);
void histogram_record(struct histogram *, uint64_t value);

struct cut { uint32_t kind; uint32_t length_at; uint32_t length_adds; int32_t type_at;
             uint32_t max_bytes; };
uint32_t cut_reply(const struct cut *, const uint8_t *at, size_t len, uint8_t *type);

struct load_wire { struct cut cut; uint32_t stamp_from_end; uint32_t stamp_at; uint32_t pong_len;
                   uint8_t pong[16]; uint8_t kinds[256]; };
struct load_run { uint64_t duration_ns; uint64_t drain_ns; uint64_t messages; uint64_t rate;
                  uint32_t depth; uint32_t burst; uint32_t spins; };
struct load_result { uint64_t sent; uint64_t expected; uint64_t received; uint64_t surplus;
                     uint64_t wall_ns; uint64_t cpu_ns; uint64_t wakeups; uint64_t receives;
                     uint64_t sends; uint32_t lost; };
struct load *load_new(uint32_t max_connections, const struct load_wire *);
void load_free(struct load *);
int64_t load_group(struct load *, uint32_t members);
int64_t load_add(struct load *, uint32_t group, const uint8_t *frames, uint32_t frame_len,
                 uint32_t kinds);
int load_frames(struct load *, uint32_t number, const uint8_t *frames, uint32_t frame_len,
                uint32_t kinds);
int load_step(struct load *, uint32_t number, const uint8_t *bytes, uint32_t len, int32_t awaits);
int load_mute(struct load *, uint32_t number);
uint32_t load_muted_gone(const struct load *);
int load_open(struct load *, const char *ip, uint16_t port, uint32_t at_once, uint64_t timeout_ns);
void load_go(struct load *, const struct load_run *, struct load_result *,
             struct histogram *latency, struct histogram *lateness);
const char *load_failure(const struct load *);
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "imserver._load",
    '#include "load.h"',
    include_dirs=["bench"],
    libraries=["imload", "m"],
    depends=sorted(str(path) for path in Path("bench").glob("*.[ch]")),  # of the library, too
)
