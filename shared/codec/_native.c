/* The context codecs in C: what context_model.py, range_coder.py and context_codec.py do, byte for
 * byte the same, many times faster. All sizes are checked before anything is read or allocated.
 *
 * A frame is C * H * W bytes of 0 or 1, channel by channel, row by row. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { HISTORY = 4, CONTEXTS = 256, LAGS = 2, PAST_SIDE = 3, SQUASH_SIZE = 4096 };
enum { LOGIT_UNITS = 256, HIDDEN_LIMIT = 4095, MAX_MAPS = 9 };
/* Within these no size overflows 32 bits. */
enum { MAX_SIDE = 65535, MAX_FRAME = 1 << 24, MAX_FRAMES = 1 << 28, MAX_STEPS = 255, MAX_ROWS = 8 };
enum { MAX_PAIRS = 1 << 21 };

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

/* Append the fewest bytes that name a number in the interval. Before the first byte has left the
 * window the interval ends at START at the latest: a carry always has a byte to go to. */
static void finish_encoding(Coder *coder)
{
    int dropped = 4;
    uint64_t number;
    for (;; dropped--) {
        uint64_t unit = (uint64_t)1 << 8 * dropped;
        number = (coder->low + unit - 1) / unit * unit;
        if (number < coder->low + coder->width)
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
    /* Of ctx-max; a map is a sum for every neuron of a channel. */
    int place_sets, sets, maps, side;
    const uint16_t *probabilities; /* [rows, C, 256] */
    const int16_t *logits;         /* [rows, C, 256], NULL without ctx-max */
    const uint16_t *places;        /* [place_sets, H, W, C * maps] */
    const uint16_t *past;          /* [sets, LAGS, C from, 3, 3, C * maps], as seen from the spike */
    const uint16_t *current;       /* [sets, C from, side, side, C * maps], the same */
    const int16_t *hidden;         /* [C, maps - 1] */
    const uint16_t *squash;        /* [SQUASH_SIZE] */
} Model;

/* The sums of one frame, modulo 2^16: [H + 2 * border, W + 2 * border, C * maps], `border` being
 * side / 2. */
static size_t sums_size(const Model *model)
{
    size_t border = model->side / 2;
    return (model->height + 2 * border) * (model->width + 2 * border) * model->channels *
           model->maps;
}

static uint16_t *sums_at(const Model *model, uint16_t *sums, int y, int x)
{
    ptrdiff_t border = model->side / 2, stride = model->width + 2 * border;
    return sums + ((y + border) * stride + x + border) * model->channels * model->maps;
}

/* There are so many sets of something: return that of a row. */
static size_t set_of(int row, int sets)
{
    return row < sets ? row : sets - 1;
}

/* Begin with what the maps are without any spike. The border is never read. */
static void start_sums(const Model *model, int row, uint16_t *sums)
{
    size_t line = (size_t)model->width * model->channels * model->maps;
    const uint16_t *places =
        model->places + set_of(row, model->place_sets) * model->height * line;
    for (int y = 0; y < model->height; y++, places += line)
        memcpy(sums_at(model, sums, y, 0), places, line * sizeof *sums);
}

/* Add the weights of one spike, [side, side, C * maps], to the maps around it. */
static void spread(const Model *model, const uint16_t *restrict weights, int side, int y, int x,
                   uint16_t *sums)
{
    ptrdiff_t run = (ptrdiff_t)side * model->channels * model->maps;
    for (int dy = 0; dy < side; dy++, weights += run) {
        uint16_t *restrict to = sums_at(model, sums, y + dy - side / 2, x - side / 2);
        for (ptrdiff_t i = 0; i < run; i++)
            to[i] += weights[i];
    }
}

/* Begin the sums of the frame at `frame`, which `before` frames precede. */
static void spread_past(const Model *model, const uint8_t *frame, int before, int row,
                        uint16_t *sums)
{
    size_t plane = (size_t)model->height * model->width, frame_size = plane * model->channels;
    size_t kernel = (size_t)PAST_SIDE * PAST_SIDE * model->channels * model->maps;
    const uint16_t *weights =
        model->past + set_of(row, model->sets) * LAGS * model->channels * kernel;
    start_sums(model, row, sums);
    for (int lag = 1; lag <= LAGS && lag <= before; lag++) {
        const uint8_t *spikes = frame - lag * frame_size;
        for (int from = 0; from < model->channels; from++, weights += kernel)
            for (int y = 0; y < model->height; y++)
                for (int x = 0; x < model->width; x++)
                    if (*spikes++)
                        spread(model, weights, PAST_SIDE, y, x, sums);
    }
}

/* Return the probability of a neuron from the table's logit and its channel's maps. */
static uint32_t mixed(const Model *model, int channel, int logit, const uint16_t *maps)
{
    const int16_t *hidden = model->hidden + (ptrdiff_t)channel * (model->maps - 1);
    int32_t total = (logit + (int16_t)maps[0] + SQUASH_SIZE / 2) * LOGIT_UNITS;
    for (int i = 1; i < model->maps; i++) {
        int unit = (int16_t)maps[i];
        total += (unit < 0 ? 0 : unit > HIDDEN_LIMIT ? HIDDEN_LIMIT : unit) * hidden[i - 1];
    }
    int32_t index = total < 0 ? 0 : total / LOGIT_UNITS;
    return model->squash[index < SQUASH_SIZE ? index : SQUASH_SIZE - 1];
}

/* Code one channel of the frame at `frame`, which `before` frames precede. */
static void code_channel(const Model *model, Coder *coder, int decoding, uint8_t *frame, int before,
                         int row, int channel, uint16_t *sums)
{
    size_t plane = (size_t)model->height * model->width, frame_size = plane * model->channels;
    size_t table = ((size_t)row * model->channels + channel) * CONTEXTS;
    int lags = before < HISTORY ? before : HISTORY, first = channel * model->maps;
    size_t kernel = (size_t)model->side * model->side * model->channels * model->maps;
    size_t set = set_of(row, model->sets);
    const uint16_t *weights =
        model->logits ? model->current + (set * model->channels + channel) * kernel : NULL;
    for (int y = 0; y < model->height; y++) {
        uint8_t *line = frame + channel * plane + (size_t)y * model->width;
        const uint8_t *above = y ? line - model->width : NULL;
        unsigned west = 0, window = above ? above[0] : 0;
        for (int x = 0; x < model->width; x++) {
            unsigned east = above && x + 1 < model->width ? above[x + 1] : 0;
            window = (window << 1 | east) & 7;
            unsigned context = west << 3 | window;
            for (int lag = 1; lag <= lags; lag++)
                context |= (unsigned)*(line + x - lag * frame_size) << (3 + lag);
            uint32_t probability =
                weights ? mixed(model, channel, model->logits[table + context],
                                sums_at(model, sums, y, x) + first)
                        : model->probabilities[table + context];
            if (decoding)
                line[x] = (uint8_t)decode_bit(coder, probability);
            else
                encode_bit(coder, probability, line[x]);
            west = line[x];
            if (west && weights)
                /* What this adds to neurons that have been coded is not used. */
                spread(model, weights, model->side, y, x, sums);
        }
    }
}

/* Code one frame. `sums` has room for sums_size(); unused without ctx-max. */
static void code_frame(const Model *model, Coder *coder, int decoding, uint8_t *frame, int before,
                       int timestep, uint16_t *sums)
{
    int row = timestep < model->rows ? timestep : model->rows - 1;
    if (model->logits)
        spread_past(model, frame, before, row, sums);
    for (int channel = 0; channel < model->channels; channel++)
        code_channel(model, coder, decoding, frame, before, row, channel, sums);
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
    size_t c = model->channels, rows = model->rows, side = model->side;
    size_t place_sets = model->place_sets, sets = model->sets;
    if (model->channels < 1 || model->height < 1 || model->width < 1 || model->rows < 1 ||
        model->channels > MAX_SIDE || model->height > MAX_SIDE || model->width > MAX_SIDE ||
        (uint64_t)c * model->height * model->width > MAX_FRAME || rows > MAX_ROWS) {
        PyErr_SetString(PyExc_ValueError, "expected a code shape of 1 to 2^24 bits");
        return 0;
    }
    if (!has_size(&parameters[0], rows * c * CONTEXTS * 2, "probabilities"))
        return 0;
    model->probabilities = parameters[0].buf;
    if (parameters[1].len == 0)
        return 1;
    if (model->place_sets < 1 || place_sets > rows || model->sets < 1 || sets > rows ||
        model->maps < 1 || model->maps > MAX_MAPS ||
        (side != 3 && side != 5) || (uint64_t)sets * c * c * model->maps > MAX_PAIRS) {
        PyErr_SetString(PyExc_ValueError,
                        "expected 1 to 9 maps, 3 or 5 neurons a side, and not too many channels");
        return 0;
    }
    size_t all = c * model->maps;
    if (!has_size(&parameters[1], rows * c * CONTEXTS * 2, "logits") ||
        !has_size(&parameters[2], place_sets * model->height * model->width * all * 2,
                  "places") ||
        !has_size(&parameters[3], sets * LAGS * c * PAST_SIDE * PAST_SIDE * all * 2,
                  "past weights") ||
        !has_size(&parameters[4], sets * c * side * side * all * 2, "current weights") ||
        !has_size(&parameters[5], c * (model->maps - 1) * 2, "hidden weights") ||
        !has_size(&parameters[6], SQUASH_SIZE * 2, "squash"))
        return 0;
    model->logits = parameters[1].buf;
    model->places = parameters[2].buf;
    model->past = parameters[3].buf;
    model->current = parameters[4].buf;
    model->hidden = parameters[5].buf;
    model->squash = parameters[6].buf;
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
    if ((uint64_t)(before + steps) * frame_size > MAX_FRAMES) {
        PyErr_Format(PyExc_ValueError, "expected at most %d bits at once", MAX_FRAMES);
        return NULL;
    }
    uint8_t *frames = PyMem_Malloc((before + steps) * frame_size);
    /* No bit takes more than 17 bits: 16 and what rounding the interval costs. */
    uint8_t *word = decoding ? NULL : PyMem_Malloc(steps * frame_size * 3 + 8);
    uint16_t *sums = PyMem_Calloc(model->logits ? sums_size(model) : 1, sizeof *sums);
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

enum { PARAMETERS = 7 };

static PyObject *run(PyObject *arguments, int decoding)
{
    Py_buffer input, past, parameters[PARAMETERS];
    Model model = {0};
    int steps, timestep;
    if (!PyArg_ParseTuple(arguments, "y*iy*i(iii)i(iiii)(y*y*y*y*y*y*y*)", &input, &steps, &past,
                          &timestep, &model.channels, &model.height, &model.width, &model.rows,
                          &model.place_sets, &model.sets, &model.maps, &model.side, &parameters[0],
                          &parameters[1], &parameters[2], &parameters[3], &parameters[4],
                          &parameters[5], &parameters[6]))
        return NULL;
    PyObject *result = NULL;
    if (set_model(&model, parameters))
        result = code(&model, &input, decoding, steps, &past, timestep);
    PyBuffer_Release(&input);
    PyBuffer_Release(&past);
    for (int i = 0; i < PARAMETERS; i++)
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
     "encode(frames, steps, past, timestep, shape, rows, (place sets, sets, maps, side),"
     " parameters) -> code word"},
    {"decode", decode, METH_VARARGS,
     "decode(code_word, steps, past, timestep, shape, rows, (place sets, sets, maps, side),"
     " parameters) -> frames"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The context codecs in C.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModule_Create(&module);
}
