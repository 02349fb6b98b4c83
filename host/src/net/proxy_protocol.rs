//! The header of the PROXY protocol, versions 1 and 2, that a proxy sends before the bytes of its
//! client.
//!
//! Read here and not by a crate: the one that reads both versions brings a second `thiserror` and a
//! second `syn` along, and this is all of it that a server needs.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 2 begins with. It is as long as the shortest line of version 1 is without its last
/// three bytes.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;

/// The longest header of version 2 that is read: addresses, and more of what else may follow them
/// than any proxy sends.
const LONGEST: usize = 4096;

/// What the header says: the client, and where it connected to. None: the proxy speaks for itself,
/// e.g. asks how the host is.
pub(super) type Proxied = Option<(SocketAddr, SocketAddr)>;

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The connection ended, or broke.
    #[error("its PROXY header did not come: {0}")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("it does not begin with a header of the PROXY protocol")]
    NoHeader,
    /// It is one, with something wrong in it.
    #[error("its PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// Reads the header, and not a byte more.
///
/// # Errors
/// When there is none, or a wrong one.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Proxied, ProxyError> {
    let mut start = [0; SIGNATURE.len()];
    from.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return version_2(from).await;
    }
    if start.starts_with(b"PROXY ") {
        return version_1(from, &start).await;
    }
    Err(ProxyError::NoHeader)
}

/// What follows the line is the client's, so its bytes are taken one by one.
async fn version_1(
    from: &mut (impl AsyncRead + Unpin),
    start: &[u8],
) -> Result<Proxied, ProxyError> {
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LONGEST_LINE {
            return Err(ProxyError::Malformed("its line does not end"));
        }
        line.push(from.read_u8().await?);
    }
    let line = std::str::from_utf8(&line).map_err(|_| ProxyError::Malformed("it is no text"))?;
    let words: Vec<&str> = line.trim_end_matches("\r\n").split(' ').collect();
    let address = |ip: &str, port: &str| -> Option<SocketAddr> {
        // Digits only: numbers of Rust may have a sign.
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| is_number)?;
        Some(SocketAddr::new(ip.parse().ok()?, port))
    };
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            source,
            destination,
            from_port,
            to_port,
        ] => {
            let both = address(source, from_port).zip(address(destination, to_port));
            both.filter(|(source, destination)| {
                [source, destination]
                    .iter()
                    .all(|address| address.is_ipv4() == (family == "TCP4"))
            })
            .map(Some)
            .ok_or(ProxyError::Malformed("its addresses are none"))
        }
        _ => Err(ProxyError::Malformed("it names no protocol that is known")),
    }
}

async fn version_2(from: &mut (impl AsyncRead + Unpin)) -> Result<Proxied, ProxyError> {
    let (command, family) = (from.read_u8().await?, from.read_u8().await?);
    let length = usize::from(from.read_u16().await?);
    if length > LONGEST {
        return Err(ProxyError::Malformed("it is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    if command >> 4 != 2 {
        return Err(ProxyError::Malformed("its version is unknown"));
    }
    match command & 0xf {
        0 => return Ok(None),
        1 => {}
        _ => return Err(ProxyError::Malformed("its command is unknown")),
    }
    let short = ProxyError::Malformed("its addresses are not whole");
    let addresses = match family {
        // TCP over IPv4.
        0x11 => bytes
            .first_chunk::<12>()
            .map(|[a, b, c, d, e, f, g, h, ports @ ..]| {
                let ip = |octets: [u8; 4]| IpAddr::V4(Ipv4Addr::from(octets));
                (ip([*a, *b, *c, *d]), ip([*e, *f, *g, *h]), *ports)
            }),
        // TCP over IPv6.
        0x21 => bytes.first_chunk::<36>().and_then(|bytes| {
            let (source, rest) = bytes.split_first_chunk::<16>()?;
            let (destination, ports) = rest.split_first_chunk::<16>()?;
            let ip = |octets: &[u8; 16]| IpAddr::V6(Ipv6Addr::from(*octets));
            Some((ip(source), ip(destination), *ports.first_chunk::<4>()?))
        }),
        // A unix socket, or what the proxy does not tell: the connection is its own.
        0x00 | 0x31 => return Ok(None),
        _ => return Err(ProxyError::Malformed("it is of no stream")),
    };
    let (source, destination, [a, b, c, d]) = addresses.ok_or(short)?;
    Ok(Some((
        SocketAddr::new(source, u16::from_be_bytes([a, b])),
        SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// What is read of `bytes`, and what is left of them.
    async fn read_of(mut bytes: &[u8]) -> (Result<Proxied, ProxyError>, &[u8]) {
        let read = read(&mut bytes).await;
        (read, bytes)
    }

    fn addresses(source: &str, destination: &str) -> Proxied {
        Some((source.parse().unwrap(), destination.parse().unwrap()))
    }

    fn version_2_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        header.extend(body);
        header
    }

    #[tokio::test]
    async fn both_versions_are_read_to_their_last_byte() {
        let four = [192, 0, 2, 1, 198, 51, 100, 7, 0xc3, 0x50, 0x01, 0xbb];
        let mut six = [0; 36];
        six[15] = 1;
        six[31] = 2;
        six[33] = 9;
        six[35] = 10;
        let mut with_more = four.to_vec();
        with_more.extend([0x04, 0, 1, b'x']);
        let cases: [(Vec<u8>, Proxied); 8] = [
            (
                b"PROXY TCP4 192.0.2.1 198.51.100.7 50000 443\r\n".to_vec(),
                addresses("192.0.2.1:50000", "198.51.100.7:443"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::2 1 2\r\n".to_vec(),
                addresses("[2001:db8::1]:1", "[::2]:2"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN a b c d\r\n".to_vec(), None),
            (
                version_2_header(0x21, 0x11, &with_more),
                addresses("192.0.2.1:50000", "198.51.100.7:443"),
            ),
            (
                version_2_header(0x21, 0x21, &six),
                addresses("[::1]:9", "[::2]:10"),
            ),
            (version_2_header(0x20, 0x00, &[]), None),
            (version_2_header(0x21, 0x31, &[0; 216]), None),
        ];
        for (mut bytes, expected) in cases {
            bytes.extend(b"GET / HTTP/1.1\r\n");
            let (read, left) = read_of(&bytes).await;
            assert_eq!(read.unwrap(), expected, "{bytes:?}");
            assert_eq!(left, b"GET / HTTP/1.1\r\n");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
        for bytes in [
            &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
            b"PROXY",
            b"",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 50000\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 +5 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.7 50000 65536\r\n",
            b"PROXY TCP4 ::1 ::2 50000 443\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.7 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.7 1 2\r\n",
            long.as_bytes(),
            &SIGNATURE,
            &version_2_header(0x11, 0x11, &[0; 12]),
            &version_2_header(0x22, 0x11, &[0; 12]),
            &version_2_header(0x21, 0x11, &[0; 11]),
            &version_2_header(0x21, 0x21, &[0; 35]),
            &version_2_header(0x21, 0x12, &[0; 12]),
            &version_2_header(0x21, 0x11, &[0; LONGEST + 1]),
        ] {
            let (read, _) = read_of(bytes).await;
            read.unwrap_err();
        }
    }
}
