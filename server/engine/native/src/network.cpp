// The decoder network as seen from Python. Element types: 2 bytes for bfloat16, 4 for float32.
#include "network.h"

namespace {

using waybill::bf16;
using waybill::Network;
using waybill::NetworkShape;

struct AnyNetwork {
  std::unique_ptr<Network<bf16>> half;
  std::unique_ptr<Network<float>> full;
};

// Pointers to a layer's tensors, contiguous. Weights and embeddings are of the network's type, norms and biases float32.
struct LayerTensors {
  const void *q, *k, *v, *o, *gate, *up, *down;
  const float *q_bias, *k_bias, *v_bias, *input_norm, *post_norm, *q_norm, *k_norm;
  float scaling, softcap;
  int32_t window, turns;
};

template <class T>
typename Network<T>::Weights typed(const LayerTensors& t) {
  const auto as = [](const void* p) { return static_cast<const T*>(p); };
  return {as(t.q),  as(t.k),  as(t.v),  as(t.o),      as(t.gate),  as(t.up),  as(t.down), t.q_bias,  t.k_bias,
          t.v_bias, t.input_norm, t.post_norm, t.q_norm, t.k_norm, t.scaling, t.softcap,  t.window, t.turns};
}

}  // namespace

extern "C" {

void* waybill_network_create(const NetworkShape* shape, const float* cos, const float* sin, int threads, int element_bytes) {
  auto* any = new AnyNetwork;
  if (element_bytes == 2) any->half = std::make_unique<Network<bf16>>(*shape, cos, sin, threads);
  else any->full = std::make_unique<Network<float>>(*shape, cos, sin, threads);
  return any;
}

void waybill_network_destroy(void* network) { delete static_cast<AnyNetwork*>(network); }

void waybill_network_set_layer(void* network, int index, const LayerTensors* tensors) {
  auto* any = static_cast<AnyNetwork*>(network);
  if (any->half) any->half->set_layer(index, typed<bf16>(*tensors));
  else any->full->set_layer(index, typed<float>(*tensors));
}

void waybill_network_set_head(void* network, const void* weight, const float* norm) {
  auto* any = static_cast<AnyNetwork*>(network);
  if (any->half) any->half->set_head(static_cast<const bf16*>(weight), norm);
  else any->full->set_head(static_cast<const float*>(weight), norm);
}

void waybill_network_limit_windows(void* network, int tokens) {
  auto* any = static_cast<AnyNetwork*>(network);
  if (any->half) any->half->limit_windows(tokens);
  else any->full->limit_windows(tokens);
}

void waybill_network_forward(void* network, void* pool, const void* plan, void* memory, const void* embeddings,
                             const int32_t* keep, int count, float* logits, float* peak_values, int32_t* peak_ids,
                             uint8_t* peak_finite) {
  auto* any = static_cast<AnyNetwork*>(network);
  auto& threads = *static_cast<waybill::Pool*>(pool);
  const auto& step = *static_cast<const waybill::AttentionPlan*>(plan);
  auto& kv = *static_cast<waybill::KVMemory*>(memory);
  if (any->half)
    any->half->forward(threads, step, kv, static_cast<const bf16*>(embeddings), keep, count, logits, peak_values, peak_ids, peak_finite);
  else
    any->full->forward(threads, step, kv, static_cast<const float*>(embeddings), keep, count, logits, peak_values, peak_ids, peak_finite);
}

}  // extern "C"
