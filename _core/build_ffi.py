"""The second door to the core: its structures, one at a time, through cffi.

For tests and benchmarks only; the package never imports it. setup.py executes
this file, and the compiler checks every declaration against the headers. Paths
are relative to the project root.
"""

import runpy
from pathlib import Path

import cffi

HEADERS = (
    "base",
    "batch",
    "cursors",
    "deflate",
    "filter",
    "frame",
    "heartbeat",
    "mask",
    "outbox",
    "pool",
    "queue",
    "receipts",
    "rights",
    "ring",
    "utf8",
    "websocket",
)

DECLARATIONS = """
enum im_status { IM_OK, IM_MORE, IM_BAD, IM_FULL, ... };
struct im_span { const uint8_t *at; size_t len; };
uint64_t im_hash(uint64_t seed, const uint8_t *at, size_t len);

struct im_ring { uint32_t size; uint32_t head; uint32_t tail; ...; };
enum im_status im_ring_init(struct im_ring *, uint32_t size);
void im_ring_free(struct im_ring *);
uint8_t *im_ring_space(struct im_ring *, uint32_t wanted, uint32_t *len);
void im_ring_commit(struct im_ring *, uint32_t len);
struct im_span im_ring_peek(const struct im_ring *);
void im_ring_consume(struct im_ring *, uint32_t len);

struct im_frame { const uint8_t *at; uint32_t size; uint32_t ahead; uint16_t count;
                  uint16_t request; uint8_t type; uint8_t flags; };
struct im_message { struct im_span topic; struct im_span tag; struct im_span sender;
                    uint64_t id; };
enum im_status im_frame_peek(struct im_span in, uint32_t frame_max, struct im_frame *out);
enum im_status im_message_peek(const struct im_frame *, struct im_message *out);
void im_frame_extend(struct im_frame *, uint32_t names_len, uint32_t len_max);
enum im_status im_frame_check_client(const struct im_frame *);
enum im_status im_ack_peek(const struct im_frame *, struct im_span *topic);

struct im_msg { uint32_t refs; uint32_t len; uint16_t frames; uint8_t owner; uint8_t bytes[];
                ...; };
struct im_pool { uint32_t page_len; uint32_t page_count; uint32_t spare; uint32_t reserve;
                 uint32_t taken; uint8_t owner; ...; };
enum im_purpose { IM_FOR_MESSAGE, IM_FOR_CONTROL, ... };
enum im_status im_pool_init(struct im_pool *, uint8_t owner, size_t pool_bytes,
                            uint32_t len_max);
void im_pool_free(struct im_pool *);
struct im_msg *im_pool_take(struct im_pool *, uint32_t len, enum im_purpose);
uint32_t im_msg_room(const struct im_pool *, const struct im_msg *);
void im_msg_drop(struct im_pool *, struct im_msg *);
void im_msg_share(const struct im_pool *, struct im_msg *, uint32_t count);
void im_msg_lend(struct im_msg *, uint32_t threads);
void im_pool_collect(struct im_pool *);

struct im_record { uint32_t size; uint32_t len; uint16_t kind; uint16_t a; uint32_t b;
                   uint64_t conn; };
const uint8_t *im_record_bytes(const struct im_record *);
struct im_queue { uint64_t size; ...; };
enum im_status im_queue_init(struct im_queue *, uint64_t size);
void im_queue_free(struct im_queue *);
enum im_status im_queue_push(struct im_queue *, struct im_record, const struct im_span *parts,
                             size_t count);
const struct im_record *im_queue_peek(struct im_queue *);
void im_queue_consume(struct im_queue *, const struct im_record *);
bool im_queue_is_empty(const struct im_queue *);

struct iovec { void *iov_base; size_t iov_len; };
struct im_outbox { uint32_t bytes; uint32_t sent; uint32_t refs; ...; };
struct im_gather { struct iovec parts[...]; uint32_t count; uint32_t bytes; uint8_t *scratch;
                   ...; };
#define IM_GATHER_SCRATCH ...
enum im_status im_outbox_put(struct im_outbox *, struct im_pool *, struct im_msg *,
                             enum im_purpose);
void im_outbox_gather(const struct im_outbox *, struct im_gather *);
void im_outbox_replace(struct im_outbox *, struct im_pool *, uint32_t len, struct im_msg *);
void im_outbox_sent(struct im_outbox *, struct im_pool *, uint32_t len);
void im_outbox_clear(struct im_outbox *, struct im_pool *);
void im_outbox_cut(struct im_outbox *, struct im_pool *);
void im_outbox_keep(struct im_outbox *, struct im_pool *, uint32_t len);

struct im_filters { uint32_t live; ...; };
void im_filters_init(struct im_filters *, uint64_t seed);
void im_filters_free(struct im_filters *);
enum im_status im_filter_take(struct im_filters *, struct im_span expr, uint32_t *id);
void im_filter_drop(struct im_filters *, uint32_t id);
void im_filters_begin(struct im_filters *);
bool im_filter_match(struct im_filters *, uint32_t id, struct im_span tag);
bool im_tag_is_valid(struct im_span tag);

struct im_member { uint32_t conn; uint32_t filter; uint32_t sub; };
struct im_topic { uint64_t hash; struct im_member *members; uint32_t member_count;
                  uint32_t holds; uint32_t cursors; uint8_t name_len; uint8_t name[]; ...; };
struct im_topics { uint32_t topic_count; ...; };
enum im_status im_topics_init(struct im_topics *, uint64_t seed);
void im_topics_free(struct im_topics *);
uint64_t im_topic_hash(const struct im_topics *, struct im_span name);
struct im_topic *im_topic_find(const struct im_topics *, struct im_span name, uint64_t hash);
struct im_topic *im_topic_hold(struct im_topics *, struct im_span name);
void im_topic_drop(struct im_topics *, struct im_topic *);
enum im_status im_topic_join(struct im_topics *, struct im_span name, uint32_t conn,
                             uint32_t filter, uint32_t *first);
uint32_t im_topic_member(const struct im_topics *, struct im_span name, uint32_t first);
struct im_member *im_sub_member(const struct im_topics *, uint32_t sub);
void im_topic_leave(struct im_topics *, uint32_t sub, uint32_t *first);
bool im_topics_wants(const struct im_topics *, uint64_t hash);

struct im_right { uint16_t code; uint8_t verdict; ...; };
struct im_rights { uint32_t live; ...; };
void im_rights_init(struct im_rights *);
void im_rights_free(struct im_rights *);
const struct im_right *im_right_find(const struct im_rights *, uint32_t conn,
                                     const struct im_topic *);
enum im_status im_right_set(struct im_rights *, struct im_topics *, uint32_t conn,
                            struct im_span name, uint8_t verdict, uint16_t code,
                            uint32_t *first, uint16_t *count);
void im_right_drop_oldest(struct im_rights *, struct im_topics *, uint32_t *first,
                          uint16_t *count);
void im_right_drop(struct im_rights *, struct im_topics *, struct im_span name,
                   uint32_t *first, uint16_t *count);
void im_right_drop_all(struct im_rights *, struct im_topics *, uint32_t *first,
                       uint16_t *count);

enum im_cursor_mark { IM_CURSOR_LIVE, IM_CURSOR_ASKED, ... };
struct im_cursor { struct im_topic *topic; uint64_t acked; uint64_t sent; uint64_t seen;
                   uint32_t number; uint32_t conn; uint32_t filter; uint32_t sub;
                   uint32_t next; uint32_t prev; uint16_t window; uint8_t marks; ...; };
struct im_cursors { struct im_cursor *slots; uint32_t live; ...; };
void im_cursors_init(struct im_cursors *);
void im_cursors_free(struct im_cursors *);
uint32_t im_cursor_open(struct im_cursors *, struct im_topics *, struct im_span name,
                        const struct im_cursor *begin, uint32_t *first);
void im_cursor_close(struct im_cursors *, struct im_topics *, uint32_t cursor, uint32_t *first);
uint32_t im_cursor_find(const struct im_cursors *, const struct im_topics *, uint32_t number,
                        uint32_t first);
uint64_t im_cursor_open_count(const struct im_cursor *);
uint64_t im_cursor_room(const struct im_cursor *);
bool im_cursor_may_ask(const struct im_cursor *);
bool im_cursor_offer(struct im_cursor *, uint64_t seq, uint32_t count);
void im_cursor_move(struct im_cursor *, uint64_t seq, bool passed);
bool im_cursor_ack(struct im_cursor *, uint64_t seq);
void im_cursor_fed(struct im_cursor *, uint64_t head);

enum im_watch { IM_WATCH_NONE, IM_WATCH_HANDSHAKE, IM_WATCH_LIVE, IM_WATCH_CLOSING, ... };
enum im_pulse { IM_PULSE_NONE, IM_PULSE_REVIVED, IM_PULSE_ASK, IM_PULSE_DEAD,
                IM_PULSE_HANDSHAKE_OVER, IM_PULSE_CLOSING_OVER, ... };
struct im_heartbeat { uint32_t handshake_ms; uint32_t interval_ms; uint32_t timeout_ms;
                      uint32_t closing_ms; uint8_t max_missed; ...; };
enum im_status im_heartbeat_init(struct im_heartbeat *, uint32_t slot_count);
void im_heartbeat_free(struct im_heartbeat *);
void im_heartbeat_watch(struct im_heartbeat *, uint32_t slot, enum im_watch, uint32_t now_ms);
void im_heartbeat_seen(struct im_heartbeat *, uint32_t slot, uint32_t now_ms);
uint32_t im_heartbeat_sweep(struct im_heartbeat *, uint32_t *at, uint32_t now_ms,
                            enum im_pulse *);
uint32_t im_heartbeat_tick_ms(const struct im_heartbeat *);

void im_mask(uint8_t *to, const uint8_t *from, size_t len, uint8_t key[4]);

#define IM_DEFLATE_MAX ...
struct im_deflate;
bool im_deflate_is_built(void);
enum im_status im_deflate_new(uint32_t most, struct im_deflate **);
void im_deflate_free(struct im_deflate *);
uint32_t im_deflate_bound(uint32_t most);
enum im_status im_deflate_expand(struct im_deflate *, struct im_span in, uint32_t most,
                                 struct im_span *out);
bool im_deflate_shrink(struct im_deflate *, const struct iovec *parts, uint32_t count,
                       struct im_span *out);

struct im_utf8 { ...; };
bool im_utf8_feed(struct im_utf8 *, struct im_span piece);
bool im_utf8_is_whole(const struct im_utf8 *);

struct im_websocket { uint64_t left; uint8_t opcode; uint8_t message; bool is_inside;
                      bool is_last; bool may_deflate; bool is_deflated; ...; };
enum im_status im_websocket_head(struct im_websocket *, struct im_span *in);
size_t im_websocket_take(struct im_websocket *, struct im_span *in, uint8_t *to);
size_t im_websocket_write(uint8_t *to, uint8_t first, uint64_t len);
bool im_websocket_may_close(uint16_t code);

struct im_receipt_key { uint64_t a, b; };
struct im_receipt { struct im_receipt_key key; uint64_t content; uint64_t seq; uint64_t time_ms;
                    uint64_t clock_ms; };
struct im_receipts { uint32_t count; ...; };
enum im_status im_receipts_init(struct im_receipts *, uint32_t count_max, uint64_t window_ms);
void im_receipts_free(struct im_receipts *);
const struct im_receipt *im_receipt_find(const struct im_receipts *, struct im_receipt_key);
void im_receipt_add(struct im_receipts *, const struct im_receipt *);
void im_receipts_expire(struct im_receipts *, uint64_t clock_ms);

enum im_batch_fate { IM_KEPT, IM_REPEATED, IM_CONFLICT, ... };
#define IM_BLOB_MAX ...
struct im_batch_frame { uint64_t device; uint32_t at; uint32_t size; uint32_t topic;
                        uint32_t fate; ...; };
struct im_batch_part { uint64_t first_seq; uint64_t checksum; uint32_t topic; uint32_t blob;
                       uint32_t offset; uint32_t len; uint32_t count; };
struct im_batch_blob { uint32_t first; uint32_t count; uint32_t first_part; uint32_t len; };
struct im_batch { uint8_t *bytes; uint32_t len; struct im_batch_frame *frames;
                  uint32_t frame_count; uint32_t topic_count; struct im_batch_blob *blobs;
                  uint32_t blob_count; struct im_batch_part *parts; uint32_t part_count; ...; };
enum im_status im_batch_init(struct im_batch *, uint64_t seed, uint32_t receipts_max,
                             uint64_t window_ms);
void im_batch_free(struct im_batch *);
void im_batch_clear(struct im_batch *);
enum im_status im_batch_add(struct im_batch *, struct im_span frames, uint64_t device);
struct im_span im_batch_topic(const struct im_batch *, uint32_t topic);
enum im_status im_batch_seal(struct im_batch *, const uint64_t *heads, uint64_t time_ms,
                             uint64_t clock_ms);
uint64_t im_batch_write(struct im_batch *, uint32_t number, uint8_t *frames, uint8_t *devices);
enum im_status im_batch_recall(struct im_batch *, struct im_span frames, struct im_span devices,
                               uint64_t clock_ms);
uint32_t im_batch_count(struct im_span frames, struct im_span topic, uint64_t seq);
uint64_t im_batch_checksum(const uint8_t *at, size_t len);
"""

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "imserver._core_ffi",
    "".join(f'#include "{header}.h"\n' for header in HEADERS),
    include_dirs=["_core"],
    libraries=["imcore", *runpy.run_path("_core/build_zlib.py")["LIBRARIES"]],
    depends=sorted(str(path) for path in Path("_core").iterdir()),
)
