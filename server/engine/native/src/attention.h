// Attention over an adapter's prefix and a sequence's own tokens. A prefix is a segment of blocks of its own, read once for all
// queries that share it; but the one or two blocks of a short prefix stand in front of the sequence's own, in one segment with a
// gap where the prefix ends. Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) in float32.
//
// Keys are taken in groups of 128, counted from the start of each segment, with what stands in front in the first of them. A
// query's arithmetic depends on its own keys alone: a key that it does not see adds exact zeros, and which queries share a work
// item changes no order. So a query's result is bitwise the same alone, in any batch, and however its prompt was cut into steps.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "kv.h"
#include "simd.h"
#include "tiles.h"

namespace waybill {

constexpr int kGroup = 128;        // keys between two updates of a softmax
constexpr int kFront = 64;         // tokens of the longest prefix whose blocks stand in front of the sequence's own
constexpr int kWidth = kGroup + kFront;   // keys that a group holds at most: the first one takes in what stands in front
constexpr int kMaxHeadDim = 256;
constexpr int kItemTokens = 16;    // tokens of a work item: times the query heads of one KV head, its rows
constexpr int kLong = 128;         // tokens from which a prefix is long: better read seldom than cut fairly
#if defined(WAYBILL_HALVES)
constexpr int kRows = 20;          // of these meet a group at once, so that all of it stays in the first-level cache
#elif defined(__AVX512F__) && !defined(__AMX_BF16__)
constexpr int kRows = 48;          // as many as an item of three query heads has: a group comes from the second-level cache once
#else
constexpr int kRows = 16;          // a tile's
#endif
constexpr float kNever = -std::numeric_limits<float>::infinity();

struct LayerAttention {
  int32_t heads = 1;               // query heads
  float scaling = 1.f;
  int32_t window = 0;              // tokens; 0: every key before the query
  float softcap = 0.f;             // 0: none
  const float* sinks = nullptr;    // [heads], logits that take part in the softmax and add nothing
};

// One sequence's part of a step; see Row in base.py.
struct PlanRow {
  int32_t offset, count, start, prefix_len;
  const int32_t *blocks, *prefix_blocks;
};

class AttentionPlan {
 public:
  AttentionPlan(int kv_heads, int threads) : kv_heads_(kv_heads), threads_(threads) {}

  // Describes a step. The tables must outlive it.
  void build(const PlanRow* rows, int count) {
    rows_.assign(rows, rows + count);
    row_of_.clear();
    positions_.clear();
    runs_.clear();
    items_.clear();
    int tokens = 0;
    for (int r = 0; r < count; r++) tokens = std::max(tokens, rows_[r].offset + rows_[r].count);
    row_of_.resize(tokens);
    positions_.resize(tokens);
    for (int r = 0; r < count; r++)
      for (int i = 0; i < rows_[r].count; i++) {
        row_of_[rows_[r].offset + i] = r;
        positions_[rows_[r].offset + i] = rows_[r].prefix_len + rows_[r].start + i;
      }
    cut(tokens);
  }

  int tokens() const { return static_cast<int>(row_of_.size()); }
  int items() const { return static_cast<int>(items_.size()); }
  int position(int token) const { return positions_[token]; }

  // Consecutive tokens of one row, of which a work item computes all query heads of one KV head.
  struct Run { int row, first, count; };
  struct Item { int kv_head, run0, runs, tokens; double cost; };

  const PlanRow& row(int index) const { return rows_[index]; }
  const PlanRow& row_of(int token) const { return rows_[row_of_[token]]; }
  const Run& run(int index) const { return runs_[index]; }
  const Item& item(int index) const { return items_[index]; }

 private:
  void cut(int tokens) {
    std::vector<int> order(rows_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rows_[a].prefix_blocks < rows_[b].prefix_blocks; });
    // Enough items for threads to finish together, and about the same number for each of them.
    int parts = std::max((tokens + kItemTokens - 1) / kItemTokens, (4 * threads_ + kv_heads_ - 1) / kv_heads_);
    while (parts * kv_heads_ % threads_ != 0) parts++;
    const int fair = std::max(1, (tokens + parts - 1) / parts);
    struct Chunk { int run0, runs, tokens; double cost; };
    std::vector<Chunk> chunks;
    // A long prefix is cut as little as leaves work for every thread: each item reads it.
    const int heads_apart = (threads_ + kv_heads_ - 1) / kv_heads_;
    const auto whole = [&](size_t first) {
      const int32_t* prefix = rows_[order[first]].prefix_blocks;
      int sharing = 0;
      for (size_t i = first; i < order.size() && rows_[order[i]].prefix_blocks == prefix; i++) sharing += rows_[order[i]].count;
      return std::min((sharing + heads_apart - 1) / heads_apart, kItemTokens);
    };
    const PlanRow* last = nullptr;
    int most = fair;
    for (size_t index = 0; index < order.size(); index++) {
      const int r = order[index];
      const PlanRow& row = rows_[r];
      if (last == nullptr || row.prefix_blocks != last->prefix_blocks) most = row.prefix_len >= kLong ? whole(index) : fair;
      const bool apart = last != nullptr && row.prefix_blocks != last->prefix_blocks &&
                         std::max(row.prefix_len, last->prefix_len) >= kLong;
      for (int at = 0; at < row.count;) {
        if (chunks.empty() || chunks.back().tokens >= most || (apart && at == 0))
          chunks.push_back({static_cast<int>(runs_.size()), 0, 0, 0.0});
        Chunk& chunk = chunks.back();
        const int n = std::min(most - chunk.tokens, row.count - at);
        runs_.push_back({r, at, n});
        chunk.runs++;
        chunk.tokens += n;
        chunk.cost += n * (row.prefix_len + 1.0) + (n + 1.0) * (row.start + at + n + 32.0);
        at += n;
      }
      last = &row;
    }
    // Threads take items in turn: whoever took a head of a long prefix finds it in its own cache for the next queries.
    for (size_t from = 0, to; from < chunks.size(); from = to) {
      const PlanRow& row = rows_[runs_[chunks[from].run0].row];
      double cost = chunks[from].cost;
      for (to = from + 1; to < chunks.size() && row.prefix_len >= kLong; to++) {
        if (rows_[runs_[chunks[to].run0].row].prefix_blocks != row.prefix_blocks) break;
        cost = std::max(cost, chunks[to].cost);
      }
      for (int h0 = 0; h0 < kv_heads_; h0 += threads_)
        for (size_t c = from; c < to; c++)
          for (int h = h0; h < std::min(kv_heads_, h0 + threads_); h++)
            items_.push_back({h, chunks[c].run0, chunks[c].runs, chunks[c].tokens, cost});
    }
    std::stable_sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  }

