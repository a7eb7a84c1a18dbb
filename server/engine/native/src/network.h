// A whole decoder of the Llama kind in C++: RMSNorm, grouped-query attention with rotary positions, SwiGLU.
//
// One call computes a step: every layer is a few phases in the pool, and no thread leaves it in between. The residual
// stream is float32; what a linear layer reads is rounded to the model's type. Every row is computed by itself in a fixed
// order, so it is bitwise the same alone and in any batch. Behind the last layer's attention only those rows go on whose
// logits are wanted.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "pool.h"
#include "simd.h"

namespace waybill {

struct NetworkShape {
  int layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
  int rotary;      // dimensions of a head that turn; the rest pass through
  int positions;   // rows of the rotary table
  float epsilon;
};

// What is best of a row of logits, over some of its columns.
struct Peak {
  float value = -std::numeric_limits<float>::infinity();
  int32_t id = 0;
  bool finite = true;
};

template <class T>
class Network {
 public:
  Network(const NetworkShape& shape, const float* cos, const float* sin, int threads)
      : shape_(shape), threads_(threads), layers_(shape.layers) {
    const size_t count = static_cast<size_t>(shape.positions) * (shape.rotary / 2);
    cos_.assign(cos, cos + count);
    sin_.assign(sin, sin + count);
  }

  struct Weights {
    const T *q, *k, *v, *o, *gate, *up, *down;                  // [out, in], row by row
    const float *q_bias, *k_bias, *v_bias;                      // or null
    const float *input_norm, *post_norm, *q_norm, *k_norm;      // the last two [head_dim], or null
    float scaling, softcap;
    int window, turns;                                          // 0: no window; whether the layer uses positions
  };

  void set_layer(int index, const Weights& w) {
    const auto& s = shape_;
    const int q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    Layer& layer = layers_[index];
    layer.qkv = Linear<T>(q + 2 * kv, s.hidden, threads_, [&](int i) {
      return i < q ? w.q + at(i, s.hidden) : i < q + kv ? w.k + at(i - q, s.hidden) : w.v + at(i - q - kv, s.hidden);
    });
    layer.o = Linear<T>(s.hidden, q, threads_, [&](int i) { return w.o + at(i, q); });
    layer.gate_up = Linear<T>(2 * round_up(s.ffn, kPanel), s.hidden, threads_, [&](int i) -> const T* {
      const int column = i / (2 * kPanel) * kPanel + i % kPanel;
      if (column >= s.ffn) return nullptr;
      return (i / kPanel % 2 == 0 ? w.gate : w.up) + at(column, s.hidden);
    });
    layer.down = Linear<T>(s.hidden, s.ffn, threads_, [&](int i) { return w.down + at(i, s.ffn); });
    layer.bias.assign(q + 2 * kv, 0.f);
    if (w.q_bias) std::copy(w.q_bias, w.q_bias + q, layer.bias.begin());
    if (w.k_bias) std::copy(w.k_bias, w.k_bias + kv, layer.bias.begin() + q);
    if (w.v_bias) std::copy(w.v_bias, w.v_bias + kv, layer.bias.begin() + q + kv);
    layer.input_norm.assign(w.input_norm, w.input_norm + s.hidden);
    layer.post_norm.assign(w.post_norm, w.post_norm + s.hidden);
    if (w.q_norm) layer.q_norm.assign(w.q_norm, w.q_norm + s.head_dim);
    if (w.k_norm) layer.k_norm.assign(w.k_norm, w.k_norm + s.head_dim);
    layer.window = w.window;
    layer.attention = LayerAttention{s.heads, w.scaling, w.window, w.softcap, nullptr};
    layer.turns = w.turns != 0;
  }

  void set_head(const T* weight, const float* norm) {
    head_ = Linear<T>(shape_.vocab, shape_.hidden, threads_, [&](int i) { return weight + at(i, shape_.hidden); });
    norm_.assign(norm, norm + shape_.hidden);
  }

  // Cuts every window to at most so many tokens; 0 undoes it.
  void limit_windows(int tokens) {
    for (auto& layer : layers_)
      layer.attention.window = tokens > 0 && layer.window > 0 ? std::min(tokens, layer.window) : layer.window;
  }

