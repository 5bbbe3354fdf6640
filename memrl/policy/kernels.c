/* A pack's Llama or Qwen3 decoder on a CPU: forward along one level of the answer trees, and backward along all.

   A row is one token of one cell. Rows are stored chunk by chunk (the prompts' tokens but the last, their last ones,
   then each level of the answer trees), and by cell within a chunk: a cell's rows of chunk j are
   bounds[j][cell] .. bounds[j][cell + 1]. Arrays are row-major and dense. Some cells at a time go through all layers,
   so that their activations stay in the core's cache from one operation to the next; threads share the cells. No sum
   runs over more than one cell, so a cell's result does not depend on its neighbors.

   Compiled once for each kind of numbers that products.h knows; kernels.py declares the same structures. */

#include <math.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "products.h"

#define MOST_LAYERS 3 /* of a group that reads one input: queries, keys and values */
#define LEAST_ROWS 96 /* rows that go through the layers together, about: more where a layer's weights are many */
#define WEIGHTS_PER_ROW 8192 /* so that reading the weights takes no longer than multiplying by them */

/* ---- what the decoder is made of ---- */

/* Layers that read the same input: their base weights as one matrix, and where each one's adapter lies in a cell's
   parameters. */
typedef struct {
    Int num_layers, d_in, d_out; /* d_out of all layers together */
    Int widths[MOST_LAYERS];     /* d_out of each */
    Int start_A[MOST_LAYERS];    /* (rank, d_in) */
    Int start_B[MOST_LAYERS];    /* transposed, (rank, d_out) */
    const REAL *panels;          /* (d_in, d_out), as multiply_base takes it */
} Linear;

/* What all adapters of the pack share. */
typedef struct {
    Int cells, rank, num_parameters;
    const Int *ranks;  /* (cells,): true ranks; the rest is padding */
    const REAL *scale; /* (cells,) */
    REAL *parameters;  /* (cells, num_parameters) */
    REAL *gradient;    /* the same */
} Adapters;

/* A root-mean-square norm of each row, or of several vectors in a row that have weights of their own. */
typedef struct {
    Int vectors, d;
    double epsilon;
    const REAL *weight; /* (vectors, d) */
} Norm;

/* One decoder layer and its activations, a row per token. What is one step from others, the output of its norms and of
   its gate, is computed again on the way back. */
typedef struct {
    Linear qkv, o, gate_up, down;
    Norm norm1, norm2, norm_qk; /* norm_qk.weight is null where there is none */
    REAL *x, *inverse1, *low_qkv, *qkv_out, *raw_qk, *inverse_qk, *log_sum, *mixed, *low_o, *middle, *inverse2,
        *low_gate_up, *gate_up_out, *low_down;
} Layer;

typedef struct {
    Int num_layers, d, heads, kv_heads, d_head;
    Int longest; /* positions that a row can see at most */
    double scaling;
    const Layer *layers;
    const Adapters *adapters;
    Norm norm;
    const REAL *cosines, *sines;   /* (positions, d_head) */
    const Int *parent, *position;  /* of each row; parent is -1 at a prompt's first token */
    REAL *x, *final, *inverse;     /* after the last layer, before and after the norm */
    REAL *normed, *gated;          /* of the layer that is computed */
    REAL *grad, *grad_normed, *grad_mixed, *grad_gated, *grad_qkv, *grad_low;
} Decoder;

/* Some cells' rows of one chunk. */
typedef struct {
    Int first_cell, last_cell;
    const Int *bounds;
} Part;

/* Some of them. */
typedef struct {
    Int count;
    const Part *at;
} Parts;

ALWAYS Int first_row(Part part) { return part.bounds[part.first_cell]; }
ALWAYS Int count_rows(Part part) { return part.bounds[part.last_cell] - first_row(part); }

/* ---- linear layers ---- */

