/* The context codecs in C: what context_model.py, range_coder.py and context_codec.py do, byte for
 * byte the same, twenty to sixty times faster. All sizes are checked before anything is read; the one
 * allocation that depends on its caller's numbers is checked against overflow.
 *
 * A frame is C * H * W bytes of 0 or 1, channel by channel, row by row. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HISTORY = 4, CONTEXTS = 256, LAGS = 2, KERNEL = 9, SQUASH_SIZE = 4096 };
enum { MAX_SIDE = 65535, MAX_FRAME = 1 << 24, MAX_STEPS = 255 };

static const uint64_t START = (uint64_t)1 << 32, LEAST = (uint64_t)1 << 24;

/* --- range coder --------------------------------------------------------------------------- */

typedef struct {
    uint64_t low, width; /* the interval's window: low < 2^32 */
    uint8_t *bytes;      /* encoder: what has left the window; decoder: the code word */
    size_t size;         /* encoder: bytes written; decoder: length of the code word */
    size_t next;         /* decoder: the next byte to read */
    uint64_t offset;     /* decoder: where the code word lies in the interval */
} Coder;

static void carry(Coder *coder)
{
    size_t i = coder->size;
    while (++coder->bytes[--i] == 0)
        ;
    coder->low -= START;
}

static void encode_bit(Coder *coder, uint32_t probability, int bit)
{
    uint64_t part = (coder->width >> 16) * probability;
    if (bit) {
        coder->width = part;
    } else {
        coder->low += part;
        coder->width -= part;
        if (coder->low >= START)
            carry(coder);
    }
    while (coder->width < LEAST) {
        coder->bytes[coder->size++] = (uint8_t)(coder->low >> 24);
        coder->low = coder->low << 8 & (START - 1);
        coder->width <<= 8;
    }
}

/* Append the fewest bytes that name a number in the interval. */
static void finish_encoding(Coder *coder)
{
    int dropped = 4;
    uint64_t number;
    for (;; dropped--) {
        uint64_t unit = (uint64_t)1 << 8 * dropped;
        number = (coder->low + unit - 1) / unit * unit;
        if (number < coder->low + coder->width && (number < START || coder->size > 0))
            break;
    }
    if (number >= START) {
        coder->low = number;
        carry(coder);
        number = coder->low;
    }
    for (int shift = 24; shift >= 8 * dropped; shift -= 8)
        coder->bytes[coder->size++] = (uint8_t)(number >> shift);
    while (coder->size > 0 && coder->bytes[coder->size - 1] == 0)
        coder->size--;
}

static uint64_t next_byte(Coder *coder)
{
    size_t at = coder->next++;
    return at < coder->size ? coder->bytes[at] : 0;
}

static void start_decoding(Coder *coder)
{
    for (int i = 0; i < 4; i++)
        coder->offset = coder->offset << 8 | next_byte(coder);
}

static int decode_bit(Coder *coder, uint32_t probability)
{
    uint64_t part = (coder->width >> 16) * probability;
    int bit = coder->offset < part;
    if (bit) {
        coder->width = part;
    } else {
        coder->offset -= part;
        coder->width -= part;
    }
    while (coder->width < LEAST) {
        coder->offset = coder->offset << 8 | next_byte(coder);
        coder->width <<= 8;
    }
    return bit;
}

/* --- models -------------------------------------------------------------------------------- */

typedef struct {
    int channels, height, width, rows;
    const uint16_t *probabilities; /* [rows, C, 256] */
    const int16_t *logits;         /* [rows, C, 256], NULL without mixing */
    const int16_t *past;           /* [rows, LAGS, C from, 3, 3, C to] */
    const int16_t *current;        /* [rows, C from, 3, 3, C to] */
    const uint16_t *squash;        /* [SQUASH_SIZE] */
} Model;

/* Add the weights of every spike of a plane to the logits around it, of all channels. `weights`
 * are those of the plane's channel; `sums`, [H + 2, W + 2, C], has a border of one. */
static void spread(const Model *model, const uint8_t *plane, const int16_t *weights, int32_t *sums)
{
    ptrdiff_t channels = model->channels, stride = model->width + 2;
    for (int y = 0; y < model->height; y++)
        for (int x = 0; x < model->width; x++)
            if (plane[(size_t)y * model->width + x])
                for (int dy = 0; dy < 3; dy++)
                    for (int dx = 0; dx < 3; dx++) {
                        /* A neuron below the spike sees it in the row above itself. */
                        int32_t *to = sums + ((y + 2 - dy) * stride + x + 2 - dx) * channels;
                        const int16_t *from = weights + (dy * 3 + dx) * channels;
                        for (ptrdiff_t i = 0; i < channels; i++)
                            to[i] += from[i];
                    }
}