  // Computes the plan's tokens from `embeddings` [tokens, hidden]. Of the `count` rows in `keep`: their logits
  // [count, vocab], unless `logits` is null, and the best of each.
  void forward(Pool& pool, const AttentionPlan& plan, KVMemory& memory, const T* embeddings, const int32_t* keep, int count,
               float* logits, float* peak_values, int32_t* peak_ids, uint8_t* peak_finite) {
    reserve(plan.tokens(), count, pool.threads(), scratch_floats(memory, shape_.heads));
    const int tokens = plan.tokens(), chunks = (tokens + kRowChunk - 1) / kRowChunk;
    const int kept_chunks = (count + kRowChunk - 1) / kRowChunk;
    std::vector<Phase> phases;
    std::vector<int> items;
    const auto add = [&](Step step, int layer, int n) {
      phases.push_back({step, layer});
      items.push_back(n);
    };
    add(Step::embed, 0, chunks);
    for (int l = 0; l < shape_.layers; l++) {
      const bool last = l + 1 == shape_.layers;
      add(Step::qkv, l, layers_[l].qkv.items());
      add(Step::rotate, l, chunks);
      if (last && count == 0) break;   // the keys and values were all that was wanted
      add(Step::attend, l, plan.items());
      if (last) add(Step::keep, l, kept_chunks);
      add(Step::output, l, layers_[l].o.items());
      add(Step::post_norm, l, last ? kept_chunks : chunks);
      add(Step::gate_up, l, layers_[l].gate_up.items());
      add(Step::down, l, layers_[l].down.items());
      if (!last) add(Step::input_norm, l + 1, chunks);
    }
    if (count > 0) {
      add(Step::final_norm, 0, kept_chunks);
      add(Step::head, 0, head_.items());
      peaks_.assign(static_cast<size_t>(head_.items()) * count, Peak{});
    }
    pool.run(static_cast<int>(phases.size()), items.data(), [&](int phase, int item, int thread) {
      const auto [step, l] = phases[phase];
      // After the last layer's attention only the rows that are kept go on.
      const bool last = l + 1 == shape_.layers;
      const Rows rows = last ? Rows{kept_stream_.get(), kept_attended_.get(), count} : Rows{stream_.get(), attended_.get(), tokens};
      switch (step) {
        case Step::embed: embed(embeddings, item, tokens); break;
        case Step::input_norm: normalise(layers_[l].input_norm, stream_.get(), item, tokens); break;
        case Step::qkv: qkv(layers_[l], item, tokens); break;
        case Step::rotate: rotate(plan, memory, layers_[l], l, item, tokens); break;
        case Step::attend:
          attend_item<T>(plan, memory, l, layers_[l].attention, qkv_.get(), qkv_width(), attended_.get(), attended_width(),
                         item, scratch(thread));
          break;
        case Step::keep: keep_rows(keep, item, count); break;
        case Step::output: residual(layers_[l].o, rows.attended, attended_width(), rows.stream, item, rows.count); break;
        case Step::post_norm: normalise(layers_[l].post_norm, rows.stream, item, rows.count); break;
        case Step::gate_up: gate_up(layers_[l], item, rows.count); break;
        case Step::down: residual(layers_[l].down, activated_.get(), activated_width(), rows.stream, item, rows.count); break;
        case Step::final_norm: final_norm(item, count); break;
        case Step::head: head(item, count, logits); break;
      }
    });
    for (int r = 0; r < count; r++) {
      Peak best;
      for (int i = 0; i < head_.items(); i++) {
        const Peak& peak = peaks_[static_cast<size_t>(i) * count + r];
        best.finite = best.finite && peak.finite;
        if (peak.value > best.value) best.value = peak.value, best.id = peak.id;
      }
      peak_values[r] = best.value;
      peak_ids[r] = best.id;
      peak_finite[r] = best.finite;
    }
  }

 private:
  enum class Step { embed, input_norm, qkv, rotate, attend, keep, output, post_norm, gate_up, down, final_norm, head };
  struct Phase { Step step; int layer; };
  struct Rows { float* stream; Factor<T>* attended; int count; };

  struct Layer {
    Linear<T> qkv, o, gate_up, down;
    std::vector<float> bias, input_norm, post_norm, q_norm, k_norm;
    LayerAttention attention;
    int window = 0;
    bool turns = true;
  };

  static constexpr int kRowChunk = 8;   // rows of one work item of the element-wise phases

  static size_t at(int row, int width) { return static_cast<size_t>(row) * width; }
  int hidden_width() const { return round_up(shape_.hidden, kDepth); }
  int attended_width() const { return round_up(shape_.heads * shape_.head_dim, kDepth); }
  int activated_width() const { return round_up(shape_.ffn, kDepth); }
  int qkv_width() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }
  float* scratch(int thread) { return scratch_.get() + static_cast<size_t>(thread) * scratch_each_; }