/* Adds scale B A x to out at a part's rows; low = scale A x, (rows, layers · rank), is kept for the way back. */
static void adapt(const Decoder *decoder, const Linear *linear, Part part, const REAL *x, REAL *low, REAL *out) {
    const Adapters *pack = decoder->adapters;
    const Int d_in = linear->d_in, d_out = linear->d_out, low_row = linear->num_layers * pack->rank;
    for (Int cell = part.first_cell; cell < part.last_cell; cell++) {
        const Int row = part.bounds[cell], rows = part.bounds[cell + 1] - row, rank = pack->ranks[cell];
        /* Without padding, the A's of all layers are one matrix. */
        const Int blocks = rank == pack->rank ? 1 : linear->num_layers, height = rank * linear->num_layers / blocks;
        const REAL *parameters = pack->parameters + cell * pack->num_parameters;
        REAL *cell_low = low + row * low_row, *cell_out = out + row * d_out;
        for (Int i = 0; i < blocks; i++)
            multiply_transposed(pack->scale[cell], rows, height, d_in, x + row * d_in, d_in,
                                parameters + linear->start_A[i], d_in, cell_low + i * pack->rank, low_row);
        for (Int i = 0; i < linear->num_layers; cell_out += linear->widths[i++])
            multiply(rows, linear->widths[i], rank, cell_low + i * pack->rank, low_row, 1,
                     parameters + linear->start_B[i], linear->widths[i], cell_out, d_out);
    }
}

/* out = base(x) + scale B A x; all parts go through the base weights together. */
static void project(const Decoder *decoder, const Linear *linear, Parts parts, const REAL *x, REAL *low, REAL *out) {
    Rows rows[parts.count];
    for (Int i = 0; i < parts.count; i++) rows[i] = (Rows){first_row(parts.at[i]), count_rows(parts.at[i])};
    multiply_base(rows, parts.count, linear->d_out, linear->d_in, x, linear->panels, out);
    for (Int i = 0; i < parts.count; i++) adapt(decoder, linear, parts.at[i], x, low, out);
}

/* grad_x = the base weights' part of the gradient of x, at the rows of some chunks. */
static void project_base_back(const Linear *linear, const Rows *rows, Int chunks, const REAL *grad_out, REAL *grad_x,
                              REAL *room) {
    multiply_base_transposed(rows, chunks, linear->d_in, linear->d_out, grad_out, linear->panels, grad_x, room);
}

/* Adds to the gradients of A and B; grad_x, unless it is null, has the base weights' part of the gradient of x, and
   gets the adapters'. */
static void project_back(const Decoder *decoder, const Linear *linear, Part part, const REAL *x, const REAL *low,
                         const REAL *grad_out, REAL *grad_low, REAL *grad_x) {
    const Adapters *pack = decoder->adapters;
    const Int d_in = linear->d_in, d_out = linear->d_out;
    const Int low_row = linear->num_layers * pack->rank;
    /* The same whichever the layers: threads that have come to different ones must not share a row's room. */
    const Int grad_row = MOST_LAYERS * pack->rank;
    for (Int cell = part.first_cell; cell < part.last_cell; cell++) {
        const Int row = part.bounds[cell], rows = part.bounds[cell + 1] - row, rank = pack->ranks[cell];
        const Int blocks = rank == pack->rank ? 1 : linear->num_layers, height = rank * linear->num_layers / blocks;
        const REAL *parameters = pack->parameters + cell * pack->num_parameters, *slope = grad_out + row * d_out;
        REAL *gradient = pack->gradient + cell * pack->num_parameters;
        for (Int i = 0; i < linear->num_layers; slope += linear->widths[i++]) {
            const Int width = linear->widths[i], at = i * pack->rank;
            multiply_transposed(pack->scale[cell], rows, rank, width, slope, d_out, parameters + linear->start_B[i],
                                width, grad_low + row * grad_row + at, grad_row);
            multiply(rank, width, rows, low + row * low_row + at, 1, low_row, slope, d_out,
                     gradient + linear->start_B[i], width);
        }
        for (Int i = 0; i < blocks; i++) {
            const REAL *left = grad_low + row * grad_row + i * pack->rank;
            multiply(height, d_in, rows, left, 1, grad_row, x + row * d_in, d_in, gradient + linear->start_A[i], d_in);
            if (grad_x)
                multiply(rows, d_in, height, left, grad_row, 1, parameters + linear->start_A[i], d_in,
                         grad_x + row * d_in, d_in);
        }
    }
}

