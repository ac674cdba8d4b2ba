//! `/proc/PID/net/tcp` and `tcp6`: a line for each TCP socket of a network namespace (proc_pid_net(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket's peer, and how many bytes it was given that are not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its address, without a scope.
    pub address: SocketAddr,
    /// Bytes; a beginning or an end of the stream counts as one.
    pub unsent: u32,
}

/// The peers of all sockets, by their inode numbers.
pub fn peers(text: &str) -> impl Iterator<Item = (u64, Peer)> {
    text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let unsent = u32::from_str_radix(words.get(4)?.split_once(':')?.0, 16).ok()?;
        Some((words.get(9)?.parse().ok()?, Peer { address: address(words.get(2)?)?, unsent }))
    })
}

/// The words of an address as numbers of this machine, and the port.
fn address(word: &str) -> Option<SocketAddr> {
    let (ip, port) = word.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let part = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = if ip.len() == 8 {
        Ipv4Addr::from(part(0)?).into()
    } else {
        let octets: [u8; 16] = [part(0)?, part(8)?, part(16)?, part(24)?].concat().try_into().ok()?;
        Ipv6Addr::from(octets).into()
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_found() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:0277 0200007F:1F90 02 00000001:00000000 01:00000064 00000000  0  0 4711 2 0 0 0\n";
        let found = Peer { address: "127.0.0.2:8080".parse().unwrap(), unsent: 1 };
        assert_eq!(peers(text).collect::<Vec<_>>(), [(4711, found)]);
        assert_eq!(address("00000000000000000000000001000000:0050"), Some("[::1]:80".parse().unwrap()));
    }
}