static uint32_t mixed(const Model *model, int32_t logit)
{
    int32_t index = logit + SQUASH_SIZE / 2;
    index = index < 0 ? 0 : index >= SQUASH_SIZE ? SQUASH_SIZE - 1 : index;
    return model->squash[index];
}

/* Code one channel of the frame at `frame`, which `before` frames precede; `sums` begins with that
 * channel's logit at the corner. */
static void code_channel(const Model *model, Coder *coder, int decoding, uint8_t *frame, int before,
                         int row, int channel, const int32_t *sums)
{
    size_t plane = (size_t)model->height * model->width, frame_size = plane * model->channels;
    size_t table = ((size_t)row * model->channels + channel) * CONTEXTS;
    int lags = before < HISTORY ? before : HISTORY;
    ptrdiff_t channels = model->channels, stride = model->width + 2;
    int32_t own[16] = {0};
    if (model->logits) {
        size_t c = model->channels;
        const int16_t *w = model->current + (row * c + channel) * KERNEL * c + channel;
        for (int i = 0; i < 16; i++) /* bits: W, NW, N, NE */
            own[i] = (i >> 3) * w[3 * c] + (i >> 2 & 1) * w[0] + (i >> 1 & 1) * w[c] +
                     (i & 1) * w[2 * c];
    }
    for (int y = 0; y < model->height; y++) {
        uint8_t *line = frame + channel * plane + (size_t)y * model->width;
        const uint8_t *above = y ? line - model->width : NULL;
        unsigned west = 0, window = above ? above[0] : 0;
        for (int x = 0; x < model->width; x++) {
            unsigned east = above && x + 1 < model->width ? above[x + 1] : 0;
            window = (window << 1 | east) & 7;
            unsigned near = west << 3 | window, context = near;
            for (int lag = 1; lag <= lags; lag++)
                context |= (unsigned)*(line + x - lag * frame_size) << (3 + lag);
            uint32_t probability =
                model->logits ? mixed(model, model->logits[table + context] + own[near] +
                                                 sums[((y + 1) * stride + x + 1) * channels])
                              : model->probabilities[table + context];
            if (decoding)
                line[x] = (uint8_t)decode_bit(coder, probability);
            else
                encode_bit(coder, probability, line[x]);
            west = line[x];
        }
    }
}

/* Code one frame. `sums` has room for [H + 2, W + 2, C]; unused without mixing. */
static void code_frame(const Model *model, Coder *coder, int decoding, uint8_t *frame, int before,
                       int timestep, int32_t *sums)
{
    int channels = model->channels, row = timestep < model->rows ? timestep : model->rows - 1;
    size_t plane = (size_t)model->height * model->width, frame_size = plane * channels;
    size_t bordered = (size_t)(model->height + 2) * (model->width + 2);
    size_t kernel = (size_t)KERNEL * channels;
    if (model->logits) {
        memset(sums, 0, channels * bordered * sizeof *sums);
        for (int lag = 0; lag < LAGS && lag < before; lag++)
            for (int from = 0; from < channels; from++)
                spread(model, frame - (lag + 1) * frame_size + from * plane,
                       model->past + (((size_t)row * LAGS + lag) * channels + from) * kernel, sums);
    }
    for (int channel = 0; channel < channels; channel++) {
        code_channel(model, coder, decoding, frame, before, row, channel,
                     model->logits ? sums + channel : NULL);
        if (model->logits) /* What this adds to channels that have been coded is not used. */
            spread(model, frame + channel * plane,
                   model->current + ((size_t)row * channels + channel) * kernel, sums);
    }
}

/* --- Python -------------------------------------------------------------------------------- */

static int has_size(const Py_buffer *buffer, size_t expected, const char *what)
{
    if ((size_t)buffer->len == expected)
        return 1;
    PyErr_Format(PyExc_ValueError, "expected %zu bytes of %s, got %zd", expected, what, buffer->len);
    return 0;
}

/* Point the model to its parameters; return 0 with an exception set where they do not fit. */
static int set_model(Model *model, const Py_buffer *parameters)
{
    size_t c = model->channels, rows = model->rows;
    if (model->channels < 1 || model->height < 1 || model->width < 1 || model->rows < 1 ||
        model->channels > MAX_SIDE || model->height > MAX_SIDE || model->width > MAX_SIDE ||
        (uint64_t)c * model->height * model->width > MAX_FRAME || rows > MAX_STEPS) {
        PyErr_SetString(PyExc_ValueError, "expected a code shape of 1 to 2^24 bits");
        return 0;
    }
    if (!has_size(&parameters[0], rows * c * CONTEXTS * 2, "probabilities"))
        return 0;
    model->probabilities = parameters[0].buf;
    if (parameters[1].len == 0)
        return 1;
    if (!has_size(&parameters[1], rows * c * CONTEXTS * 2, "logits") ||
        !has_size(&parameters[2], rows * c * LAGS * c * KERNEL * 2, "past weights") ||
        !has_size(&parameters[3], rows * c * c * KERNEL * 2, "current weights") ||
        !has_size(&parameters[4], SQUASH_SIZE * 2, "squash"))
        return 0;
    model->logits = parameters[1].buf;
    model->past = parameters[2].buf;
    model->current = parameters[3].buf;
    model->squash = parameters[4].buf;
    return 1;
}