  // Buffers grow and never shrink. What lies beyond a row's width is zero and stays so: linear layers read it.
  void reserve(int tokens, int count, int threads, size_t scratch) {
    if (tokens > capacity_) {
      capacity_ = round_up(tokens, 64);
      stream_ = make_buffer<float>(at(capacity_, shape_.hidden));
      normed_ = make_buffer<Factor<T>>(at(capacity_, hidden_width()));
      qkv_ = make_buffer<T>(at(capacity_, qkv_width()) + 64);
      attended_ = make_buffer<Factor<T>>(at(capacity_, attended_width()));
      activated_ = make_buffer<Factor<T>>(at(capacity_, activated_width()));
    }
    if (count > kept_capacity_) {
      kept_capacity_ = round_up(count, 64);
      kept_ = make_buffer<Factor<T>>(at(kept_capacity_, hidden_width()));
      kept_stream_ = make_buffer<float>(at(kept_capacity_, shape_.hidden));
      kept_attended_ = make_buffer<Factor<T>>(at(kept_capacity_, attended_width()));
    }
    const size_t each = (scratch + 15) / 16 * 16;
    if (each > scratch_each_ || threads > scratch_threads_) {
      scratch_each_ = std::max(each, scratch_each_);
      scratch_threads_ = std::max(threads, scratch_threads_);
      scratch_ = make_buffer<float>(scratch_each_ * scratch_threads_);
    }
  }

  void embed(const T* embeddings, int item, int tokens) {
    for (int t = item * kRowChunk; t < std::min(tokens, (item + 1) * kRowChunk); t++) {
      widen(embeddings + at(t, shape_.hidden), stream_.get() + at(t, shape_.hidden), shape_.hidden);
      norm_row(stream_.get() + at(t, shape_.hidden), layers_[0].input_norm.data(), normed_.get() + at(t, hidden_width()));
    }
  }

  // Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467) of a row of the residual stream.
  void norm_row(const float* x, const float* weight, Factor<T>* out) const {
    const int n = shape_.hidden, whole = n / 16 * 16;
    f32x16 sums = {};
    for (int j = 0; j < whole; j += 16) { const f32x16 v = load(x + j); sums = sums + v * v; }
    float sum = hsum(sums);
    for (int j = whole; j < n; j++) sum += x[j] * x[j];
    const float scale = 1.f / std::sqrt(sum / static_cast<float>(n) + shape_.epsilon);
    for (int j = 0; j < whole; j += 16) store_rounded<T>(out + j, load(x + j) * broadcast(scale) * load(weight + j));
    for (int j = whole; j < n; j++) out[j] = rounded<T, Factor<T>>(x[j] * scale * weight[j]);
  }

  void normalise(const std::vector<float>& weight, const float* stream, int item, int rows) {
    for (int r = item * kRowChunk; r < std::min(rows, (item + 1) * kRowChunk); r++)
      norm_row(stream + at(r, shape_.hidden), weight.data(), normed_.get() + at(r, hidden_width()));
  }

  void keep_rows(const int32_t* keep, int item, int count) {
    const int width = attended_width();
    for (int r = item * kRowChunk; r < std::min(count, (item + 1) * kRowChunk); r++) {
      const float* stream = stream_.get() + at(keep[r], shape_.hidden);
      const Factor<T>* attended = attended_.get() + at(keep[r], width);
      std::copy(stream, stream + shape_.hidden, kept_stream_.get() + at(r, shape_.hidden));
      std::copy(attended, attended + width, kept_attended_.get() + at(r, width));
    }
  }

  void final_norm(int item, int count) {
    for (int r = item * kRowChunk; r < std::min(count, (item + 1) * kRowChunk); r++)
      norm_row(kept_stream_.get() + at(r, shape_.hidden), norm_.data(), kept_.get() + at(r, hidden_width()));
  }

  void qkv(const Layer& layer, int item, int tokens) {
    run_linear<T>(layer.qkv, normed_.get(), hidden_width(), tokens, item, [&](int row, int column, int width, float* values) {
      T* out = qkv_.get() + at(row, qkv_width()) + column;
      const float* bias = layer.bias.data() + column;
      int j = 0;
      for (; j + 16 <= width; j += 16) store(out + j, load(values + j) + load(bias + j));
      for (; j < width; j++) out[j] = from_float<T>(values[j] + bias[j]);
    });
  }

  void residual(const Linear<T>& weight, const Factor<T>* input, int lda, float* stream, int item, int rows) {
    run_linear<T>(weight, input, lda, rows, item, [&](int row, int column, int width, float* values) {
      float* out = stream + at(row, shape_.hidden) + column;
      int j = 0;
      for (; j + 16 <= width; j += 16) store(out + j, load(out + j) + load(values + j));
      for (; j < width; j++) out[j] += values[j];
    });
  }

