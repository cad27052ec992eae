//! The environment variables of an invocation.

use std::ffi::OsString;

use super::{Error, Version};
use crate::code;

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the commands")]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Self; 6] =
        [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// As `CNI_COMMAND` writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The command of `CNI_COMMAND`.
    ///
    /// # Errors
    /// [`code::INVALID_ENVIRONMENT`] for any other word.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|c| c.as_str() == text).ok_or_else(|| {
            Error::new(
                code::INVALID_ENVIRONMENT,
                format!("unknown CNI_COMMAND {text:?}"),
                "CNI_COMMAND is one of ADD, DEL, CHECK, STATUS, GC, VERSION",
            )
        })
    }

    /// The oldest protocol version that has the command.
    #[must_use]
    pub const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_0,
            Self::Check => Version::V0_4_0,
            Self::Status | Self::Gc => Version::V1_1_0,
        }
    }

    /// Whether the variable must be there and not empty. GC and STATUS are not
    /// about one container. The specification wants `CNI_PATH` for GC and
    /// libcni for ADD, CHECK and DEL, although nothing is ever looked up in it.
    const fn needs(self, variable: Variable) -> bool {
        match self {
            Self::Add | Self::Check => true,
            Self::Del => !matches!(variable, Variable::Netns),
            Self::Gc => matches!(variable, Variable::Path),
            Self::Status | Self::Version => false,
        }
    }
}

#[derive(Clone, Copy)]
enum Variable {
    ContainerId,
    Netns,
    IfName,
    Path,
}

/// The variables besides `CNI_COMMAND`, checked for the command. Those that a
/// command does not need are empty when unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub if_name: String,
    /// `CNI_ARGS`, not yet parsed: see [`super::Args`].
    pub args: String,
}

impl Environment {
    /// Reads the variables of `command` through `get`.
    ///
    /// # Errors
    /// [`code::INVALID_ENVIRONMENT`], naming every variable that is missing, or
    /// the one whose value is not allowed.
    pub fn parse(command: Command, get: impl Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let mut missing = Vec::new();
        let mut required = |variable, name| -> Result<String, Error> {
            let value = text(name, &get)?;
            if value.is_empty() && command.needs(variable) {
                missing.push(name);
            }
            Ok(value)
        };
        let container_id = required(Variable::ContainerId, "CNI_CONTAINERID")?;
        let netns = required(Variable::Netns, "CNI_NETNS")?;
        let if_name = required(Variable::IfName, "CNI_IFNAME")?;
        required(Variable::Path, "CNI_PATH")?;
        if !missing.is_empty() {
            return Err(Error::new(
                code::INVALID_ENVIRONMENT,
                format!("required environment variables missing: {}", missing.join(", ")),
                format!("the container runtime has to set them for {}", command.as_str()),
            ));
        }
        if command.needs(Variable::ContainerId) {
            check_container_id(&container_id)?;
        }
        if command.needs(Variable::IfName) {
            check_if_name(&if_name)?;
        }
        Ok(Self { container_id, netns, if_name, args: text("CNI_ARGS", &get)? })
    }
}

fn text(name: &str, get: impl Fn(&str) -> Option<OsString>) -> Result<String, Error> {
    get(name).unwrap_or_default().into_string().map_err(|raw| {
        Error::new(
            code::INVALID_ENVIRONMENT,
            format!("{name} is not UTF-8: {raw:?}"),
            "the container runtime has to set it to text",
        )
    })
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`: the specification's rule for container ids
/// and network names. Both end up in file names.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_container_id(id: &str) -> Result<(), Error> {
    if is_name(id) {
        return Ok(());
    }
    Err(Error::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_CONTAINERID {id:?} is not a container id"),
        "it has to start with a letter or digit and to consist of letters, digits, '_', '.' and '-'",
    ))
}

/// The kernel's rule for interface names (`dev_valid_name`, 15 bytes).
fn check_if_name(name: &str) -> Result<(), Error> {
    let valid = name.len() <= 15
        && !matches!(name, "." | "..")
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace());
    if valid {
        return Ok(());
    }
    Err(Error::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_IFNAME {name:?} is not an interface name"),
        "it has to be at most 15 bytes without '/', ':' or white space, and neither \".\" nor \"..\"",
    ))
}
