// A pool of threads that runs phases of items and waits for work, not for threads.
//
// Every item of a phase is done by exactly one thread; a phase starts when all items of the one before are done. Threads
// take items one by one, so a thread that the system has put aside holds up at most the item in its hands: the others
// take the rest of the phase and go on. An OpenMP barrier would wait for it in every phase, and on a small machine, where
// the engine shares its cores with an HTTP server, some thread is put aside most of the time.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace waybill {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  static constexpr int kMaxPhases = 4096;

  // `threads` counts the caller of `run`. Threads sleep while there is nothing to do.
  explicit Pool(int threads) : slots_(new Slot[kMaxPhases]) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(phase, item, thread) for every item of every phase; `items` holds the count of each phase. The caller is
  // thread 0. One call at a time. A phase count above kMaxPhases is the caller's mistake and ends the process.
  template <class Body>
  void run(int phases, const int* items, Body&& body) {
    if (phases > kMaxPhases) std::terminate();
    const uint64_t tag = tagged(epoch_.load(std::memory_order_relaxed) + 1);
    for (int p = 0; p < phases; p++) {
      // Closed before its count changes: a late thread must not mistake the new count for more items of the old run.
      slots_[p].next.store(tag | kClosed, std::memory_order_relaxed);
      slots_[p].count.store(static_cast<uint32_t>(items[p]), std::memory_order_release);
      slots_[p].done.store(tag, std::memory_order_relaxed);
      slots_[p].next.store(tag, std::memory_order_release);
    }
    using Plain = std::remove_reference_t<Body>;
    context_ = const_cast<void*>(static_cast<const void*>(&body));
    call_ = [](void* context, int phase, int item, int thread) { (*static_cast<Plain*>(context))(phase, item, thread); };
    phases_.store(phases, std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    if (!workers_.empty()) epoch_.notify_all();
    take_part(tag, phases, 0);
  }

 private:
  // `next` and `done` carry the run's tag in their upper half: a thread that wakes up late cannot take an item of a run
  // that it did not join.
  struct alignas(64) Slot {
    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> done{0};
    std::atomic<uint32_t> count{0};
    std::atomic<uint32_t> finished{0};   // the last run in which all items were done
  };

  static constexpr uint64_t kClosed = 0xffffffffULL;
  static constexpr int kSpins = 1000;        // some 40 us of waiting before the thread sleeps
  static constexpr int kIdleSpins = 4000;    // between two runs, before the thread sleeps
  static uint32_t epoch_of(uint64_t tag) { return static_cast<uint32_t>(tag >> 32); }
  static uint64_t tagged(uint32_t epoch) { return static_cast<uint64_t>(epoch) << 32; }

  // Does what there is to do in the run `tag`; returns when its last phase is done, or the run is over.
  void take_part(uint64_t tag, int phases, int thread) {
    for (int p = 0; p < phases; p++) {
      Slot& slot = slots_[p];
      uint64_t seen = slot.next.load(std::memory_order_acquire);
      for (;;) {
        if ((seen & ~kClosed) != tag) return;
        const uint32_t item = static_cast<uint32_t>(seen);
        if (item >= slot.count.load(std::memory_order_acquire)) break;
        if (!slot.next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
        call_(context_, p, static_cast<int>(item), thread);
        if (slot.done.fetch_add(1, std::memory_order_acq_rel) + 1 == tag + slot.count.load(std::memory_order_relaxed)) {
          slot.finished.store(epoch_of(tag), std::memory_order_release);
          slot.finished.notify_all();
        }
        seen = slot.next.load(std::memory_order_acquire);
      }
      if (slot.count.load(std::memory_order_relaxed) > 0 && !await(slot, epoch_of(tag))) return;
    }
  }

  // Waits until a phase is finished; false when the run was over already. Whoever waits for long sleeps: that leaves a core
  // idle, and the system then moves the thread there whose item is waited for.
  bool await(Slot& slot, uint32_t epoch) {
    uint32_t seen = slot.finished.load(std::memory_order_acquire);
    for (int spins = 0; seen != epoch; spins++) {
      if (epoch_.load(std::memory_order_relaxed) != epoch) return false;
      if (spins < kSpins) relax(); else slot.finished.wait(seen, std::memory_order_acquire);
      seen = slot.finished.load(std::memory_order_acquire);
    }
    return true;
  }

  void work(int thread) {
    uint32_t joined = 0;
    for (;;) {
      uint32_t now = epoch_.load(std::memory_order_acquire);
      for (int spins = 0; now == joined && spins < kIdleSpins; spins++) {
        relax();
        now = epoch_.load(std::memory_order_acquire);
      }
      if (now == joined) {
        epoch_.wait(joined, std::memory_order_acquire);
        continue;
      }
      joined = now;
      if (stop_.load()) return;
      take_part(tagged(now), phases_.load(std::memory_order_relaxed), thread);
    }
  }

  std::unique_ptr<Slot[]> slots_;
  std::vector<std::thread> workers_;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int> phases_{0};
  std::atomic<bool> stop_{false};
  void* context_ = nullptr;
  void (*call_)(void*, int, int, int) = nullptr;
};

}  // namespace waybill
