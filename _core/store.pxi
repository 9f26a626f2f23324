"""The store's side of the binding, part of core.pyx: what its writer thread calls."""


@cython.final
cdef class Batch:
    """One group commit of the store; imserver/_core.pyi has the contract."""

    cdef im_batch _batch
    cdef list _adds  # of each add: its first byte and frame, and their ends

    def __cinit__(self, *, uint64_t seed, uint32_t receipts, uint64_t window_ms):
        self._adds = []
        if not 1 <= receipts <= 1 << 30:
            raise ValueError("1 to 2**30 receipts")
        if im_batch_init(&self._batch, seed, receipts, window_ms) != IM_OK:
            raise MemoryError("no memory for so many receipts")

    def __dealloc__(self):
        im_batch_free(&self._batch)

    def clear(self):
        self._adds = []
        im_batch_clear(&self._batch)

    def add(self, bytes frames not None, bytes device not None):
        cdef im_span block = span(frames)
        cdef im_span name = span(device)
        cdef tuple start = (self._batch.len, self._batch.frame_count)
        cdef im_status status
        with nogil:
            status = im_batch_add(&self._batch, block, im_receipt_device(name))
        if status == IM_BAD:
            raise ValueError("not whole MESSAGE frames")
        if status != IM_OK:
            raise MemoryError("larger than a batch can be")
        self._adds.append((*start, self._batch.len, self._batch.frame_count))

    def topics(self):
        return [bytes_of(im_batch_topic(&self._batch, i)) for i in range(self._batch.topic_count)]

    def seal(self, list heads not None, uint64_t time_ms, uint64_t clock_ms):
        cdef uint32_t count = self._batch.topic_count
        cdef uint64_t *values
        cdef im_status status
        if len(heads) != count:
            raise ValueError("one head a topic")
        values = <uint64_t *>malloc((count + 1) * sizeof(uint64_t))
        if values is NULL:
            raise MemoryError
        try:
            for i in range(count):
                values[i] = heads[i]
            with nogil:
                status = im_batch_seal(&self._batch, values, time_ms, clock_ms)
        finally:
            free(values)
        if status != IM_OK:
            raise MemoryError("no memory to lay a batch out")

    def blobs(self):
        cdef bytes frames, devices
        cdef uint8_t *frames_at
        cdef uint8_t *devices_at
        cdef uint64_t checksum
        cdef uint32_t number
        cdef list blobs = []
        for number in range(self._batch.blob_count):
            frames = PyBytes_FromStringAndSize(NULL, self._batch.blobs[number].len)
            devices = PyBytes_FromStringAndSize(NULL, 8 * <Py_ssize_t>self._batch.blobs[number].count)
            frames_at = <uint8_t *>PyBytes_AS_STRING(frames)
            devices_at = <uint8_t *>PyBytes_AS_STRING(devices)
            with nogil:
                checksum = im_batch_write(&self._batch, number, frames_at, devices_at)
            blobs.append((frames, devices, <int64_t>checksum))
        return blobs

    def parts(self):
        cdef im_batch_part *part
        cdef uint32_t number
        cdef list parts = []
        for number in range(self._batch.part_count):
            part = &self._batch.parts[number]
            parts.append((
                part.topic, part.first_seq, part.count, part.blob, part.offset, part.len,
                <int64_t>part.checksum,
            ))
        return parts

    def added(self):
        cdef uint32_t first, last, at, end, i
        cdef list repeated, refused, blocks = []
        for at, first, end, last in self._adds:
            repeated, refused = [], []
            for i in range(first, last):
                if self._batch.frames[i].fate == IM_REPEATED:
                    repeated.append(i - first)
                elif self._batch.frames[i].fate == IM_CONFLICT:
                    refused.append(i - first)
            frames = PyBytes_FromStringAndSize(<const char *>self._batch.bytes + at, end - at)
            blocks.append((frames, last - first, tuple(repeated), tuple(refused)))
        return blocks

    def recall(self, bytes frames not None, bytes devices not None, uint64_t clock_ms):
        cdef im_span frames_in = span(frames)
        cdef im_span devices_in = span(devices)
        cdef im_status status
        with nogil:
            status = im_batch_recall(&self._batch, frames_in, devices_in, clock_ms)
        if status != IM_OK:
            raise ValueError("not what a batch wrote")


@cython.final
cdef class Journal:
    """What clients publish to be kept; imserver/_core.pyi has the contract."""

    cdef im_journal _journal
    cdef Core _owner  # its memory is used until close()

    def __cinit__(self, Core core not None, int fd):
        self._owner = core
        if im_journal_open(&self._journal, core._core, fd) != IM_OK:
            raise OSError("the core found no descriptor for the store")

    def __dealloc__(self):
        im_journal_close(&self._journal)

    def collect(self, Batch batch not None, uint64_t bytes_max):
        cdef uint32_t count
        with nogil:
            count = im_journal_collect(&self._journal, &batch._batch, bytes_max)
        return count

    def settle(self, Batch batch not None, uint16_t code=0):
        with nogil:
            im_journal_settle(&self._journal, &batch._batch, code)

    def sleeps(self):
        return im_journal_sleeps(&self._journal)

    def close(self):
        im_journal_close(&self._journal)


cdef bytes bytes_of(im_span part):
    return PyBytes_FromStringAndSize(<const char *>part.at, part.len)


def checksum(bytes data not None):
    cdef im_span part = span(data)
    cdef uint64_t sum
    with nogil:
        sum = im_batch_checksum(part.at, part.len)
    return <int64_t>sum


def count_frames(bytes frames not None, bytes topic not None, uint64_t seq):
    return im_batch_count(span(frames), span(topic), seq)
