"""Workflows of the tests: a tiny model, two or three steps, a latent on disk."""

from __future__ import annotations

from typing import Any

Node = dict[str, Any]
Graph = dict[str, Node]


def node(kind: str, **inputs: Any) -> Node:
    return {"class_type": kind, "inputs": inputs}


def stock(model: str) -> Graph:
    return {"model": node("UNETLoader", unet_name=model, weight_dtype="default")}


SWAP: dict[str, Any] = {
    "initial_gpu_layers": 1,
    "final_gpu_layers": 1,
    "prefetch": 1,
    "threading": False,
    "event_sync": False,
    "cuda_streams": False,
    "batch_move": False,
    "selective_packing": 0,
    "verbose": False,
    "compile": False,
}


def swapping(
    model: str, loader: str = "DGLS_ModelLoader", swapper: str = "DGLS_SwappingLoader", **inputs: Any
) -> Graph:
    load = {"model_name": model, "model_type": "default", "cast_dtype": "default"}
    return {
        "load": node(loader, **load, clear_model_cache=False, verbose=False),
        "model": node(swapper, model=["load", 0], layers=["load", 1], **SWAP | inputs),
    }


def with_lora(graph: Graph, name: str, strength: float = 1.0, at: str = "model") -> Graph:
    """A LoRA after the node `at`, which keeps its name for those that follow."""
    graph = {key: dict(value) for key, value in graph.items()}
    graph["bare"] = graph.pop(at)
    graph[at] = node("LoraLoaderModelOnly", model=["bare", 0], lora_name=name, strength_model=strength)
    return graph


def sampled(
    graph: Graph,
    *,
    video: bool,
    steps: int = 2,
    seed: int = 5,
    cfg: float = 1.0,
    size: int = 8,
    prefix: str = "t",
    model: str = "model",
) -> Graph:
    return graph | {
        "positive": node("TestConditioning", tokens=8, width=4096, pooled=0 if video else 768, seed=1),
        "negative": node("TestConditioning", tokens=8, width=4096, pooled=0 if video else 768, seed=2),
        "latent": node("TestLatent", channels=16, frames=2 if video else 0, height=size, width=size),
        "sample": node(
            "KSampler",
            model=[model, 0],
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name="euler",
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }
