"""How large the layers of built images are, beside the wheels they are made of.

    python bench/sizes.py h100 ada             a table an image
    python bench/sizes.py --compare h100 ada   layer digests side by side

Compressed bytes are what a push moves: each layer is streamed out of the
engine through zstd at the level that `imgbuild build --push` uses.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import output
from imagelayers import Measured, layered_image, measure

from imgbuild.engines.docker import Docker
from imgbuild.matrix import load_matrix
from imgbuild.project import find_project

if TYPE_CHECKING:
    from imagelayers import LayeredImage


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    parser.add_argument("--compare", action="store_true", help="digests side by side, no sizes")
    parser.add_argument("--gzip", action="store_true", help="gzip -6 as well (slow)")
    parser.add_argument("--project", type=Path, help="folder with images/")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    project = find_project(args.project, cwd=Path.cwd())
    matrix = load_matrix(project.images)
    client = Docker(os.environ).client
    images = [
        layered_image(client, f"{matrix.common.image}:{target.name}", project, matrix)
        for target in matrix.select(tuple(args.targets), everything=False)
    ]
    if args.compare:
        data: Any = compare(images)
        text = comparison_text(images, data)
        name = f"layers-{'-'.join(args.targets)}"
    else:
        sizes: dict[str, Measured] = {}
        for image in images:  # a layer that several images share is measured once
            sizes = measure(client, image, sizes, with_gzip=args.gzip)
        data = [size_data(image, sizes) for image in images]
        text = "\n".join(size_text(d, with_gzip=args.gzip) for d in data)
        name = f"sizes-{'-'.join(args.targets)}"
    print(output.as_json(data) if args.json else text, end="")
    if args.keep:
        title = f"# {'Layers side by side' if args.compare else 'Sizes by layer'}\n\n"
        output.keep(
            name, f"{title}{machine.markdown()}\n{text}", {"machine": machine.describe(), "result": data}
        )


def size_data(image: LayeredImage, sizes: dict[str, Measured]) -> dict[str, Any]:
    groups = {layer.name: layer for layer in image.plan.layers}
    rows = []
    for layer in image.layers:
        group, measured = groups.get(layer.name), sizes[layer.digest]
        rows.append(
            {
                "layer": layer.name,
                "digest": layer.digest,
                "wheels": len(group.wheels) if group else None,
                "wheel_bytes": group.size if group else None,
                "unpacked": measured.unpacked,
                "zstd": measured.zstd,
                "gzip": measured.gzip,
            }
        )
    return {"image": image.reference, "comfyui": image.plan.source.version, "layers": rows}


def size_text(data: dict[str, Any], *, with_gzip: bool) -> str:
    rows = data["layers"]
    keys = ["wheels", "wheel_bytes", "zstd", *(["gzip"] if with_gzip else []), "unpacked"]
    heads = {
        "wheel_bytes": "locked wheels MB",
        "zstd": "zstd -3 MB",
        "gzip": "gzip -6 MB",
        "unpacked": "unpacked MB",
    }

    def cells(row: dict[str, Any]) -> list[str]:
        count = "–" if row["wheels"] is None else str(row["wheels"])
        return [row["layer"], count, *(output.megabytes(row[k]) for k in keys[1:])]

    total: dict[str, Any] = {"layer": "**all**", **{k: sum(r[k] or 0 for r in rows) for k in keys}}
    venv = sum(r["zstd"] for r in rows if r["wheel_bytes"])
    return (
        f"## {data['image']} (ComfyUI {data['comfyui']})\n\n"
        + output.table(
            ["layer", "wheels", *(heads[k] for k in keys[1:])],
            [*map(cells, rows), cells(total)],
            right=range(1, len(keys) + 1),
        )
        + f"\nThe locked wheels are the floor: their layers compress to {venv / total['wheel_bytes']:.2f} × their sum, "
        f"the whole image to {total['zstd'] / total['wheel_bytes']:.2f} ×.\n"
    )


def compare(images: list[LayeredImage]) -> list[dict[str, Any]]:
    """One row a layer name, in the order of the images."""
    names = list(dict.fromkeys(layer.name for image in images for layer in image.layers))
    rows = []
    for name in names:
        digests = [next((x.digest for x in i.layers if x.name == name), None) for i in images]
        rows.append({"layer": name, "digests": digests, "equal": len(set(digests)) == 1})
    return rows


def comparison_text(images: list[LayeredImage], rows: list[dict[str, Any]]) -> str:
    shown = [
        [r["layer"], *((d or "–")[7:19] or "–" for d in r["digests"]), "equal" if r["equal"] else "different"]
        for r in rows
    ]
    equal = sum(r["equal"] for r in rows)
    table = output.table(["layer", *(i.reference for i in images), ""], shown)
    return f"{table}\n{equal} of {len(rows)} layers are equal (digests of the uncompressed tars).\n"


if __name__ == "__main__":
    output.run(main)