/* Copy bytes as 0 or 1: a table index is made of them. */
static void copy_spikes(uint8_t *to, const uint8_t *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] = from[i] != 0;
}

/* Code `steps` frames that follow those of `past`; `input` is frames or a code word. */
static PyObject *code(const Model *model, const Py_buffer *input, int decoding, int steps,
                      const Py_buffer *past, int timestep)
{
    size_t frame_size = (size_t)model->channels * model->height * model->width;
    size_t before = past->len / frame_size;
    if (steps < 1 || steps > MAX_STEPS || timestep < 0) {
        PyErr_Format(PyExc_ValueError, "expected 1 to %d frames, got %d", MAX_STEPS, steps);
        return NULL;
    }
    if (before > HISTORY || !has_size(past, before * frame_size, "past frames") ||
        (!decoding && !has_size(input, steps * frame_size, "frames"))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "expected at most 4 past frames");
        return NULL;
    }
    size_t bordered = (size_t)(model->height + 2) * (model->width + 2);
    uint8_t *frames = PyMem_Malloc((before + steps) * frame_size);
    /* No bit takes more than 17 bits: 16 and what rounding the interval costs. */
    uint8_t *word = decoding ? NULL : PyMem_Malloc(steps * frame_size * 3 + 8);
    int32_t *sums = PyMem_Malloc(model->logits ? model->channels * bordered * sizeof *sums : 1);
    PyObject *result = NULL;
    if (!frames || !sums || (!decoding && !word)) {
        PyErr_NoMemory();
        goto end;
    }
    copy_spikes(frames, past->buf, before * frame_size);
    if (!decoding)
        copy_spikes(frames + before * frame_size, input->buf, steps * frame_size);
    Coder coder = {.width = START, .bytes = decoding ? input->buf : word};
    if (decoding) {
        coder.size = input->len;
        start_decoding(&coder);
    }
    for (int i = 0; i < steps; i++)
        code_frame(model, &coder, decoding, frames + (before + i) * frame_size, (int)before + i,
                   timestep + i, sums);
    if (!decoding) {
        finish_encoding(&coder);
        result = PyBytes_FromStringAndSize((const char *)word, coder.size);
    } else if (coder.size > coder.next || (coder.size && !coder.bytes[coder.size - 1])) {
        PyErr_Format(PyExc_ValueError,
                     "expected a code word of at most %zu bytes that ends in no zero, got %zu bytes",
                     coder.next, coder.size);
    } else {
        result = PyBytes_FromStringAndSize((const char *)frames + before * frame_size,
                                           steps * frame_size);
    }
end:
    PyMem_Free(sums);
    PyMem_Free(word);
    PyMem_Free(frames);
    return result;
}

static PyObject *run(PyObject *arguments, int decoding)
{
    Py_buffer input, past, parameters[5];
    Model model = {0};
    int steps, timestep;
    if (!PyArg_ParseTuple(arguments, "y*iy*i(iii)i(y*y*y*y*y*)", &input, &steps, &past, &timestep,
                          &model.channels, &model.height, &model.width, &model.rows,
                          &parameters[0], &parameters[1], &parameters[2], &parameters[3],
                          &parameters[4]))
        return NULL;
    PyObject *result = NULL;
    if (set_model(&model, parameters))
        result = code(&model, &input, decoding, steps, &past, timestep);
    PyBuffer_Release(&input);
    PyBuffer_Release(&past);
    for (int i = 0; i < 5; i++)
        PyBuffer_Release(&parameters[i]);
    return result;
}

static PyObject *encode(PyObject *self, PyObject *arguments)
{
    (void)self;
    return run(arguments, 0);
}

static PyObject *decode(PyObject *self, PyObject *arguments)
{
    (void)self;
    return run(arguments, 1);
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS,
     "encode(frames, steps, past, timestep, shape, rows, parameters) -> code word"},
    {"decode", decode, METH_VARARGS,
     "decode(code_word, steps, past, timestep, shape, rows, parameters) -> frames"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The context codecs in C.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&module);
}
