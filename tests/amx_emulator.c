/* AMX's bfloat16 tiles on a processor without them: a handler of SIGILL that does what the illegal instruction would.

   It knows ldtilecfg, tilerelease, tilezero, tileloadd, tileloaddt1, tilestored and tdpbf16ps, as compilers encode them
   (VEX of three bytes), and is strict: where the processor would raise an exception, the process dies of SIGILL.

   Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, the pages of these instructions. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} Configuration;

/* Every thread has tiles of its own. */
static __thread Configuration configuration;
static __thread uint8_t tiles[8][16][64];
static struct sigaction before;
static int64_t num_products;

enum { NONE, P66, PF3, PF2 }; /* what stands for a prefix in VEX */

/* One instruction, decoded. */
typedef struct {
    int prefix, opcode, is_memory, has_sib, reg, rm, vvvv;
    uint8_t *start; /* of the operand in memory, without the index */
    int64_t stride; /* the scaled index */
    int length;     /* bytes */
} Instruction;

static int64_t read_register(const ucontext_t *context, int number) {
    static const int places[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[places[number]];
}

static int64_t read_displacement(const uint8_t *code, int bytes) {
    int32_t wide = 0;
    if (bytes == 1) return (int8_t)*code;
    memcpy(&wide, code, bytes);
    return wide;
}

/* The operand in memory, whose ModRM byte is code[4]; x and b extend the numbers of index and base. */
static void decode_address(const ucontext_t *context, const uint8_t *code, int x, int b, Instruction *out) {
    const int mod = code[4] >> 6;
    int base = (code[4] & 7) | b << 3, at = 5, bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
    int64_t start = 0;
    out->has_sib = (code[4] & 7) == 4;
    out->stride = 0;
    if (out->has_sib) {
        const int sib = code[at++], index = (sib >> 3 & 7) | x << 3;
        base = (sib & 7) | b << 3;
        if (index != 4) out->stride = read_register(context, index) * (1 << (sib >> 6));
    }
    const int is_without_base = mod == 0 && (base & 7) == 5;
    if (is_without_base) bytes = 4;
    const int64_t displacement = read_displacement(code + at, bytes);
    out->length = at + bytes;
    if (!is_without_base)
        start = read_register(context, base);
    else if (!out->has_sib)
        start = (int64_t)(code + out->length); /* relative to the next instruction */
    out->start = (uint8_t *)(start + displacement);
}

/* Whether it is a VEX instruction of the map that AMX is in, 0F38, with W and L of 0. */
static int decode(const ucontext_t *context, Instruction *out) {
    const uint8_t *code = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || code[2] & 0x84) return 0;
    const int r = !(code[1] & 0x80), x = !(code[1] & 0x40), b = !(code[1] & 0x20);
    out->prefix = code[2] & 3;
    out->vvvv = ~code[2] >> 3 & 15;
    out->opcode = code[3];
    out->reg = (code[4] >> 3 & 7) | r << 3;
    out->rm = (code[4] & 7) | b << 3;
    out->is_memory = code[4] >> 6 != 3;
    out->length = 5;
    if (out->is_memory) decode_address(context, code, x, b, out);
    return 1;
}

static int load_configuration(const uint8_t *from) {
    Configuration read;
    memcpy(&read, from, sizeof read);
    for (int i = 0; i < 14; i++)
        if (read.reserved[i]) return 0;
    for (int tile = 0; tile < 16; tile++) {
        const int rows = read.rows[tile], bytes = read.row_bytes[tile];
        if (rows > 16 || bytes > 64 || !rows != !bytes || (tile >= 8 && rows)) return 0;
    }
    if (read.palette != 1 || read.start_row) return 0;
    configuration = read;
    memset(tiles, 0, sizeof tiles);
    return 1;
}

static int is_configured(int tile) { return configuration.palette && tile < 8 && configuration.rows[tile]; }