/* ---- norms ---- */

/* Zhang and Sennrich, 2019, arXiv 1910.07467, equation 4: out = x · inverse · weight. Where residual is not null, it
   is added to x first. Rows of x and out are x_row and out_row wide. */
static void normalize(const Norm *norm, Part part, REAL *x, Int x_row, const REAL *residual, REAL *out, Int out_row,
                      REAL *inverse) {
    const Int d = norm->d;
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++)
        for (Int vector = 0; vector < norm->vectors; vector++) {
            REAL *from = x + row * x_row + vector * d, *to = out + row * out_row + vector * d;
            const REAL *weight = norm->weight + vector * d;
            if (residual) add_scaled(d, 1, residual + row * d, from);
            const REAL factor = 1 / (REAL)sqrt(dot(d, from, from) / d + norm->epsilon);
            for (Int i = 0; i < d; i++) to[i] = from[i] * factor * weight[i];
            inverse[row * norm->vectors + vector] = factor;
        }
}

/* The norms of queries and keys, in their place. */
static void normalize_qk(const Layer *layer, Part part, Int qkv_row) {
    const Int qk_row = layer->norm_qk.vectors * layer->norm_qk.d;
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++)
        memcpy(layer->raw_qk + row * qk_row, layer->qkv_out + row * qkv_row, qk_row * sizeof(REAL));
    normalize(&layer->norm_qk, part, layer->raw_qk, qk_row, NULL, layer->qkv_out, qkv_row, layer->inverse_qk);
}

/* The output of a norm of whole rows again. */
static void normalize_again(const Norm *norm, Part part, const REAL *x, const REAL *inverse, REAL *out) {
    const Int d = norm->d;
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++)
        for (Int i = 0; i < d; i++) out[row * d + i] = x[row * d + i] * inverse[row] * norm->weight[i];
}

/* The gradient of x is added to grad, or put in place of grad_out where that is the same array. */
static void normalize_back(const Norm *norm, Part part, const REAL *x, const REAL *inverse, const REAL *grad_out,
                           REAL *grad, Int grad_row) {
    const Int d = norm->d;
    const REAL keep = grad == grad_out ? 0 : 1;
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++)
        for (Int vector = 0; vector < norm->vectors; vector++) {
            const Int at = row * grad_row + vector * d;
            const REAL *from = x + (row * norm->vectors + vector) * d, *slope = grad_out + at;
            const REAL *weight = norm->weight + vector * d, factor = inverse[row * norm->vectors + vector];
            const REAL along = dot_weighted(d, slope, weight, from) * factor * factor / d;
            REAL *to = grad + at;
            for (Int i = 0; i < d; i++) to[i] = keep * to[i] + factor * (slope[i] * weight[i] - along * from[i]);
        }
}

/* ---- attention over a tree ---- */

/* Turns queries and keys by their row's position: Su et al., 2021, arXiv 2104.09864, equation 34. sign is 1, or -1 on
   the way back. */
static void rotate(const Decoder *decoder, Part part, REAL sign, REAL *qkv) {
    const Int d = decoder->d_head, half = d / 2, turned = decoder->heads + decoder->kv_heads;
    const Int width = (turned + decoder->kv_heads) * d;
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++) {
        const REAL *c = decoder->cosines + decoder->position[row] * d, *s = decoder->sines + decoder->position[row] * d;
        for (Int head = 0; head < turned; head++) {
            REAL *restrict low = qkv + row * width + head * d, *restrict high = low + half;
            for (Int i = 0; i < half; i++) {
                const REAL a = low[i], b = high[i];
                low[i] = a * c[i] - sign * b * s[i];
                high[i] = b * c[i + half] + sign * a * s[i + half];
            }
        }
    }
}