  int kv_heads_, threads_;
  std::vector<PlanRow> rows_;
  std::vector<int> row_of_, positions_;
  std::vector<Run> runs_;
  std::vector<Item> items_;
};

// Writes one token's keys and values, [kv_heads][head_dim] each, to its place in the sequence's own segment.
template <class T>
void write_kv(const AttentionPlan& plan, const KVMemory& memory, int layer, int token, const T* k, const T* v) {
  const PlanRow& row = plan.row_of(token);
  const int own = row.start + token - row.offset, block = row.blocks[own / kBlock], slot = own % kBlock;
  const int d = memory.head_dim, padded = memory.padded;
  for (int h = 0; h < memory.kv_heads; h++, k += d, v += d) {
    T* keys = memory.keys<T>(layer, block, h) + key_place<T>(padded, slot, 0);
    T* values = memory.values<T>(layer, block, h) + value_place<T>(padded, slot, 0);
    if constexpr (sizeof(T) == 2) {
      for (int j = 0; j + 1 < d; j += 2) std::memcpy(keys + j * kTile, k + j, 2 * sizeof(T));
      if (d % 2) keys[(d - 1) * kTile] = k[d - 1];
      for (int j = 0; j < d; j++) values[2 * j] = v[j];
    } else {
      for (int j = 0; j < d; j++) keys[j * kTile] = k[j];
      std::memcpy(values, v, d * sizeof(T));
    }
  }
}

// ------------------------------------------------------------------------------------------------------ small products
// Keys and values come from memory, one block after another at addresses that a processor does not foresee, so what is met next
// is fetched. Of few rows, the first turn fetches the next block's keys while it meets keys, and its values while it meets values. Of
// many, each turn that meets a block's keys fetches its share of both: of the block that is met next, or of one a group ahead where
// these rows are one part of several.
constexpr int kFewRows = 12;
template <class T> constexpr size_t kLine = 64 / sizeof(T);

// A block's keys, a tile a part.
template <class T>
Ahead<T> keys_of(const T* block, int padded) { return {block, static_cast<size_t>(padded) * kTile, kLine<T>}; }

// The share of turn `turn` of `turns` in a block, its keys one part and its values the other.
template <class T>
Ahead<T> share_of(const T* block, int padded, int turn, int turns) {
  const size_t part = static_cast<size_t>(padded) * kBlock;
  return {block + part * turn / turns, part, (2 * kLine<T> + turns - 1) / turns};
}

template <bool kFetch, class T>
inline void fetch(const T* p) { if constexpr (kFetch) __builtin_prefetch(p, 0, 2); }

#if defined(WAYBILL_WIDENS)
constexpr bool kKeepsWide = true;    // a block's floats are kept for the next rows
#else
constexpr bool kKeepsWide = false;
#endif

// Lines of 32 elements of bf16, sixteen pairs, as two vectors of floats. `Widening` also keeps the floats, and `Wide` reads them
// again: for rows that meet the same block later, without an instruction for each line.
struct Narrow {
  const bf16* lines;
  f32x16 first(size_t i) const { return load_of_pairs<0>(lines + i); }
  f32x16 second(size_t i) const { return load_of_pairs<1>(lines + i); }
};

struct Widening {
  const bf16* lines;
  float* wide;
  f32x16 first(size_t i) const { return keep(wide + i, load_of_pairs<0>(lines + i)); }
  f32x16 second(size_t i) const { return keep(wide + i + 16, load_of_pairs<1>(lines + i)); }
  static f32x16 keep(float* at, f32x16 v) { store(at, v); return v; }
};

struct Wide {
  const float* wide;
  f32x16 first(size_t i) const { return load(wide + i); }
  f32x16 second(size_t i) const { return load(wide + i + 16); }
};

// Where dimension d of query r lies: a query in a row in bf16, whose pairs of dimensions are multiplied; of floats all queries'
// first dimensions come first, and one pointer leads to those that are multiplied next.
template <class T>
size_t place_of_query(int r, int d, int stride) {
  if constexpr (sizeof(Factor<T>) == 2) return static_cast<size_t>(r) * stride + d;
  else return static_cast<size_t>(d) * stride + r;
}

