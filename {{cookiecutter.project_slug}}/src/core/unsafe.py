"""What values of settings are unsafe in production."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
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
_FEWEST_CHARACTERS = 6  # different ones
_FEWEST_PAIRS = 7  # different ones that follow no sequence. 16 random hexadecimal digits have 11.

# Of the prefixes of networks. Those of content delivery networks are longer.
_SHORTEST_IPV4, _SHORTEST_IPV6 = 8, 16
_PRIVATE = (IPv6Network("fc00::/7"), IPv6Network("fe80::/10"))
_MAPPED = IPv6Network("::ffff:0:0/96")  # all IPv4 addresses, as IPv6 sockets have them


def is_guessable(key: str) -> bool:
    """Return whether the key is made of words, digits only, repetitions or sequences."""
    text = re.sub(r"[\W_]", "", key.lower())
    return text.isdigit() or is_patterned(text) or any(word in text for word in _WORDS)


def is_patterned(text: str) -> bool:
    """Return whether the text, in lowercase, is made of repetitions or sequences."""
    if is_repeated(text):
        return True
    pairs = {(one, other) for one, other in pairwise(text) if one != other} - _PREDICTABLE
    return len(set(text)) < _FEWEST_CHARACTERS or len(pairs) < _FEWEST_PAIRS


def is_repeated(text: str) -> bool:
    return text in (text + text)[1:-1]  # a pattern with a back reference is quadratic


def trusts_everyone(proxies: str) -> bool:
    """Return whether this `FORWARDED_ALLOW_IPS` contains a network of much of the internet."""
    return "*" in proxies or any(map(_is_large, proxies.split(",")))


def _is_large(proxy: str) -> bool:
    try:
        network = ip_network(proxy.strip(), strict=False)
    except ValueError:
        return False  # such as the path of a socket
    if isinstance(network, IPv4Network):
        return network.prefixlen < _SHORTEST_IPV4
    if network.overlaps(_MAPPED):
        return network.prefixlen < _MAPPED.prefixlen + _SHORTEST_IPV4
    is_private = any(network.subnet_of(each) for each in _PRIVATE)
    return network.prefixlen < _SHORTEST_IPV6 and not is_private
