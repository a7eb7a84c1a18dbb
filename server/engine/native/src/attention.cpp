// Attention as seen from Python: the plan of a step, attention of one layer, and care of the KV memory. Element types: 2
// bytes for bfloat16, 4 for float32.
#include "attention.h"

#include <memory>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "gemm.h"
#include "pool.h"

namespace {

using waybill::AttentionPlan;
using waybill::bf16;
using waybill::KVMemory;
using waybill::LayerAttention;
using waybill::PlanRow;

struct Scratch {
  waybill::Buffer<float> floats;
  size_t each = 0;
};

template <class T>
void attend(waybill::Pool& pool, const AttentionPlan& plan, const KVMemory& memory, Scratch& scratch, int layer,
            const LayerAttention& settings, const T* q, const T* k, const T* v, T* out) {
  const int tokens = plan.tokens(), chunks = (tokens + 7) / 8, items[] = {chunks, plan.items()};
  const ptrdiff_t q_width = static_cast<ptrdiff_t>(settings.heads) * memory.head_dim;
  const ptrdiff_t kv_width = static_cast<ptrdiff_t>(memory.kv_heads) * memory.head_dim;
  const size_t each = waybill::scratch_floats(memory, settings.heads);
  if (each > scratch.each) {
    scratch.floats = waybill::make_buffer<float>(each * pool.threads());
    scratch.each = each;
  }
  pool.run(2, items, [&](int phase, int item, int thread) {
    if (phase == 1)
      return attend_item<T>(plan, memory, layer, settings, q, q_width, out, q_width, item,
                            scratch.floats.get() + scratch.each * thread);
    for (int t = item * 8; t < std::min(tokens, item * 8 + 8); t++)
      write_kv<T>(plan, memory, layer, t, k + t * kv_width, v + t * kv_width);
  });
}

// Copies `length` tokens of a prefix [layers][2][kv_heads][length][head_dim] to blocks, from their start.
template <class T>
void install(const KVMemory& memory, const int32_t* blocks, const T* prefix, int length) {
  const int d = memory.head_dim;
  for (int l = 0; l < memory.layers; l++)
    for (int h = 0; h < memory.kv_heads; h++)
      for (int t = 0; t < length; t++) {
        const int block = blocks[t / waybill::kBlock], slot = t % waybill::kBlock;
        T* keys = memory.keys<T>(l, block, h);
        T* values = memory.values<T>(l, block, h);
        const T* k = prefix + ((static_cast<size_t>(2 * l) * memory.kv_heads + h) * length + t) * d;
        const T* v = prefix + ((static_cast<size_t>(2 * l + 1) * memory.kv_heads + h) * length + t) * d;
        for (int j = 0; j < d; j++) {
          keys[waybill::key_place<T>(memory.padded, slot, j)] = k[j];
          values[waybill::value_place<T>(memory.padded, slot, j)] = v[j];
        }
      }
}

// Copies the first `length` tokens of a block to another, or leaves them where both are one, and clears the others.
template <class T>
void copy(const KVMemory& memory, int source, int target, int length) {
  for (int l = 0; l < memory.layers; l++)
    for (int h = 0; h < memory.kv_heads; h++) {
      T* keys = memory.keys<T>(l, target, h);
      T* values = memory.values<T>(l, target, h);
      if (source != target) std::memcpy(keys, memory.keys<T>(l, source, h), 2 * memory.part() * sizeof(T));
      for (int slot = length; slot < waybill::kBlock; slot++)
        for (int j = 0; j < memory.padded; j++)
          keys[waybill::key_place<T>(memory.padded, slot, j)] = values[waybill::value_place<T>(memory.padded, slot, j)] = T{};
    }
}

}  // namespace

extern "C" {

// Asks the system for pages of 2 MB, before the memory is first written. Blocks lie anywhere in it, and with small pages
// most of them cost a walk through the page tables.
void waybill_prefer_large_pages(void* base, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(base) + kPage - 1) / kPage * kPage;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(base) + bytes) / kPage * kPage;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);   // a system may have none: no harm done
#else
  (void)base, (void)bytes;
#endif
}

void* waybill_plan_create(int kv_heads, int threads) { return new AttentionPlan(kv_heads, threads); }

void waybill_plan_destroy(void* plan) { delete static_cast<AttentionPlan*>(plan); }

// Rows of equal `prefix_blocks` pointers share a prefix. What they point to must live until the next call.
void waybill_plan_build(void* plan, const PlanRow* rows, int count) { static_cast<AttentionPlan*>(plan)->build(rows, count); }

void* waybill_scratch_create() { return new Scratch; }

void waybill_scratch_destroy(void* scratch) { delete static_cast<Scratch*>(scratch); }

// q [tokens][heads][head_dim], k and v [tokens][kv_heads][head_dim], out like q; all contiguous.
void waybill_attend(void* pool, const void* plan, const KVMemory* memory, void* scratch, int element_bytes, int layer,
                    const LayerAttention* settings, const void* q, const void* k, const void* v, void* out) {
  auto& threads = *static_cast<waybill::Pool*>(pool);
  const auto& step = *static_cast<const AttentionPlan*>(plan);
  auto& room = *static_cast<Scratch*>(scratch);
  if (element_bytes == 2)
    attend(threads, step, *memory, room, layer, *settings, static_cast<const bf16*>(q), static_cast<const bf16*>(k),
           static_cast<const bf16*>(v), static_cast<bf16*>(out));
  else
    attend(threads, step, *memory, room, layer, *settings, static_cast<const float*>(q), static_cast<const float*>(k),
           static_cast<const float*>(v), static_cast<float*>(out));
}

void waybill_install(const KVMemory* memory, int element_bytes, const int32_t* blocks, const void* prefix, int length) {
  if (element_bytes == 2) install(*memory, blocks, static_cast<const bf16*>(prefix), length);
  else install(*memory, blocks, static_cast<const float*>(prefix), length);
}

void waybill_zero(const KVMemory* memory, int element_bytes, const int32_t* blocks, int count) {
  const size_t bytes = 2 * memory->part() * memory->kv_heads * element_bytes;
  for (int l = 0; l < memory->layers; l++)
    for (int i = 0; i < count; i++)
      std::memset(static_cast<char*>(memory->base) + (static_cast<size_t>(l) * memory->blocks + blocks[i]) * bytes, 0, bytes);
}

void waybill_copy(const KVMemory* memory, int element_bytes, int source, int target, int length) {
  if (element_bytes == 2) copy<bf16>(*memory, source, target, length);
  else copy<float>(*memory, source, target, length);
}

}  // extern "C"