/* A row sees itself and its ancestors. Returns how many. */
ALWAYS Int list_visible(Int row, const Int *parent, Int *visible) {
    Int count = 0;
    for (; row >= 0; row = parent[row]) visible[count++] = row;
    return count;
}

ALWAYS REAL exponential_of_one(REAL x) { return sizeof(REAL) == 4 ? expf(x) : exp(x); }

/* mixed (rows, heads · d_head); the logarithm of each softmax's sum, (rows, heads), is kept for the way back. */
static void attend(const Decoder *decoder, Part part, const REAL *qkv, REAL *log_sum, REAL *mixed) {
    const Int d = decoder->d_head, heads = decoder->heads, kv_heads = decoder->kv_heads;
    const Int width = (heads + 2 * kv_heads) * d;
    const REAL scaling = (REAL)decoder->scaling;
    Int visible[decoder->longest];
    REAL weight[decoder->longest];
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++) {
        const Int count = list_visible(row, decoder->parent, visible);
        for (Int head = 0; head < heads; head++) {
            const Int key = (heads + head * kv_heads / heads) * d, value = key + kv_heads * d;
            const REAL *query = qkv + row * width + head * d;
            REAL *out = mixed + (row * heads + head) * d, largest = -INFINITY, total = 0;
            for (Int j = 0; j < count; j++) {
                weight[j] = scaling * dot(d, query, qkv + visible[j] * width + key);
                largest = weight[j] > largest ? weight[j] : largest;
            }
            for (Int j = 0; j < count; j++) total += weight[j] = exponential_of_one(weight[j] - largest);
            memset(out, 0, d * sizeof(REAL));
            for (Int j = 0; j < count; j++) add_scaled(d, weight[j] / total, qkv + visible[j] * width + value, out);
            log_sum[row * heads + head] = largest + (REAL)log(total);
        }
    }
}

/* Adds to grad_qkv of each row and of those that it sees. */
static void attend_back(const Decoder *decoder, Part part, const REAL *qkv, const REAL *log_sum, const REAL *grad_mixed,
                        REAL *grad_qkv) {
    const Int d = decoder->d_head, heads = decoder->heads, kv_heads = decoder->kv_heads;
    const Int width = (heads + 2 * kv_heads) * d;
    const REAL scaling = (REAL)decoder->scaling;
    Int visible[decoder->longest];
    REAL weight[decoder->longest], slope[decoder->longest];
    for (Int row = first_row(part); row < first_row(part) + count_rows(part); row++) {
        const Int count = list_visible(row, decoder->parent, visible);
        for (Int head = 0; head < heads; head++) {
            const Int at = row * heads + head, key = (heads + head * kv_heads / heads) * d, value = key + kv_heads * d;
            const REAL *query = qkv + row * width + head * d, *grad = grad_mixed + at * d;
            REAL *grad_query = grad_qkv + row * width + head * d, mean = 0;
            for (Int j = 0; j < count; j++) {
                const REAL score = scaling * dot(d, query, qkv + visible[j] * width + key);
                weight[j] = exponential_of_one(score - log_sum[at]);
                slope[j] = dot(d, grad, qkv + visible[j] * width + value);
                mean += weight[j] * slope[j];
            }
            for (Int j = 0; j < count; j++) {
                const REAL score = weight[j] * (slope[j] - mean) * scaling;
                const Int other = visible[j] * width;
                add_scaled(d, score, qkv + other + key, grad_query);
                add_scaled(d, score, query, grad_qkv + other + key);
                add_scaled(d, weight[j], grad, grad_qkv + other + value);
            }
        }
    }
}

