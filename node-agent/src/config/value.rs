//! Values of options.

use redirect::pod::parse_bool;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;

/// A boolean as Go's `strconv.ParseBool` reads it. Istio takes anything else for
/// false, and so do we, but say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Switch {
    on: bool,
    odd: Option<String>,
}

impl Switch {
    /// Whether it is on.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// The text that is no boolean.
    pub(crate) fn odd(&self) -> Option<&str> {
        self.odd.as_deref()
    }
}

/// Parses a [`Switch`]. Empty is how a chart writes "not set": false, as in Istio.
#[expect(clippy::unnecessary_wraps, reason = "clap takes parsers that can fail")]
pub(super) fn switch(text: &str) -> Result<Switch, Infallible> {
    let parsed = parse_bool(text);
    let odd = parsed.is_none() && !text.is_empty();
    Ok(Switch { on: parsed.unwrap_or(false), odd: odd.then(|| text.to_owned()) })
}

/// A whole number, in the notations of Go's literals (`0x1f`, `0o600`, `0600`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Integer(pub(crate) i64);

/// Parses an [`Integer`]; empty is 0, as in Istio.
pub(super) fn integer(text: &str) -> Result<Integer, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if text.is_empty() {
        return Ok(Integer(0));
    }
    let signed =
        if digits.starts_with(['+', '-']) { None } else { i64::from_str_radix(digits, radix).ok() };
    let value = signed.ok_or("want a whole number")?;
    Ok(Integer(if negative { -value } else { value }))
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen {
    /// `None` is every address of the machine.
    pub(crate) address: Option<IpAddr>,
    /// Never 0.
    pub(crate) port: u16,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => write!(f, ":{}", self.port),
            Some(IpAddr::V4(v4)) => write!(f, "{v4}:{}", self.port),
            Some(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

/// Where to listen, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound(pub(crate) Option<Listen>);

/// Parses `HOST:PORT`, `:PORT` or nothing; a port of 0 is nothing too.
pub(super) fn bound(text: &str) -> Result<Bound, String> {
    if text.is_empty() {
        return Ok(Bound(None));
    }
    let wrong = || "want ADDRESS:PORT, or :PORT for all addresses, or nothing".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let address = match host {
        "" => None,
        host => Some(host.parse::<IpAddr>().map_err(|_| wrong())?),
    };
    Ok(Bound((port != 0).then_some(Listen { address, port })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_gos() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(switch(text), Ok(Switch { on: true, odd: None }), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False", ""] {
            assert_eq!(switch(text), Ok(Switch { on: false, odd: None }), "{text}");
        }
        for text in ["yes", "on", "tRUE", " true", "2"] {
            let Ok(value) = switch(text);
            assert!(!value.is_on() && value.odd() == Some(text), "{text}");
        }
    }

    #[test]
    fn numbers_are_gos() {
        let good = [
            ("15014", 15014),
            ("-1", -1),
            ("0600", 384),
            ("0o600", 384),
            ("0x1F", 31),
            ("", 0),
            ("0", 0),
        ];
        for (text, value) in good {
            assert_eq!(integer(text), Ok(Integer(value)), "{text}");
        }
        for text in ["x", "1.5", "--1", "09", "0x", "-", "1 ", "99999999999999999999"] {
            assert!(integer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn places_to_listen_at() {
        for (text, shown) in [
            (":8000", Some(":8000")),
            ("127.0.0.1:15018", Some("127.0.0.1:15018")),
            ("[::1]:1", Some("[::1]:1")),
            ("", None),
            (":0", None),
        ] {
            assert_eq!(bound(text).unwrap().0.map(|l| l.to_string()).as_deref(), shown, "{text}");
        }
        for text in ["8000", "localhost:80", ":x", ":70000", "1.2.3:4"] {
            assert!(bound(text).is_err(), "{text}");
        }
    }
}