// Scores of R queries [R][padded] against a block of 32 keys, P tiles at a time, for `out(first tile, scores [R][P])`.
#if defined(__AVX512BF16__)
template <int R, int P, class Out>
inline void scores_of(const bf16* q, int, const bf16* keys, const Ahead<bf16>& ahead, int padded, Out&& out) {
  static_assert(P == 2);
  f32x16 sum[R][P];
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = f32x16{};
  const size_t tile = static_cast<size_t>(padded) * kTile;
  for (int p = 0; p < padded / 2; p++) {
    __m512bh key[P];
    for (int t = 0; t < P; t++) {
      key[t] = (__m512bh)_mm512_loadu_si512(keys + t * tile + static_cast<size_t>(p) * 2 * kTile);
      ahead.fetch(t, p);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      int32_t pair;
      std::memcpy(&pair, q + static_cast<size_t>(r) * padded + 2 * p, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
      for (int t = 0; t < P; t++) sum[r][t] = (f32x16)_mm512_dpbf16_ps((__m512)sum[r][t], key[t], both);
    }
  }
  out(0, sum);
}
#else
template <int R, int P, class Source, class Out>
inline void scores_of(const float* queries, int stride, const Source& keys, const Ahead<bf16>& ahead, int padded, Out&& out) {
  const size_t tile = static_cast<size_t>(padded) * kTile;
  for (int t = 0; t < 2; t += P) {
    const float* q = queries;
    f32x16 sum[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) sum[r][p] = f32x16{};
    for (int d = 0; d < padded; d += 2) {
      const size_t line = t * tile + static_cast<size_t>(d) * kTile;
      f32x16 key[P];
      for (int p = 0; p < P; p++) {
        key[p] = keys.first(line + p * tile);
        ahead.fetch(t + p, d / 2);
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const f32x16 x = broadcast(q[r]);
        for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * key[p];
      }
      q += stride;
      forget_memory();
      for (int p = 0; p < P; p++) key[p] = keys.second(line + p * tile);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const f32x16 x = broadcast(q[r]);
        for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * key[p];
      }
      q += stride;
    }
    out(t, sum);
  }
}
#endif

// Sums 32 products at a time before it adds them up, as linear layers do.
template <int R, int P, class Out>
inline void scores_of(const float* queries, int stride, const float* keys, const Ahead<float>& ahead, int padded, Out&& out) {
  const size_t tile = static_cast<size_t>(padded) * kTile;
  for (int t = 0; t < 2; t += P, keys += P * tile) {
    const float* q = queries;
    f32x16 total[R][P];
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) total[r][p] = f32x16{};
    for (int part = 0; part < padded; part += 32) {
      f32x16 sum[R][P];
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) sum[r][p] = f32x16{};
      for (int d = part; d < part + 32; d++) {
        f32x16 key[P];
        for (int p = 0; p < P; p++) {
          key[p] = load(keys + p * tile + static_cast<size_t>(d) * kTile);
          ahead.fetch(t + p, d);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const f32x16 x = broadcast(q[r]);
          for (int p = 0; p < P; p++) sum[r][p] = sum[r][p] + x * key[p];
        }
        q += stride;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) total[r][p] = total[r][p] + sum[r][p];
    }
    out(t, total);
  }
}

// Blocks of values that rows meet while their results stay in registers. Fewer for floats, which take twice the room in the
// first-level cache; one where the compiler runs out of registers, and where a block is kept as floats, for which there is one
// place.
#if defined(__AVX512BF16__)
template <class T> constexpr int kValueBlocks = 8 / sizeof(T);
constexpr bool kFetchValues = true;    // the first rows of several turns fetch what follows
#elif defined(__AVX512F__)
template <class T> constexpr int kValueBlocks = sizeof(T) == 4 ? 2 : 1;
constexpr bool kFetchValues = false;
#else
template <class T> constexpr int kValueBlocks = 1;
constexpr bool kFetchValues = false;
#endif
static_assert(!kKeepsWide || kValueBlocks<bf16> == 1);