/* ---- the gate of the MLP ---- */

typedef int32_t Whole __attribute__((vector_size(LANES * 4)));
typedef float Single __attribute__((vector_size(LANES * 4)));

/* value where the mask is all ones, else y */
ALWAYS Single limit(Single y, Whole mask, float value) {
    return (Single)((mask & (Whole)((Single){0} + value)) | (~mask & (Whole)y));
}

/* exp of every lane. For float: 2^n times a polynomial on [-ln2/2, ln2/2], relative error below 2e-7. */
ALWAYS Vector exponential(Vector x) {
    if (sizeof(REAL) == 8) {
        for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
        return x;
    }
    Single y = __builtin_convertvector(x, Single);
    y = limit(limit(y, y > 87.0f, 87.0f), y < -87.0f, -87.0f);
    /* Rounds by truncation: positive for certain once the exponent's bias, 127, is added. */
    const Whole biased = __builtin_convertvector(y * 1.44269504f + 127.5f, Whole);
    const Single whole = __builtin_convertvector(biased - 127, Single);
    const Single r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Single p = r * 1.9875691e-4f + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return __builtin_convertvector(p * (Single)(biased << 23), Vector);
}

/* gated = silu(gate) · up; gate and up are the halves of a row of 2 d. */
void gate(Int rows, Int d, const REAL *gate_up, REAL *gated) {
    for (Int row = 0; row < rows; row++) {
        const REAL *g = gate_up + 2 * row * d, *up = g + d;
        REAL *out = gated + row * d;
        Int i = 0;
        for (; i + LANES <= d; i += LANES) store(out + i, load(g + i) / (1 + exponential(-load(g + i))) * load(up + i));
        for (; i < d; i++) out[i] = g[i] / (1 + (REAL)exp(-g[i])) * up[i];
    }
}

/* Puts the gradient of gate and up in their place. */
void gate_backward(Int rows, Int d, const REAL *grad_gated, REAL *gate_up) {
    for (Int row = 0; row < rows; row++) {
        REAL *g = gate_up + 2 * row * d, *up = g + d;
        const REAL *slope = grad_gated + row * d;
        Int i = 0;
        for (; i + LANES <= d; i += LANES) {
            const Vector x = load(g + i), sigmoid = 1 / (1 + exponential(-x)), silu = x * sigmoid;
            const Vector grad = load(slope + i);
            store(g + i, grad * load(up + i) * (sigmoid + silu * (1 - sigmoid)));
            store(up + i, grad * silu);
        }
        for (; i < d; i++) {
            const REAL sigmoid = 1 / (1 + (REAL)exp(-g[i])), silu = g[i] * sigmoid;
            g[i] = slope[i] * up[i] * (sigmoid + silu * (1 - sigmoid));
            up[i] = slope[i] * silu;
        }
    }
}

/* ---- the passes ---- */

/* x + residual through one layer: out is the output of its MLP, whose own residual is layer->middle. The first `unread`
   parts stop at their keys and values. */
static void forward_layer(const Decoder *decoder, const Layer *layer, Parts parts, Int unread, const REAL *residual,
                          REAL *out) {
    const Int d = decoder->d, qkv_row = layer->qkv.d_out, d_gated = layer->down.d_in;
    REAL *normed = decoder->normed;
    for (Int i = 0; i < parts.count; i++)
        normalize(&layer->norm1, parts.at[i], layer->x, d, residual, normed, d, layer->inverse1);
    project(decoder, &layer->qkv, parts, normed, layer->low_qkv, layer->qkv_out);
    for (Int i = 0; i < parts.count; i++) {
        if (layer->norm_qk.weight) normalize_qk(layer, parts.at[i], qkv_row);
        rotate(decoder, parts.at[i], 1, layer->qkv_out);
    }
    parts = (Parts){parts.count - unread, parts.at + unread};
    if (!parts.count) return;
    for (Int i = 0; i < parts.count; i++) attend(decoder, parts.at[i], layer->qkv_out, layer->log_sum, layer->mixed);
    project(decoder, &layer->o, parts, layer->mixed, layer->low_o, layer->middle);
    for (Int i = 0; i < parts.count; i++)
        normalize(&layer->norm2, parts.at[i], layer->middle, d, layer->x, normed, d, layer->inverse2);
    project(decoder, &layer->gate_up, parts, normed, layer->low_gate_up, layer->gate_up_out);
    for (Int i = 0; i < parts.count; i++) {
        const Int start = first_row(parts.at[i]), rows = count_rows(parts.at[i]);
        gate(rows, d_gated, layer->gate_up_out + start * 2 * d_gated, decoder->gated + start * d_gated);
    }
    project(decoder, &layer->down, parts, decoder->gated, layer->low_down, out);
}

