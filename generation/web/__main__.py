"""Serve a page that fills blanks, and the same over HTTP.

    python -m generation.web CHECKPOINT [--port 8000] [--host 127.0.0.1]

CHECKPOINT is what generation.api.load_model takes: a run's folder of checkpoints, one checkpoint, a file of weights or
a Hugging Face folder. docs/web.md explains the page, the HTTP interface and the limits.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from files.errors import check_bounds, run_main
from generation.web.limits import Limits
from model.released import demo_model, demo_notice

TYPES = {"fp16": "float16", "bf16": "bfloat16"}
DEFAULT_CHECKPOINT = "quickstart/checkpoints/quickstart"
LIMITS = {one.name if one.name.endswith(("length", "tokens")) else f"max_{one.name}": one for one in fields(Limits)}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m generation.web", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help=f"(default: {DEFAULT_CHECKPOINT} where it is, else the demo model)")
    add("--host", default="127.0.0.1", help="address to listen at; others than loopback let other machines in, "
        "who are not asked for a password (default: %(default)s)")  # fmt: skip
    add("--port", type=int, default=8000, help="0 is any that is free (default: %(default)s)")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a name of this server beside localhost "
        "and addresses, as a browser types it; may be given several times")  # fmt: skip
    model = parser.add_argument_group("model")
    add = model.add_argument
    add("--settings", metavar="FILE", help="config.json of the run that trained the checkpoint")
    add("--released", metavar="NAME", help="the released model that it is (python -m model.released)")
    add("--model-file", metavar="FILE", help="of config_tasks/ that names the checkpoint, for the command lines shown")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: a GPU where there is one)")
    precision = model.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_const", dest="precision", const="fp16", help="weights of 16 bits")
    precision.add_argument("--bf16", action="store_const", dest="precision", const="bf16", help="weights in bf16")
    precision.add_argument("--int8", action="store_const", dest="precision", const="int8", help="of 8 bits (CPU)")
    add("--fill", choices=("append", "replace"), default="append", help="what a blank sees of those before it: a piece "
        "after the text, or (multilingual release) in its mask's place (default: %(default)s)")  # fmt: skip
    limits = parser.add_argument_group("limits, for what a client asks for and for all together")
    for name, one in LIMITS.items():
        text = f"{one.metadata['help']} (default: %(default)s)"
        limits.add_argument(f"--{name.replace('_', '-')}", type=type(one.default), default=one.default, help=text)
    return parser


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ValueError where none can."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host") from None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what listens at ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model and serve it until a signal ends it."""
    values = get_parser().parse_args(argv)
    check_bounds(values, ["port"], at_least=0, at_most=65535)
    for name, one in LIMITS.items():
        check_bounds(values, [name], at_least=one.metadata["at_least"], at_most=one.metadata["at_most"])
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name} is missing; pip install starlette uvicorn") from None
    if values.checkpoint is None and Path(DEFAULT_CHECKPOINT).exists():
        values.checkpoint = DEFAULT_CHECKPOINT
    elif values.checkpoint is None:
        values.checkpoint = str(demo_model())
        print(f"{demo_notice()}; bash scripts/quickstart.sh makes another", flush=True)

    import torch

    from generation.api import load_model
    from generation.web.app import build_app, build_server

    with listen(values.host, values.port) as listener:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if values.device == "auto" else values.device
        glm = load_model(
            values.checkpoint,
            settings=values.settings,
            released=values.released,
            dtype=getattr(torch, TYPES[values.precision]) if values.precision in TYPES else None,
            device=device,
            int8=values.precision == "int8",
        )
        if glm.report is not None:
            print(glm.report.summary(), flush=True)
        private = is_loopback(values.host)
        path = Path(values.checkpoint)
        shown = str(values.checkpoint) if private else path.name
        program = ["python", "generate_samples.py", "--load-pretrained", shown]
        if values.model_file is not None:  # whose flags the model needs
            program = ["bash", "scripts/generate_block.sh", values.model_file]
        program += [f"--{values.precision or 'fp32'}"] if values.precision or values.model_file else []
        app = build_app(
            glm.filler,
            limits=Limits(**{one.name: getattr(values, name) for name, one in LIMITS.items()}),
            name=path.name,
            program=program,
            fill=values.fill,
            allowed_hosts=values.allowed_host,
        )
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        print(f"the page is at http://{address}:{port}/ (Ctrl-C ends it)", flush=True)
        if not private:
            print("note: other machines reach it too, without a password and unencrypted", flush=True)
        build_server(app).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    run_main(main)