// Adds the weighted values of blocks [from, to), at most kValueBlocks, to R rows of results [R][padded], in N vectors of dimensions from `d`
// on. `weights` are [R][kWidth], `block(j)` is the j-th block's values, `next_of(j)` what is fetched while these are met.
template <class T, int R, int N, bool kFetch, class BlockOf, class NextOf>
inline void add_values(const Factor<T>* weights, int from, int to, BlockOf&& block, NextOf&& next_of, int padded, int d,
                       float* out) {
  f32x16 sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sum[r][n] = load(out + static_cast<size_t>(r) * padded + d + n * 16);
  for (int j = from; j < (kValueBlocks<T> == 1 ? from + 1 : to); j++) {
    const auto values = block(j);
    const T* next = kFetch ? next_of(j) : nullptr;
    const Factor<T>* w = weights + j * kBlock;
    if constexpr (sizeof(T) == 4) {
      for (int k = 0; k < kBlock; k++) {
        const size_t place = static_cast<size_t>(k) * padded + d;
        f32x16 value[N];
        for (int n = 0; n < N; n++) {
          value[n] = load(values + place + n * 16);
          fetch<kFetch>(next + place + n * 16);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const f32x16 x = broadcast(w[r * kWidth + k]);
          for (int n = 0; n < N; n++) sum[r][n] = sum[r][n] + x * value[n];
        }
      }
    } else {
      for (int p = 0; p < kBlock / 2; p++) {
        const size_t line = (static_cast<size_t>(p) * padded + d) * 2;
#if defined(__AVX512BF16__)
        __m512bh value[N];
        for (int n = 0; n < N; n++) {
          value[n] = (__m512bh)_mm512_loadu_si512(values + line + n * 32);
          fetch<kFetch>(next + line + n * 32);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          int32_t two;
          std::memcpy(&two, w + r * kWidth + 2 * p, sizeof two);
          const __m512bh both = (__m512bh)_mm512_set1_epi32(two);
          for (int n = 0; n < N; n++) sum[r][n] = (f32x16)_mm512_dpbf16_ps((__m512)sum[r][n], value[n], both);
        }
#else
        f32x16 value[N];
        for (int n = 0; n < N; n++) {
          value[n] = values.first(line + n * 32);
          fetch<kFetch>(next + line + n * 32);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const f32x16 x = broadcast(w[r * kWidth + 2 * p]);
          for (int n = 0; n < N; n++) sum[r][n] = sum[r][n] + x * value[n];
        }
        forget_memory();
        for (int n = 0; n < N; n++) value[n] = values.second(line + n * 32);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const f32x16 x = broadcast(w[r * kWidth + 2 * p + 1]);
          for (int n = 0; n < N; n++) sum[r][n] = sum[r][n] + x * value[n];
        }
#endif
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(out + static_cast<size_t>(r) * padded + d + n * 16, sum[r][n]);
}

// Rows that meet a block's keys or values at once, and vectors of keys or dimensions that each of them has.
#if defined(WAYBILL_WIDENS)
constexpr int kScoreRows = 12, kQueryRows = 12;     // 24 of 32 registers hold results: fewer reads of what was widened
constexpr int score_tiles(int) { return 2; }
constexpr int value_vectors(int rows) { return rows <= 6 ? 4 : 2; }
#elif defined(__AVX512F__)
constexpr int kScoreRows = 8, kQueryRows = 4;       // 16 of 32 registers hold results
constexpr int score_tiles(int) { return 2; }
constexpr int value_vectors(int) { return 4; }
#elif defined(__AVX2__)
constexpr int kScoreRows = 5, kQueryRows = 5;       // 10 of 16 hold results: a vector of 16 floats takes two
constexpr int score_tiles(int rows) { return rows <= 2 ? 2 : 1; }
constexpr int value_vectors(int rows) { return rows <= 2 ? 2 : 1; }
#else
constexpr int kScoreRows = 2, kQueryRows = 2;       // it takes four
constexpr int score_tiles(int) { return 1; }
constexpr int value_vectors(int) { return 1; }
#endif

template <class T, int R = kScoreRows, class Source, class Out>
inline void scores_rows(int rows, const Factor<T>* q, int stride, const Source& keys, const Ahead<T>& ahead, int padded,
                        Out&& out) {
  if constexpr (R > 0) {
    if (rows == R) scores_of<R, score_tiles(R)>(q, stride, keys, ahead, padded, out);
    else scores_rows<T, R - 1>(rows, q, stride, keys, ahead, padded, out);
  }
}

template <class T, bool kFetch, int R = kQueryRows, class BlockOf, class NextOf>
inline void values_rows(int rows, const Factor<T>* weights, int from, int to, BlockOf&& block, NextOf&& next, int padded,
                        float* out) {
  if constexpr (R > 0) {
    if (rows != R) return values_rows<T, kFetch, R - 1>(rows, weights, from, to, block, next, padded, out);
    constexpr int N = value_vectors(R);
    int d = 0;
    for (; d + 16 * N <= padded; d += 16 * N) add_values<T, R, N, kFetch>(weights, from, to, block, next, padded, d, out);
    for (; d < padded; d += 16) add_values<T, R, 1, kFetch>(weights, from, to, block, next, padded, d, out);
  }
}

inline int turns_of(int rows, int most) { return (rows + most - 1) / most; }

// Calls body(first row, number of rows, turn) until all rows had their turn, at most `most` in each.
template <class Body>
inline void in_turns(int rows, int most, Body&& body) {
  const int turns = turns_of(rows, most);
  for (int turn = 0; turn < turns; turn++) {
    const int r = rows * turn / turns;   // no turn with much less to do
    body(r, rows * (turn + 1) / turns - r, turn);
  }
}

// Calls body(source): what turn `turn` of `turns` reads a block from. `wide` has room for a block of floats.
template <class T, class Body>
inline void read_in_turn(const T* block, int turn, int turns, float* wide, Body&& body) {
  if constexpr (sizeof(Factor<T>) == sizeof(T)) body(block);
  else if (!kKeepsWide || turns == 1) body(Narrow{block});
  else if (turn == 0) body(Widening{block, wide});
  else body(Wide{wide});
}

// The part of the rows of a segment that meets a group at this moment, of how many.
struct Part {
  int index, count;

  bool few(int rows) const { return count == 1 && rows <= kFewRows; }
};

// Up to kRows queries and the keys of a group's blocks [from, to): `block(j)` is the part of the one that holds its j-th 32 keys,
// also for j behind the group's end, which may be any that comes next. `give(first row, j, scores)` calls scores(out) with what
// scores go to.
template <class T, class BlockOf, class Give>
void all_scores(int rows, const Factor<T>* q, int stride, int padded, int from, int to, Part part, BlockOf&& block, float* wide,
                Give&& give) {
  const int turns = turns_of(rows, kScoreRows), distance = part.count == 1 ? 1 : to - from;
  for (int j = from; j < to; j++) {
    const T *these = block(j), *next = block(j + distance);
    in_turns(rows, kScoreRows, [&](int r, int count, int turn) {
      const auto ahead = !part.few(rows) ? share_of(next, padded, part.index * turns + turn, part.count * turns)
                         : turn == 0     ? keys_of(next, padded)
                                         : Ahead<T>{these, 0, 0};
      read_in_turn(these, turn, turns, wide, [&](const auto& keys) {
        give(r, j, [&](auto&& out) {
          scores_rows<T>(count, q + place_of_query<T>(r, 0, stride), stride, keys, ahead, padded, out);
        });
      });
    });
  }
}

template <class T, class BlockOf>
void all_values(int rows, const Factor<T>* weights, int padded, int from, int to, Part part, BlockOf&& block, float* wide,
                float* results) {
  const int turns = turns_of(rows, kQueryRows);
  const auto next = [&](int j) { return block(j + 1); };
  for (int j = from, end; j < to; j = end) {
    end = std::min(j + kValueBlocks<T>, to);
    in_turns(rows, kQueryRows, [&](int r, int count, int turn) {
      const Factor<T>* w = weights + static_cast<size_t>(r) * kWidth;
      float* out = results + static_cast<size_t>(r) * padded;
      const auto add = [&](auto&& source) {
        if (r == 0 && (kFetchValues || part.few(rows))) values_rows<T, true>(count, w, j, end, source, next, padded, out);
        else values_rows<T, false>(count, w, j, end, source, next, padded, out);
      };
      if constexpr (kValueBlocks<T> > 1) add(block);
      else read_in_turn(block(j), turn, turns, wide, [&](const auto& source) { add([&](int) { return source; }); });
    });
  }
}

#if defined(__AMX_BF16__)
// Scores against one block of keys, or with kTwo against two.
template <bool kTwo>
inline void tile_scores_of(const bf16* q, const bf16* near, const bf16* far, int padded, float* out) {
  const size_t tile = static_cast<size_t>(padded) * kTile;
  _tile_zero(0); _tile_zero(1);
  if constexpr (kTwo) { _tile_zero(2); _tile_zero(3); }
  for (int d = 0; d < padded; d += 32) {
    _tile_loadd(4, q + d, padded * 2);
    _tile_loadd(6, near + d * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, near + tile + d * kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(6, far + d * kTile, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, far + tile + d * kTile, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, out, kWidth * 4);
  _tile_stored(1, out + kTile, kWidth * 4);
  if constexpr (kTwo) {
    _tile_stored(2, out + kBlock, kWidth * 4);
    _tile_stored(3, out + kBlock + kTile, kWidth * 4);
  }
}

// Up to 16 queries, as many as the tiles are configured for. Fetching ahead did not help here, and sometimes slowed it.
template <class BlockOf>
void tile_scores(const bf16* q, int padded, int from, int to, BlockOf&& block, float* scores) {
  settle();
  int j = from;
  for (; j + 1 < to; j += 2) tile_scores_of<true>(q, block(j), block(j + 1), padded, scores + j * kBlock);
  if (j < to) tile_scores_of<false>(q, block(j), nullptr, padded, scores + j * kBlock);
}

// Adds weighted values to 32 dimensions of results from `d` on, or with kTwo to 64.
template <bool kTwo, class BlockOf>
inline void tile_values_of(const bf16* weights, int padded, int d, int from, int to, BlockOf&& block, float* results) {
  const int stride = padded * 4;
  float* out = results + d;
  _tile_loadd(0, out, stride); _tile_loadd(1, out + 16, stride);
  if constexpr (kTwo) { _tile_loadd(2, out + 32, stride); _tile_loadd(3, out + 48, stride); }
  for (int j = from; j < to; j++) {
    const bf16* values = block(j) + 2 * d;
    _tile_loadd(4, weights + j * kBlock, kWidth * 2);
    _tile_loadd(6, values, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, values + 32, stride);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_loadd(6, values + 64, stride);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, values + 96, stride);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, out, stride); _tile_stored(1, out + 16, stride);
  if constexpr (kTwo) { _tile_stored(2, out + 32, stride); _tile_stored(3, out + 48, stride); }
}

template <class BlockOf>
void tile_values(const bf16* weights, int padded, int from, int to, BlockOf&& block, float* results) {
  settle();
  int d = 0;
  for (; d + 64 <= padded; d += 64) tile_values_of<true>(weights, padded, d, from, to, block, results);
  if (d < padded) tile_values_of<false>(weights, padded, d, from, to, block, results);
}
#endif

// --------------------------------------------------------------------------------------------------------- one work item
// The queries of a work item and the state of their softmaxes. Rows are [token][query head of the KV head].
template <class T>
struct Queries {
  static constexpr bool kInPlace = sizeof(Factor<T>) == sizeof(float);

  int rows, padded;
  Factor<T>* q;     // [rows][padded], floats [padded][rows]
  float *results;   // [rows][padded]
  float *peak, *mass;   // [rows]; [rows][16], each row's to be summed up
  int* position;
  float *scores;    // [kRows][kWidth], of the rows that meet a group at this moment
  Factor<T>* weights;   // [kRows][kWidth], of these; floats take the scores' place
  float* wide;      // [kBlock][padded], a block of floats
  int height = 0;   // for how many rows the tiles are configured

  int stride() const { return sizeof(Factor<T>) == 2 ? padded : rows; }
  size_t place(int r, int d) const { return place_of_query<T>(r, d, stride()); }

  Queries(int count, int width, float* scratch) : rows(count), padded(width) {
    scores = scratch;
    weights = reinterpret_cast<Factor<T>*>(kInPlace ? scores : scores + kRows * kWidth);
    wide = scores + (kInPlace ? 1 : 2) * kRows * kWidth;   // whole cache lines before it
    results = wide + static_cast<size_t>(kBlock) * padded;
    q = reinterpret_cast<Factor<T>*>(results + static_cast<size_t>(rows) * padded);
    peak = results + 2 * static_cast<size_t>(rows) * padded;
    mass = peak + rows;
    position = reinterpret_cast<int*>(mass + 16 * rows);
  }

  static size_t floats(size_t rows, int padded) { return 2 * kRows * kWidth + rows * (2 * padded + 18) + kBlock * padded; }
};

// Floats that one thread needs for `attend_item`.
inline size_t scratch_floats(const KVMemory& memory, int heads) {
  return Queries<float>::floats(static_cast<size_t>(kItemTokens) * (heads / memory.kv_heads), memory.padded);
}

// Keys of a group that a query sees, a bit for each.
struct Seen {
  uint16_t bits[kWidth / 16];
  bool none;

  // Keys [from, to) but for [hole, hole_end); any may lie outside of the group.
  Seen(int from, int to, int hole, int hole_end) : none(true) {
    for (int word = 0; word < kWidth; word += 64) {
      const uint64_t these = below(to - word) & ~below(from - word) & (below(hole - word) | ~below(hole_end - word));
      for (int i = 0; i < 4; i++) bits[word / 16 + i] = static_cast<uint16_t>(these >> (16 * i));
      none = none && these == 0;
    }
  }

  uint16_t of(int key) const { return bits[key / 16]; }

  // Whether the first so many keys, a multiple of 16, are all seen.
  bool all(int keys) const {
    return std::all_of(bits, bits + keys / 16, [](uint16_t these) { return these == 0xffff; });
  }

 private:
  static_assert(kWidth % 64 == 0);
  static uint64_t below(int key) { return key <= 0 ? 0 : key >= 64 ? ~uint64_t{0} : (uint64_t{1} << key) - 1; }
};

inline void scale(float* p, int count, float by) {
  for (int j = 0; j < count; j += 16) store(p + j, load(p + j) * broadcast(by));
}

constexpr float kLog2E = 1.44269504f;
constexpr float kLeap = 8.f;   // by how much a score may exceed the peak before that moves

// As `soften` below, for a model of bf16, whose weights need 8 bits, scores that no softcap changes, and a key that is seen, or
// with kAll only keys that are: exponentials are a large part of attention. The peak stays where it is until a score leaps over
// it, so that results are seldom scaled anew; a weight may then exceed 1, which is as exact in a float (FlashAttention-4 does so
// on GPUs).
template <bool kAll>
inline void soften_fast(Queries<bf16>& q, int r, int slot, int keys, const Seen& seen, float scaling) {
  const auto masked = [&](f32x16 v, int key, float other) { return kAll ? v : keep_bits(v, seen.of(key), other); };
  const float* s = q.scores + slot * kWidth;
  Factor<bf16>* w = q.weights + slot * kWidth;
  float* mass = q.mass + r * 16;
  f32x16 best = broadcast(kNever);
  for (int j = 0; j < keys; j += 16) best = vmax(best, masked(load(s + j), j, kNever));
  const f32x16 factor = broadcast(scaling * kLog2E);
  if (any_greater(best * factor - broadcast(q.peak[r] * kLog2E), broadcast(kLeap * kLog2E))) {
    const float highest = scaling * hmax(best);
    if (q.peak[r] != kNever) {
      const float fade = std::exp(q.peak[r] - highest);
      scale(q.results + static_cast<size_t>(r) * q.padded, q.padded, fade);
      scale(mass, 16, fade);
    }
    q.peak[r] = highest;
  }
  const f32x16 shift = broadcast(q.peak[r] * kLog2E);
  f32x16 sum = {};
  for (int j = 0; j < keys; j += 16) {
    const f32x16 e = masked(rough_exp2(load(s + j) * factor - shift), j, 0.f);
    store(w + j, e);
    sum = sum + e;
  }
  store(mass, load(mass) + sum);
}

// A row's scores of a group, in `slot`, become weights: 0 for keys that are not seen.
template <class T>
inline void soften(Queries<T>& q, int r, int slot, int keys, const Seen& seen, const LayerAttention& layer) {
  float* s = q.scores + slot * kWidth;
  Factor<T>* w = q.weights + slot * kWidth;
  if (seen.none) {
    for (int j = 0; j < keys; j += 16) store(w + j, f32x16{});
    return;
  }
  if constexpr (sizeof(T) == 2)
    if (layer.softcap == 0.f && layer.scaling > 0.f)
      return seen.all(keys) ? soften_fast<true>(q, r, slot, keys, seen, layer.scaling)
                            : soften_fast<false>(q, r, slot, keys, seen, layer.scaling);
  const f32x16 scaling = broadcast(layer.scaling);
  f32x16 best = broadcast(kNever);
  for (int j = 0; j < keys; j += 16) {
    f32x16 x = load(s + j) * scaling;
    if (layer.softcap != 0.f) x = cap(x, layer.softcap);
    if (seen.of(j) != 0xffff) x = keep_bits(x, seen.of(j), kNever);
    store(s + j, x);
    best = vmax(best, x);
  }
  const float peak = std::max(q.peak[r], hmax(best));
  const f32x16 shift = broadcast(peak);
  f32x16 sum = {};
  for (int j = 0; j < keys; j += 16) {
    const f32x16 e = exp(load(s + j) - shift);
    store(w + j, e);
    sum = sum + e;
  }
  const float fade = q.peak[r] == kNever ? 0.f : std::exp(q.peak[r] - peak);
  float* mass = q.mass + r * 16;
  store(mass, load(mass) * broadcast(fade) + sum);
  if (fade != 1.f) scale(q.results + static_cast<size_t>(r) * q.padded, q.padded, fade);
  q.peak[r] = peak;
}

// Scores that are kept.
struct Kept {
  float* scores;   // [rows][kWidth]

  template <int R, int P>
  [[gnu::always_inline]] void operator()(int tile, const f32x16 (&sum)[R][P]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int p = 0; p < P; p++) store(scores + r * kWidth + (tile + p) * kTile, sum[r][p]);
  }
};

// Scores that become weights on the way, as in `soften_fast`, of keys that are all seen; `worst` is how far one has leapt.
struct Weighed {
  Factor<bf16>* weights;   // [rows][kWidth]
  float* mass;             // [rows][16], what the weights of this group add; written anew if `first`
  const float* shift;      // [rows]
  f32x16 factor, worst;
  bool first;

  template <int R, int P>
  [[gnu::always_inline]] void operator()(int tile, const f32x16 (&sum)[R][P]) {
    f32x16 largest = worst;
    const bool begins = first && tile == 0;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      f32x16 total = begins ? f32x16{} : load(mass + r * 16);
      for (int p = 0; p < P; p++) {
        const f32x16 y = sum[r][p] * factor - broadcast(shift[r]);
        largest = vmax(y, largest);   // in this order: where y is a NaN, what was largest before stays
        const f32x16 e = rough_exp2(y);
        store(weights + r * kWidth + (tile + p) * kTile, e);
        total = total + e;
      }
      store(mass + r * 16, total);
    }
    worst = largest;
  }
};

// Rows [row, row + count), at most kRows, meet a group of which they see every key: weights without scores that are written and
// read again. Returns false where one of the scores leaps over its row's peak, as every one does in a row without a peak; the
// weights are then useless.
template <class Keys>
inline bool weigh(Queries<bf16>& q, int row, int count, int to, Part part, Keys&& keys, float scaling) {
  alignas(64) float shift[kRows], mass[kRows * 16];
  for (int r = 0; r < count; r++) shift[r] = q.peak[row + r] * kLog2E;
  f32x16 worst = broadcast(kNever);
  all_scores<bf16>(count, q.q + q.place(row, 0), q.stride(), q.padded, 0, to, part, keys, q.wide, [&](int r, int j, auto&& scores) {
    Weighed out{q.weights + static_cast<size_t>(r) * kWidth + j * kBlock, mass + r * 16, shift + r, broadcast(scaling * kLog2E),
                worst, j == 0};
    scores(out);
    worst = out.worst;
  });
  if (any_greater(worst, broadcast(kLeap * kLog2E))) return false;
  for (int r = 0; r < count; r++) {
    float* all = q.mass + (row + r) * 16;
    store(all, load(all) + load(mass + r * 16));
  }
  return true;
}

// Rows [row, row + count), at most kRows, meet a group: `keys` and `values` are its blocks and those behind it. With `plain`,
// every row sees every key, and the first has a peak already.
template <class T, class Keys, class Values, class Soften>
inline void meet(Queries<T>& q, int row, int count, int from, int to, Part part, bool plain, const LayerAttention& settings,
                 Keys&& keys, Values&& values, Soften&& soften) {
  const Factor<T>* these = q.q + q.place(row, 0);
  float* results = q.results + static_cast<size_t>(row) * q.padded;
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    tile_scores(these, q.padded, from, to, keys, q.scores);
    soften();
    return tile_values(q.weights, q.padded, from, to, values, results);
  }
#endif
  bool weighed = false;
  if constexpr (sizeof(T) == 2) weighed = plain && weigh(q, row, count, to, part, keys, settings.scaling);
  if (!weighed) {
    all_scores<T>(count, these, q.stride(), q.padded, from, to, part, keys, q.wide,
                  [&](int r, int j, auto&& scores) { scores(Kept{q.scores + static_cast<size_t>(r) * kWidth + j * kBlock}); });
    soften();
  }
  all_values<T>(count, q.weights, q.padded, from, to, part, values, q.wide, results);
}