static Int count_weights(const Linear *linear) { return linear->d_in * linear->d_out; }

/* How many of some cells go through the layers together, of at least so many rows; all cells have `rows`. */
static Int size_block(const Decoder *decoder, Int least, Int some, Int rows) {
    const Layer *layer = decoder->layers;
    const Int cells = decoder->adapters->cells, weights = count_weights(&layer->qkv) + count_weights(&layer->o) +
                                                          count_weights(&layer->gate_up) + count_weights(&layer->down);
    const Int wanted = weights / WEIGHTS_PER_ROW > least ? weights / WEIGHTS_PER_ROW : least;
    Int size = wanted * cells / (rows ? rows : 1);
#ifdef _OPENMP
    const Int share = (some + omp_get_max_threads() - 1) / omp_get_max_threads();
    size = size < share ? size : share;
#endif
    return size < 1 ? 1 : size > some ? some : size;
}

/* Room for a panel of any of a layer's weights. */
static REAL *make_room(const Decoder *decoder) {
    const Layer *layer = decoder->layers;
    const Int widths[] = {layer->qkv.d_out, layer->o.d_out, layer->gate_up.d_out, layer->down.d_out};
    Int widest = 0;
    for (int i = 0; i < 4; i++) widest = widths[i] > widest ? widths[i] : widest;
    return calloc(widest * PANEL, sizeof(REAL));
}

/* Feeds the rows of some chunks, whose x of the first layer is set. The first `unread` chunks stop at the last layer's
   keys and values; of the others, final is set. bounds is (chunks, cells + 1). */
void forward(const Decoder *decoder, Int chunks, Int unread, const Int *bounds) {
    const Int cells = decoder->adapters->cells, last = decoder->num_layers - 1;
    const Int block = size_block(decoder, LEAST_ROWS, cells, bounds[(chunks - 1) * (cells + 1) + cells] - bounds[0]);
#pragma omp parallel for schedule(dynamic)
    for (Int cell = 0; cell < cells; cell += block) {
        Part parts[chunks];
        for (Int chunk = 0; chunk < chunks; chunk++)
            parts[chunk] = (Part){cell, cell + block < cells ? cell + block : cells, bounds + chunk * (cells + 1)};
        const REAL *residual = NULL;
        for (Int l = 0; l <= last; l++) {
            const Layer *layer = decoder->layers + l;
            forward_layer(decoder, layer, (Parts){chunks, parts}, l < last ? 0 : unread, residual,
                          l < last ? layer[1].x : decoder->x);
            residual = layer->middle;
        }
        for (Int chunk = unread; chunk < chunks; chunk++)
            normalize(&decoder->norm, parts[chunk], decoder->x, decoder->d, residual, decoder->final, decoder->d,
                      decoder->inverse);
    }
}

/* The rows in some chunks, chunk by chunk, of cells that go back together: runs of neighbors, which are parts of the
   first chunk. */
