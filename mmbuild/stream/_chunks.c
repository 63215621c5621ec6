/* Many encoded chunks into the arrays of a batch, in one call that holds no lock of Python's.

   What reader.py does with one chunk, this does with a part of a batch: read, compare the checksum, decode with Blosc,
   cut and turn the window, convert its values. Blosc and crc32c are those of the Python packages, called by address.
   A row that fails says so and leaves its place to the Python code, which finds out what is wrong. Addresses, strides
   and sizes are those that compiled.py works out; bytes of files are trusted only after their checksum. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What all chips of one modality have in common; compiled.py has the same columns in the same order. Addresses of
   arrays are by band of the batch. */
typedef struct {
    int64_t kind;         /* DIRECT, STORED, KEPT, NORMALISED or CLASSES */
    int64_t type;         /* of the stored values */
    int64_t itemsize;     /* of the stored values, in bytes */
    int64_t nbytes;       /* of a whole stored chip */
    int64_t planes;       /* bands of the batch */
    int64_t rows, cols;   /* of the window after turning */
    int64_t plane_stride; /* from band to band of the stored chip, in bytes */
    int64_t bands;        /* int64: which stored band; 0 for all as they lie */
    int64_t mean, scale;  /* float32 */
    int64_t known;        /* uint8: whether there are a mean and a scale */
    int64_t table;        /* int64: class index by code */
    int64_t ignore;       /* the class index of what is not a measurement */
    double nodata;
} Chip;

/* One chunk. */
typedef struct {
    int64_t fd;     /* of the shard's file; -1: source is an address */
    int64_t source; /* where the chunk begins in the file, or in memory */
    int64_t length; /* with its checksum, in bytes */
    int64_t chip;   /* address of a Chip */
    int64_t place;  /* address of the values in the batch */
    int64_t mask;   /* address of their mask; 0 without one */
    int64_t first;  /* where the window begins in the stored chip, in bytes */
    int64_t row_stride, col_stride; /* of the turned window in the stored chip, in bytes */
    int64_t failed; /* the answer: 0 or 1 */
} Row;

enum { DIRECT, STORED, KEPT, NORMALISED, CLASSES };
enum { UINT8, INT8, UINT16, INT16, INT32, FLOAT32 };
enum { HEADER_BYTES = 16, CRC_BYTES = 4 };
static const uint32_t CRC_RESIDUE = 0x48674BC7; /* as in chunks.py */

typedef int (*Decode)(const void *source, void *place, size_t nbytes, int threads);
typedef uint32_t (*Checksum)(const uint8_t *data, size_t count);

static void *at(int64_t address) { return (void *)(uintptr_t)address; }

/* -- from a file to a stored chip */

static int read_exactly(int fd, uint8_t *into, size_t count, off_t start)
{
    while (count) {
        ssize_t got = pread(fd, into, count, start);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        into += got;
        start += got;
        count -= (size_t)got;
    }
    return 1;
}

static int64_t little_endian(const uint8_t *four)
{
    return four[0] | four[1] << 8 | four[2] << 16 | (int64_t)four[3] << 24;
}

static int decoded(const uint8_t *chunk, int64_t length, uint8_t *into, int64_t nbytes, Decode decode, Checksum checksum)
{
    if (length < HEADER_BYTES + CRC_BYTES || checksum(chunk, (size_t)length) != CRC_RESIDUE)
        return 0;
    /* The Blosc header: bytes 4 to 8 are the decoded size, 12 to 16 the encoded one. */
    if (little_endian(chunk + 4) != nbytes || little_endian(chunk + 12) != length - CRC_BYTES)
        return 0;
    return decode(chunk, into, (size_t)nbytes, 1) == nbytes;
}

/* -- from a stored chip to the values of a batch */

/* Eight rows at a time: of a window that lies on its side these are neighbours in memory. */
#define GATHER(TYPE)                                                                                                   \
    for (int64_t y = 0; y < rows; y += 8)                                                                              \
        for (int64_t x = 0; x < cols; x++) {                                                                           \
            const uint8_t *from = plane + y * row_stride + x * col_stride;                                             \
            TYPE *to = (TYPE *)into + y * cols + x;                                                                    \
            if (rows - y >= 8)                                                                                         \
                for (int k = 0; k < 8; k++)                                                                            \
                    to[k * cols] = *(const TYPE *)(from + k * row_stride);                                             \
            else                                                                                                       \
                for (int k = 0; k < rows - y; k++)                                                                     \
                    to[k * cols] = *(const TYPE *)(from + k * row_stride);                                             \
        }                                                                                                              \
    return