static void load_tile(int tile, const uint8_t *start, int64_t stride) {
    memset(tiles[tile], 0, sizeof tiles[tile]);
    for (int row = 0; row < configuration.rows[tile]; row++)
        memcpy(tiles[tile][row], start + row * stride, configuration.row_bytes[tile]);
}

static void store_tile(int tile, uint8_t *start, int64_t stride) {
    for (int row = 0; row < configuration.rows[tile]; row++)
        memcpy(start + row * stride, tiles[tile][row], configuration.row_bytes[tile]);
}

static float widen(const uint8_t *bfloat16) {
    uint8_t bytes[4] = {0, 0, bfloat16[0], bfloat16[1]};
    float wide;
    memcpy(&wide, bytes, sizeof wide);
    return wide;
}

static int multiply(int sum, int left, int right) {
    const Configuration *c = &configuration;
    if (!is_configured(sum) || !is_configured(left) || !is_configured(right)) return 0;
    if (sum == left || sum == right || left == right) return 0;
    const int rows = c->rows[sum], pairs = c->row_bytes[left] / 4, columns = c->row_bytes[sum] / 4;
    if (c->row_bytes[sum] % 4 || c->row_bytes[left] % 4 || c->row_bytes[right] != c->row_bytes[sum]) return 0;
    if (c->rows[left] != rows || c->rows[right] != pairs) return 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float even = 0, odd = 0, total;
            for (int p = 0; p < pairs; p++) {
                const uint8_t *a = tiles[left][i] + 4 * p, *b = tiles[right][p] + 4 * j;
                even = fmaf(widen(a), widen(b), even);
                odd = fmaf(widen(a + 2), widen(b + 2), odd);
            }
            memcpy(&total, tiles[sum][i] + 4 * j, sizeof total);
            total += even + odd;
            memcpy(tiles[sum][i] + 4 * j, &total, sizeof total);
        }
    __atomic_add_fetch(&num_products, 1, __ATOMIC_RELAXED);
    return 1;
}

static int execute(const Instruction *it) {
    const int kind = it->opcode << 2 | it->prefix;
    if (kind == (0x5C << 2 | PF3)) return !it->is_memory && multiply(it->reg, it->rm, it->vvvv);
    if (it->vvvv) return 0;
    switch (kind) {
    case 0x49 << 2 | NONE:
        if (it->reg) return 0;
        if (it->is_memory) return load_configuration(it->start);
        if (it->rm) return 0;
        memset(&configuration, 0, sizeof configuration);
        memset(tiles, 0, sizeof tiles);
        return 1;
    case 0x49 << 2 | PF2:
        if (it->is_memory || it->rm || !is_configured(it->reg)) return 0;
        memset(tiles[it->reg], 0, sizeof tiles[it->reg]);
        return 1;
    case 0x4B << 2 | PF2:
    case 0x4B << 2 | P66:
    case 0x4B << 2 | PF3:
        if (!it->is_memory || !it->has_sib || !is_configured(it->reg)) return 0;
        if (it->prefix == PF3)
            store_tile(it->reg, it->start, it->stride);
        else
            load_tile(it->reg, it->start, it->stride);
        return 1;
    }
    return 0;
}

static void handle(int signal, siginfo_t *info, void *at) {
    (void)signal, (void)info;
    ucontext_t *context = at;
    Instruction instruction = {0};
    /* The unit of tiles takes denormal numbers for zero, and does not ask MXCSR, which the return restores. */
    _mm_setcsr(0x1F80 | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    if (decode(context, &instruction) && execute(&instruction))
        context->uc_mcontext.gregs[REG_RIP] += instruction.length;
    else
        sigaction(SIGILL, &before, NULL); /* what was there before meets the instruction next */
}

/* Emulates from now on, in all threads. Returns 0, or -1. */
int begin_emulation(void) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    return sigaction(SIGILL, &action, &before);
}

int end_emulation(void) { return sigaction(SIGILL, &before, NULL); }

/* Products of tiles so far. */
int64_t count_products(void) { return __atomic_load_n(&num_products, __ATOMIC_RELAXED); }
