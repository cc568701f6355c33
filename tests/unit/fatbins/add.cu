// One kernel; which code the fixtures hold is make.sh's matter.
__global__ void add(float *sum, const float *more, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) sum[i] += more[i];
}

void add_on_gpu(float *sum, const float *more, int n) { add<<<1, 256>>>(sum, more, n); }