/* The window of one stored band in C order. */
static void lay_out(const uint8_t *plane, const Row *row, const Chip *chip, uint8_t *restrict into)
{
    const int64_t rows = chip->rows, cols = chip->cols, row_stride = row->row_stride, col_stride = row->col_stride;
    if (col_stride == chip->itemsize) {
        size_t line = (size_t)(cols * chip->itemsize);
        for (int64_t y = 0; y < rows; y++)
            memcpy(into + (size_t)y * line, plane + y * row_stride, line);
        return;
    }
    switch (chip->itemsize) {
    case 1: GATHER(uint8_t);
    case 2: GATHER(uint16_t);
    case 4: GATHER(uint32_t);
    case 8: GATHER(uint64_t);
    }
}

/* Values and masks of n pixels: VALID and VALUE are of one stored value v. Chosen by bits and not by a branch, so that
   compilers work on many pixels at once. */
#define CONVERT(TYPE, VALID, VALUE)                                                                                    \
    for (int64_t i = 0; i < n; i++) {                                                                                  \
        TYPE v = ((const TYPE *)flat)[i];                                                                              \
        uint32_t valid = VALID, all = 0u - valid, bits;                                                                \
        float value = VALUE;                                                                                           \
        memcpy(&bits, &value, sizeof bits);                                                                            \
        place[i] = (bits & all) | (otherwise & ~all);                                                                  \
        mask[i] = (uint8_t)valid;                                                                                      \
    }                                                                                                                  \
    return

#define CONVERT_ANY(VALUE)                                                                                             \
    switch (type) {                                                                                                    \
    case UINT8: CONVERT(uint8_t, v != (uint8_t)nodata, VALUE);                                                         \
    case INT8: CONVERT(int8_t, v != (int8_t)nodata, VALUE);                                                            \
    case UINT16: CONVERT(uint16_t, v != (uint16_t)nodata, VALUE);                                                      \
    case INT16: CONVERT(int16_t, v != (int16_t)nodata, VALUE);                                                         \
    case INT32: CONVERT(int32_t, v != (int32_t)nodata, VALUE);                                                         \
    case FLOAT32: CONVERT(float, (v != (float)nodata) & (fabsf(v) <= FLT_MAX), VALUE);                                 \
    }

/* As they are, NaN where nothing was measured. place: float32, by its bits. */
static void keep(const uint8_t *restrict flat, int64_t n, int64_t type, double nodata, uint32_t *restrict place,
                 uint8_t *restrict mask)
{
    const uint32_t otherwise = 0x7fc00000;
    CONVERT_ANY((float)v)
}

/* (v - mean) / scale, 0 where nothing was measured. */
static void normalise(const uint8_t *restrict flat, int64_t n, int64_t type, double nodata, float mean, float scale,
                      uint32_t *restrict place, uint8_t *restrict mask)
{
    const uint32_t otherwise = 0;
    CONVERT_ANY(((float)v - mean) / scale)
}

static void find_classes(const uint8_t *restrict flat, int64_t n, const Chip *chip, int64_t *restrict place,
                         uint8_t *restrict mask)
{
    const int64_t *table = at(chip->table);
    for (int64_t i = 0; i < n; i++) {
        place[i] = table[chip->type == UINT8 ? flat[i] : ((const uint16_t *)flat)[i]];
        mask[i] = place[i] != chip->ignore;
    }
}