// Blocks of keys one after another: some of `front`, then `blocks`. Behind key `hole` there is a gap, places that hold nothing.
struct Segment {
  const int32_t *front, *blocks;
  int front_blocks;
  int length;       // keys, those in the gap included
  int base;         // position of the first key
  int hole, gap;

  static Segment of(const int32_t* blocks, int length, int base) { return {nullptr, blocks, 0, length, base, length, 0}; }

  // A prefix in front of `own` tokens.
  static Segment joined(const PlanRow& row, int own) {
    const int front = (row.prefix_len + kBlock - 1) / kBlock, gap = front * kBlock - row.prefix_len;
    return {row.prefix_blocks, row.blocks, front, front * kBlock + own, 0, row.prefix_len, gap};
  }

  int32_t block(int index) const { return index < front_blocks ? front[index] : blocks[index - front_blocks]; }

  // The first key of the group that holds this one, and how many keys a group has that begins there.
  int group(int key) const {
    const int more = front_blocks * kBlock;
    return key < more + kGroup ? 0 : more + (key - more) / kGroup * kGroup;
  }
  int width(int group) const { return group == 0 ? front_blocks * kBlock + kGroup : kGroup; }

  // Where the key of a position lies.
  int place(int position) const { return position - base < hole ? position - base : position - base + gap; }
};

