// AMX: matrix products of bfloat16 in tile registers of 16 rows of 64 bytes.
//
// Tiles 0 to 3 hold results, 4 and 5 rows of the left factor, 6 and 7 of the right one, whose rows are pairs of its own
// rows: the order in which weights, keys and values are kept. An element of a result is accumulated in one order,
// whatever the number of rows.
#pragma once

#if defined(__AMX_BF16__)

#include <immintrin.h>

#include <cstdint>

namespace waybill {

// For results of `upper` rows (tiles 0 and 1, left factor 4) and `lower` rows (tiles 2 and 3, left factor 5). Attention has one
// left factor, tile 4, for all four.
inline void configure_tiles(int upper, int lower) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < 8; t++) config.row_bytes[t] = 64;
  config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(upper);
  config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(lower);
  config.rows[6] = config.rows[7] = 16;
  // GCC takes the instruction to read the first eight bytes only, and might leave the others unwritten.
  __asm__ volatile("" : : "m"(config));
  _tile_loadconfig(&config);
}

// What was written before is there when tiles load it: GCC does not know that these instructions read memory.
inline void settle() { __asm__ volatile("" : : : "memory"); }

inline void release_tiles() { _tile_release(); }

}  // namespace waybill

#endif
