"""Compiles the probe with nvcc for the one architecture in IMGBUILD_PROBE_ARCH (sm_121, say)."""

import os
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class Build(build_py):
    def run(self) -> None:
        super().run()
        library = Path(self.build_lib, "imgbuild_probe", "libimgbuild_probe.so")
        arch = os.environ["IMGBUILD_PROBE_ARCH"]
        command = [os.environ["PYTORCH_NVCC"], "-ccbin", os.environ["CXX"], "-O2", "-std=c++17", "-shared"]
        command += ["-Xcompiler", "-fPIC", "-cudart", "static"]  # loads without torch and its libraries
        command += ["-gencode", f"arch={arch.replace('sm', 'compute')},code={arch}"]
        subprocess.run([*command, "-o", str(library), "probe.cu"], check=True)


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]  # ctypes: any Python, one platform


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    name="imgbuild-probe",
    version="1.0.0",
    description="Does code for this image's GPU run on this GPU?",
    license="MIT",
    python_requires=">=3.10",
    packages=["imgbuild_probe"],
    cmdclass={"build_py": Build, "bdist_wheel": Wheel},
    distclass=Binary,
)