static void list_rows(Parts runs, Int cells, Int first_chunk, Int chunks, Part *parts, Rows *rows) {
    for (Int i = 0; i < (chunks - first_chunk) * runs.count; i++) {
        parts[i] = runs.at[i % runs.count];
        parts[i].bounds += (first_chunk + i / runs.count) * (cells + 1);
        rows[i] = (Rows){first_row(parts[i]), count_rows(parts[i])};
    }
}

/* Turns grad from the gradient of a layer's output into that of its input, over some cells' rows of all chunks; at
   chunks that nobody reads it comes in as zero. All of it goes through a layer's base weights together. */
static void backward_layer(const Decoder *decoder, const Layer *layer, Int chunks, Int unread, Parts runs, int is_first,
                           REAL *room) {
    const Int d = decoder->d, d_gated = layer->down.d_in, qkv_row = layer->qkv.d_out;
    const Int all = chunks * runs.count, read = all - unread * runs.count;
    REAL *grad = decoder->grad, *normed = decoder->grad_normed, *low = decoder->grad_low, *grad_qkv = decoder->grad_qkv;
    Part parts[all];
    Rows rows[all];
    list_rows(runs, decoder->adapters->cells, unread, chunks, parts, rows);
    project_base_back(&layer->down, rows, read, grad, decoder->grad_gated, room);
    for (Int i = 0; i < read; i++) {
        REAL *gate_up = layer->gate_up_out + rows[i].start * 2 * d_gated, *grad_gated = decoder->grad_gated;
        gate(rows[i].count, d_gated, gate_up, decoder->gated + rows[i].start * d_gated);
        project_back(decoder, &layer->down, parts[i], decoder->gated, layer->low_down, grad, low, grad_gated);
        gate_backward(rows[i].count, d_gated, grad_gated + rows[i].start * d_gated, gate_up);
    }
    project_base_back(&layer->gate_up, rows, read, layer->gate_up_out, normed, room);
    for (Int i = 0; i < read; i++) {
        normalize_again(&layer->norm2, parts[i], layer->middle, layer->inverse2, decoder->normed);
        project_back(decoder, &layer->gate_up, parts[i], decoder->normed, layer->low_gate_up, layer->gate_up_out, low,
                     normed);
        normalize_back(&layer->norm2, parts[i], layer->middle, layer->inverse2, normed, grad, d);
    }
    project_base_back(&layer->o, rows, read, grad, decoder->grad_mixed, room);
    for (Int i = 0; i < read; i++)
        project_back(decoder, &layer->o, parts[i], layer->mixed, layer->low_o, grad, low, decoder->grad_mixed);

    list_rows(runs, decoder->adapters->cells, 0, chunks, parts, rows);
    for (Int i = 0; i < all; i++) memset(grad_qkv + rows[i].start * qkv_row, 0, rows[i].count * qkv_row * sizeof(REAL));
    /* The last chunk first: a row's keys and values get their gradient from all that follow it. */
    for (Int i = all - 1; i >= all - read; i--)
        attend_back(decoder, parts[i], layer->qkv_out, layer->log_sum, decoder->grad_mixed, grad_qkv);
    for (Int i = 0; i < all; i++) {
        rotate(decoder, parts[i], -1, grad_qkv);
        if (layer->norm_qk.weight)
            normalize_back(&layer->norm_qk, parts[i], layer->raw_qk, layer->inverse_qk, grad_qkv, grad_qkv, qkv_row);
    }
    if (!is_first) project_base_back(&layer->qkv, rows, all, grad_qkv, normed, room);
    for (Int i = all - 1; i >= 0; i--) {
        normalize_again(&layer->norm1, parts[i], layer->x, layer->inverse1, decoder->normed);
        project_back(decoder, &layer->qkv, parts[i], decoder->normed, layer->low_qkv, grad_qkv, low,
                     is_first ? NULL : normed);
        if (!is_first) normalize_back(&layer->norm1, parts[i], layer->x, layer->inverse1, normed, grad, d);
    }
}

