//! The user at the other end of a loopback TCP connection, on systems that can tell.
//!
//! In: the two addresses of an accepted connection. Out: whether the peer process runs as our user.
//! Trusts: the kernel's table of connections (proc(5), `/proc/net/tcp`).
//! Refuses: sockets that are not in that table, or that no process holds any more.

use std::net::SocketAddr;

use crate::cli::error::CliError;

/// Whether the peer's process runs as our effective user. Other systems than Linux have no such table: there only the
/// secret path keeps other users out.
#[cfg(target_os = "linux")]
pub(super) fn is_same_user(peer: SocketAddr, here: SocketAddr) -> bool {
    // The table may change while it is read and skip a line: it is read twice.
    let owner = owner(peer, here).or_else(|| owner(peer, here));
    owner == Some(rustix::process::geteuid().as_raw())
}

#[cfg(not(target_os = "linux"))]
pub(super) const fn is_same_user(_peer: SocketAddr, _here: SocketAddr) -> bool {
    true
}

/// Fails before the command runs if peers cannot be identified.
#[cfg(target_os = "linux")]
pub(super) fn check_supported() -> Result<(), CliError> {
    let [first, _] = TABLES;
    std::fs::File::open(first).map(drop).map_err(|error| {
        CliError::failed(format!(
            "{first}: {error}: the proxy cannot check which user connects"
        ))
        .with_next_step("use --deliver socket, where the system identifies the peer")
    })
}

#[cfg(not(target_os = "linux"))]
pub(super) const fn check_supported() -> Result<(), CliError> {
    Ok(())
}

/// The uid of the peer socket, in either family: an IPv6 socket can connect to 127.0.0.1 too.
#[cfg(target_os = "linux")]
fn owner(peer: SocketAddr, here: SocketAddr) -> Option<u32> {
    use std::io::{BufRead as _, BufReader};
    TABLES.iter().find_map(|table| {
        let file = std::fs::File::open(table).ok()?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines.skip(1).find_map(|line| owner_in(&line, peer, here))
    })
}

#[cfg(target_os = "linux")]
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// The uid in one line of the table, if the line is of this socket and a process holds it: for a released socket the kernel
/// writes uid 0 and inode 0.
#[cfg(any(target_os = "linux", test))]
fn owner_in(line: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let same = address(fields.next()?)? == canonical(local)
        && address(fields.next()?)? == canonical(remote);
    // After the addresses: state, queues, timer, retransmissions.
    let mut fields = fields.skip(4);
    let user = fields.next()?.parse().ok()?;
    let inode: u64 = fields.nth(1)?.parse().ok()?;
    (same && inode != 0).then_some(user)
}

/// `ADDRESS:PORT` in hexadecimal: the address in 32-bit words in memory order, the port as a number.
#[cfg(any(target_os = "linux", test))]
fn address(field: &str) -> Option<SocketAddr> {
    let (words, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !words.is_ascii() {
        return None;
    }
    let bytes = words
        .as_bytes()
        .chunks(WORD_DIGITS)
        .map(|word| {
            let word = std::str::from_utf8(word).ok()?;
            Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
        })
        .collect::<Option<Vec<_>>>()?
        .concat();
    let full = words.len().is_multiple_of(WORD_DIGITS);
    let ip = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    full.then(|| canonical(SocketAddr::new(ip, port)))
}

/// An IPv4-mapped IPv6 address becomes the IPv4 address.
#[cfg(any(target_os = "linux", test))]
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Hexadecimal digits of one word.
#[cfg(any(target_os = "linux", test))]
const WORD_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn parses_proc_net_tcp_addresses() {
        for (field, address_) in [
            ("0100007F:1F90", "127.0.0.1:8080"),
            ("0201A8C0:0050", "192.168.1.2:80"),
            ("00000000000000000000000001000000:0016", "[::1]:22"),
            ("0000000000000000FFFF00000100007F:1F90", "127.0.0.1:8080"),
            ("B80D0120000000000000000002000000:01BB", "[2001:db8::2]:443"),
        ] {
            assert_eq!(address(field), Some(at(address_)), "{field}");
        }
        for bad in [
            "",
            ":",
            "0100007F",
            "0100007F:",
            "0100007:1F90",
            "0100007F:1F900",
            "G100007F:1F90",
            "0100007F0100007F:1F90",
            "0100007F0100007:1F90",
            "+100007F:1F90:1",
            "127.0.0.1:80",
            "ÄÄÄÄ:80",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn proc_net_tcp_line_gives_the_uid() {
        let (peer, here) = (at("127.0.0.1:36842"), at("127.0.0.1:33201"));
        let line = "   2: 0100007F:8FEA 0100007F:81B1 01 00000000:00000000 00:00000000 00000000  1000        0 474049 1 0000000081cc7102 20 4 30 10 -1";
        assert_eq!(owner_in(line, peer, here), Some(1_000));
        // Our own end of the connection.
        assert_eq!(owner_in(line, here, peer), None);
        assert_eq!(owner_in(line, at("127.0.0.1:36843"), here), None);
        assert_eq!(owner_in(line, at("127.0.0.2:36842"), here), None);
        assert_eq!(owner_in(line, peer, at("127.0.0.1:33202")), None);
        // Over IPv6.
        let six = "   0: 0000000000000000FFFF00000100007F:8FEA 0000000000000000FFFF00000100007F:81B1 01 00000000:00000000 00:00000000 00000000 65534        0 9 1 0 20 4 30 10 -1";
        assert_eq!(owner_in(six, peer, here), Some(65_534));
        // Released: the kernel writes uid 0.
        let released = "   2: 0100007F:8FEA 0100007F:81B1 06 00000000:00000000 03:0000170F 00000000     0        0 0 3 0000000028b7c312";
        assert_eq!(owner_in(released, peer, here), None);
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        for bad in [
            "",
            head,
            line.split_at(60).0,
            &line.replace(" 1000 ", " -1 "),
        ] {
            assert_eq!(owner_in(bad, peer, here), None, "{bad}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_connection_has_own_uid() {
        for listen in ["127.0.0.1:0", "[::]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(listen) else {
                assert!(listen.starts_with('['), "no loopback");
                continue;
            };
            let port = listener.local_addr().expect("address").port();
            let client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connects");
            let (stream, peer) = listener.accept().expect("accepts");
            let here = stream.local_addr().expect("address");
            assert!(is_same_user(peer, here));
            drop(client);
            assert!(
                !is_same_user(peer, here),
                "the owner of a released socket is unknown"
            );
        }
    }
}
