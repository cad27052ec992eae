//! Protocol versions and the answer to VERSION.

use std::fmt;

use super::Error;
use crate::code;

/// A protocol version that this plugin speaks, oldest first.
///
/// Istio's plugin also lists 0.1.0 and 0.2.0. Those know neither plugin chains
/// nor prevResult, so a chained plugin has nothing to do there but to lose the
/// result of the plugin before it. 0.3.0 is on the wire what 0.3.1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the versions")]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 5] =
        [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest one.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As the protocol writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of a configuration's `cniVersion`; absent and empty mean
    /// 0.1.0 by the specification.
    ///
    /// # Errors
    /// [`code::INCOMPATIBLE_VERSION`] for any other than [`Version::ALL`].
    pub fn negotiate(config: Option<&str>) -> Result<Self, Error> {
        let text = config.filter(|v| !v.is_empty()).unwrap_or("0.1.0");
        Self::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| {
            Error::new(
                code::INCOMPATIBLE_VERSION,
                format!("incompatible CNI version: the configuration has cniVersion {text:?}"),
                format!("set cniVersion of the network configuration to one of {}", Self::list()),
            )
        })
    }

    /// All versions, separated by a comma and a blank.
    #[must_use]
    pub fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION.
///
/// The specification wants the input's `cniVersion` back; where stdin holds
/// none that we speak (podman probes with dummies, libcni's own skeleton does
/// not read stdin at all) the newest version stands in.
#[must_use]
pub fn version_reply(asked: Option<&str>) -> String {
    let version = Version::negotiate(asked).unwrap_or(Version::NEWEST);
    let list = Version::ALL.map(Version::as_str).join(r#"",""#);
    format!(r#"{{"cniVersion":"{version}","supportedVersions":["{list}"]}}"#)
}
