"""What values of settings are unsafe in production."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from itertools import pairwise

_WORDS = (
    *("a1b2c3d4", "admin", "apikey", "changeme", "deadbeef", "default", "example", "letmein"),
    *("password", "secret"),
)
# Alphabets, and the rows and columns of keyboards.
_SEQUENCES = (
    "01234567890 abcdefghijklmnopqrstuvwxyz qwertyuiop asdfghjkl zxcvbnm"
    " 1q2w3e4r5t6y7u8i9o0p 1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p"
)
_PREDICTABLE = {pair for one in (_SEQUENCES, _SEQUENCES[::-1]) for pair in pairwise(one)}
_FEWEST_CHARACTERS = 8  # different ones
_FEWEST_PAIRS = 8  # different ones that follow no sequence. 16 random hexadecimal digits have 11.

_PRIVATE = [
    ip_network(each)
    for each in (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"),
        *("169.254.0.0/16", "fc00::/7", "fe80::/10"),
    )
]
_MAPPED = IPv6Network("::ffff:0:0/96")
# The 256th part of all addresses. The proxies of a large content delivery network have fewer.
_MOST_ADDRESSES = {4: 2**24, 6: 2**112}


def is_guessable(key: str) -> bool:
    """Return whether the key is made of words, digits only, repetitions or sequences."""
    text = re.sub(r"[\W_]", "", key.lower())
    is_repeated = text in (text + text)[1:-1]  # a pattern with a back reference is quadratic
    if text.isdigit() or is_repeated or any(word in text for word in _WORDS):
        return True
    pairs = {(one, other) for one, other in pairwise(text) if one != other} - _PREDICTABLE
    return len(set(text)) < _FEWEST_CHARACTERS or len(pairs) < _FEWEST_PAIRS


def trusts_everyone(proxies: str) -> bool:
    """Return whether this `FORWARDED_ALLOW_IPS` contains a large part of all public addresses."""
    if "*" in proxies:
        return True
    public = [network for network in _networks(proxies) if not _is_private(network)]
    ipv4 = collapse_addresses(each for each in public if isinstance(each, IPv4Network))
    ipv6 = collapse_addresses(each for each in public if isinstance(each, IPv6Network))
    return any(
        sum(network.num_addresses for network in networks) > _MOST_ADDRESSES[version]
        for version, networks in ((4, ipv4), (6, ipv6))
    )


def _networks(proxies: str) -> Iterator[IPv4Network | IPv6Network]:
    for part in proxies.split(","):
        try:
            network = ip_network(part.strip(), strict=False)
        except ValueError:
            continue  # such as the path of a socket
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            address = network.network_address.ipv4_mapped
            network = IPv4Network(f"{address}/{network.prefixlen - _MAPPED.prefixlen}")
        yield network


def _is_private(network: IPv4Network | IPv6Network) -> bool:
    return any(
        network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]  # the same
        for each in _PRIVATE
    )