/* A decoded chip into its place; flat: memory for one band. */
static void place_chip(const uint8_t *stored, const Row *row, const Chip *chip, uint8_t *flat)
{
    int64_t n = chip->rows * chip->cols, width = chip->kind == CLASSES ? 8 : chip->kind == STORED ? chip->itemsize : 4;
    int whole = row->col_stride == chip->itemsize && row->row_stride == chip->cols * chip->itemsize;
    for (int64_t band = 0; band < chip->planes; band++) {
        int64_t from = chip->bands ? ((const int64_t *)at(chip->bands))[band] : band;
        const uint8_t *plane = stored + from * chip->plane_stride + row->first;
        uint8_t *place = (uint8_t *)at(row->place) + band * n * width, *mask = (uint8_t *)at(row->mask) + band * n;
        if (chip->kind == STORED) {
            lay_out(plane, row, chip, place);
            continue;
        }
        if (!whole) {
            lay_out(plane, row, chip, flat);
            plane = flat;
        }
        int known = chip->kind != NORMALISED || ((const uint8_t *)at(chip->known))[band];
        if (!known) {
            memset(place, 0, (size_t)(n * width));
            memset(mask, 0, (size_t)n);
        } else if (chip->kind == CLASSES)
            find_classes(plane, n, chip, (int64_t *)place, mask);
        else if (chip->kind == KEPT)
            keep(plane, n, chip->type, chip->nodata, (uint32_t *)place, mask);
        else
            normalise(plane, n, chip->type, chip->nodata, ((const float *)at(chip->mean))[band],
                      ((const float *)at(chip->scale))[band], (uint32_t *)place, mask);
    }
}

/* -- all rows */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Memory of one call, each large enough for every row: an encoded chunk, a decoded chip, one of its bands. */
typedef struct {
    uint8_t *chunk, *stored, *flat;
} Memory;

static Memory memory_for(const Row *rows, Py_ssize_t n)
{
    size_t chunk = 1, stored = 1, flat = 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        const Chip *chip = at(rows[i].chip);
        if (rows[i].fd >= 0 && (size_t)rows[i].length > chunk)
            chunk = (size_t)rows[i].length;
        if (chip->kind != DIRECT && (size_t)chip->nbytes > stored)
            stored = (size_t)chip->nbytes;
        if (chip->kind != DIRECT && (size_t)chip->plane_stride > flat)
            flat = (size_t)chip->plane_stride;
    }
    return (Memory){malloc(chunk), malloc(stored), malloc(flat)};
}

static void fill(Row *rows, Py_ssize_t n, Memory memory, Decode decode, Checksum checksum, double seconds[3],
                 int64_t bytes[2])
{
    double began = now();
    for (Py_ssize_t i = 0; i < n; i++) {
        Row *row = rows + i;
        const Chip *chip = at(row->chip);
        const uint8_t *chunk = row->fd >= 0 ? memory.chunk : at(row->source);
        uint8_t *stored = chip->kind == DIRECT ? at(row->place) : memory.stored;
        int good = row->fd < 0 || read_exactly((int)row->fd, memory.chunk, (size_t)row->length, (off_t)row->source);
        double ready = now();
        good = good && decoded(chunk, row->length, stored, chip->nbytes, decode, checksum);
        double done = now();
        if (good && chip->kind != DIRECT)
            place_chip(stored, row, chip, memory.flat);
        double end = now();
        row->failed = !good;
        bytes[0] += good ? row->length : 0;
        bytes[1] += good ? chip->nbytes : 0;
        seconds[0] += ready - began;
        seconds[1] += done - ready;
        seconds[2] += end - done;
        began = end;
    }
}

static PyObject *py_fill(PyObject *self, PyObject *args)
{
    Py_buffer rows;
    unsigned long long decode, checksum;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*KK", &rows, &decode, &checksum))
        return NULL;
    Py_ssize_t n = rows.len / (Py_ssize_t)sizeof(Row);
    double seconds[3] = {0, 0, 0};
    int64_t bytes[2] = {0, 0};
    Memory memory = memory_for(rows.buf, n);
    int enough = memory.chunk && memory.stored && memory.flat;
    Py_BEGIN_ALLOW_THREADS
    if (enough)
        fill(rows.buf, n, memory, (Decode)(uintptr_t)decode, (Checksum)(uintptr_t)checksum, seconds,
             bytes);
    free(memory.chunk);
    free(memory.stored);
    free(memory.flat);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&rows);
    if (!enough)
        return PyErr_NoMemory();
    return Py_BuildValue("(dddLL)", seconds[0], seconds[1], seconds[2], (long long)bytes[0], (long long)bytes[1]);
}

static PyMethodDef methods[] = {
    {"fill", py_fill, METH_VARARGS,
     "fill(rows, decode, checksum): do every row, -> seconds of reading, decoding and the rest; bytes read and decoded."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_chunks", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__chunks(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "ROW_BYTES", sizeof(Row)) < 0 ||
                 PyModule_AddIntConstant(made, "CHIP_BYTES", sizeof(Chip)) < 0))
        Py_CLEAR(made);
    return made;
}
