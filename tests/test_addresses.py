"""Which addresses may be read: spellings, numbers, names, and the list of exceptions."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.envs.web_search.addresses import AddressPolicy, is_public, parse_address
from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.errors import ConfigError, ToolError

PUBLIC = "93.184.215.14"


def resolver(*answers: str | Exception) -> Any:
    """A name service that gives one list of numbers (split at blanks) after another."""
    left = list(answers)

    def look_up(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answer.split()]

    return look_up


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://example.com", "http://example.com/"),
        ("  HTTPS://Example.COM.:443/a?b=c#d  ", "https://example.com/a?b=c"),
        ("http://example.com:8080/", "http://example.com:8080/"),
        ("http://example.com:080/", "http://example.com/"),
        ("http://例え.テスト/ä?ö=ü", "http://xn--r8jz45g.xn--zckzah/%C3%A4?%C3%B6=%C3%BC"),
        ("http://xn--r8jz45g.xn--zckzah/", "http://xn--r8jz45g.xn--zckzah/"),
        ("http://example.com/a%20b/(c)?d=%26&e=[1]|2", "http://example.com/a%20b/(c)?d=%26&e=[1]|2"),
        ("http://[2606:4700::0:1111]:8080/", "http://[2606:4700::1111]:8080/"),
        ("http://①②⑦.⓪.⓪.①/", "http://127.0.0.1/"),
        ("http://127。0。0。1/", "http://127.0.0.1/"),
        ("http://127.0.0.1./", "http://127.0.0.1/"),
        ("http://ⓛocalhost/", "http://localhost/"),
        ("http://under_score.example.com/", "http://under_score.example.com/"),
    ],
)
def test_an_address_has_one_normal_form(url: str, normal: str) -> None:
    assert parse_address(url).url == normal
    assert parse_address(normal).url == normal


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with http"),
        ("example.com/a", "must begin with http"),
        ("//example.com/a", "must begin with http"),
        ("ftp://example.com/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("javascript:alert(1)", "must begin with http"),
        ("gopher://127.0.0.1:25/x", "must begin with http"),
        ("http:/example.com", "names no host"),
        ("http:///etc", "names no host"),
        ("http://:80/", "names no host"),
        ("http://example.com:0/", "no usable port"),
        ("http://example.com:99999/", "not a web address"),
        ("http://example.com:8o/", "not a web address"),
        ("http://good.com@127.0.0.1/", "user name or password"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://good.com\\@127.0.0.1/", "backslashes"),
        ("http://127.0.0.1\t.example.com/", "control characters"),
        ("http://exam ple.com/", "blanks"),
        ("http://example.com/\r\nHost: other", "control characters"),
        ("http://127.1/", "four decimal numbers"),
        ("http://2130706433/", "four decimal numbers"),
        ("http://0x7f000001/", "four decimal numbers"),
        ("http://0x7f.0.0.1/", "four decimal numbers"),
        ("http://017700000001/", "four decimal numbers"),
        ("http://0177.0.0.1/", "four decimal numbers"),
        ("http://127.0.0.01/", "four decimal numbers"),
        ("http://1.2.3.4.5/", "four decimal numbers"),
        ("http://example.0x/", "four decimal numbers"),
        ("http://a..b/", "not a host name"),
        ("http://example.com../", "not a host name"),
        ("http://-a.com/", "not a host name"),
        ("http://ex%61mple.com/", "malformed"),
        ("http://[fe80::1%25eth0]/", "malformed"),
        ("http://[v1.x]/", "malformed"),
        ("http://[::1/", "not a web address"),
        ("http://[1:2]/", "not a"),
        ("http://" + "a" * 64 + ".com/", "not a host name"),
        ("http://example.com/" + "a" * 3000, "allowed are 2048"),
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str, message: str) -> None:
    with pytest.raises(ToolError, match=message) as error:
        parse_address(url)
    assert "secret" not in str(error.value)
    assert len(str(error.value)) < 600


@given(st.text() | st.from_regex(r"https?://[^\s]{0,40}", fullmatch=True))
def test_any_text_is_an_address_in_normal_form_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except ToolError:
        return
    assert parse_address(address.url) == address
    assert address.url.isascii()


REFUSED = {
    "unspecified": "0.0.0.0 ::",
    "this network": "0.1.2.3",
    "loopback": "127.0.0.1 127.255.255.254 ::1",
    "private": "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1",
    "unique-local": "fc00::1 fd12:3456::1",
    "link-local": "169.254.1.1 fe80::1 fe80::1%eth0",
    "site-local": "fec0::1",
    "carrier-grade NAT": "100.64.0.1 100.127.255.255",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "reserved": "240.0.0.1 255.255.255.255 192.0.0.8 100::1 5f00::1 2001:20::1",
    "examples": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "benchmarks": "198.18.0.1 198.19.255.255",
    "metadata": "169.254.169.254 168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254",
    "mapped": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:93.184.215.14 ::127.0.0.1 ::ffff:0:127.0.0.1",
    "translated": "64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::1",
    "6to4": "2002:7f00:1:: 2002:a00:1:: 192.88.99.1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
}


@pytest.mark.parametrize("ip", [ip for ips in REFUSED.values() for ip in ips.split()])
def test_numbers_off_the_public_internet_are_refused(ip: str) -> None:
    assert not is_public(ip)
    with pytest.raises(ToolError, match="not an address on the public internet"):
        AddressPolicy(resolver=resolver(ip)).resolve("innocent.example.org", 443, 5.0)
    with pytest.raises(ToolError, match="not an address on the public internet"):
        AddressPolicy(resolver=resolver(f"{PUBLIC} {ip}")).resolve("innocent.example.org", 443, 5.0)
    if "%" not in ip:
        url = f"http://[{ip}]/" if ":" in ip else f"http://{ip}/"
        with pytest.raises(ToolError, match="not an address on the public internet"):
            AddressPolicy().check(parse_address(url))


@pytest.mark.parametrize(
    "ip", ["1.1.1.1", PUBLIC, "223.255.255.255", "2606:4700::1111", "2a00:1450::1", "2001:4860::1"]
)
def test_numbers_on_the_public_internet_pass(ip: str) -> None:
    assert AddressPolicy(resolver=resolver(ip)).resolve("example.org", 443, 5.0) == (ip,)


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_what_python_calls_private_is_never_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        assert not is_public(str(ip))


def test_the_number_a_name_resolves_to_is_not_told() -> None:
    with pytest.raises(ToolError) as error:
        AddressPolicy(resolver=resolver("10.11.12.13")).resolve("intranet.example.org", 80, 5.0)
    assert "10.11.12.13" not in str(error.value)


@pytest.mark.parametrize("port", [22, 25, 6379, 9200, 65535])
def test_only_ports_of_web_servers(port: int) -> None:
    with pytest.raises(ToolError, match="80, 443, 8080, 8443"):
        AddressPolicy(resolver=resolver(PUBLIC)).resolve("example.org", port, 5.0)


def test_the_list_of_exceptions_names_host_and_port() -> None:
    policy = AddressPolicy(
        frozenset({("LocalHost.", 8123), ("::1", 8123)}), resolver=resolver("127.0.0.1", "127.0.0.1")
    )
    assert policy.resolve("localhost", 8123, 5.0) == ("127.0.0.1",)
    assert policy.resolve("::1", 8123, 5.0) == ("::1",)
    for host, port in (("localhost", 8124), ("127.0.0.1", 8123), ("localhost", 80)):
        with pytest.raises(ToolError):
            policy.resolve(host, port, 5.0)


def test_a_closed_policy_reads_nothing_else() -> None:
    policy = AddressPolicy(frozenset({("127.0.0.1", 8123)}), only_allowed=True)
    assert policy.resolve("127.0.0.1", 8123, 5.0) == ("127.0.0.1",)
    with pytest.raises(ToolError, match="not among the sites"):
        policy.check(parse_address("https://example.org/"))


@pytest.mark.parametrize("entry", [("", 80), ("a b", 80), ("example.org", 0), ("example.org", "80"), ("x",), "ab"])
def test_a_bad_exception_is_a_configuration_error(entry: Any) -> None:
    with pytest.raises(ConfigError, match="must hold"):
        AddressPolicy(frozenset({entry}))


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError("label too long")])
def test_an_unknown_host_is_the_askers_mistake(error: Exception) -> None:
    with pytest.raises(ToolError, match=r"no host named nowhere\.example\.org"):
        AddressPolicy(resolver=resolver(error)).resolve("nowhere.example.org", 80, 5.0)


def test_a_dead_name_service_is_an_outage() -> None:
    failing = AddressPolicy(resolver=resolver(socket.gaierror(socket.EAI_AGAIN, "try again")))
    with pytest.raises(ReadOutage, match="try again"):
        failing.resolve("example.org", 80, 5.0)
    done = threading.Event()

    def hang(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        done.wait(30)
        return []

    with pytest.raises(ReadOutage, match=r"took longer than 0\.1 s"):
        AddressPolicy(resolver=hang).resolve("example.org", 80, 0.1)
    done.set()