/* The backward pass of some cells. */
static void backward_cells(const Decoder *decoder, Int chunks, Int unread, Parts runs, REAL *room) {
    const Int last = decoder->num_layers - 1, read = (chunks - unread) * runs.count;
    Part parts[read];
    Rows rows[read];
    list_rows(runs, decoder->adapters->cells, unread, chunks, parts, rows);
    for (Int i = 0; i < read; i++)
        normalize_back(&decoder->norm, parts[i], decoder->x, decoder->inverse, decoder->grad, decoder->grad, decoder->d);
    for (Int l = last; l >= 0; l--)
        backward_layer(decoder, decoder->layers + l, chunks, l == last ? unread : 0, runs, l == 0, room);
}

/* Whether the gradient is zero at all of a cell's rows: where its episodes were all rewarded alike, no advantage is
   left. */
static int is_zero(const Decoder *decoder, Int chunks, Int unread, const Int *bounds, Int cell) {
    const Int cells = decoder->adapters->cells, d = decoder->d;
    for (const Int *place = bounds + unread * (cells + 1) + cell; unread < chunks; unread++, place += cells + 1)
        for (Int i = place[0] * d; i < place[1] * d; i++)
            if (decoder->grad[i] != 0) return 0;
    return 1;
}

/* Adds to the adapters' gradient, from grad, the gradient of `final`; grad is zero at the `unread` chunks. Cells where
   it is zero everywhere are left out, as their adapters' gradient is zero too. */
void backward(const Decoder *decoder, Int chunks, Int unread, const Int *bounds) {
    const Int cells = decoder->adapters->cells;
    Int *left = malloc(cells * sizeof(Int)), count = 0;
    for (Int cell = 0; cell < cells; cell++)
        if (!is_zero(decoder, chunks, unread, bounds, cell)) left[count++] = cell;
    /* Weights are transposed on the way back, which more rows share. */
    const Int block = size_block(decoder, 2 * LEAST_ROWS, count, bounds[(chunks - 1) * (cells + 1) + cells]);
#pragma omp parallel for schedule(dynamic)
    for (Int start = 0; start < count; start += block) {
        const Int end = start + block < count ? start + block : count;
        Part parts[block];
        Int runs = 0;
        for (Int i = start; i < end; i++)
            if (runs && parts[runs - 1].last_cell == left[i])
                parts[runs - 1].last_cell++;
            else
                parts[runs++] = (Part){left[i], left[i] + 1, bounds};
        REAL *room = make_room(decoder);
        backward_cells(decoder, chunks, unread, (Parts){runs, parts}, room);
        free(room);
    }
    free(left);
}

/* ---- Adam ---- */

/* Adam's update of every cell, Kingma and Ba, 2015, arXiv 1412.6980, algorithm 1; clears the gradient.
   columns is (cells, 5): 1 - beta1, beta2, 1 - beta2, epsilon and minus the step size, corrected for bias. */
void update_adam(Int cells, Int num_parameters, const REAL *columns, REAL *parameters, REAL *gradient, REAL *moment1,
                 REAL *moment2) {
#pragma omp parallel for schedule(static)
    for (Int cell = 0; cell < cells; cell++) {
        const REAL decay1 = columns[5 * cell], keep2 = columns[5 * cell + 1], decay2 = columns[5 * cell + 2];
        const REAL epsilon = columns[5 * cell + 3], step = columns[5 * cell + 4];
        REAL *restrict p = parameters + cell * num_parameters, *restrict g = gradient + cell * num_parameters;
        REAL *restrict m = moment1 + cell * num_parameters, *restrict v = moment2 + cell * num_parameters;
        for (Int i = 0; i < num_parameters; i++) {
            const REAL slope = g[i];
            m[i] += decay1 * (slope - m[i]);
            v[i] = keep2 * v[i] + decay2 * slope * slope;
            p[i] += step * m[i] / ((REAL)sqrt(v[i]) + epsilon);
            g[i] = 0;
        }
    }
}
