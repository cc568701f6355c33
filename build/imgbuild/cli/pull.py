from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from imgbuild.cli.app import App, complete_target
from imgbuild.cli.finding import engine_option, json_option, the_engine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.engines.store import Store
    from imgbuild.hardware import Hardware
    from imgbuild.pull import Offer


@click.command("pull")
@click.option(
    "-t",
    "--target",
    "name",
    default="auto",
    show_default=True,
    metavar="auto|NAME",
    shell_complete=complete_target,
    help="auto takes the one made for this machine's GPU.",
)
@click.option(
    "--registry",
    "where",
    required=True,
    metavar="REGISTRY/PATH",
    envvar="IMGBUILD_REGISTRY",
    show_envvar=True,
    help="Where imgbuild publish put the images: the same words.",
)
@click.option(
    "--verify-key", "key", metavar="KEY", help="Only what is signed by this key; cosign's public one."
)
@engine_option
@click.option("--dry-run", is_flag=True, help="Say what would be pulled, and pull nothing.")
@json_option
@click.pass_obj
def command(
    app: App, name: str, where: str, key: str | None, engine: str, dry_run: bool, as_json: bool
) -> None:
    """Fetch the image that runs on this machine's GPU.

    Labels are read in the registry, and no layer, before one is chosen. What is fetched is fetched by digest, and gets
    the tag that imgbuild build gives.
    """
    from imgbuild import pull
    from imgbuild.doctor.probe import this_machine
    from imgbuild.engines.store import check_room, store
    from imgbuild.hardware import look
    from imgbuild.reference import image_in
    from imgbuild.remoteimage import machine_platform
    from imgbuild.report import say, warn

    matrix = app.matrix()
    place = image_in(where, matrix.common.image)
    asked = None if name == "auto" else matrix.select([name])[0]
    own = the_engine(app, engine)
    engine_store = store(own) if own.alive() else None
    if engine_store is None and not dry_run:
        from imgbuild.subject import check_engine

        check_engine(own)
    hardware = look(this_machine(app.env).run)
    targets = [asked] if asked else list(matrix.targets.values())
    again = f"imgbuild pull --target {name} --registry {where}"
    offers = pull.offers(place, targets, env=app.env, say=say, again=again)
    moving = _moving(offers, engine_store)
    if not as_json:
        _show(place.repository, offers, hardware, machine_platform(), moving)
    decision = pull.decide(
        offers, hardware, machine_platform(), asked=asked.name if asked else None, where=place
    )
    image = decision.offer.image
    assert image is not None
    if decision.warning:
        warn(decision.warning)
    if key is not None:
        from imgbuild.cosign import verify_signature

        verify_signature(image.top, key, app.env)
        say(f"{image.top} is signed by {key}")
    document: dict[str, Any] = pull.as_json(decision, offers, hardware, moving) if as_json else {}
    if dry_run:
        say(f"would pull {image.pinned} and tag it {matrix.common.image}:{decision.offer.target}")
    else:
        assert engine_store is not None
        target = decision.offer.target  # blobs, and what they are unpacked to, lie in the engine
        check_room(engine_store, int(moving[target] * pull.UNPACKED), f"{target} needs")
        done = pull.fetch(engine_store, image, f"{matrix.common.image}:{decision.offer.target}", env=app.env)
        document["pulled"] = {"name": done.name, "digest": done.digest, "before": done.before}
        say(f"{done.name} is {done.reference}")
        if done.before:
            say(f"before it was {done.before[:19]}, which stays until imgbuild prune or {engine} removes it")
    if as_json:
        import json

        click.echo(json.dumps(document, indent=2))


def _moving(offers: Sequence[Offer], engine_store: Store | None) -> dict[str, int]:
    """Bytes that the engine would have to fetch, by target."""
    from imgbuild.pull import to_move

    here = engine_store.chains() if engine_store else frozenset()
    return {o.target: to_move(o.image, here) for o in offers if o.image is not None}


def _show(
    where: str, offers: Sequence[Offer], hardware: Hardware, platform: str, moving: Mapping[str, int]
) -> None:
    from imgbuild.choice import judge
    from imgbuild.cli.finding import amount
    from imgbuild.report import say, table

    seen = ", ".join(dict.fromkeys(str(g) for g in hardware.gpus)) or "no GPU"
    driver = f", driver {hardware.driver}" if hardware.driver else ""
    say(f"this machine: {platform}, {seen}{driver}")
    rows = []
    for offer in offers:
        verdict = judge(offer.candidate, hardware, platform)
        rows.append(
            [
                offer.target,
                "yes" if verdict.runs else "no",
                verdict.why,
                amount(offer.size),
                amount(moving.get(offer.target)),
            ]
        )
    table(where, ["target", "runs here", "why", "compressed", "to fetch, at most"], rows, right=(3, 4))