  // Gate and up projections lie in alternate panels, so both factors of SwiGLU (Shazeer 2020, arXiv:2002.05202) meet here.
  void gate_up(const Layer& layer, int item, int tokens) {
    run_linear<T>(layer.gate_up, normed_.get(), hidden_width(), tokens, item, [&](int row, int column, int width, float* values) {
      Factor<T>* out = activated_.get() + at(row, activated_width()) + column / 2;
      for (int j = 0; j < width; j += 2 * kPanel, out += kPanel)
        store_rounded<T>(out, silu(load(values + j)) * load(values + j + kPanel));
    });
  }

  void head(int item, int count, float* logits) {
    Peak* peaks = peaks_.data() + static_cast<size_t>(item) * count;
    run_linear<T>(head_, kept_.get(), hidden_width(), count, item, [&](int row, int column, int width, float* values) {
      if (logits != nullptr) std::copy(values, values + width, logits + at(row, shape_.vocab) + column);
      Peak& peak = peaks[row];
      f32x16 rest = {};
      float best = peak.value;
      int j = 0;
      for (; j + 16 <= width; j += 16) {
        const f32x16 v = load(values + j);
        rest = rest + (v - v);   // not zero where a value is not finite
        best = std::max(best, hmax(v));
      }
      float bad = hsum(rest);
      for (; j < width; j++) bad += values[j] - values[j], best = std::max(best, values[j]);
      if (!(bad == 0.f)) peak.finite = false;
      if (best > peak.value) {
        peak.value = best;
        for (j = 0; j < width - 1 && values[j] != best; j++) {}
        peak.id = column + j;
      }
    });
  }

  // Rotary positions (Su et al. 2021, arXiv:2104.09864), halves of a head against each other, then the new keys and values go
  // to their blocks. Queries and keys that have a norm of their own get it first.
  void rotate(const AttentionPlan& plan, KVMemory& memory, const Layer& layer, int index, int item, int tokens) {
    const int d = shape_.head_dim, q = shape_.heads * d, kv = shape_.kv_heads * d;
    for (int t = item * kRowChunk; t < std::min(tokens, (item + 1) * kRowChunk); t++) {
      T* row = qkv_.get() + at(t, qkv_width());
      const size_t place = at(plan.position(t), shape_.rotary / 2);
      for (int h = 0; h < shape_.heads + shape_.kv_heads; h++) {
        const auto& norm = h < shape_.heads ? layer.q_norm : layer.k_norm;
        turn(row + h * d, norm.empty() ? nullptr : norm.data(), layer.turns ? cos_.data() + place : nullptr, sin_.data() + place);
      }
      write_kv<T>(plan, memory, index, t, row + q, row + q + kv);
    }
  }

  void turn(T* head, const float* norm, const float* cos, const float* sin) const {
    if (norm == nullptr && cos == nullptr) return;
    const int d = shape_.head_dim, half = cos == nullptr ? 0 : shape_.rotary / 2;
    alignas(64) float x[kMaxHeadDim];
    widen(head, x, d);
    if (norm != nullptr) {
      f32x16 sums = {};
      int j = 0;
      for (; j + 16 <= d; j += 16) { const f32x16 v = load(x + j); sums = sums + v * v; }
      float sum = hsum(sums);
      for (; j < d; j++) sum += x[j] * x[j];
      const float scale = 1.f / std::sqrt(sum / static_cast<float>(d) + shape_.epsilon);
      for (j = 0; j < d; j++) x[j] *= scale * norm[j];
    }
    int j = 0;
    for (; j + 16 <= half; j += 16) {
      const f32x16 a = load(x + j), b = load(x + j + half), c = load(cos + j), s = load(sin + j);
      store(x + j, a * c - b * s);
      store(x + j + half, b * c + a * s);
    }
    for (; j < half; j++) {
      const float a = x[j], b = x[j + half];
      x[j] = a * cos[j] - b * sin[j];
      x[j + half] = b * cos[j] + a * sin[j];
    }
    for (j = 0; j + 16 <= d; j += 16) store(head + j, load(x + j));
    for (; j < d; j++) head[j] = from_float<T>(x[j]);
  }

  static void widen(const T* from, float* to, int count) {
    int j = 0;
    for (; j + 16 <= count; j += 16) store(to + j, load(from + j));
    for (; j < count; j++) to[j] = to_float(from[j]);
  }

  NetworkShape shape_;
  int threads_;
  std::vector<Layer> layers_;
  std::vector<float> cos_, sin_, norm_;
  Linear<T> head_;
  Buffer<float> stream_, kept_stream_, scratch_;
  Buffer<T> qkv_;
  Buffer<Factor<T>> normed_, attended_, activated_, kept_, kept_attended_;
  std::vector<Peak> peaks_;
  int capacity_ = 0, kept_capacity_ = 0, scratch_threads_ = 0;
  size_t scratch_each_ = 0;
};

}  // namespace waybill
