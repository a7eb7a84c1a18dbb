// What Python calls before any kernel: permission for the processor's instructions, and the pool of threads.
#include "pool.h"

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {

// Asks the system for what the kernels need; 0 when it is granted. Linux hands out AMX's tile registers on request only,
// once per process and before its threads start.
int waybill_prepare() {
#if defined(__AMX_TILE__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : 1;
#else
  return 0;
#endif
}

void* waybill_pool_create(int threads) { return new waybill::Pool(threads); }

void waybill_pool_destroy(void* pool) { delete static_cast<waybill::Pool*>(pool); }

}  // extern "C"
