//! Network values with their validity in the type: prefixes, interface
//! patterns, owners.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Address family of a rule, a route or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// An address prefix, host bits already cleared (as iptables and nft do when
/// they load one).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

/// Why a text is no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed parsing cidr '{0}': want ADDRESS/PREFIX-LENGTH, for example 10.0.0.0/8 or 2001:db8::/32"
)]
pub struct CidrError(pub String);

impl Cidr {
    /// A prefix; `None` when `len` is longer than the address has bits.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(a) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask))
            }
            IpAddr::V6(a) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask))
            }
            _ => return None,
        };
        Some(Self { addr, len })
    }

    /// The prefix that holds just this address.
    #[must_use]
    pub fn host(addr: IpAddr) -> Self {
        let len = if addr.is_ipv4() { 32 } else { 128 };
        Self { addr, len }
    }

    /// First address of the prefix.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Prefix length in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Address family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// True when the address lies in the prefix; false across families.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.family() == Family::of(addr)
            && Self::new(addr, self.len).is_some_and(|c| c.addr == self.addr)
    }

    /// True when the prefix lies in 127.0.0.0/8 or is ::1.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.addr.is_loopback()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let err = || CidrError(text.to_owned());
        let (addr, len) = text.split_once('/').ok_or_else(err)?;
        // `u8::from_str` takes "+8"; Go's ParseCIDR, which upstream uses, does not.
        if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(err());
        }
        let addr: IpAddr = addr.parse().map_err(|_| err())?;
        Self::new(addr, len.parse().map_err(|_| err())?).ok_or_else(err)
    }
}

/// An interface name, or a prefix of names when it ends in `*` (`br-*`).
///
/// At most 15 bytes (the kernel's IFNAMSIZ less the final zero), a letter first,
/// then letters, digits, `_`, `.` and `-`: what upstream accepts (reference 2.6),
/// plus the one trailing `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface {
    name: String,
    wildcard: bool,
}

/// Why a text names no interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// An empty item of a list.
    #[error("empty interface name")]
    Empty,
    /// More than 15 bytes.
    #[error("interface name \"{0}\" too long (max 15 chars)")]
    TooLong(String),
    /// A character that no interface name has.
    #[error(
        "interface name \"{0}\" contains invalid characters (want a letter, then letters, digits, '_', '.', '-', and at most one '*' at the end)"
    )]
    Invalid(String),
}

impl Interface {
    /// The name without the `*`.
    #[must_use]
    pub fn stem(&self) -> &str {
        &self.name
    }

    /// True when every interface whose name begins with [`Self::stem`] is meant.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The loopback interface.
    #[must_use]
    pub fn loopback() -> Self {
        Self { name: "lo".to_owned(), wildcard: false }
    }
}

impl FromStr for Interface {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        if text.is_empty() {
            return Err(InterfaceError::Empty);
        }
        if text.len() > 15 {
            return Err(InterfaceError::TooLong(text.to_owned()));
        }
        let (stem, wildcard) = match text.strip_suffix('*') {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        let mut bytes = stem.bytes();
        let ok = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !ok {
            return Err(InterfaceError::Invalid(text.to_owned()));
        }
        Ok(Self { name: stem.to_owned(), wildcard })
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.wildcard { "*" } else { "" })
    }
}

/// The owning user or group of a socket, by number or by a name that the tool
/// which loads the rules resolves (`--gid-owner java`).
///
/// Netlink knows numbers only, so whoever programs a namespace resolves names
/// first; text output keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Numeric id.
    Id(u32),
    /// A name of the user or group database: `[a-z_][a-z0-9_-]{0,31}`.
    Name(String),
}

/// Why a text is no user or group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no id (0 to 4294967294) and no user or group name ([a-z_][a-z0-9_-], at most 32 characters)"
)]
pub struct OwnerError(pub String);

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let err = || OwnerError(text.to_owned());
        let mut bytes = text.bytes();
        match bytes.next() {
            Some(b'0'..=b'9') if bytes.all(|b| b.is_ascii_digit()) => match text.parse::<u32>() {
                // u32::MAX is (uid_t)-1, which the kernel reads as "no id".
                Ok(id) if id != u32::MAX => Ok(Self::Id(id)),
                _ => Err(err()),
            },
            Some(b'a'..=b'z' | b'_')
                if text.len() <= 32
                    && bytes.all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) =>
            {
                Ok(Self::Name(text.to_owned()))
            }
            _ => Err(err()),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clears_host_bits_and_knows_what_it_holds() {
        let c: Cidr = "10.1.2.3/8".parse().unwrap();
        assert_eq!(c.to_string(), "10.0.0.0/8");
        assert!(c.contains("10.255.0.1".parse().unwrap()));
        assert!(!c.contains("11.0.0.1".parse().unwrap()));
        assert!(!c.contains("::1".parse().unwrap()));
        assert_eq!("::/0".parse::<Cidr>().unwrap().to_string(), "::/0");
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains("1.2.3.4".parse().unwrap()));
    }

    #[test]
    fn refuses_what_is_no_prefix() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            "*",
            "a/8",
            "10.0.0.0/",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_what_is_no_interface() {
        for bad in [
            "",
            "*",
            "1eth",
            "eth 0",
            "eth0;reboot",
            "-j",
            "a\nb",
            "abcdefghijklmnop",
            "br*-",
            "br-**",
            "e\"",
            "{a}",
        ] {
            assert!(bad.parse::<Interface>().is_err(), "{bad}");
        }
        assert!("br-*".parse::<Interface>().unwrap().is_wildcard());
        assert_eq!("br-*".parse::<Interface>().unwrap().to_string(), "br-*");
    }

    #[test]
    fn refuses_what_is_no_owner() {
        for bad in ["", "-1", "4294967295", "1337x", "Root", "a b", "$(id)", "a;b", "+5"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
        assert_eq!("1337".parse::<Owner>().unwrap(), Owner::Id(1337));
        assert_eq!("java".parse::<Owner>().unwrap(), Owner::Name("java".into()));
    }
}
