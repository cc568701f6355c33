#!/bin/sh
# Makes the fixtures anew: ./make.sh NVCC. The ones that are here were made with nvcc 13.0.88 and g++ 12.2;
# test_fatbin.py says what is in them.
# shellcheck disable=SC2086  # $small is several words
set -eu
cd "$(dirname "$0")"
nvcc=$1
# Nobody loads them: no page sizes to be rounded up to.
small="-Xcompiler -fPIC,-Os -Xlinker -s,-z,noseparate-code,-z,norelro,-z,max-page-size=64,-z,common-page-size=64,--build-id=none -shared"

# Native code with each suffix, PTX for later GPUs; compressed with zstd.
"$nvcc" $small --compress-mode size -cudart none -o mixed.so add.cu twice.cu \
    -gencode "arch=compute_80,code=[sm_80,compute_80]" -gencode arch=compute_90a,code=sm_90a \
    -gencode arch=compute_120f,code=sm_120f -gencode arch=compute_121a,code=sm_121a

# For one GPU alone; as it comes.
"$nvcc" $small -cudart none -o exact.so add.cu -gencode arch=compute_121a,code=sm_121a

# Relocatable code, and what the device linker made of it.
"$nvcc" $small --compress-mode speed -rdc=true -cudart shared -o linked.so add.cu twice.cu \
    -gencode "arch=compute_89,code=[sm_89,compute_89]"
