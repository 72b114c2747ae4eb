struct P { int n; float s; int k[4]; };
__constant__ float tab[4] = {1.f,2.f,3.f,4.f};
__device__ int counter;
__device__ __noinline__ float helper(float a, int b) { float t[8]; for(int i=0;i<8;i++) t[i]=a*i; return t[b&7]+expf(a); }
extern "C" __global__ void __launch_bounds__(128) k1(const float* __restrict__ a, float* y, const P p) {
  __shared__ float buf[128];
  extern __shared__ __align__(16) unsigned char dyn[];
  int i = blockIdx.x*blockDim.x+threadIdx.x;
  float v = i < p.n ? a[i] : 0.f;
  buf[threadIdx.x]=v; __syncthreads();
  for(int s=64;s>0;s>>=1){ if(threadIdx.x<s) buf[threadIdx.x]+=buf[threadIdx.x+s]; __syncthreads(); }
  if (threadIdx.x==0) { y[blockIdx.x]=helper(buf[0]*p.s, p.k[i&3]) + tab[i&3]; atomicAdd(&counter,1); }
  float w = __shfl_xor_sync(0xffffffffu, v, 1) + tanhf(v)+ v / p.s + sqrtf(v) + __expf(v)+ logf(v)+sinf(v);
  switch(p.n){case 0:w+=1;break;case 1:w*=2;break;case 2:w-=3;break;case 3:w/=4;break;case 5:w=sqrtf(w);break;case 6: w=-w;break;case 7: w=w*w;}
  if (__any_sync(0xffffffffu, w>3.f)) y[i+512]=w;
  ((double*)dyn)[threadIdx.x]=w*2.0;
  __syncwarp();
  y[i+1024] = ((double*)dyn)[threadIdx.x^1] + (long long)p.n*i/7 + i%p.n;
}