// Rows [row0, row0 + rows) attend to a segment. `then` is a block of what is computed next.
template <class T>
void attend_segment(Queries<T>& q, int row0, int rows, const KVMemory& memory, int layer, int head, const Segment& segment,
                    int then, const LayerAttention& settings) {
  const auto end_of = [&](int position) { return std::min(segment.length, segment.place(position) + 1); };
  const auto start_of = [&](int position) {
    return settings.window > 0 ? segment.place(std::max(position + 1 - settings.window, segment.base)) : 0;
  };
  int first = segment.length, last = 0;    // keys that any of the rows sees
  int from = 0, to = segment.length;       // keys that all of them see
  for (int r = row0; r < row0 + rows; r++) {
    const int start = start_of(q.position[r]), end = end_of(q.position[r]);
    first = std::min(first, start), last = std::max(last, end);
    from = std::max(from, start), to = std::min(to, end);
  }
  if (first >= last) return;   // all of it lies before every window
  const bool smooth = settings.softcap == 0.f && settings.scaling > 0.f;
  for (int key = segment.group(first), width; key < last; key += width) {
    width = segment.width(key);
    const int block0 = key / kBlock;
    const int skip = first > key ? (first - key) / kBlock : 0;   // blocks that lie before every window
    const int left = (last - key + kBlock - 1) / kBlock, count = std::min(width / kBlock, left), end = key + count * kBlock;
    const bool all = smooth && from <= key && end <= to;   // a gap lies in the first group of all, where no row has a peak
    const auto at = [&](int j) { return j < left ? segment.block(block0 + j) : then; };
    for (int row = row0; row < row0 + rows; row += kRows) {
      const int some = std::min(kRows, row0 + rows - row);
#if defined(__AMX_BF16__)
      if (sizeof(T) == 2 && some != q.height) configure_tiles(some, some), q.height = some;
#endif
      meet(
          q, row, some, skip, count, Part{(row - row0) / kRows, turns_of(rows, kRows)}, all && q.peak[row] != kNever, settings,
          [&](int j) { return memory.keys<T>(layer, at(j), head); },
          [&](int j) { return memory.values<T>(layer, at(j), head); },
          [&] {
            for (int i = 0; i < some;) {
              const int position = q.position[row + i];
              const int to = std::min(end_of(position) - key, count * kBlock);   // others are the next group's
              const Seen seen(start_of(position) - key, to, segment.hole - key, segment.hole + segment.gap - key);
              for (; i < some && q.position[row + i] == position; i++) soften(q, row + i, i, count * kBlock, seen, settings);
            }
          });
    }
  }
}

