"""Whether what is sent to a server can be read on the way."""

from __future__ import annotations

from ipaddress import ip_address

from hubbub.cli._doctor.findings import Finding, error


def is_this_machine(host: str) -> bool:
    """Whether the host is the loopback interface, where nobody listens in who could not read memory as well."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def unencrypted(service: str, remedy: str) -> Finding:
    meaning = f"What goes to {service} and back can be read and changed on the way: messages, hashes, tokens."
    return error(meaning, remedy)
