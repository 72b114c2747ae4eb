// Boxes, and what the size of a photo has to do with them, as they lie in memory (src/ops/decode_boxes.rs).
#pragma once
#include "common/storage.cuh"

struct alignas(16) Box { float left, top, right, bottom; };

// Height and width in the network's input, and by how much the photo was enlarged along each.
struct alignas(16) Photo { float height, width, down, across; };
