// Access patterns whose sectors and bank conflicts are known.
extern "C" __global__ void patterns(const float* x, float* y, const float4* v) {
  __shared__ float s[32 * 33];
  const int t = threadIdx.x;
  for (int i = 0; i < 33; ++i) s[i * 32 + t] = i;
  __syncwarp();
  float sum = x[t * 32];     // 32 sectors
  sum += x[t];               // 4 sectors
  sum += x[t + 1];           // 5 sectors: one past a 128-byte line
  const float4 q = v[t];     // 16 sectors in 4 requests
  sum += q.x + q.y + q.z + q.w;
  sum += s[t * 32];          // 32 waves
  sum += s[t * 33];          // 1 wave
  sum += s[(t * 2) & 63];    // 2 waves
  sum += s[5];               // 1 wave: broadcast
  y[t] = sum;
}