// Writes a row's result [head_dim].
template <class T, class Out>
inline void finish(const Queries<T>& q, int r, const LayerAttention& settings, int head, int d, Out* out) {
  const float mass = hsum(load(q.mass + r * 16));
  float scale = 1.f / mass;
  if (settings.sinks != nullptr) {
    const float sink = settings.sinks[head], peak = std::max(q.peak[r], sink), fade = std::exp(q.peak[r] - peak);
    scale = fade / (mass * fade + std::exp(sink - peak));
  }
  const float* result = q.results + static_cast<size_t>(r) * q.padded;
  int j = 0;
  for (; j + 16 <= d; j += 16) store_rounded<T>(out + j, load(result + j) * broadcast(scale));
  for (; j < d; j++) out[j] = rounded<T, Out>(result[j] * scale);
}

// Computes one work item. `q` and `out` are rows of tokens, [heads][head_dim], `q_stride` and `out_stride` elements apart.
template <class T, class Out>
void attend_item(const AttentionPlan& plan, const KVMemory& memory, int layer, const LayerAttention& settings, const T* q,
                 ptrdiff_t q_stride, Out* out, ptrdiff_t out_stride, int index, float* scratch) {
  const auto& item = plan.item(index);
  const int group = settings.heads / memory.kv_heads, d = memory.head_dim, head0 = item.kv_head * group;
  Queries<T> queries(item.tokens * group, memory.padded, scratch);
  int r = 0;
  for (int i = 0; i < item.runs; i++) {
    const auto& run = plan.run(item.run0 + i);
    const int token0 = plan.row(run.row).offset + run.first;
    for (int t = token0; t < token0 + run.count; t++)
      for (int g = 0; g < group; g++, r++) {
        const T* source = q + t * q_stride + (head0 + g) * d;
        if constexpr (sizeof(Factor<T>) == 2) std::memcpy(queries.q + queries.place(r, 0), source, d * sizeof(T));
        else for (int j = 0; j < d; j++) queries.q[queries.place(r, j)] = to_float(source[j]);
        for (int j = d; j < memory.padded; j++) queries.q[queries.place(r, j)] = Factor<T>{};
        queries.position[r] = plan.position(t);
        queries.peak[r] = kNever;
        store(queries.mass + r * 16, f32x16{});
      }
  }
  std::fill(queries.results, queries.results + static_cast<size_t>(r) * memory.padded, 0.f);
  const auto row_of = [&](int i) -> const PlanRow& { return plan.row(plan.run(item.run0 + std::min(i, item.runs - 1)).row); };
  r = 0;
  for (int i = 0, end = 0; i < item.runs;) {   // runs [i, end) share a prefix
    const PlanRow& shared = row_of(i);
    int rows = 0;
    for (; end < item.runs && row_of(end).prefix_blocks == shared.prefix_blocks; end++)
      rows += plan.run(item.run0 + end).count * group;
    const bool apart = shared.prefix_len > kFront;
    if (apart)
      attend_segment(queries, r, rows, memory, layer, item.kv_head, Segment::of(shared.prefix_blocks, shared.prefix_len, 0),
                     shared.blocks[0], settings);
    for (; i < end; i++) {
      const auto& run = plan.run(item.run0 + i);
      const PlanRow &row = plan.row(run.row), &next = row_of(i + 1);
      const bool prefix_next = next.prefix_len > 0 && (i + 1 == end || !apart);
      const int own = row.start + run.first + run.count;
      attend_segment(queries, r, run.count * group, memory, layer, item.kv_head,
                     apart || row.prefix_len == 0 ? Segment::of(row.blocks, own, row.prefix_len) : Segment::joined(row, own),
                     prefix_next ? next.prefix_blocks[0] : next.blocks[0], settings);
      const int token0 = row.offset + run.first;
      for (int t = token0; t < token0 + run.count; t++)
        for (int g = 0; g < group; g++, r++) finish(queries, r, settings, head0 + g, d, out + t * out_stride + (head0 + g) * d);
    }
  }
#if defined(__AMX_BF16__)
  if (queries.height > 0) release_tiles();
#endif
}

}  // namespace waybill
