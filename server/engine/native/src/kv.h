// The KV memory: keys and values of all layers in blocks, in the order in which the kernels multiply them.
//
// A block holds 32 tokens of one head of one layer: first its keys, then its values. Keys lie in two tiles of 16 tokens,
// bf16 as [dims/2][16][2] and float as [dims][16], so that one vector holds the same dimensions of 16 keys. Values lie in
// pairs of tokens, bf16 as [16 pairs][dims][2], or one by one, float as [32][dims]. Heads are padded with zeros to a
// multiple of 32 dimensions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace waybill {

constexpr int kBlock = 32;   // tokens
constexpr int kTile = 16;    // keys whose scores one vector holds

struct KVMemory {
  void* base;
  int32_t layers, blocks, kv_heads, head_dim, padded;

  size_t part() const { return static_cast<size_t>(kBlock) * padded; }   // elements of a block's keys of one head
  template <class T>
  T* keys(int layer, int block, int head) const {
    return static_cast<T*>(base) + ((static_cast<size_t>(layer) * blocks + block) * kv_heads + head) * 2 * part();
  }
  template <class T>
  T* values(int layer, int block, int head) const { return keys<T>(layer, block, head) + part(); }
};

// Where dimension d of the key in `slot` lies in a block's keys; the same for values.
template <class T>
size_t key_place(int padded, int slot, int d) {
  const size_t tile = static_cast<size_t>(slot / kTile) * padded * kTile;
  if constexpr (sizeof(T) == 2) return tile + (static_cast<size_t>(d / 2) * kTile + slot % kTile) * 2 + d % 2;
  else return tile + static_cast<size_t>(d) * kTile + slot % kTile;
}

template <class T>
size_t value_place(int padded, int slot, int d) {
  if constexpr (sizeof(T) == 2) return (static_cast<size_t>(slot / 2) * padded + d) * 2 + slot % 2;
  else return static_cast<size_t>(slot) * padded + d;
}

}  // namespace waybill
