// A kernel whose result is known: does code for this image's GPU run on this GPU?
//
// Every thread mixes its index through instructions that the compiler cannot fold (the seed comes at run
// time), so that equal sums mean that the code ran, on all threads, and ran right.

#include <cstdint>
#include <cuda_runtime.h>

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 64;

__host__ __device__ inline std::uint64_t mix(std::uint64_t x) {  // splitmix64's finaliser
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

__global__ void sum_of_mixes(std::uint64_t seed, unsigned long long* total) {
    const std::uint64_t i = blockIdx.x * static_cast<std::uint64_t>(blockDim.x) + threadIdx.x;
    atomicAdd(total, static_cast<unsigned long long>(mix(seed + i)));
}

}  // namespace

extern "C" {

// What the kernel must find, computed by the CPU.
std::uint64_t imgbuild_probe_expected(std::uint64_t seed) {
    std::uint64_t total = 0;
    for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(kThreads) * kBlocks; ++i) total += mix(seed + i);
    return total;
}

// Run on a device. Returns 0 or a cudaError_t; *actual and *capability (121 for 12.1) are set on success.
int imgbuild_probe_run(int device, std::uint64_t seed, std::uint64_t* actual, int* capability) {
    unsigned long long* total = nullptr;
    int major = 0, minor = 0;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (error == cudaSuccess) error = cudaMalloc(&total, sizeof *total);
    if (error == cudaSuccess) error = cudaMemset(total, 0, sizeof *total);
    if (error == cudaSuccess) {
        sum_of_mixes<<<kBlocks, kThreads>>>(seed, total);
        error = cudaGetLastError();
    }
    unsigned long long found = 0;
    if (error == cudaSuccess) error = cudaMemcpy(&found, total, sizeof found, cudaMemcpyDeviceToHost);
    if (total != nullptr) cudaFree(total);
    if (error == cudaSuccess) {
        *actual = found;
        *capability = major * 10 + minor;
    }
    return static_cast<int>(error);
}

const char* imgbuild_probe_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // extern "C"
